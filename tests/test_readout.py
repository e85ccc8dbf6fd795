"""The streamed readout against whole logits in float64, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerlens.decode import readout, stream, streamed
from layerlens.decode.logits import Logits
from layerlens.errors import ReadoutError, SelectionError


def plain(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().log_softmax(-1)


@given(
    seed=st.integers(0, 10_000), stack=st.integers(1, 3), rows=st.integers(1, 9), vocab=st.integers(1, 700), d=st.integers(1, 24),
    scale=st.sampled_from([0.01, 1.0, 8.0]), chunk=st.sampled_from([64, 300, 1 << 20]),
)  # fmt: skip
def test_streamed_is_naive(seed: int, stack: int, rows: int, vocab: int, d: int, scale: float, chunk: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(stack, rows, d, generator=generator) * scale
    weight, final, reference = (torch.randn(n, d, generator=generator) for n in (vocab, rows, rows))
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    k = min(3, vocab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK_ELEMENTS", chunk)
        got = readout(hidden, weight, want=streamed.WANTS, targets=targets, final=final, reference=reference, top_k=k)
    logp, final_logp, ref_logp = plain(hidden @ weight.T), plain(final @ weight.T), plain(reference @ weight.T)
    size = 1e-5 * max(1.0, float(logp.abs().max()))
    p = logp.exp()
    torch.testing.assert_close(got.entropy.double(), -(p * logp).sum(-1), atol=size, rtol=0)
    torch.testing.assert_close(got.logp.double(), logp.gather(-1, targets.expand(stack, rows)[..., None])[..., 0], atol=size, rtol=0)
    torch.testing.assert_close(got.kl.double(), (p * (logp - final_logp)).sum(-1), atol=size, rtol=0)
    torch.testing.assert_close(got.kl_from.double(), (ref_logp.exp() * (ref_logp - logp)).sum(-1), atol=size, rtol=0)
    assert (got.kl >= 0).all()
    assert torch.equal(got.agrees, (hidden @ weight.T).argmax(-1) == (final @ weight.T).argmax(-1))
    torch.testing.assert_close(got.top_probs.double(), p.topk(k).values, atol=size, rtol=0)
    torch.testing.assert_close(p.gather(-1, got.top_ids), got.top_probs.double(), atol=size, rtol=0)


@pytest.mark.parametrize("offset", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("shape", ["peaked", "flat", "mixed"])
def test_extreme_rows(shape: str, offset: float) -> None:
    logits = {
        "peaked": torch.tensor([[1e4, *[0.0] * 776]]),
        "flat": torch.randn(1, 777) * 1e-3,
        "mixed": torch.cat([torch.full((1, 400), 30.0), torch.randn(1, 377)], -1),
    }[shape] + offset
    got = readout(torch.eye(1), logits.T.contiguous())
    logp = plain(logits)
    torch.testing.assert_close(got.entropy.double(), -(logp.exp() * logp).sum(-1), atol=1e-4, rtol=0)


def test_a_zero_row_is_uniform_and_a_single_token_certain() -> None:
    assert readout(torch.zeros(1, 4), torch.randn(1003, 4)).entropy.item() == pytest.approx(math.log(1003), abs=1e-6)
    assert readout(torch.randn(2, 4), torch.randn(1, 4)).entropy.tolist() == [0.0, 0.0]


def test_identical_policies_have_no_divergence() -> None:
    h, w = torch.randn(20, 16) * 3, torch.randn(5000, 16)
    got = readout(torch.stack([h, h]), w, want=("kl", "kl_from", "agrees"), final=h, reference=h)
    assert got.kl.abs().max() < 1e-6
    assert got.kl_from.abs().max() < 1e-6
    assert got.agrees.all()


def test_bias_scale_cap_and_temperature() -> None:
    h, w, b = torch.randn(6, 8), torch.randn(90, 8), torch.randn(90)
    got = readout(h, Logits(w, bias=b, scale=0.7, softcap=3.0, temperature=0.5))
    logp = plain(3.0 * torch.tanh((0.7 * h @ w.T + b).double() / 3.0) / 0.5)
    torch.testing.assert_close(got.entropy.double(), -(logp.exp() * logp).sum(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_are_read_in_float32(dtype: torch.dtype) -> None:
    h, w = torch.randn(30, 64).to(dtype), torch.randn(3001, 64).to(dtype)
    logp = plain(h.double() @ w.double().T)
    torch.testing.assert_close(readout(h, w).entropy.double(), -(logp.exp() * logp).sum(-1), atol=1e-4, rtol=0)


def test_rows_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    h, w, f = torch.randn(3, 50, 8), torch.randn(300, 8), torch.randn(50, 8)
    whole = readout(h, w, want=("entropy", "kl"), final=f)
    monkeypatch.setattr(streamed, "ROWS_AT_ONCE", 12)
    cut = readout(h, w, want=("entropy", "kl"), final=f)
    np.testing.assert_allclose(cut.entropy, whole.entropy, atol=1e-6)
    np.testing.assert_allclose(cut.kl, whole.kl, atol=1e-5)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_row_is_named(poison: float) -> None:
    hidden = torch.randn(2, 5, 4)
    hidden[1, 3, 2] = poison
    with pytest.raises(ReadoutError, match="row 3 of state 1") as caught:
        readout(hidden, torch.randn(50, 4))
    assert (caught.value.stack, caught.value.row) == (1, 3)


def test_minus_infinity_and_no_vocabulary_are_errors() -> None:
    bias = torch.zeros(50)
    bias[7] = -math.inf
    with pytest.raises(ReadoutError, match="infinite"):
        readout(torch.randn(2, 4), Logits(torch.randn(50, 4), bias=bias))
    with pytest.raises(ReadoutError, match="empty vocabulary"):
        readout(torch.randn(2, 4), torch.randn(0, 4))


def test_what_is_missing_is_asked_for() -> None:
    h, w = torch.randn(2, 4), torch.randn(9, 4)
    with pytest.raises(SelectionError, match="'kl' needs final="):
        readout(h, w, want=("kl",))
    with pytest.raises(SelectionError, match="unknown readout 'surprise'"):
        readout(h, w, want=("surprise",))
    with pytest.raises(SelectionError, match="4 dimensions, the unembedding 5"):
        readout(h, Logits(torch.randn(9, 5)))
