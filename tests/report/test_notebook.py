"""What a Run and a LayerChoice show of themselves in a notebook."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from layerlens import select_layer
from layerlens.report import notebook
from layerlens.results import Run, RunFolder, open_run
from tests.support.browser import Page
from tests.support.plots import rise_and_fall
from tests.support.synthetic_runs import make_run


@pytest.fixture
def saved(tmp_path: Path) -> Run:
    run = rise_and_fall(6, samples=4, tokens=6)
    folder = RunFolder.begin(tmp_path / "run", run.manifest)
    for sample in range(4):
        folder.write(sample, run.sample(sample))
    return open_run(tmp_path / "run")


def test_run_shows_itself_with_the_report_in_a_frame(saved: Run, tab: Page, tmp_path: Path) -> None:
    shown = saved._repr_html_()
    assert "synthetic" in shown
    assert "<polyline" in shown
    assert "allow-same-origin" not in shown
    file = tmp_path / "cell.html"
    file.write_text(f"<!doctype html><html lang='en'><title>cell</title><body>{shown}", encoding="utf-8")
    tab.driver.get(file.resolve().as_uri())
    tab.find("summary").click()
    tab.driver.switch_to.frame(tab.find("iframe"))
    tab.wait("document.querySelector('#box-entropy')?.dataset.drawn === 'yes'")
    tab.find("#tab-text").click()
    tab.wait("document.querySelectorAll('.chip').length > 3")
    tab.driver.switch_to.default_content()
    assert tab.messages() == []


def test_choice_shows_its_recommendation_and_its_run(saved: Run) -> None:
    choice = select_layer(saved)
    shown = choice._repr_html_()
    for line in choice.recommendation.splitlines():
        assert line.partition(": ")[2] in unescape(re.sub('srcdoc="[^"]*"', "", shown))
    assert "<iframe" in shown
    assert "<iframe" not in select_layer(rise_and_fall(6))._repr_html_()


def test_a_large_run_is_not_reported_unasked(saved: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "FRAMED", saved.data.nbytes - 1)
    shown = saved._repr_html_()
    assert "<iframe" not in shown
    assert "run.report()" in shown


def test_names_are_texts_in_a_notebook() -> None:
    shown = make_run([0.3, -0.2], samples=2, tokens=4, name="<img src=x>")._repr_html_()
    assert "<img" not in shown
