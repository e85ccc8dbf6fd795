"""From evaluations before and after training to what each layer contributes to the gain."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float

from layerlens.errors import SelectionError
from layerlens.evaluate.result import Evaluation
from layerlens.evaluate.scores import BoundEstimate, estimate_mean
from layerlens.metrics.contribution import contribution
from layerlens.metrics.intervals import LEVEL, RESAMPLES, bootstrap_means, interval
from layerlens.metrics.pass_at_k import avg_at_k
from layerlens.results.contribution import LayerContribution
from layerlens.storage.training_folder import TrainedAs

BASE, ALL = "base", "all"
"""The keys of the model before training, and of the training of all layers."""
OVER = ("problems", "seeds")

Evaluations: TypeAlias = Mapping[int | str, Evaluation | Sequence[Evaluation]]


def layer_contribution(evaluations: Evaluations, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> LayerContribution:
    """C(k) of each layer that was trained alone: its gain in Avg@K as a share of what training all layers gains (docs/definitions.md).

    Args:
        evaluations: of one set of problems: under "base" the model before training, under "all" the models after training all layers, under
            a layer (3, or "1-3" for a set of layers) those after training it alone. One evaluation for each seed of training, in one
            order everywhere, after equal steps.
        level, resamples, seed: of the bootstrap. Problems are drawn with the answers of all models, and seeds with all their models.

    Raises SelectionError if "base", "all" or every layer is missing, if the numbers of seeds differ, if the problems do or how they were
    answered, if an evaluation is given twice, or if the model has no such layer; and where evaluations say how `layerlens train` made
    their models, if other layers were trained than is said here, if objectives, steps, rollouts' sizes or seeds differ, or learning rates
    from seed to seed.
    """
    listed = {str(key): [found] if isinstance(found, Evaluation) else list(found) for key, found in evaluations.items()}
    names = _checked(listed)
    [base] = listed[BASE]
    scores = {name: np.array([avg_at_k(each.correct) for each in listed[name]]) for name in [*names, ALL]}
    gains = np.stack([found - avg_at_k(base.correct) for found in scores.values()], axis=-1)  # seeds x problems x (layers, all)
    points = gains.mean((0, 1))
    draws = {"problems": _draws(gains.mean(0), resamples, seed), "seeds": _draws(gains.mean(1), resamples, seed)}
    counts = {"problems": gains.shape[1], "seeds": gains.shape[0]}
    columns: dict[str, Any] = {"gain": points, "contribution": contribution(points[None], points[None, -1])[0]}
    all_gain = True  # so that there is something to have a share of
    for over, prefix in zip(OVER, ("", "seeds_"), strict=True):
        per_unit = gains.mean(OVER.index(over))  # the mean over the other
        ends = [estimate_mean(column, level=level, resamples=resamples, seed=seed, bounds=(-1.0, 1.0)) for column in per_unit.T]
        columns |= {f"{prefix}{end}": [getattr(each, end) for each in ends] for end in ("low", "high")}
        spread = np.array([not isinstance(each, BoundEstimate) for each in ends])
        all_gain &= bool(spread[-1] and ends[-1].low > 0)  # of problems, the first, and then of seeds; NaN is not above 0
        if over == "problems" and not all_gain:
            columns["contribution"] = np.full_like(points, np.nan)
        shares = contribution(draws[over], draws[over][:, -1])
        found = interval(shares, columns["contribution"], counts[over], level)
        for end, values in zip(("low", "high"), found, strict=True):
            columns[f"contribution_{prefix}{end}"] = np.where(spread & all_gain, values, np.nan)
    rows = pd.DataFrame(
        {"layers": [*names, ALL], "layer": [float(name) if name.isdigit() else np.nan for name in [*names, ALL]], **columns}
    )
    rows = rows.assign(**counts, learning_rate=[_learning_rate(name, listed[name]) for name in [*names, ALL]])
    full = {name: value for name, value in rows.iloc[-1].items() if not str(name).startswith(("contribution", "layer"))}
    kept = {over: values[:, :-1] for over, values in draws.items()}
    return LayerContribution(rows.iloc[:-1], full, float(avg_at_k(base.correct).mean()), base.model, base.task, level, kept)


def _numbers(layers: str) -> set[int] | str:
    """The layers of "3" or "1-3,7"; "all" as it is."""
    if layers == ALL:
        return ALL
    ends = [part.split("-") for part in layers.split(",")]
    return {layer for each in ends for layer in range(int(each[0]), int(each[-1]) + 1)}


def _require_trained_alike(evaluations: Mapping[str, Sequence[Evaluation]]) -> None:
    """Raises SelectionError where evaluations say how their models were trained, and that is not what contributions compare."""
    first: dict[int, tuple[str, TrainedAs]] = {}
    for name, found in evaluations.items():
        for number, each in enumerate(found):
            trained = each.manifest.model.trained
            if trained is None:
                continue
            if _numbers(trained.layers) != _numbers(name):
                raise SelectionError(f"{each.label} is given as {_told(name)}, but its training says {_told(trained.layers)}")
            label, other = first.setdefault(number, (f"{each.label} ({name})", trained))
            for what in ("objective", "steps", "rollout", "seed"):
                ours, theirs = getattr(trained, what), getattr(other, what)
                if ours != theirs and None not in (ours, theirs):
                    raise SelectionError(
                        f"{each.label} ({name}) was trained otherwise than {label}: {what} {ours}, not {theirs}; a contribution compares "
                        "trainings that differ in their layers alone, seed by seed"
                    )


def _learning_rate(name: str, seeds: Sequence[Evaluation]) -> float:
    """The learning rate of the trainings of one kind, NaN where none is told. Raises SelectionError if they had several."""
    trainings = [each.manifest.model.trained for each in seeds]
    rates = {each.learning_rate for each in trainings if each is not None and each.learning_rate is not None}
    if len(rates) > 1:
        told = ", ".join(f"{rate:g}" for rate in sorted(rates))
        raise SelectionError(f"{_told(name)}: seeds were trained at learning rates of {told}; give those of one rate")
    return next(iter(rates), math.nan)


def _told(layers: str) -> str:
    return "all layers" if layers == ALL else f"layer{'' if layers.isdigit() else 's'} {layers}"


def _draws(gains: Float[np.ndarray, "units columns"], resamples: int, seed: int) -> Float[np.ndarray, "resamples columns"]:
    return bootstrap_means(gains, np.ones_like(gains), resamples, seed)[1]


def _checked(evaluations: Mapping[str, Sequence[Evaluation]]) -> list[str]:
    """The names of the layers that were trained alone, from the lowest. Raises SelectionError unless all fits together."""
    names = sorted(set(evaluations) - {BASE, ALL}, key=lambda name: [int(number) for number in re.findall(r"\d+", name)] or [0])
    wrong = [name for name in names if not re.fullmatch(r"[1-9]\d*(?:[-,][1-9]\d*)*", name)]
    if wrong:
        raise SelectionError(f"a contribution is of a layer, like 3, or of layers, like 1-3, beside base and all; got {wrong[0]!r}")
    missing = [what for what in (BASE, ALL) if not evaluations.get(what)] + ([] if names else ["layer trained alone"])
    if missing:
        raise SelectionError(
            f"contributions need evaluations of base (before training), of all layers trained, and of a layer: no {missing[0]}"
        )
    if len(evaluations[BASE]) > 1:
        raise SelectionError(f"base is one model, before training; got {len(evaluations[BASE])} evaluations of it")
    seeds = len(evaluations[ALL])
    base = evaluations[BASE][0]
    for name in names:
        if len(evaluations[name]) != seeds:
            raise SelectionError(
                f"each layer needs one evaluation for each seed, in one order: all has {seeds}, layer {name} has {len(evaluations[name])}"
            )
    given = {base.path: BASE}
    for name in [*names, ALL]:
        for each in evaluations[name]:
            if not each.same_problems(base):
                raise SelectionError(f"{each.label} ({name}) and {base.label} (base) answered different problems: evaluate all on one set")
            if differs := each.sampled_otherwise(base):
                raise SelectionError(
                    f"{each.label} ({name}) was evaluated otherwise than {base.label} (base): {differs}; evaluate all alike"
                )
            if each.path is not None and each.path in given:
                raise SelectionError(
                    f"{each.path} is given twice, as {given[each.path]} and as {name}: name the evaluation of each training"
                )
            given[each.path] = name
    _require_trained_alike({name: evaluations[name] for name in [ALL, *names]})
    for found in evaluations.values():
        for each in found:
            each.require_checked()
    last = base.manifest.model.n_layers
    beyond = [name for name in names if last is not None and max(map(int, re.findall(r"\d+", name))) > last]
    if beyond:
        raise SelectionError(f"{base.model} has {last} layers, so layer {beyond[0]} was not trained alone")
    return names
