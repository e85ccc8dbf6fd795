"""CKA and cosines on states whose answer is known beforehand."""

from __future__ import annotations

import math

import pytest
import torch

from layerlens.metrics import (
    cosine_sums,
    debiased_cka,
    stream_cosine,
)


def states(seed: int, layers: int = 3, tokens: int = 40, d: int = 12) -> torch.Tensor:
    return torch.randn(layers, tokens, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cka_does_not_see_rotation_scale_and_place() -> None:
    x = states(0)
    rotation = torch.linalg.qr(states(1, 1, 12, 12)[0])[0]
    moved = 7.5 * x @ rotation + 100 * states(2, 3, 1)
    got = debiased_cka(torch.cat([x, moved]))
    torch.testing.assert_close(got[:3, :3], got[3:, 3:], atol=1e-8, rtol=0)
    torch.testing.assert_close(got[:3, :3], got[:3, 3:], atol=1e-8, rtol=0)
    torch.testing.assert_close(got.diagonal(), torch.ones(6, dtype=torch.float64))
    stretched = x * torch.linspace(0.1, 5, 12)
    assert (debiased_cka(torch.cat([x[:1], stretched[:1]]))[0, 1] < 0.95).item(), "but it sees a stretch"


def test_cka_of_independent_states_is_near_zero_without_bias() -> None:
    values = torch.stack([debiased_cka(states(seed, 2, 30, 60))[0, 1] for seed in range(60)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(60) + 1e-3
    assert (values < 0).any(), "an unbiased estimate of zero lies on both sides"


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_cka_of_fewer_than_four_tokens_is_unknown(tokens: int) -> None:
    assert debiased_cka(states(0, 2, tokens)).isnan().all()
    assert not debiased_cka(states(0, 2, 4))[0].isnan().any()


def test_cosines_are_of_each_token_with_itself() -> None:
    x = states(3).float()
    sums = cosine_sums(x)
    expected = torch.tensor([[torch.nn.functional.cosine_similarity(a, b, dim=-1).sum() for b in x] for a in x], dtype=torch.float64)
    torch.testing.assert_close(sums, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(sums.diagonal(), torch.full((3,), 40.0, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(cosine_sums(x * 1000), sums, atol=1e-4, rtol=0)


def test_stream_cosine_says_amplify_new_or_erase() -> None:
    stream = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    output = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-0.5, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(stream_cosine(output, stream), torch.tensor([1.0, 0.0, -1.0, 0.0]))
    assert stream_cosine(output.half(), stream.half()).dtype == torch.float32
