"""TransformerLens' TransformerBridge in place of a Hugging Face model."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from layerlens.errors import ModelLayoutError


def is_bridge(model: Any) -> bool:
    """Whether `model` is a TransformerBridge; TransformerLens is not imported to find out."""
    module = sys.modules.get("transformer_lens.model_bridge")
    return module is not None and isinstance(model, module.TransformerBridge)


def unwrap_bridge(bridge: Any) -> nn.Module:
    """The Hugging Face model inside a bridge, whose modules are wrapped by the bridge's hook points.

    No weight is folded, centred or moved, and the user's hooks on the bridge act as in the bridge's own forward.
    Raises ModelLayoutError for a bridge in compatibility mode: folded weights change every policy read with `norm="none"`
    and every similarity.
    """
    if getattr(bridge, "compatibility_mode", False):
        raise ModelLayoutError(
            "this TransformerBridge is in compatibility mode, which may fold weights and so changes internal policies; "
            "wrap a bridge on which enable_compatibility_mode() was not called"
        )
    return bridge.original_model  # type: ignore[no-any-return]
