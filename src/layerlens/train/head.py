"""TRL's fused language-model head, with our readout in the place of its kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer import utils

from layerlens.decode.autograd import token_log_probs
from layerlens.decode.unembedding import Unembedding


@contextmanager
def streamed_head() -> Iterator[None]:
    """Inside, log-probabilities and entropies that TRL's trainers compute are the readout's: float32 logits, under autocast too.

    TRL's head finds the unembedding through PEFT, FSDP and DeepSpeed, and knows each model's scale and soft-cap: all of that
    stays. Its kernel is one name in one module.
    """
    with patch.object(utils, "_ChunkedLogProbFunction", _Kernel):
        yield


class _Kernel:
    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        scale: float = 1.0,
        outputs: tuple[str, ...] = (),
    ) -> tuple[Any, ...]:
        """What `ChunkedLogProbFunction.apply` returns: log-probabilities, entropies, and three numbers that GRPO never asks for."""
        if hasattr(weight, "ds_id"):  # ZeRO-3 takes the weight apart again before the backward: TRL's kernel knows how to get it back
            return ChunkedLogProbFunction.apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs)  # type: ignore[no-any-return]
        logp, entropy = token_log_probs(hidden, Unembedding(weight, bias, scale, softcap, temperature), targets)
        return logp, entropy if "entropy" in outputs else None, None, None, None
