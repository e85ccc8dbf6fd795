"""The parts of a loaded decoder that layerlens reads, found by the layout of its architecture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from layerlens.decode.unembedding import Unembedding
from layerlens.errors import ModelLayoutError, ModelLoadError, SelectionError
from layerlens.models.layout import HookPoint, Layout, layout_for, require_readable, resolve_factor, submodule_at, text_config
from layerlens.types import Site

WEIGHTS_PER_SUM = 256
"""Number of neighbouring weights whose bits a fingerprint adds up to one sum."""


class Source(NamedTuple):
    """A module whose input or output, times a factor, is a site's vectors or an addend of them."""

    module: nn.Module
    side: Literal["input", "output"]
    factor: Any
    """A number, or a tensor with one element."""


@dataclass(frozen=True)
class DecoderParts:
    """References to the parts of a causal language model. Nothing is copied: every module and tensor is the model's own."""

    model: PreTrainedModel
    layout: Layout
    decoder_path: str
    """Path from the model to the decoder."""
    decoder: nn.Module
    blocks: nn.ModuleList
    final_norm: nn.Module
    unembedding_weight: Tensor
    bias: Tensor | None
    discovered: bool = False
    """Whether the layout was found by discovery, and is no row of `LAYOUTS`."""

    @property
    def config(self) -> Any:
        """The configuration of the language model; in a multimodal model that of its text part."""
        return text_config(self.model.config)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The sites that this architecture has, in the order the data flows."""
        return tuple(self.layout.sites(self.config))

    @property
    def logit_scale(self) -> float:
        """What the model multiplies its unembedding's output with."""
        return float(resolve_factor(self.layout.logit_scale, self.decoder, self.config))

    @property
    def logit_softcap(self) -> float | None:
        """The bound c of the model's c · tanh(logits / c); None if its logits are not bounded."""
        cap = self.layout.logit_softcap
        value = getattr(self.config, cap, None) if isinstance(cap, str) else cap
        return None if value is None else float(value)

    def require_site(self, site: Site) -> None:
        """Raises SelectionError if the architecture does not have a site."""
        if site not in self.sites:
            reason = "attention and FFN read the same stream" if "ffn_out" in self.sites else "each block has one module"
            raise SelectionError(
                f"{site} does not exist in {self.config.model_type}, since {reason}; its sites are {', '.join(self.sites)}"
            )

    def sources(self, layer: int, site: Site) -> list[Source]:
        """The modules of a block whose vectors add up to a site's. Raises ModelLayoutError if the block has none of them."""
        self.require_site(site)
        return self.sources_of(layer, self.layout.sites(self.config)[site], site)

    def sources_of(self, layer: int, points: Sequence[HookPoint], what: str) -> list[Source]:
        """The modules of a block at those of the hook points that it has; of several inputs the first alone."""
        block = self.blocks[layer - 1]
        found = [
            Source(module, point.side, resolve_factor(point.factor, block, self.config))
            for point in points
            if (module := _present(block, point.module)) is not None
        ]
        if points and not found:
            names = " or ".join(point.module for point in points)
            raise ModelLayoutError(f"block {layer} ({type(block).__name__}) has no {names}, where its layout puts {what}")
        return found[:1] if found and found[0].side == "input" else found

    @property
    def device(self) -> torch.device:
        """The device of the embedding, which token ids must be on."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.unembedding_weight.dtype

    @property
    def context(self) -> int | None:
        """The longest sequence the model was made for, in tokens; None if its configuration does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def tied(self) -> bool:
        """Whether the unembedding and the embedding are one tensor."""
        return self.unembedding_weight is self.model.get_input_embeddings().weight

    def unembedding(self, temperature: float = 1.0) -> Unembedding:
        """How this model turns a vector into logits, divided by `temperature`."""
        return Unembedding(self.unembedding_weight, self.bias, self.logit_scale, self.logit_softcap, temperature)

    def apply_final_norm(self, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The model's final norm applied to hidden vectors, on the norm's device and in the model's dtype."""
        weight = next(self.final_norm.parameters(), self.unembedding_weight)  # some norms have no weights
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


def find_decoder_parts(model: PreTrainedModel, layout: Layout | None = None) -> DecoderParts:
    """Finds the parts of a Hugging Face causal language model.

    The layout is the given one, else the row of the architecture, else what discovery finds in the model's own structure.

    Raises:
        ModelLayoutError: the architecture cannot be read, discovery finds no unique layout, or a part is not where its layout says.
        ModelLoadError: the weights are not in memory.
    """
    require_readable(model.config)
    head = model.get_output_embeddings()
    if head is None:
        raise ModelLayoutError(f"{type(model).__name__} has no unembedding: load it as a causal language model")
    if head.weight.is_meta or model.get_input_embeddings().weight.is_meta:
        raise ModelLoadError(f"the weights of {type(model).__name__} are not in memory (meta device, or offloaded); load it where it fits")
    discovered = False
    if layout is None:
        layout, discovered = layout_of(model)
    decoder_path, decoder, blocks = find_blocks(model, layout)
    return DecoderParts(
        model=model,
        layout=layout,
        decoder_path=decoder_path,
        decoder=decoder,
        blocks=blocks,
        final_norm=submodule_at(decoder, layout.final_norm, "the final norm"),
        unembedding_weight=head.weight,
        bias=getattr(head, "bias", None),
        discovered=discovered,
    )


def find_blocks(model: nn.Module, layout: Layout) -> tuple[str, nn.Module, nn.ModuleList]:
    """The path from the model to the decoder, the decoder, and its list of blocks.

    Raises ModelLayoutError if they are not where the layout says.
    """
    multimodal = (f"{layout.decoder}.language_model", f"language_model.{layout.decoder}")
    path = next((path for path in multimodal if _present(model, path) is not None), layout.decoder)
    decoder = submodule_at(model, path, "the decoder")
    blocks = submodule_at(decoder, layout.blocks, "the blocks")
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        raise ModelLayoutError(f"{path}.{layout.blocks} of {type(model).__name__} is not a list of blocks")
    return path, decoder, blocks


def layout_of(model: PreTrainedModel) -> tuple[Layout, bool]:
    """A model's layout, and whether discovery found it. Raises ModelLayoutError if there is none."""
    row = layout_for(model.config)
    if row is not None:
        return row, False
    from layerlens.models.discover import discovered_layout

    return discovered_layout(model), True


def _present(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path below `root`; None if there is none."""
    found: Any = root
    for name in path.split(".") if path else ():
        found = getattr(found, name, None)
    return found if isinstance(found, nn.Module) else None
