"""Engines that sample answers: a model through transformers (its final or an internal policy), or vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, get_args, runtime_checkable

import torch

from layerlens.errors import SelectionError
from layerlens.evaluate.vllm import VLLMEngine
from layerlens.models import (
    Convention,
    FittedLens,
    Generation,
    InternalPolicy,
    LayerMix,
    LensModel,
    MixedPolicy,
    generate_responses,
    holds_adapters,
    parse_mix,
    require_fits_context,
    response_seed,
    truncated_at,
)
from layerlens.models.lens import load
from layerlens.progress import OnTokens
from layerlens.prompts.sample import Sample
from layerlens.storage.manifest import ModelInfo
from layerlens.types import EngineName, ForwardNorm, Library, Site, resolve_forward_norm, resolve_layers, resolve_sites


@runtime_checkable
class Engine(Protocol):
    """What `evaluate` needs of an engine."""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, which turns answers into texts."""
        ...

    @property
    def batch_size(self) -> int:
        """Answers to sample at once if the caller does not say."""
        ...

    @property
    def context(self) -> int | None:
        """The most tokens that a prompt and its answer may have together; None if the model does not say."""
        ...

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        ...

    def model_info(self) -> ModelInfo:
        """The manifest's entry `model`."""
        ...

    def policy(self) -> dict[str, Any]:
        """Which policy answers, as entries of the manifest's `config`: `engine`, `layer`, `site`, `norm`."""
        ...

    def check(self, problems: Sequence[Sample], generation: Generation) -> None:
        """Raises PromptError if a prompt, with an answer of the longest length, does not fit the model."""
        ...

    def answer(
        self, problems: Sequence[Sample], generation: Generation, numbers: Sequence[int], on_tokens: OnTokens | None = None
    ) -> list[list[int]]:
        """Samples one answer to each prompt.

        Args:
            problems: prompts without responses.
            generation: how to sample.
            numbers: one per prompt, from which the answer's seed is made; equal numbers give equal answers to equal prompts.
            on_tokens: is told of the tokens that are drawn, by an engine that knows of them before the answers are whole.

        Returns:
            The token ids of each answer, its end-of-sequence token included.
        """
        ...


@dataclass(frozen=True)
class LensEngine:
    """A loaded model that answers by its final policy or, if `layer` is given, by the internal policy of that layer.

    Attributes:
        model: from `load` or `LensModel.wrap`.
        layer: 1...L; or layers together, as `parse_mix` reads them ("mix:4,8", "contrast:12,4"); or None for the final policy.
        site: of the internal policy. At `resid_post` the blocks above the layer do not run and answers are sampled in batches; at
            every other site, and from layers together, they are sampled one at a time.
        norm: of the internal policy: "none" reads the states as they are, "final" through the model's final norm.
        lens: "logit", or a fitted lens that carries the states to the final layer first, with norm "final", as in `LensModel.convention`.
        batch_size: answers to sample at once if the caller does not say.

    Raises SelectionError for a layer, site or norm that the model lacks, and for a lens that cannot carry them.
    """

    model: LensModel
    layer: int | str | None = None
    site: Site = "resid_post"
    norm: ForwardNorm = "none"
    lens: str | FittedLens = "logit"
    batch_size: int = 32

    def __post_init__(self) -> None:
        resolve_sites(self.site)
        resolve_forward_norm(self.norm)
        if self.layer is not None:
            asked = parse_mix(self.layer) if isinstance(self.layer, str) else self.layer
            layers = list(asked.layers) if isinstance(asked, LayerMix) else [asked]
            for layer in layers:
                resolve_layers(layer, self.model.n_layers)
            self._convention.require_readable(layers, [self.site])
            object.__setattr__(self, "layer", asked.text if isinstance(asked, LayerMix) else asked)

    @cached_property
    def _convention(self) -> Convention:
        return self.model.convention(self.norm, None, self.lens)

    @property
    def in_batches(self) -> bool:
        """Whether several answers are sampled at once."""
        return self.layer is None or (not isinstance(self.layer, str) and self.site == "resid_post")

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def context(self) -> int | None:
        return self.model.parts.context

    @property
    def end_tokens(self) -> tuple[int, ...]:
        return self.model.end_tokens

    def model_info(self) -> ModelInfo:
        return self.model.info()

    def policy(self) -> dict[str, Any]:
        if self.layer is None:
            return {"engine": "transformers"}
        fitted = self._convention.lens
        lens = {} if fitted is None else {"lens": fitted.name, "lens_fingerprint": fitted.fingerprint}
        return {"engine": "transformers", "layer": self.layer, "site": self.site, "norm": self.norm, **lens}

    def check(self, problems: Sequence[Sample], generation: Generation) -> None:
        require_fits_context(self.model, problems, generation.max_new_tokens)

    def answer(
        self, problems: Sequence[Sample], generation: Generation, numbers: Sequence[int], on_tokens: OnTokens | None = None
    ) -> list[list[int]]:
        if isinstance(self.layer, str) or not self.in_batches:
            answers = []
            for problem, number in zip(problems, numbers, strict=True):
                answers.append(self._answer_one(problem, generation, number))
                if on_tokens is not None:
                    on_tokens(len(answers) / len(problems), len(answers[-1]))
            return answers
        lens = None if self.layer is None else self._convention.lens
        with truncated_at(self.model.parts.model, self.layer, self.norm, lens):
            answered = generate_responses(self.model, problems, generation, numbers, on_tokens)
        return [list(sample.token_ids[sample.response_start :]) for sample in answered]

    def _answer_one(self, problem: Sample, generation: Generation, number: int) -> list[int]:
        asked = parse_mix(str(self.layer))
        policy: InternalPolicy | MixedPolicy = (
            self.model.policy(site=self.site, norm=self.norm, lens=self.lens, **asked.arguments)
            if isinstance(asked, LayerMix)
            else self.model.policy(asked, self.site, self.norm, lens=self.lens)
        )
        seed = response_seed(generation.seed, number)
        [answer] = policy.sample(problem.token_ids, 1, generation.max_new_tokens, generation.temperature, generation.top_p, seed)
        return answer


def open_engine(
    name: str | Path,
    engine: EngineName = "auto",
    *,
    layer: int | str | None = None,
    site: Site = "resid_post",
    norm: ForwardNorm = "none",
    lens: str = "logit",
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: Any = None,
    quantize: str | None = None,
    trust_remote_code: bool = False,
    tensor_parallel: int = 1,
    library: Library = "transformers",
) -> Engine:
    """Loads a model that is to sample answers.

    Args:
        name: a hub name, a folder, or a bundled model.
        engine: "transformers", "vllm", or "auto", which takes vLLM if it is installed, there is a GPU, and the request names neither
            an internal layer, a device, device map or quantisation, nor a folder of adapters; otherwise transformers.
        layer, site, norm, lens: the internal policy that answers, as in `LensEngine`; by default the final policy does.
        revision, dtype, device, device_map, quantize, trust_remote_code: as in `load`.
        tensor_parallel: number of GPUs that vLLM spreads the model over.
        library: what runs the model in place of vLLM, as `backend` in `load`: "transformers" or "transformer_lens".

    Raises:
        SelectionError: an unknown engine, layer, site or norm, or a request that the engine cannot meet: vLLM with an internal layer
            or a device, `tensor_parallel` without vLLM.
        LayerLensError: the engine vllm is not installed.
        ModelLoadError, ModelLayoutError: the model cannot be loaded, as in `load`.
    """
    if engine not in get_args(EngineName):
        raise SelectionError(f"unknown engine {engine!r}: choose from {', '.join(get_args(EngineName))}")
    device_given = device not in (None, "cuda") or device_map is not None or quantize is not None
    if engine == "vllm" and layer is not None:
        raise SelectionError("vLLM cannot sample from an internal layer: leave out --layer, or ask for the engine transformers")
    if engine == "vllm" and holds_adapters(name):
        raise SelectionError(f"{name} holds adapters, which vLLM does not load here: merge them, or ask for the engine transformers")
    if engine == "vllm" and device_given:
        raise SelectionError(
            "vLLM takes GPUs by itself, and quantises in its own ways: leave out device, device map and quantize, or ask for the engine "
            "transformers"
        )
    if engine == "vllm" and library != "transformers":
        raise SelectionError(f"the library {library} and the engine vllm both run the model: leave out one of them")
    vllm_can = layer is None and library == "transformers" and not device_given and not holds_adapters(name)
    if engine == "vllm" or (engine == "auto" and vllm_can and find_spec("vllm") is not None and torch.cuda.is_available()):
        return VLLMEngine(name, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code, tensor_parallel=tensor_parallel)
    if tensor_parallel > 1:
        raise SelectionError(
            "tensor_parallel is an option of vLLM, but transformers answers here: ask for the engine vllm, or spread the model with a "
            "device map"
        )
    model = load(
        name,
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
        quantize=quantize,
        trust_remote_code=trust_remote_code,
        backend=library,
    )
    return LensEngine(model, layer, site, norm, lens)
