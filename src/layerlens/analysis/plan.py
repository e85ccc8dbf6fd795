"""What an analysis measures, resolved."""

from __future__ import annotations

from dataclasses import dataclass

from layerlens.types import READOUT_METRICS, STREAM_SITES, Module, Norm, Rows, Site

FIELDS = {"entropy": "entropy", "logp_next": "logp", "kl_to_final": "kl", "agrees": "agrees", "kl_from_layer": "kl_from"}
"""Names of the metrics in a run, and in a readout."""


@dataclass(frozen=True)
class Plan:
    """What to measure, resolved: every field as `analyze` documents it."""

    sites: tuple[Site, ...]
    layers: tuple[int, ...]
    metrics: tuple[str, ...]
    norm: Norm
    rows: Rows = "all"
    temperature: float = 1.0
    kl_from_layer: int | None = None
    top_k: int = 0

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules whose stream cosine is measured."""
        return tuple(STREAM_SITES) if "stream_cosine" in self.metrics else ()

    @property
    def decoded(self) -> tuple[str, ...]:
        """Metrics that need the vocabulary."""
        names = tuple(name for name in READOUT_METRICS if name in self.metrics)
        return names if self.kl_from_layer is None else (*names, "kl_from_layer")
