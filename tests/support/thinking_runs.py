"""Runs of responses that think and answer, with settling depths and right answers known by hand."""

from __future__ import annotations

import layerlens as ll
from layerlens.models import LensModel
from tests.support.tiny_models import byte_tokenizer, tiny_model

TEXTS = [("2+2=", r"<think>add</think>\boxed{4}"), ("1+1=", r"<think>no</think>\boxed{3}"), ("0+1=", r"\boxed{1}")]
TRUTHS = "421"
RIGHT = [True, False, True]
LAYERS = 6


def thinking_run(rows: str = "all", copies: int = 1, metrics: tuple[str, ...] = ("settling_depth", "agreement_depth")) -> ll.Run:
    """A run of `TEXTS` (each in `copies` with other prompts) under norm final, at resid_post, in characters as tokens."""
    tokenizer = byte_tokenizer(None)
    model = LensModel.wrap(tiny_model("llama", vocab_size=300, layers=LAYERS), tokenizer, name="thinker")
    samples = [
        ll.Sample(tokenizer(f"{copy}{prompt[1:]}" + response)["input_ids"], len(prompt), id=f"{copy}.{n}", ground_truth=truth)
        for copy in range(copies)
        for n, ((prompt, response), truth) in enumerate(zip(TEXTS, TRUTHS, strict=True))
    ]
    return ll.analyze(model, samples, norm="final", metrics=metrics, sites="resid_post", rows=rows)
