"""Loading models from a hub name, a folder or a GGUF file: no pickled weights, and no code from the hub unless the user allows it."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from layerlens.errors import ModelLayoutError, ModelLoadError, one_line
from layerlens.models.adapters import adapter_tokenizer, base_model, holds_adapters, with_adapters
from layerlens.models.gguf import find_gguf, gguf_loading, gguf_quantisation
from layerlens.models.layout import require_readable, text_config
from layerlens.models.quantised import describe, describe_quantisation, finish_loading, prepare_loading, quantisation_config
from layerlens.models.tokenizer import read_tokenizer

DTYPES = {"auto": "auto", **{name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")}}


class Loaded(NamedTuple):
    """A causal language model in evaluation mode, and its tokenizer."""

    model: nn.Module
    tokenizer: Any
    quantisation: str | None
    """How the weights are or were stored if not as numbers of the model's dtype: "GGUF Q4_K_M, dequantised"."""


def load_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: Any = None,
    quantize: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """The causal language model and tokenizer of a hub name, a local folder or a GGUF file.

    The weights of a GGUF file are dequantised, by default to float32. A folder of PEFT adapters, as training with LoRA writes
    it, gives the base model that it names with the adapters merged in. With accelerate installed, weights are read straight to
    their device.

    Raises:
        ModelLoadError: files are missing, damaged or incomplete (a weight that the checkpoint lacks is an error, never a random
            number), they hold another model than their configuration says, or a library that reads them is missing.
        ModelLayoutError: the architecture cannot be read; raised before any weight is read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ModelLoadError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    if device is not None and device_map is not None:
        raise ModelLoadError("give either device or device_map, not both")
    file = find_gguf(name)
    folder = str(file.parent) if file else _local_or_hub(str(name))
    source = str(file or folder)
    straight = find_spec("accelerate") is not None
    if device_map is not None and not straight:
        raise ModelLoadError("a device map needs the library accelerate: pip install 'layerlens-policy[accelerate]'")
    if device is not None:
        _require_device(device, source)
    if holds_adapters(folder):
        adapters = Path(folder)
        given: dict[str, Any] = {"dtype": dtype, "device": device, "device_map": device_map, "quantize": quantize}
        base = load_pretrained(base_model(adapters), **given, trust_remote_code=trust_remote_code)
        tokenizer = adapter_tokenizer(adapters, trust_remote_code) or base.tokenizer
        return Loaded(with_adapters(base.model, adapters).eval(), tokenizer, base.quantisation)
    if file and quantize:
        raise ModelLoadError(f"{source} is dequantised while it is read: leave out quantize={quantize!r}")
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if file:
        common |= {"gguf_file": file.name}
        dtype = "float32" if dtype == "auto" else dtype
    wanted: Any = DTYPES[dtype] if isinstance(dtype, str) else dtype
    try:
        with _quiet_transformers(), _offload_folder(device_map) as offload:
            config = AutoConfig.from_pretrained(folder, **common)
            require_readable(config)
            _require_one_name(config, source)
            weights = gguf_loading() if file else {"use_safetensors": True, **prepare_loading(config, source, quantize)}
            stored = quantisation_config(config)
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=wanted,
                device_map=str(device) if device is not None and straight else device_map,
                offload_folder=offload,
                output_loading_info=True,
                **weights,
                **common,
            )
            finish_loading(model, stored, None if wanted == "auto" else wanted, folder, revision)
            tokenizer = read_tokenizer(folder, **common)
    except (ModelLayoutError, ModelLoadError):
        raise
    except Exception as error:  # a checkpoint can be broken in many ways; each becomes one line
        hint = "; it comes with code of its own, which runs only with trust_remote_code" if "trust_remote_code" in str(error) else ""
        raise ModelLoadError(f"{source}: could not be loaded ({one_line(error)}){hint}") from error
    quantisation = gguf_quantisation(file) if file else describe(stored) if stored else describe_quantisation(model.config)
    _require_all_weights(model, report, source, quantisation)
    if device is not None and not straight:
        model = model.to(device)
    return Loaded(model.eval(), tokenizer, quantisation)


def load_tokenizer(name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a hub name or a folder, without the model. Raises ModelLoadError if it cannot be read."""

    source = _local_or_hub(str(name))
    try:
        with _quiet_transformers():
            return read_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelLoadError(f"{source}: its tokenizer could not be loaded ({one_line(error)})") from error


def _require_device(device: str | torch.device, source: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch says "not compiled with CUDA" by an assertion
        raise ModelLoadError(f"{source}: cannot be put on device {str(device)!r} ({str(error).splitlines()[0][:200]})") from error


def _require_one_name(config: Any, source: str) -> None:
    """Raises ModelLoadError if a configuration's `model_type` and its `architectures` name two different causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    named = set(getattr(config, "architectures", None) or ())
    owners = {name: kind for kind, name in CLASSES.items() if name in named}
    ours = CLASSES.get(config.model_type)
    if ours is not None and owners and ours not in named:
        raise ModelLoadError(
            f"{source}: config.json says model_type {config.model_type!r}, but its architectures are {', '.join(sorted(named))}, "
            f"which is model_type {next(iter(owners.values()))!r}; correct the one that is wrong"
        )


def _require_all_weights(model: nn.Module, report: Mapping[str, Any], source: str, quantisation: str | None) -> None:
    """Raises ModelLoadError if the model lacks a weight, or the files have a weight for one of its blocks that no such block has.

    Warns of other weights without a place: further layers, or a vision tower beside a language model.
    """
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise ModelLoadError(
            f"{source}: {len(lacking)} weights are missing or of another shape, e.g. {lacking[0]}; the checkpoint is incomplete"
        )
    unused = sorted(report["unexpected_keys"])
    if not unused:
        return
    modules = {name for name, _ in model.named_modules()}
    foreign = [key for key in unused if (block := BLOCK.match(key)) and block[0] in modules and not key.endswith(TOLERATED)]
    if foreign and quantisation is None:
        raise ModelLoadError(
            f"{source}: the files hold weights that no {type(model).__name__} has, e.g. {foreign[0]}; config.json describes another model"
        )
    warnings.warn(f"{source}: {len(unused)} weights in the files have no place in the model, e.g. {unused[0]}", stacklevel=4)


BLOCK = re.compile(r".*?\.\d+(?=\.)")
"""The path of a numbered block at the beginning of a weight's name."""

TOLERATED = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""Constants that old checkpoints keep in their blocks, and that no model needs."""


@contextmanager
def _offload_folder(device_map: Any) -> Iterator[str | None]:
    """A folder for weights that transformers must rewrite before it offloads them to disk; emptied when the process ends."""
    if device_map is None:
        yield None
        return
    folder = tempfile.mkdtemp(prefix="layerlens-offload-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    yield folder


def read_unembedding_shape(name: str | Path, *, trust_remote_code: bool = False) -> tuple[int, int, str]:
    """d, V and the stored dtype of a model's unembedding (V × d), read from its configuration without its weights.

    Raises ModelLoadError if no configuration can be read.
    """
    from transformers import AutoConfig

    source = _local_or_hub(str(name))
    try:
        with _quiet_transformers():
            config = text_config(AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code))
        return config.hidden_size, config.vocab_size, str(config.dtype or torch.float32).removeprefix("torch.")
    except Exception as error:
        raise ModelLoadError(f"{source}: no configuration could be read ({one_line(error)})") from error


def _local_or_hub(name: str) -> str:
    """The path of a local folder with `~` expanded, or the hub name. Raises ModelLoadError for a path without a folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelLoadError(f"{name}: no such folder")
    return name


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Inside, transformers logs errors alone: its tables of missing weights are raised or warned of by us, in one line."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
