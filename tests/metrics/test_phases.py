"""Phases on curves whose answer is known beforehand, and against every cut tried one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layerlens.metrics import PhaseRule, find_phases, phase_spans
from layerlens.metrics.phases import contradicting_layers, first_turn


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def naive_phases(change: np.ndarray, zero: np.ndarray, entry: int) -> tuple[float, dict[tuple[int, int], float]]:
    """Every cut and its cost, as the definition says: from the first rise on, what a layer's ΔS lies outside the range of its phase."""

    def cost(phase: int, d: float, z: float) -> float:
        low, high = ((z, math.inf), (-z, z), (-math.inf, -z))[phase]
        return max(low - d, 0.0) + max(d - high, 0.0)

    rises = [layer for layer in range(1, len(change) + 1) if layer <= entry and change[layer - 1] > zero[layer - 1]]
    costs = {}
    n = len(change)
    for b1 in range(min(rises), n + 1) if rises else [0]:
        for b2 in range(b1, n + 1):
            phases = [0] * b1 + [1] * (b2 - b1) + [2] * (n - b2)
            layers = zip(phases, change.tolist(), zero.tolist(), range(1, n + 1), strict=True)
            costs[b1, b2] = sum(cost(p, d, z) for p, d, z, layer in layers if layer >= min(rises, default=1))
    return min(costs.values()), costs


changes = st.lists(st.sampled_from([-2.0, -0.5, -0.1, -0.05, 0.0, 0.05, 0.1, 0.5, 2.0]) | st.floats(-3, 3), min_size=1, max_size=9)


@example(values=[-2.0, 1e-30], zero=0.0, slope=0.0, entry=2)  # a rise that rounding hides
@given(values=changes, zero=st.sampled_from([0.0, 0.1, 0.4]), slope=st.sampled_from([0.0, 0.05]), entry=st.integers(0, 9))
def test_phases_are_the_cheapest_cut(values: list[float], zero: float, slope: float, entry: int) -> None:
    change = array(*values)
    band = zero + slope * np.arange(len(values))
    best, costs = naive_phases(change, band, entry)
    ends = find_phases(change[None], band[None], entry)
    start, end, turn = (int(x[0]) for x in ends[:3])
    assert costs[end, turn] == pytest.approx(best, abs=1e-8)
    assert (end, turn) <= min(cut for cut, cost in costs.items() if cost <= best + 1e-12), "of equal cuts the earliest"
    spans = phase_spans(ends, len(values))
    layers = [layer for span in spans.values() if span for layer in range(span[0], span[1] + 1)]
    assert layers == list(range(start or 1, len(values) + 1)), "from the first rise on every layer is in one phase, in order"
    assert start <= entry
    alone = find_phases(change, band, entry)
    assert [int(x) for x in alone[:3]] == [start, end, turn], "one curve is a stack of one"
    if np.abs(change).sum() > 1e-6:
        assert ends.misfit[0] * np.abs(change).sum() == pytest.approx(best, abs=1e-8), "the misfit is the cost of the cut"


@given(values=changes, scale=st.sampled_from([0.25, 4.0, 64.0]))
def test_phases_do_not_depend_on_the_unit(values: list[float], scale: float) -> None:
    change, rule = np.round(array(*values), 2)[None], PhaseRule()
    band = rule.zero_band(change)
    np.testing.assert_allclose(rule.zero_band(change * scale), band * scale)
    best, costs = naive_phases(change[0], band[0].repeat(len(values)), math.ceil(len(values) / 4))
    starts, cuts = [], []
    for ends in (rule.find(change), rule.find(change * scale)):
        start, *cut = (int(end[0]) for end in ends[:3])
        starts.append(start)
        cuts.append(costs[tuple(cut)])
    assert starts[0] == starts[1]
    assert cuts == pytest.approx([best, best], abs=1e-8), "each is a cheapest cut; between equal ones rounding may decide"


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


def test_the_band_is_a_share_of_the_early_rise() -> None:
    change = array(1.0, 0.5, 0.0, -9.0)
    np.testing.assert_allclose(PhaseRule(0.1).zero_band(change), 0.1)  # of the rise below the middle, not of the fall
    np.testing.assert_allclose(PhaseRule(0.1).zero_band(-change), 0.9)
    np.testing.assert_allclose(PhaseRule(0.2).zero_band(np.stack([change, 2 * change])), [[0.2], [0.4]])


def test_a_late_rise_outvotes_an_early_turn_and_both_are_told() -> None:
    """The shape + - +: the cheapest cut explores to the top, and the layers that speak against it are named, with the first turn."""
    change = array(1.5, 0.3, *[-0.3, -0.6, 0.05, -0.6, -0.6], *[1.0] * 10)
    rule = PhaseRule()
    ends = rule.find(change[None])
    assert phase_spans(ends, 17)["exploration"] == (1, 17)
    zero = float(rule.zero_band(change)[0])
    assert contradicting_layers(change - 0.1, change + 0.1, ends, zero) == (3, 4, 6, 7)
    assert contradicting_layers(change - 0.4, change + 0.4, ends, zero) == (4, 6, 7)
    assert first_turn(change, change + 0.1, 1) == 2
    assert first_turn(change, change + 0.4, 1) == 2, "layer 3 is below zero, though its interval is not"
    assert first_turn(change, change + 9, 1) is None
    nothing = np.full(17, np.nan)
    assert contradicting_layers(nothing, nothing, ends, zero) == ()
    assert ends.misfit[0] == pytest.approx(2.8 / 13.95), "what layers 3 to 7 lack, of the sum of all"


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ([1, 1, 0.01, 0.02, -1, -1], ()),
        ([1, 1, 0.01, 0.0, -0.02, 0.3, 0.0, -1, -1, -1], (6,)),  # integration, beyond the tolerance
        ([1, 1, -1, -1, 0.4, -1, -1, -1], (5,)),  # convergence, above zero
        ([-1, 1, 1, -1, -1], ()),  # below the beginning of exploration
    ],
)
def test_layers_outside_the_range_of_their_phase(change: list[float], wrong: tuple[int, ...]) -> None:
    curve, rule = array(*change), PhaseRule()
    ends = rule.find(curve[None])
    assert contradicting_layers(curve - 0.05, curve + 0.05, ends, float(rule.zero_band(curve)[0])) == wrong
    assert (ends.misfit[0] > 0) == bool(wrong)
