"""A Run to the layer worth training, and several runs to a comparison."""

from layerlens.selection.choice import LayerChoice
from layerlens.selection.comparison import compare
from layerlens.selection.layer import select_layer

__all__ = ["LayerChoice", "compare", "select_layer"]
