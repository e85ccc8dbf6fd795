"""Log-probabilities to train on: values and gradients against whole logits in float64, in every shape that training meets."""

from __future__ import annotations

import math

import pytest
import torch

from layerlens.decode import autograd
from layerlens.decode import request as decode_request
from layerlens.decode.autograd import token_log_probs
from layerlens.decode.unembedding import Unembedding
from tests.support.float64_policies import entropy, unembedded_log_policy


def case(dtype: torch.dtype, n: int = 37, d_model: int = 24, vocabulary: int = 1003) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    sizes = (n, d_model), (vocabulary, d_model), (vocabulary,)
    hidden, weight, bias = (torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes)
    return hidden, weight, bias, torch.randint(0, vocabulary, (n,), generator=generator)


def exact(hidden: torch.Tensor, unembedding: Unembedding, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of the targets and entropy from whole logits in float64, for torch to differentiate."""
    logp = unembedded_log_policy(hidden, unembedding)
    return logp.gather(-1, targets[:, None])[:, 0], entropy(logp)


@pytest.mark.parametrize("blocks", ["whole", "cut"])
@pytest.mark.parametrize(
    "logit_arguments", [{}, {"temperature": 0.7}, {"scale": 0.5, "temperature": 2.0}, {"softcap": 3.0, "scale": 0.3, "temperature": 0.8}]
)
@pytest.mark.parametrize("parts", ["logp", "entropy", "both"])
def test_token_log_probs_and_gradients_match_whole_logits_in_float64(
    logit_arguments: dict[str, float], parts: str, blocks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocks == "cut":
        monkeypatch.setitem(decode_request.VECTOR_ELEMENTS, "cpu", 10 * 24)
        monkeypatch.setitem(autograd.BACKWARD_ELEMENTS, "cpu", 640)
    hidden, weight, bias, targets = case(torch.float32)
    pull = torch.randn(2, 37, generator=torch.Generator().manual_seed(1))
    pull[:, 5:9] = 0  # rows that the loss masks
    pull[0] *= parts != "entropy"
    pull[1] *= parts != "logp"
    got = token_log_probs(hidden, Unembedding(weight, bias, **logit_arguments), targets)
    want = exact(hidden, Unembedding(weight, bias, **logit_arguments), targets)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-6)
    ours = torch.autograd.grad(sum((g * p).sum() for g, p in zip(got, pull, strict=True)), (hidden, weight, bias))
    theirs = torch.autograd.grad(sum((g * p).sum() for g, p in zip(want, pull, strict=True)), (hidden, weight, bias))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


def test_gradients_reach_only_tensors_that_require_them() -> None:
    hidden, weight, bias, targets = case(torch.float32)
    logp, entropies = token_log_probs(hidden, Unembedding(weight.detach(), bias.detach()), targets)
    logp.sum().backward()
    assert hidden.grad is not None
    assert not token_log_probs(hidden.detach(), Unembedding(weight.detach()), targets)[0].requires_grad
    assert entropies.requires_grad


def test_a_second_derivative_is_refused() -> None:
    hidden, weight, bias, targets = case(torch.float32)
    logp, _ = token_log_probs(hidden, Unembedding(weight, bias), targets)
    (gradient,) = torch.autograd.grad(logp.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.square().sum().backward()


def test_logits_of_bfloat16_inputs_are_float32() -> None:
    hidden, weight, bias, targets = case(torch.bfloat16)
    logp, _ = token_log_probs(hidden, Unembedding(weight, bias), targets)
    want, _ = exact(hidden, Unembedding(weight, bias), targets)
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp.double(), want, atol=1e-5, rtol=1e-6)
    ours, theirs = (torch.autograd.grad(x.sum(), (hidden, weight)) for x in (logp, want))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b.double(), atol=0.05 * float(b.abs().max()), rtol=0)


def test_autocast_rounds_inputs_but_not_logits() -> None:
    hidden, weight, bias, targets = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logp, _ = token_log_probs(hidden, Unembedding(weight, bias), targets)
    want, _ = exact(hidden.bfloat16(), Unembedding(weight.bfloat16(), bias), targets)
    torch.testing.assert_close(logp.double(), want, atol=1e-5, rtol=1e-6)
    assert torch.autograd.grad(logp.sum(), weight)[0].dtype == torch.float32


def test_a_nan_in_a_vector_gives_nan_in_its_row_alone() -> None:
    hidden, weight, _, targets = case(torch.float32)
    with torch.no_grad():
        hidden[3, 0] = math.nan
    logp, _ = token_log_probs(hidden, Unembedding(weight), targets)
    assert logp.isnan().tolist() == [row == 3 for row in range(37)]
