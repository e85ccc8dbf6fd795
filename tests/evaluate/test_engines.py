"""LensEngine answers by the final or an internal policy of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import layerlens as ll
from layerlens.errors import PromptError, SelectionError
from layerlens.evaluate import LensEngine, evaluate, open_engine, open_evaluation
from layerlens.models import response_seed
from tests.models.lenses.conftest import random_lens
from tests.support.evaluations import even_words, some_problems

GREEDY = ll.Generation(max_new_tokens=5, temperature=0.0)


def test_lens_engine_at_the_last_layer_with_final_norm_answers_as_the_model(lens: ll.LensModel) -> None:
    sampled = ll.Generation(max_new_tokens=6, temperature=0.8, top_p=0.9, seed=1)
    problems, numbers = some_problems(4), [0, 1, 2, 3]
    for generation in (GREEDY, sampled):
        final = LensEngine(lens).answer(problems, generation, numbers)
        assert LensEngine(lens, layer=lens.n_layers, norm="final").answer(problems, generation, numbers) == final
        assert LensEngine(lens, layer=2).answer(problems, generation, numbers) != final


@pytest.mark.parametrize(("layer", "norm"), [(1, "none"), (3, "final"), (4, "none")])
def test_lens_engine_greedy_answers_are_the_internal_policys(lens: ll.LensModel, layer: int, norm: Any) -> None:
    problems = some_problems(4)
    expected = [lens.policy(layer, norm=norm).sample(problem.token_ids, 1, 5, temperature=0.0)[0] for problem in problems]
    assert LensEngine(lens, layer=layer, norm=norm).answer(problems, GREEDY, [0, 1, 2, 3]) == expected


def test_lens_engine_samples_follow_the_internal_policy(qwen: ll.LensModel) -> None:
    [problem], count = some_problems(1), 3000
    drawn = LensEngine(qwen, layer=2).answer([problem] * count, ll.Generation(1), range(count))
    shares = torch.bincount(torch.tensor(drawn)[:, 0], minlength=qwen.parts.unembedding_weight.shape[0]) / count
    top = qwen.policy(2).top(problem.token_ids, len(shares))
    probs = torch.zeros_like(shares)
    probs[top["token_id"].tolist()] = torch.tensor(top["prob"].to_numpy(), dtype=probs.dtype)
    assert ((shares - probs).abs() <= 4 * (probs * (1 - probs) / count).sqrt() + 2 / count).all()


def test_lens_engine_at_other_sites_answers_by_their_policy(qwen: ll.LensModel) -> None:
    problems, generation = some_problems(2), ll.Generation(4, seed=5)
    policy = qwen.policy(3, "ffn_out", "final")
    expected = [policy.sample(problem.token_ids, 1, 4, seed=response_seed(5, number))[0] for problem, number in zip(problems, [7, 9])]  # noqa: B905
    assert LensEngine(qwen, 3, "ffn_out", "final").answer(problems, generation, [7, 9]) == expected


@pytest.mark.parametrize(("layer", "site"), [(2, "resid_post"), (3, "resid_mid"), ("mix:1,2", "resid_post")])
def test_a_fitted_lens_answers_by_the_policy_that_it_reads(qwen: ll.LensModel, layer: Any, site: Any, tmp_path: Path) -> None:
    problems, fitted = some_problems(3), random_lens(qwen)
    mixed: dict[str, Any] = {"layers": (1, 2)} if isinstance(layer, str) else {"layer": layer}
    policy = qwen.policy(site=site, norm="final", lens=fitted, **mixed)
    expected = [policy.sample(problem.token_ids, 1, 5, temperature=0.0)[0] for problem in problems]
    engine = LensEngine(qwen, layer, site, "final", fitted)
    assert engine.answer(problems, GREEDY, [0, 1, 2]) == expected
    assert LensEngine(qwen, layer, site, "final").answer(problems, GREEDY, [0, 1, 2]) != expected
    evaluation = evaluate(engine, problems, 1, reward=even_words, generation=GREEDY, out=tmp_path / "e")
    config = open_evaluation(tmp_path / "e").manifest.config
    assert (config.lens, config.lens_fingerprint) == ("jacobian", fitted.fingerprint)
    assert evaluation.label.endswith("(norm: final, jacobian lens)")
    with pytest.raises(SelectionError, match="carries states to the final norm"):
        LensEngine(qwen, layer, site, "none", fitted)


def test_lens_engine_leaves_the_model_as_it_was(qwen: ll.LensModel) -> None:
    before = qwen.parts.model(torch.tensor([[5, 6, 7]])).logits
    with pytest.raises(PromptError):
        LensEngine(qwen, layer=2).answer(some_problems(1), ll.Generation(10_000), [0])
    LensEngine(qwen, layer=2).answer(some_problems(1), GREEDY, [0])
    assert qwen.parts.decoder.layers is qwen.parts.blocks
    assert not qwen.parts.final_norm._forward_hooks
    assert torch.equal(qwen.parts.model(torch.tensor([[5, 6, 7]])).logits, before)


def test_evaluation_of_an_internal_policy_is_labelled_with_its_layer(qwen: ll.LensModel) -> None:
    found = evaluate(qwen, some_problems(2), 2, reward=even_words, generation=GREEDY, layer=2, norm="final")
    assert found.label == "tiny-random layer 2 (norm: final)"
    assert found.summary()["layer"] == 2
    assert evaluate(qwen, some_problems(2), 2, reward=even_words, generation=GREEDY).summary()["norm"] is None


def test_lens_engine_refuses_a_layer_the_model_lacks(qwen: ll.LensModel) -> None:
    with pytest.raises(SelectionError, match=r"1\.\.4"):
        LensEngine(qwen, layer=9)
    with pytest.raises(SelectionError, match="an engine is opened with them"):
        evaluate(LensEngine(qwen), some_problems(1), 1, reward=even_words, layer=2)
    with pytest.raises(SelectionError, match="an engine is opened with them"):
        evaluate(LensEngine(qwen), some_problems(1), 1, reward=even_words, norm="final")


def test_open_engine_refuses_what_the_engine_cannot_do() -> None:
    for options, told in (
        ({"engine": "vllm", "layer": 2}, "internal layer"),
        ({"engine": "vllm", "device": "cpu"}, "takes GPUs by itself"),
        ({"engine": "transformers", "tensor_parallel": 2}, "tensor_parallel is an option of vLLM"),
    ):
        with pytest.raises(SelectionError, match=told):
            open_engine("tiny-qwen3", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "made_of"), [("mix:1=1,3=3", {"layers": [1, 3], "weights": [1.0, 3.0]}), ("contrast:4,2", {"contrast": (4, 2)})]
)
def test_layers_together_answer_as_their_policy(lens: ll.LensModel, layer: str, made_of: dict[str, Any], tmp_path: Path) -> None:
    problems = some_problems(3)
    policy = lens.policy(norm="final", **made_of)
    engine = LensEngine(lens, layer, norm="final")
    answers = engine.answer(problems, GREEDY, [0, 1, 2])
    assert answers == [policy.sample(problem.token_ids, 1, 5, temperature=0.0)[0] for problem in problems]
    found = evaluate(lens, problems, 1, reward=even_words, generation=GREEDY, layer=layer, norm="final", out=tmp_path / "out")
    assert found.label == f"{lens.name} {'mix:1=0.25,3=0.75' if 'mix' in layer else layer} (norm: final)"
    assert open_evaluation(tmp_path / "out").manifest.config.layer == engine.layer
    assert LensEngine(lens, "2").answer(problems, GREEDY, [0, 1, 2]) == LensEngine(lens, 2).answer(problems, GREEDY, [0, 1, 2])
    with pytest.raises(SelectionError, match="7"):
        LensEngine(lens, "mix:1,7")


@pytest.mark.parametrize("layer", [None, 3])
def test_policies_are_sampled_through_transformer_lens_as_through_transformers(layer: int | None) -> None:
    pytest.importorskip("transformer_lens")
    problems, generation = [ll.Sample([5, 6, 7], 3), ll.Sample([9, 8], 2)], ll.Generation(6, seed=1)
    answers = []
    for library in ("transformers", "transformer_lens"):
        engine = open_engine("tiny-llama", "transformers", layer=layer, dtype="float32", library=library)  # type: ignore[arg-type]
        answers.append(engine.answer(problems, generation, [0, 1]))
    assert answers[0] == answers[1]
    assert str(engine.model_info().library).startswith("TransformerLens")


def test_another_library_and_vllm_do_not_go_together() -> None:
    with pytest.raises(SelectionError, match="both run the model"):
        open_engine("tiny-llama", "vllm", library="transformer_lens")
