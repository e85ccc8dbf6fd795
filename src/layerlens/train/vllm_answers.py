"""Answers of the model in training, sampled by the vLLM that training samples with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor

from layerlens.prompts.sample import Sample


def vllm_answers(vllm: Any, prompts: Sequence[Sample]) -> list[Sample]:
    """An answer to each prompt, from the weights as they are now. All processes must call it; each samples a share, and gets all.

    Args:
        vllm: TRL's VLLMGeneration, colocated or the client of a server. It samples with the settings of the training; if it sleeps, it is
            woken, filled with the weights and put to sleep again as TRL does it.

    vLLM has random generators of its own: neither a seed nor the number of processes gives the same answers twice.
    """
    accelerator = vllm.accelerator
    size = -(-len(prompts) // accelerator.num_processes)  # for all alike: processes that share an engine must ask equally much
    first = accelerator.process_index * size
    share = [prompts[min(number, len(prompts) - 1)] for number in range(first, first + size)]
    with _told_of_shards(vllm):
        vllm.sync_weights()
        _, answers, *_ = vllm.generate([list(prompt.token_ids) for prompt in share], None, 1)
    found = gather_object([list(answer) for answer in answers])
    return [replace(prompt, token_ids=(*prompt.token_ids, *answer)) for prompt, answer in zip(prompts, found[: len(prompts)], strict=True)]


@contextmanager
def _told_of_shards(vllm: Any) -> Iterator[None]:
    """Inside, TRL knows whether FSDP2 has sharded the weights: it takes them for shards, which they are not before training begins.

    TRL tells a server of names and dtypes of the weights as they were when it first sent them. It forgets here what it has noted before
    sharding, which may change dtypes.
    """
    version = vllm._dist.fsdp_version
    sharded = any(isinstance(weight, DTensor) for weight in vllm.model.parameters())
    if not sharded:
        vllm._dist.fsdp_version = None
    try:
        yield
    finally:
        vllm._dist.fsdp_version = version
        if not sharded:
            vllm._weight_metadata = None
