"""Convergence, phases and similarity on curves and states whose answer is known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerlens.metrics import (
    PhaseRule,
    abruptness,
    convergence_layer,
    cosine_sums,
    debiased_cka,
    effective_depth,
    find_phases,
    phase_spans,
    stream_cosine,
)


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize(
    ("entropy", "layer"),
    [
        ([10, 8, 4, 0.9, 0.5, 0.1], 4),
        ([10, 0.5, 4, 0.9, 0.5, 0.1], 4),  # a dip that does not last is no convergence
        ([10, 9, 8, 7], math.nan),
        ([10, 9, 8, 0.5], 4),
        ([1, 2, 3, 4], math.nan),  # rising
        ([10, 9, 0.5, 2], math.nan),
        ([10, 9, 1.0, 1.0], math.nan),  # 10% exactly is not under 10%
        ([0.0, 0.0, 0.0], math.nan),
        ([0.5, 10, 0.5, 0.5], 3),
        ([5.0], math.nan),
    ],
)
def test_convergence_layer(entropy: list[float], layer: float) -> None:
    got = convergence_layer(array(*entropy))
    assert got == layer or (math.isnan(layer) and np.isnan(got))


@pytest.mark.parametrize(
    ("entropy", "share"),
    [
        ([10, 10, 10, 10, 5, 0], 1.0),
        ([10, 5, 0, 0, 0, 0], 0.0),
        ([10, 8, 6, 4, 2, 0], 0.6),
        ([2, 10, 8, 6, 4, 2], 0.75),  # counted from the maximum, not from the first layer
        ([10, 5, 4, 4, 4, 6], -0.5),  # rises again at the end
        ([1, 2, 3, 4, 5, 6], math.nan),  # never falls
        ([3, 3, 3, 3, 3], math.nan),
        ([9, 5, 1], math.nan),  # no layer before the last three
        ([9, 6, 3, 0], 1.0),
    ],
)
def test_abruptness(entropy: list[float], share: float) -> None:
    np.testing.assert_allclose(abruptness(array(*entropy)), share)


@pytest.mark.parametrize(
    ("entropy", "depth"),
    [([4, 4, 4, 4], 1.0), ([4, 0, 0, 0], 0.25), ([0, 0, 0, 4], 0.25), ([4, 3, 2, 1], 0.625), ([2, 4], 0.75), ([0, 0], math.nan)],
)
def test_effective_depth(entropy: list[float], depth: float) -> None:
    np.testing.assert_allclose(effective_depth(array(*entropy)), depth)


def test_a_bootstrap_of_curves_goes_in_as_it_is() -> None:
    curves = np.random.default_rng(0).random((3, 5, 9)) * np.linspace(5, 0.01, 9)
    for measure in (convergence_layer, abruptness, effective_depth):
        got = measure(curves)
        assert got.shape == (3, 5)
        np.testing.assert_array_equal(got, [[measure(curve) for curve in row] for row in curves])
    broken = array(3, np.nan, 0.1, 0.1)
    assert np.isnan(convergence_layer(broken))
    assert np.isnan(effective_depth(broken))


def naive_phases(change: np.ndarray, zero: np.ndarray, entry: int) -> tuple[float, dict[tuple[int, int], float]]:
    """Every cut and its cost, as the definition says: from the first rise on, what a layer's ΔS lies outside the range of its phase."""

    def cost(phase: int, d: float, z: float) -> float:
        low, high = ((z, math.inf), (-z, z), (-math.inf, -z))[phase]
        return max(low - d, 0.0) + max(d - high, 0.0)

    rises = [layer for layer in range(1, len(change) + 1) if layer <= entry and change[layer - 1] > zero[layer - 1]]
    costs = {}
    n = len(change)
    for b1 in range(n + 1) if rises else [0]:
        for b2 in range(b1, n + 1):
            phases = [0] * b1 + [1] * (b2 - b1) + [2] * (n - b2)
            layers = zip(phases, change.tolist(), zero.tolist(), range(1, n + 1), strict=True)
            costs[b1, b2] = sum(cost(p, d, z) for p, d, z, layer in layers if layer >= min(rises, default=1))
    return min(costs.values()), costs


changes = st.lists(st.sampled_from([-2.0, -0.5, -0.1, -0.05, 0.0, 0.05, 0.1, 0.5, 2.0]) | st.floats(-3, 3), min_size=1, max_size=9)


@given(values=changes, zero=st.sampled_from([0.0, 0.1, 0.4]), slope=st.sampled_from([0.0, 0.05]), entry=st.integers(0, 9))
def test_phases_are_the_cheapest_cut(values: list[float], zero: float, slope: float, entry: int) -> None:
    change = array(*values)
    band = zero + slope * np.arange(len(values))
    best, costs = naive_phases(change, band, entry)
    ends = find_phases(change[None], band[None], entry)
    start, end, turn = (int(x[0]) for x in ends)
    assert costs[end, turn] == pytest.approx(best, abs=1e-8)
    assert (end, turn) <= min(cut for cut, cost in costs.items() if cost <= best + 1e-12), "of equal cuts the earliest"
    spans = phase_spans(ends, len(values))
    layers = [layer for span in spans.values() if span for layer in range(span[0], span[1] + 1)]
    assert layers == list(range(start or 1, len(values) + 1)), "from the first rise on every layer is in one phase, in order"
    assert start <= entry
    alone = find_phases(change, band, entry)
    assert [int(x) for x in alone] == [start, end, turn], "one curve is a stack of one"


@given(values=changes, scale=st.sampled_from([0.25, 4.0, 64.0]))
def test_phases_do_not_depend_on_the_unit(values: list[float], scale: float) -> None:
    change, rule = np.round(array(*values), 2)[None], PhaseRule()
    band = rule.zero_band(change, np.zeros(len(values)))
    np.testing.assert_allclose(rule.zero_band(change * scale, np.zeros(len(values))), band * scale)
    best, costs = naive_phases(change[0], band[0], math.ceil(len(values) / 4))
    if sorted(costs.values())[1:2] > [best + 1e-6]:
        np.testing.assert_array_equal(rule.find(change), rule.find(change * scale))


def phases(*change: float, **rule: float) -> dict[str, tuple[int, int] | None]:
    return phase_spans(PhaseRule(**rule).find(array(*change)[None]), len(change))


def test_the_paper_s_reading_of_qwen3_4b() -> None:
    rng = np.random.default_rng(1)
    early, late = [0.9, 1.6, 1.4, 1.1, 0.8, 0.5], [-0.3, -0.4, -0.5, -0.7, -0.8, -1.0, -1.3, -1.5, -2.0, -3.0]
    middle = (rng.random(20) - 0.5) * 0.2  # of either sign, under a tenth of the early rise
    assert phases(*early, *middle, *late) == {"exploration": (1, 6), "integration": (7, 26), "convergence": (27, 36)}


def test_llama_converges_only_at_the_end() -> None:
    weak = 0.05 + 0.02 * np.sin(np.arange(31))
    assert phases(*weak, -4.0) == {"exploration": (1, 31), "integration": None, "convergence": (32, 32)}
    assert phases(*weak, -3.0, -4.0)["exploration"] == (1, 31)


def test_deepseek_has_a_negative_middle() -> None:
    found = phases(0.8, 0.6, 0.4, *[-0.3] * 20, *[0.01] * 3, *[-0.5] * 4)
    assert found["exploration"] == (1, 3)
    assert found["convergence"] == (4, 30)


def test_the_small_models_of_the_definitions() -> None:
    positive = [0.3, 0.5, 0.4, 0.3, 0.3, 0.25, 0.2, 0.2, 0.15, 0.1]
    assert phases(-0.02, *positive, -1.5) == {"exploration": (2, 11), "integration": None, "convergence": (12, 12)}
    assert phases(0.2, *positive, 0.3) == {"exploration": (1, 12), "integration": None, "convergence": None}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ([-1, -1, -1], (None, None, (1, 3))),
        ([1, 1, 1], ((1, 3), None, None)),
        ([1, 0.01, -0.01, 0.02, -1], ((1, 1), (2, 4), (5, 5))),
        ([-0.5, 1, 1, 0.01, 0.02, -1, -1, -1], ((2, 3), (4, 5), (6, 8))),  # a first layer that falls is in no phase
        ([1], ((1, 1), None, None)),
        ([-1], (None, None, (1, 1))),
    ],
)
def test_hand_made_phases(change: list[float], expected: tuple[tuple[int, int] | None, ...]) -> None:
    assert tuple(phases(*change).values()) == expected


def test_exploration_begins_low_or_not_at_all() -> None:
    late = [0.0] * 5 + [1.0] * 3
    assert phases(*late)["exploration"] is None, "a late rise is no exploration"
    assert phases(*late, entry=0.75)["exploration"] == (6, 8)


def test_the_band_is_the_larger_of_both() -> None:
    change = array(1.0, 0.5, 0.0, -9.0)
    np.testing.assert_allclose(PhaseRule(0.1).zero_band(change, np.zeros(4)), 0.1)  # of the rise below the middle, not of the fall
    np.testing.assert_allclose(PhaseRule(0.1).zero_band(change, array(0, 0.1, 0.01, 1)), [0.1, 0.196, 0.1, 1.96])
    np.testing.assert_allclose(PhaseRule(0.1).zero_band(change, np.full(4, np.nan)), 0.1)
    np.testing.assert_allclose(PhaseRule(0.1).zero_band(-change, np.zeros(4)), 0.9)


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
