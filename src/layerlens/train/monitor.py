"""What training does inside the model: the same probe texts looked into again and again, and fresh answers beside them.

The probe is a fixed set of problems with the answers that the model gave before training, so that what moves between two
looks is the model. Every look leaves a Run in `monitor/step-<n>` and a row in `monitor/summary.jsonl`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import TrainerCallback

from layerlens.analysis import analyze
from layerlens.files import write_text
from layerlens.generation import Generation, generate_responses
from layerlens.lens import LensModel
from layerlens.models.internal import causal_lm
from layerlens.prompts import Sample
from layerlens.results import Run
from layerlens.types import Norm

FOLDER = "monitor"
PATH_POINTS = 32
"""Points along a response at which entropy paths of different lengths are compared."""

Row = dict[str, int | float | None]
Array = np.ndarray


class Monitor(TrainerCallback):  # type: ignore[misc]
    """Looks into the model before the first step, every `every` optimizer steps, and after the last.

    Args:
        prompts: the probe problems, without responses.
        tokenizer: the model's.
        layer: the layer whose relations to the layers above are watched (the first internal one, or the last).
        answer: text of a response to the answer it gives, or None; how the stability of answers is judged.
        report: takes a row of numbers to whatever logs training.
    """

    def __init__(
        self,
        out: Path,
        prompts: Sequence[Sample],
        tokenizer: Any,
        *,
        every: int,
        layer: int,
        norm: Norm,
        repeats: int,
        generation: Generation,
        answer: Callable[[str], str | None],
        report: Callable[[dict[str, float]], None],
    ):
        self.out, self.prompts, self.tokenizer = out / FOLDER, list(prompts), tokenizer
        self.every, self.layer, self.norm, self.repeats = every, layer, norm, repeats
        self.generation, self.answer, self.report = generation, answer, report
        self.start: dict[str, Tensor] = {}

    # ---- when

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            lens = self._lens(model)
            self._remember_start(lens, fresh=state.global_step == 0)
            if state.global_step == 0:
                self.look(lens, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and (state.global_step % self.every == 0 or state.global_step == state.max_steps):
            self.look(self._lens(model), state.global_step)

    # ---- what

    def look(self, lens: LensModel, step: int) -> Row:
        """Measures the model as it is, keeps the Run and the row, and reports the row."""
        folder = self.out / f"step-{step:06d}"
        if folder.exists():
            shutil.rmtree(folder)  # of a run that went on from an earlier checkpoint
        probe = self._probe(lens)
        run = analyze(lens, probe, norm=self.norm, kl_from_layer=self.layer, out=folder, progress=False)
        own = analyze(lens, probe, norm="final", sites="resid_post", layers=lens.n_layers, metrics=("entropy", "logp_next"), progress=False)
        row: Row = {"step": step, **self._inside(run), **_own_policy(own), **self._answers(lens), **self._drift(lens)}
        self._keep(row)
        self.report({f"monitor/{name}": value for name, value in row.items() if value is not None and name != "step"})
        return row

    def _inside(self, run: Run) -> Row:
        row: Row = {}
        entropy, change, similarity = run.mean("entropy")["mean"], run.mean("entropy_change")["mean"], run.mean("similarity")["mean"]
        divergence = run.mean("kl_from_layer")["mean"].sel(site="resid_post")
        for layer in run.layers:
            row[f"entropy/layer_{layer}"] = float(entropy.sel(layer=layer, site="resid_post"))
            for module in ("attn", "ffn"):
                row[f"entropy_change/{module}_{layer}"] = float(change.sel(layer=layer, module=module))
            if layer > self.layer:
                row[f"similarity/to_{layer}"] = float(similarity.sel(layer=self.layer, layer_to=layer))
                row[f"kl/to_{layer}"] = float(divergence.sel(layer=layer))
        above = [layer for layer in run.layers if layer > self.layer]
        if above:
            row["similarity/above"] = float(np.mean([row[f"similarity/to_{layer}"] for layer in above]))
            row["kl/above"] = float(np.mean([row[f"kl/to_{layer}"] for layer in above]))
        return row

    def _answers(self, lens: LensModel) -> Row:
        """Length of fresh answers, and how far repeated answers to one problem agree in answer and in entropy path."""
        asked = [prompt for prompt in self.prompts for _ in range(self.repeats)]
        samples = generate_responses(lens, asked, self.generation, range(len(asked)))
        lengths = [len(sample.token_ids) - sample.response_start for sample in samples]
        row: Row = {"response_length": float(np.mean(lengths))}
        if self.repeats < 2:
            return row
        run = analyze(
            lens, samples, norm="final", sites="resid_post", layers=lens.n_layers, metrics="entropy", rows="response", progress=False
        )
        groups = np.arange(len(asked)).reshape(-1, self.repeats)
        said = [self.answer(self.tokenizer.decode(sample.token_ids[sample.response_start :])) for sample in samples]
        paths = [entropy_path(run.sample(index)["entropy"].values[:, 0, 0]) for index in range(len(samples))]
        row["stability/answers"] = mean_over_pairs(groups, lambda a, b: float(said[a] is not None and said[a] == said[b]))
        row["stability/entropy_path"] = mean_over_pairs(groups, lambda a, b: _correlation(paths[a], paths[b]))
        return row

    def _drift(self, lens: LensModel) -> Row:
        """How far each layer's weights have moved since the start: the norm of the change over the norm at the start."""
        moved: dict[str, list[float]] = {}
        for name, part in _weights_by_part(lens):
            change = part.detach().cpu().double() - self.start[name].double()
            sums = moved.setdefault(name.split("|")[0], [0.0, 0.0])
            sums[0] += float(change.square().sum())
            sums[1] += float(self.start[name].double().square().sum())
        return {f"drift/{part}": (change / start) ** 0.5 for part, (change, start) in moved.items() if start > 0}

    # ---- what is kept

    def _lens(self, model: Any) -> LensModel:
        return LensModel.wrap(causal_lm(model), self.tokenizer, check=False)

    def _remember_start(self, lens: LensModel, fresh: bool) -> None:
        file = self.out / "start.pt"
        if fresh or not file.exists():
            self.start = {name: weight.detach().cpu().clone() for name, weight in _weights_by_part(lens)}
            self.out.mkdir(parents=True, exist_ok=True)
            torch.save(self.start, file)
        else:
            self.start = torch.load(file, weights_only=True)
        if fresh:
            (self.out / "probe.json").unlink(missing_ok=True)
            (self.out / "summary.jsonl").unlink(missing_ok=True)

    def _probe(self, lens: LensModel) -> list[Sample]:
        """The probe problems with the answers the model gave before training."""
        file = self.out / "probe.json"
        if not file.exists():
            answered = generate_responses(lens, self.prompts, self.generation, range(len(self.prompts)))
            write_text(file, json.dumps([sample.token_ids[sample.response_start :] for sample in answered]))
        answers = json.loads(file.read_text())
        return [replace(prompt, token_ids=(*prompt.token_ids, *answer)) for prompt, answer in zip(self.prompts, answers, strict=True)]

    def _keep(self, row: Row) -> None:
        file = self.out / "summary.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        rows = [old for old in rows if old["step"] < row["step"]] + [row]
        write_text(file, "".join(json.dumps(each) + "\n" for each in rows))


def entropy_path(entropy: Float[Array, " tokens"]) -> Float[Array, " points"]:
    """A response's entropies, read at `PATH_POINTS` evenly spaced places, so that responses of any length compare."""
    path: Array = np.interp(np.linspace(0, len(entropy) - 1, PATH_POINTS), np.arange(len(entropy)), entropy)
    return path


def mean_over_pairs(groups: Array, agree: Callable[[int, int], float]) -> float | None:
    """The mean of `agree` over all pairs within each row of `groups`; pairs without a value are left out, None if all are."""
    values = [agree(int(a), int(b)) for group in groups for a, b in combinations(group, 2)]
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None


def _correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")


def _own_policy(run: Run) -> Row:
    return {
        "policy_entropy": float(run.mean("entropy")["mean"].values[0, 0]),
        "perplexity": float(run.mean("perplexity")["mean"].values[0, 0]),
    }


def _weights_by_part(lens: LensModel) -> list[tuple[str, Tensor]]:
    """Every weight under `<layer_n, embedding, ...>|<its name>`."""
    parts = [(f"layer_{number}", block) for number, block in enumerate(lens.parts.blocks, 1)]
    inside = [(f"{part}|{name}", weight) for part, block in parts for name, weight in block.named_parameters()]
    embedding = lens.parts.model.get_input_embeddings().weight
    ends = [("embedding|weight", embedding)] + ([] if lens.parts.tied else [("unembedding|weight", lens.parts.unembedding)])
    return [*inside, *ends]
