"""TransformerLens' TransformerBridge as the source instead of a Hugging Face model."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from layerlens.errors import ModelLayoutError


def is_bridge(model: Any) -> bool:
    """Whether `model` is a TransformerBridge, told without importing TransformerLens."""
    module = sys.modules.get("transformer_lens.model_bridge")
    return module is not None and isinstance(model, module.TransformerBridge)


def unwrap_bridge(bridge: Any) -> nn.Module:
    """The Hugging Face model inside a bridge, its modules seen through the bridge's own hook points.

    Nothing is folded, centred or moved, and hooks that the user has put on the bridge act as they do in its own forward.
    Raises ModelLayoutError on a bridge in compatibility mode: folded weights change every raw decode and similarity.
    """
    if getattr(bridge, "compatibility_mode", False):
        raise ModelLayoutError(
            "this TransformerBridge is in compatibility mode, which may fold weights and so changes internal policies; "
            "wrap a bridge on which enable_compatibility_mode() was not called"
        )
    return bridge.original_model  # type: ignore[no-any-return]
