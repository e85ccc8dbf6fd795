"""A Run to the layer whose policy is worth training, with its uncertainty; no layer if the data do not show one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from layerlens.errors import SelectionError
from layerlens.metrics import PhaseEnds, PhaseRule, phase_spans
from layerlens.metrics.intervals import RESAMPLES
from layerlens.results import Run
from layerlens.types import NORMS, RULES, LensName, Norm, Rows, Rule, Segment, Weighting

Array = np.ndarray


@dataclass(frozen=True)
class LayerChoice:
    """Which layer to optimise, by which rule, and how stable the answer is when samples are resampled.

    Attributes:
        layer: the chosen layer, from 1; None if the rule finds none (`reason` says why).
        rule: which rule answered (`select_layer` describes them).
        reason: the answer in a sentence, with its figures.
        frequency: share of bootstrap resamples over samples that choose this very layer (or none, if `layer` is None); NaN with one sample.
        candidates: one row per rule and layer that any resample chose, with `rule`, `layer` (<NA>: none), `frequency` and
            `chosen` (whether the rule gives that layer on all samples); rows of `rule` first, then by falling frequency.
        phases: first and last layer of exploration, integration and convergence, None for an empty phase.
        norm, model, n_layers: norm, model name and number of blocks of the run; samples: how many of its samples have rows that count.
        run: the run's folder; None for a run that was never saved.
        fingerprint: digest of the weights that the run measured (`DecoderParts.fingerprint`), None if the run has none.
        lens: lens of the run.
        settings: the arguments of `select_layer` and the constants of its `PhaseRule`, by name.
    """

    layer: int | None
    rule: Rule
    reason: str
    frequency: float
    candidates: pd.DataFrame
    phases: dict[str, tuple[int, int] | None]
    norm: Norm
    model: str
    samples: int
    n_layers: int
    run: str | None
    fingerprint: str | None
    lens: LensName = "logit"
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; NaN becomes None."""
        rows = self.candidates.astype(object).where(self.candidates.notna(), None).to_dict("records")
        return {
            "model": self.model,
            "n_layers": self.n_layers,
            "run": self.run,
            "fingerprint": self.fingerprint,
            "norm": self.norm,
            "lens": self.lens,
            "samples": self.samples,
            "layer": self.layer,
            "rule": self.rule,
            "reason": self.reason,
            "frequency": None if np.isnan(self.frequency) else self.frequency,
            "phases": self.phases,
            "candidates": rows,
            "settings": self.settings,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> LayerChoice:
        """The choice that `to_dict` gave. Raises SelectionError if a key is missing or a value is of another kind."""
        try:
            layer, n_layers, rule, norm = plain["layer"], plain["n_layers"], plain["rule"], plain["norm"]
            whole = type(n_layers) is int and (layer is None or type(layer) is int)
            if not whole or not 1 <= (layer or 1) <= n_layers or rule not in RULES or norm not in NORMS:
                raise SelectionError(
                    f"a choice of layer has a rule of {', '.join(RULES)}, a norm of {', '.join(NORMS)} and a layer in 1..n_layers or "
                    f"null, got rule {rule!r}, norm {norm!r}, layer {layer!r} and n_layers {n_layers!r}"
                )
            return cls(
                **{name: plain[name] for name in ("layer", "rule", "norm", "n_layers", "model", "samples", "run", "fingerprint", "reason")},
                lens=plain.get("lens", "logit"),
                frequency=float("nan") if plain["frequency"] is None else float(plain["frequency"]),
                phases={name: None if span is None else (span[0], span[1]) for name, span in plain["phases"].items()},
                candidates=_table([tuple(row[column] for column in _COLUMNS) for row in plain["candidates"]]),
                settings=dict(plain["settings"]),
            )
        except KeyError as error:
            raise SelectionError(f"a choice of layer needs the key {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise SelectionError(f"a choice of layer holds a value of another kind ({error})") from error


@dataclass(frozen=True)
class _Curves:
    """Curves that the rules read: the mean over all samples in row 0, bootstrap resamples below, layers along the last axis."""

    ffn_change: Float[Array, "curves layers"] | None
    entropy_before: Float[Array, "curves layers"] | None
    entropy_after: Float[Array, "curves layers"] | None
    agreement: Float[Array, "curves layers"] | None


def select_layer(
    run: Run,
    rule: Rule = "boundary",
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
    """Chooses the layer to optimise.

    Rules:
        "boundary": the paper's boundary layer (Bottom-up Policy Optimization, arXiv 2512.19673): the last layer of the
            exploration phase of the FFN's entropy change (`metrics.phases`). None if there is no such phase, or if ΔS never turns.
        "entropy_drop": the layer after the largest drop of mean residual entropy, S(H^(l-1)) - S(H^l). None if it falls nowhere.
        "agreement": the first layer whose most likely token is the final policy's on at least `share` of the rows.

    Args:
        run: an analysis of all layers, with the sites that the rule reads.
        rule: the rule that answers; `candidates` lists what the other rules answer.
        phases: how phases are found; by default `PhaseRule()`.
        share: share of rows that the agreement rule asks for.
        over, rows, segment, drop_first, resamples, seed: as in `Run.bootstrap`.

    Raises:
        SelectionError: an unknown rule, or a run without the layers, sites or metrics that the rule reads.
    """
    if rule not in RULES:
        raise SelectionError(f"unknown rule {rule!r}: choose from {', '.join(RULES)}")
    if run.layers != list(range(1, run.n_layers + 1)):
        raise SelectionError(f"choosing a layer needs all {run.n_layers} layers; the run of {run.model} has {len(run.layers)}")
    zero = phases or PhaseRule()
    samples = 0
    counted: dict[str, Any] = {"rows": rows, "segment": segment, "drop_first": drop_first}

    def curves(name: str, **where: str) -> Float[Array, "curves layers"]:
        nonlocal samples
        point, means = run.bootstrap(name, over=over, **counted, resamples=resamples, seed=seed)
        samples = point.attrs["samples"]  # only samples with a row to average
        return np.concatenate([point.sel(where).values[None], means.sel(where).values])

    def readable(name: str, *sites: str) -> bool:
        return name in run.data and set(sites) <= set(run.sites)

    ffn = curves("entropy_change", module="ffn") if readable("entropy", "ffn_in", "ffn_out") else None
    drop = readable("entropy", "resid_pre", "resid_post")
    data = _Curves(
        ffn_change=ffn,
        entropy_before=curves("entropy", site="resid_pre") if drop else None,
        entropy_after=curves("entropy", site="resid_post") if drop else None,
        agreement=curves("agrees", site="resid_post") if readable("agrees", "resid_post") else None,
    )
    ends = None if ffn is None else zero.find(ffn)
    found = {name: answer(data, ends, share) for name, (_, answer) in _ANSWERS.items()}
    answers = {name: answer for name, answer in found.items() if answer is not None}
    if rule not in answers:
        held = f"{', '.join(map(str, run.data))} at {', '.join(run.sites)}"
        raise SelectionError(f"rule {rule!r} needs {_ANSWERS[rule][0]}; the run of {run.model} has {held}")
    layers, reason = answers[rule]
    frequency = float((layers[1:] == layers[0]).mean()) if samples > 1 else float("nan")
    chosen = int(layers[0]) or None
    spans = {} if ends is None else phase_spans(ends, run.n_layers)
    return LayerChoice(
        layer=chosen,
        rule=rule,
        reason=_sentence(chosen, reason, frequency, samples, answers),
        frequency=frequency,
        candidates=_candidates(answers, rule, samples),
        phases=spans,
        norm=run.norm,
        lens=run.lens,
        model=run.model,
        samples=samples,
        n_layers=run.n_layers,
        run=None if run.path is None else str(Path(run.path).resolve()),
        fingerprint=run.manifest.model.fingerprint or None,
        settings={
            "tolerance": zero.tolerance,
            "entry": zero.entry,
            "z": zero.z,
            "share": share,
            "over": over,
            **counted,
            "resamples": resamples,
            "seed": seed,
        },
    )


Ends = PhaseEnds | None
Answer = tuple[Int[Array, " curves"], str] | None


def _boundary(data: _Curves, ends: Ends, share: float) -> Answer:
    if data.ffn_change is None or ends is None:
        return None
    n_layers, exploration = data.ffn_change.shape[-1], ends.exploration_end
    last, rise = int(exploration[0]), data.ffn_change[0]
    if last == 0:
        reason = f"no exploration phase: mean FFN ΔS does not rise above zero in the lower layers (layer 1: {rise[0]:+.2g} nats)"
    elif last == n_layers:
        reason = f"mean FFN ΔS never turns, it is still {rise[-1]:+.2g} nats at layer {n_layers}"
    else:
        reason = f"last layer of exploration: mean FFN ΔS is {rise[last - 1]:+.2g} nats there and {rise[last]:+.2g} at layer {last + 1}"
    return np.where(exploration == n_layers, 0, exploration), reason


def _entropy_drop(data: _Curves, ends: Ends, share: float) -> Answer:
    if data.entropy_before is None or data.entropy_after is None:
        return None
    drop = data.entropy_before - data.entropy_after
    layers = np.where(drop.max(-1) > 0, drop.argmax(-1) + 1, 0)
    if layers[0] == 0:
        return layers, "mean residual entropy falls in no layer"
    return layers, f"mean residual entropy falls most across it, by {drop[0].max():.2g} nats"


def _agreement(data: _Curves, ends: Ends, share: float) -> Answer:
    if data.agreement is None:
        return None
    enough = data.agreement >= share
    layers = np.where(enough.any(-1), enough.argmax(-1) + 1, 0)
    if layers[0] == 0:
        return layers, f"no layer agrees with the final policy on {share:.0%} of tokens (at most {data.agreement[0].max():.0%})"
    return layers, f"first to agree with the final policy on {share:.0%} of tokens ({data.agreement[0, layers[0] - 1]:.0%})"


_ANSWERS: dict[Rule, tuple[str, Callable[[_Curves, Ends, float], Answer]]] = {
    "boundary": ("entropy at ffn_in and ffn_out", _boundary),
    "entropy_drop": ("entropy at resid_pre and resid_post", _entropy_drop),
    "agreement": ("agrees at resid_post", _agreement),
}
"""What each rule reads, in words, and its function."""


def _sentence(
    layer: int | None, reason: str, frequency: float, samples: int, answers: dict[Rule, tuple[Int[Array, " curves"], str]]
) -> str:
    sure = "one sample, so no bootstrap" if np.isnan(frequency) else f"{frequency:.0%} of resamples of {samples} samples"
    if layer is not None:
        return f"layer {layer}: {reason} ({sure})"
    others = [f"{name} says {int(layers[0])}" for name, (layers, _) in answers.items() if layers[0]]
    return f"no layer: {reason} ({sure}){'; ' + ', '.join(others) if others else ''}"


def _candidates(answers: dict[Rule, tuple[Int[Array, " curves"], str]], first: Rule, samples: int) -> pd.DataFrame:
    rows = []
    for rule in sorted(answers, key=lambda name: (name != first, RULES.index(name))):
        layers = answers[rule][0]
        found, counts = np.unique(layers[1:] if samples > 1 else layers[:1], return_counts=True)
        shares = dict(zip(found.tolist(), (counts / counts.sum()).tolist(), strict=True))
        shares.setdefault(int(layers[0]), 0.0)
        for layer, frequency in sorted(shares.items(), key=lambda item: (-item[1], item[0])):
            rows.append((rule, layer or None, frequency if samples > 1 else np.nan, layer == layers[0]))
    return _table(rows)


_COLUMNS = ("rule", "layer", "frequency", "chosen")
"""Of the table of candidates."""


def _table(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"layer": "Int64", "frequency": "float64"})
