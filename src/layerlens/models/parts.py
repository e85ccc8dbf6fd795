"""The parts of a loaded decoder that layerlens reads, found by the layout of its architecture."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from layerlens.errors import ModelLayoutError, ModelLoadError
from layerlens.models.layout import Layout, layout_for, submodule_at

WEIGHTS_PER_SUM = 256
"""Number of neighbouring weights whose bits a fingerprint adds up to one sum."""


@dataclass(frozen=True)
class DecoderParts:
    """References to the parts of a causal language model. Nothing is copied: every module and tensor is the model's own."""

    model: PreTrainedModel
    layout: Layout
    decoder: nn.Module
    blocks: nn.ModuleList
    final_norm: nn.Module
    unembedding: Tensor
    bias: Tensor | None

    @property
    def device(self) -> torch.device:
        """The device of the embedding, which token ids must be on."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.unembedding.dtype

    @property
    def context(self) -> int | None:
        """The longest sequence the model was made for, in tokens; None if its configuration does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def tied(self) -> bool:
        """Whether the unembedding and the embedding are one tensor."""
        return self.unembedding is self.model.get_input_embeddings().weight

    def apply_final_norm(self, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The model's final norm applied to hidden vectors, on the norm's device and in the model's dtype."""
        weight = next(self.final_norm.parameters())
        return self.final_norm(states.to(weight.device, self.dtype))  # type: ignore[no-any-return]

    def fingerprint(self) -> str:
        """A digest of all weights, 16 hexadecimal digits: two models with one different weight have different digests.

        It covers names, shapes, dtypes, the exact integer sum of the bits of every 256 neighbouring weights, and evenly
        spaced single weights. Each weight is read once, on the device it lies on. Collisions are those of a 64-bit sum.
        """
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            if weight.is_meta or weight.numel() == 0:
                continue
            flat = weight.detach().reshape(-1)
            bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
            for piece in bits.split(1 << 22):  # torch converts all of its argument to int64 before it sums
                groups = piece[: len(piece) // WEIGHTS_PER_SUM * WEIGHTS_PER_SUM].view(-1, WEIGHTS_PER_SUM)
                digest.update(groups.sum(1, dtype=torch.int64).cpu().numpy().tobytes())
                digest.update(str(int(piece[groups.numel() :].sum(dtype=torch.int64))).encode())
            digest.update(bits[:: max(1, len(bits) // 1024)].cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def find_decoder_parts(model: PreTrainedModel) -> DecoderParts:
    """Finds the parts of a Hugging Face causal language model by the layout of its architecture.

    Raises:
        ModelLayoutError: the architecture is not described, or a part is not where its layout says.
        ModelLoadError: the weights are not in memory.
    """
    layout = layout_for(model.config)
    decoder = submodule_at(model, layout.decoder, "the decoder")
    blocks = submodule_at(decoder, layout.blocks, "the blocks")
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
        final_norm=submodule_at(decoder, layout.final_norm, "the final norm"),
        unembedding=head.weight,
        bias=getattr(head, "bias", None),
    )
