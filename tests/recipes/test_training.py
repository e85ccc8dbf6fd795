from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipes.tiny_models.batches import BUCKET_STEPS, IGNORE_INDEX, Batch, bucket_batches
from recipes.tiny_models.models import MODELS, new_model
from recipes.tiny_models.tokenizer import build_tokenizer
from recipes.tiny_models.train import train_folder
from recipes.tiny_models.training import CurvePoint, TrainingSettings, solution_loss, train
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from layerlens.errors import TrainingError
from layerlens.prompts.arithmetic.kinds import DIFFICULTIES

MICRO = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
SETTINGS = TrainingSettings("tiny-qwen3", steps=11, batch_size=4, warmup=3, shape=MICRO)


class Killed(Exception):
    """Stands for whatever ends a training early."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer(400)


def _micro(tokenizer: PreTrainedTokenizerBase, name: str = "tiny-qwen3") -> PreTrainedModel:
    return new_model(name, tokenizer, seed=0, **MICRO)


@pytest.mark.parametrize("killed_after", [1, 4, 9])
def test_train_killed_and_resumed_ends_with_the_same_weights(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, killed_after: int) -> None:
    whole = _micro(tokenizer)
    curve = train(whole, tokenizer, SETTINGS, tmp_path / "whole.pt")

    def kill(point: CurvePoint) -> None:
        if point.step == killed_after:
            raise Killed

    path = tmp_path / "parts.pt"
    with pytest.raises(Killed):
        train(_micro(tokenizer), tokenizer, SETTINGS, path, checkpoint_every=2, on_step=kill)
    resumed = _micro(tokenizer)
    resumed_curve = train(resumed, tokenizer, SETTINGS, path, checkpoint_every=2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert [(p.step, p.loss, p.tokens) for p in resumed_curve] == [(p.step, p.loss, p.tokens) for p in curve]
    assert not list(tmp_path.glob("*.partial"))


def test_train_refuses_a_checkpoint_of_other_settings(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    train(_micro(tokenizer), tokenizer, SETTINGS, tmp_path / "c.pt")
    with pytest.raises(TrainingError, match="seed"):
        train(_micro(tokenizer), tokenizer, replace(SETTINGS, seed=1), tmp_path / "c.pt")
    train(_micro(tokenizer), tokenizer, replace(SETTINGS, seed=1), tmp_path / "c.pt", resume=False)


def test_settings_learning_rate_peaks_as_set_and_difficulties_only_grow() -> None:
    settings = TrainingSettings("tiny-qwen3")
    rates = [settings.learning_rate_at(step) for step in range(settings.steps)]
    assert max(rates) == pytest.approx(settings.learning_rate)
    assert min(rates) > 0
    assert rates[-1] < settings.learning_rate / 1000
    drawn = [settings.difficulties_at(step) for step in range(settings.steps)]
    assert (drawn[0], drawn[-1]) == (DIFFICULTIES[:1], DIFFICULTIES)
    assert all(len(a) <= len(b) for a, b in itertools.pairwise(drawn))


def test_settings_refuse_a_number_of_steps_below_1() -> None:
    with pytest.raises(TrainingError, match="steps"):
        TrainingSettings("tiny-qwen3", steps=0)


def test_bucket_batches_depend_on_seed_and_bucket_alone_and_train_on_solutions(tokenizer: PreTrainedTokenizerBase) -> None:
    one, again, other = (bucket_batches(tokenizer, seed, 3, 4) for seed in (0, 0, 1))
    assert len(one) == BUCKET_STEPS
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(one, again, strict=True))
    assert not all(a.ids.shape == b.ids.shape and torch.equal(a.ids, b.ids) for a, b in zip(one, other, strict=True))
    for batch in one:
        kept = batch.labels != IGNORE_INDEX
        assert torch.equal(batch.ids[kept], batch.labels[kept])
        assert (batch.labels == tokenizer.eos_token_id).sum(-1).eq(1).all()
        assert not kept[batch.ids == tokenizer.pad_token_id].any()


@pytest.mark.parametrize("name", MODELS)
def test_solution_loss_is_not_changed_by_padding(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """The loss of a padded batch is the token-weighted mean of its sequences, each alone."""
    model = _micro(tokenizer, name).double()
    batch = bucket_batches(tokenizer, 0, 0, 4)[0]
    total, count = 0.0, 0
    for ids, labels in zip(batch.ids, batch.labels, strict=True):
        length = int((ids != tokenizer.pad_token_id).sum())
        n = int((labels != IGNORE_INDEX).sum())
        total += n * solution_loss(model, Batch(ids[None, :length], labels[None, :length], length)).item()
        count += n
    assert solution_loss(model, batch).item() == pytest.approx(total / count, rel=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_train_folder_writes_a_model_with_the_trained_weights(
    tmp_path: Path, name: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.tiny_models.train.build_tokenizer", lambda: tokenizer)
    settings = TrainingSettings(name, steps=2, batch_size=2, warmup=1, shape=MICRO)
    train_folder(settings, tmp_path / name, snapshots=[1])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() == tokenizer.get_vocab()
    for folder, steps in ((tmp_path / name, 2), (tmp_path / name / "step-1", 1)):
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        trained = new_model(name, tokenizer, settings.seed, **MICRO)
        train(trained, tokenizer, replace(settings, steps=steps), tmp_path / f"{steps}.pt")
        assert loaded.dtype == torch.bfloat16
        assert all(torch.equal(tensor, trained.state_dict()[key].bfloat16()) for key, tensor in loaded.state_dict().items())
