"""The line under every figure: which model, norm, lens, samples, rows and mean it shows, and which interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.plots.kit.axes import fit_labels
from layerlens.plots.kit.figure import axes_size, figure_of, run_layout
from layerlens.plots.kit.labels import families, plain, wrapped
from layerlens.plots.kit.style import CAPTION_SIZE, GREY
from layerlens.results import Run
from layerlens.results.training_log import TrainingLog

CAPTION = "caption"
"""The gid of a caption's text, to find it by: `figure.findobj(lambda artist: artist.get_gid() == CAPTION)`."""

ROW_NAMES = {"response": "response rows", "all": "all rows", "reference": "the paper's code's rows"}

LOGIT_LENS = "logit lens"
NO_INTERVAL = "no interval"
MONITOR_MEAN = "mean of per-sample means, response rows"
"""How the training monitor averages over its probe problems."""


def caption_text(*parts: str) -> str:
    """The parts that are not empty, in a row."""
    # the space before each dot does not break, so no line begins with a dot
    return "\u00a0· ".join(part for part in parts if part)


def describe_runs(
    runs: Run | Sequence[Run],
    means: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    *,
    shows: Sequence[str] = (),
    interval: str | None = None,
) -> str:
    """The caption of a figure of runs.

    Args:
        runs: the runs that are drawn.
        means: the attrs (`over`, `rows`, `segment`, `drop_first`, `samples`, `level`) of the mean that is drawn of each run, or of one
            that stands for all; none if no mean is drawn. The figure rests on `samples` of the mean, which may be fewer than
            the run's: a sample without a response has no part in a mean over response rows.
        shows: what else a reader needs, first.
        interval: what to say of the interval; by default that the bootstrap interval of the means is drawn.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    means = [means] * len(runs) if isinstance(means, Mapping) else list(means)
    parts = [*shows, _models(runs), _conventions(runs), _temperatures(runs), _layers(runs), _draws(runs)]
    if means:
        counts = [int(mean["samples"]) for mean in means]
        units = [int(mean.get("problems", mean["samples"])) for mean in means]
        parts += [_samples(runs, counts, units), _weighting(counts, means[0])]
        parts.append(_interval(counts, units, float(means[0]["level"])) if interval is None else interval)
    return caption_text(*parts)


def describe_logs(logs: Sequence[TrainingLog], *shows: str) -> str:
    """The caption of a figure of training runs: models, norm and probe of the monitor, then what else is shown."""
    norms = list(dict.fromkeys(log.norm for log in logs if log.norm))
    counts = list(dict.fromkeys(str(log.problems) for log in logs if log.problems))
    return caption_text(
        ", ".join(dict.fromkeys(plain(log.model) for log in logs)),
        f"internal policies under norm: {' / '.join(norms)}" if norms else "",
        LOGIT_LENS if norms else "",  # the monitor reads through no other
        f"probe of {' / '.join(counts)} problems" if counts else "",
        *(f"{log.name}: {log.objective}" if len(logs) > 1 else log.objective for log in logs if log.objective),
        *shows,
    )


def complete_axes(drawn: Axes | np.ndarray, text: str, *, given: Axes | None = None) -> None:
    """Adds the caption to one axes or an array of them, and fits their labels to the layout."""
    axes = [drawn] if isinstance(drawn, Axes) else list(drawn.flat)
    add_caption(figure_of(axes[0]), text, given)
    run_layout(axes[0])
    for ax in axes:
        fit_labels(ax)


def add_caption(figure: Figure, text: str, given: Axes | None = None) -> None:
    """Writes the caption under a figure that is ours, or under `given`, axes in a figure of the caller."""
    font: dict[str, Any] = {"fontsize": CAPTION_SIZE, "color": GREY, "ha": "left", "fontfamily": families()}
    if given is None:
        lines = wrapped(text, figure.get_figwidth() - 0.1, CAPTION_SIZE)
        figure.supxlabel(lines, x=0.012, **font).set_gid(CAPTION)
    else:
        # a tenth to spare: the axes may still get narrower, and a caption that sticks out would squeeze them
        lines = wrapped(text, max(0.9 * axes_size(given)[0], 2.0), CAPTION_SIZE)
        under: Any = {"xytext": (0, -4), "xycoords": ("axes fraction", given.xaxis.label), "textcoords": "offset points", "va": "top"}
        given.annotate(lines, (0, 0), annotation_clip=False, **under, **font).set_gid(CAPTION)


def listed(names: Sequence[str], most: int = 6) -> str:
    """The names, of which those after the first `most` are counted."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def one_or_each(values: Sequence[str]) -> str:
    """The value that all share, else all of them in order."""
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def row_name(options: Mapping[str, Any]) -> str:
    """Which rows a figure shows, in words, from the options or the attrs of a mean."""
    return f"{options['segment']} rows" if options.get("segment") else ROW_NAMES[options.get("rows", "response")]


def _models(runs: Sequence[Run]) -> str:
    stored = {run.model: run.manifest.model.quantisation for run in runs}
    return listed([plain(name) if how is None else f"{plain(name)} ({how})" for name, how in stored.items()])


def _conventions(runs: Sequence[Run]) -> str:
    """The norms with the lens of each, or the norms and once the logit lens if all runs are read through it."""
    if all(run.lens == "logit" for run in runs):
        return f"norm: {one_or_each([run.convention for run in runs])}, {LOGIT_LENS}"
    return "norm: " + one_or_each([run.convention if run.lens != "logit" else f"{run.convention}, {LOGIT_LENS}" for run in runs])


def _temperatures(runs: Sequence[Run]) -> str:
    values = [run.manifest.config.temperature for run in runs]
    return "" if set(values) == {1.0} else "T = " + one_or_each([f"{value:g}" for value in values])


def _layers(runs: Sequence[Run]) -> str:
    if all(len(run.layers) == run.n_layers for run in runs):
        return ""
    if len(runs) > 1:
        return "some layers not analysed"
    chosen, total = runs[0].layers, runs[0].n_layers
    if len(chosen) > 8:
        return f"{len(chosen)} layers of {total}"
    return f"layer{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))} of {total}"


def _draws(runs: Sequence[Run]) -> str:
    most = [run.tokens_per_sample for run in runs]
    return "tokens decoded per sample: " + one_or_each(["all" if n is None else f"up to {n}" for n in most]) if any(most) else ""


def _samples(runs: Sequence[Run], counts: Sequence[int], problems: Sequence[int]) -> str:
    """How many samples a mean rests on, of how many in the run, and to how many problems they are answers if to fewer."""
    totals = [run.manifest.samples.count for run in runs]
    shown = [f"{n}" if n == total else f"{n} of {total}" for n, total in zip(counts, totals, strict=True)]
    answered = "" if list(problems) == list(counts) else f", answers to {one_or_each([str(n) for n in problems])} problems"
    if len(set(shown)) > 1:
        return f"samples: {' / '.join(shown)}{answered}"
    return f"{shown[0]} sample{'' if shown[0] == '1' else 's'}{' each' if len(runs) > 1 else ''}{answered}"


def _weighting(counts: Sequence[int], mean: Mapping[str, Any]) -> str:
    per_sample = mean["over"] == "sample" and max(counts) > 1
    weighting = "mean of per-sample means" if per_sample else "mean over tokens"
    rows = row_name(mean)
    dropped = f", without each sample's first {mean['drop_first']}" if mean["drop_first"] else ""
    return f"{weighting}, {rows}{dropped}{'' if mean.get('position_0', 1) else ', without position 0'}"


def _interval(counts: Sequence[int], problems: Sequence[int], level: float) -> str:
    known = f"{100 * level:g}% bootstrap interval over {'samples' if list(problems) == list(counts) else 'problems'}"
    if max(counts) < 2:
        return f"1 sample: {NO_INTERVAL}"
    return f"{known} (none for runs of 1 sample)" if min(counts) < 2 else known
