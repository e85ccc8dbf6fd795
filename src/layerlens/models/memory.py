"""How much memory is free, and how much of it one sequence takes while a response is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layerlens.models.free_memory import free_on
from layerlens.models.layout import text_config

SHARE = 0.5
"""Share of the free memory that sampling plans with: the cache grows by a copy at every step, which leaves gaps."""

LARGEST = {"cpu": 32, "cuda": 256}
"""Most responses that are sampled at once, by device type: more make a CPU no faster, and a kill loses what is under way."""


BUFFER = 256 << 20
"""Bytes of a buffer of states that are decoded together, on average over devices."""


@dataclass(frozen=True)
class SequenceCost:
    """Bytes that one sequence takes while its response is sampled.

    Attributes:
        per_token: keys and values of one token in all layers, each layer counted as full attention.
        per_prompt_token: activations of the largest block while the prompt is read.
        fixed: logits, their logarithms and the noise of one step, in float32.
    """

    per_token: int
    per_prompt_token: int
    fixed: int

    @classmethod
    def of(cls, config: Any, itemsize: int) -> SequenceCost:
        """From a model's configuration and the bytes of one number of its dtype."""
        text = text_config(config)
        layers = list(text.per_layer_config) if getattr(text, "is_heterogeneous", False) else [text] * int(text.num_hidden_layers)
        inner = max(_inner_width(layer) for layer in layers)
        return cls(
            per_token=sum(map(_cached_numbers, layers)) * itemsize,
            per_prompt_token=(3 * inner + 6 * int(text.hidden_size)) * itemsize,
            fixed=5 * 4 * int(text.vocab_size),
        )

    def bytes(self, prompt: int, new_tokens: int) -> int:
        """Bytes of a sequence of `prompt` tokens and `new_tokens` more."""
        return (prompt + new_tokens) * self.per_token + prompt * self.per_prompt_token + self.fixed


def _cached_numbers(layer: Any) -> int:
    """Keys and values of one token in a layer with this configuration; none in a model without attention."""
    heads = int(getattr(layer, "num_attention_heads", None) or 0)
    if getattr(layer, "qk_rope_head_dim", None):  # latent attention: transformers caches the heads it is expanded to
        return heads * (int(layer.qk_nope_head_dim) + int(layer.qk_rope_head_dim) + int(layer.v_head_dim))
    width = int(getattr(layer, "head_dim", None) or int(layer.hidden_size) // max(1, heads))
    return 2 * width * int(getattr(layer, "num_key_value_heads", None) or heads)


def _inner_width(layer: Any) -> int:
    """Width of the widest FFN of a layer with this configuration."""
    inner = getattr(layer, "intermediate_size", None) or 4 * int(layer.hidden_size)
    return max(map(int, inner)) if isinstance(inner, list | tuple) else int(inner)


def fitting_batch(cost: int, free: int, waiting: int, largest: int, processes: int = 1) -> int:
    """The number of responses to sample at once, 1 or more: groups of nearly one size, at least one for each process.

    Args:
        cost: bytes of the longest sequence.
        free: bytes of free memory.
        waiting: responses to sample in all.
        largest: most at once.
        processes: how many share the work.
    """
    most = max(1, min(waiting, largest, int(free * SHARE) // cost))
    groups = max(-(-waiting // most), min(processes, waiting))
    return -(-waiting // groups)


def measuring_bytes(config: Any, itemsize: int, batch_tokens: int, held: int) -> int:
    """Bytes that measuring takes beside the weights, about: activations of a block, `held` bytes of states that wait, buffers of states."""
    return batch_tokens * SequenceCost.of(config, itemsize).per_prompt_token + held + 3 * BUFFER


def free_bytes(model: nn.Module, blocks: Any) -> int:
    """Free memory for what all blocks keep: of the devices that hold them, as much as fits beside the fullest."""
    homes = [next((weight.device for weight in block.parameters()), torch.device("cpu")) for block in blocks]
    main = next((weight.device for weight in model.parameters() if weight.device.type != "meta"), torch.device("cpu"))
    homes = [main if home.type == "meta" else home for home in homes]
    return min(free_on(device) * len(homes) // homes.count(device) for device in set(homes)) if homes else free_on(main)
