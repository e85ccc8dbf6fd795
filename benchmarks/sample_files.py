"""What it costs to write and to read a sample's file, beside xarray's own way to the same file, through h5netcdf.

    python -m benchmarks.sample_files > benchmarks/sample_files.json

Every round writes and reads each sample once in each way, in turns; the best of all rounds counts, in processor time of one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from benchmarks.metric_costs import best_in_turns

from layerlens.prompts.sample import Sample
from layerlens.results.netcdf import read_netcdf, write_netcdf
from layerlens.results.schema import SampleResult, sample_dataset
from layerlens.types import READOUT_METRICS, SITES

SHAPES = {"12 layers, 100 tokens": (12, 100), "36 layers, 2,000 tokens": (36, 2000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = {
        **{package: version(package) for package in ("xarray", "h5netcdf", "h5py")},
        "python": platform.python_version(),
        "rounds": arguments.rounds,
        "seed": arguments.seed,
        "samples": {name: costs(*shape, arguments.rounds, arguments.seed) for name, shape in SHAPES.items()},
    }
    json.dump(result, sys.stdout, indent=1)
    print()


def costs(layers: int, tokens: int, rounds: int, seed: int) -> dict[str, Any]:
    """Seconds of writing and reading one sample, and how many times as long xarray's way takes."""
    rng = np.random.default_rng(seed)
    values = {name: rng.random((tokens, layers, len(SITES)), np.float32) for name in READOUT_METRICS}
    text = rng.integers(0, 1000, tokens).tolist()
    names = [f"t{token}" for token in text]
    sample = SampleResult(0, Sample(text, tokens // 4, "0"), np.arange(tokens), names, range(1, layers + 1), SITES, values=values)
    data = sample_dataset(sample, {"model": "synthetic", "norm": "none", "rows": "all"})
    with tempfile.TemporaryDirectory() as folder:
        files = {way: Path(folder) / f"{way}.nc" for way in ("ours", "xarray")}
        seconds = best_in_turns(
            {
                "write": partial(write_netcdf, data, files["ours"]),
                "xarray writes": partial(data.to_netcdf, files["xarray"], engine="h5netcdf"),
                "read": partial(_read, files["ours"]),
                "xarray reads": partial(_xarray_reads, files["ours"]),
            },
            rounds,
        )
        megabytes = files["ours"].stat().st_size / 1e6
    ratios = {f"xarray_{verb}_times": round(seconds[f"xarray {verb}s"] / seconds[verb], 2) for verb in ("write", "read")}
    return {"megabytes": round(megabytes, 2), **{f"{verb}_seconds": round(seconds[verb], 4) for verb in ("write", "read")}, **ratios}


def _read(file: Path) -> None:
    with h5py.File(file, "r") as opened:
        read_netcdf(opened)


def _xarray_reads(file: Path) -> None:
    with xr.open_dataset(file, engine="h5netcdf") as opened:
        opened.load()


if __name__ == "__main__":
    main()
