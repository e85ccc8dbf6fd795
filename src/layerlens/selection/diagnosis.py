"""Whether the norm of a run reads the model at all."""

from __future__ import annotations

import numpy as np

from layerlens.selection.curves import Curves
from layerlens.selection.rules import NAMED
from layerlens.selection.words import percent


def diagnosis(curves: Curves) -> str | None:
    """A sentence if the last layer's policy is not the final policy's: it agrees on less than half of the tokens, or is no better
    than guessing. None if it is, as always under norm final, or if the run does not tell.
    """
    if curves.norm == "final":
        return None
    agrees = np.nan if curves.agreement is None else float(curves.agreement[0, -1])
    skill = np.nan if curves.skill is None else float(curves.skill[0, -1])
    if not (agrees < NAMED or skill <= 0):
        return None
    facts = [f"agrees with the final policy on {percent(agrees)} of tokens"] if np.isfinite(agrees) else []
    if np.isfinite(skill):
        size = f"{abs(skill):.0f}" if abs(skill) >= 10 else f"{abs(skill):.2g}"
        facts.append(f"is {size} nats a token {'worse' if skill <= 0 else 'better'} than guessing")
    return (
        f"norm {curves.norm} does not read this model: at its last layer it {' and '.join(facts)}; "
        "analyse and train with norm final (layerlens analyze ... --norm final)"
    )
