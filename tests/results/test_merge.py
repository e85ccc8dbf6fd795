"""Shards that share nothing but their samples make the run that one process makes: to the bit if batches end where shards do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import layerlens as ll
from layerlens.errors import RunError, SelectionError
from tests.support.kills import assert_same_run
from tests.support.tiny_models import random_ids

SAMPLES = [ll.Sample(random_ids(4 + i % 3, i), 4 + i % 3, id=f"p{i}") for i in range(6)]
OPTIONS = {
    "generate": ll.Generation(4, seed=1),
    "sampling_batch": 3,
    "batch_tokens": 8,
    "metrics": ("entropy", "logp_next"),
    "thinking_marks": ("w1", "w2"),
}


@pytest.mark.parametrize("keep", ["rows", "means"])
def test_merged_shards_are_the_whole_run(keep: str, qwen: ll.LensModel, tmp_path: Path) -> None:
    whole = ll.analyze(qwen, SAMPLES, out=tmp_path / "whole", keep=keep, **OPTIONS)
    shards = [tmp_path / "a", tmp_path / "b"]
    counts = [ll.analyze(qwen, SAMPLES, out=out, keep=keep, shard=(number, 2), **OPTIONS).n_samples for number, out in enumerate(shards, 1)]
    assert min(counts) > 0
    assert sum(counts) == 6
    assert not ll.merge(tmp_path / "merged", shards[:1]).complete
    merged = ll.merge(tmp_path / "merged", shards)
    assert merged.complete
    assert_same_run(tmp_path / "whole", tmp_path / "merged")
    assert merged.mean("entropy", resamples=20).identical(whole.mean("entropy", resamples=20))


def test_what_does_not_belong_together_is_not_merged(qwen: ll.LensModel, tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    ll.analyze(qwen, SAMPLES, out=a, shard=(1, 2), **OPTIONS)
    ll.analyze(qwen, SAMPLES, out=b, shard=(2, 2), **OPTIONS | {"metrics": "entropy"})
    with pytest.raises(RunError, match=r"b was begun with another configuration \(config.metrics"):
        ll.merge(tmp_path / "out", [a, b])
    ll.analyze(qwen, SAMPLES, out=c, shard=(2, 2), backend="torch-onednn", **OPTIONS)
    with pytest.raises(RunError, match=r"c was computed by backend torch-onednn, and .*a by .*again, with the other's --backend"):
        ll.merge(tmp_path / "out", [a, c])
    shutil.rmtree(c)
    ll.analyze(qwen, SAMPLES, out=c, shard=(2, 2), **OPTIONS)
    file = next((c / "samples").glob("*.nc"))
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(RunError, match=rf"{file.name} is damaged"):
        ll.merge(tmp_path / "out", [a, c])
    with pytest.raises(RunError, match="nothing to merge"):
        ll.merge(tmp_path / "out", [])
    with pytest.raises(SelectionError, match=r"1 ≤ i ≤ n ≤ 6, the number of samples; got 3/2"):
        ll.analyze(qwen, SAMPLES, out=tmp_path / "d", shard=(3, 2), **OPTIONS)
    with pytest.raises(SelectionError, match="needs a folder"):
        ll.analyze(qwen, SAMPLES, shard=(1, 2), **OPTIONS)
