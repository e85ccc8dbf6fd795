"""Which figures runs and training runs can have, and writing them to a folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlens.errors import RunError, SelectionError
from layerlens.storage.files import write_text
from layerlens.types import Rows, Segment, Weighting

if TYPE_CHECKING:
    from layerlens.results import Run, TrainingLog

FORMATS = ("png", "svg", "pdf")
WITHOUT_MONITOR = ("reward", "entropy", "completions/mean_length")
"""Metrics of the figure of a training without a monitor."""
WITH_MONITOR = ("reward", "policy_entropy", "response_length", "perplexity")
OF_MONITOR = ("policy_entropy", "response_length", "perplexity")
"""Metrics of the figure of what the monitor's means have changed since the start."""
SIGNALS = ("distill/", "token_mask/")
"""How columns of the log begin that distillation and token masks add."""
ABOVE = ("similarity/above", "kl/above")
"""Metrics that are added if the watched layer has layers above it."""


@dataclass(frozen=True)
class FigureJob:
    """A figure to write: its file name without ending, and what draws it."""

    stem: str
    draw: Callable[[], Any]


@dataclass(frozen=True)
class FigureOptions:
    """What all figures of one call share.

    Attributes:
        sample: number or id of the sample in the figures of one sample; None takes the first.
        site: of the token heat map and of the curves by layer.
        rows, over, segment: of the means, as in `Run.mean`.
    """

    sample: int | str | None = None
    site: str = "resid_post"
    rows: Rows = "response"
    over: Weighting = "sample"
    segment: Segment | None = None
    reward: str | None = None
    """The reward that says which responses are right, for the figures that tell right from wrong."""

    @property
    def means(self) -> dict[str, Any]:
        """The options of `Run.mean`."""
        return {"rows": self.rows, "over": self.over, "segment": self.segment}


def _plots() -> Any:
    import layerlens.plots

    return layerlens.plots


def _sample(run: Run, options: FigureOptions) -> int | str:
    sample = run.data["sample_index"].values[0] if options.sample is None else options.sample
    return sample if isinstance(sample, str) else int(sample)


def _right(run: Run, options: FigureOptions) -> Any:
    if options.reward is None:
        raise SelectionError(
            "to tell right responses from wrong ones name a reward: --reward math, boxed, arithmetic, module:function or recorded"
        )
    return run.correct(options.reward)


def _change(module: str) -> Callable[[Run, FigureOptions], Any]:
    def draw(run: Run, options: FigureOptions) -> Any:
        from layerlens.selection import select_layer

        marks: dict[str, Any] = {}
        if module == "ffn" and len(run.layers) == run.n_layers:
            marks = {"choice": select_layer(run, "boundary", **options.means)}  # the rule whose phases the figure shades
        return _plots().entropy_change(run, module, **marks, **options.means)

    return draw


def _metric(metric: str) -> Callable[[Run, FigureOptions], Any]:
    return lambda run, options: _plots().metric_by_layer(run, metric, options.site, **options.means)


ONE_RUN: dict[str, Callable[[Run, FigureOptions], Any]] = {
    "tokens": lambda run, options: _plots().entropy_heatmap(run, sample=_sample(run, options), site=options.site),
    "sites": lambda run, options: _plots().entropy_heatmap(run, **options.means),
    "flow": lambda run, options: _plots().entropy_flow(run, **options.means),
    "ffn-change": _change("ffn"),
    "attn-change": _change("attn"),
    "layer-change": _change("layer"),
    "similarity": lambda run, options: _plots().similarity(run, "cosine", **options.means),
    "cka": lambda run, options: _plots().similarity(run, "cka", **options.means),
    "stream-cosine": lambda run, options: _plots().stream_cosine(run, **options.means),
    "state-norm": lambda run, options: _plots().state_norm(run, options.site, **options.means),
    "skill": _metric("skill"),
    "agreement": _metric("agrees"),
    "kl": _metric("kl_to_final"),
    "perplexity": _metric("perplexity"),
    "settling-text": lambda run, options: _plots().settling_text(run, _sample(run, options)),
    "settling": lambda run, options: _plots().settling_depths(run, **options.means),
    "settling-right-wrong": lambda run, options: _plots().settling_depths(run, _right(run, options), **options.means),
    "deep-thinking": lambda run, options: _plots().deep_thinking(run, _right(run, options), options.segment),
}
"""Figures of one run, by the name that the command line uses."""

ON_REQUEST: dict[str, str] = dict.fromkeys(("settling-text", "settling", "settling-right-wrong", "deep-thinking"), "js_to_final")
"""Figures of a variable that few runs have, and the variable: "all" means them only of runs that do."""

RIGHT_OR_WRONG = ("settling-right-wrong", "deep-thinking")
"""Figures that need a reward: "all" means them only if one is named."""

ALL_RUNS: dict[str, Callable[[Sequence[Run], FigureOptions], Any]] = {
    "families": lambda runs, options: _plots().family_grid(runs, **options.means),
    "comparison": lambda runs, options: _plots().compare_families(runs, **options.means),
    "convergence": lambda runs, options: _plots().convergence(runs, **options.means),
}
"""Figures of several runs together."""


def _difference(runs: Sequence[Run], options: FigureOptions) -> Any:
    if len(runs) != 2:
        raise SelectionError(f"a difference is of two runs, before and after; got {len(runs)}")
    if options.sample is None:
        return _plots().difference_heatmap(*runs, **options.means)
    return _plots().difference_heatmap(*runs, sample=options.sample, site=options.site)


def _scale_shape(runs: Sequence[Run], options: FigureOptions) -> Any:
    if len(runs) != 2:
        raise SelectionError(f"scale and shape are of two runs of one model, norm none and norm matched; got {len(runs)}")
    return _plots().scale_shape(*runs, **options.means)


TWO_RUNS: dict[str, Callable[[Sequence[Run], FigureOptions], Any]] = {"difference": _difference, "scale-shape": _scale_shape}
"""Figures of two runs of a model (before and after training, norm none and norm matched), drawn if they are asked for by name."""


def draw_figures(
    runs: Sequence[Run], folder: Path, kinds: str | Iterable[str], options: FigureOptions, form: str = "png", *, with_data: bool = False
) -> tuple[list[Path], list[str]]:
    """Writes figures as `<model>-<kind>.<form>`, and those of all runs as `<kind>.<form>`.

    Args:
        runs: one or several.
        folder: where to write; it is made if it is missing.
        kinds: names of figures, or "all" for those of ONE_RUN and, of several runs, ALL_RUNS.
        options: what the figures share.
        form: one of FORMATS.
        with_data: whether to write each figure's numbers beside it, as CSV.

    Returns:
        The paths of the figures, and why each figure of "all" that the runs hold no data for could not be drawn.

    Raises:
        SelectionError: an unknown kind or format, or a figure that was asked for by name cannot be drawn.
    """
    names = [*ONE_RUN, *ALL_RUNS] if kinds == "all" else list(kinds)
    together = {**ALL_RUNS, **TWO_RUNS}
    if not names:
        raise SelectionError(f"no figure was named: choose all, or from {', '.join([*ONE_RUN, *together])}")
    unknown = [name for name in names if name not in ONE_RUN and name not in together]
    if unknown:
        raise SelectionError(f"unknown figure {', '.join(unknown)}: choose from {', '.join([*ONE_RUN, *together])}")
    jobs = [
        FigureJob(f"{label}-{name}", partial(ONE_RUN[name], run, options))
        for label, run in zip(labels(runs), runs, strict=True)
        for name in names
        if name in ONE_RUN and (kinds != "all" or _meant_by_all(name, run, options))
    ]
    if len(runs) > 1 or kinds != "all":
        jobs += [FigureJob(name, partial(together[name], runs, options)) for name in names if name in together]
    return _write(jobs, folder, form, strict=kinds != "all", with_data=with_data)


def _meant_by_all(name: str, run: Run, options: FigureOptions) -> bool:
    return (name not in ON_REQUEST or ON_REQUEST[name] in run.variables) and (name not in RIGHT_OR_WRONG or options.reward is not None)


def draw_training(logs: Sequence[TrainingLog], folder: Path, form: str = "png", *, with_data: bool = False) -> tuple[list[Path], list[str]]:
    """Writes the figures of training runs: two of all runs overlaid; of each run entropy, modules, refinement, drift, difference.

    Returns:
        The paths of the figures, and why each figure that a run holds no data for could not be drawn.
    """
    plots = _plots()
    monitored = not any(log.monitor.empty for log in logs)
    above = [name for name in ABOVE if all(name in log.monitor for log in logs)]
    metrics = [*WITH_MONITOR, *above] if monitored else WITHOUT_MONITOR
    signals = [name for name in logs[0].log if name.startswith(SIGNALS) and all(name in log.log for log in logs)]
    jobs = [FigureJob("training", partial(plots.training_dynamics, logs, [*metrics, *signals]))]
    if monitored:
        jobs += [
            FigureJob("training-change", partial(plots.training_dynamics, logs, [*OF_MONITOR, *above], change=True)),
            FigureJob("stability", partial(plots.stability, logs)),
        ]
    for log, name in zip(logs, _numbered([log.name for log in logs]), strict=True):
        jobs.append(FigureJob(f"{name}-reward-entropy", partial(plots.reward_over_entropy, log)))
        if log.monitor.empty:
            continue
        jobs += [
            FigureJob(f"{name}-layer-entropy", partial(plots.layer_entropy_over_steps, log)),
            FigureJob(f"{name}-layer-entropy-change", partial(plots.layer_entropy_over_steps, log, change=True)),
            FigureJob(f"{name}-modules", partial(plots.module_entropy, log)),
            FigureJob(f"{name}-refinement", partial(plots.refinement, log)),
            FigureJob(f"{name}-drift", partial(plots.drift, log)),
            FigureJob(f"{name}-difference", partial(_first_to_last, log)),
        ]
    written, skipped = _write(jobs, folder, form, strict=False, with_data=with_data)
    without = [log.name for log in logs if log.monitor.empty]
    if without:
        skipped.append(f"what happened inside {', '.join(without)}: train with --monitor_every 10, say, to see it")
    return written, skipped


def _first_to_last(log: TrainingLog) -> Any:
    try:
        snapshots = log.snapshot(0), log.snapshot(-1)
    except RunError as error:  # the folders of the snapshots are large and may be gone; the other figures do without them
        raise SelectionError(str(error)) from error
    return _plots().difference_heatmap(*snapshots)


def _write(jobs: Sequence[FigureJob], folder: Path, form: str, *, strict: bool, with_data: bool) -> tuple[list[Path], list[str]]:
    """The paths of the figures, and why the others could not be drawn; with `strict` that raises instead."""
    if form not in FORMATS:
        raise SelectionError(f"unknown format {form!r}: choose from {', '.join(FORMATS)}")
    written, skipped = [], []
    for job in jobs:
        try:
            drawn = job.draw()
            written.append(_plots().save(drawn, folder / f"{job.stem}.{form}", command=typed_command()))
        except SelectionError as error:
            if strict:
                raise
            skipped.append(f"{job.stem}: {error}")
            continue
        if with_data:
            written.append(written[-1].with_suffix(".csv"))
            write_text(written[-1], _plots().data(drawn).to_csv(index=False))
    return written, skipped


def typed_command() -> str:
    """The command as it was typed, less the folder for what it writes: it draws the same figures again, wherever they go."""
    words = iter(sys.argv[1:])
    kept = [word for word in words if not (word in ("--out", "-o") and next(words, True)) and not word.startswith("--out=")]
    return shlex.join(["layerlens", *kept])


def labels(runs: Sequence[Run]) -> list[str]:
    """A file name for each run: its model's, with the norm (or the fitted lens) or a number if two are alike."""
    plain = [run.model.rstrip("/").split("/")[-1] for run in runs]
    read_by = [run.norm if run.lens == "logit" else run.lens for run in runs]
    named = [f"{name}-{how}" if plain.count(name) > 1 else name for name, how in zip(plain, read_by, strict=True)]
    return _numbered(named)


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, those that come more than once with a number behind them."""
    return [f"{name}-{number}" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]
