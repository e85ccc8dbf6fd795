"""The identities that every layout must obey, measured on a few random tokens before a model is analysed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from layerlens.errors import ModelLayoutError, ModelLoadError, one_line
from layerlens.models.capture import capture, hook_sources
from layerlens.models.layout import resolve_factor
from layerlens.models.parts import DecoderParts

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest allowed gap by the model's dtype, as a share of the largest absolute value compared."""

QUANTISED_HEAD = 2e-2
"""Largest allowed readout gap of a quantised unembedding, which may round the vectors that it reads as well: LLM.int8 does, to 1/127."""

PROBE_TOKENS = 8


@dataclass(frozen=True)
class LayoutReport:
    """How well a model obeys the identities. A gap is the largest absolute difference divided by the largest absolute value."""

    readout_gap: float
    """Final norm and unembedding of the last layer's `resid_post`, against the model's own logits."""
    additivity_gap: float
    """The layout's sums against resid_mid and resid_post, and H^l against the next block's input."""
    additivity_layer: int
    """The layer with the largest additivity gap, or the first whose states are not finite, counted from 1."""
    tolerance: float
    quantised_head: bool = False
    """Whether the model's own unembedding is quantised, and `readout_gap` is that of its dequantised weights."""

    @property
    def readout_tolerance(self) -> float:
        return max(self.tolerance, QUANTISED_HEAD) if self.quantised_head else self.tolerance

    @property
    def ok(self) -> bool:
        return self.readout_gap <= self.readout_tolerance and self.additivity_gap <= self.tolerance

    def require(self, name: str) -> None:
        """Raises ModelLayoutError with the figures unless all identities hold."""
        if math.isnan(self.readout_gap) or math.isnan(self.additivity_gap):
            place = (
                f"states are not finite from block {self.additivity_layer} on"
                if math.isnan(self.additivity_gap)
                else "logits are not finite"
            )
            raise ModelLayoutError(f"{name}: its {place}, on {PROBE_TOKENS} random tokens; a weight there is NaN or infinite")
        hint = f"This model is not what its layout describes; run `layerlens check {name}` for the details."
        if self.additivity_gap > self.tolerance:
            raise ModelLayoutError(
                f"{name}: resid_pre + attn_out + ffn_out misses resid_post by {self.additivity_gap:.2g} of its size "
                f"in block {self.additivity_layer} (tolerance {self.tolerance:.0g}). {hint}"
            )
        if self.readout_gap > self.readout_tolerance:
            raise ModelLayoutError(
                f"{name}: final norm and unembedding of the last resid_post miss the model's own logits by "
                f"{self.readout_gap:.2g} of their size (tolerance {self.readout_tolerance:.0g}). {hint}"
            )


@torch.inference_mode()
def check_identities(parts: DecoderParts, seed: int = 0, tokens: int = PROBE_TOKENS) -> LayoutReport:
    """Measures the readout identity and additivity on random tokens, with the model in evaluation mode."""
    vocabulary = parts.model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(0, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(seed)).to(parts.device)
    n_layers, wide = len(parts.blocks), torch.promote_types(parts.dtype, torch.float32)
    seen: dict[tuple[int, str], Tensor] = {}
    twice: set[tuple[int, str]] = set()

    def keep(layer: int, site: str, states: Tensor) -> None:
        if (layer, site) in seen:
            twice.add((layer, site))
        seen[layer, site] = states.to(wide).cpu().clone()

    with evaluation_mode(parts.model), ExitStack() as hooks:
        hooks.enter_context(capture(parts, [(layer, site) for layer in range(1, n_layers + 1) for site in parts.sites], keep))
        for layer in range(1, n_layers + 1):
            if further := parts.sources_of(layer, parts.layout.further_points, "a further addend"):
                for handle in hook_sources(parts.blocks[layer - 1], further, partial(keep, layer, "further")):
                    hooks.callback(handle.remove)
        try:
            logits = parts.model(input_ids=ids, use_cache=False).logits.to(wide).cpu()
        except Exception as error:  # kernels of quantised weights may ask for another device or library only now
            raise ModelLoadError(f"{type(parts.model).__name__}: its forward pass fails ({one_line(error)})") from error
        missing = [(layer, site) for layer in range(1, n_layers + 1) for site in parts.sites if (layer, site) not in seen]
        for layer, site in [*missing, *sorted(twice)]:
            raise ModelLayoutError(f"{site} of block {layer} passed {'twice' if twice else 'never'} in a forward pass; its layout is wrong")
        last = parts.apply_final_norm(seen[n_layers, "resid_post"].to(parts.dtype))
    unembedding = replace(
        parts.unembedding(), weight=parts.unembedding_weight.to(wide).cpu(), bias=None if parts.bias is None else parts.bias.to(wide).cpu()
    )
    ours = unembedding.product_to_logits_(last.to(wide).cpu() @ unembedding.weight.T, 0, len(unembedding.weight))
    gaps = [_block_gap(parts, seen, layer) for layer in range(1, n_layers + 1)]
    worst = max(range(n_layers), key=lambda i: math.inf if math.isnan(gaps[i]) else gaps[i])
    return LayoutReport(_gap(ours, logits), gaps[worst], worst + 1, TOLERANCE.get(parts.dtype, 1e-4), parts.quantised_head)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode, and torch's attention is not cuDNN's; afterwards all is as before.

    torch prefers cuDNN's attention on Hopper. It need not give the same numbers twice, and a few last bits change what is sampled.
    """
    training = [module for module in model.modules() if module.training]
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]  # torch has no type for it
    model.eval()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        for module in training:  # one by one: a frozen block may be in another mode than its model
            module.training = True


def _block_gap(parts: DecoderParts, seen: dict[tuple[int, str], Tensor], layer: int) -> float:
    before, after = seen[layer, "resid_pre"], seen[layer, "resid_post"]
    total, gaps = before + seen[layer, "attn_out"], []
    if (layer, "resid_mid") in seen:
        gaps.append(_gap(total, seen[layer, "resid_mid"]))
        total = seen[layer, "resid_mid"]
    for site in ("ffn_out", "further"):
        if (layer, site) in seen:
            total = total + seen[layer, site]
    factor = resolve_factor(parts.layout.stream_factor, parts.blocks[layer - 1], parts.config)
    gaps.append(_gap(total * float(factor), after))
    if layer > 1:
        gaps.append(_gap(seen[layer - 1, "resid_post"], before))
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)


def _gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
