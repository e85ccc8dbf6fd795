"""The texts of a finished run, to be measured again: by another norm, or by another model that has the same tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from layerlens.errors import PromptError, RunError
from layerlens.prompts.sample import Sample
from layerlens.prompts.segments import with_thinking
from layerlens.results.run import Run
from layerlens.results.schema import storable
from layerlens.results.stored import StoredRun
from layerlens.storage.manifest import TextSource


@dataclass(frozen=True)
class Texts:
    """Samples with their responses, and where these come from.

    Attributes:
        thinking_marks: the marks by which thinking was found in them; empty if nobody has looked for it.
    """

    samples: Sequence[Sample]
    source: TextSource
    thinking_marks: Sequence[str] = ()

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def first(self, limit: int | None) -> Texts:
        """At most `limit` samples, from the start."""
        return replace(self, samples=self.samples[:limit])


def texts_of(run: Run, tokenizer: Any, model: str) -> Texts:
    """The texts of a run as samples: token ids as they are, with ids, ground truths, what is thinking and whether it is right.

    Args:
        run: complete; `open_run(folder, variables=[])` opens all of it that is needed.
        tokenizer: of the model that is to read the texts, or None. It must turn every text into the words that the run has stored.
        model: what the error calls that model.

    Raises:
        RunError: the run lacks samples, was made by an earlier layerlens that kept no token ids of prompts, or marked thinking that
            was given by hand, of which neither means nor a drawn sample of rows tell everything.
        PromptError: the tokenizer reads a text otherwise than the run's own did.
    """
    where = run.path or f"the run of {run.model}"
    if not run.complete:
        count = run.manifest.samples.count
        raise RunError(f"{where} has {run.n_samples} of {count} samples: run the analysis that made it again to finish it")
    if "text_token_id" not in run.data.coords:
        raise RunError(f"{where} was made by an earlier layerlens, which kept no token ids of prompts: analyse again")
    marks = run.manifest.config.thinking_marks
    if isinstance(run, StoredRun) and not run.keeps_rows:
        samples = _samples_without_rows(run, tokenizer, model, marks, str(where))
    else:
        samples = [_sample(run.sample(int(number)), tokenizer, model, marks, str(where)) for number in run.data["sample_index"].values]
    known, info = run.manifest.texts, run.manifest.model
    source = known or TextSource(info.name, info.fingerprint, generate=run.manifest.config.generate)
    return Texts(samples, replace(source, run=str(run.path.resolve()) if run.path else "in memory"), marks)


def _samples_without_rows(run: StoredRun, tokenizer: Any, model: str, marks: Sequence[str], where: str) -> list[Sample]:
    """The texts of a run that kept means alone; what is thinking is found again, and must be as many rows as the run counted."""
    ends = np.cumsum(np.bincount(run.data["text_sample"].values, minlength=int(run.data["sample_index"].values.max()) + 1))
    thinking = run.thinking_rows
    samples = []
    for place, number in enumerate(run.data["sample_index"].values.tolist()):
        first = ends[number - 1] if number else 0
        sample = _text(run.data.isel(sample=[place], text_token=slice(int(first), int(ends[number]))), tokenizer, model, where)
        sample = with_thinking(sample, tokenizer, (marks[0], marks[1])) if marks else sample
        if (sample.segment == "thinking").sum() != thinking[place]:
            raise RunError(
                f"{where}: thinking was given by hand for sample {sample.id}, and its rows were not kept: give the texts as samples"
            )
        samples.append(sample)
    return samples


def _text(data: xr.Dataset, tokenizer: Any, model: str, where: str) -> Sample:
    """The sample without what is thinking in it. Raises PromptError if the tokenizer reads its token ids as another text."""
    ids, start = data["text_token_id"].values.tolist(), int(data["response_start"].values[0])
    name, text, truth = (str(data[coord].values[0]) for coord in ("sample_id", "sample_text", "ground_truth"))
    if tokenizer is not None and text and storable(tokenizer.decode(ids)) != text:
        raise PromptError(
            f"{model} has another tokenizer than {data.attrs['model']}, whose texts {where} holds: it reads the token ids of sample {name} "
            "as another text. Only a model with the same tokenizer can read the same texts"
        )
    correct = int(data["correct"].values[0]) if "correct" in data.coords else -1
    return Sample(ids, start, id=name, ground_truth=truth or None, correct=None if correct < 0 else bool(correct))


def _sample(data: xr.Dataset, tokenizer: Any, model: str, marks: Sequence[str], where: str) -> Sample:
    sample = _text(data, tokenizer, model, where)
    name, ids = sample.id, sample.token_ids
    rows = data["position"].values
    segment = data["segment"].values.astype(object)
    response = np.flatnonzero(sample.in_response)
    if not np.isin(response, rows).all():  # only some rows were drawn: what is thinking must be found again
        sample = with_thinking(sample, tokenizer, (marks[0], marks[1]))
        if (sample.segment[rows] != segment).any():
            raise RunError(f"{where}: thinking was given by hand for sample {name}, and its rows were drawn: give the texts as samples")
        return sample
    thinking = np.zeros(len(ids) + 1, bool)
    thinking[rows + 1] = segment == "thinking"
    edges = np.flatnonzero(np.diff(np.concatenate([[0], thinking[: len(ids)], [0]]).astype(int)))
    return replace(sample, thinking=tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2)))
