"""Who answers: a model through transformers, one of its internal policies, or vLLM. One interface, one random stream per answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, get_args, runtime_checkable

import torch

from layerlens.errors import LayerLensError, ModelLoadError, PromptError, SelectionError
from layerlens.models import (
    Generation,
    LensModel,
    generate_responses,
    holds_adapters,
    require_fits_context,
    response_seed,
    truncated_at,
)
from layerlens.models.lens import load
from layerlens.prompts.sample import Sample
from layerlens.storage.bundled import bundled_model
from layerlens.types import EngineName, Norm, Site, resolve_layers, resolve_norm, resolve_sites


@runtime_checkable
class Engine(Protocol):
    """What `evaluate` asks of whoever answers."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def batch_size(self) -> int:
        """Answers at once, where the caller does not say."""
        ...

    @property
    def context(self) -> int | None:
        """The longest prompt and answer together, in tokens, where it is known."""
        ...

    @property
    def end_tokens(self) -> tuple[int, ...]: ...

    def describe(self) -> dict[str, Any]:
        """The model part of a manifest; at least `name`, `fingerprint` and `dtype`."""
        ...

    def policy(self) -> dict[str, Any]:
        """The policy part of its configuration: `engine`, `layer`, `site`, `norm`."""
        ...

    def check(self, samples: Sequence[Sample], generation: Generation) -> None:
        """Raises PromptError where a prompt can not be answered."""
        ...

    def answer(self, samples: Sequence[Sample], generation: Generation, numbers: Sequence[int]) -> list[list[int]]:
        """Token ids of one answer per prompt, the end-of-sequence token included; `numbers` name the random streams."""
        ...


@dataclass(frozen=True)
class LensEngine:
    """A loaded model: its own policy, or with `layer` the internal policy of that layer (1...L) and site.

    At `resid_post` blocks above the layer do not run and answers come in batches; other sites answer one at a time.

    Raises SelectionError for a layer, site or norm that the model lacks.
    """

    model: LensModel
    layer: int | None = None
    site: Site = "resid_post"
    norm: Norm = "none"
    batch_size: int = 32

    def __post_init__(self) -> None:
        resolve_sites(self.site)
        resolve_norm(self.norm)
        if self.layer is not None:
            resolve_layers(self.layer, self.model.n_layers)

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def context(self) -> int | None:
        return self.model.parts.context

    @property
    def end_tokens(self) -> tuple[int, ...]:
        return self.model.end_tokens

    def describe(self) -> dict[str, Any]:
        model = self.model
        return {
            "name": model.name,
            "revision": model.revision,
            "fingerprint": model.fingerprint,
            "architecture": model.parts.model.config.model_type,
            "dtype": str(model.parts.dtype).removeprefix("torch."),
            "n_layers": model.n_layers,
        }

    def policy(self) -> dict[str, Any]:
        inside = {"layer": self.layer, "site": self.site, "norm": self.norm}
        return {"engine": "transformers"} | (inside if self.layer is not None else dict.fromkeys(inside))

    def check(self, samples: Sequence[Sample], generation: Generation) -> None:
        require_fits_context(self.model, samples, generation.max_new_tokens)

    def answer(self, samples: Sequence[Sample], generation: Generation, numbers: Sequence[int]) -> list[list[int]]:
        if self.layer is not None and self.site != "resid_post":
            return [self._one(sample, generation, number) for sample, number in zip(samples, numbers, strict=True)]
        with truncated_at(self.model.parts.model, self.layer, self.norm):
            answered = generate_responses(self.model, samples, generation, numbers)
        return [list(sample.token_ids[sample.response_start :]) for sample in answered]

    def _one(self, sample: Sample, generation: Generation, number: int) -> list[int]:
        assert self.layer is not None
        policy = self.model.policy(self.layer, self.site, self.norm)
        seed = response_seed(generation.seed, number)
        [answer] = policy.sample(sample.token_ids, 1, generation.max_new_tokens, generation.temperature, generation.top_p, seed)
        return answer


class VLLMEngine:
    """A model in vLLM, which must be installed. Its answers differ from transformers' (other streams), not their distribution.

    Raises LayerLensError where vLLM is missing or can not load the model.
    """

    batch_size = 1024

    def __init__(
        self,
        name: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        trust_remote_code: bool = False,
        tensor_parallel: int = 1,
    ):
        try:
            import vllm  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise LayerLensError(
                f"the engine vllm is not installed here ({error}); install it, or ask for the engine transformers"
            ) from error
        self._sampling: Any = vllm.SamplingParams
        folder = bundled_model(str(name)) or name
        self.name, self.revision, self.dtype = str(name) if not Path(name).is_dir() else Path(name).resolve().name, revision, dtype
        self._digest = _files_digest(Path(folder))
        try:
            self._llm: Any = vllm.LLM(
                model=str(folder),
                revision=revision,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                tensor_parallel_size=tensor_parallel,
            )
        except Exception as error:  # vLLM reports a missing model, an unknown architecture and a full GPU in many ways
            raise ModelLoadError(f"{name}: vLLM can not load it ({type(error).__name__}: {' '.join(str(error).split())[:300]})") from error
        self.tokenizer: Any = self._llm.get_tokenizer()

    @property
    def context(self) -> int:
        return int(self._llm.llm_engine.model_config.max_model_len)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        ends = _shipped_ends(self._llm) or self.tokenizer.eos_token_id
        return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision, "fingerprint": self._digest, "dtype": self.dtype}

    def policy(self) -> dict[str, Any]:
        return {"engine": "vllm", "layer": None, "site": None, "norm": None}

    def check(self, samples: Sequence[Sample], generation: Generation) -> None:
        for index, sample in enumerate(samples):
            if len(sample.token_ids) + generation.max_new_tokens > self.context:
                raise PromptError(
                    f"prompt {sample.id or index}: {len(sample.token_ids)} tokens and {generation.max_new_tokens} new tokens exceed the "
                    f"context of {self.name} ({self.context}); shorten it or ask for fewer new tokens"
                )

    def answer(self, samples: Sequence[Sample], generation: Generation, numbers: Sequence[int]) -> list[list[int]]:
        prompts = [{"prompt_token_ids": list(sample.token_ids)} for sample in samples]
        settings = [
            self._sampling(
                max_tokens=generation.max_new_tokens,
                temperature=generation.temperature,
                top_p=generation.top_p,
                seed=response_seed(generation.seed, number),
                stop_token_ids=list(self.end_tokens),
                detokenize=False,
            )
            for number in numbers
        ]
        return [list(done.outputs[0].token_ids) for done in self._llm.generate(prompts, settings, use_tqdm=False)]


def open_engine(
    name: str | Path,
    engine: EngineName = "auto",
    *,
    layer: int | None = None,
    site: Site = "resid_post",
    norm: Norm = "none",
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    tensor_parallel: int = 1,
) -> Engine:
    """Loads a model to answer with.

    `"auto"` takes vLLM where it is installed, there is a GPU, and neither an internal layer, a device nor adapters are asked for.

    Raises:
        LayerLensError: vLLM is asked for and missing, or together with an internal layer or a device; `tensor_parallel` without it.
        ModelLoadError, ModelLayoutError: as `load`.
    """
    if engine not in get_args(EngineName):
        raise SelectionError(f"unknown engine {engine!r}: choose from {', '.join(get_args(EngineName))}")
    if engine == "vllm" and layer is not None:
        raise SelectionError("vLLM can not sample from an internal layer: leave out --layer, or ask for the engine transformers")
    placed = device not in (None, "cuda") or device_map is not None
    if engine == "vllm" and placed:
        raise SelectionError("vLLM takes GPUs by itself: leave out device and device map, or ask for the engine transformers")
    free = layer is None and not placed and not holds_adapters(name)
    if engine == "vllm" or (engine == "auto" and free and find_spec("vllm") is not None and torch.cuda.is_available()):
        return VLLMEngine(name, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code, tensor_parallel=tensor_parallel)
    if tensor_parallel > 1:
        raise SelectionError("tensor_parallel is vLLM's, which does not answer here: ask for the engine vllm, or spread with a device map")
    model = load(name, revision=revision, dtype=dtype, device=device, device_map=device_map, trust_remote_code=trust_remote_code)
    return LensEngine(model, layer, site, norm)


def _shipped_ends(llm: Any) -> int | list[int] | None:
    """The end tokens of the model's generation settings, where vLLM has read any."""
    settings: Mapping[str, Any] = llm.llm_engine.model_config.try_get_generation_config() or {}
    return settings.get("eos_token_id")


def _files_digest(folder: Path) -> str:
    """Stands in for a digest of the weights, which lie in vLLM's own processes: names, sizes and times of a local folder's files."""
    if not folder.is_dir():
        return ""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".bin"))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
