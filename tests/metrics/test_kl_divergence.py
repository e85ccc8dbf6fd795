"""Divergence from sums over logits, against torch in float64."""

from __future__ import annotations

import torch

from layerlens.metrics.kl_divergence import kl_divergence
from layerlens.metrics.log_probability import log_partition
from tests.support.softmax_sums import LOGITS, softmax_sums


def test_kl_divergence_is_torchs_and_zero_of_a_policy_with_itself() -> None:
    p, q = LOGITS
    (p_m, p_S, _), (q_m, q_S, _) = softmax_sums(p), softmax_sums(q)
    D = ((p - p_m[:, None]).exp() * (p - q)).sum(-1)
    got = kl_divergence(D, p_S, log_partition(p_m, p_S), log_partition(q_m, q_S))
    wanted = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=1e-12)
    assert (wanted > 1).all()
    itself = kl_divergence(torch.zeros_like(D), p_S, log_partition(p_m, p_S), log_partition(p_m, p_S))
    assert itself.tolist() == [0.0] * len(p)
