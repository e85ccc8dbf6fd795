"""Every notebook runs from a fresh kernel and shows what it shows; what is committed is whole, small and knows no machine."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.markdown import ROOT, anchors, links

pytest.importorskip("nbclient")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_CELLS = 15
MOST_BYTES = 3_000_000
MACHINE = re.compile(r"(?<![\w.])/(?:tmp|home|root|work|Users|private)/")


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def outputs(path: Path) -> list[dict[str, Any]]:
    return [output for cell in cells(path) if cell["cell_type"] == "code" for output in cell["outputs"]]


def figures(path: Path) -> list[str]:
    return ["".join(output["data"]["image/png"]) for output in outputs(path) if "image/png" in output.get("data", {})]


def kinds(path: Path) -> list[list[tuple[str, list[str]]]]:
    """What each code cell shows, but for what it says: printed text, and the forms of each result."""
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    return [sorted({(output["output_type"], tuple(output.get("data", ()))) for output in cell["outputs"]}) for cell in code]


def test_the_five_stories_are_there() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["1-", "2-", "3-", "4-", "5-"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_a_fresh_kernel_and_shows_the_same_kinds_of_things(path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(path, tmp_path))
    command = [sys.executable, "-m", "recipes.site.run_notebooks", str(copy)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr[-4000:]
    assert kinds(copy) == kinds(path)
    assert len(figures(copy)) == len(figures(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_short_story_that_was_run_in_order(path: Path) -> None:
    assert len(cells(path)) <= MOST_CELLS
    assert cells(path)[0]["cell_type"] == "markdown"
    counts = [cell["execution_count"] for cell in cells(path) if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert len(figures(path)) >= 2
    assert not [output for output in outputs(path) if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not MACHINE.findall(re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8")))


def test_the_figures_are_small() -> None:
    assert sum(len(base64.b64decode(figure)) for path in NOTEBOOKS for figure in figures(path)) < MOST_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_to_a_file_and_a_heading(path: Path) -> None:
    texts = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown"]
    for link in (link for text in texts for link in links(text)):
        file, _, heading = link.partition("#")
        target = path.parent / file
        assert target.is_file(), link
        if heading:
            assert heading in anchors(target.read_text(encoding="utf-8")), link
