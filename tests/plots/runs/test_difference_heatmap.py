from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from layerlens.plots.kit.cells import UNSURE
from layerlens.results import Run
from tests.support.plots import (
    caption_of,
    cells,
    draw,
    numbers,
    part,
    rise_and_fall,
    with_values,
)


@pytest.fixture(scope="module")
def before():
    return rise_and_fall(12, name="tiny-qwen3")


def shifted(run: Run, at_layer: int, by: float, wobble: float = 0.05) -> Run:
    """The run with entropies moved at one layer, and up and down from sample to sample at all."""
    moved = run.data["entropy"].values.copy()
    moved += wobble * np.where(run.data["sample"].values % 2, 1, -1)[:, None, None]
    moved[:, at_layer - 1] += by
    return with_values(run, "entropy", moved.astype(np.float32))


def test_difference_heatmap_of_means_is_after_minus_before(before):
    after = shifted(before, 4, -0.8)
    ax = plots.difference_heatmap(before, after)
    expected = after.mean("entropy", resamples=1)["mean"] - before.mean("entropy", resamples=1)["mean"]
    np.testing.assert_allclose(cells(ax), expected.values)
    assert numbers(ax.xaxis) == before.sites
    norm = ax.collections[0].norm
    assert norm.vmin == -norm.vmax
    dots = next(line for line in ax.lines if line.get_gid() == UNSURE)
    assert set(dots.get_ydata()) == set(range(12)) - {3}  # every layer but the one that has moved
    caption = caption_of(ax)
    assert "after − before · dots: the 95% bootstrap interval over paired samples contains 0" in caption
    assert "norm: none, logit lens · 12 samples each" in caption
    draw(ax)


def test_difference_heatmap_says_whether_samples_are_paired(before):
    after = shifted(before, 4, -0.8, wobble=0.0)
    paired = plots.difference_heatmap(before, after)
    (dots,) = [item for item in paired.lines if item.get_gid() == UNSURE]
    assert 3 not in dots.get_ydata()
    assert "over paired samples" in caption_of(paired)
    other = Run(after.data.assign_coords(token_id=after.data["token_id"] + 1), after.manifest)
    assert "over samples of each run" in caption_of(plots.difference_heatmap(before, other))


def test_difference_heatmap_of_one_sample_has_no_interval():
    run = rise_and_fall(6, samples=1)
    ax = plots.difference_heatmap(run, shifted(run, 2, 0.5))
    assert "1 sample: no interval" in caption_of(ax)
    assert not ax.lines


def test_difference_heatmap_of_a_sample_is_layer_by_token(before):
    after = shifted(before, 4, -0.8)
    ax = plots.difference_heatmap(before, after, sample="s2", site="ffn_out")
    old, new = (run.sample("s2")["entropy"].sel(site="ffn_out").values.T for run in (before, after))
    np.testing.assert_allclose(cells(ax), new.astype(float) - old.astype(float))
    assert len(numbers(ax.xaxis)) == old.shape[1]
    assert "no interval" in caption_of(ax)
    draw(ax)


@pytest.mark.parametrize("metric", ["entropy_change", "logp_next", "kl_to_final", "agrees"])
def test_difference_heatmap_of_other_metrics(before, metric):
    after = shifted(before, 4, -0.8)
    for sample in (None, 0):
        ax = plots.difference_heatmap(before, after, metric, sample)
        assert ax.collections[0].norm.vmin < 0 < ax.collections[0].norm.vmax
        draw(ax)


def test_difference_heatmap_refuses_runs_that_do_not_compare(before):
    with pytest.raises(SelectionError, match="norm is 'none' before and 'final' after"):
        plots.difference_heatmap(before, rise_and_fall(12, norm="final"))
    with pytest.raises(SelectionError, match="12 of 12 before and 6 of 6 after"):
        plots.difference_heatmap(before, rise_and_fall(6))
    with pytest.raises(SelectionError, match=r"sample s0 has other tokens before \(20\) and after \(30\)"):
        plots.difference_heatmap(before, rise_and_fall(12, tokens=30), sample=0)
    other = Run(before.data.assign_coords(token_id=before.data["token_id"] + 1), before.manifest)
    with pytest.raises(SelectionError, match="from row 0 on"):
        plots.difference_heatmap(before, other, sample=0)
    with pytest.raises(SelectionError, match="take metric='logp_next'"):
        plots.difference_heatmap(before, before, "perplexity")
    with pytest.raises(SelectionError, match="leave out sample="):
        plots.difference_heatmap(before, before, sample=0, over="token")
    with pytest.raises(SelectionError, match="no site 'ffn_in' in both runs"):
        plots.difference_heatmap(before, part(before, site=["resid_post"]), site="ffn_in")


def test_difference_heatmap_names_snapshots_by_their_folders(before, tmp_path):
    early, late = (Run(run.data, run.manifest, tmp_path / name) for run, name in ((before, "step-000000"), (before, "step-000040")))
    assert plots.difference_heatmap(early, late).get_title("left") == "tiny-qwen3 · step-000040 − step-000000"
