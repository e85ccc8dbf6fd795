"""Answers of a small decoder: many prompts at once, finished rows dropped as it goes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from layerlens.prompts.arithmetic.dataset import Message


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    samples: int = 1,
    greedy: bool = False,
    max_new_tokens: int = 320,
    generator: torch.Generator | None = None,
) -> list[list[str]]:
    """`samples` answers to each prompt: the most likely tokens if `greedy`, else drawn at T = 1 and top_p = 1.

    An answer that does not end within `max_new_tokens` is given as far as it came.
    """
    texts = [tokenizer.apply_chat_template(list(p), add_generation_prompt=True, tokenize=False) for p in prompts]
    encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False).to(model.device)
    mask = encoded["attention_mask"]
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = _last_logits(model, encoded["input_ids"], mask, positions, cache)
    cache.batch_repeat_interleave(samples)
    logits, mask = logits.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0)
    rows = torch.arange(len(logits), device=model.device)
    ids: list[list[int]] = [[] for _ in rows]
    while True:
        chosen = logits.argmax(-1) if greedy else torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        for row, token in zip(rows.tolist(), chosen.tolist(), strict=True):
            ids[row].append(token)
        going = (chosen != tokenizer.eos_token_id).nonzero()[:, 0]
        if len(going) == 0 or len(ids[rows[going[0]]]) == max_new_tokens:
            break
        if len(going) < len(rows):
            rows, chosen, mask = rows[going], chosen[going], mask[going]
            cache.batch_select_indices(going)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], -1)
        logits = _last_logits(model, chosen[:, None], mask, mask.sum(-1, keepdim=True) - 1, cache)
    decoded = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    return [decoded[i : i + samples] for i in range(0, len(decoded), samples)]


def _last_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: Tensor = out.logits
    return logits[:, -1].float()
