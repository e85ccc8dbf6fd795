"""Checkpoints with something broken in them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def damaged(folder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    model = tmp_path / "damaged"
    model.mkdir()
    for file in (folder / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model
