"""The streamed readout against whole logits in float64, and what it refuses."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import layerlens as ll
from layerlens.decode import choose, readout, timing
from layerlens.decode import interface as streamed
from layerlens.decode import request as decode_request
from layerlens.decode.cpu import native, ranges
from layerlens.decode.interface import _refuse_bad_input
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import ReadoutError, SelectionError
from tests.support.tiny_models import random_ids, tiny_model

HERE = ("torch", *(("native",) if native.library() is not None else ()))
"""The ways to compute a readout on this machine; `native` where there is a C++ compiler."""


def plain(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().log_softmax(-1)


@given(
    seed=st.integers(0, 10_000), stack=st.integers(1, 3), rows=st.integers(1, 9), vocab=st.integers(1, 700), d=st.integers(1, 24),
    scale=st.sampled_from([0.01, 1.0, 8.0]), chunk=st.sampled_from([64, 300, 1 << 20]), backend=st.sampled_from(HERE),
)  # fmt: skip
def test_streamed_is_naive(seed: int, stack: int, rows: int, vocab: int, d: int, scale: float, chunk: int, backend: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(stack, rows, d, generator=generator) * scale
    weight, final, reference = (torch.randn(n, d, generator=generator) for n in (vocab, rows, rows))
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    k = min(3, vocab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "CHUNK_ELEMENTS", chunk)
        wanted = {"targets": targets, "final": final, "reference": reference}
        got = readout(hidden, weight, want=streamed.WANTS, **wanted, top_k=k, backend=backend)
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


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("order", ["rising", "falling", "equal", "one row rises"])
@pytest.mark.parametrize("k", [1, 7, 90])
def test_top_k_holds_wherever_the_large_logits_lie(order: str, k: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether each chunk holds larger logits than all before it, or none does; more of them than a chunk has tokens."""
    monkeypatch.setattr(ranges, "CHUNK_ELEMENTS", 64)
    ramp = torch.linspace(-5, 5, 1500)
    logits = {
        "rising": torch.stack([ramp, 2 * ramp]),
        "falling": torch.stack([ramp.flip(0), ramp]),
        "equal": torch.zeros(2, 1500),
        "one row rises": torch.stack([ramp, *torch.randn(3, 1500, generator=torch.Generator().manual_seed(0))]),
    }[order]
    got = readout(torch.eye(len(logits)), logits.T.contiguous(), top_k=k, backend=backend)
    p = plain(logits).exp()
    torch.testing.assert_close(got.top_probs.double(), p.topk(k).values, atol=1e-6, rtol=0)
    torch.testing.assert_close(p.gather(-1, got.top_ids), got.top_probs.double(), atol=1e-6, rtol=0)
    assert all(len(set(ids)) == k for ids in got.top_ids.tolist())


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("offset", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("shape", ["peaked", "flat", "mixed"])
def test_extreme_rows(shape: str, offset: float, backend: str) -> None:
    logits = {
        "peaked": torch.tensor([[1e4, *[0.0] * 776]]),
        "flat": torch.randn(1, 777) * 1e-3,
        "mixed": torch.cat([torch.full((1, 400), 30.0), torch.randn(1, 377)], -1),
    }[shape] + offset
    got = readout(torch.eye(1), logits.T.contiguous(), backend=backend)
    logp = plain(logits)
    torch.testing.assert_close(got.entropy.double(), -(logp.exp() * logp).sum(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", HERE)
def test_a_zero_row_is_uniform_and_a_single_token_certain(backend: str) -> None:
    assert readout(torch.zeros(1, 4), torch.randn(1003, 4), backend=backend).entropy.item() == pytest.approx(math.log(1003), abs=1e-6)
    assert readout(torch.randn(2, 4), torch.randn(1, 4), backend=backend).entropy.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("scale", [2.0**-10, 1.0, 2.0**7, 2.0**14])
def test_entropy_holds_at_every_scale(scale: float, backend: str) -> None:
    """Of logits that float32 holds exactly (whole numbers times a power of two), so that all that differs from float64 is the readout."""
    generator = torch.Generator().manual_seed(3)
    h, w = (torch.randn(n, 48, generator=generator).mul(2).round() for n in (200, 10_007))
    logp = plain(scale / 4 * h.double() @ w.double().T)
    entropy = -(logp.exp() * logp).sum(-1)
    got = readout(scale / 4 * h, w, want=("entropy", "logp"), targets=torch.arange(200), backend=backend)
    torch.testing.assert_close(got.entropy.double(), entropy, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.logp.double(), logp[torch.arange(200), torch.arange(200)], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("backend", HERE)
def test_identical_policies_have_no_divergence(backend: str) -> None:
    h, w = torch.randn(20, 16) * 3, torch.randn(5000, 16)
    got = readout(torch.stack([h, h]), w, want=("kl", "kl_from", "agrees"), final=h, reference=h, backend=backend)
    assert got.kl.abs().max() < 1e-6
    assert got.kl_from.abs().max() < 1e-6
    assert got.agrees.all()


@pytest.mark.parametrize(("backend", "cap"), [("torch", 3.0), *((backend, math.inf) for backend in HERE)])
def test_bias_scale_cap_and_temperature(backend: str, cap: float) -> None:
    h, w, b = torch.randn(6, 8), torch.randn(90, 8), torch.randn(90)
    got = readout(h, Unembedding(w, bias=b, scale=0.7, softcap=None if cap == math.inf else cap, temperature=0.5), backend=backend)
    x = (0.7 * h @ w.T + b).double()
    logp = plain((x if cap == math.inf else cap * torch.tanh(x / cap)) / 0.5)
    torch.testing.assert_close(got.entropy.double(), -(logp.exp() * logp).sum(-1), atol=1e-5, rtol=0)


@pytest.mark.skipif("native" not in HERE, reason="needs a C++ compiler")
@pytest.mark.parametrize("threads", [1, 2])
def test_of_equal_logits_the_lowest_tokens_are_the_largest(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = readout(torch.zeros(3, 4), torch.randn(9000, 4), top_k=7, backend="native")
    finally:
        torch.set_num_threads(before)
    assert got.top_ids.tolist() == [list(range(7))] * 3


LOW = [("torch", torch.bfloat16), ("torch", torch.float16), *((backend, torch.bfloat16) for backend in HERE[1:])]


@pytest.mark.parametrize("hidden_dtype", ["same", "float32"])
@pytest.mark.parametrize(("backend", "dtype"), LOW)
def test_low_precision_weights_are_read_in_float32(backend: str, dtype: torch.dtype, hidden_dtype: str) -> None:
    h, w = torch.randn(30, 65).to(dtype if hidden_dtype == "same" else torch.float32), torch.randn(3001, 65).to(dtype)
    logp = plain(h.double() @ w.double().T)
    torch.testing.assert_close(readout(h, w, backend=backend).entropy.double(), -(logp.exp() * logp).sum(-1), atol=1e-4, rtol=0)


def test_rows_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    h, w, f = torch.randn(3, 50, 8), torch.randn(300, 8), torch.randn(50, 8)
    whole = readout(h, w, want=("entropy", "kl"), final=f)
    monkeypatch.setitem(decode_request.VECTOR_ELEMENTS, "cpu", 12 * 8)
    cut = readout(h, w, want=("entropy", "kl"), final=f)
    np.testing.assert_allclose(cut.entropy, whole.entropy, atol=1e-6)
    np.testing.assert_allclose(cut.kl, whole.kl, atol=1e-5)


@pytest.mark.skipif(len(HERE) < 2, reason="no C++ compiler")
def test_products_of_bfloat16_pairs_are_exact() -> None:
    """Powers of two times small integers: every sum is a float32, so the pairs' product must be the very same."""
    h, w = torch.randint(-8, 9, (50, 64)).bfloat16() / 4, torch.randint(-8, 9, (1003, 64)).bfloat16() / 8
    request = ReadoutRequest(Unembedding(w), h, {"final": h[:10]}, kl=True, agrees=True, top_k=3)
    if not native.can_dot(request):
        pytest.skip("this processor has no bfloat16 product")
    dot, plain_ = native.native(request, dot=True), native.native(request)
    for name in ("m", "S", "A", "argmax"):
        assert torch.equal(getattr(dot.own, name), getattr(plain_.own, name))
    assert torch.equal(dot.kl, plain_.kl)
    assert torch.equal(dot.top_values, plain_.top_values)


def test_readout_multiplies_no_pairs_if_an_anchor_is_not_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed vectors of all policies have one layout: a float32 anchor read as bfloat16 pairs gave a plausible, wrong divergence."""
    monkeypatch.setattr(choose, "WORTH_TIMING", 1)
    monkeypatch.setattr(timing, "_time", lambda backends, _: list(backends)[-1])  # native-dot, if it is possible
    monkeypatch.setattr(timing, "_stored", lambda _: None)
    monkeypatch.setattr(timing, "_fastest", {})
    h, w, f = (torch.randn(n, 16).bfloat16() for n in (6, 300, 6))
    kl = readout(h, w, want=("kl",), final=f.float(), backend=HERE[-1]).kl
    p, q = plain(h.double() @ w.double().T), plain(f.double() @ w.double().T)
    torch.testing.assert_close(kl.double(), (p.exp() * (p - q)).sum(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", HERE)
def test_threads_change_nothing(backend: str) -> None:
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


COMPILED = """
import torch
from layerlens.decode import choose, readout, timing
h, w, f = torch.randn(3, 11, 16), torch.randn(2003, 16), torch.randn(11, 16)
wanted = {"want": ("entropy", "kl", "kl_from"), "final": f, "reference": f}
got, want = (readout(h, w, **wanted, backend=backend) for backend in ("compile", "torch"))
for name in ("entropy", "kl", "kl_from"):
    torch.testing.assert_close(getattr(got, name), getattr(want, name), atol=1e-5, rtol=1e-5)
"""


@pytest.mark.slow
def test_compiled_is_naive() -> None:
    """In a process of its own: the checks of array shapes that tests run with can not be compiled."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, timeout=300)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_row_is_named(poison: float, backend: str) -> None:
    hidden = torch.randn(2, 5, 4)
    hidden[1, 3, 2] = poison
    with pytest.raises(ReadoutError, match="row 3 of state 1") as caught:
        readout(hidden, torch.randn(50, 4), backend=backend)
    assert (caught.value.stack, caught.value.row) == (1, 3)


@pytest.mark.parametrize(("layers", "where"), [("all", "layer 2, ffn_out: .* at token 4"), ([1], "layer 4, resid_post: .* at token 0")])
def test_an_analysis_names_token_layer_and_site_of_a_bad_state(layers: object, where: str) -> None:
    """The first in the order of the flow; the model's own policy, where what is measured is fine and only the comparison fails.

    By then attention has spread it to all tokens: one that a mask hides counts 0 times NaN.
    """
    model = tiny_model()
    lens = ll.LensModel.wrap(model)
    samples = [ll.Sample(random_ids(9), 3, id="good"), ll.Sample(random_ids(7, seed=1), 3, id="bad")]

    def spoil(_module: object, _inputs: object, output: torch.Tensor) -> None:
        output[1, 4, 0] = math.nan

    model.model.layers[1].mlp.register_forward_hook(spoil)
    with pytest.raises(ReadoutError, match=f"^{where} of sample bad"):
        ll.analyze(lens, samples, layers=layers, progress=False)


@pytest.mark.parametrize("backend", HERE)
def test_minus_infinity_and_no_vocabulary_are_errors(backend: str) -> None:
    bias = torch.zeros(50)
    bias[7] = -math.inf
    with pytest.raises(ReadoutError, match="infinite"):
        readout(torch.randn(2, 4), Unembedding(torch.randn(50, 4), bias=bias), backend=backend)
    with pytest.raises(ReadoutError, match="empty vocabulary"):
        readout(torch.randn(2, 4), torch.randn(0, 4))


def test_what_is_missing_is_asked_for() -> None:
    h, w = torch.randn(2, 4), torch.randn(9, 4)
    with pytest.raises(SelectionError, match="'kl' needs final="):
        readout(h, w, want=("kl",))
    with pytest.raises(SelectionError, match="unknown readout 'surprise'"):
        readout(h, w, want=("surprise",))
    assert readout(h, w, want="entropy").entropy is not None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"logits": Unembedding(torch.ones(9, 5))}, "4 dimensions, the unembedding 5"),
        ({"bias": torch.ones(8)}, r"bias must be of shape \[9\], got \[8\]"),
        ({"hidden": torch.ones(4)}, r"with at least one row; got \[4\]"),
        ({"hidden": torch.ones(0, 4)}, r"with at least one row; got \[0, 4\]"),
        ({"targets": torch.zeros(5, dtype=torch.long)}, r"targets must be of shape \[6\], got \[5\]"),
        ({"targets": torch.full((6,), 9)}, "token ids below 9, or negative for none"),
        ({"targets": torch.zeros(6)}, "token ids below 9, or negative for none"),
        ({"final": torch.ones(5, 4)}, r"final must be of shape \[6, 4\], got \[5, 4\]"),
        ({"reference": torch.ones(6, 3)}, r"reference must be of shape \[6, 4\], got \[6, 3\]"),
        ({"top_k": -1}, "top_k must be 0 or more, got -1"),
    ],
)
def test_bad_input_is_refused_before_a_pass_reads_it(given: dict[str, Any], told: str) -> None:
    given = dict(given)
    good: dict[str, Any] = {"hidden": torch.ones(6, 4), "logits": Unembedding(torch.ones(9, 4)), "want": (), "top_k": 0}
    object.__setattr__(good["logits"], "bias", given.pop("bias", None))  # past the check of types that only tests have
    vectors = {name: given.pop(name, None) for name in ("targets", "final", "reference")}
    with pytest.raises(SelectionError, match=told):
        _refuse_bad_input(**{**good, **given}, given=vectors)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
def test_targets_of_any_whole_kind(dtype: torch.dtype, backend: str) -> None:
    h, w, targets = torch.randn(6, 4), torch.randn(9, 4), torch.tensor([0, 8, 3, 3, 1, 5])
    got = readout(h, w, want=("logp",), targets=targets.to(dtype), backend=backend).logp
    torch.testing.assert_close(got, plain(h @ w.T)[torch.arange(6), targets].float())


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("offset", [0.0, 1024.0, 16384.0])
def test_divergences_hold_where_all_logits_are_shifted(offset: float, backend: str) -> None:
    """Logits that float32 holds exactly; a shift of all of them changes no policy."""
    generator = torch.Generator().manual_seed(0)
    final = torch.randn(16, 5003, generator=generator).mul(256).round() / 64
    own = final + torch.randn(16, 5003, generator=generator).mul(64).round() / 64
    h = torch.eye(32)
    got = readout(
        h[:16], torch.cat([own + offset, final]).T.contiguous(), want=("kl", "kl_from"), final=h[16:], reference=h[16:], backend=backend
    )
    p, q = plain(own), plain(final)
    torch.testing.assert_close(got.kl.double(), (p.exp() * (p - q)).sum(-1), atol=3e-6, rtol=0)
    torch.testing.assert_close(got.kl_from.double(), (q.exp() * (q - p)).sum(-1), atol=3e-6, rtol=0)
