"""Do the intervals of drawn rows hold what they say, stopping early included; and what does stopping save?

    python benchmarks/coverage.py > benchmarks/coverage.json

Simulated data sets have a known population mean of ΔS at each of 12 layers, spread between samples (skewed) and autocorrelated,
heavy-tailed spread within them, both of the size seen on the bundled models. Rows are drawn, judged and stopped by the package's own
code (`draw_rows`, `run_until_stopped`); the intervals are `Run.mean`'s. Reported are the share of 95% intervals, over layers and data
sets, that hold the population mean, how often the chosen layer is the one that all rows give, and the share of rows that were decoded.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

import layerlens as ll
from layerlens.analysis.row_sample import draw_rows
from layerlens.analysis.stopping import run_until_stopped
from layerlens.metrics.intervals import interval
from layerlens.results import Run
from layerlens.storage.manifest import AnalysisConfig, ModelInfo, RunManifest, SampleSet

CHANGE = np.array([0.9, 1.6, 1.4, 1.1, 0.8, 0.5, 0.03, -0.05, 0.02, -0.4, -1.0, -1.6])
"""Population mean of the FFN's ΔS at layers 1...12, nats; exploration ends at layer 6."""

BETWEEN, WITHIN, MEMORY = 0.5, 2.5, 0.8
"""Standard deviation of sample means and of tokens around them, nats; correlation of a token with the next."""


class DataSet:
    """One simulated data set: the true ΔS of every row, of which a Run shows those that are drawn."""

    def __init__(self, samples: int, seed: int):
        rng = np.random.default_rng(seed)
        self.seed, n_layers = seed, len(CHANGE)
        self.lengths = rng.integers(60, 400, samples)
        common = rng.exponential(1.0, (samples, 1)) - 1
        offset = BETWEEN * (0.6 * common + 0.8 * rng.standard_normal((samples, n_layers)))
        noise = rng.laplace(scale=np.sqrt(0.5), size=(samples, self.lengths.max(), n_layers))
        for t in range(1, noise.shape[1]):
            noise[:, t] = MEMORY * noise[:, t - 1] + np.sqrt(1 - MEMORY**2) * noise[:, t]
        self.change = CHANGE + offset[:, None] + WITHIN * noise

    def run(self, tokens: int) -> Run:
        """The run with up to this many tokens of each sample."""
        parts = []
        for index, length in enumerate(self.lengths):
            rows = np.arange(length)
            # a sample's number decides its draw: every data set has its own numbers
            drawn, weight = draw_rows(rows, np.ones(length, bool), tokens, self.seed * 1000 + index)
            parts.append((np.full(len(drawn), index), drawn, weight, self.change[index, drawn]))
        sample, position, weight, change = (np.concatenate(part) for part in zip(*parts, strict=True))
        samples, n_layers = len(self.lengths), len(CHANGE)
        data = xr.Dataset(
            {"entropy": (("token", "layer", "site"), np.stack([np.full_like(change, 5.0), 5.0 + change], axis=-1))},
            {
                "sample": ("token", sample),
                "position": ("token", position),
                "weight": ("token", weight),
                "in_response": ("token", np.ones(len(sample), np.int8)),
                "sample_index": ("sample", np.arange(samples)),
                "response_start": ("sample", np.ones(samples, int)),
                "layer": np.arange(1, n_layers + 1),
                "site": ["ffn_in", "ffn_out"],
            },
            {"tokens_per_sample": tokens},
        )
        model = ModelInfo("simulated", "", "float64", n_layers=n_layers)
        manifest = RunManifest(model=model, config=AnalysisConfig("none"), samples=SampleSet(samples, ""))
        return Run(data, manifest)


def whole(data: DataSet) -> tuple[Run, str | None]:
    return data.run(int(data.lengths.max())), "all rows"


def eight(data: DataSet) -> tuple[Run, str | None]:
    return data.run(8), "8 tokens"


def until_layer(data: DataSet) -> tuple[Run, str | None]:
    run, stopping = run_until_stopped(data.run)
    return run, stopping.ending


def until_precise(data: DataSet) -> tuple[Run, str | None]:
    """The precision is in reach: the widest interval of all rows is about three quarters of it."""
    run, stopping = run_until_stopped(data.run, 2.2 / np.sqrt(len(data.lengths)))
    return run, stopping.ending


WAYS: dict[str, Callable[[DataSet], tuple[Run, str | None]]] = {
    "all rows": whole,
    "8 tokens": eight,
    "auto, layer": until_layer,
    "auto, precision": until_precise,
}


def simulate(samples: int, replicates: int, ways: tuple[str, ...] = tuple(WAYS), seed: int = 0) -> dict[str, dict[str, Any]]:
    """Coverage and savings of each way of drawing, over data sets of so many samples."""
    seen: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for replicate in range(replicates):
        data = DataSet(samples, seed + replicate)
        complete, _ = whole(data)
        reference = ll.select_layer(complete).layer
        for way in ways:
            run, ending = WAYS[way](data)
            point, means = run.bootstrap("entropy_change")
            draws, middle = means.sel(module="ffn").values, point.sel(module="ffn").values
            low, high = interval(draws, middle, samples)
            narrow_low, narrow_high = np.quantile(draws, [0.025, 0.975], axis=0)
            seen[way].append(
                {
                    "covered": ((low <= CHANGE) & (high >= CHANGE)).mean(),
                    "percentile": ((narrow_low <= CHANGE) & (narrow_high >= CHANGE)).mean(),
                    "error": middle - CHANGE,
                    "same": ll.select_layer(run).layer == reference,
                    "decoded": run.data.sizes["token"] / complete.data.sizes["token"],
                    "ending": ending,
                }
            )
    return {way: _summary(rows) for way, rows in seen.items()}


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over data sets, with a standard error where a claim rests on it."""
    covered = np.array([row["covered"] for row in rows])
    endings = [row["ending"] for row in rows]
    stable = [row["same"] for row in rows if row["ending"] == "layer"]
    return {
        "coverage": round(float(covered.mean()), 4),
        "coverage_standard_error": round(float(covered.std(ddof=1) / np.sqrt(len(rows))), 4),
        "coverage_of_percentiles": round(float(np.mean([row["percentile"] for row in rows])), 4),
        "bias": round(float(np.mean([row["error"] for row in rows])), 4),
        "same_layer_as_all_rows": round(float(np.mean([row["same"] for row in rows])), 4),
        **({"same_layer_when_stable": round(float(np.mean(stable)), 4)} if stable else {}),
        "rows_decoded": round(float(np.mean([row["decoded"] for row in rows])), 4),
        "endings": {ending: round(endings.count(ending) / len(rows), 3) for ending in sorted(set(endings))},
    }


def models(count: int) -> dict[str, list[dict[str, Any]]]:
    """What stopping saves on the bundled models: each goal against every response row decoded."""
    import torch

    from layerlens.models import generate_responses
    from layerlens.storage.bundled import MODELS, bundled_prompts

    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in MODELS:
        lens = ll.load(name, dtype="float32")
        prompts = ll.read_prompts(bundled_prompts(), lens, limit=count)
        samples = generate_responses(lens, prompts, ll.Generation(max_new_tokens=256, seed=0), range(count))
        complete = ll.analyze(lens, samples, rows="response")
        choice = ll.select_layer(complete)
        mean = complete.mean("entropy_change")
        rows = [{"goal": "every row", "layer": choice.layer, "frequency": choice.frequency, "rows": complete.data.sizes["token"]}]
        for precision in (None, 0.4, 0.3, 0.25):
            run = ll.analyze(lens, samples, rows="response", tokens_per_sample="auto", precision=precision)
            drawn, stopping = ll.select_layer(run), run.manifest.stopping
            inside = (mean["mean"] >= run.mean("entropy_change")["low"]) & (mean["mean"] <= run.mean("entropy_change")["high"])
            rows.append(
                {
                    "goal": "layer" if precision is None else f"±{precision} nats",
                    "layer": drawn.layer,
                    "frequency": drawn.frequency,
                    "rows": stopping.rows_decoded,
                    "share": round(stopping.rows_decoded / stopping.rows, 3),
                    "tokens_per_sample": stopping.tokens_per_sample,
                    "ending": stopping.ending,
                    "half_width": round(stopping.half_width, 3),
                    "intervals_that_hold_the_mean_of_all_rows": round(float(inside.mean()), 3),
                }
            )
        found[name] = rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--models", type=int, default=48, help="problems for the bundled models; 0 leaves them out")
    args = parser.parse_args()
    start = time.perf_counter()
    result: dict[str, Any] = {"replicates": args.replicates, "seed": 0, "between": BETWEEN, "within": WITHIN, "memory": MEMORY}
    result["simulated"] = {str(samples): simulate(samples, args.replicates) for samples in args.samples}
    result["bundled"] = models(args.models) if args.models else {}
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
