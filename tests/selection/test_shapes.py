"""The boundary rule on data sets that are drawn from a curve of known shape: how often it names the right layer.

Noise is normal, and independent between samples and layers. `found` is the share of 400 data sets (DATA_SETS) in which the right layer was
named; the bound is three standard errors of a share of 60 data sets below.
"""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import Float

from layerlens.metrics import PhaseRule
from layerlens.metrics.intervals import bootstrap_means
from layerlens.selection.curves import Curves
from layerlens.selection.rules import Answer, answers, find_phases_of

Array = np.ndarray
DATA_SETS = 60

QWEN = np.array([0.9, 1.6, 1.4, 1.1, 0.8, 0.5, *[0.03, -0.05] * 10, *np.linspace(-0.4, -2.0, 10)])
WEAK = np.array([*[0.05] * 27, -0.1])
LLAMA = np.array([*[0.15] * 27, -0.5])
RISE_AND_RISE = np.array([1.46, 0.26, -0.29, *[-0.6] * 8, *[1.0] * 19])
OPEN = np.full(28, 0.3)
NOTHING = np.zeros(36)


def curves_of(change: Float[Array, "samples layers"], seed: int) -> Curves:
    """Curves of data sets of which nothing is known but the ΔS of the FFN."""
    point, means = bootstrap_means(change, np.ones_like(change), 200, seed)
    unknown = dict.fromkeys(("entropy", "agreement", "skill", "final_skill", "kl", "disagreement", "settling"))
    mean = np.concatenate([point[None], means])
    return Curves(
        norm="none", n_layers=change.shape[1], samples=len(change), problems=len(change), resamples=200, ffn_change=mean, **unknown
    )


def answer_to(change: Float[Array, "samples layers"], seed: int) -> Answer:
    curves = curves_of(change, seed)
    return answers(curves, find_phases_of(curves, PhaseRule()), 0.5, None)["boundary"]


def named(shape: Float[Array, " layers"], samples: int, sd: float) -> list[int]:
    """The layers that are named (0: none) for data sets from one truth."""
    drawn = (shape + sd * np.random.default_rng(seed).standard_normal((samples, len(shape))) for seed in range(DATA_SETS))
    found = [answer_to(change, seed) for seed, change in enumerate(drawn)]
    return [answer.layer if answer.determined else 0 for answer in found]


@pytest.mark.parametrize(
    ("shape", "samples", "sd", "truth", "found"),
    [
        (QWEN, 8, 0.15, 6, 0.99),
        (QWEN, 8, 0.5, 6, 0.64),
        (QWEN, 30, 0.5, 6, 0.89),
        (WEAK, 8, 0.15, 27, 0.6),
        (WEAK, 30, 0.15, 27, 0.91),
        (LLAMA, 8, 0.5, 27, 0.54),
        (LLAMA, 30, 0.5, 27, 0.87),
        (OPEN, 8, 0.3, 27, 1.0),
        (RISE_AND_RISE, 8, 0.3, 29, 1.0),
    ],
    ids=[
        "qwen, 8",
        "qwen, noisy, 8",
        "qwen, noisy, 30",
        "weak llama, 8",
        "weak llama, 30",
        "llama, noisy, 8",
        "llama, noisy, 30",
        "open",
        "+ - +",
    ],
)
def test_the_right_layer_is_named(shape: Float[Array, " layers"], samples: int, sd: float, truth: int, found: float) -> None:
    layers = named(shape, samples, sd)
    assert np.mean([layer == truth for layer in layers]) >= found - 3 * np.sqrt(found * (1 - found) / DATA_SETS)
    assert np.mean([layer not in (0, truth) for layer in layers]) <= 0.25, "another layer is seldom named: in doubt there is none"


@pytest.mark.parametrize("samples", [8, 30])
def test_where_there_is_nothing_seldom_a_layer_is_named(samples: int) -> None:
    """Found in 400: 3% and 2%; the bound is three standard errors of a share of 60 data sets above the first."""
    assert np.mean([layer > 0 for layer in named(NOTHING, samples, 0.15)]) <= 0.1


def test_open_exploration_says_so() -> None:
    assert answer_to(OPEN + np.zeros((8, 28)), 0).open
    assert not answer_to(LLAMA + np.zeros((8, 28)), 0).open
