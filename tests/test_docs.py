"""What the README and the notebook tell people to type works as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_ten_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code is not None
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1].replace("limit=8", "limit=2").replace("256", "24"), "README.md", "exec"), {})
    assert (tmp_path / "ffn.png").stat().st_size > 10_000
    assert "layer" in capsys.readouterr().out


def test_the_notebook_runs() -> None:
    cells = json.loads((ROOT / "notebooks" / "first_look.ipynb").read_text())["cells"]
    code = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")
    exec(compile(code.replace("limit=6", "limit=2").replace("160", "24"), "first_look.ipynb", "exec"), {})


def test_links_in_the_readme_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert link.startswith("http") or (ROOT / link).exists(), link
