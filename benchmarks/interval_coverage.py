"""Do 95% intervals hold the truth in 95% of data sets, with few of them, at the edges, and in pairs?

    python -m benchmarks.interval_coverage > benchmarks/interval_coverage.json

Data sets are drawn from known populations. "before" is the share of percentile intervals of the package's own resamples that hold the
truth, which were the package's intervals until they were widened; "after" is the share of the intervals that it gives now (`interval`,
`estimate_mean`, `estimate_over_answers`). Standard errors are 0.7 points at 1,000 data sets near 95%.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from benchmarks.coverage import CHANGE, DataSet

from layerlens.evaluate.scores import estimate_mean, estimate_over_answers
from layerlens.metrics.intervals import FEWEST_FOR_LAYERS, bootstrap_means, interval, widening
from layerlens.metrics.pass_at_k import avg_at_k, pass_at_k

SIZES = (8, 16, 32, 64)
REPLICATES = 1000
ANSWERS = 16
RESAMPLES = 1000

Shares = dict[str, float]
Array = np.ndarray

VALUES: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "skewness 2": lambda rng, n: rng.exponential(size=n) - 1,
}
"""One value per problem, of mean 0."""

DIFFICULTY = {
    "U-shaped, mean .25": (0.25, 0.75),
    "easy, mean .89": (4.0, 0.5),
    "AIME-like, mean .05": (0.1, 1.9),
}
"""Beta distributions of the chance that an answer to a problem is right."""


def shares(found: Iterator[tuple[bool, bool]]) -> Shares:
    """Of pairs that say whether the interval of before and that of now hold the truth."""
    before, after = np.array(list(found)).mean(axis=0)
    return {"before": round(float(before), 4), "after": round(float(after), 4)}


def holds(low: Array, high: Array, truth: float | Array) -> Array:
    return (low <= truth) & (truth <= high)


def percentiles(values: Array, level: float = 0.95) -> tuple[Array, Array]:
    ends = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends[0], ends[1]


def curves(n: int, replicates: int) -> Shares:
    """Mean ΔS by layer of data sets with autocorrelated tokens (`coverage.DataSet`): the share over data sets and layers."""

    def one(seed: int) -> tuple[float, float]:
        run = DataSet(n, seed).run(400)
        point, draws = run.bootstrap("entropy_change")
        point, draws = point.sel(module="ffn").values, draws.sel(module="ffn").values
        return holds(*percentiles(draws), CHANGE).mean(), holds(*interval(draws, point, n), CHANGE).mean()

    return shares(one(seed) for seed in range(replicates))


def values(draw: Callable[[np.random.Generator, int], Array], n: int, replicates: int) -> Shares:
    """The mean of one value per problem."""
    rng = np.random.default_rng(n)

    def one(seed: int) -> tuple[bool, bool]:
        point, draws = bootstrap_means(draw(rng, n), np.ones(n), RESAMPLES, seed)
        return bool(holds(*percentiles(draws), 0.0)), bool(holds(*interval(draws, point, n), 0.0))

    return shares(one(seed) for seed in range(replicates))


def clustered(n: int, replicates: int) -> Shares:
    """The mean over n problems with 4 answers each, half of the variance between problems; before: answers as if independent."""
    rng, numbers = np.random.default_rng(n), np.repeat(np.arange(n), 4)

    def one(seed: int) -> tuple[bool, bool]:
        found = rng.normal(size=n)[numbers] + rng.normal(size=4 * n)
        apart = bootstrap_means(found, np.ones(4 * n), RESAMPLES, seed)[1]
        point, draws = bootstrap_means(found, np.ones(4 * n), RESAMPLES, seed, numbers)
        return bool(holds(*percentiles(apart), 0.0)), bool(holds(*interval(draws, point, n), 0.0))

    return shares(one(seed) for seed in range(replicates))


def layers(n: int, replicates: int) -> Shares:
    """The first of 24 layers whose mean agreement is at least one half, on a steep and a flat curve in turn."""
    rng, depth = np.random.default_rng(n), np.arange(1, 25)

    def one(seed: int) -> tuple[bool, bool]:
        curve = 1 / (1 + np.exp(-(depth - 16.4) / (2.0 if seed % 2 else 4.0)))
        samples = np.clip(curve + 0.15 * rng.normal(size=(n, 1)) + 0.1 * rng.normal(size=(n, 24)), 0, 1)
        point, draws = bootstrap_means(samples, np.ones((n, 24)), RESAMPLES, seed)
        first = [np.where((means >= 0.5).any(-1), (means >= 0.5).argmax(-1) + 1.0, np.nan) for means in (point[None], draws)]
        ends = interval(first[1][:, None], first[0], n, layers=True)
        return bool(holds(*percentiles(first[1]), 17.0)), bool(holds(*ends, 17.0)[0])

    return shares(one(seed) for seed in range(replicates))


def solved(difficulty: tuple[float, float], k: int, n: int, replicates: int) -> Shares:
    """Avg@16 (k = 1) or Pass@k of n problems drawn from a population, 16 answers each."""
    rng = np.random.default_rng(n)
    truth = float(np.mean(1 - (1 - np.random.default_rng(1).beta(*difficulty, 1_000_000)) ** k))

    def one(seed: int) -> tuple[bool, bool]:
        counts = rng.binomial(ANSWERS, rng.beta(*difficulty, n))
        scores = np.asarray(pass_at_k(ANSWERS, counts, k))
        draws = bootstrap_means(scores, np.ones(n), RESAMPLES, seed)[1]
        _, low, high = estimate_mean(scores, resamples=RESAMPLES, seed=seed)
        return bool(holds(*percentiles(draws), truth)), low <= truth <= high

    return shares(one(seed) for seed in range(replicates))


def paired(gain: float, n: int, replicates: int) -> Shares:
    """The gain in Avg@16 of a model whose chance at every problem is moved by `gain` on the logit scale, from U-shaped difficulty."""
    rng = np.random.default_rng(n)

    def chances(size: int, generator: np.random.Generator) -> tuple[Array, Array]:
        before = generator.beta(0.5, 1.5, size)
        return before, 1 / (1 + (1 - before) / np.maximum(before, 1e-300) * np.exp(-gain))

    old, new = chances(1_000_000, np.random.default_rng(1))
    truth = float((new - old).mean())

    def one(seed: int) -> tuple[bool, bool]:
        gains = np.subtract(*(rng.binomial(ANSWERS, each) / ANSWERS for each in chances(n, rng)[::-1]))
        draws = bootstrap_means(gains, np.ones(n), RESAMPLES, seed)[1]
        _, low, high = estimate_mean(gains, resamples=RESAMPLES, seed=seed, bounds=(-1.0, 1.0))
        return bool(holds(*percentiles(draws), truth)), low <= truth <= high

    return shares(one(seed) for seed in range(replicates))


def own_value(difficulty: tuple[float, float], k: int, n: int, replicates: int) -> Shares:
    """The set's own Avg@16 or Pass@k: the same n problems, new answers. before: the interval over problems, the only one there was."""
    rng = np.random.default_rng(n)

    def one(seed: int) -> tuple[bool, bool]:
        chances = rng.beta(*difficulty, n)
        truth = float((1 - (1 - chances) ** k).mean())
        correct = rng.random((n, ANSWERS)) < chances[:, None]
        scores = avg_at_k(correct) if k == 1 else np.asarray(pass_at_k(ANSWERS, correct.sum(1), k))
        draws = bootstrap_means(scores, np.ones(n), RESAMPLES, seed)[1]
        _, low, high = estimate_over_answers(float(scores.mean()), correct, k=k)
        return bool(holds(*percentiles(draws), truth)), low <= truth <= high

    return shares(one(seed) for seed in range(replicates))


def main() -> None:
    start = time.perf_counter()
    few = (2, 3, 4, *SIZES)
    result = {
        "replicates": REPLICATES,
        "replicates_of_curves": 300,
        "widening": {str(n): round(widening(n), 3) for n in few},
        "means of curves": {str(n): curves(n, 300) for n in SIZES},
        **{f"mean, {name}": {str(n): values(draw, n, REPLICATES) for n in few} for name, draw in VALUES.items()},
        "4 answers per problem": {str(n): clustered(n, REPLICATES) for n in SIZES},
        "layer": {str(n): layers(n, REPLICATES) for n in (FEWEST_FOR_LAYERS, *SIZES)},
        **{
            f"{'Avg@16' if k == 1 else f'Pass@{k}'}, {name}": {str(n): solved(shape, k, n, REPLICATES) for n in SIZES}
            for k in (1, 4, 16)
            for name, shape in DIFFICULTY.items()
        },
        "gain, none": {str(n): paired(0.0, n, REPLICATES) for n in SIZES},
        "gain, logit + .5": {str(n): paired(0.5, n, REPLICATES) for n in SIZES},
        **{
            f"the set's own {'Avg@16' if k == 1 else f'Pass@{k}'}, {name}": {str(n): own_value(shape, k, n, REPLICATES) for n in SIZES}
            for k in (1, 4)
            for name, shape in DIFFICULTY.items()
        },
    }
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
