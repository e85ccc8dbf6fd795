"""What only a card can show: memory, a whole vocabulary, and two cards.

python -m pytest -m "not slow" tests/decode/gpu      on a card: these tests, and the laws of test_kernel_laws.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from layerlens.decode import interface, readout
from layerlens.decode.request import KEPT_LOGITS, SECOND_LOOK
from tests.support.float64_policies import entropy

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(("backend", "second_look"), [("workspace", False), ("workspace", True), ("triton", False)])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_extra_memory_of_a_readout_is_bounded(backend: str, second_look: bool, dtype: torch.dtype) -> None:
    """At most 256 MB on top of the inputs, for Qwen3's vocabulary and 4,096 rows, and the logits that a second look keeps."""
    d_model, vocabulary, rows = 1024, 151936, 4096
    h, w = torch.randn(rows, d_model, device="cuda", dtype=dtype), torch.randn(vocabulary, d_model, device="cuda", dtype=dtype)
    asked: dict[str, Any] = {"want": ("entropy", "logp"), "targets": torch.arange(rows, device="cuda")}
    if backend == "workspace":
        want = interface.WANTS if second_look else tuple(name for name in interface.WANTS if name not in SECOND_LOOK)
        asked |= {"want": want, "final": h.flip(0), "reference": h.roll(1, 0), "top_k": 10}
    readout(h[:256], w, backend=backend)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    readout(h, w, backend=backend, **asked)
    kept = 4 * KEPT_LOGITS["cuda"] if second_look else 0
    assert torch.cuda.max_memory_allocated() - before <= kept + 256e6


@pytest.mark.parametrize("backend", ["workspace", "triton", "auto"])
@pytest.mark.parametrize(("dtype", "d_model"), [(BF16, 1024), (BF16, 2560), (FP16, 1024), (FP32, 512)])
def test_entropy_over_a_whole_vocabulary_matches_float64(backend: str, dtype: torch.dtype, d_model: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    h = (torch.randn(300, d_model, device="cuda", generator=generator) * torch.logspace(-2, 0.5, 300, device="cuda")[:, None]).to(dtype)
    w = (torch.randn(151936, d_model, device="cuda", generator=generator) * d_model**-0.5 * 3).to(dtype)
    logp = torch.cat([(rows.double() @ w.double().T).log_softmax(-1) for rows in h.split(50)])
    got = readout(h, w, backend=backend)
    torch.testing.assert_close(got.entropy.double(), entropy(logp), atol=2e-4, rtol=0)
    assert torch.equal(readout(h, w, backend=backend).entropy, got.entropy)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("backend", ["workspace", "triton"])
def test_unembedding_may_be_on_another_card_than_the_vectors(backend: str) -> None:
    h, w = torch.randn(20, 256, device="cuda:0", dtype=BF16), torch.randn(5000, 256, device="cuda:1", dtype=BF16)
    there = readout(h, w, backend=backend).entropy
    assert there.device == w.device
    torch.testing.assert_close(there.cpu(), readout(h, w.to("cuda:0"), backend=backend).entropy.cpu(), atol=1e-6, rtol=0)
