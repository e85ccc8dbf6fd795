"""Training an internal policy that is read through a fitted lens, which is held fixed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import layerlens as ll
from layerlens.errors import SelectionError, TrainingError
from layerlens.models import causal_lm, save_lens, truncated_at
from layerlens.train import BuPOConfig
from layerlens.train.trainer import LAYER
from tests.models.lenses.conftest import random_lens
from tests.support.tiny_models import random_ids, tiny_model
from tests.support.training import fixed_batch, make_trainer, plain_logps
from tests.train.test_trainer import logps_of

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


@pytest.fixture(params=["jacobian", "tuned"])
def which(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    save_lens(random_lens(ll.LensModel.wrap(tiny_model()), request.param), tmp_path / "lens")
    return f"{request.param}:{tmp_path / 'lens'}"


def settings(which: str, layer: int = 2) -> dict[str, Any]:
    return {"internal_layer": layer, "internal_rollouts": -1, "internal_norm": "final", "internal_lens": which}


def test_truncated_forward_is_the_policy_through_the_lens(which: str) -> None:
    model, lens, ids = tiny_model(), ll.read_lens(which), random_ids(9)
    wrapped = ll.LensModel.wrap(model)
    with torch.no_grad():
        before = model(torch.tensor([ids])).logits
        for layer in (1, 2, 3, 4):
            with truncated_at(model, layer, "final", lens):
                logp = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
            expected = wrapped.policy(layer, norm="final", lens=lens).entropy(ids)
            torch.testing.assert_close(-(logp.exp() * logp).sum(-1), expected, atol=1e-5, rtol=0)
        assert torch.equal(model(torch.tensor([ids])).logits, before)
    with pytest.raises(SelectionError, match="norm must be 'final' with it, got 'none'"), truncated_at(model, 2, "none", lens):
        pass
    assert not model.model.norm._forward_pre_hooks


def test_log_probs_and_gradients_are_those_of_the_forward_of_all_blocks(which: str, tmp_path: Path) -> None:
    trainer, lens, batch = make_trainer(tmp_path, tiny_model(), **settings(which)), ll.read_lens(which), fixed_batch()
    ours = (logps_of(trainer, batch, 2) * batch["completion_mask"]).sum()
    ours.backward()
    found = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters() if weight.grad is not None}
    trainer.model.zero_grad()
    plain = plain_logps(causal_lm(trainer.model), batch, 2, "final", lens).sum()
    plain.backward()
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-6)
    for name, weight in trainer.model.named_parameters():
        if weight.grad is not None and weight.grad.abs().max() > 0:
            torch.testing.assert_close(found[name], weight.grad, atol=1e-4, rtol=1e-4)
    assert not any(name.startswith("model.layers.2") for name in found)
    assert not any(matrix.requires_grad for matrix in trainer._lens.matrices.values())


def test_the_last_layer_through_a_lens_trains_as_grpo_bit_for_bit(which: str, tmp_path: Path) -> None:
    gradients = []
    for more in ({}, settings(which, 4)):
        trainer = make_trainer(tmp_path, tiny_model(), **more)
        batch = fixed_batch() | ({LAYER: torch.tensor(4)} if more else {})
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        trainer._compute_loss(trainer.model, batch).backward()
        gradients.append({name: weight.grad for name, weight in trainer.model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_a_run_trains_with_the_lens_held_fixed_and_says_so(which: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "layerlens.train"):
        trainer = make_trainer(tmp_path / "out", tiny_model(), max_steps=1, **settings(which))
    assert not caplog.records
    matrices = {place: matrix.clone() for place, matrix in trainer._lens.matrices.items()}
    trainer.train()
    assert all(torch.equal(trainer._lens.matrices[place], matrix) for place, matrix in matrices.items())
    assert ("internal policy of layer 2", f"the rest of the run, norm final, through {which}, held fixed") in trainer.plan()
    assert f'"lens": "{which}"' in (tmp_path / "out" / "schedule.json").read_text()
    with caplog.at_level(logging.WARNING, "layerlens.train"):
        make_trainer(tmp_path / "other", tiny_model(seed=3), **settings(which))
    assert "internal_lens was fitted to" in caplog.text


def test_what_does_not_go_with_a_lens_is_refused(which: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="goes with internal_norm=final, got 'none'"):
        BuPOConfig(**settings(which) | {"internal_norm": "none"}, output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(TrainingError, match="internal_layer='auto' reads with the logit lens"):
        BuPOConfig(**settings(which) | {"internal_layer": "auto"}, output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(SelectionError, match="was fitted to a model of 4 layers, and this one has 3"):
        make_trainer(tmp_path, tiny_model(layers=3), **settings(which))
    with pytest.raises(SelectionError, match="is no tuned lens that can be read"):
        make_trainer(tmp_path, tiny_model(), **settings("tuned:nowhere"))
