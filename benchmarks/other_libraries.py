"""Entropy as other people's code computes it, to time beside the readout: each function takes vectors and an unembedding.

tuned-lens (Belrose et al. 2023) computes entropy as `layerlens.decode.bench.whole_logits_entropy` does, so it has no function here.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from layerlens.storage.bundled import bundled_model


@torch.no_grad()
def paper_reference(hidden: Tensor, weight: Tensor) -> Tensor:
    """Softmax and log_softmax of whole logits, as in the reference implementation of the paper (arXiv 2512.19673)."""
    logits = hidden @ weight.T
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


@torch.no_grad()
def trl(hidden: Tensor, weight: Tensor) -> Tensor:
    """TRL's kernel for log-probabilities, asked for the entropy as well."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    targets = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ("log_probs", "entropy"))[1]


class TransformerLens:
    """`logit_readout` of a TransformerLens bridge around a bundled model, whose unembedding is replaced by the weights that are given."""

    def __init__(self) -> None:
        self.bridge: Any = None

    @torch.no_grad()
    def __call__(self, hidden: Tensor, weight: Tensor) -> Tensor:
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.tools.analysis import logit_readout

        if self.bridge is None:
            self.bridge = TransformerBridge.boot_transformers(
                str(bundled_model("tiny-qwen3")), device=str(weight.device), dtype=weight.dtype
            )
            self.bridge.eval()
        head = self.bridge.unembed.original_component
        if head.weight.data_ptr() != weight.data_ptr():
            vocabulary, d_model = weight.shape
            head.weight = torch.nn.Parameter(weight, requires_grad=False)
            head.bias = torch.nn.Parameter(weight.new_zeros(vocabulary), requires_grad=False)
            self.bridge.cfg.d_model, self.bridge.cfg.d_vocab = d_model, vocabulary
        return logit_readout(self.bridge, hidden, apply_ln=False, vocab=[0]).entropy


def other_libraries() -> dict[str, Any]:
    """The functions above whose library is installed, by the name under which they are reported."""
    found: dict[str, Any] = {"whole logits (softmax and log_softmax)": paper_reference}
    if find_spec("trl"):
        found["TRL's chunked log-probs"] = trl
    if find_spec("transformer_lens"):
        found["TransformerLens' logit_readout"] = TransformerLens()
    return found
