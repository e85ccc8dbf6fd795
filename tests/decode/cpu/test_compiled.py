"""The backend "compile" in a process of its own: the checks of array shapes that tests run with cannot be compiled."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMPILED = """
import torch
from layerlens.decode import readout
h, w, f = torch.randn(3, 11, 16), torch.randn(2003, 16), torch.randn(11, 16)
wanted = {"want": ("entropy", "kl", "kl_from"), "final": f, "reference": f}
got, want = (readout(h, w, **wanted, backend=backend) for backend in ("compile", "torch"))
for name in ("entropy", "kl", "kl_from"):
    torch.testing.assert_close(getattr(got, name), getattr(want, name), atol=1e-5, rtol=1e-5)
"""


@pytest.mark.slow
def test_compiled_readout_matches_torch() -> None:
    subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=300)
