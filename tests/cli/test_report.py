"""`layerlens report` and `layerlens watch` at the command line."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from layerlens.errors import LayerLensError
from layerlens.report import page, report
from layerlens.results import RunFolder
from tests.support.command_line import Layerlens, one_line
from tests.support.synthetic_runs import make_run
from tests.support.training_folders import write_training


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = make_run([0.3, -0.2], samples=2, tokens=4)
    made = RunFolder.begin(tmp_path / "run", run.manifest)
    for sample in range(2):
        made.write(sample, run.sample(sample))
    return tmp_path / "run"


def test_report_writes_runs_and_trainings_into_one_file(layerlens: Layerlens, folder: Path, tmp_path: Path) -> None:
    training = write_training(tmp_path / "bupo", layers=2)
    ended = layerlens("report", folder, "--training", training, "--out", tmp_path / "out" / "page.html", "--json")
    assert ended.code == 0
    told = json.loads(ended.out)
    file = Path(told["report"])
    assert file.stat().st_size == told["bytes"]
    assert '"synthetic"' in file.read_text(encoding="utf-8")
    assert '"bupo"' in file.read_text(encoding="utf-8")
    among = layerlens("report", training, "--out", tmp_path / "training.html")  # a training folder in a run's place
    assert among.code == 0
    assert "MB; open it in a browser" in among.out


def test_report_says_in_one_line_what_it_lacks(layerlens: Layerlens, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_line(layerlens("report"), "needs a run or a training folder")
    one_line(layerlens("report", tmp_path / "nothing"), "nothing")
    one_line(layerlens("report", folder, "--rows", "some"), "--rows")
    one_line(layerlens("watch", tmp_path / "nothing"), "no such folder")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one_line(
            layerlens("watch", folder, "--no-browser", "--port", port), f"port {port} of 127.0.0.1 cannot be used (Address already in use)"
        )

    def missing() -> tuple[str, str, str]:
        raise LayerLensError("a report needs plotly")

    monkeypatch.setattr(page, "plotly", missing)
    one_line(layerlens("report", folder, "--out", tmp_path / "x.html"), "needs plotly")
    one_line(layerlens("watch", folder, "--no-browser"), "needs plotly")
    assert report.MEGABYTES == 15
