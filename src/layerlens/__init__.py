"""See how a language model's policy forms layer by layer, choose a layer, and train it from the bottom up.

Names are resolved when first used: importing layerlens loads neither torch nor matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerlens import plots
    from layerlens.analysis.pipeline import analyze
    from layerlens.errors import LayerLensError
    from layerlens.evaluate.contribution import layer_contribution
    from layerlens.models import FittedLens, Generation, InternalPolicy, LensModel, read_lens
    from layerlens.models.lens import load
    from layerlens.prompts.readers import read_prompts
    from layerlens.prompts.sample import Sample
    from layerlens.results.difference import difference
    from layerlens.results.merge import merge
    from layerlens.results.opened import open_run
    from layerlens.results.run import Run
    from layerlens.results.scale_shape import scale_shape
    from layerlens.results.training_log import TrainingLog, open_training
    from layerlens.selection import LayerChoice, select_layer
    from layerlens.selection.comparison import compare

_WHERE = {
    "analyze": "layerlens.analysis.pipeline",
    "compare": "layerlens.selection.comparison",
    "difference": "layerlens.results.difference",
    "InternalPolicy": "layerlens.models",
    "LayerLensError": "layerlens.errors",
    "FittedLens": "layerlens.models",
    "Generation": "layerlens.models",
    "read_lens": "layerlens.models",
    "LensModel": "layerlens.models",
    "load": "layerlens.models.lens",
    "Sample": "layerlens.prompts.sample",
    "read_prompts": "layerlens.prompts.readers",
    "Run": "layerlens.results.run",
    "merge": "layerlens.results.merge",
    "open_run": "layerlens.results.opened",
    "scale_shape": "layerlens.results.scale_shape",
    "TrainingLog": "layerlens.results.training_log",
    "open_training": "layerlens.results.training_log",
    "LayerChoice": "layerlens.selection.choice",
    "layer_contribution": "layerlens.evaluate.contribution",
    "select_layer": "layerlens.selection.layer",
}

__all__ = [
    "FittedLens", "Generation", "InternalPolicy", "LayerChoice", "LayerLensError", "LensModel", "Run", "Sample", "TrainingLog",
    "analyze", "compare", "difference", "layer_contribution", "load", "merge", "open_run", "open_training", "plots", "read_lens",
    "read_prompts", "scale_shape", "select_layer",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "plots":
        return import_module("layerlens.plots")
    if name == "__version__":
        from importlib.metadata import version

        return version("layerlens-policy")
    if name not in _WHERE:
        raise AttributeError(f"module 'layerlens' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
