"""Runs notebooks from a fresh kernel and keeps what they show: `make notebooks`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

SETTINGS = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
"""Progress bars are no part of a story, tiny models run fastest with one thread, and figures are shown whatever the caller draws with."""

LONGEST = 300
"""Seconds that one cell may take."""


def run_notebook(path: Path, environment: Mapping[str, str] = os.environ) -> Any:
    """The notebook as it stands after a run from a fresh kernel, in its own folder, without what libraries say on standard error.

    An error in a cell is raised.
    """
    notebook: Any = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=LONGEST, record_timing=False, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute(env={**environment, **SETTINGS})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata["language_info"] = {"name": "python"}  # without the version that ran it
    return notebook


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        nbformat.write(run_notebook(path), path)
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
