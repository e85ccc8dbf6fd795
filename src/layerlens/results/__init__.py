"""The one result type, in memory and on disk."""

from layerlens.results.folder import RunFolder
from layerlens.results.memory import RunMemory
from layerlens.results.opened import open_run
from layerlens.results.run import Run
from layerlens.results.scale_shape import scale_shape
from layerlens.results.schema import SampleResult, join_samples, sample_dataset
from layerlens.results.text_spread import TextSpread
from layerlens.results.texts import Texts, texts_of
from layerlens.results.training_log import TrainingLog, open_training

__all__ = [
    "Run",
    "RunFolder",
    "RunMemory",
    "SampleResult",
    "TextSpread",
    "Texts",
    "TrainingLog",
    "join_samples",
    "open_run",
    "open_training",
    "sample_dataset",
    "scale_shape",
    "texts_of",
]
