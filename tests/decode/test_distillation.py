"""Divergences to train on: streamed equals naive in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layerlens.decode import autograd, distillation, readout
from layerlens.decode.distillation import js_to_fixed
from layerlens.decode.unembedding import Unembedding


def naive(hidden: Tensor, unembedding: Unembedding, fixed: Tensor) -> Tensor:
    """In float64, from whole logits."""

    def policy(vectors: Tensor) -> Tensor:
        z = unembedding.scale * vectors @ unembedding.weight.T + (0 if unembedding.bias is None else unembedding.bias)
        z = z if unembedding.softcap is None else unembedding.softcap * torch.tanh(z / unembedding.softcap)
        return (z / unembedding.temperature).softmax(-1)

    p, q = policy(hidden), policy(fixed).detach()
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2 / torch.log(torch.tensor(2.0, dtype=torch.float64))


def inputs(seed: int, rows: int, spread: float, biased: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, fixed = (spread * torch.randn(rows, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    bias = torch.randn(300, generator=generator, dtype=torch.float64)
    return [hidden, fixed, weight, *([bias] if biased else [])]


OPTIONS = [{}, {"scale": 0.5}, {"softcap": 4.0}, {"temperature": 0.7}, {"scale": 0.3, "softcap": 5.0, "temperature": 1.3}]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 9), st.floats(0.05, 2), st.booleans(), st.sampled_from(OPTIONS))
def test_values_and_gradients_match_naive_float64(seed: int, rows: int, spread: float, biased: bool, options: dict[str, float]) -> None:
    exact = [tensor.float().double().requires_grad_() for tensor in inputs(seed, rows, spread, biased)]
    streamed = [tensor.detach().float().requires_grad_() for tensor in exact]
    weights = torch.linspace(-1, 1, rows, dtype=torch.float64)
    found = []
    for (hidden, fixed, weight, *bias), function in ((exact, naive), (streamed, js_to_fixed)):
        js = function(hidden, Unembedding(weight, *bias, **options), fixed)
        (js * weights.to(js.dtype)).sum().backward()
        found.append(js.detach())
        assert fixed.grad is None, "no gradient into the fixed policy"
    torch.testing.assert_close(found[1].double(), found[0], atol=1e-6, rtol=1e-6)
    assert 0 <= found[1].min() <= found[1].max() <= 1 + 1e-6
    for a, b in zip([exact[0], *exact[2:]], [streamed[0], *streamed[2:]], strict=True):
        assert a.grad is not None
        torch.testing.assert_close(b.grad.double(), a.grad, atol=1e-6, rtol=1e-6)


def test_chunks_of_any_size_give_one_value_and_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for limit, rows in ((1 << 22, 4096), (64, 2)):
        monkeypatch.setitem(autograd.BACKWARD_ELEMENTS, "cpu", limit)
        monkeypatch.setattr(distillation, "rows_at_once", lambda *_, rows=rows: rows)
        hidden, fixed, weight, bias = (tensor.float().requires_grad_() for tensor in inputs(3, 7, 1.0, True))
        js = js_to_fixed(hidden, Unembedding(weight, bias), fixed)
        js.sum().backward()
        found.append([js.detach(), hidden.grad, weight.grad, bias.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_it_is_the_readouts_divergence_and_zero_for_equal_policies() -> None:
    hidden, fixed, weight = (tensor.float() for tensor in inputs(5, 6, 1.0, False))
    js = js_to_fixed(hidden, Unembedding(weight), fixed)
    torch.testing.assert_close(js, readout(hidden, weight, want=("js",), final=fixed).js, atol=1e-6, rtol=1e-5)
    same = hidden.clone().requires_grad_()
    alike = js_to_fixed(same, Unembedding(weight), hidden)
    alike.sum().backward()
    assert alike.abs().max() < 1e-6
    assert same.grad.abs().max() < 1e-6


def test_rows_without_a_gradient_are_skipped_and_frozen_weights_get_none() -> None:
    hidden, fixed, weight = (tensor.float() for tensor in inputs(6, 4, 1.0, False))
    hidden.requires_grad_()
    js_to_fixed(hidden, Unembedding(weight), fixed)[[0, 2]].sum().backward()
    assert weight.grad is None
    assert hidden.grad[[1, 3]].abs().sum() == 0
    assert (hidden.grad[[0, 2]].abs().sum(-1) > 0).all()


def test_no_array_of_tokens_by_vocabulary_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(autograd.BACKWARD_ELEMENTS, "cpu", 1 << 12)
    monkeypatch.setattr(distillation, "rows_at_once", lambda *_: 64)
    hidden, fixed = torch.randn(512, 8, requires_grad=True), torch.randn(512, 8)
    weight = torch.randn(5000, 8, requires_grad=True)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    with Sizes():
        js_to_fixed(hidden, Unembedding(weight), fixed).sum().backward()
    assert largest <= 5000 * 64 < 5000 * 512
