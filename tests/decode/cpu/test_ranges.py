"""Threads that share the ranges of the vocabulary."""

from __future__ import annotations

import pytest
import torch

from layerlens.decode import readout
from tests.support.float64_policies import FAMILIES


@pytest.mark.parametrize("backend", FAMILIES)
def test_readout_has_the_same_bits_for_any_number_of_threads(backend: str) -> None:
    h, w, f = torch.randn(4, 30, 32), torch.randn(9001, 32), torch.randn(30, 32)
    before = torch.get_num_threads()
    try:
        got = {}
        for threads in (1, 3):
            torch.set_num_threads(threads)
            got[threads] = readout(h, w, want=("entropy", "kl", "agrees"), final=f, top_k=4, backend=backend)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for name in ("entropy", "kl", "agrees", "top_ids", "top_probs"):
        assert torch.equal(getattr(got[1], name), getattr(got[3], name)), name
