"""Majority votes over the answers that think deepest in their first tokens (Think@n: Chen et al. 2026, arXiv 2602.13517).

If the ratio of an answer's first tokens tells how deep it will think, the other answers need not be sampled to their ends. Whether that
pays is measured here on whole answers: the vote of those that would have been kept, beside the vote of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from layerlens.analysis import analyze
from layerlens.errors import SelectionError
from layerlens.evaluate.result import Evaluation
from layerlens.evaluate.scores import Estimate, estimate_mean
from layerlens.metrics.majority import majority
from layerlens.models import LensModel
from layerlens.prompts.sample import Sample
from layerlens.rewards.boxed import boxed_result

PREFIX = 50
"""Tokens of an answer whose deep-thinking ratio decides (Chen et al. 2026)."""
KEEP = 0.5
"""Share of the answers to each problem that are kept."""
RANDOM_DRAWS = 200
"""As many answers as are kept are also drawn at random, this often: fewer votes alone are worth less."""

Array = np.ndarray


@dataclass(frozen=True)
class DeepThinkingVote:
    """Which answers were kept, and whether the votes are right.

    Attributes:
        ratio: the deep-thinking ratio of each answer's first tokens; NaN for an empty answer.
        kept: whether each answer is among those with the highest ratio; of equal ratios the earlier answer is kept.
        all_right, kept_right: whether the majority vote of all answers, and of the kept ones, is right at each problem.
        random_right: the share of RANDOM_DRAWS draws of as many answers as were kept whose vote is right, by problem.
        prefix: how many tokens decided.
    """

    ratio: Float[Array, "problems answers"]
    kept: Bool[Array, "problems answers"]
    all_right: Bool[Array, " problems"]
    kept_right: Bool[Array, " problems"]
    random_right: Float[Array, " problems"]
    prefix: int

    @property
    def n_kept(self) -> int:
        """Answers of each problem that were kept."""
        return int(self.kept[0].sum())

    def estimates(self, seed: int = 0) -> dict[str, Estimate]:
        """The share of problems that votes solve: of "all" answers, of the "kept" ones, of as many at "random"; and the "gain" of the kept
        ones over these, paired by problem. Intervals are for other problems like these.
        """
        every, kept = self.all_right.astype(np.float64), self.kept_right.astype(np.float64)
        gain = estimate_mean(kept - self.random_right, seed=seed, bounds=(-1.0, 1.0))
        votes = {"all": every, "kept": kept, "random": self.random_right}
        return {name: estimate_mean(right, seed=seed) for name, right in votes.items()} | {"gain": gain}

    def to_json(self) -> dict[str, Any]:
        """The estimates as plain JSON values, with the numbers of answers and tokens they rest on."""
        numbers = {"answers": self.kept.shape[1], "kept": self.n_kept, "prefix": self.prefix}
        return numbers | {f"vote_of_{name}" if name != "gain" else name: value.to_json() for name, value in self.estimates().items()}


def vote_by_deep_thinking(
    evaluation: Evaluation,
    model: LensModel,
    problems: Sequence[Sample],
    *,
    prefix: int = PREFIX,
    keep: float = KEEP,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> DeepThinkingVote:
    r"""Measures the deep-thinking ratio of the first tokens of every answer under norm final, and votes.

    Answers vote by the content of their last `\boxed{...}`, integers as integers; one without a box has no vote. An answer's tokens are
    those into which the tokenizer cuts its text.

    Args:
        evaluation: with two or more answers to each problem.
        model: that gave the answers.
        problems: the prompts that were answered, in the order of the evaluation.
        prefix: tokens of each answer that are read, 1 or more.
        keep: share of each problem's answers to keep, above 0 and up to 1; rounded up to a whole answer.
        seed: of the draws at random.
        out: folder for the run of these tokens, in which a stopped measurement continues; None keeps it in memory.
        progress: whether to show a progress bar; by default only on a terminal.

    Raises:
        SelectionError: one answer to each problem, other problems than the evaluation's, or a prefix or share out of its range.
        RunError: `out` cannot be used.
    """
    n = evaluation.n_answers
    if n < 2:
        raise SelectionError("a vote needs two or more answers to each problem; got 1")
    if prefix < 1 or not 0 < keep <= 1:
        raise SelectionError(f"prefix must be 1 or more and keep above 0 and up to 1, got {prefix} and {keep}")
    if len(problems) != len(evaluation.problems):
        raise SelectionError(f"the evaluation has {len(evaluation.problems)} problems, got the prompts of {len(problems)}")
    ratio = _ratios(evaluation, model, problems, prefix, out, progress)
    order = np.argsort(-np.nan_to_num(ratio, nan=-1.0), axis=1, kind="stable")
    kept = np.zeros(ratio.shape, bool)
    np.put_along_axis(kept, order[:, : math.ceil(round(keep * n, 9))], True, axis=1)
    results = [[boxed_result(answer.text) for answer in problem.answers] for problem in evaluation.problems]
    all_right, kept_right = (
        np.array([_vote_is_right(*each) for each in zip(results, evaluation.correct, mask, strict=True)])
        for mask in (np.ones_like(kept), kept)
    )
    return DeepThinkingVote(
        ratio, kept, all_right, kept_right, _random_votes(results, evaluation.correct, int(kept[0].sum()), seed), prefix
    )


def _ratios(
    evaluation: Evaluation, model: LensModel, problems: Sequence[Sample], prefix: int, out: str | Path | None, progress: bool | None
) -> Float[Array, "problems answers"]:
    places, samples = [], []
    for number, (problem, answered) in enumerate(zip(problems, evaluation.problems, strict=True)):
        prompt = problem.token_ids[: problem.response_start]
        for answer, given in enumerate(answered.answers):
            tokens = model.tokenizer(given.text, add_special_tokens=False)["input_ids"][:prefix]
            if tokens:
                places.append((number, answer))
                samples.append(Sample([*prompt, *tokens], len(prompt), id=f"{answered.id} answer {answer}"))
    ratio = np.full((len(problems), evaluation.n_answers), np.nan)
    if samples:
        options: dict[str, Any] = {"metrics": "js_to_final", "sites": "resid_post", "norm": "final", "rows": "response"}
        run = analyze(model, samples, **options, out=out, progress=progress)
        ratio[tuple(np.transpose(places))] = run.sample_means("deep_thinking_ratio").values
    return ratio


def _random_votes(
    results: Sequence[Sequence[str | None]], correct: Bool[Array, "problems answers"], size: int, seed: int
) -> Float[Array, " problems"]:
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.tile(np.arange(correct.shape[1]) < size, (RANDOM_DRAWS, 1)), axis=1)
    return np.array([np.mean([_vote_is_right(*each, mask) for mask in drawn]) for each in zip(results, correct, strict=True)])


def _vote_is_right(results: Sequence[str | None], correct: Bool[Array, " answers"], counted: Bool[Array, " answers"]) -> bool:
    """Whether the majority of the counted answers is right; without any vote it is not."""
    chosen = majority([result if use else None for result, use in zip(results, counted, strict=True)])
    return chosen is not None and bool(correct[chosen])
