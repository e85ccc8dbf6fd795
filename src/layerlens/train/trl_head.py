"""TRL's fused language-model head, with layerlens' readout in place of its log-probability kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor
from trl.trainer import utils

from layerlens.decode.autograd import token_log_probs
from layerlens.decode.unembedding import Unembedding


@contextmanager
def use_readout_head() -> Iterator[None]:
    """Inside, TRL's trainers compute log-probabilities and entropies by the readout: from float32 logits, under autocast too.

    Only the kernel is replaced, which is one name in one module of TRL. The head around it stays: it finds the unembedding
    inside PEFT, FSDP and DeepSpeed, and knows each model's logit scale and soft-cap.
    """
    with patch.object(utils, "_ChunkedLogProbFunction", _ReadoutKernel):
        yield


class _ReadoutKernel:
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
        """Returns what TRL's kernel does: log-probabilities, entropies, and three values that GRPO never asks for."""
        logp, entropy = token_log_probs(hidden, Unembedding(weight, bias, scale, softcap, temperature), targets)
        return logp, entropy if "entropy" in outputs else None, None, None, None
