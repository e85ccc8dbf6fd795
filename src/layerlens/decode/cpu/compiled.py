"""The torch reduction as one loop, made by `torch.compile`: for machines where the C++ pass can not be had."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from layerlens.decode import reduction


class CompiledReducer(reduction.Reducer):
    block_elements = 1 << 62

    @staticmethod
    def sum_block(*args: Any) -> Any:
        return _compiled()(*args)


@cache
def _compiled() -> Any:
    # chunks are taken by threads of their own, which would otherwise start more of them
    return torch.compile(reduction.sum_block, dynamic=True, options={"cpp.threads": 1})
