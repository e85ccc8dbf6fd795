"""An internal policy: the distribution over the next token that one layer and site of a model holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from layerlens.decode.interface import readout
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import PromptError
from layerlens.types import Norm, Site

States = Callable[[Int[Tensor, "batch seq"], Any], Float[Tensor, "batch seq d"]]
"""Token ids and a key-value cache (or None) to the vectors that a policy unembeds."""


@dataclass(frozen=True)
class InternalPolicy:
    """softmax(E_u · N(h)) at one layer and site (DEFINITIONS, "Internal policy"): sample from it, score with it, look at it.

    Make one with `LensModel.policy`. Only the blocks up to `layer` run. Wherever `ids` are asked for, a text does as well:
    it is tokenised as it stands, without a chat template. A text that outgrows the model's context, or a token outside its
    vocabulary, is a PromptError.
    """

    layer: int
    site: Site
    norm: Norm
    states: States
    unembedding: Unembedding
    require_room: Callable[[Sequence[int], int], None]
    """Raises PromptError where token ids, with so many more to come, do not fit the model's context or vocabulary."""
    tokenizer: Any
    device: torch.device
    end_tokens: tuple[int, ...] = ()

    def log_probs(self, ids: Sequence[int] | Tensor | str) -> Float[Tensor, " seq_minus_1"]:
        """log π(token t+1 | tokens ..t) of a text of `seq` tokens, nats."""
        tokens = self._tokens(ids, at_least=2)
        targets = torch.cat([tokens[1:], tokens.new_tensor([-1])])
        logp = readout(self._vectors(tokens), self.unembedding, want=("logp",), targets=targets).logp
        assert logp is not None
        return logp[:-1].cpu()

    def entropy(self, ids: Sequence[int] | Tensor | str) -> Float[Tensor, " seq"]:
        """Entropy of the policy after each token, nats."""
        entropy = readout(self._vectors(self._tokens(ids)), self.unembedding, want=("entropy",)).entropy
        assert entropy is not None
        return entropy.cpu()

    def top(self, ids: Sequence[int] | Tensor | str, k: int = 10) -> pd.DataFrame:
        """The k most likely next tokens after the text: one row each with `token_id`, `token_text` and `prob`."""
        if k < 1:
            raise PromptError(f"k must be at least 1, got {k}")
        last = self._vectors(self._tokens(ids))[-1:]
        read = readout(last, self.unembedding, want=(), top_k=k)
        assert read.top_ids is not None
        assert read.top_probs is not None
        token_ids = read.top_ids[0].tolist()
        texts = [self.tokenizer.decode([i]) if self.tokenizer else str(i) for i in token_ids]
        return pd.DataFrame({"token_id": token_ids, "token_text": texts, "prob": read.top_probs[0].tolist()})

    @torch.inference_mode()
    def sample(
        self,
        ids: Sequence[int] | Tensor | str,
        n: int = 1,
        max_new_tokens: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """`n` continuations drawn from this policy alone, each token fed back in; a continuation ends at end-of-sequence.

        Temperature 0 takes the most likely token. The end-of-sequence token is kept as a continuation's last. The text and
        `max_new_tokens` must fit the model's context together.
        """
        if min(n, max_new_tokens) < 1 or not temperature >= 0 or not 0 < top_p <= 1:
            raise PromptError(
                "n and max_new_tokens must be at least 1, temperature 0 or more and top_p in (0, 1], "
                f"got {n}, {max_new_tokens}, {temperature} and {top_p}"
            )
        tokens = self._tokens(ids, new=max_new_tokens).expand(n, -1)
        warp = LogitsProcessorList()
        if temperature not in (0.0, 1.0):
            warp.append(TemperatureLogitsWarper(temperature))
        if top_p < 1.0:
            warp.append(TopPLogitsWarper(top_p))
        generator = torch.Generator(self.unembedding.weight.device).manual_seed(seed)
        cache, feed, out = DynamicCache(), tokens, [[] for _ in range(n)]  # type: ignore[var-annotated]
        open_rows = [True] * n
        for _ in range(max_new_tokens):
            last = self.states(feed, cache)[:, -1]
            scores = warp(tokens, self.unembedding.logits(last))
            greedy = temperature == 0.0
            feed = scores.argmax(-1, keepdim=True) if greedy else torch.multinomial(scores.softmax(-1), 1, generator=generator)
            for row, token in enumerate(feed[:, 0].tolist()):
                if open_rows[row]:
                    out[row].append(token)
                    open_rows[row] = token not in self.end_tokens
            if not any(open_rows):
                break
            feed = feed.to(self.device)
        return out

    def _vectors(self, tokens: Int[Tensor, " seq"]) -> Float[Tensor, "seq d"]:
        with torch.inference_mode():
            return self.states(tokens[None], None)[0]

    def _tokens(self, ids: Sequence[int] | Tensor | str, at_least: int = 1, new: int = 0) -> Int[Tensor, " seq"]:
        if isinstance(ids, str):
            if self.tokenizer is None:
                raise PromptError("a text needs a tokenizer: wrap the model with one, or pass token ids")
            ids = self.tokenizer(ids, add_special_tokens=False)["input_ids"]
        tokens = torch.as_tensor(ids, dtype=torch.long, device=self.device).reshape(-1)
        if len(tokens) < at_least:
            raise PromptError(f"expected at least {at_least} token(s), got {len(tokens)}")
        self.require_room(tokens.tolist(), new)
        return tokens
