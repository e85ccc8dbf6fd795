"""The vLLM engine: the only file that imports vLLM, and only when such an engine is opened."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from layerlens.errors import LayerLensError, ModelLoadError, PromptError, one_line
from layerlens.models import Generation, checked_end_tokens, response_seed
from layerlens.progress import OnTokens
from layerlens.prompts.sample import Sample
from layerlens.storage.bundled import bundled_model
from layerlens.storage.manifest import ModelInfo
from layerlens.storage.training_folder import trained_as


class VLLMEngine:
    """The final policy of a model that vLLM runs on the GPUs of this machine.

    Its answers follow the same distribution as those of `LensEngine`, but are other draws: vLLM has a random generator of its own.

    Args:
        name: a hub name, a folder, or a bundled model.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; "auto" is the dtype in which they are stored.
        trust_remote_code: whether code that comes with the model may run.
        tensor_parallel: number of GPUs to spread the model over.

    Raises:
        LayerLensError: vLLM is not installed.
        ModelLoadError: vLLM cannot load the model, or an end token that it names is not in the vocabulary.
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
                f"the engine vllm is not installed here ({error}); install it with `pip install 'layerlens-policy[vllm]'`, or ask for the "
                "engine transformers"
            ) from error
        self._sampling_params: Any = vllm.SamplingParams
        source = _source(name)
        self._info = vllm_info(name, revision, dtype)
        self.name = self._info.name
        try:
            self._llm: Any = vllm.LLM(
                model=str(source),
                revision=revision,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                tensor_parallel_size=tensor_parallel,
            )
        except Exception as error:  # vLLM reports a missing model, an unknown architecture and a full GPU in many ways
            raise ModelLoadError(f"{name}: vLLM cannot load it ({one_line(error)})") from error
        self.tokenizer: Any = self._llm.get_tokenizer()
        config = self._llm.llm_engine.model_config
        settings: Mapping[str, Any] = config.try_get_generation_config() or {}
        ends = settings.get("eos_token_id")
        self.end_tokens = checked_end_tokens(self.tokenizer.eos_token_id if ends is None else ends, int(config.get_vocab_size()), self.name)

    @property
    def context(self) -> int:
        return int(self._llm.llm_engine.model_config.max_model_len)

    def model_info(self) -> ModelInfo:
        return self._info

    def close(self) -> None:
        """Ends vLLM's processes and gives its memory back, so that the model can be loaded once more to be measured."""
        shutdown = getattr(self._llm, "shutdown", None) or getattr(getattr(self._llm.llm_engine, "engine_core", None), "shutdown", None)
        if shutdown is not None:
            shutdown()
        self._llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def policy(self) -> dict[str, Any]:
        return {"engine": "vllm", "layer": None, "site": None, "norm": None}

    def check(self, problems: Sequence[Sample], generation: Generation) -> None:
        for index, problem in enumerate(problems):
            if len(problem.token_ids) + generation.max_new_tokens > self.context:
                raise PromptError(
                    f"prompt {problem.id or index}: {len(problem.token_ids)} tokens and {generation.max_new_tokens} new tokens exceed the "
                    f"context of {self.name} ({self.context}); shorten it or ask for fewer new tokens"
                )

    def answer(
        self, problems: Sequence[Sample], generation: Generation, numbers: Sequence[int], on_tokens: OnTokens | None = None
    ) -> list[list[int]]:
        prompts = [{"prompt_token_ids": list(problem.token_ids)} for problem in problems]
        settings = [
            self._sampling_params(
                max_tokens=generation.max_new_tokens,
                temperature=generation.temperature,
                top_p=generation.top_p,
                seed=response_seed(generation.seed, number),
                stop_token_ids=list(self.end_tokens),
                detokenize=False,
            )
            for number in numbers
        ]
        answers = [list(request.outputs[0].token_ids) for request in self._llm.generate(prompts, settings, use_tqdm=False)]
        if on_tokens is not None:
            on_tokens(1.0, sum(map(len, answers)))
        return answers


def vllm_info(name: str | Path, revision: str | None, dtype: str) -> ModelInfo:
    """The manifest's entry `model` of a model that vLLM runs."""
    folder = Path(name).expanduser()
    shown = folder.resolve().name if folder.is_dir() else str(name)
    source = _source(name)
    return ModelInfo(shown, _files_fingerprint(Path(source)), dtype, revision=revision, trained=trained_as(source))


def _source(name: str | Path) -> str | Path:
    """What vLLM loads: the folder of a bundled model, a folder, or a name on the hub."""
    folder = Path(name).expanduser()
    return bundled_model(str(name)) or (folder if folder.is_dir() else name)


def _files_fingerprint(folder: Path) -> str:
    """A digest of the names, sizes and times of a local model's files; "" for a model from the hub.

    It stands in for the digest of the weights that `LensModel.fingerprint` takes: these weights lie in vLLM's own processes.
    """
    if not folder.is_dir():
        return ""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".bin"))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
