"""Weights that accelerate keeps on the CPU or on disk, and moves to a module's device only while the module runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device | None:
    """The device that a module computes on: where accelerate runs it, else where its weights lie; None without weights."""
    for part in module.modules():
        for hook in _hooks_of(part):
            if hook.execution_device is not None:
                return torch.device(hook.execution_device)
        own = next(part.parameters(recurse=False), None)
        if own is not None:
            return own.device
    return None


@contextmanager
def own_weights_in_memory(module: nn.Module) -> Iterator[None]:
    """Inside, a module's own weights are on the device it computes on, also if accelerate keeps them elsewhere."""
    offloading = [hook for hook in _hooks_of(module) if hook.offload]
    try:
        for hook in offloading:
            hook.pre_forward(module)
        yield
    finally:
        for hook in offloading:
            hook.post_forward(module, None)


def offloaded_weight(model: nn.Module, name: str) -> Tensor | None:
    """An offloaded entry of the model's state dict, read from the CPU or from disk; None if nobody keeps its values."""
    path = name.split(".")
    for end in range(len(path) - 1, -1, -1):  # a hook on an outer module may keep the weights of all modules inside
        for hook in _hooks_of(model.get_submodule(".".join(path[:end]))):
            if hook.weights_map is not None:
                return hook.weights_map[".".join(path[end:])]  # type: ignore[no-any-return]
    return None


def _hooks_of(module: nn.Module) -> list[Any]:
    """accelerate's hooks that place a module's weights and inputs on devices."""
    hook = getattr(module, "_hf_hook", None)
    return [each for each in getattr(hook, "hooks", [hook]) if hasattr(each, "execution_device")]
