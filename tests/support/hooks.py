"""How far TransformerLens' own cached activations are from our states, on one model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

import layerlens as ll
from layerlens.models import hook_name, mixers
from layerlens.models.transformer_lens import build_bridge


@torch.no_grad()
def hook_gaps(model: Any, ids: list[int]) -> dict[str, float | None]:
    """For every site that the model has, and for its logits: the largest difference over all layers, as a share of our largest value.

    None if TransformerLens has no hook for the site in some block. Raises ModelLoadError if it cannot wrap the model, and whatever
    the forward pass of its bridge raises.
    """
    lens, states = ll.LensModel.wrap(model), {}
    tokens = torch.tensor([ids])

    def keep(layer: int, site: str, state: Tensor) -> None:
        states[layer, site] = state.clone()

    lens.forward(tokens, [(layer, site) for layer in range(1, lens.n_layers + 1) for site in lens.sites], keep)
    logits, cache = build_bridge(copy.deepcopy(model), "model").run_with_cache(tokens, prepend_bos=False)
    gaps: dict[str, float | None] = {}
    for (layer, site), ours in states.items():
        names = [hook_name(layer, site, mixer) for mixer in mixers(lens.parts.layout)]
        name = next((name for name in reversed(names) if name in cache), None)
        gap = None if name is None else relative(cache[name].reshape(ours.shape), ours)
        worst = gaps.get(site, 0.0)
        gaps[site] = None if gap is None or worst is None else max(gap, worst)
    return {**gaps, "logits": relative(logits, model(tokens).logits)}


def relative(theirs: Tensor, ours: Tensor) -> float:
    return float((theirs - ours).abs().max() / ours.abs().max())
