"""The study: steps that are run once, what its claims say, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.study import page
from benchmarks.study.__main__ import main
from benchmarks.study.findings import claim, difference, plain
from benchmarks.study.page import QUESTIONS
from benchmarks.study.settings import SIZES
from benchmarks.study.steps import Step, run_chains

from layerlens.errors import LayerLensError
from layerlens.train.config_file import read_config
from tests.support.evaluations import evaluated

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
    found = {"estimate": 0.1, "low": 0.02, "high": 0.2, "seeds_low": 0.01, "seeds_high": 0.3, "seeds": 4}
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


def test_the_page_has_every_claim_and_says_what_was_not_run(tmp_path: Path) -> None:
    found = {"estimate": 0.1, "low": 0.02, "high": 0.2, "seeds_low": 0.01, "seeds_high": 0.3, "seeds": 4}
    result = {
        "question": "q",
        "size": "small",
        "claims": [claim("it gains", found)],
        "table": [{"layer": 3, "gain": 0.1234}],
        "figures": ["d.png"],
    }
    (tmp_path / "d.json").write_text(json.dumps(plain(result)))
    text = page.page(tmp_path)
    assert "| it gains | **held** | +10.0 points | +2.0 to +20.0 | +1.0 to +30.0 | 4 |" in text
    assert "(../figures/study/d.png)" in text
    assert "| 3 | 0.123 |" in text
    assert text.count("\nNot run.") == len(QUESTIONS) - 1


def test_the_committed_page_is_made_from_the_committed_results() -> None:
    assert (ROOT / "docs" / "study.md").read_text(encoding="utf-8") == page.page(), "run python -m benchmarks.study.page"


def test_smoke_results_are_never_committed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["--size", "smoke", "--commit"], "not committed"), (["--questions", "z"], "unknown question z")):
        with pytest.raises(SystemExit):
            main(["--out", str(tmp_path), *words])
        assert message in capsys.readouterr().err
