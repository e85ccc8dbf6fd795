"""Real models: loading them, where their parts are, and hooks on what passes through them."""

from layerlens.models.capture import EnoughSeen, Place, capture
from layerlens.models.check import LayoutReport, check_identities
from layerlens.models.layout import LAYOUTS, Layout, Tap, find_part, layout_for
from layerlens.models.load import load_pretrained
from layerlens.models.parts import Parts, find_parts

__all__ = [
    "LAYOUTS", "EnoughSeen", "Layout", "LayoutReport", "Parts", "Place", "Tap",
    "capture", "check_identities", "find_part", "find_parts", "layout_for", "load_pretrained",
]  # fmt: skip
