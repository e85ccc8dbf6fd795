"""A card that is none: tensors that say they lie on cuda:0 and are computed on the CPU, with a record of what the host would wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves, tree_map

CARD = torch.device("cuda", 0)

SHAPES_FROM_VALUES = {"nonzero", "masked_select", "unique_consecutive", "_unique2", "repeat_interleave"}
"""Operations whose result the host cannot allocate before it knows the values."""

WAITS = SHAPES_FROM_VALUES | {"_local_scalar_dense", "item", "is_nonzero", "equal"}


class OnCard(torch.Tensor):
    """A tensor on the card; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnCard:
        made: OnCard = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=CARD
        )
        made.held = held
        return made

    def __getitem__(self, index: Any) -> OnCard:  # torch's own methods for these operators ask for a real card
        card = _card()
        if _by_mask(index if isinstance(index, tuple) else (index,)):
            card.waits["index by a mask"] += 1
        return OnCard(self.held[tree_map(_held, index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.held[tree_map(_held, index)] = _held(value)

    def __invert__(self) -> torch.Tensor:
        return torch.bitwise_not(self)

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> OnCard:
        _card().sent += not isinstance(source, OnCard)
        self.held.copy_(_held(source))
        return self

    def contiguous(self, *_: Any, **__: Any) -> OnCard:
        return self if self.held.is_contiguous() else OnCard(self.held.contiguous())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the card's context")


class FakeCard(TorchDispatchMode):
    """Computes what is on the card, and counts in `waits` what a host would wait for and in `sent` the copies that it sends."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.sent = 0

    def clear(self) -> None:
        self.waits.clear()
        self.sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        leaves = tree_leaves((args, kwargs))
        inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        here = [isinstance(leaf, OnCard) for leaf in inputs]
        devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        on_card = devices[0].type == "cuda" if devices else here[0] if name == "copy_" else any(here)
        copies = (name in ("_to_copy", "to") and here[0] != on_card) or (name == "copy_" and here[0] != here[1])
        if copies and on_card:
            self.sent += 1
        elif copies:
            self.waits["copy to the host"] += 1
        elif any(here) and (name in WAITS or (name in ("index", "index_put_") and _by_mask(args[1]))):
            self.waits[name] += 1
            on_card = on_card and name in SHAPES_FROM_VALUES
        elif any(here):
            strays = [leaf for leaf, one in zip(inputs, here, strict=True) if leaf.dim() and not one]
            assert not strays, f"{name} of tensors on the card and on the host"
        found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if copies and name != "copy_":
            return OnCard(found.clone()) if on_card else found.clone()
        for given in inputs:  # in place, or nothing to do
            if found is _held(given):
                return given
        return tree_map(lambda leaf: OnCard(leaf) if on_card and isinstance(leaf, torch.Tensor) else leaf, found)


def _card() -> FakeCard:
    return next(mode for mode in reversed(_get_current_dispatch_mode_stack()) if isinstance(mode, FakeCard))


def _by_mask(index: Any) -> bool:
    return any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in index)


def _held(leaf: Any) -> Any:
    """What the CPU computes with in place of a tensor or a device."""
    return leaf.held if isinstance(leaf, OnCard) else torch.device("cpu") if isinstance(leaf, torch.device) else leaf


@contextmanager
def fake_card(monkeypatch: pytest.MonkeyPatch, free: int = 8 << 30) -> Iterator[FakeCard]:
    """A context in which a card can be used, with `free` bytes that it says are free."""
    torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing, as for fake tensors
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, free))
    for name in ("_exchange_device", "_maybe_exchange_device"):
        monkeypatch.setattr(torch.cuda, name, lambda index: -1)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a card that is none")
    with FakeCard() as card:
        yield card


def to_card(module: torch.nn.Module) -> None:
    """Moves parameters and buffers there; to be called in the card's context."""
    moved: dict[int, torch.nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = moved.setdefault(id(weight), torch.nn.Parameter(OnCard(weight.detach()), requires_grad=False))
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else OnCard(buffer)
