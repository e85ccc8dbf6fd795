"""Texts to analyse, sampled by vLLM: it is closed before the model is loaded to be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from layerlens.analysis.sampling import Sampling, begin_texts, waiting_prompts
from layerlens.evaluate.engines import open_engine
from layerlens.evaluate.vllm import VLLMEngine, vllm_info
from layerlens.models import Generation
from layerlens.models.load import load_tokenizer
from layerlens.models.memory import fitting_batch
from layerlens.progress import OnTokens
from layerlens.prompts.sample import Sample, named
from layerlens.results import Texts
from layerlens.storage.bundled import bundled_model
from layerlens.storage.launch import n_processes
from layerlens.storage.texts import TEXTS


def sample_with_vllm(
    name: str | Path,
    read: Callable[[Any], Sequence[Sample]],
    generation: Generation,
    out: Path,
    *,
    batch: int | None = None,
    tensor_parallel: int = 1,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    progress: bool | None = None,
    **loading: Any,
) -> Texts | list[Sample]:
    """The prompts with responses that vLLM samples, and that are kept in the run's folder; it does not start if all are there.

    Args:
        read: gives the prompts, for the model's tokenizer.
        out: folder of the run.
        batch: most responses that vLLM is asked for at once; by default 1024, or what the folder was begun with.
        tensor_parallel, revision, dtype, trust_remote_code, loading: as in `open_engine`.
        progress: as in `analyze`.

    Raises what `open_engine` raises, PromptError for a prompt that does not fit, and RunError if the folder holds other texts.
    """
    samples = named(read(load_tokenizer(bundled_model(str(name)) or name, revision=revision, trust_remote_code=trust_remote_code)))
    prompts = waiting_prompts(samples)
    if not prompts:
        return samples
    size = batch or fitting_batch(1, 2 * VLLMEngine.batch_size, len(prompts), VLLMEngine.batch_size, n_processes())
    sampling, store = begin_texts(Sampling(prompts, generation, vllm_info(name, revision, dtype), "vllm", size), out / TEXTS, batch)
    engines: list[VLLMEngine] = []

    def answer(texts: Sequence[Sample], settings: Generation, numbers: Sequence[int], on_tokens: OnTokens | None) -> list[list[int]]:
        if not engines:
            given: dict[str, Any] = {"revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code, **loading}
            opened = open_engine(name, "vllm", **given, tensor_parallel=tensor_parallel)
            assert isinstance(opened, VLLMEngine)
            engines.append(opened)
            opened.check(list(prompts.values()), settings)
        return engines[0].answer(texts, settings, numbers, on_tokens)

    try:
        found = sampling.run(answer, store, {}, progress)
    finally:
        for engine in engines:
            engine.close()
    return Texts(
        [replace(sample, token_ids=found.get(number, sample.token_ids)) for number, sample in enumerate(samples)], sampling.source()
    )
