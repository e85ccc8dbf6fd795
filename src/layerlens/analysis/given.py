"""What an analysis is given: samples or a run, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from layerlens.analysis.row_positions import NOWHERE, reference_start
from layerlens.errors import PromptError
from layerlens.models import Generation, LensModel
from layerlens.prompts.sample import Sample, named
from layerlens.results import Run, Texts, open_run, texts_of
from layerlens.results.check import is_run


def texts_of_run(run: Run | str | Path, model: LensModel, generate: Generation | None) -> Texts:
    if generate is not None:
        raise PromptError("the texts of a run are taken as they are: leave out generate=, or give samples without responses")
    if isinstance(run, str | Path) and not str(run).startswith("hf:") and not is_run(run):
        kind = type(run).__name__
        raise PromptError(f"samples must be Samples, got {kind} {str(run)!r}, no run folder: read_prompts makes Samples of files and texts")
    return texts_of(run if isinstance(run, Run) else open_run(run, variables=[]), model.tokenizer, model.name)


def checked_samples(samples: Iterable[Sample]) -> list[Sample]:
    """The samples as a list, each with an id. Raises PromptError if there are none, or one is no Sample."""
    chosen = list(samples)
    if not chosen:
        raise PromptError("there are no samples to analyse")
    stranger = next((item for item in chosen if not isinstance(item, Sample)), None)
    if stranger is not None:
        raise PromptError(f"samples must be Samples, got {type(stranger).__name__}: read_prompts makes them of files and texts")
    return named(chosen)


def require_response_rows(samples: Sequence[Sample], generate: Generation | None) -> None:
    silent = next((sample for sample in samples if not sample.in_response.any() and (sample.has_response or generate is None)), None)
    if silent is not None:
        raise PromptError(f"prompt {silent.name} has no response token to decode; pass generate= or rows='all'")


def require_assistant(samples: Sequence[Sample], model: LensModel) -> None:
    nameless = next((sample for sample in samples if reference_start(sample, model) == NOWHERE), None)
    if nameless is not None:
        raise PromptError(
            f"prompt {nameless.name} holds no 'assistant', after which the rows of the paper's code begin: use the chat template of the "
            "model if it names one, or rows='response'"
        )
