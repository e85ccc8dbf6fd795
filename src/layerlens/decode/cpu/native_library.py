"""The shared library made of `native.cpp`: compiled once for this processor if a compiler is there, and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

from layerlens.storage.files import cache_folder, write_atomic

log = logging.getLogger("layerlens.decode")

SOURCE = Path(__file__).with_name("native.cpp")
HEADERS = ("second_look.hpp", "simd.hpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")


class PolicySet(ctypes.Structure):
    """The struct of this name in `native.cpp`."""

    _fields_ = (
        ("rows", ctypes.c_long),
        ("first_vector", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("m", "S", "A")),
        ("k", ctypes.c_long),
        ("top_logits", ctypes.c_void_p),
        ("top_ids", ctypes.c_void_p),
    )


class RangePass(ctypes.Structure):
    """The struct of this name in `native.cpp`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("packed", "weight", "bias")),
        *((name, ctypes.c_long) for name in ("d_model", "start", "stop")),
        *((name, ctypes.c_int32) for name in ("weight_bf16", "dot_bf16", "product_alone")),
        ("scale", ctypes.c_float),
        ("inverse_temperature", ctypes.c_float),
        *((name, PolicySet) for name in ("own", "final", "reference")),
        *((name, ctypes.c_void_p) for name in ("targets", "target_logit", "kl", "kl_from", "kept")),
    )


class RangeLook(ctypes.Structure):
    """The struct of this name in `second_look.hpp`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("kept", "m", "log_S")),
        *((name, ctypes.c_long) for name in ("lanes", "start", "stop", "own_first", "own_rows", "final_first", "final_rows")),
        *((name, ctypes.c_void_p) for name in ("targets", "target_logit", "js", "kl_from_final", "renyi", "rank")),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library; None if it cannot be built here, for a reason that is logged at level DEBUG."""
    compiler = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or os.name == "nt":
        log.debug("no C++ compiler: the readout runs in torch")
        return None
    try:
        loaded = ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("native.cpp does not build here, the readout runs in torch: %s", getattr(error, "stderr", None) or error)
        return None
    loaded.layerlens_pass.argtypes = [ctypes.POINTER(RangePass)]
    sizes = [ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    loaded.layerlens_pack.argtypes = [ctypes.c_void_p, *sizes, ctypes.c_void_p]
    loaded.layerlens_look.argtypes = [ctypes.POINTER(RangeLook)]
    loaded.layerlens_look.restype = loaded.layerlens_pass.restype = loaded.layerlens_pack.restype = None
    loaded.layerlens_has_dot.restype = ctypes.c_int
    return loaded


def required_library() -> ctypes.CDLL:
    """The loaded library, for a caller that has made sure that there is one."""
    loaded = library()
    assert loaded is not None
    return loaded


def _built(compiler: str) -> Path:
    """The path of the library, which is compiled if the cache folder does not hold it for this source, compiler and processor."""
    sources = "".join(SOURCE.with_name(name).read_text() for name in (SOURCE.name, *HEADERS))
    key = hashlib.sha256(f"{sources} {compiler} {FLAGS} {processor_identity()}".encode()).hexdigest()[:16]
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"native-{key}.so"
    if not path.exists():
        command = [compiler, *FLAGS, str(SOURCE), "-o"]
        write_atomic(path, lambda made: subprocess.run([*command, str(made)], check=True, capture_output=True, text=True, timeout=300))
    return path


@cache
def processor_identity() -> str:
    """A text that is equal on two machines only if code compiled on one runs on the other; machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return " ".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
