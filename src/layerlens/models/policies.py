"""From a model and layers to the policy that these hold."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from layerlens.errors import SelectionError
from layerlens.models.lenses import FittedLens
from layerlens.models.mixed_policy import LayerMix, MixedPolicy
from layerlens.models.policy import InternalPolicy
from layerlens.types import Norm, Site

if TYPE_CHECKING:
    from layerlens.models.lens import LensModel


def make_policy(
    model: LensModel,
    mix: LayerMix,
    site: Site,
    norm: Norm,
    temperature: float,
    spread: float | None,
    lens: str | FittedLens,
    *,
    several: bool,
) -> InternalPolicy | MixedPolicy:
    """The policy of the layers in `mix` at a site: a `MixedPolicy` if `several`, else the `InternalPolicy` of its one layer.

    Raises SelectionError for norm "matched" without a spread, and for a lens that does not carry the layers at the site.
    """
    convention = model.convention(norm, spread, lens)
    convention.require_readable(list(mix.layers), [site])
    if norm == "matched" and spread is None:
        raise SelectionError("norm='matched' needs spread=, the spread of the logits that states are scaled to: a run's is run.spread")

    def read_stack(ids: Int[Tensor, "batch seq"], cache: Any) -> Float[Tensor, "layers batch seq d"]:
        kept: dict[int, Tensor] = {}
        model.forward(ids, [(layer, site) for layer in mix.layers], lambda layer, _site, state: kept.update({layer: state}), cache)
        vectors = [convention.vectors(layer, site, kept[layer]) for layer in mix.layers]
        return torch.stack([each.to(model.parts.unembedding_weight.device) for each in vectors])  # blocks may lie on several devices

    shared: dict[str, Any] = {
        "site": site, "norm": norm, "unembedding": model.unembedding(temperature), "require_fits_context": model.require_fits_context,
        "new_cache": partial(DynamicCache, config=model.parts.config), "tokenizer": model.tokenizer, "device": model.device,
        "end_tokens": model.end_tokens, "rotary_switch": model.parts.batch_mates.rotary_switch,
    }  # fmt: skip
    if several:
        return MixedPolicy(mix=mix, read_stack=read_stack, **shared)
    return InternalPolicy(
        layer=mix.layers[0], lens=convention.lens_name, read_states=lambda ids, cache: read_stack(ids, cache)[0], **shared
    )
