"""The identities that every layout must obey, measured on a few random tokens before a model is analysed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from layerlens.errors import ModelLayoutError
from layerlens.models.capture import LayerSite, capture
from layerlens.models.parts import DecoderParts

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest allowed gap by the model's dtype, as a share of the largest absolute value compared."""

PROBE_TOKENS = 8


@dataclass(frozen=True)
class LayoutReport:
    """How well a model obeys the identities. A gap is the largest absolute difference divided by the largest absolute value."""

    readout_gap: float
    """Final norm and unembedding of the last layer's `resid_post`, against the model's own logits."""
    additivity_gap: float
    """resid_pre + attn_out against resid_mid, resid_mid + ffn_out against resid_post, H^l against the next block's input."""
    additivity_layer: int
    """The layer with the largest additivity gap, counted from 1."""
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.readout_gap <= self.tolerance and self.additivity_gap <= self.tolerance

    def require(self, name: str) -> None:
        """Raises ModelLayoutError with the figures unless all identities hold."""
        if math.isnan(self.readout_gap) or math.isnan(self.additivity_gap):
            raise ModelLayoutError(f"{name}: its states or logits are not finite on {PROBE_TOKENS} random tokens; its weights look damaged")
        hint = f"This model is not what its layout describes; run `layerlens check {name}` for the details."
        if self.additivity_gap > self.tolerance:
            raise ModelLayoutError(
                f"{name}: resid_pre + attn_out + ffn_out misses resid_post by {self.additivity_gap:.2g} of its size "
                f"in block {self.additivity_layer} (tolerance {self.tolerance:.0g}). {hint}"
            )
        if self.readout_gap > self.tolerance:
            raise ModelLayoutError(
                f"{name}: final norm and unembedding of the last resid_post miss the model's own logits by "
                f"{self.readout_gap:.2g} of their size (tolerance {self.tolerance:.0g}). {hint}"
            )


@torch.inference_mode()
def check_identities(parts: DecoderParts, seed: int = 0) -> LayoutReport:
    """Measures the readout identity and additivity on random tokens, with the model in evaluation mode."""
    vocabulary = parts.model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(0, vocabulary, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(seed)).to(parts.device)
    n_layers, wide = len(parts.blocks), torch.promote_types(parts.dtype, torch.float32)
    seen: dict[LayerSite, Tensor] = {}

    def keep(layer: int, site: str, states: Tensor) -> None:
        seen[layer, site] = states.to(wide).cpu()  # type: ignore[index]

    training = [module for module in parts.model.modules() if module.training]
    parts.model.eval()
    try:
        places = [(layer, site) for layer in range(1, n_layers + 1) for site in parts.layout.hook_points]
        with capture(parts.blocks, parts.layout, places, keep):
            logits = parts.model(input_ids=ids, use_cache=False).logits.to(wide).cpu()
        last = parts.apply_final_norm(seen[n_layers, "resid_post"].to(parts.dtype))
    finally:
        for module in training:  # one by one: a frozen block may be in another mode than its model
            module.training = True
    ours = last.to(wide).cpu() @ parts.unembedding.to(wide).cpu().T
    if parts.bias is not None:
        ours = ours + parts.bias.to(wide).cpu()
    gaps = [_block_gap(seen, layer) for layer in range(1, n_layers + 1)]
    worst = max(range(n_layers), key=lambda i: math.inf if math.isnan(gaps[i]) else gaps[i])
    return LayoutReport(_gap(ours, logits), gaps[worst], worst + 1, TOLERANCE.get(parts.dtype, 1e-4))


def _block_gap(seen: dict[LayerSite, Tensor], layer: int) -> float:
    before, after = seen[layer, "resid_pre"], seen[layer, "resid_post"]
    middle = seen[layer, "resid_mid"]
    gaps = [_gap(before + seen[layer, "attn_out"], middle), _gap(middle + seen[layer, "ffn_out"], after)]
    if layer > 1:
        gaps.append(_gap(seen[layer - 1, "resid_post"], before))
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)


def _gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
