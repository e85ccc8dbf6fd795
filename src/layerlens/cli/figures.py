"""Which figures a run, or several, can have, and writing them to a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlens.errors import RunError, SelectionError

if TYPE_CHECKING:
    from layerlens.results import Run, TrainingLog

FORMATS = ("png", "svg", "pdf")
LOGGED = ("reward", "entropy", "completions/mean_length")
"""What the figure of a training shows that had no monitor."""
WATCHED = ("reward", "policy_entropy", "response_length", "perplexity")
ABOVE = ("similarity/above", "kl/above")
"""What it shows of one that had, and what beside where the watched layer has layers above."""
Job = tuple[str, Callable[[], Any]]
"""A figure's file name without its ending, and what draws it."""


@dataclass(frozen=True)
class Look:
    """What all figures of one call share."""

    sample: int | str | None = None
    site: str = "resid_post"
    rows: str = "response"
    over: str = "sample"

    @property
    def means(self) -> dict[str, Any]:
        return {"rows": self.rows, "over": self.over}


def _plots() -> Any:
    import layerlens.plots

    return layerlens.plots


def _token_heatmap(run: Run, look: Look) -> Any:
    sample = run.data["sample_index"].values[0] if look.sample is None else look.sample
    return _plots().entropy_heatmap(run, sample=sample if isinstance(sample, str) else int(sample), site=look.site)


def _change(module: str) -> Callable[[Run, Look], Any]:
    def draw(run: Run, look: Look) -> Any:
        from layerlens.selection.layer import select_layer

        choice = select_layer(run, rows=look.rows, over=look.over) if module == "ffn" and len(run.layers) == run.n_layers else None  # type: ignore[arg-type]
        marks = {} if choice is None else {"phases": choice.phases, "layer": choice.layer}
        return _plots().entropy_change(run, module, **marks, **look.means)

    return draw


def _metric(metric: str) -> Callable[[Run, Look], Any]:
    return lambda run, look: _plots().metric_by_layer(run, metric, look.site, **look.means)


ONE_RUN: dict[str, Callable[[Run, Look], Any]] = {
    "tokens": _token_heatmap,
    "sites": lambda run, look: _plots().entropy_heatmap(run, **look.means),
    "flow": lambda run, look: _plots().entropy_flow(run, **look.means),
    "ffn-change": _change("ffn"),
    "attn-change": _change("attn"),
    "layer-change": _change("layer"),
    "similarity": lambda run, look: _plots().similarity(run, "cosine", **look.means),
    "cka": lambda run, look: _plots().similarity(run, "cka", **look.means),
    "stream-cosine": lambda run, look: _plots().stream_cosine(run, **look.means),
    "agreement": _metric("agrees"),
    "kl": _metric("kl_to_final"),
    "perplexity": _metric("perplexity"),
}
"""Figures of one run, by the name that the command line uses."""

ALL_RUNS: dict[str, Callable[[Sequence[Run], Look], Any]] = {
    "families": lambda runs, look: _plots().family_grid(runs, **look.means),
    "comparison": lambda runs, look: _plots().compare_families(runs, **look.means),
}
"""Figures of several runs together."""


def _difference(runs: Sequence[Run], look: Look) -> Any:
    if len(runs) != 2:
        raise SelectionError(f"a difference is of two runs, before and after; got {len(runs)}")
    if look.sample is None:
        return _plots().difference_heatmap(*runs, **look.means)
    return _plots().difference_heatmap(*runs, sample=look.sample, site=look.site)


TWO_RUNS: dict[str, Callable[[Sequence[Run], Look], Any]] = {"difference": _difference}
"""Figures of a model before and after, drawn where they are asked for by name."""


def draw_figures(
    runs: Sequence[Run], folder: Path, kinds: str | Iterable[str], look: Look, form: str = "png"
) -> tuple[list[Path], list[str]]:
    """Writes figures as `<model>-<kind>.<form>`, and those of all runs as `<kind>.<form>`.

    Returns their paths, and why each figure that was not asked for by name could not be drawn.

    Raises SelectionError on an unknown kind or format, or where a figure asked for by name can not be drawn.
    """
    names = [*ONE_RUN, *ALL_RUNS] if kinds == "all" else list(kinds)
    together = {**ALL_RUNS, **TWO_RUNS}
    unknown = [name for name in names if name not in ONE_RUN and name not in together]
    if unknown:
        raise SelectionError(f"unknown figure {', '.join(unknown)}: choose from {', '.join([*ONE_RUN, *together])}")
    jobs = [
        (f"{label}-{name}", ONE_RUN[name], run) for label, run in zip(labels(runs), runs, strict=True) for name in names if name in ONE_RUN
    ]
    if len(runs) > 1 or kinds != "all":
        jobs += [(name, together[name], runs) for name in names if name in together]  # type: ignore[misc]
    return _write([(stem, partial(draw, subject, look)) for stem, draw, subject in jobs], folder, form, strict=kinds != "all")


def draw_training(logs: Sequence[TrainingLog], folder: Path, form: str = "png") -> tuple[list[Path], list[str]]:
    """Writes the figures of training runs: dynamics of all overlaid; of each entropy, modules, refinement, drift, after − before.

    Returns their paths, and why each that a run does not hold the numbers for could not be drawn.
    """
    plots = _plots()
    watched = not any(log.monitor.empty for log in logs)
    above = [name for name in ABOVE if all(name in log.monitor for log in logs)]
    dynamics = partial(plots.training_dynamics, logs, [*WATCHED, *above] if watched else LOGGED)
    jobs: list[Job] = [("training", dynamics), ("stability", partial(plots.stability, logs))]
    for log, name in zip(logs, _apart([log.name for log in logs]), strict=True):
        jobs += [
            (f"{name}-layer-entropy", partial(plots.layer_entropy_over_steps, log)),
            (f"{name}-layer-entropy-change", partial(plots.layer_entropy_over_steps, log, change=True)),
            (f"{name}-modules", partial(plots.module_entropy, log)),
            (f"{name}-refinement", partial(plots.refinement, log)),
            (f"{name}-drift", partial(plots.drift, log)),
            (f"{name}-difference", partial(_before_and_after, log)),
        ]
    return _write(jobs, folder, form, strict=False)


def _before_and_after(log: TrainingLog) -> Any:
    try:
        looks = log.snapshot(0), log.snapshot(-1)
    except RunError as error:  # the looks' own folders are large and may be gone; the other figures do without
        raise SelectionError(str(error)) from error
    return _plots().difference_heatmap(*looks)


def _write(jobs: Sequence[Job], folder: Path, form: str, *, strict: bool) -> tuple[list[Path], list[str]]:
    """The paths of what was drawn, and why the rest was not; `strict` raises instead."""
    if form not in FORMATS:
        raise SelectionError(f"unknown format {form!r}: choose from {', '.join(FORMATS)}")
    written, skipped = [], []
    for stem, draw in jobs:
        try:
            written.append(_plots().save(draw(), folder / f"{stem}.{form}"))
        except SelectionError as error:
            if strict:
                raise
            skipped.append(f"{stem}: {error}")
    return written, skipped


def labels(runs: Sequence[Run]) -> list[str]:
    """A file name for each run: its model's, with the norm or a number where two are alike."""
    plain = [run.model.rstrip("/").split("/")[-1] for run in runs]
    named = [f"{name}-{run.norm}" if plain.count(name) > 1 else name for name, run in zip(plain, runs, strict=True)]
    return _apart(named)


def _apart(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that come more than once."""
    return [f"{name}-{number}" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]
