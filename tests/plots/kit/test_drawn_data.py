"""The table of a figure holds what the run says, wherever the figure shows it."""

from __future__ import annotations

import numpy as np
import pytest

from layerlens import plots
from layerlens.errors import SelectionError
from tests.support.plots import rise_and_fall

RUN = rise_and_fall(12, name="some model", samples=5)


def test_a_curve_has_its_mean_and_interval_at_every_layer() -> None:
    table = plots.data(plots.entropy_change(RUN, ["ffn", "attn"]))
    assert set(table["kind"]) == {"line"}
    assert set(table["panel"]) == {"some model"}
    for series, module in (("FFN", "ffn"), ("attention", "attn")):
        mean = RUN.mean("entropy_change").sel(module=module)
        rows = table[table["series"] == series]
        assert rows["x"].tolist() == RUN.layers
        for column, part in (("value", "mean"), ("low", "low"), ("high", "high")):
            np.testing.assert_allclose(rows[column], mean[part], rtol=1e-12, atol=1e-12)
    assert set(table["value_axis"]) == {"mean ΔS = S(out) − S(in) [nats]"}


def test_a_heat_map_has_a_row_per_cell_with_the_labels_of_layers_that_were_thinned() -> None:
    run = rise_and_fall(60, samples=2)
    table = plots.data(plots.entropy_heatmap(run))
    assert table["kind"].unique().tolist() == ["cell"]
    assert table["y_label"].tolist() == [str(layer) for layer in run.layers for _ in run.sites]
    assert table["x_label"].tolist() == run.sites * 60
    np.testing.assert_allclose(table["value"], run.mean("entropy")["mean"].values.ravel(), rtol=1e-6)


def test_open_cells_are_no_rows() -> None:
    run = rise_and_fall(4, samples=2)
    entropy = run.data["entropy"].copy()
    entropy.loc[{"layer": 2, "site": "ffn_out"}] = np.nan
    table = plots.data(plots.entropy_heatmap(type(run)(run.data.assign(entropy=entropy), run.manifest)))
    assert len(table) == 4 * len(run.sites) - 1
    assert table[(table["y_label"] == "2") & (table["x_label"] == "ffn_out")].empty


def test_panels_and_series_are_told_apart() -> None:
    drawn = plots.compare_families([RUN, rise_and_fall(6, name="other", samples=5)])
    table = plots.data(drawn)
    assert {"some model", "other"} <= set(table["series"])
    assert table["panel"].nunique() == sum(1 for ax in np.ravel(drawn) if ax.lines)
    whole = plots.data(np.ravel(drawn)[0].figure)
    assert whole.equals(table)


def test_what_is_no_figure_is_refused() -> None:
    with pytest.raises(SelectionError, match="expected a figure or the axes that a plot returned, got ndarray"):
        plots.data(np.zeros(1))
