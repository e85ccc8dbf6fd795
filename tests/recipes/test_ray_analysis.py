"""Two actors of a Ray that is started for the test alone make the run that one process makes."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import layerlens as ll
from tests.support.kills import assert_same_run

pytest.importorskip("ray.data")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short name: Ray keeps sockets there, and the name of a socket has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run_on_ray(words: list[str], own: Path) -> subprocess.CompletedProcess[str]:
    """Runs the recipe with a Ray whose files lie in `own`. Its processes end with this one, even if it is killed (Ray's `fate_share`)."""
    env = {"RAY_TMPDIR": str(own), "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": ""}
    command = [sys.executable, "-m", "recipes.ray_analysis", *words]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=600)


def test_two_actors_make_the_run_of_one_process_to_the_last_bit(tmp_path: Path, short_folder: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{number} + {2 * number} = \n" for number in range(2, 8)))
    model = ll.load("tiny-qwen3", dtype="float32")
    samples = ll.read_prompts(prompts, model)
    # batches end where shards do, so that not even rounding differs
    ll.analyze(model, samples, out=tmp_path / "one", generate=ll.Generation(5), sampling_batch=2, batch_tokens=1, backend="torch-mm")
    words = "--actors 2 --shards 3 --dtype float32 --max-new-tokens 5 --sampling-batch 2 --batch-tokens 1 --backend torch-mm"
    done = run_on_ray(["tiny-qwen3", str(prompts), str(tmp_path / "many"), *words.split()], short_folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("tiny-qwen3: 6 of 6 samples -> ")
    assert_same_run(tmp_path / "one", tmp_path / "many")
    shards = sorted((tmp_path / "many-shards").iterdir())
    assert [ll.open_run(shard).n_samples for shard in shards] == [2, 2, 2]
