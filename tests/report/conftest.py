"""Runs of the two bundled models, a training folder, and a browser: made once for all tests of the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import layerlens as ll
from layerlens.report import write_report
from layerlens.results import Run, TrainingLog, open_training
from layerlens.storage.bundled import MODELS, bundled_prompts
from tests.support.browser import CHROMIUM, DRIVER, Page, browser
from tests.support.training_folders import write_training


@pytest.fixture(scope="session")
def bundled_runs() -> list[Run]:
    """Four problems, answered and measured by each bundled model, with the three most likely tokens."""
    runs = []
    for name in MODELS:
        model = ll.load(name, dtype="float32")
        prompts = ll.read_prompts(bundled_prompts(), model, limit=4)
        answers = ll.Generation(max_new_tokens=20, seed=0)
        runs.append(ll.analyze(model, prompts, norm="final", top_k=3, metrics=["all", "js_to_final"], generate=answers))
    return runs


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> TrainingLog:
    return open_training(write_training(tmp_path_factory.mktemp("training") / "bupo"))


@pytest.fixture(scope="session")
def page_file(bundled_runs: list[Run], training: TrainingLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(bundled_runs, training, out=tmp_path_factory.mktemp("report") / "report.html", reward="arithmetic")


@pytest.fixture(scope="session")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    pytest.importorskip("selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    with browser(tmp_path_factory.mktemp("downloads")) as page:
        yield page


@pytest.fixture
def tab(_browser: Page) -> Page:
    """The browser at a desktop's size, with nothing said yet."""
    _browser.size(1440)
    _browser.messages()
    _browser.requests()
    return _browser
