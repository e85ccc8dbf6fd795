"""Which figures a run, or several, can have, and writing them to a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlens.errors import SelectionError

if TYPE_CHECKING:
    from layerlens.results import Run, TrainingLog

FORMATS = ("png", "svg", "pdf")


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
        from layerlens.selection import select_layer

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


def draw_figures(
    runs: Sequence[Run], folder: Path, kinds: str | Iterable[str], look: Look, form: str = "png"
) -> tuple[list[Path], list[str]]:
    """Writes figures as `<model>-<kind>.<form>`, and those of all runs as `<kind>.<form>`.

    Returns their paths, and why each figure that was not asked for by name could not be drawn.

    Raises SelectionError on an unknown kind or format, or where a figure asked for by name can not be drawn.
    """
    if form not in FORMATS:
        raise SelectionError(f"unknown format {form!r}: choose from {', '.join(FORMATS)}")
    names = [*ONE_RUN, *ALL_RUNS] if kinds == "all" else list(kinds)
    unknown = [name for name in names if name not in ONE_RUN and name not in ALL_RUNS]
    if unknown:
        raise SelectionError(f"unknown figure {', '.join(unknown)}: choose from {', '.join([*ONE_RUN, *ALL_RUNS])}")
    jobs = [
        (f"{label}-{name}", ONE_RUN[name], run) for label, run in zip(labels(runs), runs, strict=True) for name in names if name in ONE_RUN
    ]
    if len(runs) > 1 or kinds != "all":
        jobs += [(name, ALL_RUNS[name], runs) for name in names if name in ALL_RUNS]  # type: ignore[misc]
    written, skipped = [], []
    for stem, draw, subject in jobs:
        try:
            written.append(_plots().save(draw(subject, look), folder / f"{stem}.{form}"))
        except SelectionError as error:
            if kinds != "all":
                raise
            skipped.append(f"{stem}: {error}")
    return written, skipped


def draw_training(logs: Sequence[TrainingLog], folder: Path, form: str = "png") -> list[Path]:
    """Writes the figures of training runs: dynamics of all overlaid, and entropy, refinement and drift of each."""
    plots = _plots()
    drawn = [("training", plots.training_dynamics(logs)), ("stability", plots.stability(logs))]
    for log in logs:
        drawn += [
            (f"{log.name}-layer-entropy", plots.layer_entropy_over_steps(log)),
            (f"{log.name}-layer-entropy-change", plots.layer_entropy_over_steps(log, change=True)),
            (f"{log.name}-refinement", plots.refinement(log)),
            (f"{log.name}-drift", plots.drift(log)),
        ]
    return [plots.save(figure, folder / f"{stem}.{form}") for stem, figure in drawn]


def labels(runs: Sequence[Run]) -> list[str]:
    """A file name for each run: its model's, with the norm or a number where two are alike."""
    plain = [run.model.rstrip("/").split("/")[-1] for run in runs]
    named = [f"{name}-{run.norm}" if plain.count(name) > 1 else name for name, run in zip(plain, runs, strict=True)]
    return [f"{name}-{number}" if named.count(name) > 1 else name for number, name in enumerate(named, 1)]
