"""See how a language model's policy forms layer by layer, choose a layer, and train it from the bottom up.

Names are resolved when first used: importing layerlens loads neither torch nor matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerlens import plots
    from layerlens.analysis import analyze
    from layerlens.comparison import compare
    from layerlens.decode.policy import InternalPolicy
    from layerlens.errors import LayerLensError
    from layerlens.generation import Generation
    from layerlens.lens import LensModel, load
    from layerlens.prompts import Sample, read_prompts
    from layerlens.results.run import Run, open_run
    from layerlens.results.training import TrainingLog, open_training
    from layerlens.selection import LayerChoice, select_layer

_WHERE = {
    "analyze": "layerlens.analysis",
    "compare": "layerlens.comparison",
    "InternalPolicy": "layerlens.decode.policy",
    "LayerLensError": "layerlens.errors",
    "Generation": "layerlens.generation",
    "LensModel": "layerlens.lens",
    "load": "layerlens.lens",
    "Sample": "layerlens.prompts",
    "read_prompts": "layerlens.prompts",
    "Run": "layerlens.results.run",
    "open_run": "layerlens.results.run",
    "TrainingLog": "layerlens.results.training",
    "open_training": "layerlens.results.training",
    "LayerChoice": "layerlens.selection",
    "select_layer": "layerlens.selection",
}

__all__ = [
    "Generation", "InternalPolicy", "LayerChoice", "LayerLensError", "LensModel", "Run", "Sample", "TrainingLog",
    "analyze", "compare", "load", "open_run", "open_training", "plots", "read_prompts", "select_layer",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "plots":
        return import_module("layerlens.plots")
    if name == "__version__":
        from importlib.metadata import version

        return version("layerlens")
    if name not in _WHERE:
        raise AttributeError(f"module 'layerlens' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
