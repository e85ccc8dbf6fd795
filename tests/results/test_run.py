"""A run on disk: whole samples or none, the same numbers however often it was killed, one configuration per folder."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import layerlens as ll
from layerlens.errors import RunError, SelectionError
from layerlens.storage.files import defer_interrupt
from layerlens.storage.manifest import SamplingSettings
from tests.support.synthetic_runs import make_run
from tests.support.tiny_models import random_ids, tiny_model

ROOT = Path(__file__).parents[2]

# a process that fills a run folder, generation included; it says when it is about to start
WORKER = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
import layerlens as ll
from tests.support.tiny_models import tiny_model, tiny_tokenizer, random_ids
lens = ll.LensModel.wrap(tiny_model("qwen3"), tiny_tokenizer(), name="tiny-random")
samples = [ll.Sample(random_ids(4 + i % 5, i), 4 + i % 5, id=f"p{{i}}") for i in range(16)]
print("ready", flush=True)
ll.analyze(lens, samples, generate=ll.Generation(12, seed=3), out=sys.argv[1], batch_tokens=64, top_k=2)
"""


def start_worker(out: Path, code: str = WORKER) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", code.format(root=str(ROOT)), str(out)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"ready\n"
    return worker


def finish(worker: subprocess.Popen[bytes]) -> None:
    with worker:
        assert worker.wait(timeout=120) == 0


def run_whole(out: Path, code: str = WORKER) -> float:
    """Seconds that a worker takes that nobody disturbs."""
    worker = start_worker(out, code)
    start = time.perf_counter()
    finish(worker)
    return time.perf_counter() - start


def run_through_kills(out: Path, times: int, seconds: float, seed: int, code: str = WORKER) -> None:
    """SIGKILLs at random moments, the run started again after every one, and let end."""
    moments = random.Random(seed)
    for _ in range(times):
        worker = start_worker(out, code)
        with worker:
            time.sleep(moments.uniform(0, seconds * 0.6))
            worker.send_signal(signal.SIGKILL)
            worker.wait(timeout=60)
    finish(start_worker(out, code))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, run_whole(out)


def assert_same_run(a: Path, b: Path) -> None:
    """The same samples, byte for byte, and nothing else left behind by finished work."""
    names = sorted(file.name for file in (a / "samples").glob("*.nc"))
    assert names == sorted(file.name for file in (b / "samples").glob("*.nc"))
    for name in names:
        assert (a / "samples" / name).read_bytes() == (b / "samples" / name).read_bytes(), name
    xr.testing.assert_identical(ll.open_run(a).data, ll.open_run(b).data)


@pytest.mark.parametrize("portion", range(4))
def test_a_killed_run_ends_as_if_never_killed(portion: int, uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    """Five SIGKILLs at random moments each, twenty in all, the run started again after every one."""
    whole, seconds = uninterrupted
    out = tmp_path / "run"
    run_through_kills(out, 5, seconds, seed=portion)
    assert_same_run(whole, out)


def test_two_processes_fill_one_folder(uninterrupted: tuple[Path, float], tmp_path: Path) -> None:
    whole, _ = uninterrupted
    out = tmp_path / "run"
    first, second = start_worker(out), start_worker(out)
    finish(first)
    finish(second)
    assert_same_run(whole, out)


def test_two_processes_share_the_work(qwen: ll.LensModel, tmp_path: Path) -> None:
    """A batch that another living process holds is left to it; what it has finished is not done again."""
    from layerlens.results import RunFolder

    samples = [ll.Sample(random_ids(6, i), 2) for i in range(4)]
    whole = ll.analyze(qwen, samples, out=tmp_path / "a", batch_tokens=6)
    folder = RunFolder.begin(tmp_path / "b", whole.manifest)
    with folder.claim("000001") as mine, folder.claim("000001") as again:
        assert mine
        assert not again
        folder.write(1, folder_sample := RunFolder(tmp_path / "a").read(1))
    before = (folder.path / "samples" / "000001.nc").stat().st_mtime_ns
    ll.analyze(qwen, samples, out=tmp_path / "b", batch_tokens=6)
    assert (folder.path / "samples" / "000001.nc").stat().st_mtime_ns == before
    assert folder_sample.sizes["token"] == 6
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_save_then_open_is_the_identity(qwen: ll.LensModel, tmp_path: Path) -> None:
    samples = [ll.Sample(random_ids(n, n), 2, id=f"s{n}", ground_truth="42") for n in (4, 9)]
    in_memory = ll.analyze(qwen, samples, top_k=3, kl_from_layer=1)
    saved = ll.analyze(qwen, samples, top_k=3, kl_from_layer=1, out=tmp_path / "run")
    opened = ll.open_run(tmp_path / "run")
    xr.testing.assert_identical(saved.data, opened.data)
    for name in in_memory.data.variables:
        np.testing.assert_array_equal(in_memory.data[name].values, opened.data[name].values)
        assert in_memory.data[name].attrs == opened.data[name].attrs
    assert opened.complete
    assert opened.norm == opened.data.attrs["norm"] == "none"
    only = ll.open_run(tmp_path / "run", variables=["entropy"])
    assert set(only.data.data_vars) == {"entropy"}
    xr.testing.assert_equal(only.mean("entropy"), opened.mean("entropy"))


def test_a_folder_of_another_configuration_is_refused(qwen: ll.LensModel, tmp_path: Path) -> None:
    samples = [ll.Sample(random_ids(5), 2)]
    ll.analyze(qwen, samples, out=tmp_path / "run")
    before = sorted(file.read_bytes() for file in (tmp_path / "run").rglob("*.nc"))
    with pytest.raises(RunError, match=r"config.norm is 'none' there and 'final' now"):
        ll.analyze(qwen, samples, norm="final", out=tmp_path / "run")
    with pytest.raises(RunError, match=r"samples\.digest"):
        ll.analyze(qwen, [ll.Sample(random_ids(5, 9), 2)], out=tmp_path / "run")
    other = ll.LensModel.wrap(tiny_model("qwen3", seed=1), name="tiny-random")
    with pytest.raises(RunError, match=r"model\.fingerprint"):
        ll.analyze(other, samples, out=tmp_path / "run")
    assert before == sorted(file.read_bytes() for file in (tmp_path / "run").rglob("*.nc"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("do not touch")
    with pytest.raises(RunError, match="not empty and holds no run"):
        ll.analyze(qwen, samples, out=tmp_path / "other")


def test_an_unfinished_run_can_be_looked_at(qwen: ll.LensModel, tmp_path: Path) -> None:
    samples = [ll.Sample(random_ids(5, i), 2) for i in range(3)]
    ll.analyze(qwen, samples, out=tmp_path / "run")
    (tmp_path / "run" / "samples" / "000001.nc").unlink()
    run = ll.open_run(tmp_path / "run")
    assert (run.n_samples, run.complete) == (2, False)
    assert run.sample(2).sizes["token"] == 5
    assert run.mean("entropy").attrs["samples"] == 2
    with pytest.raises(SelectionError, match="no sample 1"):
        run.sample(1)


def test_damage_is_told(qwen: ll.LensModel, tmp_path: Path) -> None:
    ll.analyze(qwen, [ll.Sample(random_ids(5), 2)], out=tmp_path / "run")
    sample = tmp_path / "run" / "samples" / "000000.nc"
    sample.write_bytes(sample.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"000000.nc is damaged"):
        ll.open_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        ll.open_run(tmp_path / "run")
    with pytest.raises(RunError, match="holds no run"):
        ll.open_run(tmp_path)


def test_a_full_disk_is_told_and_loses_nothing(qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [ll.Sample(random_ids(5, i), 2) for i in range(3)]
    replace, calls = os.replace, []

    def full(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 3:  # run.json, the first sample, then no more
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("layerlens.storage.files.os.replace", full)
    with pytest.raises(RunError, match="no space left"):
        ll.analyze(qwen, samples, out=tmp_path / "run", batch_tokens=1)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert ll.open_run(tmp_path / "run").n_samples == 1
    monkeypatch.undo()
    ll.analyze(qwen, samples, out=tmp_path / "run", batch_tokens=1)
    whole = ll.analyze(qwen, samples, out=tmp_path / "whole", batch_tokens=1)
    assert whole.complete
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_manifest_says_what_was_run(qwen: ll.LensModel, tmp_path: Path) -> None:
    ll.analyze(qwen, [ll.Sample(random_ids(5), 5)], generate=ll.Generation(3, seed=7), out=tmp_path / "run")
    manifest = ll.open_run(tmp_path / "run").manifest
    assert manifest.model.name == "tiny-random"
    assert manifest.model.fingerprint == qwen.fingerprint
    assert manifest.model.dtype == "float32"
    assert manifest.config.generate == SamplingSettings(max_new_tokens=3, temperature=1.0, top_p=1.0, seed=7)
    assert manifest.config.norm == "none"
    assert {"torch", "transformers", "layerlens"} <= manifest.versions.keys()


def test_mean_weights_and_rows() -> None:
    run = make_run([1.0, 0.0, -1.0], samples=5, tokens=9)
    entropy, sample = run.data["entropy"].values.astype(np.float64), run.data["sample"].values
    response = run.data["in_response"].values.astype(bool)
    per_sample = np.stack([entropy[(sample == i) & response].mean(0) for i in range(5)])
    np.testing.assert_allclose(run.mean("entropy")["mean"], per_sample.mean(0))
    np.testing.assert_allclose(run.mean("entropy", over="token")["mean"], entropy[response].mean(0))
    np.testing.assert_allclose(run.mean("entropy", over="token", rows="all")["mean"], entropy.mean(0))
    late = np.stack([entropy[(sample == i) & response][2:].mean(0) for i in range(5)])
    np.testing.assert_allclose(run.mean("entropy", drop_first=2)["mean"], late.mean(0))
    np.testing.assert_allclose(run.mean("similarity")["mean"], run.data["similarity"].values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        run.mean("entropy_change")["mean"].sel(module="ffn"),
        run.mean("entropy")["mean"].sel(site="ffn_out") - run.mean("entropy")["mean"].sel(site="ffn_in"),
        atol=1e-6,
    )
    mean = run.mean("entropy")
    assert (mean["low"] <= mean["mean"]).all()
    assert (mean["mean"] <= mean["high"]).all()
    assert mean["mean"].attrs["units"] == "nats"


def test_the_interval_covers_what_it_says() -> None:
    """Of many data sets with a known mean, about 95% have it inside (percentile intervals of 40 samples run a little low)."""
    from layerlens.metrics.bootstrap import bootstrap_means, interval

    rng = np.random.default_rng(0)
    hits = []
    for seed in range(400):
        sums = rng.exponential(1.0, size=(40, 1))
        _, means = bootstrap_means(sums, np.ones_like(sums), resamples=500, seed=seed)
        low, high = interval(means)
        hits.append(low[0] <= 1.0 <= high[0])
    assert 0.90 <= np.mean(hits) <= 0.97


def test_one_sample_has_no_interval() -> None:
    mean = make_run([1.0, -1.0], samples=1).mean("entropy")
    assert mean["mean"].notnull().all()
    assert mean["low"].isnull().all()
    assert mean["high"].isnull().all()


def test_prompts_alone_have_no_response_mean(qwen: ll.LensModel) -> None:
    run = ll.analyze(qwen, [ll.Sample(random_ids(5), 5)])
    with pytest.raises(SelectionError, match="no response rows"):
        run.mean("entropy")
    assert run.mean("entropy", rows="all")["mean"].notnull().all()


def test_frame_is_tidy(qwen: ll.LensModel) -> None:
    run = ll.analyze(qwen, [ll.Sample(random_ids(n, n), 2) for n in (4, 6)])
    frame = run.to_frame()
    assert len(frame) == 10 * 4 * 7
    row = frame[(frame["sample"] == 1) & (frame["position"] == 3) & (frame["layer"] == 2) & (frame["site"] == "ffn_out")].iloc[0]
    at = np.flatnonzero((run.data["sample"].values == 1) & (run.data["position"].values == 3))[0]
    assert row["entropy"] == run.data["entropy"].sel(layer=2, site="ffn_out").values[at]
    assert set(frame.columns) >= {"token_text", "in_response", "entropy", "logp_next", "kl_to_final", "agrees"}


def test_an_interrupt_waits_for_the_file_in_hand() -> None:
    done = []

    def work() -> None:
        with defer_interrupt(), defer_interrupt():
            signal.raise_signal(signal.SIGINT)
            done.append(True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may have been started where it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert done
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
