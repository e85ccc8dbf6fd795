"""The parts of one loaded decoder that layerlens reads, found by its layout."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from layerlens.errors import ModelLayoutError, ModelLoadError
from layerlens.models.layout import Layout, find_part, layout_for

GROUP = 256
"""Weights whose bits are summed together in a fingerprint."""


@dataclass(frozen=True)
class DecoderParts:
    """A causal language model taken apart: nothing is copied, every module stays the model's own."""

    model: PreTrainedModel
    layout: Layout
    decoder: nn.Module
    blocks: nn.ModuleList
    final_norm: nn.Module
    unembedding: Tensor
    bias: Tensor | None

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.unembedding.dtype

    @property
    def context(self) -> int | None:
        """The longest sequence the model was made for, in tokens, where its configuration says."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def tied(self) -> bool:
        """Whether the unembedding is the embedding itself."""
        return self.unembedding is self.model.get_input_embeddings().weight

    def normed(self, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The model's final norm of any states, computed where and in what dtype the model computes it."""
        weight = next(self.final_norm.parameters())
        return self.final_norm(states.to(weight.device, self.dtype))  # type: ignore[no-any-return]

    def fingerprint(self) -> str:
        """A digest of all weights: names, shapes, exact sums of the bits of every 256 and evenly spaced values.

        Two models differ in it as soon as one weight differs (up to collisions of a 64-bit sum); cheap, since each weight
        is read once where it lies.
        """
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            if weight.is_meta or weight.numel() == 0:
                continue
            flat = weight.detach().reshape(-1)
            bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
            for piece in bits.split(1 << 22):  # torch widens the whole of what it sums
                whole = piece[: len(piece) // GROUP * GROUP].view(-1, GROUP)
                digest.update(whole.sum(1, dtype=torch.int64).cpu().numpy().tobytes())
                digest.update(str(int(piece[whole.numel() :].sum(dtype=torch.int64))).encode())
            digest.update(bits[:: max(1, len(bits) // 1024)].cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def find_parts(model: PreTrainedModel) -> DecoderParts:
    """Takes a Hugging Face causal language model apart. Raises ModelLayoutError where a part is not where it should be.

    Raises ModelLoadError where its weights are not there.
    """
    layout = layout_for(model.config)
    decoder = find_part(model, layout.decoder, "the decoder")
    blocks = find_part(decoder, layout.blocks, "the blocks")
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        raise ModelLayoutError(f"{layout.decoder}.{layout.blocks} of {type(model).__name__} is not a list of blocks")
    head = model.get_output_embeddings()
    if head is None:
        raise ModelLayoutError(f"{type(model).__name__} has no unembedding: load it as a causal language model")
    if head.weight.is_meta or model.get_input_embeddings().weight.is_meta:
        raise ModelLoadError(f"the weights of {type(model).__name__} are not in memory (meta device, or offloaded); load it where it fits")
    return DecoderParts(
        model=model,
        layout=layout,
        decoder=decoder,
        blocks=blocks,
        final_norm=find_part(decoder, layout.final_norm, "the final norm"),
        unembedding=head.weight,
        bias=getattr(head, "bias", None),
    )
