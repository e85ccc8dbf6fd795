"""A model with all its weights on the main process, even if FSDP2 has sharded them over several processes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from layerlens.models import causal_lm


class FullModel:
    """Gives the main process the causal language model with all its weights.

    If nothing is sharded, that is the model in training itself. If FSDP2 has sharded the model, it is a copy on the main
    process's device, in the dtype that the model was loaded in, which takes memory for as long as the caller keeps it.

    Make it before the model is sharded.
    """

    def __init__(self, model: nn.Module, accelerator: Any, sharded: bool):
        self.accelerator, self.sharded = accelerator, sharded
        self.meta_model = meta_copy(model) if sharded and accelerator.is_main_process else None

    def on_main(self, model: nn.Module) -> Any | None:
        """The full `model` on the main process, None on the others. All processes must call it, since each holds a shard."""
        if not self.sharded:
            return causal_lm(model) if self.accelerator.is_main_process else None
        weights = self.accelerator.get_state_dict(model)
        if self.meta_model is None:
            return None
        full, device = copy.deepcopy(self.meta_model), self.accelerator.device
        dtypes = {name: weight.dtype for name, weight in full.named_parameters(remove_duplicate=False)}
        full.load_state_dict({name: weight.to(device, dtypes.get(name)) for name, weight in weights.items()}, assign=True)
        network = causal_lm(full.to(device))
        network.tie_weights()
        return network


def meta_copy(model: nn.Module) -> Any:
    """A copy of the model with its buffers and with parameters on the meta device: shape and dtype, no values. Ties are kept."""
    empty = {id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False) for weight in model.parameters()}
    copied = copy.deepcopy(model, dict(empty))
    vars(causal_lm(copied)).pop("forward", None)  # TRL's own, which would run the original model
    return copied
