"""What the layers say of answers, for rewards that ask for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from layerlens.metrics.settling import settling_depth
from layerlens.models.identities import evaluation_mode
from layerlens.rewards.isolation import find_function
from layerlens.train.layer_states import FinalReader, kept_states

INTERNAL = "internal"
"""The argument of a reward that gets the readings."""

Reading = dict[str, np.ndarray]
"""Of one answer, under norm final, by name: `entropy` (nats), `kl_to_final` (nats) and `js_to_final` (bits), float32, tokens x layers, and
`settling_depth` (layers), one per token. Row t is of the policies that predict the answer's token t."""


def asks_internal(reward: Any) -> bool:
    """Whether a reward function has an argument called `internal`. A function that runs in a process of its own is asked itself."""
    function: Callable[..., Any] = reward if getattr(reward, "target", None) is None else find_function(reward.target)
    try:
        return INTERNAL in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a model, or a built-in function
        return False


@torch.no_grad()
def internal_readings(
    model: Any, reader: FinalReader, n_layers: int, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], batch_size: int
) -> list[Reading]:
    """The reading of each answer to the prompt beside it, from one forward pass for each `batch_size` of them."""
    found: list[Reading] = []
    with evaluation_mode(model), kept_states(model, range(1, n_layers + 1)) as states:
        for first in range(0, len(prompts), batch_size):
            part = slice(first, first + batch_size)
            found += _read(model, reader, states, prompts[part], answers[part])
    return found


def _read(
    model: Any, reader: FinalReader, states: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[Reading]:
    device, texts = next(model.parameters()).device, [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    mask, predicts = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):  # padding ends texts: some models count positions by columns
        ids[row, : len(text)], mask[row, : len(text)] = torch.as_tensor(text, dtype=torch.long), 1
        predicts[row, len(prompt) - 1 : len(text) - 1] = True
    model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, logits_to_keep=1)
    rows = [states[layer][predicts.to(device)] for layer in sorted(states)]
    values = reader.readings(rows, rows[-1], ("entropy", "kl", "js"))
    ends = np.cumsum([len(answer) for answer in answers])[:-1]
    numbers = {"entropy": values["entropy"], "kl_to_final": values["kl"], "js_to_final": values["js"]}
    arrays = {name: each.float().cpu().numpy() for name, each in numbers.items()}
    arrays["settling_depth"] = settling_depth(arrays["js_to_final"])
    split = {name: np.split(each, ends) for name, each in arrays.items()}
    return [{name: parts[index] for name, parts in split.items()} for index in range(len(answers))]
