"""Where the parts of a decoder are, one row per architecture, and the identities that every described model must obey."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import nn

from layerlens.errors import ModelLayoutError
from layerlens.types import Site


class HookPoint(NamedTuple):
    """Where in a block a site's vectors pass: the input or the output of one of its modules (`""` is the block itself)."""

    module: str
    side: Literal["input", "output"]


PRE_NORM_HOOK_POINTS: Mapping[Site, HookPoint] = {
    "resid_pre": HookPoint("", "input"),
    "attn_in": HookPoint("self_attn", "input"),
    "attn_out": HookPoint("self_attn", "output"),
    "resid_mid": HookPoint("post_attention_layernorm", "input"),
    "ffn_in": HookPoint("mlp", "input"),
    "ffn_out": HookPoint("mlp", "output"),
    "resid_post": HookPoint("", "output"),
}
"""The hook points of sequential blocks with a norm in front of each module, as in Llama."""


@dataclass(frozen=True)
class Layout:
    """Where one architecture keeps what layerlens reads. Paths are dotted attribute names.

    `decoder` is the module below the unembedding (it takes `input_ids` and returns normalised states), `blocks` and
    `final_norm` are paths inside it, and `hook_points` say where in a block each site's vectors pass. The hook point of
    an `*_out` site must give the vectors that are ADDED to the residual stream (docs/definitions.md, "Sites"): in blocks
    with a post-norm that is the post-norm's output.
    """

    decoder: str = "model"
    blocks: str = "layers"
    final_norm: str = "norm"
    hook_points: Mapping[Site, HookPoint] = field(default_factory=lambda: PRE_NORM_HOOK_POINTS)


LAYOUTS: dict[str, Layout] = {
    "llama": Layout(),
    "mistral": Layout(),
    "qwen2": Layout(),
    "qwen3": Layout(),
}
"""Layouts by `config.model_type`. A new architecture is a new row; `layerlens check` says whether the row is right."""


def layout_for(config: Any) -> Layout:
    """The layout of a Hugging Face configuration's architecture. Raises ModelLayoutError if no layout describes it."""
    kind = getattr(config, "model_type", None) or type(config).__name__
    if kind not in LAYOUTS:
        raise ModelLayoutError(
            f"architecture {kind!r} is not supported; supported are {', '.join(sorted(LAYOUTS))}. "
            "Add a row to layerlens.models.layout.LAYOUTS to describe it."
        )
    return LAYOUTS[kind]


def submodule_at(root: nn.Module, path: str, what: str) -> nn.Module:
    """The module at a dotted path below `root`. Raises ModelLayoutError, naming `what` was expected there, if there is none."""
    try:
        return root.get_submodule(path)
    except AttributeError as error:
        raise ModelLayoutError(f"{type(root).__name__} has no {path!r}, where its layout puts {what}: {error}") from error
