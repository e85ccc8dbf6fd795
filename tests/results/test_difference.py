"""`layerlens.difference`, against the bootstrap written out by hand in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.results import Run
from layerlens.results.difference import sample_difference
from tests.support.plots import part, rise_and_fall, with_values


@pytest.fixture(scope="module")
def before() -> Run:
    return rise_and_fall(4, samples=6)


@pytest.fixture(scope="module")
def after(before: Run) -> Run:
    """The same texts, with the entropy of layer 2 lower, and moved up and down from sample to sample."""
    moved = before.data["entropy"].values + 0.05 * np.where(before.data["sample"].values % 2, 1, -1)[:, None, None]
    moved[:, 1] -= 0.8
    return with_values(before, "entropy", moved.astype(np.float32))


@pytest.fixture(scope="module")
def other(after: Run) -> Run:
    """`after` on other tokens."""
    return Run(after.data.assign_coords(token_id=after.data["token_id"] + 1), after.manifest)


def sample_means(run: Run) -> np.ndarray:
    """Mean entropy over the response rows of each sample: sample × layer × site."""
    response = run.data["in_response"].values.astype(bool)
    rows = [response & (run.data["sample"].values == number) for number in run.data["sample_index"].values]
    return np.stack([run.data["entropy"].values[chosen].astype(np.float64).mean(axis=0) for chosen in rows])


def resampled(means: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The mean over each resample, which counts sample i as often as the generator has drawn it."""
    n = len(means)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.stack([sum(count * mean for count, mean in zip(drawn, means, strict=True)) / n for drawn in counts])


@pytest.mark.parametrize("paired", [True, False])
def test_difference_is_the_hand_written_bootstrap(before: Run, after: Run, other: Run, paired: bool) -> None:
    second = after if paired else other
    found = ll.difference(before, second, level=0.9, resamples=200, seed=7)
    old, new = sample_means(before), sample_means(second)
    draws = resampled(new, 200, 7 if paired else 8) - resampled(old, 200, 7)
    np.testing.assert_allclose(found["mean"], new.mean(0) - old.mean(0), rtol=1e-12, atol=1e-12)
    wider = (6 / 5) ** 0.5 * 2.015048 / 1.644854  # Student's t with 5 degrees of freedom, and the normal, at 90%
    for end, share in (("low", 0.05), ("high", 0.95)):
        expected = found["mean"] + wider * (np.quantile(draws, share, axis=0) - found["mean"])
        np.testing.assert_allclose(found[end], expected, rtol=1e-5, atol=1e-6)
    assert found.attrs["paired"] == paired


def test_difference_of_pairs_is_narrower(before: Run) -> None:
    after = with_values(before, "entropy", 0.9 * before.data["entropy"].values)
    other = Run(after.data.assign_coords(token_id=after.data["token_id"] + 1), after.manifest)
    paired, unpaired = (ll.difference(before, second, resamples=500) for second in (after, other))
    np.testing.assert_array_equal(paired["mean"], unpaired["mean"])
    assert ((paired["high"] - paired["low"]) < (unpaired["high"] - unpaired["low"])).all()


def test_difference_is_of_the_means_that_the_runs_give(before: Run, after: Run) -> None:
    for options in ({}, {"over": "token"}, {"rows": "all"}, {"drop_first": 2}):
        old, new = (run.mean("entropy", resamples=2, **options)["mean"] for run in (before, after))
        np.testing.assert_array_equal(ll.difference(before, after, resamples=2, **options)["mean"], new - old)


def test_difference_says_how_it_was_made(before: Run, after: Run, tmp_path: Path) -> None:
    silent = after.data["in_response"] & (after.data["sample"] != 3)
    fewer = Run(after.data.assign_coords(in_response=silent.astype(np.int8)), after.manifest)
    found = ll.difference(before, fewer, "entropy", over="token", drop_first=1, level=0.8)
    assert found.attrs == {
        "long_name": "difference of mean entropy of the internal policy",
        "units": "nats",
        "over": "token",
        "rows": "response",
        "segment": "",
        "drop_first": 1,
        "level": 0.8,
        "paired": 0,
        "position_0": 1,
        "problems": 5,
        "samples_before": 6,
        "samples_after": 5,
    }
    assert found["mean"].dims == ("layer", "site")
    assert found["layer"].values.tolist() == [1, 2, 3, 4]
    found.to_netcdf(tmp_path / "difference.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "difference.nc", engine="h5netcdf") as opened:
        xr.testing.assert_equal(opened, found)
        assert {name: opened.attrs[name] for name in found.attrs} == found.attrs


def test_difference_of_modules_sites_and_layers(before: Run, after: Run) -> None:
    assert ll.difference(before, after, "entropy_change")["mean"].dims == ("layer", "module")
    assert ll.difference(before, after, "similarity")["mean"].dims == ("layer", "layer_to")
    everywhere = ll.difference(before, after)
    for shared in (ll.difference(before, after, site="ffn_out"), ll.difference(before, part(after, site=["ffn_out"]))):
        assert shared["site"].values.tolist() == ["ffn_out"]
        for name in ("mean", "low", "high"):
            np.testing.assert_array_equal(shared[name], everywhere[name].sel(site=["ffn_out"]))


def test_difference_of_one_sample_has_no_interval() -> None:
    run = rise_and_fall(3, samples=1)
    found = ll.difference(run, run)
    assert (found["mean"] == 0).all()
    assert np.isnan(found["low"]).all()
    assert np.isnan(found["high"]).all()


def test_difference_refuses_runs_that_do_not_compare(before: Run) -> None:
    with pytest.raises(SelectionError, match="norm is 'none' before and 'final' after"):
        ll.difference(before, rise_and_fall(4, norm="final"))
    hot = Run(before.data, replace(before.manifest, config=replace(before.manifest.config, temperature=0.5)))
    with pytest.raises(SelectionError, match=r"temperature is 1\.0 before and 0\.5 after"):
        ll.difference(before, hot)
    with pytest.raises(SelectionError, match="4 of 4 before and 6 of 6 after"):
        ll.difference(before, rise_and_fall(6))
    with pytest.raises(SelectionError, match="take metric='logp_next'"):
        ll.difference(before, before, "perplexity")
    with pytest.raises(SelectionError, match="no site 'ffn_in' in both runs; they share resid_post"):
        ll.difference(before, part(before, site=["resid_post"]), site="ffn_in")
    with pytest.raises(SelectionError, match="share no site: resid_pre before, resid_post after"):
        ll.difference(part(before, site=["resid_pre"]), part(before, site=["resid_post"]))
    ranked = before.data.assign(top_probs=before.data["entropy"].expand_dims(rank=2, axis=-1))
    with pytest.raises(SelectionError, match="'top_probs' is not one value per layer and site"):
        ll.difference(*[Run(ranked, before.manifest)] * 2, "top_probs")


def test_sample_difference_is_after_minus_before_at_every_token(before: Run, after: Run) -> None:
    found = sample_difference(before, after, "s2")
    old, new = (run.sample("s2")["entropy"].values.astype(np.float64) for run in (before, after))
    np.testing.assert_array_equal(found, new - old)
    assert found.dims == ("token", "layer", "site")
    np.testing.assert_array_equal(found, sample_difference(before, after, 2))


def test_sample_difference_refuses_other_tokens(before: Run, other: Run) -> None:
    with pytest.raises(SelectionError, match=r"sample s0 has other tokens before \(20\) and after \(20\), from row 0 on"):
        sample_difference(before, other, 0)
