"""Entropy from sums over logits, against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layerlens.metrics.entropy import entropy, entropy_change
from tests.support.softmax_sums import LOGITS, softmax_sums


def test_entropy_is_that_of_the_softmax() -> None:
    _, S, A = softmax_sums(LOGITS)
    torch.testing.assert_close(entropy(S, A), torch.distributions.Categorical(logits=LOGITS).entropy(), atol=1e-12, rtol=1e-12)


def test_entropy_of_one_certain_token_is_zero_and_of_equal_logits_the_log_of_their_number() -> None:
    one, equal = softmax_sums(torch.tensor([[5000.0, 0.0, -7.0]]))[1:], softmax_sums(torch.full((1, 64), 3.0, dtype=torch.float64))[1:]
    assert entropy(*one).item() == 0
    assert entropy(*equal).item() == pytest.approx(np.log(64), abs=1e-12)


def test_entropy_change_is_positive_when_probability_spreads() -> None:
    assert entropy_change(np.array([1.0, 2.0]), np.array([2.5, 0.5])).tolist() == [1.5, -1.5]
