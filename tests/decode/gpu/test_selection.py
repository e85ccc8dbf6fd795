"""Which GPU backend computes a request, and that a CPU is refused."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from layerlens.decode import readout
from layerlens.decode.gpu import launch
from layerlens.decode.gpu.selection import LARGEST_FUSED_D, gpu_backend
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import SelectionError

BF16, FP32 = torch.bfloat16, torch.float32


def request(hidden: torch.dtype = BF16, weight: torch.dtype = BF16, d_model: int = 64, **asked: Any) -> ReadoutRequest:
    return ReadoutRequest(Unembedding(torch.zeros(100, d_model, dtype=weight)), torch.zeros(4, d_model, dtype=hidden), **asked)


def test_auto_fuses_narrow_16_bit_weights_unless_more_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "kernels_run", lambda device: True)
    assert gpu_backend(request(d_model=LARGEST_FUSED_D)) == "triton"
    assert gpu_backend(request(d_model=LARGEST_FUSED_D, agrees=True)) == "triton"
    for other in (
        request(d_model=LARGEST_FUSED_D + 1),
        request(hidden=FP32),
        request(FP32, FP32),
        request(kl=True),
        request(kl_from=True),
        request(top_k=1),
    ):
        assert gpu_backend(other) == "workspace"


def test_a_named_gpu_backend_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "kernels_run", lambda device: True)
    assert gpu_backend(request(d_model=4096), "triton") == "triton"
    assert gpu_backend(request(), "workspace") == "workspace"
    with pytest.raises(SelectionError, match="choose 'workspace' for KL"):
        gpu_backend(request(kl=True), "triton")


@pytest.mark.parametrize("backend", ["workspace", "triton"])
def test_gpu_backends_refuse_a_cpu(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "kernels_run", lambda device: False)  # as it is without the interpreter, in which tests run kernels
    with pytest.raises(SelectionError, match="needs a GPU"):
        readout(torch.zeros(2, 4), torch.zeros(9, 4), backend=backend)


@pytest.mark.parametrize("error", [
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
    subprocess.CalledProcessError(1, ["gcc", "main.c"]),
    ImportError("libcuda.so.1: cannot open shared object file"),
])  # fmt: skip
def test_triton_that_cannot_compile_is_passed_over_with_one_warning(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_args: Any, **_options: Any) -> None:
        raise error

    card = torch.device("cuda", 0)
    monkeypatch.setattr(launch, "kernels", lambda: SimpleNamespace(reduce_rows={(1, 1): cannot}))
    monkeypatch.setattr(launch, "launching_on", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(launch, "torch", SimpleNamespace(**{**vars(torch), "zeros": lambda *_, device: 0, "empty": lambda *_, device: 0}))
    launch.kernels_run.cache_clear()
    try:
        with pytest.warns(UserWarning, match="install a C compiler"):
            runs = launch.kernels_run(card)
        assert not runs
        assert not launch.kernels_run(card), "a second warning would be an error here"
    finally:
        launch.kernels_run.cache_clear()


def test_the_trial_kernel_is_one_that_runs() -> None:
    cpu = torch.device("cpu")
    if not launch.kernels_run(cpu):
        pytest.skip("needs Triton's interpreter")
    assert launch._launches(cpu)


def test_importing_decode_does_not_import_triton() -> None:
    script = "import sys, torch; known = set(sys.modules); import layerlens.decode; assert 'triton' not in set(sys.modules) - known"
    subprocess.run([sys.executable, "-c", script], check=True)
