"""Log-probabilities to train on: values and gradients against whole logits, in every shape that training meets."""

from __future__ import annotations

import math

import pytest
import torch

from layerlens.decode import autograd, request
from layerlens.decode.autograd import token_log_probs
from layerlens.decode.unembedding import Unembedding


def case(dtype: torch.dtype, n: int = 37, d: int = 24, vocab: int = 1003) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in ((n, d), (vocab, d), (vocab,)))
    return hidden, weight, bias, torch.randint(0, vocab, (n,), generator=generator)


def naive(hidden: torch.Tensor, logits: Unembedding, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = logits.scale * (hidden.double() @ logits.weight.double().T)
    if logits.bias is not None:
        x = x + logits.bias.double()
    if logits.softcap is not None:
        x = logits.softcap * torch.tanh(x / logits.softcap)
    logp = (x / logits.temperature).log_softmax(-1)
    return logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("blocks", ["whole", "cut"])
@pytest.mark.parametrize(
    "how", [{}, {"temperature": 0.7}, {"scale": 0.5, "temperature": 2.0}, {"softcap": 3.0, "scale": 0.3, "temperature": 0.8}]
)
@pytest.mark.parametrize("parts", ["logp", "entropy", "both"])
def test_values_and_gradients_are_the_naive_ones(how: dict[str, float], parts: str, blocks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if blocks == "cut":
        monkeypatch.setitem(request.VECTOR_ELEMENTS, "cpu", 10 * 24)
        monkeypatch.setitem(autograd.BACKWARD_ELEMENTS, "cpu", 640)
    hidden, weight, bias, targets = case(torch.float32)
    pull = torch.randn(2, 37, generator=torch.Generator().manual_seed(1))
    pull[:, 5:9] = 0  # rows that the loss masks
    pull[0] *= parts != "entropy"
    pull[1] *= parts != "logp"
    got = token_log_probs(hidden, Unembedding(weight, bias, **how), targets)
    want = naive(hidden, Unembedding(weight, bias, **how), targets)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-6)
    ours = torch.autograd.grad(sum((g * p).sum() for g, p in zip(got, pull, strict=True)), (hidden, weight, bias))
    theirs = torch.autograd.grad(sum((g * p).sum() for g, p in zip(want, pull, strict=True)), (hidden, weight, bias))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    hidden, weight, bias, targets = case(torch.float32)
    logp, entropy = token_log_probs(hidden, Unembedding(weight.detach(), bias.detach()), targets)
    logp.sum().backward()
    assert hidden.grad is not None
    assert not token_log_probs(hidden.detach(), Unembedding(weight.detach()), targets)[0].requires_grad
    assert entropy.requires_grad


def test_a_gradient_of_the_gradient_is_refused() -> None:
    hidden, weight, bias, targets = case(torch.float32)
    logp, _ = token_log_probs(hidden, Unembedding(weight, bias), targets)
    (gradient,) = torch.autograd.grad(logp.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.square().sum().backward()


def test_low_precision_keeps_float32_logits() -> None:
    hidden, weight, bias, targets = case(torch.bfloat16)
    logp, _ = token_log_probs(hidden, Unembedding(weight, bias), targets)
    want, _ = naive(hidden, Unembedding(weight, bias), targets)
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp.double(), want, atol=1e-5, rtol=1e-6)
    ours, theirs = (torch.autograd.grad(x.sum(), (hidden, weight)) for x in (logp, want))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b.double(), atol=0.05 * float(b.abs().max()), rtol=0)


def test_autocast_rounds_inputs_and_not_logits() -> None:
    hidden, weight, bias, targets = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logp, _ = token_log_probs(hidden, Unembedding(weight, bias), targets)
    want, _ = naive(hidden.bfloat16(), Unembedding(weight.bfloat16(), bias), targets)
    torch.testing.assert_close(logp.double(), want, atol=1e-5, rtol=1e-6)
    assert torch.autograd.grad(logp.sum(), weight)[0].dtype == torch.float32


def test_nan_is_passed_on() -> None:
    hidden, weight, _, targets = case(torch.float32)
    with torch.no_grad():
        hidden[3, 0] = math.nan
    logp, _ = token_log_probs(hidden, Unembedding(weight), targets)
    assert logp.isnan().tolist() == [row == 3 for row in range(37)]
