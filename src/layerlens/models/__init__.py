"""Real models: loading them, where their parts are, and hooks on what passes through them."""

from layerlens.models.capture import LayerSite, StopForward, capture
from layerlens.models.identities import LayoutReport, check_identities
from layerlens.models.layout import LAYOUTS, HookPoint, Layout, find_part, layout_for
from layerlens.models.load import load_pretrained
from layerlens.models.parts import DecoderParts, find_parts

__all__ = [
    "LAYOUTS",
    "DecoderParts",
    "HookPoint",
    "LayerSite",
    "Layout",
    "LayoutReport",
    "StopForward",
    "capture",
    "check_identities",
    "find_part",
    "find_parts",
    "layout_for",
    "load_pretrained",
]  # fmt: skip
