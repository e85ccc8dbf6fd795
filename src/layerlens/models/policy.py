"""An internal policy: the distribution over the next token that one layer and site of a model holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerlens.decode.interface import readout
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import PromptError
from layerlens.models.sampling import Generation, until_end
from layerlens.prompts.tokens import plain_ids, token_texts
from layerlens.types import LensName, Norm, Site

StateReader = Callable[[Int[Tensor, "batch seq"], Any], Float[Tensor, "batch seq d"]]
"""Takes token ids and a key-value cache (or None), and gives the vectors that a policy unembeds."""

LINEAR_ATTENTIONS_FLAGS = ("is_conv_states_initialized", "is_recurrent_states_initialized")
"""What a cache's layer of linear attention says of its states: one flag, or one for each state."""


class NextTokenPolicy(ABC):
    """A distribution over the next token that can be sampled from: what the policies of one and of several layers share."""

    unembedding: Unembedding
    require_fits_context: Callable[[Sequence[int], int], None]
    new_cache: Callable[[], Any]
    tokenizer: Any
    device: torch.device
    end_tokens: tuple[int, ...]
    rotary_switch: int | None

    @abstractmethod
    def next_logits(self, ids: Int[Tensor, "batch seq"], cache: Any) -> Float[Tensor, "batch vocabulary"]:
        """Logits of the token after each row of `ids`, which continue the sequences of a key-value cache, or None."""

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
        """`n` continuations of the text, drawn token by token from this policy alone; each ends after an end-of-sequence token.

        Args:
            max_new_tokens, temperature, top_p, seed: as in `Generation`, but one generator draws all `n` continuations.

        Raises:
            PromptError: a setting is out of its range, or text and continuation do not fit the model's context.
        """
        if n < 1:
            raise PromptError(f"n must be at least 1, got {n}")
        generation = Generation(max_new_tokens, temperature, top_p, seed)
        tokens = self._tokens(ids, new=max_new_tokens).expand(n, -1)
        warpers = generation.warpers()
        generator = torch.Generator(self.unembedding.weight.device).manual_seed(seed)
        cache, feed, text = self.new_cache(), tokens, tokens
        ended = [False] * n
        for _ in range(max_new_tokens):
            scores = warpers(tokens, self.next_logits(feed, cache))
            feed = scores.argmax(-1, keepdim=True) if generation.greedy else torch.multinomial(scores.softmax(-1), 1, generator=generator)
            feed = feed.to(self.device)
            text = torch.cat([text, feed], 1)
            ended = [done or token in self.end_tokens for done, token in zip(ended, feed[:, 0].tolist(), strict=True)]
            if all(ended):
                break
            if not holds_states(cache) or text.shape[1] - 1 == self.rotary_switch:
                cache, feed = self.new_cache(), text
        return [until_end(row, self.end_tokens) for row in text[:, tokens.shape[1] :].tolist()]

    def _tokens(self, ids: Sequence[int] | Tensor | str, at_least: int = 1, new: int = 0) -> Int[Tensor, " seq"]:
        if isinstance(ids, str):
            if self.tokenizer is None:
                raise PromptError("a text needs a tokenizer: wrap the model with one, or pass token ids")
            ids = plain_ids(self.tokenizer, ids)
        tokens = torch.as_tensor(ids, dtype=torch.long, device=self.device).reshape(-1)
        if len(tokens) < at_least:
            raise PromptError(f"expected at least {at_least} token(s), got {len(tokens)}")
        self.require_fits_context(tokens.tolist(), new)
        return tokens


@dataclass(frozen=True)
class InternalPolicy(NextTokenPolicy):
    """softmax(readout(h) / T) of the hidden vector h at one layer and site (docs/definitions.md, "Internal policy").

    Make one with `LensModel.policy`. Only the blocks up to `layer` run. Every argument `ids` may also be a text, which is
    tokenised as it stands, without a chat template but with BOS if the tokenizer puts it in front. A text that does not fit the
    model's context, or a token outside its vocabulary, raises PromptError.
    """

    layer: int
    site: Site
    norm: Norm
    read_states: StateReader
    unembedding: Unembedding
    require_fits_context: Callable[[Sequence[int], int], None]
    """Takes token ids and a number of new tokens; raises PromptError if they do not fit the model's context or vocabulary."""
    new_cache: Callable[[], Any]
    """Makes an empty key-value cache for the model."""
    tokenizer: Any
    device: torch.device
    end_tokens: tuple[int, ...] = ()
    rotary_switch: int | None = None
    """The length beyond which a text is read anew, as the model reads it with other rotary frequencies; None if there is none."""
    lens: LensName = "logit"

    def log_probs(self, ids: Sequence[int] | Tensor | str) -> Float[Tensor, " seq_minus_1"]:
        """log π(token t+1 | tokens up to t) for each t but the last of a text of `seq` tokens, in nats, float32."""
        tokens = self._tokens(ids, at_least=2)
        targets = torch.cat([tokens[1:], tokens.new_tensor([-1])])
        logp = readout(self._vectors(tokens), self.unembedding, want=("logp",), targets=targets).logp
        assert logp is not None
        return logp[:-1].cpu()

    def entropy(self, ids: Sequence[int] | Tensor | str) -> Float[Tensor, " seq"]:
        """Entropy of the policy at each token of the text, in nats, float32."""
        entropy = readout(self._vectors(self._tokens(ids)), self.unembedding, want=("entropy",)).entropy
        assert entropy is not None
        return entropy.cpu()

    def top(self, ids: Sequence[int] | Tensor | str, k: int = 10) -> pd.DataFrame:
        """The k most likely next tokens after the text: one row per token with `token_id`, `token_text` and `prob`."""
        if k < 1:
            raise PromptError(f"k must be at least 1, got {k}")
        last = self._vectors(self._tokens(ids))[-1:]
        read = readout(last, self.unembedding, want=(), top_k=k)
        assert read.top_ids is not None
        assert read.top_probs is not None
        token_ids = read.top_ids[0].tolist()
        texts = token_texts(self.tokenizer, token_ids)
        return pd.DataFrame({"token_id": token_ids, "token_text": texts, "prob": read.top_probs[0].tolist()})

    def next_logits(self, ids: Int[Tensor, "batch seq"], cache: Any) -> Float[Tensor, "batch vocabulary"]:
        return self.unembedding.logits(self.read_states(ids, cache)[:, -1])

    def _vectors(self, tokens: Int[Tensor, " seq"]) -> Float[Tensor, "seq d"]:
        with torch.inference_mode():
            return self.read_states(tokens[None], None)[0]


def holds_states(cache: Any) -> bool:
    """Whether a forward pass has written to a cache.

    It has not if it ended before the first attention, or if the model (Mamba) takes its cache in another way: then the next token is read
    with the whole text before it.
    """
    flags = [getattr(layer, name, False) for layer in cache.layers for name in ("is_initialized", *LINEAR_ATTENTIONS_FLAGS)]
    return any(any(flag.values()) if isinstance(flag, dict) else flag for flag in flags)
