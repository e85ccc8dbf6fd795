"""What each metric on request costs, beside the readout of the default ones (entropy, log-probability, KL and agreement).

    python -m benchmarks.metric_costs > benchmarks/metric_costs.json

Every round reads the same states once for each metric, in turns; the best of all rounds counts, in processor time of one thread, which
other work on the machine disturbs least. The states are a stack as the analysis hands it to the readout.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from layerlens.analysis.plan import READOUT_FIELDS
from layerlens.decode import readout
from layerlens.decode.choose import processor_name
from layerlens.metrics.settling import agreement_depth, settling_depth
from layerlens.types import READOUT_METRICS, REQUESTED_METRICS

SHAPES = {"SmolLM2-135M": (576, 49_152), "Qwen3-0.6B": (1024, 151_936)}
"""d_model and vocabulary."""

STATES, ROWS = 32, 128
"""Stacked states (sites of layers) and tokens of each."""

BACKENDS = ("native-float32", "torch-onednn")

DEPTH_TOKENS, DEPTH_LAYERS = 4096, 36
"""Tokens and layers of which a depth is derived."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    readouts = {
        name: {backend: readout_costs(*shape, backend, arguments.rounds, arguments.seed) for backend in BACKENDS}
        for name, shape in SHAPES.items()
    }
    result = {
        "processor": processor_name(torch.device("cpu")),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rounds": arguments.rounds,
        "seed": arguments.seed,
        "states": STATES,
        "rows": ROWS,
        "readouts": readouts,
        "derived_seconds": derived_costs(arguments.rounds, arguments.seed),
    }
    json.dump(result, sys.stdout, indent=1)
    print()


def readout_costs(d_model: int, vocabulary: int, backend: str, rounds: int, seed: int) -> dict[str, float]:
    """Seconds of the default metrics, and times as long as these that they take with each metric on request, and with all."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(STATES, ROWS, d_model, generator=generator)
    weight = torch.randn(vocabulary, d_model, generator=generator) * (2 / d_model**0.5)
    targets = torch.randint(0, vocabulary, (ROWS,), generator=generator)
    sets = {"default": (), **{name: (name,) for name in REQUESTED_METRICS}, "all": REQUESTED_METRICS}
    want = {name: [READOUT_FIELDS[metric] for metric in (*READOUT_METRICS, *more)] for name, more in sets.items()}
    read = partial(readout, hidden, weight, targets=targets, final=hidden[-1].clone(), backend=backend)
    seconds = best_in_turns({name: partial(read, want=fields) for name, fields in want.items()}, rounds)
    ratios = {name: round(value / seconds["default"], 3) for name, value in seconds.items() if name != "default"}
    return {"default_seconds": round(seconds["default"], 3), **ratios}


def derived_costs(rounds: int, seed: int) -> dict[str, float]:
    """Seconds to derive a depth of DEPTH_TOKENS tokens at DEPTH_LAYERS layers."""
    rng = np.random.default_rng(seed)
    js = rng.random((DEPTH_TOKENS, DEPTH_LAYERS), np.float32)
    depths: dict[str, Callable[[], object]] = {
        "settling_depth": partial(settling_depth, js),
        "agreement_depth": partial(agreement_depth, (js < 0.5).astype(np.int8)),
    }
    return {name: round(value, 5) for name, value in best_in_turns(depths, rounds).items()}


def best_in_turns(timed: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The shortest processor time of each, in `rounds` rounds after one to warm up."""
    seconds = dict.fromkeys(timed, float("inf"))
    for turn in range(rounds + 1):
        for name, run in timed.items():
            start = time.process_time()
            run()
            if turn:
                seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


if __name__ == "__main__":
    main()
