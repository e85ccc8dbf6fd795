"""What training does inside the model: snapshots on a fixed set of probe texts, and fresh answers to the same problems.

A probe text is a problem with the answer that the model gave before training, so that what moves between two snapshots is the
model alone. Every snapshot leaves a Run in `monitor/step-<n>` and a row of numbers in `monitor/summary.jsonl`.
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
from layerlens.errors import TrainingError, message_of
from layerlens.models import Generation, LensModel, generate_responses
from layerlens.prompts.sample import Sample
from layerlens.results.training_log import CHANGE, HIGH, LOW, MONITOR, SUMMARY, read_monitor
from layerlens.storage.files import write_text
from layerlens.train.monitor_metrics import (
    correlation,
    drift,
    entropy_path,
    final_policy_means,
    layer_means,
    mean_per_pair,
    mean_per_problem,
    weights_by_part,
)
from layerlens.train.probe_means import ProbeMean, Row, load_means, save_means, with_intervals
from layerlens.train.unshard import FullModel
from layerlens.train.waiting import measuring_seconds, on_main, require_in_time, sampling_seconds, work_on
from layerlens.types import ForwardNorm

START_MEANS = "start-means.npz"
"""The first snapshot's means, problem by problem."""
REMEDY = "lower monitor_problems, monitor_repeats or max_completion_length, or set use_vllm"
"""What to change if a snapshot takes longer than other processes wait."""


class Monitor(TrainerCallback):  # type: ignore[misc]
    """Takes snapshots of the model while it is trained: before the first optimizer step, regularly, at phase ends, after the last.

    The main process takes them while the others wait. If the weights are sharded, all processes first help to gather them.

    Args:
        out: the training folder.
        prompts: the probe problems, without responses.
        tokenizer: the model's.
        full_model: gives the model with all its weights.
        every: optimizer steps between two snapshots.
        phase_ends: optimizer steps after which a snapshot is taken as well.
        layer: the layer whose similarity and KL to the layers above it are measured.
        norm: norm of the internal policies.
        repeats: fresh answers to each probe problem in a snapshot.
        generation: how answers are sampled.
        answer: gives the answer that the text of a response holds, or None; `stability/answers` compares these.
        report: hands a row of numbers to the trainer's log.
        sample: gives an answer to each of the prompts, if all processes call it; by default the main process samples through transformers.

    Raises TrainingError when training begins if a snapshot takes longer than the other processes wait.
    """

    def __init__(
        self,
        out: Path,
        prompts: Sequence[Sample],
        tokenizer: Any,
        full_model: FullModel,
        *,
        every: int,
        phase_ends: Collection[int],
        layer: int,
        norm: ForwardNorm,
        repeats: int,
        generation: Generation,
        answer: Callable[[str], str | None],
        report: Callable[[dict[str, float]], None],
        sample: Callable[[Sequence[Sample]], list[Sample]] | None = None,
    ):
        self.out, self.prompts, self.tokenizer, self.full_model = out / MONITOR, list(prompts), tokenizer, full_model
        self.every, self.phase_ends, self.layer, self.norm, self.repeats = every, phase_ends, layer, norm, repeats
        self.generation, self.answer, self.report, self.sample = generation, answer, report, sample
        self.start_weights: dict[str, Tensor] = {}
        self.probe: list[Sample] = []

    @property
    def probe_file(self) -> Path:
        return self.out / "probe.json"

    # ---- when

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        fresh = state.global_step == 0
        lacking = on_main(self.full_model.accelerator, lambda: fresh or not self.probe_file.exists())
        count = len(self.prompts)
        answered = self._sampled(lacking + self.repeats * fresh)
        network = self.full_model.on_main(model)
        on_main(self.full_model.accelerator, lambda: self._require_in_time(self._lens(network), lacking))
        if network is not None:
            lens = self._lens(network)
            self._keep_start(lens, fresh)
            self.probe = self._probe_texts(lens, answered[:count] if lacking else [])
            if fresh:
                self.take_snapshot(lens, 0, answered[count:])

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step in self.phase_ends or state.global_step == state.max_steps:
            answered = self._sampled(self.repeats)  # before weights that are sharded are put together, which takes memory
            network = self.full_model.on_main(model)
            if network is not None:
                self.take_snapshot(self._lens(network), state.global_step, answered)

    def _sampled(self, times: int) -> list[Sample]:
        """This many answers to each probe problem, one round after the other; none if the main process is to sample them itself."""
        return [] if self.sample is None or not times else self.sample(self.prompts * times)

    def _require_in_time(self, lens: LensModel, lacking: bool) -> None:
        prompts, new, states = self.prompts, self.generation, lens.n_layers * len(lens.sites)
        rounds = 0 if self.sample else self.repeats + lacking
        seconds = sampling_seconds(lens, prompts * rounds, new, batch=len(prompts))
        seconds += measuring_seconds(lens, prompts, new, states + lens.n_layers) + measuring_seconds(lens, prompts * self.repeats, new, 1)
        work = work_on(len(prompts) * (self.repeats + 1), new, samples=not self.sample)
        require_in_time("a snapshot of the monitor", work, seconds, lens.device, REMEDY)

    # ---- what

    def take_snapshot(self, lens: LensModel, step: int, answered: Sequence[Sample] = ()) -> Row:
        """Measures the model as it is after `step` optimizer steps, keeps the Run and the row, and reports the row's means.

        `answered`: `repeats` fresh answers to each probe problem, one round after the other; by default they are sampled here.
        """
        folder = self.out / f"step-{step:06d}"
        if folder.exists():
            shutil.rmtree(folder)  # left by a run that was resumed from an earlier checkpoint
        run = analyze(lens, self.probe, norm=self.norm, kl_from_layer=self.layer, out=folder, progress=False)
        final = analyze(lens, self.probe, norm="final", sites="resid_post", metrics=("entropy", "logp_next", "js_to_final"), progress=False)
        means = layer_means(run, self.layer) | final_policy_means(final) | self._answer_means(lens, answered)
        if step == 0:
            save_means(self.out / START_MEANS, means)
        row: Row = {"step": step, **with_intervals(means, load_means(self.out / START_MEANS)), **drift(lens, self.start_weights)}
        self._keep_row(row)
        told = {name: value for name, value in row.items() if name != "step" and not name.endswith((LOW, HIGH, CHANGE))}
        self.report({f"monitor/{name}": value for name, value in told.items() if value is not None})
        return row

    def _answer_means(self, lens: LensModel, answered: Sequence[Sample]) -> dict[str, ProbeMean]:
        """Length of fresh answers, and how far repeated answers to one problem agree: in their answer, and in their entropy path."""
        count = len(self.prompts)
        samples = list(answered) or [
            sample
            for repeat in range(self.repeats)
            for sample in generate_responses(lens, self.prompts, self.generation, range(repeat * count, (repeat + 1) * count))
        ]
        groups = np.arange(len(samples)).reshape(self.repeats, count).T
        lengths = np.array([len(sample.token_ids) - sample.response_start for sample in samples], np.float64)
        means = {"response_length": mean_per_problem(groups, lengths)}
        if self.repeats < 2:
            return means
        run = analyze(
            lens, samples, norm="final", sites="resid_post", layers=lens.n_layers, metrics="entropy", rows="response", progress=False
        )
        answers = [self.answer(self.tokenizer.decode(sample.token_ids[sample.response_start :])) for sample in samples]
        paths = [entropy_path(run.sample(index)["entropy"].values[:, 0, 0]) for index in range(len(samples))]
        same = mean_per_pair(groups, lambda a, b: float(answers[a] is not None and answers[a] == answers[b]), (0.0, 1.0))
        alike = mean_per_pair(groups, lambda a, b: correlation(paths[a], paths[b]))
        return means | {"stability/answers": same, "stability/entropy_path": alike}

    # ---- what is kept in the folder

    def _lens(self, model: Any) -> LensModel:
        return LensModel.wrap(model, self.tokenizer, check=False)

    def _keep_start(self, lens: LensModel, fresh: bool) -> None:
        """Keeps the weights of before training, which drift is measured from; a fresh run removes what an earlier one left."""
        file = self.out / "start.pt"
        if fresh or not file.exists():
            self.start_weights = {name: weight.detach().cpu().clone() for name, weight in weights_by_part(lens).items()}
            self.out.mkdir(parents=True, exist_ok=True)
            torch.save(self.start_weights, file)
        else:
            try:
                self.start_weights = torch.load(file, weights_only=True)
            except Exception as error:  # a damaged file fails in many ways
                raise TrainingError(
                    f"{file} is damaged ({message_of(error)}); it holds the weights of before training, which drift is measured from: "
                    "set monitor_every to 0, or begin the training anew"
                ) from error
        if fresh:
            self.probe_file.unlink(missing_ok=True)
            (self.out / SUMMARY).unlink(missing_ok=True)
            (self.out / START_MEANS).unlink(missing_ok=True)
        else:
            read_monitor(self.out / SUMMARY)  # a damaged one is told before a step is taken

    def _probe_texts(self, lens: LensModel, answered: Sequence[Sample]) -> list[Sample]:
        """The probe problems with the answers that the model gave before training, from `probe.json` once they are there.

        Raises TrainingError if the answers in the file belong to other problems.
        """
        file = self.probe_file
        if not file.exists():
            answered = answered or generate_responses(lens, self.prompts, self.generation, range(len(self.prompts)))
            write_text(file, json.dumps([sample.token_ids for sample in answered]))
        texts = [tuple(tokens) for tokens in json.loads(file.read_text())]
        if len(texts) != len(self.prompts) or any(
            tokens[: len(prompt.token_ids)] != prompt.token_ids for tokens, prompt in zip(texts, self.prompts, strict=True)
        ):
            raise TrainingError(
                f"{file} holds answers to {len(texts)} problems, which are not the {len(self.prompts)} probe problems of this run: "
                "restore monitor_problems and the training problems, or take a new output_dir"
            )
        return [replace(prompt, token_ids=tokens) for prompt, tokens in zip(self.prompts, texts, strict=True)]

    def _keep_row(self, row: Row) -> None:
        file = self.out / SUMMARY
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        rows = [old for old in rows if old["step"] < row["step"]] + [row]
        write_text(file, "".join(json.dumps(each) + "\n" for each in rows))
