"""How a Run and a LayerChoice show themselves in a notebook: a small overview, and the whole report in a frame when it is opened."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from layerlens.errors import LayerLensError
from layerlens.report.measured import facts
from layerlens.report.report import report_html
from layerlens.results import Run, open_run
from layerlens.selection.choice import LayerChoice
from layerlens.selection.recommendation import recommendation

MEGABYTES = 4.0
"""Size of the report in the frame, which the notebook stores with each output."""
FRAMED = 60_000_000
"""Bytes of a run's data above which its report, which would take a while, is not made unasked."""
SHOWN = ("model", "architecture", "norm", "samples", "rows")
WIDTH, HEIGHT, EDGE = 320, 110, 24


def run_html(run: Run) -> str:
    """A run: what was measured, the mean entropy of its residual stream, and the report in a frame."""
    table = _table([(label, value) for label, value in facts(run) if label in SHOWN])
    return f"<div><b>Run of {escape(run.model)}</b>{table}{_entropy(run)}{_frame(run)}</div>"


def choice_html(choice: LayerChoice) -> str:
    """A choice of layer: what is recommended and what speaks against it, and the report of its run if that is still there."""
    run = None
    if choice.run is not None:
        try:
            run = open_run(choice.run)
        except LayerLensError:  # moved or removed since
            run = None
    return f"<div><b>{escape(choice.model)}</b>{_table(list(recommendation(choice)))}{_frame(run) if run is not None else ''}</div>"


def _table(rows: list[tuple[str, str]]) -> str:
    head, cell = '<th style="text-align:left;font-weight:normal;opacity:.7">', '<td style="text-align:left">'
    cells = "".join(f"<tr>{head}{escape(label)}</th>{cell}{escape(value)}</td></tr>" for label, value in rows)
    return f"<table>{cells}</table>"


def _frame(run: Run) -> str:
    """The whole report, which the browser reads when the frame is unfolded; it runs apart from the notebook."""
    if run.data.nbytes > FRAMED:
        return "<p>The whole report of this large run: <code>run.report()</code></p>"
    try:
        page = report_html(run, megabytes=MEGABYTES)
    except LayerLensError as error:
        return f"<p><i>No report: {escape(str(error))}</i></p>"
    style = "width:100%;height:720px;border:1px solid #888;border-radius:6px"
    return (
        "<details><summary>The whole report</summary>"
        f'<iframe sandbox="allow-scripts allow-downloads allow-modals" loading="lazy" style="{style}" '
        f'title="Report of {escape(run.model)}" srcdoc="{escape(page)}"></iframe></details>'
    )


def _entropy(run: Run) -> str:
    """Mean entropy by layer as a small drawing; nothing if the run has none."""
    try:
        site = "resid_post" if "resid_post" in run.sites else run.sites[-1]
        mean = run.mean("entropy").sel(site=site)
    except LayerLensError:
        return ""
    values = {part: mean[part].values.astype(np.float64) for part in ("mean", "low", "high")}
    middle = values["mean"]
    top = float(np.nanmax([np.nanmax(middle), *values["high"][np.isfinite(values["high"])]])) or 1.0
    places = np.linspace(EDGE, WIDTH - 8, len(run.layers)) if len(run.layers) > 1 else np.array([WIDTH / 2])

    def points(heights: Any, along: Any) -> str:
        return " ".join(f"{x:.1f},{HEIGHT - EDGE - (HEIGHT - EDGE - 14) * y / top:.1f}" for x, y in zip(along, heights, strict=True))

    band = ""
    if np.isfinite(values["low"]).all() and np.isfinite(values["high"]).all():
        around = points([*values["low"], *values["high"][::-1]], [*places, *places[::-1]])
        band = f'<polygon points="{around}" fill="#0072b2" opacity=".25"/>'
    label = f"mean entropy at {site} by layer, 0 to {top:.3g} nats"
    text = 'font-family="sans-serif" font-size="10" fill="currentColor"'
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{label}">{band}'
        f'<polyline points="{points(middle, places)}" fill="none" stroke="#0072b2" stroke-width="2"/>'
        f'<text x="{EDGE}" y="10" {text}>{label}</text>'
        f'<text x="{places[0]:.0f}" y="{HEIGHT - 8}" text-anchor="middle" {text}>{run.layers[0]}</text>'
        f'<text x="{places[-1]:.0f}" y="{HEIGHT - 8}" text-anchor="end" {text}>{run.layers[-1]}</text></svg>'
    )
