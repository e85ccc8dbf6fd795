"""Several runs to a table of how each model settles, their differences, and a verdict; every number with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from layerlens.errors import SelectionError
from layerlens.metrics import PhaseRule
from layerlens.metrics.intervals import LEVEL, RESAMPLES, difference_bounds, interval, share_existing
from layerlens.results import Run
from layerlens.selection.choice import LayerChoice
from layerlens.selection.curves import Curves, read_curves
from layerlens.selection.layer import select_layer
from layerlens.selection.measures import BOUNDS, LAYERS, RELATIVE, SETTLING, measures
from layerlens.selection.verdict import scale_note, verdict
from layerlens.selection.words import layer_ranges
from layerlens.types import UNBOUNDED, Rows, Rule, Segment, Weighting

Array = np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        table: one row per run, as `compare` describes it.
        differences: one row per pair of runs and measure that models of any depth share: `run` and `other` (models), `measure`,
            `difference` (run less other) with `difference_low` and `difference_high`, `exists` (share of resamples in which both
            have the quantity), `paired` (whether both runs answer the same problems, so that each resample draws the same ones of both) and
            `problems` (how many: of the run with fewer).
        verdict: what the differences say, a sentence each.
        notes: what a reader must know before reading the table, a sentence each.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    verdict: tuple[str, ...]
    notes: tuple[str, ...]


def compare(
    runs: Sequence[Run],
    *,
    rule: Rule | None = None,
    phases: PhaseRule | None = None,
    over: Weighting = "sample",
    rows: Rows = "response",
    segment: Segment | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per run; every measure `x` stands beside its bootstrap interval over samples, `x_low` to `x_high`, and `x_exists`,
    the share of resamples in which it exists.

    Columns: `model`, `architecture`, `norm`, `samples`, `layers` (L). How late the policies settle, of norm final only
    (docs/definitions.md, "Convergence of a model"): `late_share` and `settle_depth` of the KL to the final policy, and of one minus
    the agreement with it (`disagreement_late_share`, `disagreement_settle_depth`). `usable_layers` (text, as "8-12"), and
    `last_agreement` and `last_skill` of layer L. The paper's: `convergence_layer` (and `convergence_depth`, as l / L),
    `abruptness`, `effective_depth`; `exploration_end` and `integration_end`, the last layers of those phases (NaN: no such
    phase). `chosen_layer`, `chosen_depth` (l / L), `chosen_frequency` and `rule` as `select_layer` gives them. A quantity that
    does not exist for all samples together has no interval. `attrs` hold `verdict` and `notes`, lists of sentences.

    Raises SelectionError if there is no run, if runs mix norms or temperatures, or if a run lacks what a rule or every measure reads.
    """
    found = compare_runs(runs, rule=rule, phases=phases, over=over, rows=rows, segment=segment, level=level, resamples=resamples, seed=seed)
    found.table.attrs.update(verdict=list(found.verdict), notes=list(found.notes))
    return found.table


def compare_runs(
    runs: Sequence[Run],
    *,
    rule: Rule | None = None,
    phases: PhaseRule | None = None,
    over: Weighting = "sample",
    rows: Rows = "response",
    segment: Segment | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """The table of `compare` with the differences of each two runs and a verdict. Arguments and errors as there."""
    runs = list(runs)
    if not runs:
        raise SelectionError("there is no run to compare")
    kinds: dict[str, set[Any]] = {
        "temperatures": {run.manifest.config.temperature for run in runs},
        "lenses": {run.lens for run in runs},
        "norm conventions": {run.norm for run in runs},
    }
    for what, mixed in kinds.items():
        if len(mixed) > 1:
            named = " and ".join(sorted(map(str, mixed)))
            raise SelectionError(f"these runs mix the {what} {named}, whose entropies do not compare: give runs that were read alike")
    settings: dict[str, Any] = {"over": over, "rows": rows, "segment": segment, "resamples": resamples, "seed": seed}
    zero = phases or PhaseRule()
    curves = [read_curves(run, **settings) for run in runs]
    measured = [measures(each, zero) for each in curves]
    rows_of = [_row(run, each, values, level) for run, each, values in zip(runs, curves, measured, strict=True)]
    choices = [select_layer(run, rule, phases=zero, **settings) for run in runs]
    for row, choice in zip(rows_of, choices, strict=True):
        chosen = choice.layer if choice.layer is not None else np.nan
        row |= {"chosen_layer": chosen, "chosen_depth": chosen / choice.n_layers, "chosen_frequency": choice.frequency, "rule": choice.rule}
    table = pd.DataFrame(rows_of)
    names = numbered(run.model for run in runs)
    rows_between = []
    for a, b in combinations(range(len(runs)), 2):
        paired = same_problems((runs[a], runs[b]), (curves[a], curves[b]))
        problems = min(curves[a].problems, curves[b].problems)
        rows_between += [
            {"run": names[a], "other": names[b], **row} for row in _differences(measured[a], measured[b], problems, paired, level, seed)
        ]
    differences = pd.DataFrame(rows_between)
    notes = [f"{name}: {choice.diagnosis}" for name, choice in zip(names, choices, strict=True) if choice.diagnosis]
    notes += _rules_note(names, choices)
    return Comparison(table, differences, tuple(verdict(names, table, differences)), (*scale_note(table), *notes))


def _rules_note(names: Sequence[str], choices: Sequence[LayerChoice]) -> list[str]:
    """That recommended layers come from different rules, if they do."""
    named = [(name, choice) for name, choice in zip(names, choices, strict=True) if choice.layer is not None]
    if len({choice.rule for _, choice in named}) < 2:
        return []
    each = ", ".join(f"{choice.rule} for {name}" for name, choice in named)
    return [
        f"the recommended layers come from different rules ({each}), which look for different things: do not compare these "
        f"layers. Ask one rule of all runs: --rule {named[0][1].rule}"
    ]


def numbered(names: Any) -> list[str]:
    """The names, those that come more than once with a number behind them."""
    listed = list(names)
    return [f"{name} ({number})" if listed.count(name) > 1 else name for number, name in enumerate(listed, 1)]


def same_problems(runs: Sequence[Run], curves: Sequence[Curves]) -> bool:
    """Whether both runs have the same samples by id and ground truth, whatever each model answered, and no problem without a row."""
    one, other = runs
    same = all(np.array_equal(one.data[name].values, other.data[name].values) for name in ("sample_id", "ground_truth"))
    return same and np.array_equal(one.problems, other.problems) and {each.problems for each in curves} == {len(set(one.problems))}


def _row(run: Run, curves: Curves, measured: dict[str, Float[Array, " curves"]], level: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": run.model,
        "architecture": run.manifest.model.architecture,
        "norm": run.norm,
        "samples": curves.samples,
        "layers": run.n_layers,
    }
    usable = curves.usable
    reading = {
        "usable_layers": None if usable is None else layer_ranges((np.flatnonzero(usable) + 1).tolist()),
        "last_agreement": np.nan if curves.agreement is None else curves.agreement[0, -1],
        "last_skill": np.nan if curves.skill is None else curves.skill[0, -1],
    }
    for name, values in measured.items():
        row |= _with_interval(name, values, curves.problems, level, BOUNDS.get(name, UNBOUNDED), layers=name in LAYERS)
        if name == SETTLING[-1]:
            row |= reading
    return row


def _with_interval(
    name: str, values: Float[Array, " curves"], problems: int, level: float, bounds: tuple[float, float], *, layers: bool
) -> dict[str, float]:
    """A quantity with its interval, and the share of resamples in which it exists; no interval if it does not exist on all samples."""
    low, high = interval(values[1:], np.asarray(values[0]), problems, level, layers=layers, bounds=bounds)
    ends = (np.nan, np.nan) if np.isnan(values[0]) else (float(low), float(high))
    exists = float(share_existing(values[1:])) if problems > 1 else np.nan
    return {name: float(values[0]), f"{name}_low": ends[0], f"{name}_high": ends[1], f"{name}_exists": exists}


def _differences(
    mine: dict[str, Float[Array, " curves"]],
    theirs: dict[str, Float[Array, " curves"]],
    problems: int,
    paired: bool,
    level: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Each measure that models of any depth share, of one run less that of another. Runs of other problems are not paired: the
    resamples of one are put in another order.
    """
    rows = []
    for name in RELATIVE:
        values, other = mine[name], theirs[name]
        if not paired:
            other = np.concatenate([other[:1], np.random.default_rng(seed).permutation(other[1:])])
        bounds = difference_bounds(BOUNDS.get(name, UNBOUNDED))
        difference = _with_interval("difference", values - other, problems, level, bounds, layers=name in LAYERS)
        rows.append({"measure": name, **difference, "paired": paired, "problems": problems})
    return [{"exists" if key == "difference_exists" else key: value for key, value in row.items()} for row in rows]
