"""Pure functions on arrays: similarity of states, convergence of curves, phases of entropy change, means and intervals, Pass@k."""

from layerlens.metrics.convergence import abruptness, convergence_layer, effective_depth
from layerlens.metrics.phases import PhaseEnds, PhaseRule, find_phases, phase_spans
from layerlens.metrics.similarity import CKA_TOKENS, cosine_sums, debiased_cka, state_norm, stream_cosine

__all__ = [
    "CKA_TOKENS", "PhaseEnds", "PhaseRule", "abruptness", "convergence_layer", "cosine_sums", "debiased_cka", "effective_depth",
    "find_phases", "phase_spans", "state_norm", "stream_cosine",
]  # fmt: skip
