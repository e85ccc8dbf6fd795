"""Forward passes that keep what every module of a model read and returned, and tests of what a module's output depends on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """One module's call in a forward pass."""

    path: str
    module: nn.Module
    input: Tensor | None
    output: Tensor | None
    order: int
    """Number of modules whose first call ended before this one's."""
    count: int = 1
    """How often the module was called."""


@dataclass
class Trace:
    """The calls of one forward pass by module path, in the order in which they ended."""

    logits: Tensor
    calls: dict[str, Call] = field(default_factory=dict)

    def below(self, path: str) -> dict[str, Call]:
        """The calls of the modules inside a module, by their path from it."""
        return {name.removeprefix(f"{path}."): call for name, call in self.calls.items() if name.startswith(f"{path}.")}

    def of(self, module: nn.Module | None) -> Call | None:
        return next((call for call in self.calls.values() if call.module is module), None)


@torch.inference_mode()
def trace_modules(model: nn.Module, ids: Tensor) -> Trace:
    """Runs a model on token ids [1, seq], and keeps float64 copies on the CPU of the first tensor each module read and returned."""
    calls: dict[str, Call] = {}
    handles = []
    for path, module in model.named_modules():

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            if path in calls:
                calls[path].count += 1
            else:
                calls[path] = Call(path, module, _copy([*args, *kwargs.values()]), _copy([output]), len(calls))

        if path:
            handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return Trace(logits.double().cpu().clone(), calls)


@torch.inference_mode()
def token_mixers(model: nn.Module, ids: Tensor, modules: Iterable[nn.Module]) -> set[nn.Module]:
    """Those modules whose output at later tokens changes if what they read changes at the first token alone.

    Each module is called a second time within a forward pass, with the entries of the first token's vector in reverse.
    """
    mixing: set[nn.Module] = set()
    inside = False

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal inside
        if inside:
            return
        inside = True
        states = args[0] if args else kwargs["hidden_states"]
        changed = states.clone()
        changed.view(ids.shape[1], -1)[0] = states.reshape(ids.shape[1], -1)[0].flip(-1)
        again = module(changed, *args[1:], **kwargs) if args else module(**{**kwargs, "hidden_states": changed})
        before, now = _copy([output]), _copy([again])
        inside = False
        assert before is not None
        assert now is not None
        if not same(before.reshape(ids.shape[1], -1)[1:], now.reshape(ids.shape[1], -1)[1:], 1e-5):
            mixing.add(module)

    handles = [module.register_forward_hook(after, with_kwargs=True) for module in modules]
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return mixing


def same(a: Tensor | None, b: Tensor | None, tolerance: float = 1e-6) -> bool:
    """Whether two tensors hold the same numbers, whatever their shapes, up to a share of the largest."""
    if a is None or b is None or a.numel() != b.numel():
        return False
    return float((a.reshape(-1) - b.reshape(-1)).abs().max()) <= tolerance * float(b.abs().max().clamp_min(1e-30))


def _copy(values: Iterable[Any]) -> Tensor | None:
    """The first floating-point tensor among values, alone or as the first of a tuple."""
    for value in values:
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().double().cpu().clone()
    return None
