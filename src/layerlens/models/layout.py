"""Where each architecture keeps its residual stream and what its blocks add to it: one row per architecture."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

from layerlens.errors import ModelLayoutError
from layerlens.models.offload import own_weights_in_memory
from layerlens.types import Site

Names = str | tuple[str, ...]
"""One or several dotted module names inside a block."""

Factor = float | str
"""A number; or the name of an attribute of the block or the model's configuration; "1/name" is its reciprocal."""


class HookPoint(NamedTuple):
    """Where in a block vectors pass: the input or the output of one of its modules (`""` is the block itself)."""

    module: str
    side: Literal["input", "output"]
    factor: Factor = 1.0
    """Multiplies the vectors."""

    def __str__(self) -> str:
        place = f"{self.side} of {self.module or 'the block'}"
        return place if self.factor == 1.0 else f"{place} x {self.factor}"


@dataclass(frozen=True)
class Layout:
    """Where one architecture keeps what layerlens reads. The defaults are Llama's.

    Where several modules are named for one site, those that a block has are added: blocks of different kinds (`mamba` in
    one, `self_attn` in another) and modules side by side are described alike. Contributions are what is ADDED to the
    residual stream (docs/definitions.md, "Sites"), after a post-norm and times `*_factor`:

        resid_post = stream_factor · (resid_pre + attn_out + ffn_out + further),  resid_mid = resid_pre + attn_out

    In a parallel block attention and FFN both read the stream that enters the block, and resid_mid does not exist.

    Attributes:
        decoder: path from the model to the module that takes `input_ids`; in a multimodal model its `language_model` is meant.
        blocks: path from the decoder to the list of blocks.
        final_norm: path from the decoder to the norm in front of the unembedding.
        attn: modules that mix tokens (attention, Mamba, convolution); attn_in is what the first of them reads.
        attn_out: modules whose output is added, if those are others than `attn` (a post-norm).
        attn_factor: multiplies each of them (one factor), or one factor per module.
        mid: the module that reads resid_mid.
        parallel: whether blocks are parallel, or the name of the configuration's flag that says so.
        ffn, ffn_out, ffn_factor: as for attention; `ffn` is empty if blocks have one module each.
        further: modules whose output is added after the FFN's.
        stream_factor: multiplies the stream at the end of each block.
        logit_scale: multiplies the unembedding's output.
        logit_softcap: the bound c of c · tanh(logits / c), if the model has one; a name whose value is None is none.
    """

    decoder: str = "model"
    blocks: str = "layers"
    final_norm: str = "norm"
    attn: Names = "self_attn"
    attn_out: Names = ()
    attn_factor: Factor | tuple[Factor, ...] = 1.0
    mid: str = "post_attention_layernorm"
    parallel: bool | str = False
    ffn: Names = "mlp"
    ffn_out: Names = ()
    ffn_factor: Factor | tuple[Factor, ...] = 1.0
    further: Names = ()
    stream_factor: Factor = 1.0
    logit_scale: Factor = 1.0
    logit_softcap: Factor | None = None

    def is_parallel(self, config: Any) -> bool:
        return bool(getattr(config, self.parallel)) if isinstance(self.parallel, str) else self.parallel

    def sites(self, config: Any) -> dict[Site, tuple[HookPoint, ...]]:
        """The sites that the architecture has, in the order the data flows, and the hook points whose vectors add up to each."""
        sequential = bool(self.ffn) and not self.is_parallel(config)
        points: dict[Site, tuple[HookPoint, ...]] = {
            "resid_pre": (HookPoint("", "input"),),
            "attn_in": tuple(HookPoint(name, "input") for name in module_names(self.attn)),
            "attn_out": _outputs(self.attn_out or self.attn, self.attn_factor),
            "resid_mid": (HookPoint(self.mid, "input"),) if sequential else (),
            "ffn_in": tuple(HookPoint(name, "input") for name in module_names(self.ffn)),
            "ffn_out": _outputs(self.ffn_out or self.ffn, self.ffn_factor),
            "resid_post": (HookPoint("", "output"),),
        }
        return {site: places for site, places in points.items() if places}

    @property
    def further_points(self) -> tuple[HookPoint, ...]:
        return _outputs(self.further, 1.0)


def module_names(names: Names) -> tuple[str, ...]:
    """One name, or several, as a tuple."""
    return (names,) if isinstance(names, str) else names


def _outputs(names: Names, factor: Factor | tuple[Factor, ...]) -> tuple[HookPoint, ...]:
    modules = module_names(names)
    factors = factor if isinstance(factor, tuple) else (factor,) * len(modules)
    return tuple(HookPoint(name, "output", each) for name, each in zip(modules, factors, strict=True))


_POST_NORMS: dict[str, Any] = {"attn_out": "post_attention_layernorm", "ffn_out": "post_feedforward_layernorm"}
_GEMMA: dict[str, Any] = {**_POST_NORMS, "mid": "pre_feedforward_layernorm", "logit_softcap": "final_logit_softcapping"}
_OLMO = Layout(**_POST_NORMS, mid="mlp")
_HYBRID = Layout(attn=("linear_attn", "self_attn"))
_GRANITE: dict[str, Any] = {
    "attn_factor": "residual_multiplier",
    "ffn_factor": "residual_multiplier",
    "logit_scale": "1/logits_scaling",
}

LAYOUTS: dict[str, Layout] = {
    "cohere": Layout(parallel=True, logit_scale="logit_scale"),
    "cohere2": Layout(parallel=True, logit_scale="logit_scale"),
    "deepseek_v2": Layout(),
    "deepseek_v3": Layout(),
    "exaone4": _OLMO,
    "falcon_h1": Layout(
        final_norm="final_layernorm",
        attn=("mamba", "self_attn"),
        attn_factor=("ssm_out_multiplier", "attention_out_multiplier"),
        mid="pre_ff_layernorm",
        ffn="feed_forward",
        logit_scale="lm_head_multiplier",
    ),
    "gemma": Layout(),
    "gemma2": Layout(**_GEMMA),
    "gemma3_text": Layout(**_GEMMA),
    "gemma4_text": Layout(**_GEMMA, further="post_per_layer_input_norm", stream_factor="layer_scalar"),
    "glm4": Layout(attn_out="post_self_attn_layernorm", ffn_out="post_mlp_layernorm"),
    "glm4_moe": Layout(),
    "gpt2": Layout("transformer", "h", "ln_f", attn="attn", mid="ln_2"),
    "gpt_neox": Layout("gpt_neox", final_norm="final_layer_norm", attn="attention", parallel="use_parallel_residual"),
    "gpt_oss": Layout(),
    "granite": Layout(**_GRANITE),
    "granitemoehybrid": Layout(**_GRANITE, attn=("mamba", "self_attn"), ffn=("block_sparse_moe", "shared_mlp")),
    "lfm2": Layout(final_norm="embedding_norm", attn=("conv", "self_attn"), mid="ffn_norm", ffn="feed_forward"),
    "llama": Layout(),
    "llama4_text": Layout(ffn="feed_forward"),
    "ministral3": Layout(),
    "mistral": Layout(),
    "mixtral": Layout(),
    "nemotron_h": Layout(final_norm="norm_f", attn="mixer", ffn=()),
    "olmo": Layout(),
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "phi3": Layout(),
    "qwen2": Layout(),
    "qwen2_moe": Layout(),
    "qwen3": Layout(),
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen3_moe": Layout(),
    "qwen3_next": _HYBRID,
    "smollm3": Layout(),
}
"""Layouts by the `model_type` of the text configuration. A new architecture is a new row; `layerlens check` proves or refuses it."""

_STREAMS = "it keeps several residual streams or mixes branches, so one hidden vector per token and layer does not exist"
REFUSED: dict[str, str] = {
    "deepseek_v4": _STREAMS,
    "gemma3n_text": _STREAMS,
    "glm5_next_text": _STREAMS,
    "hy_v4": _STREAMS,
    "qwen4_exp_text": _STREAMS,
    "reformer": "its layers are reversible, with two residual streams",
}
"""Architectures that cannot be read, and why."""


def text_config(config: Any) -> Any:
    """The configuration of the language model inside a (multimodal) configuration."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def require_readable(config: Any) -> None:
    """Raises ModelLayoutError, with the reason, if no model of this configuration can be read; asks for no weights."""
    text = text_config(config)
    kind = getattr(text, "model_type", None) or type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ModelLayoutError(f"architecture {config.model_type!r} cannot be read: it is an encoder-decoder, and layerlens reads decoders")
    if kind in REFUSED:
        raise ModelLayoutError(f"architecture {kind!r} cannot be read: {REFUSED[kind]}")
    layers = getattr(text, "num_hidden_layers", None)
    if layers is not None and layers < 1:
        raise ModelLayoutError(f"a model must have 1 layer or more, and config.json says num_hidden_layers {layers}")


def layout_for(config: Any) -> Layout | None:
    """The layout of a configuration's architecture; None if no row describes it. Raises ModelLayoutError if it cannot be read."""
    require_readable(config)
    return LAYOUTS.get(getattr(text_config(config), "model_type", ""))


def resolve_factor(factor: Factor, block: nn.Module | None, config: Any) -> Any:
    """The value of a factor: a number, or a tensor if it is a weight of the block. Raises ModelLayoutError if the name has none."""
    if not isinstance(factor, str):
        return factor
    name = factor.removeprefix("1/")
    with nullcontext() if block is None else own_weights_in_memory(block):
        values = [getattr(owner, name, None) for owner in (block, config)]
    for value in values:
        if value is not None:
            return 1 / value if factor.startswith("1/") else value
    raise ModelLayoutError(f"{type(config).__name__} has no {name!r}, which its layout names as a factor")


def submodule_at(root: nn.Module, path: str, what: str) -> nn.Module:
    """The module at a dotted path below `root`. Raises ModelLayoutError, naming `what` was expected there, if there is none."""
    try:
        return root.get_submodule(path)
    except AttributeError as error:
        raise ModelLayoutError(f"{type(root).__name__} has no {path!r}, where its layout puts {what}: {error}") from error
