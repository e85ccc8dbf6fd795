"""What an analysis measures, resolved and checked."""

from __future__ import annotations

from dataclasses import dataclass, replace

from layerlens.prompts.segments import THINK, Marks
from layerlens.types import READOUT_METRICS, REQUESTED_METRICS, STREAM_SITES, LensName, Module, Norm, Rows, SimilarityRows, Site

READOUT_FIELDS = {
    "entropy": "entropy",
    "logp_next": "logp",
    "kl_to_final": "kl",
    "agrees": "agrees",
    "kl_from_layer": "kl_from",
    "js_to_final": "js",
    "kl_from_final": "kl_from_final",
    "rank_next": "rank",
    "renyi_2": "renyi",
}
"""Names of metrics in a run, and of the fields of a Readout."""


@dataclass(frozen=True)
class Plan:
    """What to measure; fields as `analyze` documents its arguments, every "all" resolved. `backend` is a concrete one."""

    sites: tuple[Site, ...]
    layers: tuple[int, ...]
    metrics: tuple[str, ...]
    norm: Norm
    rows: Rows = "all"
    temperature: float = 1.0
    kl_from_layer: int | None = None
    top_k: int = 0
    spread: float | None = None
    lens: LensName = "logit"
    lens_fingerprint: str | None = None
    backend: str = "auto"
    thinking_marks: Marks = THINK
    absent_sites: tuple[Site, ...] = ()
    """Sites that the model's architecture does not have, such as resid_mid in parallel blocks."""
    similarity_rows: SimilarityRows = "response"

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules whose stream cosine is measured: those whose sites the architecture has."""
        if "stream_cosine" not in self.metrics:
            return ()
        return tuple(module for module, sites in STREAM_SITES.items() if not {*sites} & {*self.absent_sites})

    @property
    def decoded(self) -> tuple[str, ...]:
        """Metrics that need the vocabulary."""
        names = tuple(name for name in READOUT_METRICS + REQUESTED_METRICS if name in self.metrics)
        return names if self.kl_from_layer is None else (*names, "kl_from_layer")

    @property
    def spreads(self) -> bool:
        """Whether the spread of logits is measured."""
        return "logit_sd" in self.metrics

    @property
    def unembeds(self) -> bool:
        """Whether states are turned into vectors to unembed."""
        return bool(self.decoded or self.top_k or self.spreads)

    @property
    def reads_states(self) -> bool:
        """Whether states are read at every layer and site of the plan."""
        return self.unembeds or "state_norm" in self.metrics

    @property
    def readout_fields(self) -> tuple[str, ...]:
        """What `readout` is asked for."""
        return tuple(READOUT_FIELDS[name] for name in self.decoded)

    def without(self, metric: str) -> Plan:
        """This plan without one of its metrics."""
        return replace(self, metrics=tuple(name for name in self.metrics if name != metric))
