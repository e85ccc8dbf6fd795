"""A pytest plugin for `benchmarks.trl_suite`: the trainer under test in GRPOTrainer's place, stand-ins for the hub, weights recorded."""

from __future__ import annotations

import inspect
import os
from collections.abc import Generator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl
from benchmarks.trl_stand_ins import FIRST_SPECIAL, choose_vocabulary, load_stand_in
from transformers import Trainer, set_seed

from layerlens.train import BuPOTrainer

TRAINERS = {"GRPOTrainer": trl.GRPOTrainer, "BuPOTrainer": BuPOTrainer}


def no_stand_in(name: str) -> None:
    pytest.skip(f"no stand-in for {name}")


trl.GRPOTrainer = TRAINERS[os.environ["TRAINER_UNDER_TEST"]]
datasets.load_dataset = partial(load_stand_in, missing=no_stand_in)

if not torch.cuda.is_available():
    built = trl.GRPOConfig.__post_init__

    def on_cpu(self: trl.GRPOConfig) -> None:  # its defaults are for a GPU
        self.use_cpu, self.bf16 = True, False
        built(self)

    trl.GRPOConfig.__post_init__ = on_cpu


class Trainings:
    """What the trainings of the test that runs now ended with, as properties of the test."""

    now: pytest.Item | None = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None, Any, Any]:
    """Every test starts from the same seed, and is left out if it asks the hub for a model that has no stand-in.

    Tests that name tokens by their id in Qwen2.5's vocabulary get the whole of it, the others a small one.
    """
    names_ids = str(FIRST_SPECIAL["whole"]) in inspect.getsource(item.function)
    choose_vocabulary(Path(os.environ["HF_HUB_CACHE"]), "whole" if names_ids else "small")
    set_seed(0)
    Trainings.now = item
    try:
        return (yield)
    except OSError as error:
        if "offline" not in str(error) and "huggingface.co" not in str(error):
            raise
        pytest.skip("no stand-in for a model")
    finally:
        Trainings.now = None


trained = Trainer.train


def train_and_record(self: Trainer, *args: Any, **kwargs: Any) -> Any:
    result = trained(self, *args, **kwargs)
    if Trainings.now is not None:
        weights = sha256()
        for weight in self.model.parameters():
            weights.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        Trainings.now.user_properties.append(("weights", weights.hexdigest()))
        Trainings.now.user_properties.append(("train_loss", self.state.log_history[-1]["train_loss"]))
    return result


Trainer.train = train_and_record  # type: ignore[method-assign]
