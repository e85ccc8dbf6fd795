"""The files that fitted lenses come in: the published formats of the Jacobian lens and of the package tuned-lens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerlens.errors import SelectionError, message_of
from layerlens.models.lenses.fitted_lens import FittedLens, Place
from layerlens.storage.files import write_atomic, write_text
from layerlens.types import FITTED_LENSES

CONFIG, PARAMS = "config.json", "params.pt"
"""Files of a folder that the package tuned-lens writes."""

ESTIMATOR = "jacobian_lens"
"""What TransformerLens writes as the estimator of a Jacobian lens; files of its other estimators hold other matrices."""


def read_lens(which: str) -> FittedLens:
    """Reads a fitted lens: "jacobian:FILE" or "tuned:FOLDER".

    A Jacobian file is what the reference implementation of Gurnee et al. 2026 and TransformerLens write: a dictionary, read with
    `torch.load(weights_only=True)`, of `J` (block index from 0 to [d, d]), `source_layers`, `d_model`, `n_prompts` and perhaps
    `metadata`. Ours add `J_mid`, the matrices fitted at resid_mid, and `J_embedding`, that of the embedding. A tuned folder is what the
    package tuned-lens writes: `config.json` and `params.pt`, whose map i is I + weight, bias of the stream after i blocks.

    Raises SelectionError if `which` names no lens, or the file is missing, damaged or of another format.
    """
    name, _, path = which.partition(":")
    if name not in FITTED_LENSES or not path:
        named = " or ".join(f"'{lens}:{'FILE' if lens == 'jacobian' else 'FOLDER'}'" for lens in FITTED_LENSES)
        raise SelectionError(f"lens must be 'logit', {named}, got {which!r}")
    file = Path(path).expanduser()
    try:
        return replace(_read_jacobian(file) if name == "jacobian" else _read_tuned(file), file=str(file))
    except SelectionError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        reason = message_of(error)
        raise SelectionError(f"{file} is no {name} lens that can be read ({type(error).__name__}: {reason})") from error


def resolve_lens(
    lens: str | FittedLens, d_model: int, n_layers: int, name: str, revision: str | None, weights: Callable[[], str]
) -> FittedLens | None:
    """The lens that an argument names, held to a model: None for "logit"; of a lens that was read already only the shape is checked.

    Arguments and errors as in `read_lens`, `FittedLens.require_shape` and `FittedLens.require_model`.
    """
    if lens == "logit":
        return None
    fitted = read_lens(lens) if isinstance(lens, str) else lens
    fitted.require_shape(d_model, n_layers)
    if isinstance(lens, str):
        fitted.require_model(name, revision, weights)
    return fitted


def save_lens(lens: FittedLens, path: str | Path) -> None:
    """Writes a lens in the published format of its kind, with float32 matrices. Raises RunError if it cannot be written."""
    path = Path(path).expanduser()
    if lens.name == "jacobian":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda tmp: torch.save(_jacobian_payload(lens), tmp))
        return
    state: dict[str, Tensor] = {}
    for (layer, _), matrix in sorted(lens.matrices.items()):
        state[f"{layer}.weight"] = matrix.float() - torch.eye(lens.d_model)
        state[f"{layer}.bias"] = lens.biases[layer, "resid_post"].float()
    config = {
        "base_model_name_or_path": lens.model,
        "d_model": lens.d_model,
        "num_hidden_layers": lens.n_layers,
        "bias": True,
        "base_model_revision": lens.revision,
        "unembed_hash": None,
        "lens_type": "linear_tuned_lens",
        "weights": lens.weights,
        "n_prompts": lens.n_prompts,
    }
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / PARAMS, lambda tmp: torch.save(state, tmp))
    write_text(path / CONFIG, json.dumps(config, indent=2) + "\n")


def _read_jacobian(file: Path) -> FittedLens:
    payload = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(payload, Mapping) or not payload.get("J"):
        raise SelectionError(f"{file} holds no Jacobian lens: expected a dictionary with J, a matrix by layer")
    about: Mapping[str, Any] = payload.get("metadata") or {}
    if about.get("estimator", ESTIMATOR) != ESTIMATOR:
        raise SelectionError(f"{file} was fitted by the estimator {about['estimator']!r}, whose matrices are no Jacobian lens")
    matrices: dict[Place, Tensor] = {(int(index) + 1, "resid_post"): matrix for index, matrix in payload["J"].items()}
    if about.get("target_layer") is not None and int(about["target_layer"]) + 1 <= max(layer for layer, _ in matrices):
        raise SelectionError(f"{file} carries states to block {about['target_layer']} (from 0), not to the last block")
    matrices |= {(int(index) + 1, "resid_mid"): matrix for index, matrix in (payload.get("J_mid") or {}).items()}
    if payload.get("J_embedding") is not None:
        matrices[0, "resid_post"] = payload["J_embedding"]
    d_model = int(payload["d_model"])
    wrong = next((place for place, matrix in matrices.items() if tuple(matrix.shape) != (d_model, d_model)), None)
    if wrong is not None:
        raise SelectionError(f"{file} says d_model is {d_model}, and its matrix of layer {wrong[0]} is {tuple(matrices[wrong].shape)}")
    target = about.get("target_layer")
    return FittedLens(
        "jacobian",
        matrices,
        n_layers=None if target is None else int(target) + 1,
        model=about.get("model_name"),
        revision=about.get("model_revision"),
        weights=about.get("weights"),
        n_prompts=int(payload.get("n_prompts", 0)),
    )


def _jacobian_payload(lens: FittedLens) -> dict[str, Any]:
    assert lens.n_layers is not None
    matrices = {place: matrix.float().cpu() for place, matrix in sorted(lens.matrices.items())}
    after = {layer - 1: matrix for (layer, site), matrix in matrices.items() if site == "resid_post" and layer > 0}
    about = {"model_name": lens.model, "model_revision": lens.revision, "estimator": ESTIMATOR, "target_layer": lens.n_layers - 1}
    payload = {
        "J": after,
        "n_prompts": lens.n_prompts,
        "source_layers": sorted(after),
        "d_model": lens.d_model,
        "J_mid": {layer - 1: matrix for (layer, site), matrix in matrices.items() if site == "resid_mid"},
        "metadata": {**about, "weights": lens.weights},
    }
    return payload | ({"J_embedding": matrices[0, "resid_post"]} if (0, "resid_post") in matrices else {})


def _read_tuned(folder: Path) -> FittedLens:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    state: Mapping[str, Tensor] = torch.load(folder / PARAMS, map_location="cpu", weights_only=True)
    n_layers, d_model = int(config["num_hidden_layers"]), int(config["d_model"])
    lacking = [key for layer in range(n_layers) if (key := f"{layer}.weight") not in state]
    if config.get("lens_type", "linear_tuned_lens") != "linear_tuned_lens" or lacking:
        what = f"{PARAMS} lacks {lacking[0]}" if lacking else f"lens_type is {config['lens_type']!r}"
        raise SelectionError(f"{folder} holds no linear tuned lens of {n_layers} layers: {what}")
    identity = torch.eye(d_model)
    places: list[Place] = [(layer, "resid_post") for layer in range(n_layers)]
    return FittedLens(
        "tuned",
        {place: state[f"{place[0]}.weight"].float() + identity for place in places},
        {place: state[f"{place[0]}.bias"].float() for place in places if f"{place[0]}.bias" in state},
        n_layers=n_layers,
        model=config.get("base_model_name_or_path"),
        revision=config.get("base_model_revision"),
        weights=config.get("weights"),
        n_prompts=int(config.get("n_prompts") or 0),
    )
