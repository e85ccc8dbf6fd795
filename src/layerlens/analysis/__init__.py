"""Prompts to a Run: sample responses, run the model with hooks, decode what passes, keep a few numbers each."""

from layerlens.analysis.pipeline import analyze

__all__ = ["analyze"]
