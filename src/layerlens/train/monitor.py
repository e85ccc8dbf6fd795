"""What training does inside the model: the same probe texts looked into again and again, and fresh answers beside them.

The probe is a fixed set of problems with the answers that the model gave before training, so that what moves between two
looks is the model. Every look leaves a Run in `monitor/step-<n>` and a row in `monitor/summary.jsonl`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from layerlens.analysis.pipeline import analyze
from layerlens.errors import TrainingError
from layerlens.models import Generation, LensModel, generate_responses
from layerlens.prompts.sample import Sample
from layerlens.results.training_log import FOLDER, HIGH, LOW, SUMMARY
from layerlens.storage.files import write_text
from layerlens.train.readings import Row, correlation, drift, entropy_path, inside, own_policy, per_pair, per_problem, weights_by_part
from layerlens.train.whole import Whole
from layerlens.types import Norm


class Monitor(TrainerCallback):  # type: ignore[misc]
    """Looks into the model before the first step, every `every` optimizer steps, after those in `also`, and after the last.

    The main process looks; the others wait. Where they share the weights out among them, all help to gather these first.

    Args:
        prompts: the probe problems, without responses.
        tokenizer: the model's.
        whole: hands out the model with all its weights.
        layer: the layer whose relations to the layers above are watched.
        answer: text of a response to the answer it gives, or None; how the stability of answers is judged.
        report: takes a row of numbers to whatever logs training.
    """

    def __init__(
        self,
        out: Path,
        prompts: Sequence[Sample],
        tokenizer: Any,
        whole: Whole,
        *,
        every: int,
        also: Collection[int],
        layer: int,
        norm: Norm,
        repeats: int,
        generation: Generation,
        answer: Callable[[str], str | None],
        report: Callable[[dict[str, float]], None],
    ):
        self.out, self.prompts, self.tokenizer, self.whole = out / FOLDER, list(prompts), tokenizer, whole
        self.every, self.also, self.layer, self.norm, self.repeats = every, also, layer, norm, repeats
        self.generation, self.answer, self.report = generation, answer, report
        self.start: dict[str, Tensor] = {}
        self.probe: list[Sample] = []

    # ---- when

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        network = self.whole.on_main(model)
        if network is not None:
            lens = self._lens(network)
            self._remember_start(lens, fresh=state.global_step == 0)
            self.probe = self._kept_probe(lens)
            if state.global_step == 0:
                self.look(lens, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step in self.also or state.global_step == state.max_steps:
            network = self.whole.on_main(model)
            if network is not None:
                self.look(self._lens(network), state.global_step)

    # ---- what

    def look(self, lens: LensModel, step: int) -> Row:
        """Measures the model as it is, keeps the Run and the row, and reports the row's means."""
        folder = self.out / f"step-{step:06d}"
        if folder.exists():
            shutil.rmtree(folder)  # of a run that went on from an earlier checkpoint
        run = analyze(lens, self.probe, norm=self.norm, kl_from_layer=self.layer, out=folder, progress=False)
        own = analyze(
            lens, self.probe, norm="final", sites="resid_post", layers=lens.n_layers, metrics=("entropy", "logp_next"), progress=False
        )
        row: Row = {"step": step, **inside(run, self.layer), **own_policy(own), **self._answers(lens), **drift(lens, self.start)}
        self._keep(row)
        means = {name: value for name, value in row.items() if name != "step" and not name.endswith((LOW, HIGH))}
        self.report({f"monitor/{name}": value for name, value in means.items() if value is not None})
        return row

    def _answers(self, lens: LensModel) -> Row:
        """Length of fresh answers, and how far repeated answers to one problem agree in answer and in entropy path."""
        count = len(self.prompts)
        samples = [
            sample
            for repeat in range(self.repeats)
            for sample in generate_responses(lens, self.prompts, self.generation, range(repeat * count, (repeat + 1) * count))
        ]
        groups = np.arange(len(samples)).reshape(self.repeats, count).T
        lengths = np.array([len(sample.token_ids) - sample.response_start for sample in samples], np.float64)
        row = per_problem("response_length", groups, lengths)
        if self.repeats < 2:
            return row
        run = analyze(
            lens, samples, norm="final", sites="resid_post", layers=lens.n_layers, metrics="entropy", rows="response", progress=False
        )
        said = [self.answer(self.tokenizer.decode(sample.token_ids[sample.response_start :])) for sample in samples]
        paths = [entropy_path(run.sample(index)["entropy"].values[:, 0, 0]) for index in range(len(samples))]
        row |= per_pair("stability/answers", groups, lambda a, b: float(said[a] is not None and said[a] == said[b]))
        row |= per_pair("stability/entropy_path", groups, lambda a, b: correlation(paths[a], paths[b]))
        return row

    # ---- what is kept

    def _lens(self, model: Any) -> LensModel:
        return LensModel.wrap(model, self.tokenizer, check=False)

    def _remember_start(self, lens: LensModel, fresh: bool) -> None:
        file = self.out / "start.pt"
        if fresh or not file.exists():
            self.start = {name: weight.detach().cpu().clone() for name, weight in weights_by_part(lens).items()}
            self.out.mkdir(parents=True, exist_ok=True)
            torch.save(self.start, file)
        else:
            self.start = torch.load(file, weights_only=True)
        if fresh:
            (self.out / "probe.json").unlink(missing_ok=True)
            (self.out / SUMMARY).unlink(missing_ok=True)

    def _kept_probe(self, lens: LensModel) -> list[Sample]:
        """The probe problems with the answers the model gave before training. Raises TrainingError where those kept are of others."""
        file = self.out / "probe.json"
        if not file.exists():
            answered = generate_responses(lens, self.prompts, self.generation, range(len(self.prompts)))
            write_text(file, json.dumps([sample.token_ids for sample in answered]))
        kept = [tuple(tokens) for tokens in json.loads(file.read_text())]
        if len(kept) != len(self.prompts) or any(
            tokens[: len(prompt.token_ids)] != prompt.token_ids for tokens, prompt in zip(kept, self.prompts, strict=True)
        ):
            raise TrainingError(
                f"{file} holds answers to {len(kept)} other problems than the {len(self.prompts)} of now: "
                "restore monitor_problems and the training problems, or take a new output_dir"
            )
        return [replace(prompt, token_ids=tokens) for prompt, tokens in zip(self.prompts, kept, strict=True)]

    def _keep(self, row: Row) -> None:
        file = self.out / SUMMARY
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        rows = [old for old in rows if old["step"] < row["step"]] + [row]
        write_text(file, "".join(json.dumps(each) + "\n" for each in rows))
