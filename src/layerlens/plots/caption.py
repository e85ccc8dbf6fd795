"""The line under every figure: which model, which norm, how many samples, which mean, which interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.plots.axis import dress
from layerlens.plots.canvas import axes_size, settle
from layerlens.plots.labels import families, plain, wrapped
from layerlens.plots.style import CAPTION_SIZE, GREY
from layerlens.results import Run

CAPTION = "caption"
"""The gid of a caption's text, to find it by: `figure.findobj(lambda artist: artist.get_gid() == CAPTION)`."""


def describe(
    runs: Run | Sequence[Run],
    means: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    shows: str = "",
    interval: bool = True,
) -> str:
    """What a caption must say.

    Args:
        runs: the runs that are drawn.
        means: the attrs of the mean that is drawn of each run (`over`, `rows`, `drop_first`, `samples`, `level`), or of one
            that stands for all; None where no mean is. Its `samples`, and not the run's, are what the figure rests on: a
            sample without a response has no part in a mean over response rows.
        shows: what else a reader needs, first.
        interval: whether the mean's interval is drawn.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    means = [means] * len(runs) if isinstance(means, Mapping) else list(means or ())
    parts = [shows, _models(runs), _norms(runs), _temperatures(runs), _layers(runs), _draws(runs)]
    if means:
        counts = [int(mean["samples"]) for mean in means]
        parts += [_samples(runs, counts), _weighting(counts, means[0])]
        if interval:
            parts.append(_interval(counts, float(means[0]["level"])))
    # the space before each dot does not break, so no line begins with a dot
    return "\u00a0· ".join(part for part in parts if part)


def finish(drawn: Axes, given: Axes | None, text: str) -> Axes:
    """The axes with its caption, under the figure where we made it or under the axes where it was given; and dressed."""
    figure = drawn.get_figure(root=True)
    assert figure is not None
    add_caption(figure if given is None else drawn, text)
    settle(drawn)
    dress(drawn)
    return drawn


def add_caption(where: Axes | Figure, text: str) -> None:
    """Writes the caption under a whole figure that is ours, or under one axes of the caller's figure."""
    look: dict[str, Any] = {"fontsize": CAPTION_SIZE, "color": GREY, "ha": "left", "fontfamily": families()}
    if isinstance(where, Figure):
        lines = wrapped(text, where.get_figwidth() - 0.1, CAPTION_SIZE)
        where.supxlabel(lines, x=0.012, **look).set_gid(CAPTION)
        return
    lines = wrapped(text, max(axes_size(where)[0], 2.0), CAPTION_SIZE)
    under = ("axes fraction", where.xaxis.label)
    where.annotate(
        lines, (0, 0), xytext=(0, -4), xycoords=under, textcoords="offset points", va="top", annotation_clip=False, **look
    ).set_gid(CAPTION)


def _models(runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(plain(run.model) for run in runs))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _norms(runs: Sequence[Run]) -> str:
    return _each("norm: ", [run.norm for run in runs])


def _temperatures(runs: Sequence[Run]) -> str:
    values = [run.manifest.config.temperature for run in runs]
    return "" if set(values) == {1.0} else _each("T = ", [f"{value:g}" for value in values])


def _layers(runs: Sequence[Run]) -> str:
    if all(len(run.layers) == run.n_layers for run in runs):
        return ""
    if len(runs) > 1:
        return "some layers not analysed"
    chosen = runs[0].layers
    shown = ", ".join(map(str, chosen)) if len(chosen) <= 8 else f"{len(chosen)} layers"
    return f"layer{'s' if len(chosen) > 1 else ''} {shown} of {runs[0].n_layers}" if len(chosen) <= 8 else f"{shown} of {runs[0].n_layers}"


def _draws(runs: Sequence[Run]) -> str:
    most = [run.tokens_per_sample for run in runs]
    return _each("tokens decoded per sample: ", ["all" if n is None else f"up to {n}" for n in most]) if any(most) else ""


def _samples(runs: Sequence[Run], counts: Sequence[int]) -> str:
    totals = [run.manifest.samples.count for run in runs]
    shown = [f"{n}" if n == total else f"{n} of {total}" for n, total in zip(counts, totals, strict=True)]
    if len(set(shown)) > 1:
        return f"samples: {' / '.join(shown)}"
    return f"{shown[0]} sample{'' if shown[0] == '1' else 's'}{' each' if len(runs) > 1 else ''}"


def _weighting(counts: Sequence[int], mean: Mapping[str, Any]) -> str:
    per_sample = mean["over"] == "sample" and max(counts) > 1
    weighting = "mean of per-sample means" if per_sample else "mean over tokens"
    rows = "response rows" if mean["rows"] == "response" else "all rows"
    dropped = f", without each sample's first {mean['drop_first']}" if mean["drop_first"] else ""
    return f"{weighting}, {rows}{dropped}"


def _interval(counts: Sequence[int], level: float) -> str:
    known = f"{100 * level:g}% bootstrap interval over samples"
    if max(counts) < 2:
        return "1 sample: no interval"
    return f"{known} (none for runs of 1 sample)" if min(counts) < 2 else known


def _each(prefix: str, values: Sequence[str]) -> str:
    return prefix + (values[0] if len(set(values)) == 1 else " / ".join(values))
