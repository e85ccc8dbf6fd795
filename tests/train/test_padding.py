"""Padding that ends all answers of a micro-batch is not computed, and nothing is lost with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from trl import GRPOTrainer

from layerlens.train.padding import padded, without_common_padding
from layerlens.train.trainer import LAYER
from tests.support.training import fixed_batch, make_trainer

pytestmark = pytest.mark.filterwarnings("default")  # TRL's and accelerate's own


@given(
    answers=st.lists(st.integers(0, 5), min_size=1, max_size=6), prompts=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    rows=st.integers(1, 7),
)  # fmt: skip
def test_what_is_cut_off_is_padding_of_every_row_and_as_much_as_can_be(answers: list[int], prompts: list[int], rows: int) -> None:
    mask = torch.tensor([[0] * (3 - p) + [1] * p + [1] * a + [0] * (5 - a) for a, p in zip(answers, prompts, strict=False)])
    parts = list(without_common_padding(mask, 5, rows))
    assert torch.cat([mask[part] for part, _ in parts]).equal(mask)
    for part, padding in parts:
        assert part.stop - part.start <= rows
        longest = max(answers[part])
        assert padding == 5 - max(longest, 1), "one column of the answers is kept"
        assert padded(mask[part, : 8 - padding], padding).equal(mask[part])


def short(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with answers of at most three tokens, in columns for six."""
    batch["completion_mask"][:, 3:] = 0
    return batch | {"num_items_in_batch": batch["completion_mask"].sum()}


@pytest.mark.parametrize("settings", [{}, {"internal_layer": 2, "internal_rollouts": -1}])
def test_loss_and_gradients_are_those_of_the_padded_batch_in_fewer_columns(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    compute = GRPOTrainer._get_per_token_logps_and_entropies

    def counted(self: Any, model: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        widths.append(input_ids.size(1))
        return compute(self, model, input_ids, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", counted)
    found = []
    for multiple in (None, 1):  # which keeps the columns as they are
        trainer = make_trainer(tmp_path, loss_type="dr_grpo", pad_to_multiple_of=multiple, **settings)
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        loss = trainer._compute_loss(trainer.model, short(fixed_batch()) | ({LAYER: torch.tensor(2)} if settings else {}))
        loss.backward()
        found.append((loss.detach(), {name: weight.grad for name, weight in trainer.model.named_parameters()}))
    assert widths == [5 + 3, 5 + 6]
    (trimmed, ours), (whole, theirs) = found
    torch.testing.assert_close(trimmed, whole, atol=1e-7, rtol=1e-6)
    for name, gradient in theirs.items():
        if gradient is None:
            assert ours[name] is None
        else:
            torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-5)


def test_log_probs_before_training_are_cut_micro_batch_by_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)
    seen: list[tuple[int, ...]] = []
    forward = nn.Module.__call__

    def watch(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if module is trainer.model:
            seen.append(tuple(kwargs["input_ids"].shape))
        return forward(module, *args, **kwargs)

    batch = short(fixed_batch())
    batch["completion_mask"][2:, 1:] = 0
    ids, mask = (torch.cat([batch[f"prompt_{kind}"], batch[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
    monkeypatch.setattr(nn.Module, "__call__", watch)
    with torch.no_grad():
        logps, entropies, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 6, batch_size=2, compute_entropy=True)
        whole, *_ = GRPOTrainer._get_per_token_logps_and_entropies(trainer, trainer.model, ids, mask, 6)
    assert seen == [(2, 8), (2, 6), (4, 11)]
    assert logps.shape == entropies.shape == (4, 6)
    answer = batch["completion_mask"].bool()
    torch.testing.assert_close(logps[answer], whole[answer], atol=1e-6, rtol=1e-6)
