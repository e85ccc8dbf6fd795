"""Files changed at random: whatever is done to them, a verb ends well or in one line."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.support.command_line import Layerlens

CASES = 12


def changed(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few flipped, cut out, doubled or put in."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(found) + 1)
        match rng.randrange(4):
            case 0 if place < len(found):
                found[place] ^= 1 << rng.randrange(8)
            case 1:
                del found[place : place + rng.randint(1, 40)]
            case 2:
                found[place:place] = rng.randbytes(rng.randint(1, 8))
            case _:
                found[place:place] = found[place : place + rng.randint(1, 40)]
    return bytes(found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(CASES))
def test_changed_run_folders(layerlens: Layerlens, folder: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    file = rng.choice(sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size))
    file.write_bytes(changed(file.read_bytes(), rng))
    for verb in ("select", "check"):
        ended = layerlens(verb, run)
        assert ended.code in (0, 2), ended
        assert "Traceback" not in ended.err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(CASES))
def test_changed_prompt_files(layerlens: Layerlens, folder: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(
        changed(b'{"prompt": "w1 w2", "response": "w3", "answer": 7}\n{"messages": [{"role": "user", "content": "w4"}]}\n', rng)
    )
    ended = layerlens("analyze", folder / "model", file, "--no-generate", "--metrics", "entropy", "--out", tmp_path / "run")
    assert ended.code in (0, 2), ended
    assert "Traceback" not in ended.err
