"""What it takes to open a run of very many samples, to choose a layer of it, to compare and to draw it.

    python -m benchmarks.many_samples > benchmarks/many_samples.json

A synthetic run is written as an analysis writes it: 36 layers, all seven sites, entropy, log-probability, KL and agreement of a few
response tokens of each sample, in files of their own with means beside them; beyond DISTINCT samples the numbers come again, under
another sample's number, since writing takes longest. Each step is then a process of its own, of which seconds
and the kernel's high-water mark of memory are reported (Linux only), torch and the other libraries included. Other work on the machine
changes the seconds, and not the memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from layerlens.prompts.sample import Sample
from layerlens.results import RunFolder, SampleResult, sample_dataset
from layerlens.results.means import SampleMeans, write_means
from layerlens.results.netcdf import read_netcdf, variables_of
from layerlens.results.seal import DIGESTS, NUMBER, RUN, sealed
from layerlens.storage.manifest import AnalysisConfig, ModelInfo, RunManifest, SampleSet
from layerlens.types import SITES

LAYERS, TOKENS, VOCABULARY, SEED = 36, 8, 151_936, 0
DISTINCT = 5_000
"""Samples with numbers of their own."""
WRITERS = 4
"""Processes that write the run."""

STEPS = {
    "open_run": "import layerlens as ll; run = ll.open_run(RUN); print(run.n_samples, run.complete)",
    "select": "layerlens select RUN --json",
    "compare": "layerlens compare RUN RUN --json",
    "plot": "layerlens plot RUN --kind sites,flow,ffn-change,kl --out OUT",
    "check": "layerlens check RUN",
}
"""What is measured, by name: Python, or a command."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="keep the run here, and go on with one that is here, or measure it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = (args.folder or Path(temporary)) / "run"
        start = time.perf_counter()
        there = (run / "run.json").exists() and len(RunFolder(run).done()) == args.samples
        if not there:
            write_run(run, args.samples)
        found: dict[str, Any] = {
            "samples": args.samples,
            "tokens_per_sample": TOKENS,
            "layers": LAYERS,
            "megabytes_on_disk": round(sum(file.stat().st_size for file in run.rglob("*")) / 1e6),
            "seconds_to_write": None if there else round(time.perf_counter() - start, 1),
            "python": platform.python_version(),
            "steps": {name: measured(step, run, Path(temporary) / "figures") for name, step in STEPS.items()},
        }
    print(json.dumps(found, indent=2))


def write_run(path: Path, samples: int) -> None:
    """A run whose entropies fall with depth, each sample a little apart; samples that are there already are left as they are."""
    model = ModelInfo("synthetic-36", "0", "bfloat16", n_layers=LAYERS, d_model=2560, vocabulary=VOCABULARY)
    folder = RunFolder.begin(
        path, RunManifest(model=model, config=AnalysisConfig("final", rows="response"), samples=SampleSet(samples, "0"))
    )
    with ProcessPoolExecutor(WRITERS) as pool:
        for write, numbers in ((_write_samples, range(min(samples, DISTINCT))), (_write_copies, range(DISTINCT, samples))):
            list(pool.map(write, [(folder.path, numbers[first::WRITERS]) for first in range(WRITERS)]))


def _write_samples(share: tuple[Path, range]) -> None:
    path, numbers = share
    folder = RunFolder(path)
    depth = np.arange(1, LAYERS + 1)[None, :, None] / LAYERS
    rows = np.arange(3, 3 + TOKENS)
    for index in numbers:
        if folder.has(index):
            continue
        rng = np.random.default_rng((SEED, index))
        noise = rng.standard_normal((4, TOKENS, LAYERS, len(SITES)))
        kl = np.abs(8 * (1 - depth) ** 1.5 * (1 + 0.2 * noise[0])).astype(np.float32)
        values = {
            "entropy": np.abs((1 + 0.1 * rng.standard_normal()) * (5 - 4 * depth) + 0.4 * noise[1]).astype(np.float32),
            "logp_next": (-np.abs(2 + kl + 0.5 * noise[2])).astype(np.float32),
            "final_logp_next": (-np.abs(2 + 0.5 * noise[2][:, 0, 0])).astype(np.float32),
            "kl_to_final": kl,
            "agrees": (kl < np.abs(2 + noise[3])).astype(np.int8),
        }
        text = rng.integers(0, VOCABULARY, 4 + TOKENS).tolist()
        result = SampleResult(
            index, Sample(text, 4, f"{index}"), rows, [f"t{text[row]}" for row in rows], range(1, LAYERS + 1), SITES, values=values
        )
        folder.write(index, sample_dataset(result, {"norm": "final", "model": "synthetic-36", "rows": "response"}))


def _write_copies(share: tuple[Path, range]) -> None:
    """Each sample as that of DISTINCT samples before, under its own number and id."""
    path, numbers = share
    folder = RunFolder(path)
    for index in numbers:
        if folder.has(index):
            continue
        shutil.copy(folder.file(index % DISTINCT), folder.file(index))
        with h5py.File(folder.file(index), "r+") as file:
            for name, values in variables_of(file).items():
                if name in ("sample", "sample_index", "text_sample"):
                    values[...] = index
            file["sample_id"][...] = f"{index}"
            plain = read_netcdf(file)
            plain.attrs = {name: value for name, value in plain.attrs.items() if name not in (RUN, NUMBER, DIGESTS)}
            seal = sealed(plain, folder.identity, index).attrs
            file.attrs[NUMBER], file.attrs[DIGESTS] = np.array([index]), seal[DIGESTS]
        with folder.reading_means(index % DISTINCT) as means:
            facts = replace(means.facts, once={**means.facts.once, "sample_index": index, "sample_id": f"{index}"})
            copied = SampleMeans(facts, means.layout, {name: means.read(name) for name in means.names()})
        write_means(folder.means_file(index), copied, folder.identity, index)


def measured(step: str, run: Path, figures: Path) -> dict[str, float]:
    """Seconds and peak memory of a step, taken by a process that has nothing else to do."""
    if step.startswith("layerlens "):
        words = [{"RUN": str(run), "OUT": str(figures)}.get(word, word) for word in step.split()]
        command = [sys.executable, "-m", *words]
    else:
        command = [sys.executable, "-c", step.replace("RUN", repr(str(run)))]
    counted = f"import resource, subprocess, sys; subprocess.run({command!r}, check=True, stdout=subprocess.DEVNULL); "
    counted += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", counted], check=True, capture_output=True, text=True)
    return {"seconds": round(time.perf_counter() - start, 1), "peak_mib": round(int(done.stdout.split()[-1]) / 1024)}


if __name__ == "__main__":
    main()
