"""docs/definitions.md says of every number where it is made, in which unit, and in formulas that GitHub can show."""

from __future__ import annotations

import ast
import copy
import re
from functools import reduce
from importlib import import_module

import pytest
import torch

import layerlens as ll
from layerlens.types import METRIC_INFO
from tests.support.markdown import ROOT, anchors, inline_tokens, repository_texts, tables
from tests.support.rescaling import rescale_norm_gains
from tests.support.tiny_models import random_ids, tiny_model

PAGE = ROOT / "docs" / "definitions.md"
TEXT = PAGE.read_text(encoding="utf-8")
TABLES = tables(TEXT)
MADE_IN = "made in"
ENTRY = re.compile(r"\[`([\w/]+)\.py`\]\(\.\./src/layerlens/([\w/]+)\.py\) `([\w.]+)`")
FORMULA = re.compile(r"(?<![\w$\\])\$([^$\s](?:[^$\n]*[^$\s])?)\$(?![\w$])")


def entries() -> list[tuple[str, str]]:
    """Every (file below src/layerlens without its suffix, name) of the columns "made in"."""
    cells = [row[MADE_IN] for table in TABLES for row in table if MADE_IN in row]
    found = set()
    for cell in cells:
        entry = ENTRY.fullmatch(cell)
        assert entry, f"expected [`file.py`](../src/layerlens/file.py) `name` under 'made in', got {cell!r}"
        shown, linked, name = entry.groups()
        assert shown == linked, cell
        found.add((linked, name))
    return sorted(found)


def defined_names(tree: ast.Module | ast.ClassDef) -> set[str]:
    """What a file or class itself defines, `Class.member` included; what it imports is not."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{member}" for member in defined_names(node)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize(("file", "name"), entries(), ids=lambda value: str(value))
def test_every_number_is_made_where_the_page_says(file: str, name: str) -> None:
    source = ROOT / "src" / "layerlens" / f"{file}.py"
    assert name in defined_names(ast.parse(source.read_text(encoding="utf-8")))
    reduce(getattr, name.split("."), import_module(f"layerlens.{file.replace('/', '.')}"))


def test_a_name_that_a_file_only_imports_is_not_made_there() -> None:
    tree = ast.parse("from a import f\nclass C:\n    def g(self): pass\nx: int = 1\ny = 2\n")
    assert defined_names(tree) == {"C", "C.g", "x", "y"}


def test_every_metric_of_a_run_has_a_row_with_its_unit() -> None:
    (metrics,) = (table for table in TABLES if {"name", "unit", MADE_IN} <= table[0].keys() and table[0]["name"] == "`entropy`")
    assert {row["name"].strip("`"): row["unit"] for row in metrics} == {name: unit for name, (_, unit) in METRIC_INFO.items()}


def test_the_glossary_has_each_word_once_in_alphabetical_order() -> None:
    (glossary,) = (table for table in TABLES if set(table[0]) == {"word", "meaning"})
    words = [row["word"].lower() for row in glossary]
    assert words == sorted(set(words))


def test_markdown_leaves_every_formula_as_it_is_written() -> None:
    """GitHub shows what Markdown leaves between dollar signs: an escape, emphasis or a link inside would change the formula."""
    formulas = FORMULA.findall(TEXT)
    shown = "\n".join("".join(child.content for child in token.children or ()) for token in inline_tokens(TEXT))
    lost = [formula for formula in formulas if f"${formula}$" not in shown]
    assert len(formulas) > 50
    assert not lost
    assert "operatorname" not in TEXT, "GitHub refuses this command"


def test_no_text_cites_a_document_or_a_section_that_is_not_there() -> None:
    gone = "DEFINITIONS"
    cited = re.compile(r"docs/([\w-]+\.md)(?:[,:]?\s+\(?\"([^\"\n]+)\")?")
    wrong = []
    for file in repository_texts():
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".py" and file.name != "test_definitions.py" and gone in text:
            wrong.append(f"{file.relative_to(ROOT)}: {gone}")
        for name, section in cited.findall(text):
            page = ROOT / "docs" / name
            if not page.is_file() or (section and section.lower().replace(" ", "-") not in anchors(page.read_text(encoding="utf-8"))):
                wrong.append(f"{file.relative_to(ROOT)}: docs/{name} {section}".strip())
    assert not wrong


@torch.no_grad()
def test_norm_none_sees_a_rescaling_of_weights_that_no_output_of_the_model_shows() -> None:
    """Why norm none is no property of the model's function: gains of norms by 1/4, the weights behind them by 4."""
    model = tiny_model("llama")
    rescaled = copy.deepcopy(model)
    rescale_norm_gains(rescaled, 4)
    ids = random_ids(12)
    assert torch.equal(model(torch.tensor([ids])).logits, rescaled(torch.tensor([ids])).logits)

    def gap(norm: ll.types.Norm) -> float:
        runs = [ll.analyze(ll.LensModel.wrap(each), [ll.Sample(ids)], norm=norm, metrics="entropy") for each in (model, rescaled)]
        before, after = (run.entropy_change("ffn").values for run in runs)
        return float(abs(after - before).max())

    assert gap("none") > 0.1
    assert gap("final") < 1e-3
