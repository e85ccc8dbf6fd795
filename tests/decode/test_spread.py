"""The spread of logits over the vocabulary, from the covariance of the unembedding's rows, is that of the logits themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerlens.decode.spread import LogitSpread
from layerlens.decode.unembedding import Unembedding


@given(
    vocabulary=st.integers(1, 1500),
    d=st.integers(1, 40),
    offset=st.floats(-5, 5),
    scale=st.sampled_from([1.0, 0.0625, 3.0]),
    seed=st.integers(0, 99),
)
def test_spread_is_the_standard_deviation_of_whole_logits(vocabulary: int, d: int, offset: float, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, d, generator=generator) + offset
    states = torch.randn(3, 4, d, generator=generator) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    logits = scale * states.double() @ weight.double().T
    got = LogitSpread.of(Unembedding(weight, scale=scale)).sd(states)
    assert got.shape == (3, 4)
    # of a state nearly orthogonal to all differences of rows the spread is small beside ‖R‖ ‖h‖, which rounding is relative to
    size = scale * states.double().norm(dim=-1) * weight.double().std(0, unbiased=False).norm()
    assert ((got - logits.std(-1, unbiased=False)).abs() <= 1e-5 * size + 1e-12).all()


def test_spread_leaves_out_bias_soft_cap_and_temperature() -> None:
    weight, states = torch.randn(50, 6), torch.randn(7, 6)
    bare = LogitSpread.of(Unembedding(weight)).sd(states)
    assert torch.equal(LogitSpread.of(Unembedding(weight, torch.randn(50), 1.0, 0.5, 3.0)).sd(states), bare)
    assert float((bare - (states @ weight.T).std(-1, unbiased=False)).abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_matched_states_have_the_asked_spread_and_their_own_direction(dtype: torch.dtype) -> None:
    weight, states = torch.randn(90, 8).to(dtype), (torch.randn(5, 8) * 7).to(dtype)
    spread = LogitSpread.of(Unembedding(weight))
    matched = spread.matched(states, 2.5)
    torch.testing.assert_close(
        (matched.double() @ weight.double().T).std(-1, unbiased=False), torch.full((5,), 2.5).double(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(torch.cosine_similarity(matched.double(), states.double()), torch.ones(5, dtype=torch.float64))


def test_a_state_of_zero_stays_zero() -> None:
    spread = LogitSpread.of(Unembedding(torch.randn(20, 4)))
    assert torch.equal(spread.matched(torch.zeros(2, 4), 3.0), torch.zeros(2, 4))
