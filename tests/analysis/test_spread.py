"""Norm "matched" scales to the mean spread of the final policy on the run's own rows, however the run came to be filled."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import RunError, SelectionError
from layerlens.results import RunFolder, TextSpread
from tests.support.float64_reference import plain_spread
from tests.support.kills import assert_same_run
from tests.support.tiny_models import random_ids


def samples(count: int = 4) -> list[ll.Sample]:
    return [ll.Sample(random_ids(6 + index, index), 4) for index in range(count)]


def test_every_state_of_a_run_has_the_spread_of_its_final_policy(qwen: ll.LensModel) -> None:
    chosen = samples()
    run = ll.analyze(qwen, chosen, norm="matched")
    assert run.spread == pytest.approx(plain_spread(qwen.parts.model, [list(sample.token_ids) for sample in chosen]), rel=1e-6)
    assert run.spread == run.manifest.spread == run.data.attrs["spread"]
    assert run.manifest.config.spread is None
    assert f"matched (spread {run.spread:.3g} logits)" == run.convention
    np.testing.assert_allclose(run.data["logit_sd"], run.spread, rtol=1e-5)
    final = ll.analyze(qwen, chosen, norm="final", sites="resid_post", layers=4, metrics="entropy")
    assert final.spread is None
    assert float(final.data["logit_sd"].mean()) == pytest.approx(run.spread, rel=1e-6)


def test_response_rows_alone_give_their_own_spread(qwen: ll.LensModel) -> None:
    chosen = samples()
    final = ll.analyze(qwen, chosen, norm="final", sites="resid_post", layers=4, metrics="entropy")
    run = ll.analyze(qwen, chosen, norm="matched", rows="response", sites="resid_post")
    assert run.spread == pytest.approx(float(final.data["logit_sd"].values[final.row_mask("response")].mean()), rel=1e-6)
    drawn = ll.analyze(qwen, chosen, norm="matched", rows="response", sites="resid_post", tokens_per_sample=1)
    assert drawn.spread == run.spread


def test_a_given_spread_needs_no_further_pass_and_gives_the_same_numbers(qwen: ll.LensModel, tmp_path: Path) -> None:
    measured = ll.analyze(qwen, samples(), norm="matched")
    given = ll.analyze(qwen, samples(), norm="matched", spread=measured.spread, out=tmp_path / "run")
    assert not (tmp_path / "run" / "spread").exists()
    assert given.manifest.config.spread == given.spread == measured.spread
    assert ll.open_run(tmp_path / "run").spread == measured.spread
    assert given.data.identical(measured.data)
    other = ll.analyze(qwen, samples(), norm="matched", spread=1.0)
    assert float(abs(other.data["entropy"] - given.data["entropy"]).max()) > 0.1


def test_responses_are_those_of_the_other_norms(qwen: ll.LensModel) -> None:
    prompts = [ll.Sample(random_ids(4 + index, index), 4 + index) for index in range(5)]
    runs = [
        ll.analyze(qwen, prompts, norm=norm, generate=ll.Generation(6, seed=2), batch_tokens=40, sites="resid_post")
        for norm in ("none", "matched")
    ]
    assert runs[0].data["text_token_id"].equals(runs[1].data["text_token_id"])


def test_a_run_that_was_stopped_while_it_measured_ends_with_the_same_bits(
    qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [ll.Sample(random_ids(4 + i % 5, i), 4 + i % 5, id=f"p{i}") for i in range(6)]

    def analyse(out: Path) -> ll.Run:
        return ll.analyze(qwen, prompts, generate=ll.Generation(6, seed=3), batch_tokens=40, norm="matched", sites="resid_post", out=out)

    whole, out = analyse(tmp_path / "whole"), tmp_path / "run"
    write = RunFolder.write_text_spread

    def stop_at_the_fourth(folder: RunFolder, index: int, part: TextSpread) -> None:
        if index == 3:
            raise KeyboardInterrupt
        write(folder, index, part)

    monkeypatch.setattr(RunFolder, "write_text_spread", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        analyse(out)
    monkeypatch.undo()
    kept = sorted((out / "spread").iterdir())
    assert [file.name for file in kept] == ["000000.json", "000001.json", "000002.json"]
    assert not list((out / "samples").iterdir())
    times = [file.stat().st_mtime_ns for file in kept]
    run = analyse(out)
    assert_same_run(tmp_path / "whole", out)
    assert run.spread == whole.spread == ll.open_run(out).spread
    assert [file.stat().st_mtime_ns for file in kept] == times


def test_two_processes_share_the_measurement(qwen: ll.LensModel, tmp_path: Path) -> None:
    """A batch that another living process measures is left to it."""
    whole = ll.analyze(qwen, samples(), norm="matched", out=tmp_path / "whole", batch_tokens=1, sites="resid_post")
    folder = RunFolder.begin(tmp_path / "run", replace(whole.manifest, spread=None))
    part = RunFolder(tmp_path / "whole").text_spread(2)
    assert part is not None
    with ThreadPoolExecutor(1) as pool:
        with folder.claim("spread-000002") as mine:
            assert mine
            other = pool.submit(ll.analyze, qwen, samples(), norm="matched", out=folder.path, batch_tokens=1, sites="resid_post")
            while folder.text_spread(3) is None:
                time.sleep(0.01)
            time.sleep(0.05)
            assert folder.text_spread(2) is None
            assert not folder.done()
            folder.write_text_spread(2, part)
        run = other.result(timeout=60)
    assert run.spread == whole.spread
    assert_same_run(tmp_path / "whole", folder.path)


def test_what_a_sample_contributes_is_kept_and_not_measured_again(qwen: ll.LensModel, tmp_path: Path) -> None:
    whole = ll.analyze(qwen, samples(), norm="matched", out=tmp_path / "run", batch_tokens=8)
    for file in (tmp_path / "run" / "samples").iterdir():
        file.unlink()
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run" / "spread").iterdir()}
    again = ll.analyze(qwen, samples(), norm="matched", out=tmp_path / "run", batch_tokens=8)
    assert again.data.identical(whole.data)
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run" / "spread").iterdir()} == kept
    part = RunFolder(tmp_path / "run").text_spread(1)
    assert part is not None
    assert part.rows == whole.sample(1).sizes["token"]
    assert RunFolder(tmp_path / "run").text_spread(9) is None


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"total": 1.0})])
def test_a_damaged_contribution_is_told(qwen: ll.LensModel, tmp_path: Path, text: str) -> None:
    ll.analyze(qwen, samples(), norm="matched", out=tmp_path / "run")
    (tmp_path / "run" / "spread" / "000002.json").write_text(text)
    with pytest.raises(RunError, match=r"spread/000002\.json is damaged .*; remove it and run the same analysis again to restore it$"):
        ll.analyze(qwen, samples(), norm="matched", out=tmp_path / "run")


def test_a_spread_goes_with_norm_matched_alone_and_is_part_of_the_configuration(qwen: ll.LensModel, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="got it with norm='none'"):
        ll.analyze(qwen, samples(), spread=2.0)
    ll.analyze(qwen, samples(), norm="matched", spread=2.0, out=tmp_path / "run")
    with pytest.raises(RunError, match=r"config\.spread is 2\.0 there and None now"):
        ll.analyze(qwen, samples(), norm="matched", out=tmp_path / "run")
