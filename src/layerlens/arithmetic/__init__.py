"""A small verifiable task, its tokenizer, and the training of the two bundled models."""

from __future__ import annotations

from layerlens.arithmetic.dataset import KINDS, SPLITS, Problem, problems, split_of
from layerlens.arithmetic.verifier import verify

__all__ = ["KINDS", "SPLITS", "Problem", "problems", "split_of", "verify"]
