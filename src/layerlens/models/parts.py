"""The parts of a loaded decoder that layerlens reads, found by the layout of its architecture."""

from __future__ import annotations

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
from layerlens.models.batch_mates import BatchMates
from layerlens.models.fingerprint import fingerprint
from layerlens.models.layout import HookPoint, Layout, layout_for, require_readable, resolve_factor, submodule_at, text_config
from layerlens.models.offload import device_of, own_weights_in_memory
from layerlens.models.quantised import dequantised_weight, is_plain
from layerlens.types import Site


class Source(NamedTuple):
    """A module whose input or output, times a factor, is a site's vectors or an addend of them."""

    module: nn.Module
    side: Literal["input", "output"]
    factor: Any
    """A number, or a tensor with one element."""


@dataclass(frozen=True)
class DecoderParts:
    """References to the parts of a causal language model: every module and tensor is the model's own.

    Only an unembedding that is quantised or offloaded is copied: dequantised once, and kept on the device that it computes on.
    """

    model: PreTrainedModel
    layout: Layout
    decoder_path: str
    """Path from the model to the decoder."""
    decoder: nn.Module
    blocks: nn.ModuleList
    final_norm: nn.Module
    unembedding_weight: Tensor
    bias: Tensor | None
    tied: bool
    """Whether the unembedding and the embedding are one tensor."""
    quantised_head: bool = False
    """Whether the model stores its unembedding quantised, so that `unembedding_weight` is a dequantised copy."""
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
        return device_of(self.model.get_input_embeddings()) or self.unembedding_weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unembedding_weight.dtype

    @property
    def context(self) -> int | None:
        """The longest sequence the model was made for, in tokens, with YaRN's factor; None if its configuration does not say."""
        longest: int | None = getattr(self.config, "max_position_embeddings", None)
        rope = getattr(self.config, "rope_parameters", None) or {}
        if longest is None or rope.get("rope_type") != "yarn":
            return longest
        return max(longest, int(rope.get("factor", 1) * (rope.get("original_max_position_embeddings") or longest)))

    @cached_property
    def batch_mates(self) -> BatchMates:
        """Which texts may share a forward pass."""
        return BatchMates.of(self.decoder, self.config)

    def unembedding(self, temperature: float = 1.0) -> Unembedding:
        """How this model turns a vector into logits, divided by `temperature`."""
        return Unembedding(self.unembedding_weight, self.bias, self.logit_scale, self.logit_softcap, temperature)

    def apply_final_norm(self, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The model's final norm applied to hidden vectors, on the norm's device and in the model's dtype."""
        device = device_of(self.final_norm) or self.unembedding_weight.device  # some norms have no weights
        return self.final_norm(states.to(device, self.dtype))  # type: ignore[no-any-return]

    def fingerprint(self) -> str:
        """A digest of all weights, 16 hexadecimal digits: two models with one different weight have different digests."""
        return fingerprint(self.model)


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
    weight, bias, quantised = _read_head(model, head)
    embedding = model.get_input_embeddings().weight
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
        unembedding_weight=weight,
        bias=bias,
        # accelerate makes new objects of offloaded weights at every pass
        tied=bool(text_config(model.config).tie_word_embeddings) if embedding.is_meta else getattr(head, "weight", None) is embedding,
        quantised_head=quantised,
        discovered=discovered,
    )


def _read_head(model: PreTrainedModel, head: nn.Module) -> tuple[Tensor, Tensor | None, bool]:
    """The unembedding's weights and bias as tensors in memory, and whether the model stores the weights quantised.

    Raises ModelLoadError if the weights have no values anywhere.
    """
    try:
        with own_weights_in_memory(head):
            weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    except KeyError as error:
        raise ModelLoadError(
            f"nothing keeps the offloaded {error} of {type(model).__name__}: a device map must put a tied unembedding beside its embedding"
        ) from error
    if any(isinstance(each, Tensor) and each.is_meta for each in (weight, bias)):
        raise ModelLoadError(f"the weights of {type(model).__name__} are not in memory (meta device); load the model where it fits")
    if is_plain(weight):
        return weight, bias, False
    d_model = getattr(head, "in_features", text_config(model.config).hidden_size)
    return dequantised_weight(head, d_model, model.dtype), bias, True


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
