"""Figures to files that come out the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerlens.errors import SelectionError
from layerlens.plots.kit.figure import drawn_figure
from layerlens.storage.files import disk_errors_as_run_errors, write_atomic

SUFFIXES: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""Formats that `save` writes, with the metadata that would differ from one run to the next."""


def save(drawn: Figure | Axes | np.ndarray, path: str | Path, *, dpi: int = 200, command: str | None = None) -> Path:
    """Writes a figure, by the suffix of `path`: .png, .svg or .pdf.

    The file appears whole or not at all, its directory is made, and the same figure gives the same bytes. Text stays text
    in SVG and PDF.

    Args:
        drawn: what a plot returned (axes, an array of axes) or a figure.
        path: where to write.
        dpi: pixels per inch of a PNG, and of the dense heat maps inside SVG and PDF.
        command: the command that draws the figure again, kept in the file's metadata ("Description", in a PDF "Subject").

    Returns:
        `path`, with ~ expanded.

    Raises:
        SelectionError: another suffix, or nothing was drawn.
        RunError: the file cannot be written.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise SelectionError(f"cannot write {path.name!r}: choose a name that ends in {', '.join(SUFFIXES)}")
    figure = drawn_figure(drawn)
    fixed: Any = {"svg.hashsalt": "layerlens", "svg.fonttype": "none", "pdf.fonttype": 42, "savefig.facecolor": "white"}
    with disk_errors_as_run_errors(path), matplotlib.rc_context(fixed):
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {} if command is None else {"Subject" if suffix == ".pdf" else "Description": command}
        metadata = {**SUFFIXES[suffix], **told}
        options: Any = {"format": suffix[1:], "dpi": dpi, "bbox_inches": "tight", "pad_inches": 0.06, "metadata": metadata}
        write_atomic(path, lambda part: figure.savefig(part, **options))
    return path
