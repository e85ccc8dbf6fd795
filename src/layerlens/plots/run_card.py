"""A run's card: README.md with what was measured and how, and figures, for the hub or for anyone who opens the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerlens.errors import SelectionError
from layerlens.plots.kit.save import save
from layerlens.plots.runs.entropy_change import entropy_change
from layerlens.plots.runs.entropy_flow import entropy_flow
from layerlens.plots.runs.entropy_heatmap import entropy_heatmap
from layerlens.plots.runs.metric_by_layer import metric_by_layer
from layerlens.results import Run

FIGURES: dict[str, tuple[str, Callable[[Run], Any]]] = {
    "entropy": ("Mean entropy of the internal policy at each layer and site", entropy_heatmap),
    "entropy-flow": ("Entropy from layer to layer, and what each module adds", entropy_flow),
    "ffn-change": ("Entropy change of the feed-forward modules", lambda run: entropy_change(run, "ffn")),
    "kl": ("Divergence from each layer's policy to the final one", lambda run: metric_by_layer(run, "kl_to_final")),
}
"""The figures of a card by file name, each with what it shows."""


def write_run_card(run: Run, folder: Path, name: str | None = None) -> Path:
    """Writes README.md and its figures into a folder, and returns the path of README.md.

    `name` is what the run is opened by, by default its folder. A figure that the run holds no data for is left out.
    """
    shown = []
    for stem, (says, draw) in FIGURES.items():
        try:
            save(draw(run), folder / "figures" / f"{stem}.png", dpi=120)
        except SelectionError:
            continue
        shown.append(f"![{says}](figures/{stem}.png)")
    file = folder / "README.md"
    file.write_text("\n".join([*_front(run), "", *_said(run, name or str(run.path)), "", "\n\n".join(shown), ""]), encoding="utf-8")
    return file


def _front(run: Run) -> list[str]:
    return [
        "---",
        "library_name: layerlens",
        "tags: [layerlens, interpretability, logit-lens]",
        f"pretty_name: {_quoted(run.model)}",
        "---",
    ]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _said(run: Run, name: str) -> list[str]:
    """What was measured, as a table, and how to open it."""
    info, config = run.manifest.model, run.manifest.config
    samples = f"{run.n_samples:,}" + ("" if run.complete else f" of {run.manifest.samples.count:,}: the run is not complete")
    rows = {
        "model": f"{info.name}{f' at {info.revision}' if info.revision else ''}, {run.n_layers} layers",
        "weights": f"{info.dtype}, {info.quantisation or 'not quantised'}, fingerprint {info.fingerprint}",
        "read with": f"norm {run.convention}" + (", logit lens" if run.lens == "logit" else ""),
        "samples": f"{samples}; {run.data.sizes['token']:,} decoded rows ({config.rows})",
        "sites": ", ".join(run.sites),
        "metrics": ", ".join(str(variable) for variable in run.data.data_vars),
    }
    table = [f"| {label} | {_cell(text)} |" for label, text in rows.items()]
    opened = ["```python", "import layerlens as ll  # pip install layerlens-policy", "", f"run = ll.open_run({name!r})", "```"]
    about = "The entropy, in nats, of the internal policies of a language model, by layer and module, measured with layerlens."
    return [f"# Internal policies of {_cell(info.name)}", "", about, "", "| | |", "|---|---|", *table, "", *opened]


def _cell(text: str) -> str:
    """Text from outside that cannot end a table's cell or begin markup."""
    return "".join(f"&#{ord(sign)};" if sign in "|<>`[]!*&" else sign for sign in " ".join(text.split()))
