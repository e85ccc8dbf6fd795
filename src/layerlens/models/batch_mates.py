"""Which texts a model may read in one forward pass: in some models, texts beside it change what a text's numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

INT8_PRODUCT = "Linear8bitLt"
"""bitsandbytes' module of LLM.int8, which looks over all rows of a product, whichever text each is of, for columns to leave in 16 bits."""


@dataclass(frozen=True)
class BatchMates:
    """Which texts share a forward pass.

    Attributes:
        alone: each text is read by itself.
        rotary_switch: with longrope (Phi-3), the length beyond which a text, and all that stand in its batch, are read with other rotary
            frequencies; None for a model with one set of them.
    """

    alone: bool
    rotary_switch: int | None

    @classmethod
    def of(cls, model: nn.Module, config: Any) -> BatchMates:
        """From a decoder and the configuration of its text part."""
        products: list[Any] = [module for module in model.modules() if type(module).__name__ == INT8_PRODUCT]
        alone = any(product.state.threshold > 0 for product in products)
        return cls(alone, _rotary_switch(config))

    def together(self, length: int, other: int) -> bool:
        """Whether texts of two lengths may share a forward pass, padded to the longer one."""
        if self.alone:
            return False
        return self.rotary_switch is None or (length > self.rotary_switch) == (other > self.rotary_switch)


def _rotary_switch(config: Any) -> int | None:
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, Mapping)]  # some models have one for each type of layer
    lengths = [
        kind.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min((int(length) for length in lengths if length), default=None)
