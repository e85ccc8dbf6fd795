"""Log-probability from sums over logits, against torch in float64."""

from __future__ import annotations

import torch

from layerlens.metrics.log_probability import log_partition, log_probability
from tests.support.softmax_sums import LOGITS, softmax_sums


def test_log_probability_is_the_log_softmax() -> None:
    m, S, _ = softmax_sums(LOGITS)
    got = log_probability(LOGITS, log_partition(m, S)[..., None])
    torch.testing.assert_close(got, LOGITS.log_softmax(-1), atol=1e-12, rtol=1e-12)
