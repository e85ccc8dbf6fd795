"""Policies of several layers together: mixtures, and contrasts of two layers as in DoLa."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.decode.request import rows_at_once
from layerlens.errors import PromptError, SelectionError
from layerlens.models.policy import NextTokenPolicy, StateReader
from layerlens.prompts.tokens import token_texts
from layerlens.types import Norm, Site

PLAUSIBLE = 0.1
"""α: of DoLa's contrast, the share of the most likely token's probability that a token needs to stay (Chuang et al. 2023)."""


@dataclass(frozen=True)
class LayerMix:
    """Which layers a policy is made of. Make one with `mixture`, `contrasted`, or `parse_mix`.

    Attributes:
        layers: from 1; of a contrast the mature one first, then the premature one.
        weights: one per layer, adding up to 1; None for a contrast.
    """

    layers: tuple[int, ...]
    weights: tuple[float, ...] | None

    @property
    def text(self) -> str:
        """As `parse_mix` reads it."""
        if self.weights is None:
            return "contrast:" + ",".join(map(str, self.layers))
        return "mix:" + ",".join(f"{layer}={weight:g}" for layer, weight in zip(self.layers, self.weights, strict=True))

    @property
    def arguments(self) -> dict[str, Any]:
        """What makes this policy, as arguments of `LensModel.policy`."""
        return {"contrast": self.layers} if self.weights is None else {"layers": self.layers, "weights": self.weights}

    def combined(self, logits: Float[Tensor, "layers *rows vocabulary"]) -> Float[Tensor, "*rows vocabulary"]:
        """Logits of the policy made of the policies π_i with these logits.

        A mixture is Σ w_i π_i. A contrast is softmax(log π_a - log π_b) over the tokens with π_a ≥ α max π_a, -inf elsewhere (DoLa,
        arXiv:2309.03883, equations 3 to 5).
        """
        if len(self.layers) == 1:
            return logits[0]
        policies = logits.log_softmax(-1)
        if self.weights is not None:
            shares = torch.tensor(self.weights, device=logits.device).log().reshape(-1, *[1] * (logits.ndim - 1))
            mixed: Tensor = (policies + shares).logsumexp(0)
            return mixed
        mature, premature = policies
        implausible = mature < mature.amax(-1, keepdim=True) + math.log(PLAUSIBLE)
        contrast: Tensor = (mature - premature).masked_fill(implausible, -torch.inf)
        return contrast


def mixture(layers: Sequence[int], weights: Sequence[float] | None = None) -> LayerMix:
    """The mixture of these layers; weights are equal by default, and are divided by their sum.

    Raises SelectionError if there is no layer, a layer comes twice, or a weight is missing or not above 0.
    """
    given = [1.0] * len(layers) if weights is None else list(weights)
    if not layers or len(set(layers)) < len(layers):
        raise SelectionError(f"a mixture is of one or more layers, each once, got {list(layers)}")
    if len(given) != len(layers) or any(not (math.isfinite(weight) and weight > 0) for weight in given):
        raise SelectionError(f"a mixture of {len(layers)} layers needs as many weights above 0, got {given}")
    return LayerMix(tuple(layers), tuple(weight / sum(given) for weight in given))


def contrasted(layers: Sequence[int]) -> LayerMix:
    """The contrast of a mature layer with a premature one. Raises SelectionError unless these are two different layers."""
    if len(layers) != 2:
        raise SelectionError(f"a contrast is of two layers, the mature one first, got {list(layers)}")
    if layers[0] == layers[1]:
        raise SelectionError(f"the contrast of layer {layers[0]} with itself says nothing: it is uniform over the plausible tokens")
    return LayerMix(tuple(layers), None)


def parse_mix(text: str) -> int | LayerMix:
    """Reads "6" (a layer), "mix:4,8,12", "mix:4=0.2,12=0.8", "contrast:12,4". Raises SelectionError for anything else."""
    kind, colon, rest = text.strip().partition(":")
    parts = [re.fullmatch(r"\s*(\d+)(?:=([\d.eE+-]+))?\s*", part) for part in (rest if colon else kind).split(",")]
    try:
        layers = [int(part[1]) for part in parts if part]
        weights = [float(part[2]) for part in parts if part and part[2]]
    except ValueError:
        layers, weights = [], []
    if len(layers) == len(parts) and len(weights) in (0, len(layers)):
        if kind == "mix" and colon:
            return mixture(layers, weights or None)
        if kind == "contrast" and colon and not weights:
            return contrasted(layers)
        if not colon and len(layers) == 1 and not weights:
            return layers[0]
    raise SelectionError(f"a layer is like 6, mix:4,8,12, mix:4=0.2,12=0.8 or contrast:12,4; got {text!r}")


@dataclass(frozen=True)
class MixedPolicy(NextTokenPolicy):
    """The policy of several layers together, as `mix` says. Make one with `LensModel.policy(layers=...)` or `(contrast=...)`.

    Blocks up to the highest layer run. Every argument `ids` may also be a text, as of an `InternalPolicy`. In a contrast the tokens that
    are not plausible have log-probability -inf.
    """

    mix: LayerMix
    site: Site
    norm: Norm
    read_stack: StateReader
    """Gives the vectors of all layers of `mix`, in their order, in front of the other dimensions."""
    # what NextTokenPolicy says of the model
    unembedding: Any
    require_fits_context: Any
    new_cache: Any
    tokenizer: Any
    device: torch.device
    end_tokens: tuple[int, ...] = ()
    rotary_switch: int | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers, from 1."""
        return self.mix.layers

    def next_logits(self, ids: Int[Tensor, "batch seq"], cache: Any) -> Float[Tensor, "batch vocabulary"]:
        return self.mix.combined(self.unembedding.logits(self.read_stack(ids, cache)[..., -1, :]))

    def log_probs(self, ids: Sequence[int] | Tensor | str) -> Float[Tensor, " seq_minus_1"]:
        """log π(token t+1 | tokens up to t) for each t but the last, in nats, float32."""
        tokens = self._tokens(ids, at_least=2)
        found = [policies.gather(-1, tokens[1:][rows, None])[:, 0] for rows, policies in self._log_policies(tokens, len(tokens) - 1)]
        return torch.cat(found).cpu()

    def entropy(self, ids: Sequence[int] | Tensor | str) -> Float[Tensor, " seq"]:
        """Entropy of the policy at each token of the text, in nats, float32."""
        tokens = self._tokens(ids)
        return torch.cat([torch.special.entr(policies.exp()).sum(-1) for _, policies in self._log_policies(tokens, len(tokens))]).cpu()

    def top(self, ids: Sequence[int] | Tensor | str, k: int = 10) -> pd.DataFrame:
        """The k most likely next tokens after the text: one row per token with `token_id`, `token_text` and `prob`."""
        if k < 1:
            raise PromptError(f"k must be at least 1, got {k}")
        with torch.inference_mode():
            probs = self.next_logits(self._tokens(ids)[None], None)[0].softmax(-1)
        best = probs.topk(min(k, len(probs)))
        token_ids = best.indices.tolist()
        return pd.DataFrame({"token_id": token_ids, "token_text": token_texts(self.tokenizer, token_ids), "prob": best.values.tolist()})

    def _log_policies(self, tokens: Int[Tensor, " seq"], rows: int) -> Any:
        """Yields slices of the first `rows` positions with their log-probabilities, so few at a time that their logits fit."""
        with torch.inference_mode():
            stack = self.read_stack(tokens[None], None)[:, 0, :rows]
            step = rows_at_once(self.unembedding, len(self.layers), second_look=True)
            for first in range(0, rows, step):
                part = slice(first, first + step)
                yield part, self.mix.combined(self.unembedding.logits(stack[:, part])).log_softmax(-1)
