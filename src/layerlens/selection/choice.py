"""The choice of a layer: what was answered, how stable it is, and what speaks against it; to and from plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from layerlens.errors import SelectionError
from layerlens.types import NORMS, RULES, LensName, Norm, Rule

Outcome = Literal["layer", "open", "undetermined", "none", "unusable"]
"""What came of a choice. "layer": one is named. "open": the one that is named only stands at an end of the model (`select_layer`).
"undetermined": no layer is given by half of the resamples. "none": the rule finds none. "unusable": those that rules name are no
better than guessing, or the last."""


@dataclass(frozen=True)
class LayerChoice:
    """Which layer to train, by which rule, how stable the answer is when samples are resampled, and what speaks against it.

    Attributes:
        layer: the chosen layer, from 1; None if none is named (`reason` says why).
        rule: which rule answered (`select_layer` describes them).
        reason: the answer in a sentence, with its figures.
        frequency: stability under resampling: share of bootstrap resamples over samples that give what all samples together give
            (this layer, or none). It is no probability that the layer is right. NaN with one sample.
        candidates: one row per rule and layer that any resample gave, with `rule`, `layer` (<NA>: none), `frequency`,
            `chosen` (whether the rule gives that layer on all samples) and `open` (whether it only stands at an end of the model);
            rows of `rule` first, then by falling frequency.
        phases: first and last layer of exploration, integration and convergence, None for an empty phase.
        norm, model, n_layers: norm, model name and number of blocks of the run; samples: how many of its samples have rows that count.
        run: the run's folder; None for a run that was never saved.
        fingerprint: digest of the weights that the run measured (`DecoderParts.fingerprint`), None if the run has none.
        lens: lens of the run.
        settings: the arguments of `select_layer` and the constants of its `PhaseRule`, by name.
        outcome: what came of it, in a word (`Outcome`).
        against: what speaks against the layer, or for caution, a sentence each; with the rules that were asked before `rule`.
        usable: the layers whose policy at resid_post is better than guessing (`metrics.skill`); None if the run does not tell.
        skill, final_skill: mean skill of the chosen layer's policy and of the final policy, nats a token; None if not known.
        diagnosis: that the run's norm does not read the model, and what to do; None if it does.
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
    outcome: Outcome = "layer"
    against: tuple[str, ...] = ()
    usable: tuple[int, ...] | None = None
    skill: float | None = None
    final_skill: float | None = None
    diagnosis: str | None = None

    @property
    def is_usable(self) -> bool | None:
        """Whether the chosen layer is usable; None without a layer, or if the run does not tell."""
        return None if self.layer is None or self.usable is None else self.layer in self.usable

    @property
    def recommendation(self) -> str:
        """What `layerlens select` ends with, a line each: which layer, why, how stable, which rules agree, what speaks against it."""
        from layerlens.selection.recommendation import recommendation  # which reads choices

        return "\n".join(f"{label}: {text}" for label, text in recommendation(self))

    def _repr_html_(self) -> str:
        from layerlens.report.notebook import choice_html  # a room above this one, which only a call opens

        return choice_html(self)

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
            "outcome": self.outcome,
            "reason": self.reason,
            "frequency": None if np.isnan(self.frequency) else self.frequency,
            "against": list(self.against),
            "usable": None if self.usable is None else list(self.usable),
            "skill": self.skill,
            "final_skill": self.final_skill,
            "diagnosis": self.diagnosis,
            "phases": self.phases,
            "candidates": rows,
            "settings": self.settings,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> LayerChoice:
        """The choice that `to_dict` gave, of this version or an earlier one.

        Raises SelectionError if a key is missing that every version has written, or if a value is of another kind.
        """
        try:
            layer, n_layers, rule, norm = plain["layer"], plain["n_layers"], plain["rule"], plain["norm"]
            whole = type(n_layers) is int and (layer is None or type(layer) is int)
            if not whole or not 1 <= (layer or 1) <= n_layers or rule not in RULES or norm not in NORMS:
                raise SelectionError(
                    f"a choice of layer has a rule of {', '.join(RULES)}, a norm of {', '.join(NORMS)} and a layer in 1..n_layers or "
                    f"null, got rule {rule!r}, norm {norm!r}, layer {layer!r} and n_layers {n_layers!r}"
                )
            outcome = plain.get("outcome", "none" if layer is None else "layer")
            if outcome not in get_args(Outcome) or (outcome in ("layer", "open")) != (layer is not None):
                raise SelectionError(f"a choice of layer {layer!r} cannot have the outcome {outcome!r}")
            usable = plain.get("usable")
            return cls(
                **{name: plain[name] for name in ("layer", "rule", "norm", "n_layers", "model", "samples", "run", "fingerprint", "reason")},
                frequency=float("nan") if plain["frequency"] is None else float(plain["frequency"]),
                phases={name: None if span is None else (span[0], span[1]) for name, span in plain["phases"].items()},
                candidates=candidate_table(
                    [(*(row[column] for column in _COLUMNS[:-1]), row.get("open", False)) for row in plain["candidates"]]
                ),
                lens=plain.get("lens", "logit"),
                settings=dict(plain["settings"]),
                outcome=outcome,
                against=tuple(map(str, plain.get("against", ()))),
                usable=None if usable is None else tuple(map(int, usable)),
                skill=plain.get("skill"),
                final_skill=plain.get("final_skill"),
                diagnosis=plain.get("diagnosis"),
            )
        except KeyError as error:
            raise SelectionError(f"a choice of layer needs the key {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise SelectionError(f"a choice of layer holds a value of another kind ({error})") from error


_COLUMNS = ("rule", "layer", "frequency", "chosen", "open")
"""Of the table of candidates; a choice of an earlier version lacks the last one."""


def candidate_table(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """The table of candidates, from rows of the values of `_COLUMNS`; a layer of None is none."""
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"layer": "Int64", "frequency": "float64"})
