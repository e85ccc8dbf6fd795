"""What the recipe of the documentation site does to links, formulas, notebooks and commands, and what it refuses."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from markdown import markdown
from recipes.site.checks import faults
from recipes.site.llms import llms_txt, summary_of
from recipes.site.mathml import draw_formulas
from recipes.site.notebook import notebook_page
from recipes.site.pages import commands_page, source_page
from recipes.site.sources import as_site_links, linked_files, page_of

from layerlens.cli.app import app


@pytest.mark.parametrize(
    ("file", "page"),
    [
        ("README.md", "index.md"),
        ("CONTRIBUTING.md", "contributing.md"),
        ("docs/training.md", "training.md"),
        ("benchmarks", "benchmarks/index.md"),
        ("data/models/tiny-qwen3/README.md", "data/models/tiny-qwen3/index.md"),
        ("figures/families.png", "figures/families.png"),
        ("src/layerlens/types.py", "source/src/layerlens/types.py.md"),
        ("src/layerlens/metrics", "source/src/layerlens/metrics/index.md"),
    ],
)
def test_every_file_has_its_page(file: str, page: str) -> None:
    assert page_of(file) == page


def test_links_lead_from_page_to_page_and_code_stays_as_it_is() -> None:
    text = (
        "[a](../src/layerlens/types.py) [b](training.md#the-reward) [c](#here) [d](https://x.org)\n\n```python\nf[0](../README.md)\n```\n"
    )
    changed = as_site_links(text, "docs/models.md")
    assert changed == (
        "[a](source/src/layerlens/types.py.md) [b](training.md#the-reward) [c](#here) [d](https://x.org)\n\n"
        "```python\nf[0](../README.md)\n```\n"
    )
    assert as_site_links("![](../../figures/a.png)", "docs/guides/look.md") == "![](../figures/a.png)"
    assert linked_files(text, "docs/models.md") == {"src/layerlens/types.py", "docs/training.md"}


def test_formulas_become_mathml_with_the_limits_of_sums_below_them() -> None:
    page = draw_formulas('<p><span class="arithmatex">\\(a &lt; b\\)</span></p><div class="arithmatex">\\[\\sum_{t} x\\]</div>')
    assert "arithmatex" not in page
    assert page.count("<math") == 2
    assert "&#x0003C;" in page
    assert "<munder><mo>&#x02211;</mo>" in page


def test_a_list_may_follow_a_line_of_text_and_code_is_left_alone() -> None:
    drawn = markdown("one of\n- a\n- b\n\n```\nx\n- y\n```\n", extensions=["pymdownx.superfences", "recipes.site.lists"])
    assert "<p>one of</p>\n<ul>\n<li>a</li>\n<li>b</li>\n</ul>" in drawn
    assert "x\n- y" in drawn


def test_a_notebook_shows_its_outputs(tmp_path: Path) -> None:
    figure = base64.b64encode(b"png").decode()
    outputs = [
        {"output_type": "stream", "text": ["ab\n", "c\n"]},
        {"output_type": "display_data", "data": {"image/png": figure, "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/html": "<table>\n\n<tr></tr></table>", "text/plain": "t"}},
    ]
    cells = [{"cell_type": "markdown", "source": ["# A\n", "b"]}, {"cell_type": "code", "source": "f()", "outputs": outputs}]
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    page, figures = notebook_page(path)
    assert figures == {"n-1.png": b"png"}
    for part in ("# A\nb", "```python\nf()\n```", "```text\nab\nc\n```", "![Figure 1](n-1.png)", "<table>\n<tr>"):
        assert part in page


def test_the_page_of_commands_has_every_verb_and_option() -> None:
    page = commands_page()
    for command in app.registered_commands:
        assert f"\n## {command.name}\n" in page
    assert "`--tokens-per-sample" in page
    assert "`--internal_layer`" in page or "`internal_layer`" in page


def test_a_listing_holds_its_file() -> None:
    assert "class Layout" in source_page("src/layerlens/models/layout.py")
    assert "`layout.py`" in source_page("src/layerlens/models")


def test_a_summary_is_the_first_sentence_of_the_running_text() -> None:
    text = "# Title\n\n![a](b.png)\n\n**Bold** [words](x.md) about\n`it`. More.\n"
    assert summary_of(text) == "Bold words about it."
    assert llms_txt("n", "d", {"Guides": [("T", "t.md", "S.")]}) == "# n\n\n> d\n\n## Guides\n\n- [T](t.md): S.\n"


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/f.css">',
        "<style>@import 'https://fonts.example/f.css'</style>",
        '<img alt="" src="http://x.example/a.png">',
        '<span class="arithmatex">\\(x\\)</span>',
        "<p>as follows:\n- one\n- two</p>",
    ],
)
def test_a_page_that_needs_the_outside_or_is_torn_is_told_of(page: str, tmp_path: Path) -> None:
    (tmp_path / "good.html").write_text('<a href="https://x.org">x</a><p>a - b</p><script src="a.js"></script>')
    assert faults(tmp_path) == []
    (tmp_path / "bad.html").write_text(page)
    assert [fault.split()[0].rstrip(":") for fault in faults(tmp_path)] == ["bad.html"]
