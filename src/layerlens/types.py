"""The vocabulary that every room shares: sites, norm conventions, modules, and the metrics with their units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral
from typing import Literal, TypeVar, get_args

from layerlens.errors import SelectionError

Site = Literal["resid_pre", "attn_in", "attn_out", "resid_mid", "ffn_in", "ffn_out", "resid_post"]
ForwardNorm = Literal["none", "final"]
"""Norm conventions that the model's own forward can compute, so that a policy can answer and be trained under them."""
Norm = Literal["none", "final", "matched"]
FittedLensName = Literal["jacobian", "tuned"]
LensName = Literal["logit", "jacobian", "tuned"]
Module = Literal["attn", "ffn", "layer"]
Weighting = Literal["sample", "token"]
Rows = Literal["response", "all", "reference"]
SimilarityRows = Literal["response", "all"]
Keep = Literal["rows", "means"]
"""What a run folder keeps of a sample: every row, or means alone."""
Segment = Literal["prompt", "thinking", "answer"]
Rule = Literal["boundary", "settled", "skill", "settling_depth", "agreement", "entropy_drop"]
Library = Literal["transformers", "transformer_lens"]
EngineName = Literal["auto", "transformers", "vllm"]

MOST, LARGEST_SEED = 10**9, 2**63 - 1
"""The largest whole numbers that options and settings take: no machine holds MOST rows, samples or tokens."""

SITES: tuple[Site, ...] = get_args(Site)
NORMS: tuple[Norm, ...] = get_args(Norm)
SEGMENTS: tuple[Segment, ...] = get_args(Segment)
LIBRARIES: tuple[Library, ...] = get_args(Library)
"""Libraries that can run a model that is analysed."""
FORWARD_NORMS: tuple[ForwardNorm, ...] = get_args(ForwardNorm)
FITTED_LENSES: tuple[FittedLensName, ...] = get_args(FittedLensName)
RULES: tuple[Rule, ...] = get_args(Rule)
"""Rules by which `select_layer` chooses, in the order in which they are asked."""

MODULE_SITES: dict[Module, tuple[Site, Site]] = {
    "attn": ("attn_in", "attn_out"),
    "ffn": ("ffn_in", "ffn_out"),
    "layer": ("resid_pre", "resid_post"),
}
"""The two sites that a module's entropy change compares: S(second) - S(first)."""

STREAM_SITES: dict[Module, tuple[Site, Site]] = {"attn": ("attn_out", "resid_pre"), "ffn": ("ffn_out", "resid_mid")}
"""The two sites that a module's stream cosine compares."""

READOUT_METRICS = ("entropy", "logp_next", "kl_to_final", "agrees")
"""Metrics decoded through the vocabulary, one value per token, layer and site."""

STATE_METRICS = ("logit_sd", "similarity", "stream_cosine", "state_norm")
"""Metrics computed on hidden states alone."""

METRICS = READOUT_METRICS + STATE_METRICS
"""What "all" stands for."""

REQUESTED_METRICS = ("js_to_final", "kl_from_final", "rank_next", "renyi_2")
"""Metrics like `READOUT_METRICS` that read the logits a second time, and so are measured only if they are asked for by name."""

DERIVED_FROM = {"settling_depth": "js_to_final", "deep_thinking_ratio": "js_to_final", "agreement_depth": "agrees"}
"""Metrics of a token that follow from a stored one of all layers: to ask for one of them is to ask for what it follows from."""

METRIC_INFO: dict[str, tuple[str, str]] = {
    "entropy": ("entropy of the internal policy", "nats"),
    "logit_sd": ("spread of the logits over the vocabulary", "logits"),
    "logp_next": ("log-probability of the next token", "nats"),
    "skill": ("skill (log-probability of the next token beyond guessing)", "nats"),
    "final_logp_next": ("log-probability of the next token under the final policy", "nats"),
    "kl_to_final": ("KL divergence to the final policy", "nats"),
    "js_to_final": ("Jensen-Shannon divergence of the final policy", "bits"),
    "kl_from_final": ("KL divergence from the final policy", "nats"),
    "rank_next": ("rank of the next token", "1"),
    "renyi_2": ("collision entropy of the internal policy", "nats"),
    "settling_depth": ("settling depth", "layer"),
    "agreement_depth": ("agreement depth", "layer"),
    "deep_thinking_ratio": ("deep-thinking ratio", "share of tokens"),
    "kl_from_layer": ("KL divergence from the reference layer's policy", "nats"),
    "agrees": ("agreement with the final policy's argmax", "share of tokens"),
    "perplexity": ("perplexity of the next token", "1"),
    "log_perplexity": ("log perplexity of the next token", "nats per token"),
    "entropy_change": ("entropy change of the module", "nats"),
    "similarity": ("cosine similarity of the residual stream", "1"),
    "cka": ("debiased linear CKA of the residual stream", "1"),
    "stream_cosine": ("cosine between a module's output and the stream it writes to", "1"),
    "state_norm": ("Euclidean norm of the state", "1"),
    "top_ids": ("most likely token ids", "1"),
    "top_probs": ("probabilities of the most likely tokens", "1"),
}
"""Long name and unit of every variable, as docs/definitions.md gives them."""

UNBOUNDED = (-math.inf, math.inf)
METRIC_BOUNDS: dict[str, tuple[float, float]] = {
    "entropy": (0.0, math.inf),
    "logp_next": (-math.inf, 0.0),
    "final_logp_next": (-math.inf, 0.0),
    "log_perplexity": (0.0, math.inf),
    "kl_to_final": (0.0, math.inf),
    "kl_from_layer": (0.0, math.inf),
    "js_to_final": (0.0, 1.0),
    "kl_from_final": (0.0, math.inf),
    "rank_next": (1.0, math.inf),
    "renyi_2": (0.0, math.inf),
    "settling_depth": (1.0, math.inf),
    "agreement_depth": (1.0, math.inf),
    "deep_thinking_ratio": (0.0, 1.0),
    "agrees": (0.0, 1.0),
    "similarity": (-1.0, 1.0),
    "stream_cosine": (-1.0, 1.0),
    "state_norm": (0.0, math.inf),
}
"""The range of the metrics that have one: no end of an interval lies outside it."""


def resolve_sites(sites: str | Iterable[str]) -> tuple[Site, ...]:
    """`"all"`, one name or several, as a tuple in the order the data flows. Raises SelectionError on an unknown one."""
    return _resolve("site", sites, SITES)


def resolve_metrics(metrics: str | Iterable[str]) -> tuple[str, ...]:
    """`"all"`, one name or several (`"all"` among them), as a tuple in the standard order.

    "all" stands for METRICS. A derived metric stands for the one that it follows from. Raises SelectionError on an unknown one.
    """
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    stored = [DERIVED_FROM.get(name, name) for name in names if name != "all"]
    return _resolve("metric", [*stored, *(METRICS if "all" in names else ())], METRICS + REQUESTED_METRICS)


def resolve_norm(norm: str) -> Norm:
    """The norm convention, checked. Raises SelectionError on an unknown one."""
    return _resolve("norm", norm, NORMS)[0]


def resolve_forward_norm(norm: str) -> ForwardNorm:
    """A norm convention under which a policy can answer and be trained, checked. Raises SelectionError on any other."""
    return _resolve("norm", norm, FORWARD_NORMS)[0]


def resolve_layers(layers: str | Iterable[int] | int, n_layers: int) -> tuple[int, ...]:
    """`"all"`, one layer or several (1...L), sorted. Raises SelectionError for a layer that the model lacks."""
    if isinstance(layers, str) and layers == "all":
        return tuple(range(1, n_layers + 1))
    wanted = [layers] if isinstance(layers, str | Integral) else list(layers)  # type: ignore[arg-type]
    if not wanted or not all(
        isinstance(layer, Integral) and not isinstance(layer, bool) and 1 <= int(layer) <= n_layers for layer in wanted
    ):
        raise SelectionError(f"layers must be in 1..{n_layers} (counted from 1), got {', '.join(map(str, wanted)) or 'none'}")
    return tuple(sorted({int(layer) for layer in wanted}))


_Name = TypeVar("_Name", bound=str)


def _resolve(kind: str, wanted: str | Iterable[str], known: tuple[_Name, ...]) -> tuple[_Name, ...]:
    names = known if wanted == "all" else (wanted,) if isinstance(wanted, str) else tuple(wanted)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise SelectionError(f"unknown {kind} {', '.join(map(repr, unknown)) or '(none given)'}: choose from {', '.join(known)}")
    return tuple(name for name in known if name in names)
