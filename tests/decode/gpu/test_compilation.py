"""The kernels compiled to the machine code of cards that need not be here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]

SHARED_A100 = 160 << 10
"""Bytes of shared memory that a block of an A100 may have; a block of an H100 may have more."""

SPILLED = 64
"""Bytes of registers that may be spilled: loop counters, but not a tile."""


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict[str, list[dict[str, int]]]]:
    """What the compiled kernels need, by capability and by how much is asked of them."""
    pytest.importorskip("triton", reason="the GPU kernels need Triton: pip install triton")
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.compile_kernels"]
    done = subprocess.run(command, env=compiling, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("capability", ["80", "90"])
@pytest.mark.parametrize("asked", ["few", "all"])
def test_kernels_compile_for_cards_and_fit_their_memory(capability: str, asked: str, kernels: dict[str, dict[str, Any]]) -> None:
    """For an A100 and an H100, with the tiling that the card would get."""
    assert len(kernels[capability][asked]) == 4
    for kernel in kernels[capability][asked]:
        assert kernel["shared"] <= SHARED_A100
        assert kernel["spilled"] <= SPILLED
