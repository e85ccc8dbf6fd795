"""Numbers at the command line that nobody means."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import Layerlens, one_line

HUGE = str(10**30)
OF_BENCH = {"--rows": "2", "--d-model": "4", "--vocabulary": "8", "--repeats": "1", "--threads": "1"}
OF_VERBS = {
    "analyze": ("--limit", "--max-new-tokens", "--batch-tokens", "--sampling-batch", "--top-k", "--kl-from-layer", "--seed"),
    "eval": ("--limit", "--max-new-tokens", "--answers", "--batch-size", "--seed"),
    "fit-lens": ("--limit", "--max-tokens", "--steps", "--rows"),
}


@pytest.mark.parametrize(("verb", "option"), [(verb, option) for verb, options in OF_VERBS.items() for option in options])
def test_numbers_beyond_any_machine_are_refused(layerlens: Layerlens, folder: Path, tmp_path: Path, verb: str, option: str) -> None:
    what = ["--tasks", "arithmetic"] if verb == "eval" else [folder / "prompts.txt"]
    one_line(layerlens(verb, folder / "model", *what, "--out", tmp_path / "out", option, HUGE), f"{option} must be at most", HUGE)


@pytest.mark.parametrize("option", OF_BENCH)
def test_numbers_of_bench(layerlens: Layerlens, option: str) -> None:
    words = {**OF_BENCH, option: HUGE}
    one_line(layerlens("bench", "--no-memory", *(word for pair in words.items() for word in pair)), option)


def test_more_than_fits_the_memory(layerlens: Layerlens) -> None:
    words = {**OF_BENCH, "--vocabulary": str(10**9), "--d-model": str(10**6)}
    one_line(layerlens("bench", "--no-memory", *(word for pair in words.items() for word in pair)), "not enough memory")


@pytest.mark.parametrize("option", ["problems_limit", "max_steps", "internal_layer", "max_prompt_length", "per_device_train_batch_size"])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [HUGE, f"-{HUGE}"])
def test_numbers_of_train(layerlens: Layerlens, tmp_path: Path, option: str, number: str) -> None:
    ended = layerlens("train", "--config", "tiny-qwen3-cpu", "--output_dir", tmp_path / "out", f"--{option}", number)
    one_line(ended, option)
