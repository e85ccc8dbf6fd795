"""The settings of distillation and token masks: what contradicts them, and how they are told and kept."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from layerlens.errors import TrainingError
from layerlens.train.fields import DEFAULTS
from layerlens.train.grpo_options import checkpoints_reentrantly, compiles
from layerlens.train.schedule import WHOLE_RUN
from layerlens.train.trained_weights import layers_text, parse_layers

if TYPE_CHECKING:
    from layerlens.train.config import BuPOConfig

DISTILL_WEIGHTS = ("one", "positive", "absolute")
OF_DISTILLATION = ("distill_layers", "distill_lambda", "distill_weights")
"""Fields without effect unless `internal_loss` is distill."""
OF_TOKEN_MASK = ("token_layer", "token_quantile")
"""Fields without effect unless there is a `token_signal`."""
TOKEN_SIGNALS = ("entropy", "kl_to_final", "settling_depth")


def asked_layers(args: BuPOConfig) -> tuple[int, ...]:
    """The layers that `distill_layers` names, or else `internal_layer`; none if neither does."""
    if args.distill_layers is None:
        return () if args.named_layer is None else (args.named_layer,)
    layers = parse_layers(args.distill_layers)
    if layers is None:
        raise TrainingError("distill_layers are like 7 or 4,8: the final policy itself, of all layers, is what they learn from")
    return layers


def signal_contradictions(args: BuPOConfig) -> Iterator[str]:
    """Yields what is wrong with the settings of distillation and token masks, one message after the other."""
    if args.internal_loss not in (None, "distill"):
        yield f"internal_loss is distill or none, got {args.internal_loss!r}"
    distils = args.internal_loss == "distill"
    if distils and not asked_layers(args):
        yield "internal_loss=distill needs distill_layers, such as 7 or 4,8"
    yield from _without_switch(args, distils, "internal_loss=distill", OF_DISTILLATION)
    if args.distill_weights not in DISTILL_WEIGHTS:
        yield f"distill_weights is one of {', '.join(DISTILL_WEIGHTS)}, got {args.distill_weights!r}"
    if args.distill_lambda < 0:
        yield f"distill_lambda must be 0 or more, got {args.distill_lambda:g}"
    if distils and args.trained_layers and asked_layers(args)[-1] < args.trained_layers[0]:
        yield f"train_layers={args.train_layers} leaves nothing that distillation at layer {layers_text(asked_layers(args))} could train"
    if distils and asked_layers(args)[0] <= args.freeze_layers:
        yield f"freeze_layers={args.freeze_layers} leaves nothing but norm and unembedding to distill into layer {asked_layers(args)[0]}"
    if args.token_signal not in (None, *TOKEN_SIGNALS):
        yield f"token_signal is one of {', '.join(TOKEN_SIGNALS)}, or none; got {args.token_signal!r}"
    yield from _without_switch(args, args.token_signal is not None, f"token_signal: {', '.join(TOKEN_SIGNALS)}", OF_TOKEN_MASK)
    if args.token_signal == "settling_depth" and args.token_layer is not None:
        yield "settling_depth is of all layers together: leave token_layer out"
    if args.token_signal in ("entropy", "kl_to_final") and (args.token_layer or 0) < 1:
        yield f"token_signal={args.token_signal} needs token_layer, a layer from 1"
    if not 0 < args.token_quantile <= 1:
        yield f"token_quantile is a share above 0 and at most 1, got {args.token_quantile:g}"
    if args.token_signal and args.top_entropy_quantile < 1:
        yield "give either token_signal or top_entropy_quantile, which is token_signal entropy at the last layer"
    if distils or args.token_signal:
        yield from _impossible(args, "distillation" if distils else "token_signal")


def _without_switch(args: BuPOConfig, on: bool, switch: str, names: Sequence[str]) -> Iterator[str]:
    """Yields that a setting would be without effect, if it was given and what it belongs to was not."""
    if not on:
        yield from (f"{name} needs {switch}" for name in names if getattr(args, name) != DEFAULTS[name])


def _impossible(args: BuPOConfig, what: str) -> Iterator[str]:
    """Yields why states of the final policy's forward pass cannot be had under these settings."""
    if args.trains_internally and _internal_throughout(args):
        yield f"{what} rests in an internal phase, and this one lasts for the whole run: give it fewer rollouts, or internal_layer none"
    if args.use_liger_kernel:
        yield f"{what} needs the states that Liger's fused loss does not show: set use_liger_kernel=False"
    if compiles(args):
        yield f"{what} reads states inside the forward pass, which torch_compile fixes: set torch_compile=False"
    if args.fsdp or args.deepspeed_plugin or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        yield f"{what} reads through a norm and an unembedding that FSDP and DeepSpeed spread over processes: use one process, or DDP"
    if checkpoints_reentrantly(args):
        yield f"reentrant checkpointing hides the gradients that {what} needs: set use_reentrant to False"


def _internal_throughout(args: BuPOConfig) -> bool:
    rollouts = args.internal_rollouts if args.chooses_layer else args.schedule().rollouts
    return rollouts == WHOLE_RUN or 0 < args.max_steps <= (rollouts or 0) * args.optimizer_steps_per_rollout


def require_below_final(args: BuPOConfig, n_layers: int) -> None:
    """Raises TrainingError if the final policy itself would be compared with the final policy."""
    if n_layers in args.distilled_layers:
        raise TrainingError(
            f"layer {n_layers} is the last: under the final norm its policy is the final one, which has nothing to learn from it"
        )
    if args.token_signal == "kl_to_final" and args.token_layer == n_layers:
        raise TrainingError(f"the KL of layer {n_layers}, the last, to the final policy is 0 for each token: give a lower token_layer")


def signal_rows(args: BuPOConfig) -> Iterator[tuple[str, str]]:
    """Yields what the table at start says of distillation and token masks, as rows of two texts."""
    rests = ", rests in an internal phase" if args.trains_internally else ""
    if args.distilled_layers:
        yield (
            f"distillation into layer {layers_text(args.distilled_layers)}",
            f"{args.distill_lambda:g} x JS to the final policy, weights {args.distill_weights}, norm final{rests}",
        )
    if args.token_signal:
        at = "" if args.token_layer is None else f" at layer {args.token_layer}"
        yield "tokens in GRPO's loss", f"the {args.token_quantile:.0%} of largest {args.token_signal}{at}, norm final{rests}"


def signal_contents(args: BuPOConfig) -> dict[str, Any]:
    """What `schedule.json` keeps of distillation and token masks; None for what is not asked for."""
    distillation = {
        "layers": layers_text(args.distilled_layers), "lambda": args.distill_lambda, "weights": args.distill_weights, "norm": "final"
    }  # fmt: skip
    tokens = {"signal": args.token_signal, "layer": args.token_layer, "quantile": args.token_quantile, "norm": "final"}
    return {"distillation": distillation if args.distilled_layers else None, "token_mask": tokens if args.token_signal else None}
