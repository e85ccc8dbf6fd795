"""What an evaluation found: every answer to every problem, and the numbers that follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool

from layerlens.errors import LayerLensError, SelectionError
from layerlens.evaluate.scores import pass_table
from layerlens.metrics.bootstrap import LEVEL, RESAMPLES, bootstrap_means, interval
from layerlens.storage.manifest import EvaluationManifest

Reward: TypeAlias = Callable[..., Sequence[float | None]]
"""`f(completions, ground_truth) -> scores`, TRL's signature."""

RIGHT = 0.5
"""An answer is right where its score is above this."""


@dataclass(frozen=True)
class Answer:
    """One sampled answer: its text, its length in tokens, whether it ended by itself or was cut, and its score."""

    text: str
    tokens: int
    finished: bool
    score: float

    @property
    def correct(self) -> bool:
        return self.score > RIGHT


@dataclass(frozen=True)
class Problem:
    """One problem and its answers, in the order of their samples."""

    id: str
    ground_truth: str
    answers: tuple[Answer, ...]

    @property
    def correct(self) -> list[bool]:
        return [answer.correct for answer in self.answers]


@dataclass(frozen=True)
class Evaluation:
    """`n_samples` answers to each of a set of problems, scored. Means are over problems, and so are the intervals.

    Attributes:
        problems: in the order of the prompts.
        manifest: what was run on what; `manifest.task` and `manifest.model.name` name it.
        path: the folder it is kept in, or None.
    """

    problems: tuple[Problem, ...]
    manifest: EvaluationManifest
    path: Path | None = None

    @property
    def task(self) -> str:
        return self.manifest.task

    @property
    def model(self) -> str:
        return self.manifest.model.name

    @property
    def label(self) -> str:
        """The model, and the internal policy that answered if it was not the model's own."""
        config = self.manifest.config
        if config.layer is None:
            return self.model
        site = "" if config.site == "resid_post" else f" {config.site}"
        return f"{self.model} layer {config.layer}{site} (norm: {config.norm})"

    @property
    def n_samples(self) -> int:
        return len(self.problems[0].answers)

    @cached_property
    def correct(self) -> Bool[np.ndarray, "problems samples"]:
        """Which answers are right."""
        return np.array([problem.correct for problem in self.problems], dtype=bool)

    def pass_at(self, ks: Sequence[int] | None = None, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
        """Pass@k for k = 1, 2, 4, ..., K (or `ks`), tidy: what `plots.pass_curves` draws.

        Columns `model`, `task`, `k`, `mean`, `low`, `high` (bootstrap over problems), `problems`, `samples`, `temperature`, `level`.
        """
        table = pass_table(self.correct, ks, level=level, resamples=resamples, seed=seed)
        table.insert(0, "model", self.label)
        table.insert(1, "task", self.task)
        temperature = self.manifest.config.generate.temperature
        return table.assign(problems=len(self.problems), samples=self.n_samples, temperature=temperature, level=level)

    def avg(self, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
        """Avg@K, the share of right answers, with the ends of its interval (NaN for a single problem)."""
        row = pass_table(self.correct, [1], level=level, resamples=resamples, seed=seed).iloc[0]
        return float(row["mean"]), float(row["low"]), float(row["high"])

    def same_problems(self, other: Evaluation) -> bool:
        """Whether both answered the same problems, in the same order."""
        mine, theirs = ([(problem.id, problem.ground_truth) for problem in each.problems] for each in (self, other))
        return mine == theirs

    def gain_over(
        self, earlier: Evaluation, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
    ) -> tuple[float, float, float]:
        """Avg@K less that of an earlier evaluation, with its interval; paired: the bootstrap draws problems, each with both its answers.

        Raises SelectionError where the two are not of the same problems.
        """
        if not self.same_problems(earlier):
            raise SelectionError(
                f"{self.label} and {earlier.label} answered different problems of {self.task}: no gain to tell, problem by problem"
            )
        gains = self.correct.mean(1) - earlier.correct.mean(1)
        point, draws = bootstrap_means(gains, np.ones(len(gains)), resamples, seed)
        low, high = interval(draws, level)
        return float(point), float(low), float(high)

    def per_problem(self) -> pd.DataFrame:
        """One row per problem: `id`, `ground_truth`, `n`, `right`, `avg`, `finished` (share), `tokens` (mean)."""
        rows = [
            {
                "id": problem.id,
                "ground_truth": problem.ground_truth,
                "n": len(problem.answers),
                "right": sum(problem.correct),
                "avg": float(np.mean(problem.correct)),
                "finished": float(np.mean([answer.finished for answer in problem.answers])),
                "tokens": float(np.mean([answer.tokens for answer in problem.answers])),
            }
            for problem in self.problems
        ]
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per answer: `problem`, `id`, `ground_truth`, `sample`, `text`, `tokens`, `finished`, `score`, `correct`."""
        rows = [
            {"problem": index, "id": problem.id, "ground_truth": problem.ground_truth, "sample": sample}
            | asdict(answer)
            | {"correct": answer.correct}
            for index, problem in enumerate(self.problems)
            for sample, answer in enumerate(problem.answers)
        ]
        return pd.DataFrame(rows)

    def summary(
        self, ks: Sequence[int] | None = None, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
    ) -> dict[str, Any]:
        """The numbers as plain JSON values; an interval that does not exist is None."""
        passes = self.pass_at(ks, level=level, resamples=resamples, seed=seed)
        per_problem = self.per_problem()
        return {
            "model": self.model,
            "task": self.task,
            **{key: getattr(self.manifest.config, key) for key in ("layer", "site", "norm", "engine", "reward")},
            "problems": len(self.problems),
            "samples": self.n_samples,
            f"avg@{self.n_samples}": estimate(*self.avg(level=level, resamples=resamples, seed=seed)),
            "pass": {str(row.k): estimate(row.mean_, row.low, row.high) for row in passes.rename(columns={"mean": "mean_"}).itertuples()},
            "level": level,
            "finished": float(per_problem["finished"].mean()),
            "tokens": float(per_problem["tokens"].mean()),
            "folder": None if self.path is None else str(self.path),
        }

    def rescored(self, reward: Reward) -> Evaluation:
        """The same answers under another reward; what is on disk stays as it is."""
        problems = []
        for problem in self.problems:
            scores = score_texts(reward, [answer.text for answer in problem.answers], [problem.ground_truth] * len(problem.answers))
            answers = tuple(replace(answer, score=score) for answer, score in zip(problem.answers, scores, strict=True))
            problems.append(replace(problem, answers=answers))
        config = replace(self.manifest.config, reward=name_of(reward))
        return Evaluation(tuple(problems), replace(self.manifest, config=config))


def estimate(mean: float, low: float, high: float) -> dict[str, float | None]:
    """A mean and its interval as plain JSON values; ends that do not exist are None."""
    return {"mean": float(mean)} | {key: None if np.isnan(end) else float(end) for key, end in (("low", low), ("high", high))}


def name_of(reward: Reward) -> str:
    """What a manifest calls a reward."""
    return str(getattr(reward, "target", None) or getattr(reward, "__name__", None) or type(reward).__name__)


def score_texts(reward: Reward, texts: Sequence[str], truths: Sequence[str]) -> list[float]:
    """Scores of texts. Raises LayerLensError where the reward does not give a number for each."""
    scores = list(reward(completions=list(texts), ground_truth=list(truths)))
    if len(scores) != len(texts) or any(score is None or np.isnan(score) for score in scores):
        raise LayerLensError(f"the reward {name_of(reward)} must give a number for each of {len(texts)} answers, got {scores[:8]}")
    return [float(score) for score in scores if score is not None]
