"""The readout against whole logits in float64: entropy, log-probability, divergence and agreement, on every backend of a CPU."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerlens.decode import interface, readout
from layerlens.decode import request as decode_request
from layerlens.decode.cpu import ranges
from layerlens.decode.unembedding import Unembedding
from tests.support.float64_policies import FAMILIES, entropy, kl, log_policy, unembedded_log_policy


@given(
    seed=st.integers(0, 10_000), stack=st.integers(1, 3), rows=st.integers(1, 9), vocabulary=st.integers(1, 700),
    d_model=st.integers(1, 24), scale=st.sampled_from([0.01, 1.0, 8.0]), chunk=st.sampled_from([64, 300, 1 << 20]),
    backend=st.sampled_from(FAMILIES),
)  # fmt: skip
def test_readout_matches_whole_logits_in_float64(
    seed: int, stack: int, rows: int, vocabulary: int, d_model: int, scale: float, chunk: int, backend: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(stack, rows, d_model, generator=generator) * scale
    weight, final, reference = (torch.randn(n, d_model, generator=generator) for n in (vocabulary, rows, rows))
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    k = min(3, vocabulary)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "CHUNK_ELEMENTS", chunk)
        wanted = {"targets": targets, "final": final, "reference": reference}
        got = readout(hidden, weight, want=interface.WANTS, **wanted, top_k=k, backend=backend)
    logp, final_logp, reference_logp = log_policy(hidden @ weight.T), log_policy(final @ weight.T), log_policy(reference @ weight.T)
    size = 1e-5 * max(1.0, float(logp.abs().max()))
    p = logp.exp()
    torch.testing.assert_close(got.entropy.double(), entropy(logp), atol=size, rtol=0)
    torch.testing.assert_close(got.logp.double(), logp.gather(-1, targets.expand(stack, rows)[..., None])[..., 0], atol=size, rtol=0)
    torch.testing.assert_close(got.kl.double(), kl(logp, final_logp), atol=size, rtol=0)
    torch.testing.assert_close(got.kl_from.double(), kl(reference_logp, logp), atol=size, rtol=0)
    assert (got.kl >= 0).all()
    assert torch.equal(got.agrees, (hidden @ weight.T).argmax(-1) == (final @ weight.T).argmax(-1))
    torch.testing.assert_close(got.top_probs.double(), p.topk(k).values, atol=size, rtol=0)
    torch.testing.assert_close(p.gather(-1, got.top_ids), got.top_probs.double(), atol=size, rtol=0)


@pytest.mark.parametrize("backend", FAMILIES)
@pytest.mark.parametrize("offset", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("shape", ["peaked", "flat", "mixed"])
def test_entropy_of_extreme_rows_matches_float64(shape: str, offset: float, backend: str) -> None:
    logits = {
        "peaked": torch.tensor([[1e4, *[0.0] * 776]]),
        "flat": torch.randn(1, 777) * 1e-3,
        "mixed": torch.cat([torch.full((1, 400), 30.0), torch.randn(1, 377)], -1),
    }[shape] + offset
    got = readout(torch.eye(1), logits.T.contiguous(), backend=backend)
    torch.testing.assert_close(got.entropy.double(), entropy(log_policy(logits)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", FAMILIES)
def test_entropy_of_a_zero_row_is_log_v_and_of_a_single_token_zero(backend: str) -> None:
    assert readout(torch.zeros(1, 4), torch.randn(1003, 4), backend=backend).entropy.item() == pytest.approx(math.log(1003), abs=1e-6)
    assert readout(torch.randn(2, 4), torch.randn(1, 4), backend=backend).entropy.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("backend", FAMILIES)
@pytest.mark.parametrize("scale", [2.0**-10, 1.0, 2.0**7, 2.0**14])
def test_entropy_and_log_probability_match_float64_at_every_scale(scale: float, backend: str) -> None:
    """Float32 holds these logits exactly (integers times a power of two), so that only the readout can differ from float64."""
    generator = torch.Generator().manual_seed(3)
    h, w = (torch.randn(n, 48, generator=generator).mul(2).round() for n in (200, 10_007))
    logp = log_policy(scale / 4 * h.double() @ w.double().T)
    got = readout(scale / 4 * h, w, want=("entropy", "logp"), targets=torch.arange(200), backend=backend)
    torch.testing.assert_close(got.entropy.double(), entropy(logp), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.logp.double(), logp[torch.arange(200), torch.arange(200)], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("backend", FAMILIES)
def test_identical_policies_have_no_divergence(backend: str) -> None:
    h, w = torch.randn(20, 16) * 3, torch.randn(5000, 16)
    got = readout(torch.stack([h, h]), w, want=("kl", "kl_from", "agrees"), final=h, reference=h, backend=backend)
    assert got.kl.abs().max() < 1e-6
    assert got.kl_from.abs().max() < 1e-6
    assert got.agrees.all()


@pytest.mark.parametrize("backend", FAMILIES)
@pytest.mark.parametrize("offset", [0.0, 1024.0, 16384.0])
def test_divergences_do_not_change_if_all_logits_are_shifted(offset: float, backend: str) -> None:
    """Float32 holds these logits exactly; a shift of all logits changes no policy."""
    generator = torch.Generator().manual_seed(0)
    final = torch.randn(16, 5003, generator=generator).mul(256).round() / 64
    own = final + torch.randn(16, 5003, generator=generator).mul(64).round() / 64
    h = torch.eye(32)
    got = readout(
        h[:16], torch.cat([own + offset, final]).T.contiguous(), want=("kl", "kl_from"), final=h[16:], reference=h[16:], backend=backend
    )
    p, q = log_policy(own), log_policy(final)
    torch.testing.assert_close(got.kl.double(), kl(p, q), atol=3e-6, rtol=0)
    torch.testing.assert_close(got.kl_from.double(), kl(q, p), atol=3e-6, rtol=0)


@pytest.mark.parametrize(("backend", "softcap"), [("torch", 3.0), *((backend, None) for backend in FAMILIES)])
def test_readout_applies_bias_scale_softcap_and_temperature(backend: str, softcap: float | None) -> None:
    h = torch.randn(6, 8)
    unembedding = Unembedding(torch.randn(90, 8), bias=torch.randn(90), scale=0.7, softcap=softcap, temperature=0.5)
    got = readout(h, unembedding, backend=backend)
    torch.testing.assert_close(got.entropy.double(), entropy(unembedded_log_policy(h, unembedding)), atol=1e-5, rtol=0)


LOW = [("torch", torch.bfloat16), ("torch", torch.float16), *((backend, torch.bfloat16) for backend in FAMILIES[1:])]


@pytest.mark.parametrize("hidden_dtype", ["same", "float32"])
@pytest.mark.parametrize(("backend", "dtype"), LOW)
def test_logits_of_low_precision_weights_are_float32(backend: str, dtype: torch.dtype, hidden_dtype: str) -> None:
    h, w = torch.randn(30, 65).to(dtype if hidden_dtype == "same" else torch.float32), torch.randn(3001, 65).to(dtype)
    got = readout(h, w, backend=backend)
    torch.testing.assert_close(got.entropy.double(), entropy(log_policy(h.double() @ w.double().T)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
def test_targets_may_have_any_integer_dtype(dtype: torch.dtype, backend: str) -> None:
    h, w, targets = torch.randn(6, 4), torch.randn(9, 4), torch.tensor([0, 8, 3, 3, 1, 5])
    got = readout(h, w, want=("logp",), targets=targets.to(dtype), backend=backend).logp
    torch.testing.assert_close(got, log_policy(h @ w.T)[torch.arange(6), targets].float())


def test_rows_cut_into_requests_give_the_numbers_of_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    h, w, f = torch.randn(3, 50, 8), torch.randn(300, 8), torch.randn(50, 8)
    whole = readout(h, w, want=("entropy", "kl"), final=f)
    monkeypatch.setitem(decode_request.VECTOR_ELEMENTS, "cpu", 12 * 8)
    cut = readout(h, w, want=("entropy", "kl"), final=f)
    np.testing.assert_allclose(cut.entropy, whole.entropy, atol=1e-6)
    np.testing.assert_allclose(cut.kl, whole.kl, atol=1e-5)
