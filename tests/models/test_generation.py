"""Responses drawn from the model: each with its own seed, each from the very distribution that the model gives."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.errors import PromptError
from layerlens.models import generate_responses
from tests.support.tiny_models import VOCABULARY, random_ids, tiny_model, tiny_tokenizer

PROMPTS = [ll.Sample(ids := random_ids(3 + i % 6, i), len(ids)) for i in range(8)]


def responses(
    model: ll.LensModel, samples: list[ll.Sample], generation: ll.Generation, numbers: list[int] | None = None
) -> list[tuple[int, ...]]:
    done = generate_responses(model, samples, generation, list(range(len(samples))) if numbers is None else numbers)
    return [tuple(sample.token_ids[sample.response_start :]) for sample in done]


@torch.no_grad()
def next_logits(model: ll.LensModel, ids: list[int]) -> torch.Tensor:
    return model.parts.model(torch.tensor([ids])).logits[0, -1].double()


def greedy(model: ll.LensModel, ids: list[int], steps: int, ends: tuple[int, ...] = (2,)) -> list[int]:
    text = list(ids)
    for _ in range(steps):
        text.append(int(next_logits(model, text).argmax()))
        if text[-1] in ends:
            break
    return text[len(ids) :]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"top_p": 0.8}, {"temperature": 0.0}])
def test_responses_are_independent_of_batch_and_order(qwen: ll.LensModel, settings: dict[str, float]) -> None:
    generation = ll.Generation(10, seed=5, **settings)
    together = responses(qwen, PROMPTS, generation)
    alone = [responses(qwen, [sample], generation, [number])[0] for number, sample in enumerate(PROMPTS)]
    assert together == alone
    order = list(range(len(PROMPTS)))
    random.Random(0).shuffle(order)
    shuffled = responses(qwen, [PROMPTS[i] for i in order], generation, order)
    assert [shuffled[order.index(i)] for i in range(len(PROMPTS))] == together


def test_repeated_prompt_gets_different_responses(qwen: ll.LensModel) -> None:
    twice = responses(qwen, [PROMPTS[4]] * 2, ll.Generation(12))
    assert twice[0] != twice[1]
    assert twice == responses(qwen, [PROMPTS[4]] * 2, ll.Generation(12))
    assert twice != responses(qwen, [PROMPTS[4]] * 2, ll.Generation(12, seed=1))
    assert len(set(responses(qwen, [PROMPTS[4]] * 2, ll.Generation(12, temperature=0.0)))) == 1


def test_temperature_zero_equals_argmax_loop(lens: ll.LensModel) -> None:
    got = responses(lens, PROMPTS[:5], ll.Generation(15, temperature=0.0))
    assert got == [tuple(greedy(lens, list(sample.token_ids), 15)) for sample in PROMPTS[:5]]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.7, 1.0), (2.0, 0.9)])
def test_first_tokens_follow_the_final_policy(qwen: ll.LensModel, temperature: float, top_p: float) -> None:
    ids, n = random_ids(6, 3), 4000
    p = (next_logits(qwen, ids) / temperature).softmax(-1).numpy()
    if top_p < 1:
        order = np.argsort(-p)
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0
        p /= p.sum()
    drawn = responses(qwen, [ll.Sample(ids, 6)] * n, ll.Generation(1, temperature, top_p))
    counts = np.bincount([tokens[0] for tokens in drawn], minlength=VOCABULARY)
    assert counts[p == 0].sum() == 0, "nothing from outside the nucleus"
    # bins of an expected count of 5 or more, the rest together: Pearson's chi-square within five deviations of its mean
    large = n * p >= 5
    expected, got = np.append(n * p[large], n * p[~large].sum()), np.append(counts[large], counts[~large].sum())
    expected, got = expected[expected > 0], got[expected > 0]
    chi_square, freedom = ((got - expected) ** 2 / expected).sum(), len(expected) - 1
    assert freedom > 5
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_narrow_nucleus_equals_greedy(qwen: ll.LensModel) -> None:
    narrow = responses(qwen, PROMPTS[:4], ll.Generation(8, temperature=2.0, top_p=1e-6))
    assert narrow == responses(qwen, PROMPTS[:4], ll.Generation(8, temperature=0.0))


def test_response_ends_with_its_end_of_sequence_token() -> None:
    model = tiny_model()
    lens = ll.LensModel.wrap(model, tiny_tokenizer())
    full = responses(lens, PROMPTS, ll.Generation(20, seed=2))
    stop = full[1][4]
    for ends in (stop, [stop, full[0][2]]):
        model.generation_config.eos_token_id = ends
        wanted = {ends} if isinstance(ends, int) else set(ends)
        assert set(lens.end_tokens) == wanted
        for before, now in zip(full, responses(lens, PROMPTS, ll.Generation(20, seed=2)), strict=True):
            first = next((place for place, token in enumerate(before) if token in wanted), len(before) - 1)
            assert now == before[: first + 1]
    model.generation_config.eos_token_id = None
    assert lens.end_tokens == (2,), "the tokenizer's, where the model names none"
    assert ll.LensModel.wrap(model).end_tokens == ()
    assert all(len(tokens) == 20 for tokens in responses(ll.LensModel.wrap(model), PROMPTS, ll.Generation(20, seed=2)))


def test_shipped_generation_settings_are_ignored(qwen: ll.LensModel) -> None:
    model = tiny_model()
    config = model.generation_config
    config.update(
        no_repeat_ngram_size=1, suppress_tokens=[5], num_beams=2, top_k=3, min_new_tokens=9, repetition_penalty=3.0, bad_words_ids=[[9]],
        temperature=0.3, do_sample=True, num_return_sequences=2, max_length=7,
    )  # fmt: skip
    lens = ll.LensModel.wrap(model, tiny_tokenizer())
    for generation in (ll.Generation(25, seed=1), ll.Generation(25, temperature=0.0)):
        assert responses(lens, PROMPTS, generation) == responses(qwen, PROMPTS, generation)
    assert model.generation_config is config


def test_samples_with_a_response_are_returned_unchanged(qwen: ll.LensModel) -> None:
    done = ll.Sample(random_ids(7), 3, id="done")
    mixed = [PROMPTS[0], done, PROMPTS[1]]
    out = generate_responses(qwen, mixed, ll.Generation(4), [0, 1, 2])
    assert out[1] is done
    assert [out[0].token_ids, out[2].token_ids] == [
        s.token_ids for s in generate_responses(qwen, [mixed[0], mixed[2]], ll.Generation(4), [0, 2])
    ]
    assert out[0].token_ids[: len(PROMPTS[0].token_ids)] == PROMPTS[0].token_ids
    assert generate_responses(qwen, [done], ll.Generation(4), [0]) == [done]
    full = ll.Sample(random_ids(128), 100)
    assert generate_responses(qwen, [full], ll.Generation(4), [0]) == [full], "no room is needed where nothing is sampled"


def test_response_beyond_the_context_is_refused(qwen: ll.LensModel) -> None:
    prompt = ll.Sample(random_ids(120), 120)
    assert len(responses(qwen, [prompt], ll.Generation(8, temperature=0.0))[0]) <= 8
    with pytest.raises(PromptError, match="120 tokens and 9 new tokens exceed the context of tiny-random"):
        responses(qwen, [prompt], ll.Generation(9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": -3}, "max_new_tokens must be at least 1"),
        ({"temperature": -0.1}, "temperature must be 0 or more"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\]"),
        ({"top_p": float("nan")}, r"top_p must be in \(0, 1\]"),
    ],
)
def test_generation_refuses_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        ll.Generation(**settings)


def test_analyze_measures_the_sampled_response(qwen: ll.LensModel) -> None:
    generation = ll.Generation(6, seed=9)
    run = ll.analyze(qwen, PROMPTS[:3], generate=generation, metrics="entropy", batch_tokens=20)
    for index, (prompt, response) in enumerate(zip(PROMPTS, responses(qwen, PROMPTS[:3], generation), strict=False)):
        data = run.sample(index)
        assert data["token_id"].values.tolist() == [*prompt.token_ids, *response]
        predicting = np.arange(len(prompt.token_ids) - 1, len(prompt.token_ids) + len(response) - 1)
        assert np.flatnonzero(data["in_response"].values).tolist() == predicting.tolist()
    only = ll.analyze(qwen, PROMPTS[:3], generate=generation, metrics="entropy", rows="response")
    assert only.data["token_id"].sizes["token"] == run.data["in_response"].values.sum()


def test_every_token_that_is_drawn_is_counted_once(qwen: ll.LensModel) -> None:
    told: list[tuple[float, int]] = []
    samples = generate_responses(qwen, PROMPTS[:3], ll.Generation(12, seed=4), [0, 1, 2], lambda share, new: told.append((share, new)))
    assert sum(new for _, new in told) == sum(len(sample.token_ids) - sample.response_start for sample in samples)
    assert [share for share, _ in told] == [step / 12 for step in range(len(told))]
    assert samples == generate_responses(qwen, PROMPTS[:3], ll.Generation(12, seed=4), [0, 1, 2]), "counting changes no response"


@pytest.mark.parametrize("before", [True, False])
def test_attention_is_not_cudnns_while_a_response_is_sampled(qwen: ll.LensModel, before: bool) -> None:
    """It need not give the same logits twice, so that a seed would not repeat its response."""
    seen: list[bool] = []
    at_start = torch.backends.cuda.cudnn_sdp_enabled()
    hook = qwen.parts.blocks[0].register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
    torch.backends.cuda.enable_cudnn_sdp(before)
    try:
        generate_responses(qwen, [ll.Sample([3, 4, 5], 3)], ll.Generation(2), [0])
        assert seen == [False, False]
        assert torch.backends.cuda.cudnn_sdp_enabled() is before
    finally:
        hook.remove()
        torch.backends.cuda.enable_cudnn_sdp(at_start)
