"""Files changed and words mistaken at random: a verb ends well or in one line (at length: `benchmarks/fuzz.py`)."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.support.command_line import Layerlens
from tests.support.fuzz.cases import judged
from tests.support.fuzz.damage import break_bytes, break_folder, break_json
from tests.support.fuzz.material import PROMPTS, make_prompts
from tests.support.fuzz.words import odd_words

CASES = 12

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("seed", range(CASES))
def test_changed_run_folders(layerlens: Layerlens, folder: Path, tmp_path: Path, seed: int) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    about = break_folder(run, random.Random(seed))
    for verb in ("select", "check"):
        assert judged(layerlens(verb, run), verb) == "", about


@pytest.mark.parametrize("seed", range(CASES))
def test_changed_prompt_files(layerlens: Layerlens, folder: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    make_prompts(tmp_path / "prompts")
    file = tmp_path / "prompts" / rng.choice(PROMPTS)
    about = (break_json if file.suffix in (".json", ".jsonl") else break_bytes)(file, rng)
    ended = layerlens("analyze", folder / "model", file, "--no-generate", "--metrics", "entropy", "--out", tmp_path / "run")
    assert judged(ended, "analyze") == "", about


@pytest.mark.parametrize("seed", range(CASES))
def test_changed_model_folders(layerlens: Layerlens, folder: Path, tmp_path: Path, seed: int) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    about = break_folder(tmp_path / "model", random.Random(seed))
    assert judged(layerlens("check", tmp_path / "model"), "check") == "", about


@pytest.mark.parametrize("seed", range(2 * CASES))
def test_odd_words(layerlens: Layerlens, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    monkeypatch.chdir(tmp_path)
    run = str(folder / "run")
    known = {
        "select": [run, "--json"],
        "compare": [run, run],
        "plot": [run, "--kind", "kl"],
        "merge": ["out", run],
        "contribution": ["base=x"],
    }
    verb = rng.choice(list(known))
    words, about = odd_words(verb, known[verb], rng)
    assert judged(layerlens(verb, *words), verb) == "", about
