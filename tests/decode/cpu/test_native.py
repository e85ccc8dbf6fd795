"""The native backend's product of bfloat16 pairs."""

from __future__ import annotations

import pytest
import torch

from layerlens.decode import choose, readout, timing
from layerlens.decode.cpu import native
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.unembedding import Unembedding
from tests.support.float64_policies import FAMILIES, kl, log_policy

pytestmark = pytest.mark.skipif("native" not in FAMILIES, reason="needs a C++ compiler")


def test_products_of_bfloat16_pairs_are_those_of_float32() -> None:
    """All numbers are powers of two times small integers, so that every sum is exact in float32."""
    h, w = torch.randint(-8, 9, (50, 64)).bfloat16() / 4, torch.randint(-8, 9, (1003, 64)).bfloat16() / 8
    request = ReadoutRequest(Unembedding(w), h, {"final": h[:10]}, kl=True, agrees=True, top_k=3)
    if not native.can_dot(request):
        pytest.skip("this processor does not multiply bfloat16 pairs")
    pairs, floats = native.native_backend(request, dot=True), native.native_backend(request)
    for name in ("m", "S", "A", "argmax"):
        assert torch.equal(getattr(pairs.own, name), getattr(floats.own, name))
    assert torch.equal(pairs.kl, floats.kl)
    assert torch.equal(pairs.top_logits, floats.top_logits)


def test_readout_multiplies_no_pairs_if_an_anchor_is_not_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed vectors of all policies have one layout: a float32 anchor read as bfloat16 pairs gave a plausible, wrong divergence."""
    monkeypatch.setattr(choose, "WORTH_TIMING", 1)
    monkeypatch.setattr(timing, "_time", lambda backends, _: list(backends)[-1])  # native-dot, if it is possible
    monkeypatch.setattr(timing, "_stored", lambda _: None)
    monkeypatch.setattr(timing, "_fastest", {})
    h, w, f = (torch.randn(n, 16).bfloat16() for n in (6, 300, 6))
    got = readout(h, w, want=("kl",), final=f.float(), backend="native").kl
    p, q = log_policy(h.double() @ w.double().T), log_policy(f.double() @ w.double().T)
    torch.testing.assert_close(got.double(), kl(p, q), atol=1e-4, rtol=0)
