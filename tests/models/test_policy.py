"""An internal policy is one distribution: scored, sampled and listed alike, and at the top of the model the model's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.errors import PromptError, SelectionError
from layerlens.types import NORMS, SITES
from tests.support.tiny_models import VOCABULARY, random_ids, tiny_model, tiny_tokenizer

SPREAD = 2.5
PLACES = [(1, "resid_pre"), (1, "attn_in"), (1, "attn_out"), (2, "resid_mid"), (3, "ffn_in"), (2, "ffn_out"), (4, "resid_post")]


@pytest.mark.parametrize("norm", NORMS)
def test_policy_scores_match_analysis(lens: ll.LensModel, norm: str) -> None:
    ids, temperature = random_ids(9), 2.5
    spread = SPREAD if norm == "matched" else None
    run = ll.analyze(lens, [ll.Sample(ids)], norm=norm, spread=spread, temperature=temperature, top_k=4)
    for layer, site in PLACES:
        policy = lens.policy(layer, site, norm, temperature, spread=spread)
        at = run.data.sel(layer=layer, site=site)
        np.testing.assert_allclose(policy.log_probs(ids), at["logp_next"][:-1], atol=1e-5)
        np.testing.assert_allclose(policy.entropy(ids), at["entropy"], atol=1e-5)
        top = policy.top(ids, 4)
        assert top["token_id"].tolist() == at["top_ids"].values[-1].tolist()
        np.testing.assert_allclose(top["prob"], at["top_probs"].values[-1], atol=1e-5)


def test_top_probabilities_sum_to_one_and_match_log_probs(qwen: ll.LensModel) -> None:
    policy, ids = qwen.policy(2, "ffn_out"), random_ids(5)
    everything = policy.top(ids, VOCABULARY).set_index("token_id")["prob"]
    assert len(everything) == VOCABULARY
    assert everything.sum() == pytest.approx(1, abs=1e-5)
    assert everything.is_monotonic_decreasing
    for token in (8, 99, VOCABULARY - 1):
        assert policy.log_probs([*ids, token])[-1] == pytest.approx(np.log(everything[token]), abs=1e-4)
    assert -(everything * np.log(everything)).sum() == pytest.approx(float(policy.entropy(ids)[-1]), abs=1e-4)


def argmax_loop(policy: ll.InternalPolicy, ids: list[int], steps: int) -> list[int]:
    """Token by token from scratch, without any cache."""
    text = list(ids)
    for _ in range(steps):
        text.append(int(policy.top(text, 1)["token_id"][0]))
        if text[-1] in policy.end_tokens:
            break
    return text[len(ids) :]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("layer", "site"), PLACES)
def test_cached_sampling_matches_uncached_loop(qwen: ll.LensModel, layer: int, site: str, norm: str) -> None:
    policy, ids = qwen.policy(layer, site, norm, spread=SPREAD if norm == "matched" else None), random_ids(6, 2)
    assert policy.sample(ids, n=2, max_new_tokens=9, temperature=0.0) == [argmax_loop(policy, ids, 9)] * 2


@pytest.mark.parametrize("more", [{"sliding_window": 4}, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}])
def test_cached_sampling_with_sliding_window_and_scaled_rope(more: dict[str, Any]) -> None:
    lens = ll.LensModel.wrap(tiny_model("mistral", **more), tiny_tokenizer())
    policy, ids = lens.policy(4, norm="final"), random_ids(10, 1)
    assert policy.sample(ids, max_new_tokens=12, temperature=0.0) == [argmax_loop(policy, ids, 12)]


def test_threads_sharing_a_model_see_their_own_states() -> None:
    policy = ll.LensModel.wrap(tiny_model()).policy(layer=2)
    texts = [random_ids(40, seed) for seed in range(4)]
    alone = [policy.entropy(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(policy.entropy, texts * 30))
    assert all(torch.equal(found, alone[place % 4]) for place, found in enumerate(together))


def test_last_layer_policy_samples_and_scores_like_the_model(lens: ll.LensModel) -> None:
    policy, ids = lens.policy(lens.n_layers, norm="final"), random_ids(7, 3)
    out = lens.parts.model.generate(
        torch.tensor([ids]), max_new_tokens=12, do_sample=False, attention_mask=torch.ones(1, 7, dtype=torch.long)
    )
    assert policy.sample(ids, max_new_tokens=12, temperature=0.0) == [out[0, 7:].tolist()]
    with torch.no_grad():
        logp = lens.parts.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    torch.testing.assert_close(policy.log_probs(ids), logp[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7)])
def test_sample_frequencies_follow_the_policy(qwen: ll.LensModel, temperature: float, top_p: float) -> None:
    policy, ids, n = qwen.policy(3), random_ids(4, 5), 6000
    top = policy.top(ids, VOCABULARY)
    p = np.zeros(VOCABULARY)
    p[top["token_id"]] = top["prob"]
    p = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    order = np.argsort(-p)
    p[order[np.cumsum(p[order]) - p[order] >= top_p]] = 0
    p /= p.sum()
    counts = np.bincount([tokens[0] for tokens in policy.sample(ids, n, temperature=temperature, top_p=top_p)], minlength=VOCABULARY)
    assert counts[p < 1e-9].sum() == 0
    # the expected total variation of n draws is at most half of sum sqrt(p (1 - p) / n)
    expected = 0.5 * np.sqrt(p * (1 - p) / n).sum()
    assert 0.5 * np.abs(counts / n - p).sum() < 1.6 * expected


def test_sample_is_reproducible_by_seed(qwen: ll.LensModel) -> None:
    policy, ids = qwen.policy(2), random_ids(4)
    draw = policy.sample(ids, n=6, max_new_tokens=8, seed=1)
    assert draw == policy.sample(ids, n=6, max_new_tokens=8, seed=1)
    assert draw != policy.sample(ids, n=6, max_new_tokens=8, seed=2)
    assert len(set(map(tuple, draw))) > 1
    assert policy.sample(ids, n=3, max_new_tokens=5, temperature=2.0, top_p=1e-6) == policy.sample(
        ids, n=3, max_new_tokens=5, temperature=0.0
    )


def test_sample_ends_at_the_end_tokens() -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = None
    lens = ll.LensModel.wrap(model)
    ids = random_ids(4)
    free = lens.policy(4, norm="final").sample(ids, n=8, max_new_tokens=15, seed=3)
    assert all(len(tokens) == 15 for tokens in free)
    ends = [free[0][4], free[1][7]]
    model.generation_config.eos_token_id = ends
    ended = lens.policy(4, norm="final").sample(ids, n=8, max_new_tokens=15, seed=3)
    for before, now in zip(free, ended, strict=True):
        first = next((place for place, token in enumerate(before) if token in ends), 14)
        assert now == before[: first + 1]


def test_policy_takes_text_ids_and_tensors(qwen: ll.LensModel) -> None:
    policy = qwen.policy(2, norm="final")
    expected = policy.entropy([9, 10, 11])
    assert torch.equal(policy.entropy("w1 w2 w3"), expected)
    assert torch.equal(policy.entropy(torch.tensor([9, 10, 11])), expected)
    assert torch.equal(policy.entropy(torch.tensor([[9, 10, 11]])), expected)
    assert policy.top("w1", 3)["token_text"].tolist() == [qwen.tokenizer.decode([i]) for i in policy.top([9], 3)["token_id"]]
    bare = ll.LensModel.wrap(tiny_model()).policy(2)
    assert bare.top([9], 2)["token_text"].tolist() == [str(i) for i in bare.top([9], 2)["token_id"]]
    with pytest.raises(PromptError, match="a text needs a tokenizer"):
        bare.entropy("w1")


def test_text_beyond_the_context_is_refused(qwen: ll.LensModel) -> None:
    context, policy = qwen.parts.context, qwen.policy(2)
    assert context == 128
    full = random_ids(context)
    assert len(policy.log_probs(full)) == context - 1
    assert len(policy.entropy(full)) == context
    assert len(policy.top(full, 3)) == 3
    assert len(policy.sample(full[:-3], max_new_tokens=3)[0]) <= 3
    for ask in (policy.log_probs, policy.entropy, policy.top):
        with pytest.raises(PromptError, match=r"^the text: 129 tokens exceed the context of tiny-random \(128\); shorten it$"):
            ask([*full, 9])
    message = r"^the text: 126 tokens and 3 new tokens exceed the context of tiny-random \(128\); shorten it or ask for fewer new tokens$"
    with pytest.raises(PromptError, match=message):
        policy.sample(full[:-2], max_new_tokens=3)


def test_policy_refuses_invalid_arguments(qwen: ll.LensModel) -> None:
    policy = qwen.policy(2)
    for ids, message in (
        ([], "at least 1 token"),
        ([5, VOCABULARY], "outside the vocabulary"),
        ([-1], "outside the vocabulary"),
        ("", "at least 1"),
    ):
        for ask in (policy.entropy, policy.top, policy.sample):
            with pytest.raises(PromptError, match=message):
                ask(ids)
    with pytest.raises(PromptError, match="at least 2 token"):
        policy.log_probs([5])
    for settings in ({"n": 0}, {"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(PromptError, match="must be"):
            policy.sample([5], **settings)
    with pytest.raises(PromptError, match="k must be at least 1"):
        policy.top([5], 0)
    for layer in (0, 5, -1):
        with pytest.raises(SelectionError, match=r"layers must be in 1\.\.4"):
            qwen.policy(layer)
    assert qwen.policy(1, "attn_in").site in SITES
    with pytest.raises(SelectionError, match="norm='matched' needs spread=, the spread of the logits that states are scaled to"):
        qwen.policy(2, norm="matched")
    with pytest.raises(SelectionError, match="spread= is what norm='matched' scales logits to; got it with norm='final'"):
        qwen.policy(2, norm="final", spread=2.0)
    for spread in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SelectionError, match="spread must be above 0"):
            qwen.policy(2, norm="matched", spread=spread)
