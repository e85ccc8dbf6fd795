"""Fitting a tuned lens: per layer an affine map that brings the layer's policy near to the final policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.errors import PromptError, SelectionError
from layerlens.models.capture import LayerSite
from layerlens.models.lens import LensModel
from layerlens.models.lenses.checkpoint import FitCheckpoint
from layerlens.models.lenses.files import save_lens
from layerlens.models.lenses.fitted_lens import FittedLens
from layerlens.progress import progress_bar
from layerlens.types import Site

KEEP_EVERY = 10
"""Steps between two checkpoints."""


@dataclass(frozen=True)
class TunedSettings:
    """How a tuned lens is fitted.

    Attributes:
        steps: optimizer steps of every layer.
        rows: rows of text per step, each a token of a text but not its first.
        rate: learning rate of Adam at the first step, which falls to 0 in a straight line.
        max_tokens: of a longer text the beginning counts.
        seed: of the order of texts and the choice of rows.

    Raises SelectionError if a setting is out of its range.
    """

    steps: int = 250
    rows: int = 64
    rate: float = 1e-3
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "rows", "max_tokens"):
            if getattr(self, name) < 1:
                raise SelectionError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.rate > 0:
            raise SelectionError(f"rate must be above 0, got {self.rate}")


class _Translators:
    """The maps h + σ (W (h / σ) + c) of all layers, entry by entry in σ, with W and c as they are learnt, starting from 0: the identity.

    σ is the root mean square of each entry of a layer's states over the first batch: so W sees and changes entries of one size, and one
    learning rate fits all layers and models. A few entries of a stream can be a hundred times as large as the others; a change that is
    measured in a size common to all drowns the small ones, and the lens ends worse than it began.
    """

    def __init__(self, states: Float[Tensor, "layers rows d"]):
        layers, _, d = states.shape
        self.sigma = states.pow(2).mean(1).sqrt().clamp_min(1e-6 * float(states.pow(2).mean().sqrt()))
        self.weights = [torch.zeros(d, d, device=states.device, requires_grad=True) for _ in range(layers)]
        self.biases = [torch.zeros(d, device=states.device, requires_grad=True) for _ in range(layers)]

    def __call__(self, layer: int, states: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        sigma = self.sigma[layer]
        return states + sigma * torch.nn.functional.linear(states / sigma, self.weights[layer], self.biases[layer])

    def state(self) -> dict[str, Any]:
        return {"sigma": self.sigma, "weights": self.weights, "biases": self.biases}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        self.sigma = state["sigma"].to(self.sigma.device)
        for ours, kept in zip([*self.weights, *self.biases], [*state["weights"], *state["biases"]], strict=True):
            ours.copy_(kept)

    @torch.no_grad()
    def lens(self, model: LensModel, texts: int, out: str | Path) -> FittedLens:
        identity = torch.eye(self.sigma.shape[1])
        maps = [(sigma[:, None] * weight / sigma).cpu() for weight, sigma in zip(self.weights, self.sigma, strict=True)]
        return FittedLens(
            "tuned",
            {(layer, "resid_post"): identity + change for layer, change in enumerate(maps)},
            {(layer, "resid_post"): (self.sigma[layer] * bias).detach().cpu() for layer, bias in enumerate(self.biases)},
            n_layers=model.n_layers,
            model=model.name,
            revision=model.revision,
            weights=model.fingerprint,
            n_prompts=texts,
            file=str(out),
        )


def fit_tuned(
    model: LensModel,
    texts: Sequence[Sequence[int]],
    out: str | Path,
    settings: TunedSettings | None = None,
    *,
    progress: bool | None = None,
) -> FittedLens:
    """Fits a tuned lens at the embedding and at every layer's resid_post but the last, and writes it to `out`.

    The map of layer l, h + A h + b, starts from the identity and minimises KL(π_final ‖ π_l) on tokens of the texts, with π_l read
    through the model's own final norm and unembedding, neither of which changes (Belrose et al. 2023; Adam in place of their SGD). A fit
    that was stopped goes on at its last checkpoint.

    Args:
        texts: token ids of each text, of two tokens or more. A few thousand tokens keep a map of d² numbers from learning the texts by
            heart only because it starts from the identity and learns for few steps: judge the lens on other texts.
        out: folder to write.
        settings: how to fit; by default `TunedSettings()`.
        progress: whether to show a progress bar; by default only on a terminal.

    Raises:
        PromptError: no text has two tokens.
        RunError: `out` cannot be written, or another fit has left its unfinished work there.
    """
    settings = settings or TunedSettings()
    used = [list(text[: settings.max_tokens]) for text in texts if len(text[: settings.max_tokens]) > 1]
    if not used:
        raise PromptError("no text has two tokens or more to fit a lens on")
    checkpoint = FitCheckpoint(out, {"kind": "tuned", "map": "h + σ (W (h / σ) + c)", "weights": model.fingerprint, **vars(settings)}, used)
    kept = checkpoint.read()
    batches = _batches(used, settings)
    first_states, _ = _read(model, used, next(batches))
    maps = _Translators(first_states)
    learnt = [*maps.weights, *maps.biases]
    optimizer = torch.optim.Adam(learnt, lr=settings.rate)
    done = 0
    if kept is not None:
        done = int(kept["done"])
        maps.load(kept)
        optimizer.load_state_dict(kept["optimizer"])
    with progress_bar(f"fitting a tuned lens to {model.name}", settings.steps, "steps", progress) as advance:
        advance(done, 0)
        for step, batch in enumerate(_batches(used, settings)):
            if step < done:
                continue
            if step == settings.steps:
                break
            states, final = _read(model, used, batch)
            gradients = [_gradient(model, maps, layer, rows, final) for layer, rows in enumerate(states)]
            for parameter, gradient in zip(learnt, [g[0] for g in gradients] + [g[1] for g in gradients], strict=True):
                parameter.grad = gradient
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * (1 - step / settings.steps)
            optimizer.step()
            if (step + 1) % KEEP_EVERY == 0:
                checkpoint.write(done=step + 1, optimizer=optimizer.state_dict(), **maps.state())
            advance(1, 0)
    lens = maps.lens(model, len(used), out)
    save_lens(lens, out)
    checkpoint.remove()
    return lens


def _batches(texts: Sequence[Sequence[int]], settings: TunedSettings) -> Iterator[list[tuple[int, list[int]]]]:
    """Endless batches of rows: numbers of texts, and positions in each. The texts come in a new order in every round."""
    generator = torch.Generator().manual_seed(settings.seed)
    waiting: list[tuple[int, int]] = []
    while True:
        while len(waiting) < settings.rows:
            number = torch.randperm(len(texts), generator=generator).tolist()
            waiting += [(text, 1 + row) for text in number for row in torch.randperm(len(texts[text]) - 1, generator=generator).tolist()]
        batch: dict[int, list[int]] = {}
        for text, row in waiting[: settings.rows]:
            batch.setdefault(text, []).append(row)
        del waiting[: settings.rows]
        yield sorted(batch.items())


@torch.no_grad()
def _read(
    model: LensModel, texts: Sequence[Sequence[int]], batch: Sequence[tuple[int, Sequence[int]]]
) -> tuple[Float[Tensor, "layers rows d"], Float[Tensor, "rows vocabulary"]]:
    """The states H^0 … H^(L-1) at a batch's rows, float32, and the final policy's log-probabilities there."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(texts[text]) for text, _ in batch], batch_first=True)
    flat = torch.cat([torch.tensor(rows) + number * ids.shape[1] for number, (_, rows) in enumerate(batch)])
    device = model.parts.unembedding_weight.device
    kept: list[Tensor] = []

    def on_state(layer: int, site: Site, states: Tensor) -> None:
        kept.append(states.flatten(0, 1)[flat.to(states.device)].to(device))

    places: list[LayerSite] = [*((layer, "resid_pre") for layer in range(1, model.n_layers + 1)), (model.n_layers, "resid_post")]
    model.forward(ids, places, on_state)
    final = model.unembedding().logits(model.convention("final").vectors(model.n_layers, "resid_post", kept[-1]))
    return torch.stack(kept[:-1]).float(), final.log_softmax(-1)


@torch.enable_grad()
def _gradient(
    model: LensModel, maps: _Translators, layer: int, states: Float[Tensor, "rows d"], final: Float[Tensor, "rows vocabulary"]
) -> tuple[Tensor, ...]:
    """The gradient of mean KL(π_final ‖ π_l) with respect to a layer's weight and bias."""
    carried = model.convention("final").vectors(layer, "resid_post", maps(layer, states))
    loss = torch.nn.functional.kl_div(model.unembedding().logits(carried).log_softmax(-1), final, reduction="batchmean", log_target=True)
    return torch.autograd.grad(loss, (maps.weights[layer], maps.biases[layer]))
