"""Texts that would change each other's numbers do not share a forward pass, and sampling knows where a cache does not hold the text."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import layerlens as ll
from layerlens.models.batch_mates import BatchMates
from tests.support.architectures import build
from tests.support.tiny_models import random_ids, tiny_model

GPT = {"n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 128, "num_key_value_heads": 4}
SWITCH = 16
LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": SWITCH,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [1.5, 3.0, 6.0, 8.0],
        "factor": 8.0,
        "original_max_position_embeddings": SWITCH,
    },
}


def test_most_models_read_any_texts_together() -> None:
    mates = ll.LensModel.wrap(tiny_model()).parts.batch_mates
    assert mates == BatchMates(alone=False, rotary_switch=None)
    assert mates.together(3, 100)


def test_texts_on_both_sides_of_longropes_switch_are_read_apart() -> None:
    lens = ll.LensModel.wrap(build("phi3", LONGROPE))
    assert lens.parts.batch_mates == BatchMates(alone=False, rotary_switch=SWITCH)
    texts = [ll.Sample(random_ids(length, length)) for length in (10, SWITCH, 24, 30, 12)]
    together = ll.analyze(lens, texts, norm="final")
    for number, text in enumerate(texts):
        alone = ll.analyze(lens, [text], norm="final").data["entropy"].values
        np.testing.assert_allclose(together.sample(number)["entropy"].values, alone, atol=1e-4)


def test_sampling_reads_a_text_anew_where_longrope_switches() -> None:
    policy, text = ll.LensModel.wrap(build("phi3", LONGROPE)).policy(4, norm="final"), random_ids(SWITCH - 3, 2)
    uncached = list(text)
    for _ in range(8):
        uncached.append(int(policy.top(uncached, 1)["token_id"][0]))
    assert policy.sample(text, max_new_tokens=8, temperature=0.0) == [uncached[len(text) :]]


@pytest.mark.parametrize(("name", "config"), [("gpt2", GPT), ("mamba", {"state_size": 8})])
def test_sampling_is_right_where_no_cache_holds_the_text(name: str, config: dict[str, Any]) -> None:
    lens = ll.LensModel.wrap(build(name, config))
    for layer, site in ((1, "resid_pre"), (1, "attn_in"), (2, "resid_post")):
        policy, text = lens.policy(layer, site, "final"), random_ids(6, 7)
        while len(text) < 11 and text[-1] not in policy.end_tokens:
            text.append(int(policy.top(text, 1)["token_id"][0]))
        assert policy.sample(text[:6], max_new_tokens=5, temperature=0.0) == [text[6:]], (layer, site)


def test_int8_reads_each_text_by_itself() -> None:
    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        pytest.skip("bitsandbytes is not installed")
    lens = ll.load("tiny-llama", quantize="bnb-8bit")
    assert lens.parts.batch_mates.alone
    texts = [ll.Sample(random_ids(length, length)) for length in (9, 14, 6)]
    together = ll.analyze(lens, texts, norm="final")
    for number, text in enumerate(texts):
        alone = ll.analyze(lens, [text], norm="final").data["entropy"].values
        np.testing.assert_allclose(together.sample(number)["entropy"].values, alone, atol=1e-4)
