from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from recipes.tiny_models.batches import encode_problem
from recipes.tiny_models.card import card
from recipes.tiny_models.evaluate import EvaluationSettings, evaluate_folder
from recipes.tiny_models.models import MODELS
from recipes.tiny_models.training import TrainingSettings
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from layerlens.prompts.arithmetic import problems

ROOT = Path(__file__).parents[2] / "data/models"
ARCHITECTURES = {"tiny-qwen3": "Qwen3ForCausalLM", "tiny-llama": "LlamaForCausalLM"}
bundled = pytest.mark.parametrize("folder", [ROOT / name for name in MODELS], ids=MODELS)


@bundled
def test_bundled_model_is_small_and_of_the_family_it_is_named_for(folder: Path) -> None:
    assert sum(f.stat().st_size for f in folder.rglob("*")) <= 12e6
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == ARCHITECTURES[folder.name]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.num_hidden_layers >= 12
    assert not model.config.tie_word_embeddings
    assert not torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@bundled
def test_bundled_tokenizer_is_the_one_the_recipe_builds(folder: Path, built_tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer, built = AutoTokenizer.from_pretrained(folder), built_tokenizer
    assert tokenizer.get_vocab() == built.get_vocab()
    for problem in problems("test", 40, 0):
        assert encode_problem(problem, tokenizer) == encode_problem(problem, built)
    config = json.loads((folder / "config.json").read_text())
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer))
    named = [config[f"{name}_token_id"] for name in ("pad", "bos", "eos")]
    assert (*named, config["vocab_size"]) == ids


@bundled
def test_bundled_card_is_written_from_the_json_files(folder: Path) -> None:
    assert (folder / "README.md").read_text(encoding="utf-8") == card(folder)
    measured = json.loads((folder / "evaluation.json").read_text())
    for name in ("greedy", "avg@16", "pass@16"):
        assert f"{100 * measured[name]['mean']:.1f} [{100 * measured[name]['low']:.1f}, " in card(folder)


@bundled
def test_bundled_model_leaves_room_to_learn(folder: Path) -> None:
    measured = json.loads((folder / "evaluation.json").read_text())
    assert measured["settings"]["split"] == "test"
    assert 0.35 <= measured["avg@16"]["mean"] <= 0.65
    assert measured["greedy"]["mean"] < 0.85
    assert measured["pass@16"]["low"] > measured["avg@16"]["high"]


def test_bundled_models_had_the_same_training() -> None:
    one, other = (json.loads((ROOT / name / "training.json").read_text()) for name in MODELS)
    assert one["settings"] | {"model": ""} == other["settings"] | {"model": ""}
    assert [p["tokens"] for p in one["curve"]] == [p["tokens"] for p in other["curve"]]


@bundled
def test_bundled_model_was_trained_with_the_default_settings(folder: Path) -> None:
    """The command in the card, which names model, steps and seed alone, means the settings that were used."""
    settings = json.loads((folder / "training.json").read_text())["settings"]
    default = TrainingSettings(folder.name)
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()} == vars(default)


@bundled
def test_bundled_model_has_the_recorded_loss_on_held_out_solutions(folder: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    losses = []
    for problem in problems("test", 16, 9):
        prompt, solution = encode_problem(problem, tokenizer)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + solution])).logits[0, len(prompt) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(solution)).item())
    last = json.loads((folder / "training.json").read_text())["curve"][-1]["loss"]
    assert sum(losses) / len(losses) == pytest.approx(last, abs=0.15)


@pytest.mark.slow
@bundled
def test_evaluate_folder_gives_the_accuracy_of_the_card(folder: Path) -> None:
    """Fewer problems, other draws: the interval measured again and the card's overlap."""
    stored = json.loads((folder / "evaluation.json").read_text())
    again = evaluate_folder(folder, EvaluationSettings(n=128, answers=16, seed=2))
    for name in ("greedy", "avg@16", "pass@16"):
        assert again[name]["low"] <= stored[name]["high"]
        assert stored[name]["low"] <= again[name]["high"]
