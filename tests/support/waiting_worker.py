"""What a process says that waits for another one, or has another one wait: a line of JSON in a file for each of two processes."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate.utils import gather_object
from torch import distributed

from layerlens.analysis import forecast
from layerlens.errors import TrainingError
from layerlens.prompts.sample import Sample
from layerlens.train.vllm_answers import vllm_answers
from layerlens.train.waiting import longest_wait
from tests.support.training import make_trainer

AUTO = {"internal_layer": "auto", "internal_rule": "entropy_drop", "internal_samples": 4, "internal_rollouts": 1}
MONITOR = {"internal_layer": 2, "internal_rollouts": 1, "monitor_every": 1, "monitor_problems": 3, "monitor_repeats": 1}


def wait(folder: Path) -> None:
    found = dict[str, Any]()
    distributed.init_process_group("gloo", timeout=timedelta(seconds=90))  # on CPUs transformers sets no ddp_timeout
    fast = forecast._step_seconds
    forecast.WORTH_TIMING = 0
    forecast._step_seconds = lambda model, batch, cached: 100.0
    for name, settings in (("auto", AUTO), ("monitor", MONITOR)):
        try:
            make_trainer(folder / name, per_device_train_batch_size=2, **settings).train()
        except TrainingError as error:
            found[name] = str(error)
    forecast._step_seconds = fast
    trainer = make_trainer(folder / "fast", max_steps=1, per_device_train_batch_size=2, **MONITOR | AUTO)
    trainer.train()
    found |= {"steps": trainer.state.global_step, "wait": longest_wait(trainer.accelerator.device)}

    asked: list[list[int]] = []

    def generate(prompts: list[list[int]], images: Any, num_generations: int) -> Any:
        asked.extend(prompts)
        return None, [[ids[0] + 100] for ids in prompts], None, None

    vllm = SimpleNamespace(
        accelerator=trainer.accelerator, model=trainer.model, _dist=trainer._dist, sync_weights=lambda: None, generate=generate
    )
    found["answers"] = [list(sample.token_ids) for sample in vllm_answers(vllm, [Sample([1], 1), Sample([2], 1), Sample([3], 1)])]
    found["shares"] = gather_object([asked])
    (folder / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(found))
