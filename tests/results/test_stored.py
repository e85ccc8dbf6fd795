"""A run on disk gives what one in memory gives, and reads no more than it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.results import Run, RunFolder
from layerlens.results.stored import StoredRun
from tests.support.tiny_models import random_ids

SAMPLES = [ll.Sample(random_ids(6 + i % 3, i // 2), 2 + i % 2, id=f"s{i}", ground_truth=str(i)) for i in range(6)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"over": "token"},
    {"rows": "all"},
    {"segment": "prompt", "over": "token"},
    {"drop_first": 1},
    {"segment": "answer", "drop_first": 2, "over": "token"},
]
METRICS = ("all", "js_to_final")


@pytest.fixture(scope="module", params=[None, 3], ids=["every row", "drawn rows"])
def pair(request: pytest.FixtureRequest, qwen: ll.LensModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The same run in memory and on disk."""
    options: dict[str, Any] = {"metrics": METRICS, "top_k": 2, "tokens_per_sample": request.param}
    in_memory = ll.analyze(qwen, SAMPLES, **options)
    return in_memory, ll.analyze(qwen, SAMPLES, out=tmp_path_factory.mktemp("stored") / "run", **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_means_of_files_are_those_of_rows_to_the_bit(pair: tuple[Run, Run], options: dict[str, Any]) -> None:
    in_memory, stored = pair
    assert isinstance(stored, StoredRun)
    derived = ("entropy_change", "skill", "log_perplexity", "perplexity", "settling_depth", "agreement_depth", "deep_thinking_ratio")
    names = [name for name in in_memory.variables if not name.startswith("top_")]
    for name in [*names, *derived]:
        expected, found = in_memory.mean(name, resamples=20, **options), stored.mean(name, resamples=20, **options)
        xr.testing.assert_identical(found, expected)
    each = {key: value for key, value in options.items() if key != "over"}
    xr.testing.assert_equal(stored.sample_means("entropy_change", **each), in_memory.sample_means("entropy_change", **each))


def test_data_of_a_run_on_disk_are_those_in_memory(pair: tuple[Run, Run]) -> None:
    in_memory, stored = pair
    assert list(stored.data.data_vars) == list(in_memory.data.data_vars)
    assert set(stored.data.coords) == set(in_memory.data.coords)
    for name, variable in in_memory.data.variables.items():
        found = stored.data[name]
        assert (found.dims, found.shape, found.attrs) == (variable.dims, variable.shape, variable.attrs), name
        np.testing.assert_array_equal(found.values, variable.values)
    assert stored.data.attrs == in_memory.data.attrs
    rows = np.array([7, 0, 3, 3, stored.n_rows - 1])
    for key in (rows, slice(2, 9, 3), 4, slice(0, 0)):
        np.testing.assert_array_equal(
            stored.data["entropy"].isel(token=key, layer=1).values, in_memory.data["entropy"].isel(token=key, layer=1).values
        )
    np.testing.assert_array_equal(
        stored.data["entropy"].sel(site=["ffn_in", "ffn_out"]).values, in_memory.data["entropy"].sel(site=["ffn_in", "ffn_out"]).values
    )


def test_facts_of_a_run_on_disk_are_those_in_memory(pair: tuple[Run, Run]) -> None:
    in_memory, stored = pair
    for name in ("layers", "sites", "n_samples", "n_rows", "tokens_per_sample", "variables", "row_digests", "complete"):
        assert getattr(stored, name) == getattr(in_memory, name), name
    np.testing.assert_array_equal(stored.problems, in_memory.problems)
    assert ll.select_layer(stored, resamples=50).reason == ll.select_layer(in_memory, resamples=50).reason
    for which in (0, 5, "s3"):
        drop = ["named_token_id", "named_token_text"]
        xr.testing.assert_equal(stored.sample(which).drop_vars(drop), in_memory.sample(which).drop_vars(drop))
    with pytest.raises(SelectionError, match="no sample 'x'; there are s0, s1"):
        stored.sample("x")
    assert stored.thinned(10**6) is stored
    few = stored.thinned(stored.n_rows // 3)
    assert [part.data["sample_id"].values[0] for part in few.parts()] == ["s0", "s3"]


def test_errors_of_a_run_on_disk_are_those_in_memory(pair: tuple[Run, Run]) -> None:
    requests: list[tuple[str, dict[str, Any]]] = [
        ("entropy", {"segment": "thinking"}),
        ("entropy", {"rows": "reference"}),
        ("kl_from_layer", {}),
    ]
    for name, options in requests:
        told = []
        for run in pair:
            with pytest.raises(SelectionError) as caught:
                run.mean(name, **options)
            told.append(str(caught.value))
        assert told[0] == told[1]


def test_curves_read_no_rows(pair: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    stored = ll.open_run(pair[1].path)  # type: ignore[arg-type]

    def forbidden(*_: object) -> None:
        raise AssertionError("rows were read")

    monkeypatch.setattr(RunFolder, "_opening", forbidden)
    ll.select_layer(stored, resamples=20)
    ll.compare([stored, stored])
    ll.plots.entropy_flow(stored, resamples=20)
    ll.plots.similarity(stored)
    assert ll.difference(stored, pair[0]).attrs["paired"] == 1


FIGURES: dict[str, Callable[[Run], Any]] = {
    "entropy_change": lambda run: ll.plots.entropy_change(run, ["ffn", "attn", "layer"], resamples=20),
    "compare_families": lambda run: ll.plots.compare_families([run, run], resamples=20),
    "family_grid": lambda run: ll.plots.family_grid([run, run]),
    "entropy_curves": lambda run: ll.plots.entropy_curves(run, resamples=20),
    "entropy_heatmap": lambda run: ll.plots.entropy_heatmap(run),
    "difference_heatmap": lambda run: ll.plots.difference_heatmap(run, run, resamples=20),
    **{
        name: lambda run, name=name: ll.plots.metric_by_layer(run, name, resamples=20)
        for name in ("skill", "agrees", "kl_to_final", "perplexity", "js_to_final")
    },
}


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_by_layer_of_means_alone_are_those_of_rows(pair: tuple[Run, Run], figure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory, stored = pair
    monkeypatch.setattr(StoredRun, "keeps_rows", False)
    expected, found = ll.plots.data(FIGURES[figure](in_memory)), ll.plots.data(FIGURES[figure](stored))
    assert len(found) > 3
    pd.testing.assert_frame_equal(found, expected)


def test_means_alone_name_the_sites_that_a_module_needs(qwen: ll.LensModel, tmp_path: Path) -> None:
    run = ll.analyze(qwen, SAMPLES, sites=("ffn_out", "resid_post"), out=tmp_path / "run", keep="means")
    with pytest.raises(SelectionError, match="ΔS of ffn needs the sites ffn_in and ffn_out; the run lacks ffn_in"):
        ll.plots.entropy_change(run)


def test_means_alone_give_curves_and_say_what_they_cannot(qwen: ll.LensModel, pair: tuple[Run, Run], tmp_path: Path) -> None:
    in_memory, _ = pair
    draw = in_memory.tokens_per_sample
    run = ll.analyze(qwen, SAMPLES, metrics=METRICS, top_k=2, tokens_per_sample=draw, out=tmp_path / "run", keep="means")
    assert run.complete
    assert list((tmp_path / "run" / "samples").iterdir()) == []
    for name in ("entropy", "entropy_change", "similarity", "stream_cosine"):
        xr.testing.assert_identical(run.mean(name, resamples=20), in_memory.mean(name, resamples=20))
    assert ll.select_layer(run, resamples=50).reason == ll.select_layer(in_memory, resamples=50).reason
    assert run.data["text_token_id"].values.tolist() == in_memory.data["text_token_id"].values.tolist()
    for ask in (
        lambda: run.values("entropy"),
        lambda: run.sample(0),
        lambda: run.mean("entropy", drop_first=1),
        lambda: ll.plots.entropy_heatmap(run, sample=0),
        lambda: ll.plots.state_norm(run),
        lambda: ll.plots.stream_cosine(run),
        lambda: ll.plots.settling_depths(run),
        lambda: run.to_frame(),
        lambda: ll.scale_shape(run, run),
    ):
        with pytest.raises(SelectionError, match=r"kept means alone|by a run with norm none"):
            ask()
    with pytest.raises(ll.LayerLensError, match="keeps means, not rows"):
        ll.analyze(qwen, SAMPLES, metrics=METRICS, top_k=2, tokens_per_sample=draw, out=tmp_path / "run")
    with pytest.raises(SelectionError, match="keep must be"):
        ll.analyze(qwen, SAMPLES, keep="means")
