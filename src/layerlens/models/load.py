"""Loading models from a hub name, a folder or a GGUF file: no pickled weights, and no code from the hub unless the user allows it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerlens.errors import ModelLayoutError, ModelLoadError
from layerlens.models.gguf import find_gguf
from layerlens.models.layout import require_readable, text_config

DTYPES = {"auto": "auto", **{name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")}}

ADAPTER_CONFIG = "adapter_config.json"
"""The file that every folder of PEFT adapters holds."""


def load_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """The causal language model and tokenizer of a hub name, a local folder or a GGUF file, in evaluation mode.

    The weights of a GGUF file are dequantised, by default to float32.     A folder of PEFT adapters, as training with LoRA
    writes it, gives the base model that it names with the adapters merged in.

    Raises:
        ModelLoadError: files are missing, damaged or incomplete (a weight that the checkpoint lacks is an error, never a random number).
        ModelLayoutError: the architecture cannot be read; raised before any weight is read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ModelLoadError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    if device is not None and device_map is not None:
        raise ModelLoadError("give either device or device_map, not both")
    file = find_gguf(name)
    source = str(file.parent) if file else _local_or_hub(str(name))
    if holds_adapters(source):
        adapters = Path(source)
        base = _base_model(adapters / ADAPTER_CONFIG)
        given = {"dtype": dtype, "device": device, "device_map": device_map, "trust_remote_code": trust_remote_code}
        model, tokenizer = load_pretrained(base, **given)
        return _with_adapters(model, adapters).eval(), _adapter_tokenizer(adapters, trust_remote_code) or tokenizer
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    weights: dict[str, Any] = {"use_safetensors": True}
    if file:
        common |= {"gguf_file": file.name}
        weights = {"quantization_config": GgufConfig(dequantize=True)}
        dtype, source, folder = "float32" if dtype == "auto" else dtype, str(file), str(file.parent)
    else:
        folder = source
    try:
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(folder, **common)
            require_readable(config)
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=DTYPES[dtype] if isinstance(dtype, str) else dtype,
                device_map=device_map,
                output_loading_info=True,
                **weights,
                **common,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **common)
    except ModelLayoutError:
        raise
    except Exception as error:  # a checkpoint can be broken in many ways; each becomes one line
        hint = "; it comes with code of its own, which runs only with trust_remote_code" if "trust_remote_code" in str(error) else ""
        raise ModelLoadError(f"{source}: could not be loaded ({_one_line(error)}){hint}") from error
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise ModelLoadError(
            f"{source}: {len(lacking)} weights are missing or of another shape, e.g. {lacking[0]}; the checkpoint is incomplete"
        )
    unused = sorted(report["unexpected_keys"])
    if unused:
        warnings.warn(f"{source}: {len(unused)} weights in the files have no place in the model, e.g. {unused[0]}", stacklevel=3)
    if device is not None:
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:  # torch says "not compiled with CUDA" by an assertion
            raise ModelLoadError(f"{source}: cannot be put on device {str(device)!r} ({str(error).splitlines()[0][:200]})") from error
    return model.eval(), tokenizer


def holds_adapters(name: str | Path) -> bool:
    """Whether `name` is a folder of PEFT adapters."""
    return (Path(name).expanduser() / ADAPTER_CONFIG).is_file()


def _one_line(error: Exception) -> str:
    """The error's class and the beginning of its message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _adapter_tokenizer(adapters: Path, trust_remote_code: bool) -> Any:
    """The tokenizer in a folder of adapters, with the chat template of their training; None if the folder has none."""
    from transformers import AutoTokenizer

    if not (adapters / "tokenizer_config.json").is_file():
        return None
    try:
        return AutoTokenizer.from_pretrained(adapters, trust_remote_code=trust_remote_code)
    except Exception as error:  # see load_pretrained
        raise ModelLoadError(f"{adapters}: its tokenizer could not be loaded ({_one_line(error)})") from error


def _base_model(config: Path) -> str:
    """The name of the model that adapters were trained on, read from their configuration file."""
    try:
        base = str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{config} does not say which model its adapters are of ({type(error).__name__}: {error})") from error
    if Path(base).resolve() == config.parent.resolve():
        raise ModelLoadError(f"{config} names its own folder as the model that its adapters are of")
    return base


def _with_adapters(model: nn.Module, folder: Path) -> nn.Module:
    try:
        from peft import PeftModel
    except ImportError:
        raise ModelLoadError(f"{folder} holds adapters, which need PEFT: pip install 'layerlens-policy[train]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a deprecated name of transformers
            merged = PeftModel.from_pretrained(model, folder, use_safetensors=True).merge_and_unload()
        # adapters trained on top, and a reference model for KL, must name the merged model and not the base
        merged.config._name_or_path = merged.name_or_path = str(folder.resolve())
        return merged.requires_grad_(True)  # type: ignore[no-any-return]
    except Exception as error:  # see load_pretrained
        raise ModelLoadError(f"{folder}: its adapters could not be loaded ({_one_line(error)})") from error


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
        raise ModelLoadError(f"{source}: no configuration could be read ({_one_line(error)})") from error


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
