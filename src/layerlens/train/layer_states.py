"""What the layers hold while a model computes its final policy: states of the answers' tokens, and readings of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.decode import readout
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import TrainingError
from layerlens.metrics.settling import settling_depth
from layerlens.models import causal_lm, decoder_of, find_decoder_parts
from layerlens.models.layout import submodule_at

States = dict[int, Float[Tensor, "batch seq d"]]
"""By layer, from 1, what leaves its block (`resid_post`)."""


@contextmanager
def kept_states(model: Any, layers: Collection[int]) -> Iterator[States]:
    """Inside, each forward pass of `model` leaves the states of these layers in what is yielded, with their gradient's history."""
    _, decoder, layout = decoder_of(model)
    blocks, states = getattr(decoder, layout.blocks), States()

    def keep(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            states[layer] = output if isinstance(output, Tensor) else output[0]

        return hook

    hooks = [blocks[layer - 1].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def require_one_device(model: Any, reader: str) -> None:
    """Raises TrainingError if the model's blocks are spread over devices. `reader` names, for the message, what reads their states."""
    devices = sorted({str(device) for device in getattr(causal_lm(model), "hf_device_map", {}).values()})
    if len(devices) > 1:
        raise TrainingError(
            f"{reader} reads the states of a model on one device, and device_map spreads this one over {', '.join(devices)}: load it "
            "without device_map"
        )


class FinalReader:
    """Reads states through the model's final norm and unembedding, as the policies of layers under norm final.

    Args:
        model: the model in training, with all its weights on this process.
        temperature: of the policies.
    """

    def __init__(self, model: Any, temperature: float):
        _, decoder, layout = decoder_of(model)
        self.norm = submodule_at(decoder, layout.final_norm, "the final norm")
        self.unembedding: Unembedding = find_decoder_parts(causal_lm(model)).unembedding(temperature)

    @torch.no_grad()
    def readings(self, states: Sequence[Float[Tensor, "n d"]], final: Float[Tensor, "n d"], want: Collection[str]) -> dict[str, Tensor]:
        """By name (`readout`'s: entropy, kl, js), the numbers of each of the states, n x states, float32."""
        last = self.norm(final)
        found = [readout(self.norm(each), self.unembedding, want=want, final=last) for each in states]
        return {name: torch.stack([getattr(each, name) for each in found], dim=-1).to(final.device) for name in want}

    def settling_depth(self, states: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, " n"]:
        """`settling_depth` of each token, from the states of all layers in order."""
        js = self.readings(states, states[-1], ("js",))["js"]
        return torch.from_numpy(np.asarray(settling_depth(js.double().cpu().numpy()), np.float32)).to(js.device)


def answer_rows(states: Float[Tensor, "batch seq d"], mask: Float[Tensor, "batch answer"] | Tensor, prompt: int) -> Float[Tensor, "n d"]:
    """The states that predict the answers' tokens, those that `mask` counts, one row after the other.

    Columns of padding that end all answers may be missing in `states`; the first answer token is in column `prompt`.
    """
    rows = states[:, prompt - 1 : -1]
    return rows[mask[:, : rows.size(1)].bool()]
