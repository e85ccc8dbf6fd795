"""The k most likely tokens of a readout, wherever in the vocabulary the large logits lie."""

from __future__ import annotations

import pytest
import torch

from layerlens.decode import readout
from layerlens.decode.cpu import ranges
from tests.support.float64_policies import FAMILIES, log_policy


@pytest.mark.parametrize("backend", FAMILIES)
@pytest.mark.parametrize("order", ["rising", "falling", "equal", "one row rises"])
@pytest.mark.parametrize("k", [1, 7, 90])
def test_top_k_matches_whole_logits_in_every_order_of_logits(order: str, k: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk holds larger logits than all chunks before it, or none does; k may exceed the number of tokens in a chunk."""
    monkeypatch.setattr(ranges, "CHUNK_ELEMENTS", 64)
    ramp = torch.linspace(-5, 5, 1500)
    logits = {
        "rising": torch.stack([ramp, 2 * ramp]),
        "falling": torch.stack([ramp.flip(0), ramp]),
        "equal": torch.zeros(2, 1500),
        "one row rises": torch.stack([ramp, *torch.randn(3, 1500, generator=torch.Generator().manual_seed(0))]),
    }[order]
    got = readout(torch.eye(len(logits)), logits.T.contiguous(), top_k=k, backend=backend)
    p = log_policy(logits).exp()
    torch.testing.assert_close(got.top_probs.double(), p.topk(k).values, atol=1e-6, rtol=0)
    torch.testing.assert_close(p.gather(-1, got.top_ids), got.top_probs.double(), atol=1e-6, rtol=0)
    assert all(len(set(ids)) == k for ids in got.top_ids.tolist())


@pytest.mark.skipif("native" not in FAMILIES, reason="needs a C++ compiler")
@pytest.mark.parametrize("threads", [1, 2])
def test_native_top_k_names_the_lowest_of_equal_tokens(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = readout(torch.zeros(3, 4), torch.randn(9000, 4), top_k=7, backend="native")
    finally:
        torch.set_num_threads(before)
    assert got.top_ids.tolist() == [list(range(7))] * 3
