"""Numbers for which logits are read twice, against whole logits in float64, on every backend that keeps logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerlens.decode import readout
from layerlens.decode import request as decode_request
from layerlens.decode.cpu import ranges
from layerlens.decode.request import SECOND_LOOK, rows_at_once
from layerlens.decode.unembedding import Unembedding
from tests.support.float64_policies import FAMILIES, collision_entropy, js, kl, log_policy, rank, unembedded_log_policy


@given(
    seed=st.integers(0, 10_000), stack=st.integers(1, 3), rows=st.integers(1, 20), vocabulary=st.integers(1, 700),
    d_model=st.integers(1, 24), scale=st.sampled_from([0.01, 1.0, 8.0]), chunk=st.sampled_from([64, 300, 1 << 20]),
    asked=st.sets(st.sampled_from(SECOND_LOOK), min_size=1), backend=st.sampled_from(FAMILIES),
)  # fmt: skip
def test_second_look_matches_whole_logits_in_float64(
    seed: int, stack: int, rows: int, vocabulary: int, d_model: int, scale: float, chunk: int, asked: set[str], backend: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(stack, rows, d_model, generator=generator) * scale
    weight, final = (torch.randn(n, d_model, generator=generator) for n in (vocabulary, rows))
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "CHUNK_ELEMENTS", chunk)
        got = readout(hidden, weight, want=asked, targets=targets, final=final, backend=backend)
    logp, final_logp = log_policy(hidden.double() @ weight.double().T), log_policy(final.double() @ weight.double().T)
    size = 1e-5 * max(1.0, float(logp.abs().max()))
    exact = {
        "js": lambda: js(logp, final_logp),
        "kl_from_final": lambda: kl(final_logp, logp),
        "renyi": lambda: collision_entropy(logp),
        "rank": lambda: rank(logp, targets).double(),
    }
    for name in SECOND_LOOK:
        if name not in asked:
            assert getattr(got, name) is None
        else:
            torch.testing.assert_close(getattr(got, name).double(), exact[name](), atol=0 if name == "rank" else size, rtol=0)


@pytest.mark.parametrize("backend", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_js_is_0_of_equal_policies_1_of_disjoint_ones_and_symmetric(backend: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    h, other, w = (torch.randn(n, 16, generator=generator).to(dtype) for n in (20, 20, 5000))
    there = readout(torch.stack([h, other]), w, want=("js",), final=h, backend=backend).js
    back = readout(h, w, want=("js",), final=other, backend=backend).js
    assert there[0].max() < 5e-6
    torch.testing.assert_close(there[1], back, atol=1e-6, rtol=0)
    assert back.min() > 0.1
    assert back.max() < 1
    certain = readout(100 * torch.eye(3), torch.eye(3), want=("js",), final=100 * torch.eye(3).roll(1, 0), backend=backend).js
    torch.testing.assert_close(certain, torch.ones(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", FAMILIES)
def test_renyi_is_log_v_of_a_uniform_policy_and_at_most_the_entropy(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    h, w = torch.cat([torch.zeros(1, 16), torch.randn(40, 16, generator=generator)]), torch.randn(1003, 16, generator=generator)
    got = readout(h, w, want=("renyi", "entropy"), backend=backend)
    torch.testing.assert_close(got.renyi[0], torch.tensor(1003.0).log(), atol=1e-5, rtol=0)
    assert (got.renyi[1:] < got.entropy[1:]).all()


@pytest.mark.parametrize("backend", FAMILIES)
def test_of_equal_logits_the_lowest_token_has_the_lowest_rank(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    h, w = (torch.randn(n, 8, generator=generator).mul(2).round() for n in (200, 3001))  # logits are integers, exact in float32
    targets = torch.randint(0, 3001, (200,), generator=generator)
    targets[0] = -1
    got = readout(h, w, want=("rank", "agrees"), targets=targets, final=h, backend=backend).rank
    assert got[0].isnan()
    assert torch.equal(got[1:].long(), rank(h @ w.T, targets)[1:])
    best = readout(h, w, want=("rank",), targets=(h @ w.T).argmax(-1), backend=backend).rank
    assert (best == 1).all()


def test_kept_logits_stay_below_their_limit_and_the_limit_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    h, w, f = torch.randn(4, 37, 12), torch.randn(900, 12), torch.randn(37, 12)
    want = {"want": (*SECOND_LOOK, "kl"), "targets": torch.arange(37), "final": f}
    whole = readout(h, w, **want, backend="torch-mm")
    monkeypatch.setitem(decode_request.KEPT_LOGITS, "cpu", 900 * 5 * 3)
    assert (rows_at_once(Unembedding(w), 5, second_look=True), rows_at_once(Unembedding(w), 5)) == (3, decode_request.MOST_ROWS // 5)
    parts = readout(h, w, **want, backend="torch-mm")
    for name in want["want"]:
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", FAMILIES)
def test_number_of_threads_changes_no_bit(backend: str, threads: int) -> None:
    h, w, f = (torch.randn(n, 24, generator=torch.Generator().manual_seed(n)) for n in (30, 9001, 10))
    want = {"want": SECOND_LOOK, "targets": torch.arange(10), "final": f, "backend": backend}
    alone = readout(h.view(3, 10, 24), w, **want)
    torch.set_num_threads(threads)
    try:
        together = readout(h.view(3, 10, 24), w, **want)
    finally:
        torch.set_num_threads(1)
    for name in SECOND_LOOK:
        assert torch.equal(getattr(alone, name), getattr(together, name))


@pytest.mark.parametrize("backend", FAMILIES)
def test_second_look_applies_bias_scale_softcap_and_temperature(backend: str) -> None:
    h, w, f, bias = torch.randn(2, 6, 24), torch.randn(777, 24), torch.randn(6, 24), torch.randn(777)
    unembedding = Unembedding(w, bias=bias, scale=0.1, softcap=1.0 if backend == "torch" else None, temperature=0.5)
    got = readout(h, unembedding, want=("js", "kl_from_final", "renyi"), final=f, backend=backend)
    logp, final = unembedded_log_policy(h, unembedding), unembedded_log_policy(f, unembedding)
    for name, exact in (("js", js(logp, final)), ("kl_from_final", kl(final, logp)), ("renyi", collision_entropy(logp))):
        torch.testing.assert_close(getattr(got, name).double(), exact, atol=1e-5, rtol=0)
