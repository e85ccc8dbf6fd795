"""The one result type, in memory and on disk."""

from layerlens.results.folder import RunFolder
from layerlens.results.manifest import make_manifest
from layerlens.results.memory import RunMemory
from layerlens.results.run import Run, open_run
from layerlens.results.schema import SampleResult, join_samples, sample_dataset
from layerlens.results.training import TrainingLog, open_training

__all__ = [
    "Run",
    "RunFolder",
    "RunMemory",
    "SampleResult",
    "TrainingLog",
    "join_samples",
    "make_manifest",
    "open_run",
    "open_training",
    "sample_dataset",
]
