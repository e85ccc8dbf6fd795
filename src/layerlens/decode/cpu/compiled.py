"""The torch reduction compiled to one loop by `torch.compile`, for machines without a C++ compiler for the native backend."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from layerlens.decode import reduction


class CompiledReducer(reduction.Reducer):
    """A `Reducer` whose blocks are whole chunks, each reduced by one compiled loop."""

    block_elements = 1 << 62

    @staticmethod
    def sum_block(*args: Any) -> Any:
        """`reduction.sum_block`, compiled."""
        return _compiled()(*args)


@cache
def _compiled() -> Any:
    # ranges are reduced by threads already: without this option each of them would start threads of its own
    return torch.compile(reduction.sum_block, dynamic=True, options={"cpp.threads": 1})
