"""`layerlens fit-lens`: a lens of either kind, judged on other texts, that `analyze` reads through."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import layerlens as ll
from tests.support.command_line import Layerlens, one_line


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("".join(" ".join(f"w{(7 * i * line + i) % 200}" for i in range(24)) + "\n" for line in range(1, 9)))
    return file


@pytest.mark.parametrize("kind", ["jacobian", "tuned"])
def test_a_lens_is_fitted_judged_and_read_through(layerlens: Layerlens, folder: Path, texts: Path, tmp_path: Path, kind: str) -> None:
    fit = ("fit-lens", folder / "model", texts, "--kind", kind, "--steps", 5, "--rows", 8, "--max-new-tokens", 0, "--no-chat")
    done = layerlens(*fit, "--out", tmp_path / "lens", "--held-out", 2, "--json")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert (told["lens"], told["texts"], told["held_out"]) == (f"{kind}:{tmp_path / 'lens'}", 6, 2)
    model = ll.load(folder / "model")
    others = ll.read_prompts(texts, model, chat=False)[6:]
    run = ll.analyze(model, others, norm="final", lens=told["lens"], sites="resid_post")
    for row in told["layers"]:
        assert row["kl_lens"] == pytest.approx(float(run.mean("kl_to_final", rows="all")["mean"].sel(layer=row["layer"])[0]), abs=1e-5)
        skill = float(run.mean("logp_next", rows="all")["mean"].sel(layer=row["layer"])[0]) + math.log(211)
        assert row["skill_lens"] == pytest.approx(skill, abs=1e-5)
    assert told["layers"][-1]["kl_lens"] == told["layers"][-1]["kl_logit"]

    done = layerlens("analyze", folder / "model", texts, "--norm", "final", "--lens", told["lens"], "--no-generate", "-o", tmp_path / "run")
    assert done.code == 0, done.err
    assert f"norm final, {kind} lens" in done.out
    assert ll.open_run(tmp_path / "run").lens == kind


def test_what_was_fitted_is_told_in_a_table_with_the_next_step(layerlens: Layerlens, folder: Path, texts: Path, tmp_path: Path) -> None:
    done = layerlens("fit-lens", folder / "model", texts, "--steps", 2, "--rows", 4, "--max-new-tokens", 2, "--out", tmp_path / "lens")
    assert done.code == 0, done.err
    assert "tuned lens fitted on 7 texts" in done.out
    assert "on 1 other text, at resid_post of each layer: mean KL to the final policy and skill" in done.out
    assert [line.split()[0] for line in done.out.splitlines() if line.strip()[:1].isdigit()] == ["1", "2", "3", "4"]
    assert f"--norm final --lens tuned:{tmp_path / 'lens'}" in done.out


def test_wrong_use_is_told_in_one_line(layerlens: Layerlens, folder: Path, texts: Path, tmp_path: Path) -> None:
    fit = ("fit-lens", folder / "model", texts, "--out", tmp_path / "lens", "--max-new-tokens", 0, "--no-chat")
    one_line(layerlens(*fit, "--held-out", 8), "8 texts were read, and --held-out 8 leaves none to fit on")
    one_line(layerlens(*fit, "--kind", "jacobian", "--max-tokens", 10), "no text has more than 17 tokens within its first 10")
    one_line(layerlens(*fit, "--rate", 0), "rate must be above 0")
    analyze = ("analyze", folder / "model", texts, "--no-generate", "-o", tmp_path / "run")
    one_line(layerlens(*analyze, "--lens", "tuned:nowhere", "--norm", "final"), "nowhere is no tuned lens that can be read")
    one_line(
        layerlens(*analyze, "--lens", "mine", "--norm", "final"), "lens must be 'logit', 'jacobian:FILE' or 'tuned:FOLDER', got 'mine'"
    )
    assert not (tmp_path / "run").exists()
