"""Lenses that were fitted to a model: reading and writing their files, and fitting them."""

from layerlens.models.lenses.files import read_lens, resolve_lens, save_lens
from layerlens.models.lenses.fitted_lens import FittedLens

__all__ = ["FittedLens", "read_lens", "resolve_lens", "save_lens"]
