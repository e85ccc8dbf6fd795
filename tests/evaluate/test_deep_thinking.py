"""Votes over the answers that think deepest in their first tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.evaluate import Answer, Evaluation, evaluate, vote_by_deep_thinking
from layerlens.models import Generation, LensModel
from layerlens.rewards import boxed_reward
from tests.support.tiny_models import byte_tokenizer, tiny_model

BYTES = byte_tokenizer(None)
PROMPTS = ("2+2=", "1+1=", "0+0=")
TEXTS = [["", r"so \boxed{4}", r"or \boxed{5}", r"hm \boxed{04}"], [r"\boxed{3}", r"\boxed{3}", r"\boxed{2}", "x"], ["a", "b", "c", "d"]]


@pytest.fixture(scope="module")
def model() -> LensModel:
    return LensModel.wrap(tiny_model("llama", vocab_size=300, layers=6), BYTES)


@pytest.fixture(scope="module")
def problems() -> list[ll.Sample]:
    return [ll.Sample(BYTES(p)["input_ids"], len(p), id=p, ground_truth=t) for p, t in zip(PROMPTS, "420", strict=True)]


@pytest.fixture(scope="module")
def evaluation(model: LensModel, problems: list[ll.Sample]) -> Evaluation:
    """With the answers of TEXTS in place of those that the random model gives."""
    found = evaluate(model, problems, 4, reward=boxed_reward, generation=Generation(2))
    scored = [boxed_reward(texts, [truth] * 4) for texts, truth in zip(TEXTS, "420", strict=True)]
    answers = [
        tuple(Answer(t, len(t), True, s) for t, s in zip(texts, scores, strict=True)) for texts, scores in zip(TEXTS, scored, strict=True)
    ]
    return replace(found, problems=tuple(replace(p, answers=a) for p, a in zip(found.problems, answers, strict=True)))


def test_ratios_are_those_of_an_analysis_of_the_first_tokens(model: LensModel, problems: list[ll.Sample], evaluation: Evaluation) -> None:
    vote = vote_by_deep_thinking(evaluation, model, problems, prefix=3)
    text = PROMPTS[0] + TEXTS[0][1][:3]
    run = ll.analyze(model, [ll.Sample(BYTES(text)["input_ids"], 4)], norm="final", metrics="js_to_final", sites="resid_post")
    assert vote.ratio[0, 1] == run.sample_means("deep_thinking_ratio").item()
    assert np.isnan(vote.ratio[0, 0])
    assert not vote.kept[0, 0]
    assert vote.kept.sum(1).tolist() == [2, 2, 2]
    for ratio, kept in zip(vote.ratio[1:], vote.kept[1:], strict=True):
        assert ratio[kept].min() >= ratio[~kept].max()


def test_votes_are_of_boxed_answers_all_or_kept(model: LensModel, problems: list[ll.Sample], evaluation: Evaluation) -> None:
    every = vote_by_deep_thinking(evaluation, model, problems, keep=1.0)
    assert every.all_right.tolist() == every.kept_right.tolist() == [True, False, False]
    vote = vote_by_deep_thinking(evaluation, model, problems, keep=0.25)
    assert vote.kept_right.tolist() == [bool(evaluation.correct[i, vote.kept[i].argmax()]) for i in range(3)]
    found = vote.to_json()
    assert (found["answers"], found["kept"], found["prefix"]) == (4, 1, 50)
    assert found["vote_of_all"]["mean"] == pytest.approx(1 / 3)
    assert every.random_right.tolist() == every.all_right.tolist()
    np.testing.assert_allclose(vote.random_right, evaluation.correct.mean(1), atol=0.1)
    assert found["gain"]["mean"] == pytest.approx(np.mean(vote.kept_right - vote.random_right))


def test_votes_refuse_what_has_no_meaning(model: LensModel, problems: list[ll.Sample], evaluation: Evaluation) -> None:
    alone = replace(evaluation, problems=tuple(replace(p, answers=p.answers[:1]) for p in evaluation.problems))
    with pytest.raises(SelectionError, match="two or more answers"):
        vote_by_deep_thinking(alone, model, problems)
    with pytest.raises(SelectionError, match="3 problems, got the prompts of 2"):
        vote_by_deep_thinking(evaluation, model, problems[:2])
    with pytest.raises(SelectionError, match="prefix must be 1 or more"):
        vote_by_deep_thinking(evaluation, model, problems, keep=0.0)


def test_run_of_the_first_tokens_is_kept(model: LensModel, problems: list[ll.Sample], evaluation: Evaluation, tmp_path: Path) -> None:
    first = vote_by_deep_thinking(evaluation, model, problems, out=tmp_path / "run")
    assert ll.open_run(tmp_path / "run").n_samples == 11
    np.testing.assert_array_equal(vote_by_deep_thinking(evaluation, model, problems, out=tmp_path / "run").ratio, first.ratio)
