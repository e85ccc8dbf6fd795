"""The study: steps that are run once, what its claims say, and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.study import c_predictors, figures, page
from benchmarks.study.__main__ import main
from benchmarks.study.findings import claim, difference, difference_of_best, evaluations, plain
from benchmarks.study.gradients import advantages, gradients, summary
from benchmarks.study.kept import Keeper, evaluation, kept, numbers, scores
from benchmarks.study.page import QUESTIONS
from benchmarks.study.problems import draw
from benchmarks.study.settings import KEPT, RESULTS, SIZES
from benchmarks.study.steps import Step, run_chains

import layerlens as ll
from layerlens.errors import LayerLensError
from layerlens.evaluate import evaluate, open_evaluation
from layerlens.train.config_file import read_config
from tests.support.evaluations import evaluated, some_problems
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import plain_logps

ROOT = Path(__file__).parents[2]


def counting(name: str, out: Path, fails_first: bool = False) -> Step:
    """A step that writes a line each time it runs."""
    code = f"from pathlib import Path; f = Path(r'{out}') / '{name}.txt'; ran = f.exists(); f.open('a').write('ran\\n')"
    return Step(name, ("python", "-c", f"{code}; assert ran" if fails_first else code))


def test_steps_are_run_once_and_a_failed_one_again(tmp_path: Path) -> None:
    first, second = counting("first", tmp_path), counting("second", tmp_path, fails_first=True)
    with pytest.raises(LayerLensError, match=r"second failed \(AssertionError\).*run the same study again"):
        run_chains([[first, second]], tmp_path, 2)
    run_chains([[first, second], [first]], tmp_path, 2)
    run_chains([[first, second]], tmp_path, 1)
    assert [(tmp_path / f"{name}.txt").read_text() for name in ("first", "second")] == ["ran\n", "ran\nran\n"]
    with pytest.raises(LayerLensError, match="was run with other settings"):
        Step("first", ("python", "-c", "pass")).run(tmp_path)


def test_a_card_is_no_other_step(tmp_path: Path) -> None:
    """What was trained on a CPU is not trained again for a card, and each command that can use one is told to."""
    steps = {step.name: step for question in QUESTIONS.values() for chain in question.chains(SIZES["small"]) for step in chain}
    for step in steps.values():
        words, on_card = step.command(tmp_path), step.command(tmp_path, cuda=True)
        more = on_card[len(words) :]
        assert on_card[: len(words)] == words
        assert more == (["--use_cpu", "false"] if step.trains else [] if words[2].startswith("benchmarks.") else ["--device", "cuda"])


@pytest.mark.parametrize("line", ['{"name": "grpo-0", "wor', "[]", '{"name": "grpo-0", "kept": {}}'])
def test_a_damaged_line_of_what_is_kept_is_named(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "kept.jsonl"
    file.write_text(f'{{"name": "base", "words": [], "kept": {{}}}}\n{line}\n')
    assert main(["--out", str(tmp_path), "--size", "smoke", "--kept", str(file)]) == 2
    assert f"{file}, line 2 is damaged" in capsys.readouterr().err
    assert file.read_text().endswith(f"{line}\n")


def test_a_study_goes_on_elsewhere_from_what_was_kept(tmp_path: Path) -> None:
    def chain(out: Path, words: str = "") -> list[Step]:
        train, evaluate = (counting(name, out) for name in ("train", "evaluate"))
        code = f"{evaluate.words[2]}; (f.parent / 'evaluate').write_text('[3]'); {words}"
        return [train, replace(evaluate, words=("python", "-c", code), keep=numbers)]

    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "kept.jsonl"
    here.mkdir(), there.mkdir()
    keeper = Keeper(file)
    steps = chain(here)
    assert keeper.restore([steps], here) == [steps]
    run_chains([steps], here, 1, lambda step: keeper.add(step, here))
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == ["evaluate"]
    assert Keeper(file).restore([steps], there) == []
    assert kept(there, "evaluate") == [3]
    other = chain(here, "pass")
    assert Keeper(file).restore([other], tmp_path / "other") == [other], "by another command"
    with pytest.raises(LayerLensError, match="train has not been run"):
        kept(there, "train")


def even_letters(completions: list[str], ground_truth: list[str], **columns: object) -> list[float]:
    """1 for an answer with an even number of letters."""
    return [float(len(text) % 2 == 0) for text in completions]


def test_kept_scores_give_the_same_results(tmp_path: Path) -> None:
    model = ll.LensModel.wrap(tiny_model("llama"), tiny_tokenizer())
    for seed in (0, 1):
        generation = ll.Generation(max_new_tokens=6, seed=seed)
        evaluate(model, some_problems(), 4, reward=even_letters, generation=generation, out=tmp_path / str(seed) / "toy", name="toy")
    real = [open_evaluation(tmp_path / str(seed) / "toy") for seed in (0, 1)]
    again = [evaluation(json.loads(json.dumps(scores(tmp_path / str(seed))))) for seed in (0, 1)]
    assert 0 < again[0].correct.mean() < 1
    assert difference(again[:1], again[1:]) == pytest.approx(difference(real[:1], real[1:]), nan_ok=True)
    assert again[0].manifest == real[0].manifest
    assert again[0].same_problems(again[1])
    assert not again[0].sampled_otherwise(again[1])
    kept_of_others = scores(tmp_path / "0")
    kept_of_others["manifest"]["problems"]["digest"] = "other"
    with pytest.raises(LayerLensError, match="answered different problems"):
        difference([evaluation(kept_of_others)], again[1:])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.filterwarnings("default")
def test_every_training_of_the_study_is_a_valid_command(size: str, tmp_path: Path) -> None:
    steps = {step.name: step for question in QUESTIONS.values() for chain in question.chains(SIZES[size]) for step in chain}
    trainings = {}
    for step in steps.values():
        if step.trains:
            words = step.command(tmp_path)[4:]
            trainings.setdefault(" ".join(word for word in words if not any(char.isdigit() for char in word)), words)
    assert trainings
    for words in trainings.values():
        assert words[0] == "--config"
        read_config(words[1], words[2:])


def test_a_claim_needs_both_intervals() -> None:
    found = {"estimate": 0.1, "low": 0.02, "high": 0.2, "seeds_low": 0.01, "seeds_high": 0.3, "seeds": 4, "unit": "points"}
    assert claim("x", found)["verdict"] == "held"
    assert claim("x", found, above=0.15)["verdict"] == "undecided"
    assert claim("x", found, above=0.4)["verdict"] == "not held"
    assert claim("x", {**found, "seeds_low": -0.1})["verdict"] == "undecided"
    assert claim("x", {**found, "seeds_low": float("nan")})["verdict"] == "undecided"


def test_a_difference_is_paired_by_seed_and_problem() -> None:
    before, after = [evaluated([1, 2, 5], 8), evaluated([2, 2, 6], 8)], [evaluated([2, 4, 6], 8), evaluated([3, 4, 6], 8)]
    found = difference(after, before)
    assert found["estimate"] == pytest.approx(np.mean([1, 2, 1, 1, 2, 0]) / 8)
    assert (found["seeds"], found["problems"]) == (2, 3)
    assert found["low"] < found["estimate"] < found["high"]


def test_the_best_layer_is_chosen_on_other_seeds_and_problems() -> None:
    rng = np.random.default_rng(0)
    same = {layer: [evaluated(list(rng.binomial(8, 0.5, 100)), 8) for _ in range(4)] for layer in range(1, 41)}
    control = [evaluated([4] * 100, 8)] * 4
    found = difference_of_best(same, control)
    luck = max(difference(each, control)["estimate"] for each in same.values())
    assert luck > 0.015
    assert abs(found["estimate"]) < 0.01  # chosen by luck, and without it where it counts
    better = {**same, 7: [evaluated([6] * 100, 8)] * 4}
    found = difference_of_best(better, control)
    assert found["layers"] == [7]
    assert found["estimate"] == 0.25


def test_layers_are_ranked_by_the_gains_that_were_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def published(letter: str, column: str, layers: range, seeds: int = 4) -> None:
        rows = []
        for layer in layers:
            ends = {
                name: 0.01 * layer + end for name, end in (("low", -0.002), ("high", 0.002), ("seeds_low", -0.05), ("seeds_high", 0.05))
            }
            gain = {"estimate": 0.01 * layer, **ends, "seeds": seeds, "problems": 501, "unit": "points"}
            key = {"a": "layers", "b": "layer"}[letter]
            rows += [{"model": model, key: str(layer) if letter == "a" else layer, column: gain} for model in SIZES["small"].models]
        table = [*rows, {"model": "tiny-qwen3", "layers": "all", column: rows[0][column]}, {"model": "tiny-qwen3", "rule": "x", "layer": 3}]
        (tmp_path / "results" / f"{letter}.json").write_text(json.dumps({"table": table}))

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(c_predictors, "RESULTS", tmp_path)
    quantities = {"depth": {layer: float(layer) for layer in range(1, 13)}, "flat": dict.fromkeys(range(1, 13), 1.0)}
    monkeypatch.setattr(c_predictors, "quantities", lambda *_: quantities)
    with pytest.raises(LayerLensError, match="run one of these first"):
        c_predictors.result(tmp_path, SIZES["small"])
    published("a", "gain [points]", range(1, 13))
    found = c_predictors.result(tmp_path, SIZES["small"])
    assert "BuPO's gain is not there yet: (b) has not been run" in found["note"]
    published("b", "gain over GRPO [points]", range(1, 12, 2))
    found = c_predictors.result(tmp_path, SIZES["small"])
    assert [row["quantity"] for row in found["table"]] == ["depth", "flat"]
    depth = found["table"][0]["tiny-llama, BuPO's gain"]
    assert depth["estimate"] == pytest.approx(1)
    assert depth["low"] == pytest.approx(1), "gains of 10 points with intervals of 0.2 are never in another order"
    assert depth["seeds_low"] < 0.95
    assert np.isnan(found["table"][1]["tiny-llama, gain alone"]["estimate"])
    assert {each["claim"] for each in found["claims"] if each["verdict"] == "held"} >= {"tiny-qwen3: depth rises with the gain alone"}
    assert "Of 8 correlations 2 are decided" in found["note"], "BuPO's, of six layers, reach 0 for other seeds"
    assert "not there yet" not in found["note"]
    published("a", "gain [points]", range(1, 13), seeds=8)
    with pytest.raises(LayerLensError, match=r"is of 8 seeds, not 4: run question \(a\)"):
        c_predictors.result(tmp_path, SIZES["small"])


def test_the_strongest_of_many_correlations_is_not_held_by_luck() -> None:
    ends = {"low": 0.2, "high": 0.8, "seeds_low": 0.1, "seeds_high": 0.9, "seeds": 4, "unit": "ρ"}
    panel = {f"quantity {i}": {**ends, "estimate": 0.6, "p": 0.03 + i / 100} for i in range(17)}
    (one,) = c_predictors.claims_of("tiny-llama, gain alone", panel)
    assert (one["claim"], one["verdict"]) == ("tiny-llama: quantity 0, the strongest of 17, rises with the gain alone", "undecided")
    assert one["p"] == pytest.approx(0.51)
    panel["depth"] = {**ends, "estimate": 0.9, "p": 0.001}
    (one,) = c_predictors.claims_of("tiny-llama, gain alone", panel)
    assert (one["claim"], one["verdict"]) == ("tiny-llama: depth rises with the gain alone", "held")


def test_the_page_has_every_claim_and_says_what_was_not_run(tmp_path: Path) -> None:
    found = {"estimate": 0.1, "low": 0.02, "high": 0.2, "seeds_low": 0.01, "seeds_high": 0.3, "seeds": 4, "unit": "points"}
    result = {
        "question": "q",
        "size": "small",
        "how": "so it\n was",
        "claims": [claim("it gains", found)],
        "table": [{"layer": 3, "share": 0.1234, "gain": found}],
        "figures": ["d.png"],
    }
    (tmp_path / "d.json").write_text(json.dumps(plain(result)))
    text = page.page(tmp_path)
    assert "| it gains | **held** | +10.0 points | +2.0 to +20.0 | +1.0 to +30.0 | 4 |" in text
    assert "(../figures/study/d.png)" in text
    assert "\n**Held**\n\n- (d) it gains: +10.0 (+2.0 to +20.0; +1.0 to +30.0) points\n" in text
    assert "| 3 | 0.123 | +10.0 (+2.0 to +20.0; +1.0 to +30.0) |" in text
    assert "\nso it was\n" in text
    assert text.count("\nNot run.") == len(QUESTIONS) - 1


def test_the_committed_page_is_made_from_the_committed_results() -> None:
    assert (ROOT / "docs" / "study.md").read_text(encoding="utf-8") == page.page(), "run python -m benchmarks.study.page"


@pytest.mark.parametrize("letter", QUESTIONS)
def test_committed_results_say_how_they_were_found(letter: str) -> None:
    if not (file := RESULTS / f"{letter}.json").is_file():
        pytest.skip(f"({letter}) has not been run")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["how"] == QUESTIONS[letter].method(SIZES[found["size"]])


@pytest.mark.parametrize("letter", "defgh")  # (a) was run before, and (b) and (c) read analyses too
def test_committed_results_are_those_of_what_is_kept(letter: str, tmp_path: Path) -> None:
    def rounded(text: str) -> Any:
        return json.loads(text, parse_float=lambda number: round(float(number), 9))

    committed = rounded((RESULTS / f"{letter}.json").read_text(encoding="utf-8"))
    size = SIZES[committed["size"]]
    Keeper(KEPT).restore(QUESTIONS[letter].chains(size), tmp_path)
    found = rounded(json.dumps(plain(QUESTIONS[letter].result(tmp_path, size))))
    assert found == {key: committed[key] for key in found}


def test_committed_gains_of_bupo_are_those_of_what_is_kept(tmp_path: Path) -> None:
    committed = json.loads((RESULTS / "b.json").read_text(encoding="utf-8"))
    size = SIZES[committed["size"]]
    Keeper(KEPT).restore(QUESTIONS["b"].chains(size), tmp_path)
    gains = [row for row in committed["table"] if "rule" not in row]
    assert [(row["model"], row["layer"]) for row in gains] == [(model, layer) for model in size.models for layer in range(1, 13, 2)]
    for row in gains:
        bupo, grpo = (evaluations(tmp_path, row["model"], name, size.seeds) for name in (f"bupo-{row['layer']}-{size.internal}", "grpo"))
        found = row["gain over GRPO [points]"]
        assert difference(bupo, grpo) == pytest.approx({key: found[key] for key in difference(bupo, grpo)})


def test_smoke_results_are_never_committed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["--size", "smoke", "--commit"], "not committed"), (["--questions", "z"], "unknown question z")):
        with pytest.raises(SystemExit):
            main(["--out", str(tmp_path), *words])
        assert message in capsys.readouterr().err


def test_held_out_problems_are_spread_over_kinds_and_in_order_of_difficulty() -> None:
    drawn = draw("test", 64, 101)
    assert len({(problem.kind, problem.difficulty, problem.normal_form) for problem in drawn}) == len(drawn) == 64
    assert [problem.difficulty for problem in drawn] == sorted(problem.difficulty for problem in drawn)
    assert len({(problem.kind, problem.difficulty) for problem in drawn}) == 32


def test_a_kind_that_runs_out_gives_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerlens.prompts.arithmetic.dataset._MAX_DRAWS", 50)
    drawn = draw("test", 8 * 150, 101, [1])
    assert 25 < len(drawn) < 8 * 150
    assert len({(problem.kind, problem.normal_form) for problem in drawn}) == len(drawn)


def test_a_layers_gradient_is_that_of_its_policy_alone() -> None:
    module = tiny_model("llama", layers=3)
    model = ll.LensModel.wrap(module, tiny_tokenizer())
    weights = [weight for block in model.parts.blocks for weight in block.parameters()]
    texts = [([3, 5, 7, 9, 11], 2, 1.0), ([4, 6, 8], 1, -0.5)]
    for norm in ("none", "final"):
        found = gradients(model, texts, 5, norm)
        for layer, mine in enumerate(found, 1):
            loss = torch.zeros(())
            for ids, prompt, advantage in texts:
                parts = {"prompt": torch.tensor([ids[:prompt]]), "completion": torch.tensor([ids[prompt:]])}
                batch = {f"{name}_ids": part for name, part in parts.items()}
                batch |= {f"{name}_mask": torch.ones_like(part) for name, part in parts.items()}
                read_by = "final" if layer == model.n_layers else norm
                loss = loss - advantage * plain_logps(module, batch, layer, read_by).sum() / 5
            for gradient, wanted in zip(mine, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                torch.testing.assert_close(gradient, torch.zeros_like(gradient) if wanted is None else wanted, rtol=1e-4, atol=1e-6)
        cosines, shares = summary(model, found)
        assert cosines[-1] == pytest.approx(1)
        assert len({round(cosine, 3) for cosine in cosines}) == 3
        assert sum(shares) == pytest.approx(1)


def test_advantages_are_those_of_grpo() -> None:
    found = advantages(np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]))
    assert found[0] == pytest.approx(np.array([1, -1, -1, 1]) * 0.5 / (np.sqrt(1 / 3) + 1e-4))
    assert not found[1].any()


def test_figures_draw_both_intervals(tmp_path: Path) -> None:
    each = {"estimate": 0.02, "low": -0.01, "high": 0.05, "seeds_low": 0.0, "seeds_high": 0.04}
    one_seed = {**each, "seeds_low": None, "seeds_high": None}
    drawn = [
        figures.forest({"a model": {"grpo": each, "bupo": one_seed}}, "gain", "a caption", tmp_path / "forest.png", scale=100),
        figures.by_layer({"a": {2: each, 4: each}, "b": {2: each}}, {"a": {3: "skill"}}, "gain", "a caption", tmp_path / "layers.png"),
        figures.lines({"a": {"100 steps": [[1.0, 2.0], [1.5, 2.5]]}}, "entropy", "a caption", tmp_path / "lines.png"),
    ]
    assert [(tmp_path / name).stat().st_size > 5000 for name in drawn] == [True] * 3
