"""What a comparison measures of each run: how late its policies settle, and the paper's reading of its entropies."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from jaxtyping import Float

from layerlens.metrics import PhaseRule, abruptness, convergence_layer, effective_depth, late_share, settle_depth
from layerlens.selection.curves import Curves
from layerlens.selection.words import percent

Array = np.ndarray

SETTLING = ("late_share", "settle_depth", "disagreement_late_share", "disagreement_settle_depth")
"""Measures that do not depend on scales the model's function does not see; they need norm final."""
PAPERS = ("convergence_layer", "convergence_depth", "abruptness", "effective_depth", "exploration_end", "integration_end")
"""Measures of entropies and of their change, as the paper reads them."""
RELATIVE = (*SETTLING, "convergence_depth", "abruptness", "effective_depth")
"""Measures on relative depth, of which models of different depth have differences."""
LAYERS = ("convergence_layer", "convergence_depth", "exploration_end", "integration_end")
"""Measures that are layers, or layers over L: their intervals end at layers that resamples gave."""
SHARES = ("late_share", "disagreement_late_share", "abruptness", "effective_depth")
"""Measures that are shown in percent."""
BOUNDS = {**dict.fromkeys((*SETTLING, "effective_depth"), (0.0, 1.0)), "abruptness": (-math.inf, 1.0)}
"""The range of the measures that have one and are no layers: no end of an interval lies outside it."""
LABELS = {
    "late_share": "KL left at 90% of depth",
    "settle_depth": "KL under 10% at l/L",
    "disagreement_late_share": "disagreement left at 90%",
    "disagreement_settle_depth": "disagreement under 10%, l/L",
}
"""What a terminal calls a measure, if not by its name."""


def measure_text(row: pd.Series, name: str) -> str:
    """A measure in a row of a comparison's table with its interval, and in how many resamples it exists if not in all."""
    scale, unit = (100, "%") if name in SHARES else (1, "")
    value, low, high, exists = (float(row[name + end]) for end in ("", "_low", "_high", "_exists"))
    if math.isnan(value):
        return "none" if math.isnan(exists) or exists == 0 else f"none  (exists in {percent(exists)} of resamples)"
    if name == "exploration_end" and value == row["layers"]:
        unit = ", still open"
    if math.isnan(low):
        return f"{scale * value:.3g}{unit}"
    seldom = "" if exists == 1 else f"; exists in {percent(exists)} of resamples"
    return f"{scale * value:.3g}{unit}  ({scale * low:.3g} to {scale * high:.3g}{seldom})"


def measures(curves: Curves, rule: PhaseRule) -> dict[str, Float[Array, " curves"]]:
    """Each measure of every curve, the mean over all samples first; NaN if it does not exist or the run lacks what it reads.

    `late_share` and `settle_depth` (`metrics.envelope`) are of the KL to the final policy and of one minus the agreement with it.
    The paper's are of the entropy of the residual stream, the embedding included (`metrics.convergence`), and of the phases.
    """
    nothing = np.full(1 + curves.resamples, np.nan)
    found: dict[str, Float[Array, " curves"]] = {}
    for prefix, distance in (("", curves.kl), ("disagreement_", curves.disagreement)):
        if distance is not None and curves.norm == "final":
            found |= {f"{prefix}late_share": late_share(distance), f"{prefix}settle_depth": settle_depth(distance)}
    if curves.entropy is not None:
        layer = convergence_layer(curves.entropy)
        found |= {"convergence_layer": layer, "convergence_depth": layer / curves.n_layers}
        found |= {"abruptness": abruptness(curves.entropy), "effective_depth": effective_depth(curves.entropy)}
    if curves.ffn_change is not None:
        _, explored, integrated, _ = rule.find(curves.ffn_change)
        found["exploration_end"] = np.where(explored > 0, explored, np.nan)
        found["integration_end"] = np.where(integrated > explored, integrated, np.nan)
    return {name: found.get(name, nothing) for name in (*SETTLING, *PAPERS)}
