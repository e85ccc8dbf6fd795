"""Which way a task is computed: by device and shape, or as asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Literal

from layerlens.decode import products
from layerlens.decode.logits import Task
from layerlens.decode.stream import stream
from layerlens.decode.sums import Sums

Backend = Literal["auto", "torch", "compile", "native", "workspace", "triton"]


def choose_backend(task: Task, backend: Backend = "auto") -> Callable[[Task], Sums]:
    return partial(stream, product=products.mm)
