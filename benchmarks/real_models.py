"""What rules, norms and lenses say of the bundled models and of three real ones, and writes docs/real-models.md.

    python -m benchmarks.real_models MATH500 [--real ~/.cache/layerlens-real] [--runs real-models]
    python -m benchmarks.real_models --check

MATH500 is a parquet file of problems for the real models, MODELS of which lie in the folder `--real`; the bundled models answer bundled
problems. Run folders and lenses are kept in `--runs`, so a command that was stopped continues. Writes `real_models.json` beside
this file, the page that `real_models_page.py` makes of it, and its figures; `--check` says whether page and JSON agree, without a model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from benchmarks.real_models_page import KINDS, figures, page

import layerlens as ll
from layerlens.cli.tables import records
from layerlens.models import LensModel, generate_responses
from layerlens.models.lenses.fit_jacobian import fit_jacobian
from layerlens.models.lenses.fit_tuned import TunedSettings, fit_tuned
from layerlens.selection.comparison import compare_runs
from layerlens.selection.measures import SETTLING
from layerlens.selection.words import layer_ranges
from layerlens.storage.bundled import bundled_prompts
from layerlens.types import NORMS, READOUT_METRICS

SITES = ("resid_pre", "ffn_in", "ffn_out", "resid_post")
"""What the rules and the comparison read."""
FACTOR = 4.0
"""By which the gain of each FFN's norm is divided and the weights behind it are multiplied; no output of the model changes."""
DEPTHS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Relative depths at which skill is shown."""
RECORD = Path(__file__).with_name("real_models.json")
DOCS = Path(__file__).parent.parent / "docs" / "real-models.md"
LENS_TEXTS, LENS_STEPS = 64, 100
"""Prompts and steps of a tuned lens; the prompts that are analysed are not among them."""
LENSES = ("tuned", "jacobian")


@dataclass(frozen=True)
class Fit:
    """How much the lenses of a model are fitted on.

    Attributes:
        rows: tokens in each step of the tuned lens.
        texts, tokens: prompts of the Jacobian lens, and how many tokens of each at most: it takes d backward passes for each.
    """

    rows: int = 64
    texts: int = 8
    tokens: int = 64


@dataclass(frozen=True)
class Case:
    """A model and how much of it is measured.

    Attributes:
        name: bundled name, or folder of a real model; real: whether it is one.
        prompts, new_tokens: how many problems it answers, in how many tokens at most.
        fit: of its lenses.
        twin: whether its rescaled twin is read.
    """

    name: str
    real: bool
    prompts: int
    new_tokens: int
    fit: Fit = Fit()
    twin: bool = True

    def runs(self) -> list[str]:
        """The folders of its runs."""
        kinds = [*NORMS, *LENSES, *(("rescaled-none", "rescaled-final") if self.twin else ())]
        return [f"{self.name}-{kind}" for kind in kinds]


LITTLE = Fit(rows=16, texts=4, tokens=32)
"""For models that take an hour of a CPU otherwise."""
CASES = (
    Case("tiny-qwen3", False, 32, 256),
    Case("tiny-llama", False, 32, 256),
    Case("smollm2-135m-instruct", True, 8, 32),
    Case("qwen2.5-coder-0.5b-instruct", True, 8, 32, LITTLE, twin=False),
    Case("gemma3-270m", True, 8, 32, LITTLE, twin=False),
)


def measure(case: Case, prompts: Path, real: Path, runs: Path) -> None:
    """Analyses what is not analysed yet; runs that are complete are taken as they are."""
    if all((runs / name / "done").exists() for name in case.runs()):
        return
    model = ll.load(real / case.name if case.real else case.name, dtype="float32")
    read = ll.read_prompts(prompts if case.real else bundled_prompts(), model, limit=case.prompts + LENS_TEXTS)
    answered = generate_responses(model, read[: case.prompts], ll.Generation(case.new_tokens, seed=0), range(case.prompts))
    for norm in NORMS:
        # settling depth, one of the rules, needs the divergence and norm final
        metrics = (*READOUT_METRICS, "js_to_final") if norm == "final" else READOUT_METRICS
        _analyze(model, answered, runs / f"{case.name}-{norm}", norm=norm, sites=SITES, metrics=metrics)
    texts = [sample.token_ids for sample in read[case.prompts :]]
    tuned, jacobian = runs / f"{case.name}-lens", runs / f"{case.name}-jacobian-lens.pt"
    if not (runs / f"{case.name}-tuned" / "done").exists():
        fit_tuned(model, texts, tuned, TunedSettings(steps=LENS_STEPS, rows=case.fit.rows, max_tokens=128))
    if not jacobian.exists():
        fit_jacobian(model, texts[: case.fit.texts], jacobian, max_tokens=case.fit.tokens)
    for kind, lens in zip(LENSES, (tuned, jacobian), strict=True):
        # attn_in and ffn_in are no residual vectors, so a fitted lens does not read them
        streams = ("resid_pre", "ffn_out", "resid_post")
        folder = runs / f"{case.name}-{kind}"
        _analyze(model, answered, folder, norm="final", lens=f"{kind}:{lens}", sites=streams, metrics=READOUT_METRICS)
    if case.twin:
        rescale_ffn_norms(model, FACTOR)
        for norm in ("none", "final"):
            folder = runs / f"{case.name}-rescaled-{norm}"
            _analyze(model, answered, folder, norm=norm, sites=("ffn_in", "ffn_out"), metrics=("entropy",))


def _analyze(model: LensModel, samples: list[ll.Sample], out: Path, **settings: Any) -> None:
    if not (out / "done").exists():
        start = time.perf_counter()
        ll.analyze(model, samples, rows="response", out=out, **settings)
        (out / "done").touch()
        print(f"{out.name}: {time.perf_counter() - start:.0f} s", flush=True)


@torch.no_grad()
def rescale_ffn_norms(model: LensModel, factor: float) -> None:
    """Divides the gain of each FFN's norm by a factor that the weights behind it make up for: no output changes."""
    network: Any = model.parts.model
    for block in network.model.layers:
        gemma = hasattr(block, "pre_feedforward_layernorm")
        norm = block.pre_feedforward_layernorm if gemma else block.post_attention_layernorm
        offset = 1.0 if gemma else 0.0  # Gemma's gain is one more than its weight
        norm.weight.copy_((norm.weight + offset) / factor - offset)
        block.mlp.gate_proj.weight *= factor
        block.mlp.up_proj.weight *= factor


def read_runs(case: Case, runs: Path) -> dict[str, ll.Run]:
    return {name.removeprefix(f"{case.name}-"): ll.open_run(runs / name) for name in case.runs()}


def summary(case: Case, runs: dict[str, ll.Run]) -> dict[str, Any]:
    """What the page says of one model."""
    final = runs["final"]
    return {
        "real": case.real,
        "family": final.manifest.model.architecture,
        "layers": final.n_layers,
        "tokens": int(final.row_mask("response").sum()),
        "runs": {kind: _choice(runs[kind]) for kind in KINDS if kind in runs},
        "scale": _scale(runs["none"], runs["matched"]),
        "rescaled": {norm: _rescaled(runs[norm], runs[f"rescaled-{norm}"]) for norm in ("none", "final") if case.twin},
        "fit": asdict(case.fit),
        "lens": {lens: _skill_by_depth(runs["final" if lens == "logit" else lens]) for lens in ("logit", *LENSES)},
    }


def _choice(run: ll.Run) -> dict[str, Any]:
    choice = ll.select_layer(run)
    chosen = choice.candidates[choice.candidates["chosen"]]
    rules = {
        row["rule"]: {"layer": row["layer"], "frequency": row["frequency"], "open": row["open"]}
        for row in records(chosen[["rule", "layer", "frequency", "open"]])
    }
    table = ll.compare([run]).iloc[0]
    return {
        "usable": "unknown" if choice.usable is None else layer_ranges(choice.usable),
        "rules": rules,
        "layer": choice.layer,
        "rule": choice.rule,
        "recommendation": choice.recommendation.splitlines(),
        "diagnosis": choice.diagnosis,
        "last_agreement": float(table["last_agreement"]),
        "last_skill": float(table["last_skill"]),
        "final_skill": choice.final_skill,
    }


def _scale(none: ll.Run, matched: ll.Run) -> dict[str, Any]:
    parts = ll.scale_shape(none, matched).sel(module="ffn")
    change, shape, scale = (parts["mean"].sel(part=part).values for part in ("change", "shape", "scale"))
    return {
        "rank_correlation": float(parts["rank_correlation"]),
        "share": float(abs(scale).sum() / (abs(scale).sum() + abs(shape).sum())),
        "same_sign": int((np.sign(change) == np.sign(scale)).sum()),
    }


def _rescaled(before: ll.Run, after: ll.Run) -> dict[str, Any]:
    named = [ll.select_layer(run, "boundary") for run in (before, after)]
    texts = ["none" if choice.layer is None else f"{choice.layer}{' open' if choice.outcome == 'open' else ''}" for choice in named]
    means = [run.mean("entropy_change", resamples=2)["mean"].sel(module="ffn").values for run in (before, after)]
    return {"before": texts[0], "after": texts[1], "change": float(abs(means[1] - means[0]).max())}


def _skill_by_depth(run: ll.Run) -> list[float]:
    mean = run.mean("skill", resamples=2)["mean"].sel(site="resid_post").values
    return [float(mean[max(1, round(depth * run.n_layers)) - 1]) for depth in DEPTHS]


def settling(runs: dict[str, dict[str, ll.Run]]) -> dict[str, Any]:
    """How late the models settle, and the verdicts on the bundled and on the real ones."""
    found: dict[str, Any] = {"settling": {}, "verdicts": []}
    for real in (False, True):
        names = [case.name for case in CASES if case.real == real]
        compared = compare_runs([runs[name]["final"] for name in names])
        for name, row in zip(names, records(compared.table), strict=True):
            found["settling"][name] = {
                measure: {"value": row[measure], "low": row[f"{measure}_low"], "high": row[f"{measure}_high"]} for measure in SETTLING
            }
        found["verdicts"] += [text for text in compared.verdict if " settle" in text]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=Path, nargs="?", help="a parquet file with the problems of MATH500")
    parser.add_argument("--real", type=Path, default=Path("~/.cache/layerlens-real").expanduser(), help="folder of the real models")
    parser.add_argument("--runs", type=Path, default=Path("real-models"), help="folder of the run folders")
    parser.add_argument("--check", action="store_true", help="only say whether the page is what the JSON says")
    args = parser.parse_args()
    if args.check:
        sys.exit(0 if DOCS.read_text(encoding="utf-8") == page(json.loads(RECORD.read_text(encoding="utf-8"))) else f"{DOCS} is stale")
    if args.prompts is None:
        parser.error("a parquet file of problems is needed")
    for case in CASES:
        measure(case, args.prompts, args.real, args.runs)
    runs = {case.name: read_runs(case, args.runs) for case in CASES}
    models = {case.name: summary(case, runs[case.name]) for case in CASES}
    settled = settling(runs)
    for name, values in settled["settling"].items():
        models[name]["settling"] = values
    found = {
        "torch": torch.__version__, "transformers": transformers.__version__, "bundled_prompts": CASES[0].prompts,
        "bundled_tokens": CASES[0].new_tokens, "real_prompts": CASES[-1].prompts, "real_tokens": CASES[-1].new_tokens, "factor": FACTOR,
        "lens_texts": LENS_TEXTS, "lens_steps": LENS_STEPS,
        "depths": DEPTHS, "models": models, "verdicts": settled["verdicts"],
    }  # fmt: skip
    RECORD.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    DOCS.write_text(page(found), encoding="utf-8")
    figures(runs, DOCS.parent.parent / "figures")


if __name__ == "__main__":
    main()
