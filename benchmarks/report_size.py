"""How large the interactive page is, how long it takes to make, and how fast it answers a pointer.

    python -m benchmarks.report_size > benchmarks/report_size.json
    python -m benchmarks.report_size RUN      # the same of a run of yours, with its top tokens

Without a run a synthetic one is measured: 36 layers, 20 samples of 2,000 tokens, all sites, five likely tokens, vocabulary 151,936. Its
numbers wander over depth and tokens as a model's do, and half of its likely tokens stay the same from layer to layer; a real run's
compress a little better.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tests.support.browser import CHROMIUM, DRIVER, Page, browser

import layerlens as ll
from layerlens.prompts.sample import Sample
from layerlens.report import write_report
from layerlens.results import Run, SampleResult, join_samples, sample_dataset
from layerlens.storage.manifest import AnalysisConfig, ModelInfo, RunManifest, SampleSet
from layerlens.types import SITES

LAYERS, SAMPLES, TOKENS, VOCABULARY, TOP_K, SEED = 36, 20, 2000, 151_936, 5, 0
POINTED = 40


def synthetic() -> Run:
    """A run of the size that the page is made for."""
    rng = np.random.default_rng(SEED)
    return Run(join_samples([_sample(index, rng) for index in range(SAMPLES)]), _manifest())


def _sample(index: int, rng: np.random.Generator) -> xr.Dataset:
    shape = (TOKENS, LAYERS, len(SITES))
    depth = np.arange(1, LAYERS + 1)[None, :, None] / LAYERS
    token = rng.gamma(2.0, 0.7, (TOKENS, 1, 1))
    entropy = np.abs(token * (1.3 - depth) + 0.4 * rng.standard_normal(shape)).astype(np.float32)
    kl = np.abs(8 * (1 - depth) ** 1.5 + (1.2 - depth) * rng.standard_normal(shape)).astype(np.float32)
    logp = -np.abs(token * 0.5 + kl + 0.5 * rng.standard_normal(shape)).astype(np.float32)
    ids = np.minimum(rng.zipf(1.2, (TOKENS, LAYERS, len(SITES), TOP_K)), VOCABULARY - 1).astype(np.int32)
    for layer in range(1, LAYERS):
        stays = rng.random((TOKENS, len(SITES), TOP_K)) < 0.5
        ids[:, layer][stays] = ids[:, layer - 1][stays]
    shares = (rng.dirichlet(np.ones(TOP_K + 1), (TOKENS, LAYERS, len(SITES)))[..., :TOP_K]).astype(np.float32)
    similarity = np.exp(-np.abs(depth[0] - depth[0].T) * 2).astype(np.float32)
    values = {
        "entropy": entropy, "logp_next": logp, "kl_to_final": kl, "agrees": (kl < 1).astype(np.int8), "top_ids": ids,
        "top_probs": -np.sort(-shares, axis=-1), "similarity": similarity[None],
    }  # fmt: skip
    text = np.minimum(rng.zipf(1.2, TOKENS), VOCABULARY - 1)
    named = {int(token): f" t{token}" for token in np.unique(np.concatenate([text, ids.ravel()]))}
    result = SampleResult(
        index, Sample(text.tolist(), 100, f"sample {index}", "7"), np.arange(TOKENS), [named[token] for token in text.tolist()],
        range(1, LAYERS + 1), SITES, values=values, token_names=named,
    )  # fmt: skip
    return sample_dataset(result, {"norm": "final", "model": "synthetic-36", "rows": "all"})


def _manifest() -> RunManifest:
    model = ModelInfo("synthetic-36", "0", "bfloat16", n_layers=LAYERS, d_model=2560, vocabulary=VOCABULARY)
    return RunManifest(model=model, config=AnalysisConfig("final", top_k=TOP_K), samples=SampleSet(SAMPLES, "0"))


def measured(run: Run, folder: Path) -> dict[str, Any]:
    """Size, seconds to make and to open, and milliseconds from a pointer's move to the token's way through all layers."""
    start = time.perf_counter()
    file = write_report(run, out=folder / "report.html")
    found: dict[str, Any] = {"run": run.model, "layers": run.n_layers, "samples": run.n_samples, "tokens": int(run.data.sizes["token"])}
    found |= {"top_k": run.manifest.config.top_k, "megabytes": round(file.stat().st_size / 1e6, 2)}
    found["seconds_to_make"] = round(time.perf_counter() - start, 1)
    if CHROMIUM is None or DRIVER is None:
        return {**found, "browser": "not measured: no chromium and chromedriver"}
    with browser(folder) as page:
        found |= _in_browser(page, file)
    return found


def _in_browser(page: Page, file: Path) -> dict[str, Any]:
    page.size(1440)
    start = time.perf_counter()
    page.open(file, "tab=text")
    opened = time.perf_counter() - start
    text = page.js("LL.data.texts[0]")
    points = []
    chips = page.js("document.querySelectorAll('.chip').length")
    for number in range(POINTED):
        token = 101 + number * (min(chips, 1500) - 110) // POINTED if chips > 250 else 5 + number % (chips - 6)
        page.js(f"document.querySelectorAll('.chip')[{token}].dispatchEvent(new PointerEvent('pointerover', {{ bubbles: true }}))")
        page.wait(f"document.querySelector('aside .scroll').dataset.token === '{token}'")
        points.append(float(page.js("LL.pointerMs")))
    return {
        "seconds_to_open": round(opened, 1),
        "samples_shown": len(text["samples"]),
        "entropy_decimals": text["metrics"][0]["decimals"],
        "left_out": text["left_out"],
        "pointer_ms": {"first": round(points[0], 1), "median": round(statistics.median(points[1:]), 1), "largest": round(max(points), 1)},
    }


if __name__ == "__main__":
    runs = [ll.open_run(path) for path in sys.argv[1:]] or [synthetic()]
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps([measured(run, Path(temporary)) for run in runs], indent=2))
