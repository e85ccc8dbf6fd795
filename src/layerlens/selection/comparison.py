"""Several runs to a table of how each model converges, one row per run, every number with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from layerlens.errors import SelectionError
from layerlens.metrics import PhaseRule, abruptness, convergence_layer, effective_depth
from layerlens.metrics.intervals import LEVEL, RESAMPLES, interval, share_existing
from layerlens.results import Run
from layerlens.selection.layer import select_layer
from layerlens.types import Rows, Rule, Segment, Weighting

Array = np.ndarray

LAYER_MEASURES = ("convergence_layer", "convergence_depth", "exploration_end", "integration_end")
"""Measures that are layers, or layers over L: their intervals end at layers that resamples gave."""


def compare(
    runs: Sequence[Run],
    *,
    rule: Rule = "boundary",
    phases: PhaseRule | None = None,
    over: Weighting = "sample",
    rows: Rows = "response",
    segment: Segment | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per run; every measure `x` stands beside `x_low` and `x_high`, its bootstrap interval, and `x_exists`.

    Columns: `model`, `architecture`, `norm`, `samples`, `layers` (L); `convergence_layer` (and `convergence_depth`, as l / L),
    `abruptness`, `effective_depth` (docs/definitions.md, "Convergence of a model"); `exploration_end` and `integration_end`, the
    last layers of those phases (NaN: no such phase); `chosen_layer`, `chosen_depth` (l / L), `chosen_frequency` and `rule` as
    `select_layer` gives them. An interval is over the resamples in which the quantity exists; `x_exists` is their share
    (NaN with one problem, as there are no resamples).

    Raises SelectionError if there is no run, if runs mix norms or temperatures, or if a run lacks a site or metric that a column needs.
    """
    runs = list(runs)
    if not runs:
        raise SelectionError("there is no run to compare")
    temperatures = {run.manifest.config.temperature for run in runs}
    if len(temperatures) > 1:
        raise SelectionError(f"these runs mix the temperatures {', '.join(map(str, sorted(temperatures)))}, whose entropies do not compare")
    lenses = {run.lens for run in runs}
    if len(lenses) > 1:
        raise SelectionError(f"these runs mix the lenses {' and '.join(sorted(lenses))}, whose policies do not compare")
    norms = {run.norm for run in runs}
    if len(norms) > 1:
        raise SelectionError(f"these runs mix the norm conventions {' and '.join(sorted(norms))}, whose entropies do not compare")
    settings: dict[str, Any] = {"over": over, "rows": rows, "segment": segment, "resamples": resamples, "seed": seed}
    return pd.DataFrame([_row(run, rule, phases or PhaseRule(), level, settings) for run in runs])


def _row(run: Run, rule: Rule, zero: PhaseRule, level: float, settings: dict[str, Any]) -> dict[str, Any]:
    choice = select_layer(run, rule, phases=zero, **settings)
    if "resid_post" not in run.sites:
        raise SelectionError(f"comparing needs entropy at resid_post; the run of {run.model} has {', '.join(run.sites)}")
    point, means = run.bootstrap("entropy", **settings)
    entropy = np.concatenate([point.sel(site="resid_post").values[None], means.sel(site="resid_post").values])
    depth = run.n_layers
    measures: dict[str, Float[Array, " curves"]] = {
        "convergence_layer": convergence_layer(entropy),
        "convergence_depth": convergence_layer(entropy) / depth,
        "abruptness": abruptness(entropy),
        "effective_depth": effective_depth(entropy),
    }
    if {"ffn_in", "ffn_out"} <= set(run.sites):
        point, means = run.bootstrap("entropy_change", **settings)
        change = np.concatenate([point.sel(module="ffn").values[None], means.sel(module="ffn").values])
        _, explored, integrated = zero.find(change)
        measures["exploration_end"] = np.where(explored > 0, explored, np.nan)
        measures["integration_end"] = np.where(integrated > explored, integrated, np.nan)
    row: dict[str, Any] = {
        "model": run.model,
        "architecture": run.manifest.model.architecture,
        "norm": run.norm,
        "samples": choice.samples,
        "layers": depth,
    }
    for name, values in measures.items():
        low, high = interval(values[1:, None], values[:1], point.attrs["problems"], level, layers=name in LAYER_MEASURES)
        exists = float(share_existing(values[1:])) if point.attrs["problems"] > 1 else np.nan
        row |= {name: values[0], f"{name}_low": low[0], f"{name}_high": high[0], f"{name}_exists": exists}
    chosen = choice.layer if choice.layer is not None else np.nan
    return row | {"chosen_layer": chosen, "chosen_depth": chosen / depth, "chosen_frequency": choice.frequency, "rule": rule}
