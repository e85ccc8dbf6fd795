"""Hooks that hand the states at chosen sites and layers to a callback, and are always removed again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerlens.models.layout import Layout, submodule_at
from layerlens.types import Site

LayerSite = tuple[int, Site]
"""A layer, counted from 1, and a site in it."""

OnState = Callable[[int, Site, Float[Tensor, "batch seq d"]], None]


class StopForward(Exception):
    """Raised inside a forward pass, and caught by `LensModel.forward`, once the state at the last wanted place was handed over."""


@contextmanager
def capture(blocks: nn.ModuleList, layout: Layout, places: Iterable[LayerSite], on_state: OnState) -> Iterator[None]:
    """Inside, each forward pass calls `on_state(layer, site, states)` at every place, in the order the data flows.

    States are the tensors that the model itself passes on, [batch, seq, d] in its own dtype and not copied: clone a state to
    keep it. Forward passes of other threads call nothing. All hooks are removed on leaving, also after an exception.
    """
    thread = threading.get_ident()

    def on_own_state(layer: int, site: Site, states: Tensor) -> None:
        if threading.get_ident() == thread:
            on_state(layer, site, states)

    with ExitStack() as stack:
        for layer, site in places:
            point = layout.hook_points[site]
            block = blocks[layer - 1]
            module = submodule_at(block, point.module, f"the {site} of block {layer}") if point.module else block
            stack.callback(_hook(module, point.side, layer, site, on_own_state).remove)
        yield


def _hook(module: nn.Module, side: str, layer: int, site: Site, on_state: OnState) -> torch.utils.hooks.RemovableHandle:
    if side == "input":

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            on_state(layer, site, args[0] if args else kwargs["hidden_states"])

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        on_state(layer, site, output[0] if isinstance(output, tuple) else output)

    return module.register_forward_hook(after)
