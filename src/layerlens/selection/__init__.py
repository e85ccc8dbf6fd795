"""A Run to the layer worth training, and several runs to a comparison."""

from layerlens.selection.comparison import compare
from layerlens.selection.layer import RULES, LayerChoice, Rule, select_layer

__all__ = ["RULES", "LayerChoice", "Rule", "compare", "select_layer"]
