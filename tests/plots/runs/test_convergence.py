from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from layerlens.metrics import late_share, settle_depth, upper_envelope
from layerlens.selection import compare
from tests.support.plots import caption_of, draw, line, part, rise_and_fall


@pytest.fixture(scope="module")
def runs():
    return [rise_and_fall(12, name="Qwen3", norm="final"), rise_and_fall(36, name="Llama", norm="final", samples=5)]


def stream(run, name):
    mean = run.mean(name, resamples=2)["mean"]
    return np.append(mean.sel(site="resid_pre").values[0], mean.sel(site="resid_post").values)


def test_curves_envelopes_and_marks_are_those_of_the_comparison(runs):
    axes = plots.convergence(runs)
    table = compare(runs)
    for number, run in enumerate(runs):
        for ax, distance, prefix in (
            (axes[0], stream(run, "kl_to_final"), ""),
            (axes[1], 1 - stream(run, "agrees"), "disagreement_"),
        ):
            curve = line(ax, run.model)
            np.testing.assert_allclose(curve.get_xdata(), np.arange(run.n_layers + 1) / run.n_layers)
            np.testing.assert_allclose(curve.get_ydata(), distance / distance.max(), atol=1e-6)
            envelope = [each for each in ax.lines if each.get_label() == "_envelope"][number]
            np.testing.assert_allclose(envelope.get_ydata(), upper_envelope(distance) / distance.max(), atol=1e-6)
            ring, triangle = [each for each in ax.lines if each.get_label() == "_mark"][2 * number : 2 * number + 2]
            assert (ring.get_marker(), triangle.get_marker()) == ("o", "^")
            assert (ring.get_xdata()[0], ring.get_ydata()[0]) == pytest.approx((0.9, float(late_share(distance))), abs=1e-6)
            assert (triangle.get_xdata()[0], triangle.get_ydata()[0]) == pytest.approx((float(settle_depth(distance)), 0.1), abs=1e-6)
            vertical, flat = [each for each in ax.lines if each.get_label() == "_interval"][2 * number : 2 * number + 2]
            for drawn, name in ((vertical.get_ydata(), "late_share"), (flat.get_xdata(), "settle_depth")):
                told = [table.loc[number, f"{prefix}{name}{end}"] for end in ("_low", "_high")]
                np.testing.assert_allclose(drawn, told, atol=1e-9)
    caption = caption_of(axes)
    assert "depth 0: the embedding" in caption
    assert "norm: final" in caption
    assert "samples: 12 / 5" in caption
    draw(axes)


def test_one_run_has_no_legend_and_one_sample_no_interval(runs):
    axes = plots.convergence(rise_and_fall(12, norm="final", samples=1), level=0.5)
    assert not axes[0].get_figure().legends
    assert not [each for each in axes[0].lines if each.get_label() == "_interval"]
    assert "1 sample: no interval" in caption_of(axes)
    draw(axes)
    assert "50% bootstrap interval" in caption_of(plots.convergence(runs[0], level=0.5))


def test_what_cannot_settle_is_refused_with_the_command(runs):
    with pytest.raises(SelectionError, match="has norm none: layerlens analyze MODEL PROMPTS --norm final --out RUN"):
        plots.convergence([runs[0], rise_and_fall(12)])
    with pytest.raises(SelectionError, match="lacks kl_to_final or agrees at resid_pre and resid_post"):
        plots.convergence(part(runs[0], site=["resid_post"]))
