"""The positions of a sample whose rows are measured."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from layerlens.models import LensModel
from layerlens.prompts.sample import Sample
from layerlens.types import Rows, SimilarityRows

Array = np.ndarray

ROLE = ("assistant", "Assistant")
"""What the paper's code looks for in a prompt: the first for models named Llama or Qwen, the second for others. We take the first found."""

NOWHERE = -1
"""In place of a first position: the prompt names no assistant."""


def measured_rows(sample: Sample, rows: Rows, reference_start: int) -> Int[Array, " rows"]:
    """All positions ("all"), those whose policy predicts a response token ("response"), or from `reference_start` on ("reference")."""
    if rows == "response":
        return np.flatnonzero(sample.in_response)
    return np.arange(reference_start if rows == "reference" else 0, len(sample.token_ids))


def similarity_rows(sample: Sample, rows: SimilarityRows) -> Int[Array, " rows"]:
    """The positions over which layers are compared: all, or response rows without position 0 (all without it, if there is no response).

    The token at position 0 is most models' attention sink: its state can be a hundred times as long as all others, and alone decides
    linear CKA (Sun et al. 2024, "Massive Activations in Large Language Models").
    """
    if rows == "all":
        return np.arange(len(sample.token_ids))
    response = np.flatnonzero(sample.in_response)
    later = response[response > 0]
    return later if len(later) else np.arange(1, len(sample.token_ids))


def reference_start(sample: Sample, model: LensModel) -> int:
    """The first position whose row the paper's code counts, or NOWHERE if the prompt names no assistant.

    Its `prompt_length` is the index of the first token "assistant" + 1, and its rows begin one further on: with P prompt tokens at
    P under ChatML ("assistant\\n"), at P - 1 under Llama 3's header ("assistant<|end_header_id|>\\n\\n"). If a tokenizer cuts the word
    into pieces, the last of them counts, as there. Source: `visualization/plot_internal_entropy.py` of github.com/Trae1ounG/BuPO,
    commit d3a85c6.
    """
    if model.tokenizer is None:
        return NOWHERE
    prompt = list(sample.token_ids[: sample.response_start])
    for word in ROLE:
        pieces = list(model.tokenizer(word, add_special_tokens=False)["input_ids"])
        for index in range(len(prompt) - len(pieces) + 1):
            if pieces and prompt[index : index + len(pieces)] == pieces:
                return index + len(pieces) + 1
    return NOWHERE
