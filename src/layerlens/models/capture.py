"""Hooks that hand the states at chosen sites and layers to a callback, and are always removed again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerlens.models.offload import device_of
from layerlens.models.parts import DecoderParts, Source
from layerlens.types import Site

LayerSite = tuple[int, Site]
"""A layer, counted from 1, and a site in it."""

OnState = Callable[[int, Site, Float[Tensor, "batch seq d"]], None]


class StopForward(Exception):
    """Raised inside a forward pass, and caught by `LensModel.forward`, once the states at all wanted places were handed over."""


@contextmanager
def capture(parts: DecoderParts, places: Iterable[LayerSite], on_state: OnState) -> Iterator[None]:
    """Inside, each forward pass calls `on_state(layer, site, states)` at every place, in the order the data flows.

    States are the tensors that the model itself passes on, [batch, seq, d] in its own dtype and not copied: clone a state to
    keep it. A contribution that the model multiplies or adds up outside a module is computed here, in the model's dtype. All
    states of a layer are on one device, its block's: what enters a block on another device is copied there first.
    Forward passes of other threads call nothing. All hooks are removed on leaving, also after an exception.
    """
    with ExitStack() as stack:
        for layer, site in places:
            for handle in hook_sources(parts.blocks[layer - 1], parts.sources(layer, site), partial(on_state, layer, site)):
                stack.callback(handle.remove)
        yield


def hook_sources(block: nn.Module, sources: Sequence[Source], on_sum: Callable[[Tensor], None]) -> list[torch.utils.hooks.RemovableHandle]:
    """Puts hooks on sources in a block that call `on_sum` with the sum of their vectors, [batch, seq, d], once all have passed."""
    total = _Sum(sources, device_of(block), on_sum)
    handles = []
    for number, source in enumerate(sources):
        if source.side == "input":
            handles.append(source.module.register_forward_pre_hook(partial(total.take_input, number), with_kwargs=True))
        else:
            handles.append(source.module.register_forward_hook(partial(total.take_output, number)))
    if any(source.module is not block for source in sources):
        handles.append(block.register_forward_pre_hook(total.note_shape, with_kwargs=True))
    return handles


class _Sum:
    """Adds up the vectors of sources as they pass in one thread's forward pass, and hands the sum on once all have passed."""

    def __init__(self, sources: Sequence[Source], device: torch.device | None, on_sum: Callable[[Tensor], None]):
        self.sources, self.device, self.on_sum = sources, device, on_sum
        self.thread = threading.get_ident()
        self.seen: dict[int, Tensor] = {}
        self.shape: list[int] = []

    def note_shape(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == self.thread:
            self.shape[:] = input_of(args, kwargs).shape[:2]

    def take_input(self, number: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.take(number, input_of(args, kwargs))

    def take_output(self, number: int, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        self.take(number, output_of(output))

    def take(self, number: int, states: Tensor) -> None:
        if threading.get_ident() != self.thread:
            return
        if states.dim() == 2:  # the tokens of all texts in one row, as a mixture of experts may return them
            states = states.reshape(*self.shape, -1)
        if self.device is not None:  # a hook sees a block's input before accelerate moves it
            states = states.to(self.device)
        factor = self.sources[number].factor
        self.seen[number] = states if isinstance(factor, float | int) and factor == 1 else states * factor
        if len(self.seen) == len(self.sources):
            total = self.seen.pop(0)
            for other in range(1, len(self.sources)):
                total = total + self.seen.pop(other)
            self.on_sum(total)


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden vectors among a module's arguments."""
    return args[0] if args else kwargs["hidden_states"]  # type: ignore[no-any-return]


def output_of(output: Any) -> Tensor:
    """The hidden vectors that a module returned, alone or as the first of a tuple."""
    return output[0] if isinstance(output, tuple | list) else output  # type: ignore[no-any-return]
