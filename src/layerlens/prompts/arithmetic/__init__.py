"""A generator of arithmetic problems with worked solutions and exact answers, in splits that cannot overlap."""

from layerlens.prompts.arithmetic.dataset import KINDS, SPLITS, Problem, problems, split_of

__all__ = ["KINDS", "SPLITS", "Problem", "problems", "split_of"]
