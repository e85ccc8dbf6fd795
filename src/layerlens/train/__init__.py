"""Training with internal policies. TRL is imported when the trainer or its configuration is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from layerlens.train.trl_contract import require_trl_contract

if TYPE_CHECKING:
    from layerlens.train.config import BuPOConfig
    from layerlens.train.trainer import BuPOTrainer

_MODULES = {"BuPOConfig": "layerlens.train.config", "BuPOTrainer": "layerlens.train.trainer"}

__all__ = ["BuPOConfig", "BuPOTrainer"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'layerlens.train' has no attribute {name!r}")
    require_trl_contract()
    return getattr(import_module(_MODULES[name]), name)
