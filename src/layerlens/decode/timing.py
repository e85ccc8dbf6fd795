"""The fastest of several backends for a shape of request, found by timing them and kept in the user's cache folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from layerlens.decode.cpu.native_library import processor_identity
from layerlens.decode.cpu.ranges import chunk_size
from layerlens.decode.moments import PartialSums
from layerlens.decode.request import ReadoutRequest
from layerlens.storage.files import cache_folder, write_atomic

_fastest: dict[str, str] = {}
"""What this process has found or read, by the key of the file in the cache folder."""


def fastest_backend(backends: Mapping[str, Callable[[ReadoutRequest], PartialSums]], request: ReadoutRequest) -> str:
    """The name of the backend that is fastest for requests of this shape.

    Two requests have one shape if they agree in d_model, dtypes, the numbers asked for and the power of two below the number of
    rows. The answer is kept in the cache folder, so that all processes of a machine compute alike.
    """
    names = list(backends)
    log_rows = max(1, len(request.hidden)).bit_length()
    shape = (
        log_rows,
        request.hidden.shape[1],
        str(request.hidden.dtype),
        str(request.unembedding.weight.dtype),
        request.kl,
        request.kl_from,
        request.top_k > 0,
        *sorted(request.second),
    )
    key = sha256(f"{shape} {names} {torch.__version__} {processor_identity()}".encode()).hexdigest()[:16]
    if key not in _fastest:
        try:
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"fastest-{key}.json"
            with FileLock(path.with_suffix(".lock")):
                name = _stored(path)
                if name not in names:
                    name = _time(backends, request)
                    write_atomic(path, lambda made: made.write_text(json.dumps({"shape": shape, "backend": name})))
                _fastest[key] = name
        except OSError:  # the cache folder cannot be written
            _fastest[key] = _time(backends, request)
    return _fastest[key]


def _stored(path: Path) -> Any:
    """The name that a file of the cache holds; None if the file is missing or damaged."""
    try:
        return json.loads(path.read_text())["backend"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _time(backends: Mapping[str, Callable[[ReadoutRequest], PartialSums]], request: ReadoutRequest, rounds: int = 3) -> str:
    """The backend with the shortest run on the first two chunks of the vocabulary; the backends take turns in every round."""
    unembedding = request.unembedding
    tokens = slice(0, 2 * chunk_size(request))
    bias = None if unembedding.bias is None else unembedding.bias[tokens]
    part = replace(request, unembedding=replace(unembedding, weight=unembedding.weight[tokens], bias=bias))
    seconds = dict.fromkeys(backends, float("inf"))
    for _ in range(rounds):
        for name, compute in backends.items():
            start = time.perf_counter()
            compute(part)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return min(seconds, key=seconds.__getitem__)
