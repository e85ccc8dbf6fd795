"""The one result type, in memory and on disk."""

from layerlens.results.folder import RunFolder
from layerlens.results.memory import RunMemory
from layerlens.results.run import Run, open_run
from layerlens.results.schema import SampleResult, join_samples, sample_dataset
from layerlens.results.training_log import TrainingLog, open_training

__all__ = [
    "Run",
    "RunFolder",
    "RunMemory",
    "SampleResult",
    "TrainingLog",
    "join_samples",
    "open_run",
    "open_training",
    "sample_dataset",
]
