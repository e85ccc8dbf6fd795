"""Pure functions on arrays: similarity of states, convergence of curves, phases of entropy change, means and intervals, Pass@k."""

from layerlens.metrics.convergence import abruptness, convergence_layer, effective_depth
from layerlens.metrics.envelope import late_share, settle_depth, upper_envelope
from layerlens.metrics.phases import PhaseEnds, PhaseRule, find_phases, phase_spans
from layerlens.metrics.similarity import CKA_TOKENS, cosine_sums, debiased_cka, state_norm, stream_cosine
from layerlens.metrics.skill import is_usable, skill

__all__ = [
    "CKA_TOKENS", "PhaseEnds", "PhaseRule", "abruptness", "convergence_layer", "cosine_sums", "debiased_cka", "effective_depth",
    "find_phases", "is_usable", "late_share", "phase_spans", "settle_depth", "skill", "state_norm", "stream_cosine", "upper_envelope",
]  # fmt: skip
