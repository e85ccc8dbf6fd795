"""What tests of choices share."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

import layerlens as ll

QWEN = [0.9, 1.6, 1.4, 1.1, 0.8, 0.5, *[0.03, -0.05] * 10, *np.linspace(-0.4, -2.0, 10)]
"""Mean ΔS by layer of the FFN as the BuPO paper describes it for Qwen3-4B (arXiv 2512.19673): exploration ends at layer 6."""
FEW = {"resamples": 300}


def plain(choice: ll.LayerChoice) -> dict[str, Any]:
    """The choice as a file of JSON holds it."""
    return json.loads(json.dumps(choice.to_dict(), allow_nan=False))
