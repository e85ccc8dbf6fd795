"""A model with all its weights on the main process, also where FSDP2 has spread them over many."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from layerlens.models import causal_lm


class Whole:
    """Hands out the whole causal language model on the main process.

    Unsharded, that is the model in training itself. Sharded, it is a copy on the main process's device, in the dtype the
    model was loaded in: one whole model for as long as the caller keeps it. To be made before the model is sharded.
    """

    def __init__(self, model: nn.Module, accelerator: Any, sharded: bool):
        self.accelerator, self.sharded = accelerator, sharded
        self.hollow = meta_copy(model) if sharded and accelerator.is_main_process else None

    def on_main(self, model: nn.Module) -> Any | None:
        """The whole of `model` on the main process, None on the others; all must call it, as all hold a part."""
        if not self.sharded:
            return causal_lm(model) if self.accelerator.is_main_process else None
        weights = self.accelerator.get_state_dict(model)
        if self.hollow is None:
            return None
        full, device = copy.deepcopy(self.hollow), self.accelerator.device
        dtypes = {name: weight.dtype for name, weight in full.named_parameters(remove_duplicate=False)}
        full.load_state_dict({name: weight.to(device, dtypes.get(name)) for name, weight in weights.items()}, assign=True)
        network = causal_lm(full.to(device))
        network.tie_weights()
        return network


def meta_copy(model: nn.Module) -> Any:
    """The model's modules and buffers, with parameters that have shape and dtype and hold nothing; tied ones stay one."""
    empty = {id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False) for weight in model.parameters()}
    hollow = copy.deepcopy(model, dict(empty))
    vars(causal_lm(hollow)).pop("forward", None)  # TRL's own, which would run the original model
    return hollow
