"""What bfloat16 changes on real models: each model reads the same tokens in float32 and in bfloat16, and the means are compared.

    python -m benchmarks.half_precision FOLDER [FOLDER ...] [--out benchmarks/half_precision.json]

A folder holds one model. Its responses are sampled once, in float32, so that both dtypes read the same tokens; means are over
response tokens. Writes one JSON record per model and norm; `python -m benchmarks.architectures` puts them on its page.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import layerlens as ll
from layerlens.types import NORMS

PROMPTS = [
    "Why is the sky blue? Answer in two sentences.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "A train leaves at 9:40 and arrives at 11:05. How many minutes does the journey take?",
    "Translate into French: The library closes at six in the evening.",
]
NEW_TOKENS = 24


def read(folder: Path, dtype: str, samples: list[ll.Sample] | None, norm: str, out: Path) -> ll.Run:
    """A run of the samples in a dtype; without samples, of responses to `PROMPTS` that are sampled now."""
    lens = ll.load(folder, dtype=dtype)
    if samples is not None:
        return ll.analyze(lens, samples, norm=norm, rows="response", top_k=1, out=out)
    prompts = ll.read_prompts(PROMPTS, lens)
    return ll.analyze(lens, prompts, norm=norm, rows="response", top_k=1, generate=ll.Generation(NEW_TOKENS, seed=0), out=out)


def texts(run: ll.Run) -> list[ll.Sample]:
    """The samples of a run, with the responses that were sampled."""
    owner, ids = run.data["text_sample"].values, run.data["text_token_id"].values
    starts = run.data["response_start"].values
    return [ll.Sample(ids[owner == index].tolist(), int(start)) for index, start in enumerate(starts)]


def record(exact: ll.Run, half: ll.Run) -> dict[str, Any]:
    """The largest change, over layers, of each mean curve at resid_post; of entropy at every site as well."""

    def change(name: str, site: str | None = "resid_post") -> float:
        a, b = (run.mean(name)["mean"] for run in (exact, half))
        return float(abs(b - a).max() if site is None else abs(b - a).sel(site=site).max())

    at_post = [run.data.sel(site="resid_post") for run in (exact, half)]
    row = {
        "model": exact.model,
        "norm": exact.norm,
        "layers": exact.n_layers,
        "response_tokens": int(exact.data["in_response"].sum()),
        "entropy": change("entropy"),
        "entropy_all_sites": change("entropy", None),
        "entropy_single_token": float(abs(at_post[1]["entropy"] - at_post[0]["entropy"]).max()),
        "kl_to_final": change("kl_to_final"),
        "logp_next": change("logp_next"),
        "logp_next_largest": float(-exact.mean("logp_next")["mean"].sel(site="resid_post").min()),
        "agrees": change("agrees"),
        "same_argmax": float((at_post[0]["top_ids"] == at_post[1]["top_ids"]).mean()),
    }
    for module in ("attn", "ffn", "layer"):
        a, b = (run.entropy_change(module) for run in (exact, half))
        keep = exact.data["in_response"].values.astype(bool)
        owner = exact.data["sample"].values[keep]
        gap = (b - a).values[keep]
        means = np.stack([gap[owner == sample].mean(0) for sample in np.unique(owner)]).mean(0)
        row[f"entropy_change_{module}"] = float(abs(means).max())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/half_precision.json"))
    args = parser.parse_args()
    rows = []
    for folder in args.folders:
        with tempfile.TemporaryDirectory() as scratch:
            samples = None
            for norm in NORMS:
                exact = read(folder, "float32", samples, norm, Path(scratch) / f"float32-{norm}")
                samples = texts(exact)
                rows.append(record(exact, read(folder, "bfloat16", samples, norm, Path(scratch) / f"bfloat16-{norm}")))
                print(json.dumps(rows[-1]), flush=True)
    about = {"new_tokens": NEW_TOKENS, "prompts": len(PROMPTS), "torch": torch.__version__, "transformers": transformers.__version__}
    args.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
