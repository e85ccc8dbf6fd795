"""GGUF files: one file with weights, tokenizer and chat template, read through transformers and dequantised."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from layerlens.errors import ModelLoadError

SUFFIX = ".gguf"


def find_gguf(name: str | Path) -> Path | None:
    """The GGUF file that a name means: the file itself, or the only one in a folder without a Hugging Face configuration.

    None if the name means something else.

    Raises ModelLoadError if there is no such file, if a folder holds several, or if the library that reads them is missing.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() == SUFFIX:
        if not path.is_file():
            raise ModelLoadError(f"{name}: no such GGUF file")
        return _readable(path)
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == SUFFIX)
    if len(files) > 1:
        raise ModelLoadError(f"{name} holds {len(files)} GGUF files: name one of them, e.g. {files[0]}")
    return _readable(files[0]) if files else None


def gguf_loading() -> dict[str, Any]:
    """The arguments with which transformers dequantises a GGUF file. Raises ModelLoadError if transformers is too old to."""
    try:
        from transformers import GgufConfig
    except ImportError:
        raise ModelLoadError("reading GGUF files needs a newer transformers: pip install -U 'layerlens-policy[gguf]'") from None
    return {"quantization_config": GgufConfig(dequantize=True)}


def gguf_quantisation(file: Path) -> str:
    """How a GGUF file stores most of its weights, in words: "GGUF Q4_K_M, dequantised"."""
    from gguf import GGUFReader, LlamaFileType

    field = GGUFReader(str(file)).fields.get("general.file_type")
    try:
        kind = "" if field is None else " " + LlamaFileType(int(field.contents())).name.removeprefix("ALL_").removeprefix("MOSTLY_")
    except ValueError:  # newer than the library
        kind = ""
    return f"GGUF{kind}, dequantised"


def _readable(file: Path) -> Path:
    if find_spec("gguf") is None:
        raise ModelLoadError(f"{file}: reading GGUF files needs the library gguf: pip install 'layerlens-policy[gguf]'")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ModelLoadError(f"{file} is no GGUF file: it does not begin with the letters GGUF")
    return file
