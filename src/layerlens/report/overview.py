"""The overview: what was measured, which layer is recommended, and the figures of means."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pandas as pd
import xarray as xr

from layerlens.errors import LayerLensError, SelectionError
from layerlens.report.arrays import plain
from layerlens.report.figures import Figure, attempted, curve, heat, lines, notes, panel, segments
from layerlens.report.measured import facts
from layerlens.results import Run
from layerlens.results.settling import settling_shares
from layerlens.selection import select_layer
from layerlens.selection.choice import LayerChoice
from layerlens.selection.comparison import compare_runs
from layerlens.selection.measures import LABELS, PAPERS, SETTLING, measure_text
from layerlens.selection.recommendation import recommendation
from layerlens.types import METRIC_INFO, MODULE_SITES, SITES

STREAM = {"resid_pre": -0.5, "resid_mid": 0.0, "resid_post": 0.5}
"""x of the residual sites in the flow, from the number of their layer."""
MODULES = {"attn": ("attention", -0.25), "ffn": ("FFN", 0.25), "layer": ("whole layer", 0.0)}
"""What a module is called, and its x in the flow."""
CURVES = (
    "entropy", "skill", "agrees", "perplexity", "rank_next", "renyi_2", "logit_sd", "state_norm", "stream_cosine", "kl_from_layer",
)  # fmt: skip
"""Metrics of the figure in which the reader chooses one."""
DISTANCES = ("kl_to_final", "js_to_final", "kl_from_final")


class Overview:
    """Figures and sentences of runs that share the options of their means.

    Args:
        runs, names: the runs, and what each is called.
        options: `over`, `rows` and `segment`, as in `Run.mean`.
    """

    def __init__(self, runs: Sequence[Run], names: Sequence[str], options: dict[str, Any]):
        self.runs, self.names, self.options = list(runs), list(names), options
        self._mean = cache(self._mean)  # type: ignore[method-assign]
        self._choice = cache(self._choice)  # type: ignore[method-assign]

    def plain(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        figures = [
            attempted("entropy", "Entropy by layer and site", self._sites),
            attempted("flow", "Entropy flow", self._flow),
            attempted("change", "ΔS of the modules", self._change),
            attempted("distance", "Distance to the final policy", self._distance),
            attempted("settling", "Layer at which tokens settle", self._settling),
            attempted("similarity", "Similarity of layers", self._similarity),
            attempted("metrics", "Any metric by layer", self._metrics),
        ]
        runs = [self._run(number) for number in range(len(self.runs))]
        return {"runs": runs, "figures": figures, "comparison": self._comparison()}

    def _run(self, number: int) -> dict[str, Any]:
        run, choice = self.runs[number], self._choice(number)
        said = [["no recommendation", choice]] if isinstance(choice, str) else [list(line) for line in recommendation(choice)]
        layer = None if isinstance(choice, str) else choice.layer
        return {"name": self.names[number], "facts": facts(run), "recommendation": said, "layer": layer, "n_layers": run.n_layers}

    def _mean(self, number: int, name: str) -> xr.Dataset:
        return self.runs[number].mean(name, **self.options)

    def _choice(self, number: int) -> LayerChoice | str:
        """The recommended layer, or why there is no answer."""
        try:
            return select_layer(self.runs[number], **self.options)
        except LayerLensError as error:
            return str(error)

    def _having(self, name: str) -> dict[int, xr.Dataset]:
        """The mean of each run that has the metric, by number. Raises what the last run raises if none has it."""
        found, why = {}, None
        for number in range(len(self.runs)):
            try:
                found[number] = self._mean(number, name)
            except SelectionError as error:
                why = error
        if not found and why is not None:
            raise why
        return found

    def _note(self, means: dict[int, xr.Dataset]) -> str:
        return notes([self.runs[n] for n in means], [mean.attrs for mean in means.values()], [self.names[n] for n in means])

    def _sites(self) -> Figure:
        means = self._having("entropy")
        panels = [
            panel(self.runs[n].layers, [site for site in SITES if site in self.runs[n].sites][::-1],
                  mean.sel(site=[site for site in SITES if site in self.runs[n].sites][::-1]).transpose("site", "layer"), run=self.names[n])
            for n, mean in means.items()
        ]  # fmt: skip
        return heat(panels, "layer", "site", "nats", scale="sequential", picks=["run"], wide=True, note=self._note(means))

    def _flow(self) -> Figure:
        means = self._having("entropy")
        series: list[dict[str, Any]] = []
        for n, mean in means.items():
            run, pick = self.runs[n], {"run": self.names[n]}
            places = sorted((layer + STREAM[site], layer, site) for layer in run.layers for site in STREAM if site in run.sites)
            # resid_pre of a layer is resid_post of the layer before, which is drawn already
            kept = [place for place in places if not (place[2] == "resid_pre" and place[1] - 1 in run.layers and "resid_post" in run.sites)]
            if kept:
                layers, sites = xr.DataArray([place[1] for place in kept], dims="at"), xr.DataArray([place[2] for place in kept], dims="at")
                stream = curve(
                    "residual stream", [place[0] for place in kept], mean.sel(layer=layers, site=sites), group=-1, layers=None, **pick
                )
                series.append(stream | {"labels": [f"layer {place[1]}, {place[2]}" for place in kept]})
            for group, module in enumerate(("attn", "ffn")):
                before, after = MODULE_SITES[module]  # type: ignore[index]
                if {before, after} <= set(run.sites):
                    name, offset = MODULES[module]
                    x = [layer + offset for layer in run.layers]
                    step = segments(f"{name}: in → out", x, mean.sel(site=before), mean.sel(site=after), group=group, **pick)
                    series.append(step | {"labels": [f"layer {layer}, {name}" for layer in run.layers]})
        if not series:
            raise SelectionError("the flow needs a residual site, or a module's in and out: analyse with --sites all")
        return lines(series, "layer", "mean entropy", "nats", picks=["run"], fixed=True, wide=True, note=self._note(means))

    def _change(self) -> Figure:
        means = self._having("entropy_change")
        series, phases, marks = [], [], []
        for n, mean in means.items():
            for module in mean["module"].values:
                name = MODULES[str(module)][0]
                series.append(self._curve(n, mean.sel(module=module), module=name))
            choice = self._choice(n)
            if isinstance(choice, LayerChoice):
                of = {"run": self.names[n], "L": choice.n_layers}
                phases += [{**of, "name": name, "first": span[0], "last": span[1]} for name, span in choice.phases.items() if span]
                if choice.layer:
                    marks.append({**of, "layer": choice.layer, "text": f"recommended: {choice.layer}"})
        more = {"phases": phases, "marks": marks, "zero": True, "picks": ["module"], "start": {"module": "FFN"}}
        said = "ΔS = S(out) − S(in): above 0 the module explores, below 0 it commits"
        return lines(series, "layer", "mean ΔS", "nats", **more, note=f"{said} · {self._note(means)}")

    def _distance(self) -> Figure:
        series, noted = [], {}
        for metric in DISTANCES:
            held = [n for n, run in enumerate(self.runs) if metric in run.variables and "resid_post" in run.sites]
            for n in held:
                mean = self._mean(n, metric)
                noted[n] = mean
                series.append(self._curve(n, mean.sel(site="resid_post"), measure=_title(metric)))
        if not series:
            raise SelectionError("no run has a divergence to the final policy at resid_post: analyse with --metrics all,js_to_final")
        return lines(series, "layer", "mean at resid_post", "", picks=["measure"], named="measure", zero=True, note=self._note(noted))

    def _settling(self) -> Figure:
        series, noted, why = [], {}, None
        for n, run in enumerate(self.runs):
            try:
                shares = settling_shares(run, **self.options)
            except SelectionError as error:
                why = error
                continue
            noted[n] = shares
            series += [self._curve(n, shares.sel(group=group), group_name=str(group), rows=str(group)) for group in shares["group"].values]
        if not series and why is not None:
            raise why
        said = "first layer whose policy comes within 0.5 bits (JS) of the final one"
        return lines(series, "layer", "share of tokens", "", picks=["rows"], zero=True, note=f"{said} · {self._note(noted)}")

    def _similarity(self) -> Figure:
        panels, noted = [], {}
        for n, run in enumerate(self.runs):
            for metric, name in (("similarity", "cosine"), ("cka", "linear CKA")):
                if metric in run.variables:
                    mean = self._mean(n, metric)
                    noted[n] = mean
                    panels.append(panel(run.layers, run.layers, mean.transpose("layer", "layer_to"), run=self.names[n], measure=name))
        if not panels:
            raise SelectionError("no run measured similarity: analyse with --metrics all")
        more = {"picks": ["run", "measure"], "square": True, "scale": "unit"}
        return heat(panels, "layer", "layer", "", **more, note=self._note(noted))

    def _metrics(self) -> Figure:
        series, noted = [], {}
        for metric in CURVES:
            for n in range(len(self.runs)):
                try:
                    mean = self._mean(n, metric)
                except SelectionError:
                    continue
                noted[n] = mean
                column = next(str(dim) for dim in mean["mean"].dims if dim != "layer")
                for place in mean[column].values:
                    where = MODULES[str(place)][0] if column == "module" else str(place)
                    series.append(self._curve(n, mean.sel({column: place}), metric=_title(metric), site=where))
        if not series:
            raise SelectionError("no run has a mean by layer")
        shown: dict[str, Any] = {"picks": ["metric", "site"], "start": {"site": "resid_post"}, "named": "metric"}
        return lines(series, "layer", "mean", "", **shown, wide=True, note=self._note(noted))

    def _curve(self, number: int, mean: xr.Dataset, group_name: str = "", **pick: str) -> dict[str, Any]:
        name = self.names[number] + (f", {group_name}" if group_name else "")
        return curve(name, self.runs[number].layers, mean, group=number, layers=self.runs[number].n_layers, **pick)

    def _comparison(self) -> dict[str, Any]:
        """The measures of each run as a table, with what they say."""
        try:
            found = compare_runs(self.runs, **self.options)
        except LayerLensError as error:
            return {"missing": str(error)}
        measures = [name for name in (*SETTLING, *PAPERS) if found.table[name].notna().any()]
        rows = [
            [LABELS.get(name, name.replace("_", " ")), *(_with_words(row, name) for _, row in found.table.iterrows())] for name in measures
        ]
        return {"columns": ["measure", *self.names], "rows": rows, "said": [*found.verdict, *found.notes]}


def _with_words(row: pd.Series, name: str) -> dict[str, Any]:
    """A cell: the measure with its interval as numbers, to sort and to save, and the words of `layerlens compare`, to read."""
    return {"text": measure_text(row, name), "values": [plain(row[part]) for part in (name, f"{name}_low", f"{name}_high")]}


def _title(metric: str) -> str:
    name, unit = METRIC_INFO[metric]
    return f"{name} [{unit}]" if unit not in ("1", "") else name


def run_names(runs: Sequence[Run]) -> list[str]:
    """What each run is called: its model, with what tells it from others of the same model."""
    models = [run.model.rstrip("/").split("/")[-1] for run in runs]
    told = [f"{name} (norm {run.convention})" if models.count(name) > 1 else name for name, run in zip(models, runs, strict=True)]
    return [f"{name} #{number}" if told.count(name) > 1 else name for number, name in enumerate(told, 1)]
