"""The workspace backend if Triton is missing, where torch reads the logits; test_kernel_laws.py has the laws of the kernels."""

from __future__ import annotations

import pytest
import torch

from layerlens.decode import interface, readout
from layerlens.decode.gpu import launch, workspace
from layerlens.decode.gpu import product as gpu_product


def test_workspace_without_triton_agrees_with_the_torch_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    h, w, final, reference = (torch.randn(n, 24, generator=generator) for n in (18, 700, 6, 6))
    asked = {"want": interface.WANTS, "targets": torch.arange(-1, 5), "final": final, "reference": reference, "top_k": 5}
    base = readout(h.view(3, 6, 24), w, **asked)
    monkeypatch.setattr(gpu_product, "WORKSPACE_ELEMENTS", 30 * 128)
    monkeypatch.setattr(launch, "kernels_run", lambda device: False)
    monkeypatch.setattr(interface, "choose_backend", lambda request, backend: workspace.workspace_backend)
    got = readout(h.view(3, 6, 24), w, **asked)
    for field in (*interface.WANTS, "top_ids", "top_probs"):
        torch.testing.assert_close(getattr(got, field), getattr(base, field), atol=2e-5, rtol=0, equal_nan=True)
