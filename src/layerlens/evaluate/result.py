"""The result of an evaluation: every sampled answer to every problem with its score, and the tables and means made from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from layerlens.errors import LayerLensError, SelectionError
from layerlens.evaluate.scores import BoundEstimate, Estimate, estimate_mean, estimate_over_answers, pass_table
from layerlens.metrics.intervals import LEVEL, RESAMPLES
from layerlens.metrics.pass_at_k import avg_at_k
from layerlens.rewards.isolation import Failure
from layerlens.rewards.rewards import Reward
from layerlens.storage.manifest import EvaluationManifest

RewardFunction: TypeAlias = Callable[..., Sequence[float | None]]
"""A function in TRL's signature, `f(completions, ground_truth) -> scores`, one score per completion."""

CORRECT_ABOVE = 0.5
"""An answer counts as correct if its score is above this value."""


@dataclass(frozen=True)
class Answer:
    """One sampled answer.

    Attributes:
        text: the answer without special tokens.
        tokens: its length in tokens, the end-of-sequence token included.
        finished: whether it ended with an end-of-sequence token, rather than at the limit of new tokens.
        score: what the reward gave it; 0 if it was not checked.
        unchecked: why the reward gave no number, if it gave none: its check hung or raised, or it returned None.
    """

    text: str
    tokens: int
    finished: bool
    score: float
    unchecked: str | None = None

    @property
    def correct(self) -> bool:
        """Whether the score is above `CORRECT_ABOVE`."""
        return self.score > CORRECT_ABOVE


@dataclass(frozen=True)
class Problem:
    """One problem and its answers, in the order of the answers' numbers.

    `prompt` is the text that was answered, chat template included; empty if it is not known.
    """

    id: str
    ground_truth: str
    answers: tuple[Answer, ...]
    prompt: str = ""

    @property
    def correct(self) -> list[bool]:
        """For each answer, whether it is correct."""
        return [answer.correct for answer in self.answers]


@dataclass(frozen=True)
class Evaluation:
    """`n_answers` scored answers to each of a set of problems. Means are over problems.

    Two intervals answer two questions: how the model would do on other problems like these (problems are resampled), and on these very
    problems with other answers (from the counts of correct ones).

    Attributes:
        problems: the problems with their answers, in the order of the prompts.
        manifest: model, configuration and versions of the evaluation; `manifest.task` names the problems.
        path: the folder that holds the evaluation, or None if it was kept in memory.
    """

    problems: tuple[Problem, ...]
    manifest: EvaluationManifest
    path: Path | None = None

    @property
    def task(self) -> str:
        """The name of the set of problems."""
        return self.manifest.task

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.manifest.model.name

    @property
    def label(self) -> str:
        """The name of the model; if an internal policy answered, also its layer, site, norm and fitted lens."""
        config = self.manifest.config
        if config.layer is None:
            return self.model
        site = "" if config.site == "resid_post" else f" {config.site}"
        layer = config.layer if isinstance(config.layer, str) else f"layer {config.layer}"
        lens = "" if config.lens is None else f", {config.lens} lens"
        return f"{self.model} {layer}{site} (norm: {config.norm}{lens})"

    @property
    def n_answers(self) -> int:
        """Answers per problem, K."""
        return len(self.problems[0].answers)

    @cached_property
    def correct(self) -> Bool[np.ndarray, "problems answers"]:
        """For each problem and answer number, whether the answer is correct."""
        return np.array([problem.correct for problem in self.problems], dtype=bool)

    @property
    def unchecked(self) -> list[str]:
        """Of each answer to any problem that the reward gave no number, why. These answers count as wrong."""
        return [answer.unchecked for problem in self.problems for answer in problem.answers if answer.unchecked is not None]

    @property
    def unchecked_text(self) -> str:
        """How many answers were not checked and why the last was not, in words; empty if all were."""
        reasons = self.unchecked
        return f"{len(reasons)} of {self.correct.size} answers to {self.task} ({reasons[-1]})" if reasons else ""

    def require_checked(self) -> None:
        """Raises SelectionError if the reward gave no answer a number: a mean of 0 then says nothing of the model."""
        if len(self.unchecked) == self.correct.size:
            raise SelectionError(
                f"{self.manifest.config.reward} checked none of the answers of {self.label} to {self.task} ({self.unchecked[-1]}): "
                "mend it and run the same `layerlens eval` again, which samples nothing anew"
            )

    def pass_at(self, ks: Sequence[int] | None = None, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
        """Pass@k for k = 1, 2, 4, ... up to K (or `ks`), one row per k: the table that `plots.pass_curves` draws.

        Columns: `model`, `task`, `k`, `mean` over problems, `low` and `high` (its interval for other problems like these; bounds if
        `bound`), `answers_low` and `answers_high` (for other answers to these very problems), `problems` and `answers` (how many, and
        how many to each), `unchecked` (how many of all answers were not checked), `temperature`, `level`. Raises ValueError for a k
        outside 1..K.
        """
        table = pass_table(self.correct, ks, level=level, resamples=resamples, seed=seed)
        table.insert(0, "model", self.label)
        table.insert(1, "task", self.task)
        temperature = self.manifest.config.generate.temperature
        counts = {"problems": len(self.problems), "answers": self.n_answers, "unchecked": len(self.unchecked)}
        return table.assign(**counts, temperature=temperature, level=level)

    def avg(self, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
        """Avg@K, the mean over problems of the share of correct answers, with its interval for other problems like these.

        The interval of a single problem is NaN. If all problems have the same score, the ends are bounds, and the result is a
        `BoundEstimate`.
        """
        return estimate_mean(avg_at_k(self.correct), level=level, resamples=resamples, seed=seed)

    def avg_over_answers(self, *, level: float = LEVEL) -> Estimate:
        """Avg@K with its interval for other answers to these very problems (NaN for one answer each): `estimate_over_answers`."""
        return estimate_over_answers(float(avg_at_k(self.correct).mean()), self.correct, level=level)

    def same_problems(self, other: Evaluation) -> bool:
        """Whether both evaluations are of the same problems (ids and ground truths), in the same order; their prompts may differ."""
        mine, theirs = ([(problem.id, problem.ground_truth) for problem in each.problems] for each in (self, other))
        return mine == theirs

    def sampled_otherwise(self, other: Evaluation, policies: bool = True) -> str:
        """What makes another difference between two evaluations than their models: "temperature 0, not 1"; empty if nothing does.

        Compared are the texts of the prompts (models with chat templates of their own have other prompts), how answers were sampled (but
        for the seed), how they were checked and, with `policies`, by which policy of the model.
        """
        prompts = zip(*([problem.prompt for problem in each.problems] for each in (self, other)), strict=False)
        mine, theirs = ({**asdict(each.manifest.config.generate), **asdict(each.manifest.config)} for each in (self, other))
        names = ["max_new_tokens", "temperature", "top_p", "reward", *(["layer", "site", "norm", "lens_fingerprint"] if policies else [])]
        differ = [f"{name} {mine[name]}, not {theirs[name]}" for name in names if mine[name] != theirs[name]]
        return ", ".join([*(["other prompts"] if any(a and b and a != b for a, b in prompts) else []), *differ])

    def gain_over(self, earlier: Evaluation, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
        """Avg@K minus the Avg@K of an earlier evaluation of the same problems, with its paired interval for other problems like these.

        The interval is paired: each bootstrap draw takes a problem with the answers of both evaluations. The two numbers of answers
        may differ.

        Raises SelectionError if the two evaluations are of different problems.
        """
        gains = self._gains_over(earlier)
        return estimate_mean(gains, level=level, resamples=resamples, seed=seed, bounds=(-1.0, 1.0))

    def gain_over_answers(self, earlier: Evaluation, *, level: float = LEVEL) -> Estimate:
        """The gain of `gain_over` with its interval for other answers, of both models, to these very problems."""
        return estimate_over_answers(float(self._gains_over(earlier).mean()), self.correct, earlier.correct, level=level)

    def _gains_over(self, earlier: Evaluation) -> Float[np.ndarray, " problems"]:
        """The gain in Avg@K at each problem. Raises SelectionError if the two evaluations are of different problems."""
        if not self.same_problems(earlier):
            raise SelectionError(
                f"the gain over an earlier evaluation needs the same problems in both: {self.label} and {earlier.label} answered different "
                f"problems of {self.task}; evaluate both with the same --tasks, --data and --limit"
            )
        gains: np.ndarray = avg_at_k(self.correct) - avg_at_k(earlier.correct)
        return gains

    def per_problem(self) -> pd.DataFrame:
        """One row per problem: `id`, `ground_truth`, `n` answers, `right` (how many are correct), `avg` (Avg@K), `finished` (the share
        that ended by themselves) and `tokens` (their mean length)."""
        rows = [
            {
                "id": problem.id,
                "ground_truth": problem.ground_truth,
                "n": len(problem.answers),
                "right": sum(problem.correct),
                "avg": float(avg),
                "finished": float(np.mean([answer.finished for answer in problem.answers])),
                "tokens": float(np.mean([answer.tokens for answer in problem.answers])),
            }
            for problem, avg in zip(self.problems, avg_at_k(self.correct), strict=True)
        ]
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per answer: `problem` and `answer` (their numbers, from 0), `id`, `ground_truth`, `text`, `tokens`, `finished`,
        `score`, `unchecked` (why it was not checked, else None), `correct`."""
        rows = [
            {"problem": index, "id": problem.id, "ground_truth": problem.ground_truth, "answer": number}
            | asdict(answer)
            | {"correct": answer.correct}
            for index, problem in enumerate(self.problems)
            for number, answer in enumerate(problem.answers)
        ]
        return pd.DataFrame(rows)

    def summary(
        self, ks: Sequence[int] | None = None, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
    ) -> dict[str, Any]:
        """Avg@K, Pass@k and the means of lengths as plain JSON values; the end of an interval that does not exist is None.

        `low` and `high` are for other problems like these, `answers_low` and `answers_high` for other answers to these very problems.
        """
        passes = self.pass_at(ks, level=level, resamples=resamples, seed=seed)
        per_problem = self.per_problem()
        return {
            "model": self.model,
            "task": self.task,
            **{key: getattr(self.manifest.config, key) for key in ("layer", "site", "norm", "engine", "reward")},
            "problems": len(self.problems),
            "answers": self.n_answers,
            f"avg@{self.n_answers}": self.avg(level=level, resamples=resamples, seed=seed).to_json()
            | _answers_json(self.avg_over_answers(level=level)),
            "pass": {str(row.k): _pass_json(row) for row in passes.itertuples()},
            "level": level,
            "unchecked": len(self.unchecked),
            "finished": float(per_problem["finished"].mean()),
            "tokens": float(per_problem["tokens"].mean()),
            "folder": None if self.path is None else str(self.path),
        }

    def rescored(self, reward: RewardFunction) -> Evaluation:
        """An evaluation in memory with the same answers, scored by another reward. The folder on disk is not changed."""
        problems = [
            replace(problem, answers=tuple(checked(reward, problem.answers, [problem.ground_truth] * self.n_answers)))
            for problem in self.problems
        ]
        config = replace(self.manifest.config, reward=reward_name(reward))
        return Evaluation(tuple(problems), replace(self.manifest, config=config))


def _pass_json(row: Any) -> dict[str, float | bool | None]:
    """A row of the table of Pass@k as plain JSON values."""
    kind = BoundEstimate if row.bound else Estimate
    return kind(row.mean, row.low, row.high).to_json() | _answers_json(Estimate(row.mean, row.answers_low, row.answers_high))


def _answers_json(estimate: Estimate) -> dict[str, float | bool | None]:
    ends = estimate.to_json()
    return {"answers_low": ends["low"], "answers_high": ends["high"]}


def reward_name(reward: RewardFunction) -> str:
    """The name of a reward in a manifest: `module:function` for a `Reward`, the function's name otherwise."""
    return str(getattr(reward, "target", None) or getattr(reward, "__name__", None) or type(reward).__name__)


def checked(reward: RewardFunction, answers: Sequence[Answer], truths: Sequence[str]) -> list[Answer]:
    """The answers with the reward's score of each against its ground truth; those that get no number say why.

    Raises LayerLensError unless the reward gives one score per answer.
    """
    texts = [answer.text for answer in answers]
    scores: Sequence[float | None]
    failures: dict[int, Failure] = {}
    if isinstance(reward, Reward):
        scores, failures = reward.checked(texts, list(truths))
    else:
        scores = list(reward(completions=texts, ground_truth=list(truths)))
    if len(scores) != len(answers):
        raise LayerLensError(f"the reward {reward_name(reward)} must give a score for each of {len(answers)} answers, got {scores[:8]}")
    found = []
    for number, (answer, score) in enumerate(zip(answers, scores, strict=True)):
        if number in failures or score is None or np.isnan(score):
            why = failures[number].error if number in failures else "the reward gave no number"
            found.append(replace(answer, score=0.0, unchecked=why))
        else:
            found.append(replace(answer, score=float(score), unchecked=None))
    return found
