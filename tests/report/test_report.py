"""What the page is made of: its numbers, its size, what it says when something is missing, and that nothing can break out of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import layerlens as ll
from layerlens.cli.options import parse_layers
from layerlens.cli.tables import show_comparison
from layerlens.errors import SelectionError
from layerlens.report import report_data, report_html, write_report
from layerlens.report.arrays import decimals_of, packed
from layerlens.report.measured import command
from layerlens.report.page import page
from layerlens.report.training import trainings
from layerlens.results import Run, RunFolder, TrainingLog, open_run
from layerlens.results.training_log import CHANGE, HIGH, LOW
from layerlens.selection.comparison import compare_runs
from tests.support.plots import part, rise_and_fall
from tests.support.synthetic_runs import make_run

HOSTILE = ("</script><script>alert(1)</script>", "<!--<script>", "\u2028", "]]>", "{{data}}", "\\u003c")
FORMATS = Path(__file__).parents[1] / "formats"


def unpacked(block: dict[str, Any]) -> np.ndarray:
    """What `unpack` of arrays.js does."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(block["z"])), np.uint8).reshape(block["w"], block["n"]).astype(np.int64)
    codes = sum(plane << (8 * place) for place, plane in enumerate(planes))
    return np.where(codes == 256 ** block["w"] - 1, np.nan, (codes + block["lo"]) / 10 ** block["d"])


def figure(data: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in data["overview"]["figures"] if each["id"] == name)


def data_of(made: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', made, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@given(st.lists(st.floats(-1e5, 1e5) | st.just(np.nan) | st.just(-np.inf), min_size=1, max_size=30))
def test_packed_numbers_come_back_rounded_to_their_decimals(values: list[float]) -> None:
    array = np.array(values)
    block = packed(array, decimals_of(array))
    known = np.isfinite(array)
    np.testing.assert_allclose(unpacked(block)[known], array[known], atol=0.5000001 * 10.0 ** -block["d"])
    assert np.isnan(unpacked(block)[~known]).all()


@given(st.integers(1, 4), st.data())
def test_whole_numbers_are_packed_exactly(width: int, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(0, 256**width - 2), min_size=1, max_size=10)))
    block = packed(values, decimals_of(values))
    assert block["d"] == 0
    assert unpacked(block).tolist() == values.tolist()


def test_figures_hold_the_means_and_intervals_of_the_run() -> None:
    run = rise_and_fall(8, samples=6)
    data = report_data(run)
    assert data["overview"]["runs"][0]["n_layers"] == 8
    entropy = run.mean("entropy")
    cells = figure(data, "entropy")["panels"][0]
    for row, site in enumerate(cells["y"]):
        for name in ("mean", "low", "high"):
            np.testing.assert_allclose(cells[name][row], entropy[name].sel(site=site), rtol=1e-5)
    change = run.mean("entropy_change")
    for series in figure(data, "change")["series"]:
        module = {"FFN": "ffn", "attention": "attn", "whole layer": "layer"}[series["pick"]["module"]]
        np.testing.assert_allclose(series["mean"], change["mean"].sel(module=module), rtol=1e-5, atol=1e-9)
        assert series["x"] == run.layers
    assert {phase["name"] for phase in figure(data, "change")["phases"]} == {"exploration", "integration", "convergence"}
    chosen = dict(data["overview"]["runs"][0]["recommendation"])
    assert chosen["recommended"].startswith("train layer ")


def test_options_of_the_means_reach_every_figure() -> None:
    run = rise_and_fall(6, samples=5)
    data = report_data(run, rows="all", over="token")
    assert "mean over tokens, all rows" in figure(data, "entropy")["note"]
    cells = figure(data, "entropy")["panels"][0]
    expected = run.mean("entropy", rows="all", over="token")["mean"].sel(site=cells["y"][0])
    np.testing.assert_allclose(cells["mean"][0], expected, rtol=1e-5)


def test_captions_say_once_what_holds_for_all_runs() -> None:
    runs = [make_run([0.3, -0.2], norm=norm, name=name) for norm, name in (("none", "a"), ("final", "b"), ("none", "c"))]
    kind, samples, rest = figure(report_data(runs), "entropy")["note"].split(" · ", 2)
    assert kind == "norm: none, logit lens for a, c; norm: final, logit lens for b"
    assert samples == "12 samples"
    assert rest == "mean of per-sample means, response rows · 95% bootstrap interval over samples"


def test_what_a_run_lacks_is_said_in_one_line() -> None:
    run = rise_and_fall(6, samples=3)
    little = part(Run(run.data.drop_vars(["similarity", "cka"]), run.manifest), site=["resid_post"])
    data = report_data(little)
    for name in ("change", "settling", "similarity"):
        assert figure(data, name)["kind"] == "missing"
        assert "\n" not in figure(data, name)["missing"]
    assert "--top-k" in data["texts"][0]["top"]
    assert "--reward" in data["texts"][0]["right"]
    assert figure(data, "entropy")["kind"] == "heat"


def test_a_run_of_means_alone_has_figures_and_no_texts(tmp_path: Path) -> None:
    model = ll.load("tiny-qwen3", dtype="float32")
    samples = [ll.Sample([1, 2, 3, 4, 5 + at], 2) for at in range(3)]
    run = ll.analyze(model, samples, keep="means", out=tmp_path / "run")
    data = report_data(ll.open_run(tmp_path / "run"))
    assert "--keep means" in data["texts"][0]["missing"]
    assert figure(data, "entropy")["kind"] == "heat"
    assert "--keep means" in command(run)


def test_a_run_on_disk_gives_the_page_of_one_in_memory(bundled_runs: list[Run], tmp_path: Path) -> None:
    folder = RunFolder.begin(tmp_path / "run", bundled_runs[0].manifest)
    for sample in range(bundled_runs[0].n_samples):
        folder.write(sample, bundled_runs[0].sample(sample))
    stored, held = (report_data(run)["texts"] for run in (open_run(tmp_path / "run"), bundled_runs[0]))
    assert stored == held


def test_reports_need_something_to_show_and_room_to_show_it_in() -> None:
    with pytest.raises(SelectionError, match="a run or a training folder"):
        report_data()
    with pytest.raises(SelectionError, match="more than 0 megabytes"):
        report_data(make_run([0.1]), megabytes=0.0)


def test_a_page_is_not_written_over_a_file_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("model: tiny-qwen3\n")
    with pytest.raises(SelectionError, match=r"cannot write a page into 'train\.yaml': choose a name that ends in \.html"):
        write_report(make_run([0.3, -0.2]), out=file)
    assert file.read_text() == "model: tiny-qwen3\n"


def test_old_runs_are_shown() -> None:
    for folder in sorted(FORMATS.glob("format-*/run*")):
        run = open_run(folder)
        data = report_data(run)
        assert data["texts"][0]["samples"], folder
        assert len(data["texts"][0]["samples"]) == run.n_samples


def test_page_allows_its_own_scripts_and_nothing_else(tmp_path: Path) -> None:
    made = write_report(make_run([0.3, -0.2]), out=tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    allowed = set(rules["script-src"].split())
    assert all(each.startswith("'sha256-") for each in allowed)
    scripts = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
    library = re.search(r'id="library">(.*?)</script>', made, re.DOTALL)
    assert library is not None
    scripts.append(zlib.decompress(base64.b64decode(library[1])).decode("utf-8"))
    assert allowed == {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts}
    assert not re.search(r'(?:src|href)="?https?:', made)
    assert "connect-src 'self'" in report_html(make_run([0.3, -0.2]), live=True)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(HOSTILE))
def test_any_text_stays_inside_the_data(text: str) -> None:
    made = page({"name": text})
    assert data_of(made)["name"] == text
    assert made.count("<script") == page({"name": ""}).count("<script")


def test_texts_lose_digits_then_arrays_then_samples_to_stay_under_the_size(bundled_runs: list[Run], tmp_path: Path) -> None:
    run = bundled_runs[0]
    whole = report_data(run)["texts"][0]
    assert not whole["left_out"]
    sizes = {}
    for megabytes in (2.6, 2.47, 2.42):
        file = write_report(run, out=tmp_path / "small.html", megabytes=megabytes)
        sizes[megabytes] = file.stat().st_size
        assert sizes[megabytes] <= megabytes * 1e6
        text = data_of(file.read_text(encoding="utf-8"))["texts"][0]
        assert text["left_out"]
    assert len(text["samples"]) < len(whole["samples"])
    assert any(line.startswith("samples after") for line in text["left_out"])
    assert text["share_decimals"] < whole["share_decimals"]


def test_page_is_the_same_for_the_same_runs(bundled_runs: list[Run]) -> None:
    one, other = (report_data(bundled_runs[0]) for _ in range(2))
    assert {**one, "made": ""} == {**other, "made": ""}


def test_comparison_is_in_the_words_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run([0.1] * 12, name="open"), make_run([0.3, 0.1, -0.2, -0.1], name="other")]
    comparison = report_data(runs, rows="all")["overview"]["comparison"]
    show_comparison(compare_runs(runs, rows="all"))
    printed = capsys.readouterr().out
    cells = [cell for row in comparison["rows"] for cell in row[1:]]
    assert len(cells) == 2 * len(comparison["rows"]) >= 6
    assert all(cell["text"] in printed for cell in cells)
    [end] = [row[1] for row in comparison["rows"] if row[0] == "exploration end"]
    assert end["text"].startswith("12, still open")
    assert end["values"][0] == 12


def test_command_names_what_is_not_the_default() -> None:
    run = make_run([0.3, -0.2, 0.1], norm="final", name="it's a model")
    config = replace(
        run.manifest.config, sites=("resid_post",), layers=(1, 2, 3), metrics=("entropy",), rows="response", top_k=5, kl_from_layer=2
    )
    said = command(Run(run.data.isel(layer=[0, 2]).drop_vars(["similarity", "cka"]), replace(run.manifest, config=config)))
    assert "'it'\"'\"'s a model' PROMPTS --limit 12 --norm final --no-generate --layers 1,3" in said
    assert "--sites resid_post --metrics entropy --rows response" in said
    assert "--top-k 5 --kl-from-layer 2" in said
    assert parse_layers("1,3") == [1, 3]


def test_whatever_a_monitor_watches_is_on_the_page(training: TrainingLog) -> None:
    [found] = trainings([training])["runs"]
    names = {re.sub(r"_[0-9]+$", "", str(name)) for name in training.monitor if not str(name).endswith((LOW, HIGH, CHANGE))}
    assert names - found["by_layer"].keys() - found["by_step"].keys() == {"step", "drift/embedding", "log_perplexity"}
    assert ("objective", "layer 3 alone trained") not in found["facts"]
    [alone] = trainings([replace(training, schedule={**training.schedule, "train_layers": "3"})])["runs"]
    assert ("objective", "layer 3 alone trained") in alone["facts"]


def test_run_writes_its_report(tmp_path: Path) -> None:
    file = make_run([0.3, -0.2]).report(tmp_path / "mine.html", rows="all")
    assert file == tmp_path / "mine.html"
    assert "all rows" in file.read_text(encoding="utf-8")
