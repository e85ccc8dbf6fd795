"""The rules that name a layer: each reads curves, and answers with a layer for the mean and for every resample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from layerlens.metrics.envelope import first_settled, upper_envelope
from layerlens.metrics.phases import PhaseEnds, PhaseRule, contradicting_layers, exploration_rise, first_turn
from layerlens.metrics.skill import first_skilled
from layerlens.selection.curves import Curves
from layerlens.types import Rule

Array = np.ndarray

NAMED = 0.5
"""Share of resamples that must give a layer for it to be named."""


@dataclass(frozen=True)
class Answer:
    """What a rule says. `layers`: its layer for each curve, 0 for none; `reason`: why, of the mean over all samples."""

    layers: Int[Array, " curves"]
    reason: str
    open: str = ""
    """Why the layer only stands at an end of the model, where the data do not show what the rule looks for; empty if they show it."""

    @property
    def layer(self) -> int:
        """The layer that all samples together give; 0 for none."""
        return int(self.layers[0])

    @property
    def shares(self) -> dict[int, float]:
        """How often each layer (0: none) is the answer of a resample, the most frequent first; with one sample there are no resamples."""
        found, counts = np.unique(self.layers[1:], return_counts=True)
        shares = dict(zip(found.tolist(), (counts / max(1, counts.sum())).tolist(), strict=True))
        shares.setdefault(self.layer, 0.0)
        return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))

    @property
    def frequency(self) -> float:
        """Share of resamples that give what all samples together give; NaN without resamples."""
        return self.shares[self.layer] if len(self.layers) > 1 else float("nan")

    @property
    def determined(self) -> bool:
        """Whether at least half of the resamples give what all samples together give. One sample determines what it says."""
        return not self.frequency < NAMED


@dataclass(frozen=True)
class Phases:
    """The phases of the FFN's entropy change, and what the data say against them.

    Attributes:
        ends: of every curve.
        rise: mean ΔS over the exploration phase of every curve, NaN without one.
        margin: what `rise` must exceed for an exploration to count: from the point down to the lower end of the interval of the mean
            ΔS over the layers that the mean over all samples calls exploration. 0 with one problem, and without exploration.
        misfit: cost of the cut of the mean, as a share of Σ |ΔS|.
        contradicting: layers whose interval lies wholly outside what their phase says.
        first_turn: the last layer with ΔS above 0 below the first layer whose interval lies wholly below 0; None if there is none.
    """

    ends: PhaseEnds
    rise: Float[Array, " curves"]
    margin: float
    misfit: float
    contradicting: tuple[int, ...]
    first_turn: int | None


def find_phases_of(curves: Curves, rule: PhaseRule) -> Phases | None:
    """The phases of a run; None if it has no ΔS of the FFN."""
    if curves.ffn_change is None:
        return None
    change = curves.ffn_change
    ends = rule.find(change)
    low, high = curves.interval(change)
    zero = float(rule.zero_band(change)[0, 0])
    turn = first_turn(change[0], high, int(ends.exploration_start[0]))
    rise, margin = exploration_rise(change, ends), 0.0
    if ends.exploration_end[0] and curves.problems > 1:
        same_layers = change[:, ends.exploration_start[0] - 1 : ends.exploration_end[0]].mean(-1)
        margin = float(same_layers[0] - curves.interval(same_layers)[0])
    return Phases(ends, rise, margin, float(ends.misfit[0]), contradicting_layers(low, high, ends, zero), turn)


def answers(curves: Curves, phases: Phases | None, share: float, usable: Bool[Array, " layers"] | None) -> dict[Rule, Answer]:
    """What each rule says whose curves the run holds, in the order of RULES; `usable` are the layers that entropy_drop may name."""
    found: dict[Rule, Answer | None] = {
        "boundary": None if curves.ffn_change is None or phases is None else _boundary(curves.ffn_change, phases),
        "settled": None if curves.kl is None or curves.norm != "final" else _settled(curves.kl),
        "skill": None if curves.skill is None or curves.final_skill is None else _skill(curves.skill, curves.final_skill, share),
        "settling_depth": None if curves.settling is None or curves.norm != "final" else _settling_depth(curves.settling),
        "agreement": None if curves.agreement is None else _agreement(curves.agreement, share),
        "entropy_drop": None if curves.entropy is None else _entropy_drop(curves.entropy, usable),
    }
    kept = {name: answer for name, answer in found.items() if answer is not None}
    if curves.problems < 2:  # resamples of one problem are NaN, and their answers are none
        kept = {name: Answer(answer.layers[:1], answer.reason, answer.open) for name, answer in kept.items()}
    return kept


READS: dict[Rule, str] = {
    "boundary": "entropy at ffn_in and ffn_out",
    "settled": "kl_to_final at resid_pre and resid_post under norm final",
    "skill": "logp_next at resid_post, final_logp_next, and the size of the vocabulary",
    "settling_depth": "js_to_final at resid_post under norm final",
    "agreement": "agrees at resid_post",
    "entropy_drop": "entropy at resid_pre and resid_post",
}
"""What each rule reads, in words."""

LOOKS_FOR: dict[Rule, str] = {
    "boundary": "end of the FFN's exploration (the paper's)",
    "settled": "KL to the final policy stays under 10% of its start",
    "skill": "first with {share} of the final policy's skill",
    "settling_depth": "mean depth at which tokens settle on the final policy",
    "agreement": "first to agree with the final policy on {share} of the tokens",
    "entropy_drop": "largest fall of entropy at a usable layer",
}
"""What each rule looks for, for someone who reads its name for the first time; `{share}` stands for the share that was asked for."""


def _boundary(change: Float[Array, "curves layers"], phases: Phases) -> Answer:
    n_layers, exploration = change.shape[-1], phases.ends.exploration_end
    first, last, rise = int(phases.ends.exploration_start[0]), int(exploration[0]), change[0]
    layers = np.where(phases.rise > phases.margin, np.where(exploration == n_layers, n_layers - 1, exploration), 0)
    if last == 0:
        return Answer(
            layers, f"mean FFN ΔS does not rise above zero in the lower layers (layer 1: {rise[0]:+.2g} nats): no exploration phase"
        )
    if layers[0] == 0:
        which = f"layers {first}-{last}" if first < last else f"layer {last}"
        return Answer(
            layers,
            f"mean FFN ΔS of {which} is {phases.rise[0]:+.2g} nats, within its margin of error ({phases.margin:.2g}): no exploration phase "
            "that these samples show",
        )
    if last < n_layers:
        return Answer(
            layers, f"last layer of exploration: mean FFN ΔS is {rise[last - 1]:+.2g} nats there and {rise[last]:+.2g} at layer {last + 1}"
        )
    turn = "" if phases.contradicting else ", and no interval lies below zero"
    where = (
        f"the layer below the last, as exploration is still open at the top: mean FFN ΔS is {rise[-1]:+.2g} nats at layer {n_layers}{turn}"
    )
    return Answer(
        layers, where, f"exploration is still open at layer {n_layers}, so the data show no end of it; {n_layers - 1} is the last but one"
    )


def _skill(skill: Float[Array, "curves layers"], of: Float[Array, " curves"], share: float) -> Answer:
    layers = _whole(first_skilled(skill, of, share))
    goal = f"{share:.0%} of the final policy's skill ({of[0]:.2g} nats a token)"
    if layers[0] == 0:
        return Answer(layers, f"no layer has {goal}; the best is layer {skill[0].argmax() + 1} with {skill[0].max():.2g}")
    return Answer(layers, f"first layer with {goal}: it has {skill[0, layers[0] - 1]:.2g}", _open_below(layers))


def _settled(kl: Float[Array, "curves depths"]) -> Answer:
    layers = _whole(first_settled(kl))
    if layers[0] == 0:
        return Answer(layers, "the KL to the final policy never falls under a tenth of its start")
    start, here = (float(upper_envelope(kl)[0, depth]) for depth in (0, layers[0]))
    return Answer(
        layers,
        f"first layer from which the KL to the final policy stays under a tenth of its start: {here:.2g} of {start:.2g} nats",
        _open_below(layers),
    )


def _settling_depth(depth: Float[Array, " curves"]) -> Answer:
    return Answer(_whole(np.rint(depth)), f"nearest to the mean depth at which tokens settle: {depth[0]:.1f} layers")


def _agreement(agreement: Float[Array, "curves layers"], share: float) -> Answer:
    enough = agreement >= share
    layers = np.where(enough.any(-1), enough.argmax(-1) + 1, 0)
    if layers[0] == 0:
        return Answer(layers, f"no layer agrees with the final policy on {share:.0%} of tokens (at most {agreement[0].max():.0%})")
    reason = f"first to agree with the final policy on {share:.0%} of tokens ({agreement[0, layers[0] - 1]:.0%})"
    return Answer(layers, reason, _open_below(layers))


def _entropy_drop(entropy: Float[Array, "curves depths"], usable: Bool[Array, " layers"] | None) -> Answer:
    drop = entropy[:, :-1] - entropy[:, 1:]
    allowed = np.ones(drop.shape[-1], bool) if usable is None else usable.copy()
    allowed[0] = False  # what falls from the embedding to layer 1 is no policy that forms
    drop = np.where(allowed, drop, -np.inf)
    layers = np.where(drop.max(-1) > 0, drop.argmax(-1) + 1, 0)
    if layers[0] == 0:
        which = "layer" if usable is None else "usable layer"
        return Answer(layers, f"mean residual entropy falls across no {which} from 2 on")
    among = "layers from 2 on" if usable is None else "usable layers from 2 on"
    return Answer(layers, f"of the {among}, mean residual entropy falls most across it, by {drop[0].max():.2g} nats")


def _open_below(layers: Int[Array, " curves"]) -> str:
    """Of the first layer that passes a threshold: that it is layer 1, if it is."""
    return "the first layer passes already, so the data do not show where the policy forms" if layers[0] == 1 else ""


def _whole(layers: Float[Array, " curves"]) -> Int[Array, " curves"]:
    """Layers as whole numbers, 0 for none (NaN)."""
    whole: Array = np.nan_to_num(layers).astype(np.int64)
    return whole
