"""What the documents tell people to type works as it stands, and where they point there is something."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from unittest.mock import patch

import pytest

from layerlens.models import LAYOUTS
from tests.support.commands import commands, faults, inline_commands
from tests.support.markdown import ROOT, anchors, code_blocks, links, repository_texts

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
]
WITH_CODE = [page for page in PAGES if page.startswith("docs/") and page != "docs/gallery.md"]
"""Pages whose Python stands alone. The gallery's is one program, which `make gallery` runs; its test is tests/recipes/test_gallery.py."""

PACKAGE = "layerlens"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DISTRIBUTION = PROJECT["project"]["name"]
STRANGERS = re.compile(
    # an installer, then anything on the command but its end, then the bare name of the package
    rf"(?:\binstall|\buv add|\buvx|\bpipx run)\s[^`;&|\n]*?(?<![\w./-]){PACKAGE}(?![\w./-])"
    rf"|(?<![\w.-]){PACKAGE}\[[\w, -]+\]"  # or its extras, wherever they stand
    rf"|pypi\.org/project/{PACKAGE}(?![\w-])"
)
"""Hints that would install the package called `layerlens` on the package index, which is somebody else's."""


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_ten_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = code_blocks(text("README.md"), "python")[0]
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("limit=8", "limit=2").replace("256", "24"), "README.md", "exec"), {})
    assert (tmp_path / "ffn.png").stat().st_size > 10_000
    assert "layer" in capsys.readouterr().out


def standalone(code: str) -> bool:
    """Whether a block is a whole program on bundled data; the others show a call on data or weights of the reader's."""
    return code.startswith("import layerlens") and "/" not in "".join(re.findall(r'load\("([^"]*)"', code))


@pytest.mark.parametrize(("page", "number"), [(page, n) for page in WITH_CODE for n in range(len(code_blocks(text(page), "python")))])
def test_the_code_of_a_page_runs_or_can_be_read(page: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = code_blocks(text(page), "python")[number]
    small = code.replace("limit=8", "limit=2").replace("256", "24").replace("k=4,", "k=2,").replace("[1, 2, 4]", "[1, 2]")
    program = compile(small, f"block {number} of {page}", "exec")
    if standalone(code):
        (tmp_path / "data").symlink_to(ROOT / "data")
        monkeypatch.chdir(tmp_path)
        exec(program, {})


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_exists_with_its_options(page: str) -> None:
    typed = [*commands(text(page)), *inline_commands(text(page))]
    assert not [fault for words in typed for fault in faults(words)]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("layerlens analyse m p", "no verb analyse"),
        ("layerlens analyze m p --norms final", "--norms"),
        ("srun -n 8 layerlens analyze m p --norm finl --out r", "finl"),
        ("layerlens train --config tiny-qwen3-cpu --internal_laier 6", "internal_laier"),
        ("make dok", "no target dok"),
        ("python -m benchmarks.readouts", "no module benchmarks.readouts"),
        ("pip install 'layerlens-policy[trian]'", "no extra trian"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, fault: str) -> None:
    [found] = faults(commands(f"```sh\n{line}  # a comment\n```\n")[0])
    assert fault in found


@pytest.mark.parametrize("number", range(len(code_blocks(text("CONTRIBUTING.md"), "python"))))
def test_every_example_of_the_contributors_guide_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile(code_blocks(text("CONTRIBUTING.md"), "python")[number], f"example {number} of CONTRIBUTING.md", "exec")
    with patch.dict(LAYOUTS):
        exec(code, {"__name__": "example"})


def test_the_contributors_guide_names_every_room_and_the_direction_of_imports() -> None:
    rooms = {path.name for path in (ROOT / "src" / PACKAGE).iterdir() if (path / "__init__.py").is_file()}
    assert set(re.findall(r"^\| `(\w+)/` \|", text("CONTRIBUTING.md"), re.M)) == rooms
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [part.strip() for part in code_blocks(text("CONTRIBUTING.md"), "")[0].split("→")] == layers


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_a_file_and_a_heading(page: str) -> None:
    folder = (ROOT / page).parent
    for link in links(text(page)):
        if re.match(r"[a-z]+:", link):
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w./#%?=&+~-]*)?", link), link
            continue
        path, _, heading = link.partition("#")
        target = folder / path if path else ROOT / page
        assert target.exists(), link
        if heading:
            assert heading in anchors(target.read_text(encoding="utf-8")), link


def test_texts_are_found_without_git(tmp_path: Path) -> None:
    for name in ("README.md", "Makefile", "src/a.py", "figures/a.png", ".venv/lib/b.py", "src/.hidden.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(file.relative_to(tmp_path)) for file in repository_texts(tmp_path)] == ["Makefile", "README.md", "src/a.py"]


def test_the_sdist_holds_every_text_and_figure() -> None:
    held = {entry.strip("/") for entry in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]} | {"pyproject.toml"}
    tops = {file.relative_to(ROOT).parts[0] for file in repository_texts()} | {"figures", "LICENSE"}
    assert {top for top in tops if not top.startswith(".")} <= held


def test_every_hint_to_install_names_the_distribution() -> None:
    hints = [f"{file.relative_to(ROOT)}: {hint[0]}" for file in repository_texts() for hint in STRANGERS.finditer(file.read_text("utf-8"))]
    assert not hints


@pytest.mark.parametrize(
    ("hint", "wrong"),
    [
        ("pip install {}", True),
        ("pip install '{}[train]'", True),
        ('%pip install -q \\"{}[hub]\\"', True),
        ("uv add {}==0.1", True),
        ("python -m pip install --upgrade {}", True),
        ("needs the extra: {}[train,tl]", True),
        ("https://pypi.org/project/{}/", True),
        (f"pip install {DISTRIBUTION}", False),
        (f"pip install '{DISTRIBUTION}[train]'", False),
        ("`pip install .` and then `{} demo`", False),
        ("pip install -e . && {} demo", False),
        ("pip install dist/{}_policy-0.1.0-py3-none-any.whl", False),
        ("import {}", False),
    ],
)
def test_hints_that_would_install_a_strangers_package_are_found(hint: str, wrong: bool) -> None:
    assert bool(STRANGERS.search(hint.format(PACKAGE))) == wrong
