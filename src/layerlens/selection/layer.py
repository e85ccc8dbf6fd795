"""A Run to the layer whose policy is worth training, with its uncertainty; no layer if the data do not show one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from layerlens.errors import SelectionError
from layerlens.metrics import PhaseRule, phase_spans
from layerlens.metrics.intervals import RESAMPLES
from layerlens.results import Run
from layerlens.selection.choice import LayerChoice, Outcome, candidate_table
from layerlens.selection.curves import Curves, read_curves
from layerlens.selection.diagnosis import diagnosis
from layerlens.selection.rules import READS, Answer, Phases, answers, find_phases_of
from layerlens.selection.words import enough, layer_ranges, nats, percent
from layerlens.types import RULES, Rows, Rule, Segment, Weighting

FEW_PROBLEMS = 8
"""Below this number of problems stability under resampling says little: there are too few data sets to draw."""
STABLE = 0.8
"""Stability under resampling below which it is named among what speaks against a choice."""
POOR_FIT = 0.1
"""Misfit of the phases above which it is named among what speaks against a choice."""
RESAMPLES_OF_THE_OTHER = 200
"""Resamples of the curves by the other weighting, of which only the margin of error is read."""


def select_layer(
    run: Run,
    rule: Rule | None = None,
    *,
    phases: PhaseRule | None = None,
    share: float = 0.5,
    over: Weighting = "sample",
    rows: Rows = "response",
    segment: Segment | None = None,
    drop_first: int = 0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> LayerChoice:
    """Chooses the layer to train.

    Rules:
        "boundary": the paper's boundary layer (Bottom-up Policy Optimization, arXiv 2512.19673): the last layer of the
            exploration phase of the FFN's entropy change (`metrics.phases`). If exploration is still open at the top, the layer
            below the last one, marked open. None if there is no such phase, or if its mean ΔS lies within its margin of error.
        "settled": the first layer from which the KL to the final policy stays under a tenth of its start (`metrics.envelope`).
            Runs of norm final only.
        "skill": the first layer with at least `share` of the final policy's skill (`metrics.skill`).
        "settling_depth": the layer nearest to the mean settling depth of the tokens (`metrics.settling`). Runs of norm final that
            measured `js_to_final` only.
        "agreement": the first layer whose most likely token is the final policy's on at least `share` of the rows.
        "entropy_drop": of the usable layers from 2 on, the one after the largest drop of mean residual entropy,
            S(H^(l-1)) - S(H^l). None if it falls nowhere.

    A layer is named only if at least half of the resamples give it. An answer that only stands at an end of the model is open: the last
    layer but one for an exploration without an end, or layer 1 for a threshold that it passes already; it would be the same whatever the
    data hold in between. Which rule picks the layer that trains best is not known.

    Args:
        run: an analysis of all layers, with the sites and metrics that the rule reads.
        rule: the rule that answers; `candidates` lists what the other rules answer. None asks the rules in the order above, those
            whose answer is open after all others, and takes the first that names a layer that is usable (better than guessing) and
            lies below the last.
        phases: how phases are found; by default `PhaseRule()`.
        share: share of rows that the agreement rule asks for, and of the final policy's skill that the skill rule asks for.
        over, rows, segment, drop_first, resamples, seed: as in `Run.bootstrap`.

    Raises:
        SelectionError: an unknown rule, or a run without the layers, sites or metrics that the rule (or every rule) reads.
    """
    if rule is not None and rule not in RULES:
        raise SelectionError(f"unknown rule {rule!r}: choose from {', '.join(RULES)}")
    zero = phases or PhaseRule()
    options: dict[str, Any] = {"rows": rows, "segment": segment, "drop_first": drop_first, "seed": seed}
    curves = read_curves(run, over=over, resamples=resamples, **options)
    found = find_phases_of(curves, zero)
    said = answers(curves, found, share, curves.usable)
    # an open answer is the same whatever the data hold between the ends of the model, so it is the last resort
    wanted = [rule] if rule is not None else sorted((name for name in RULES if name in said), key=lambda name: bool(said[name].open))
    if not wanted or wanted[0] not in said:
        held = f"{', '.join(run.variables)} at {', '.join(run.sites)}, norm {run.norm}"
        needs = f"rule {rule!r} needs {READS[rule]}" if rule else "choosing a layer needs what a rule reads, such as " + READS["boundary"]
        raise SelectionError(f"{needs}; the run of {run.model} has {held}")
    taken, passed = _take(said, wanted, curves, fallback=rule is None)
    answer, outcome = said[taken], _outcome(said[taken])
    if outcome in ("layer", "open") and any(each.rule == taken for each in passed):
        outcome = "unusable"
    layer = answer.layer if outcome in ("layer", "open") else None
    other: Weighting = "token" if over == "sample" else "sample"
    weighed = read_curves(run, over=other, resamples=min(resamples, RESAMPLES_OF_THE_OTHER), **options)
    usable = curves.usable
    elsewhere = answers(weighed, find_phases_of(weighed, zero), share, usable)[taken].layer
    against = [
        *(each.sentence for each in passed if each.layer or (layer and each.rule != taken)),
        *(_open_boundary(said["boundary"]) if layer and taken != "boundary" and "boundary" in said else ()),
        *_against(answer, outcome, taken, curves, found, None if elsewhere == answer.layer else (other, elsewhere)),
    ]
    return LayerChoice(
        layer=layer,
        rule=taken,
        reason=_sentence(answer, outcome, taken, curves, said),
        frequency=answer.frequency,
        candidates=_candidates(said, taken),
        phases={} if found is None else phase_spans(found.ends, run.n_layers),
        norm=run.norm,
        lens=run.lens,
        model=run.model,
        samples=curves.samples,
        n_layers=run.n_layers,
        run=None if run.path is None else str(Path(run.path).resolve()),
        fingerprint=run.manifest.model.fingerprint or None,
        settings={
            "rule": rule, "tolerance": zero.tolerance, "entry": zero.entry, "share": share, "over": over, "rows": rows, "segment": segment,
            "drop_first": drop_first, "resamples": resamples, "seed": seed,
        },
        outcome=outcome,
        against=tuple(against),
        usable=None if usable is None else tuple((np.flatnonzero(usable) + 1).tolist()),
        skill=None if layer is None or curves.skill is None else float(curves.skill[0, layer - 1]),
        final_skill=None if curves.final_skill is None else float(curves.final_skill[0]),
        diagnosis=diagnosis(curves),
    )  # fmt: skip


class _Passed(NamedTuple):
    """A rule that was asked and not taken: the layer that it names all the same, if any, and why it was not taken."""

    rule: Rule
    layer: int | None
    why: str

    @property
    def sentence(self) -> str:
        return f"{self.rule}{', the rule of the paper,' if self.rule == 'boundary' else ''} {self.why}"


def _outcome(answer: Answer) -> Outcome:
    if not answer.determined:
        return "undetermined"
    return "none" if answer.layer == 0 else "open" if answer.open else "layer"


def _take(said: dict[Rule, Answer], wanted: Sequence[Rule], curves: Curves, fallback: bool) -> tuple[Rule, list[_Passed]]:
    """The rule that answers, and why each rule that was asked before it does not; if none can, the first one."""
    passed: list[_Passed] = []
    for name in wanted:
        answer = said[name]
        outcome = _outcome(answer)
        if not fallback:
            return name, passed
        if outcome == "undetermined":
            passed.append(_Passed(name, None, f"is undetermined: {_shares(answer)}"))
        elif outcome == "none":
            passed.append(_Passed(name, None, f"names no layer: {answer.reason}"))
        elif answer.layer == curves.n_layers and curves.n_layers > 1:
            passed.append(_Passed(name, answer.layer, f"names layer {answer.layer}, the last: training it is training the final policy"))
        elif curves.usable is not None and not curves.usable[answer.layer - 1]:
            why = f"names layer {answer.layer} ({percent(answer.frequency)}), which is not usable: {_skill_of(answer.layer, curves)}"
            passed.append(_Passed(name, answer.layer, why))
        else:
            return name, passed
    return wanted[0], passed


def _open_boundary(answer: Answer) -> Iterator[str]:
    """Yields that the paper's rule names its layer by construction alone, if it does."""
    if answer.open and answer.determined:
        yield _Passed("boundary", answer.layer, f"names layer {answer.layer} by construction: {answer.open}").sentence


def _skill_of(layer: int, curves: Curves) -> str:
    assert curves.skill is not None
    low, high = (float(end[layer - 1]) for end in curves.interval(curves.skill))
    ends = "" if np.isnan(low) else f" ({low:+.2g} to {high:+.2g})"
    return f"its policy gives the text {nats(float(curves.skill[0, layer - 1]))} a token over guessing{ends}"


def _shares(answer: Answer) -> str:
    """How often resamples give which layer, in words."""
    first, *rest = [(f"layer {layer}" if layer else "no layer", frequency) for layer, frequency in answer.shares.items() if frequency > 0]
    return enough([f"{first[0]} in {percent(first[1])} of resamples", *(f"{who} in {percent(frequency)}" for who, frequency in rest)])


def _sentence(answer: Answer, outcome: Outcome, rule: Rule, curves: Curves, said: dict[Rule, Answer]) -> str:
    stable = (
        "one sample, so no bootstrap" if curves.problems < 2 else f"{percent(answer.frequency)} of resamples of {curves.samples} samples"
    )
    if outcome in ("layer", "open"):
        return f"layer {answer.layer}: {answer.reason} ({stable})"
    if outcome == "unusable":
        return f"no layer: of the layers that rules name none is both usable and below the last; {rule} names {answer.layer} ({stable})"
    others = [f"{name} says {each.layer}" for name, each in said.items() if name != rule and each.layer and each.determined]
    what = f"no layer: {answer.reason} ({stable})" if outcome == "none" else f"undetermined: {_shares(answer)} ({curves.samples} samples)"
    return "; ".join([what, ", ".join(others)] if others else [what])


def _against(
    answer: Answer, outcome: Outcome, rule: Rule, curves: Curves, phases: Phases | None, weighed: tuple[Weighting, int] | None
) -> Iterator[str]:
    """Yields what speaks against the answer, or for caution."""
    named = outcome in ("layer", "open")
    if named and curves.usable is None:
        yield "whether the layer is better than guessing is not known: the run lacks logp_next at resid_post, or the size of the vocabulary"
    elif named and not curves.usable[answer.layer - 1]:  # type: ignore[index]
        yield f"the layer is not usable: {_skill_of(answer.layer, curves)}"
    if outcome == "open":
        yield answer.open
    if rule == "boundary" and phases is not None and answer.layer:
        if len(phases.contradicting) > 1:
            turn = f"; ΔS first turns after layer {phases.first_turn}" if phases.first_turn else ""
            yield f"the intervals of layers {layer_ranges(phases.contradicting)} lie on the other side of zero than their phase{turn}"
        if phases.misfit > POOR_FIT:
            yield f"the phases fit poorly: the cut misses {percent(phases.misfit)} of the sum of |ΔS|"
    if answer.layer and rule in ("boundary", "skill", "entropy_drop") and curves.norm == "none":
        yield "norm none compares scales: rescaling weights can move this answer while no output of the model changes"
    if named and curves.problems >= FEW_PROBLEMS and round(answer.frequency, 2) < STABLE:  # as it is shown
        yield f"it is not stable: {_shares(answer)}"
    if curves.problems < FEW_PROBLEMS:
        few = f"{curves.problems} samples are" if curves.problems > 1 else "one sample is"
        yield f"{few} too few to say how stable it is: analyse {FEW_PROBLEMS} or more"
    if weighed is not None:
        yield f"weighing {weighed[0]}s alike, the rule gives {f'layer {weighed[1]}' if weighed[1] else 'no layer'} instead"


def _candidates(said: dict[Rule, Answer], first: Rule) -> pd.DataFrame:
    rows = []
    for rule in sorted(said, key=lambda name: (name != first, RULES.index(name))):
        answer = said[rule]
        for layer, frequency in answer.shares.items():
            chosen = layer == answer.layer
            rows.append((rule, layer or None, frequency if len(answer.layers) > 1 else np.nan, chosen, chosen and bool(answer.open)))
    return candidate_table(rows)
