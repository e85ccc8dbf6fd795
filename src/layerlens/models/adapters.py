"""Folders of PEFT adapters, as training with LoRA writes them: the base model that they name with the adapters merged in."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from layerlens.errors import ModelLoadError, one_line
from layerlens.models.tokenizer import read_tokenizer

ADAPTER_CONFIG = "adapter_config.json"
"""The file that every folder of PEFT adapters holds."""


def holds_adapters(name: str | Path) -> bool:
    """Whether `name` is a folder of PEFT adapters."""
    return (Path(name).expanduser() / ADAPTER_CONFIG).is_file()


def adapter_tokenizer(adapters: Path, trust_remote_code: bool) -> Any:
    """The tokenizer in a folder of adapters, with the chat template of their training; None if the folder has none."""
    if not (adapters / "tokenizer_config.json").is_file():
        return None
    try:
        return read_tokenizer(adapters, trust_remote_code=trust_remote_code)
    except Exception as error:  # see load_pretrained
        raise ModelLoadError(f"{adapters}: its tokenizer could not be loaded ({one_line(error)})") from error


def base_model(adapters: Path) -> str:
    """The name of the model that a folder of adapters was trained on, which may hold adapters itself.

    Raises ModelLoadError if the folder does not say, or if its base, that one's base and so on lead back to a folder among them.
    """
    base = first = _named_base(adapters)
    seen = {adapters.resolve()}
    while holds_adapters(base):
        folder = Path(base).expanduser().resolve()
        if folder in seen:
            raise ModelLoadError(
                f"{adapters / ADAPTER_CONFIG} names {first} as the model that its adapters are of, and that leads back to {folder}: "
                "write the name of the model before any adapters there"
            )
        seen.add(folder)
        base = _named_base(folder)
    return first


def _named_base(adapters: Path) -> str:
    config = adapters / ADAPTER_CONFIG
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{config} does not say which model its adapters are of ({type(error).__name__}: {error})") from error


def with_adapters(model: nn.Module, folder: Path) -> nn.Module:
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
        raise ModelLoadError(f"{folder}: its adapters could not be loaded ({one_line(error)})") from error
