"""The one result type, in memory and on disk."""

from layerlens.results.folder import RunFolder
from layerlens.results.manifest import make_manifest
from layerlens.results.run import Run, open_run
from layerlens.results.schema import SampleResult, join_samples, sample_dataset

__all__ = ["Run", "RunFolder", "SampleResult", "join_samples", "make_manifest", "open_run", "sample_dataset"]
