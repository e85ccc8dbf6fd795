"""Makes docs/study.md from the committed results: `python -m benchmarks.study.page`. Questions without a result are said not to be run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.study import (
    a_contribution,
    b_bupo_layers,
    c_predictors,
    d_methods,
    e_rollouts,
    f_refinement,
    g_pretraining,
    h_data_order,
)

from layerlens.storage.files import write_text

QUESTIONS: dict[str, Any] = {
    "a": a_contribution, "b": b_bupo_layers, "c": c_predictors, "d": d_methods, "e": e_rollouts, "f": f_refinement, "g": g_pretraining,
    "h": h_data_order,
}  # fmt: skip
ROOT = Path(__file__).parents[2]
RESULTS, FIGURES, PAGE = ROOT / "benchmarks" / "study" / "results", ROOT / "figures" / "study", ROOT / "docs" / "study.md"
HEAD = """# The study

Does anything one can measure about a layer predict what training it will gain? Eight questions on the two bundled models, each
answered by commands of this package that `python -m benchmarks.study --out study` runs (two cores, about eight hours; `--size full`
for a GPU), and goes on with if it is stopped. Numbers come from the files in [benchmarks/study/results](../benchmarks/study), and this
page from `python -m benchmarks.study.page`.

A claim is **held** if its 95% intervals for other problems and for other seeds both lie above the value that it names, **not held** if
both lie below, and **undecided** otherwise. Held-out problems are drawn with a seed that no setting was chosen by.
"""


def page(results: Path = RESULTS) -> str:
    """The page in Markdown, of the results in a folder."""
    parts = [HEAD]
    for letter, question in QUESTIONS.items():
        file = results / f"{letter}.json"
        parts.append(f"\n## ({letter}) {question.TITLE}\n")
        if not file.is_file():
            parts.append(f"\nNot run. `python -m benchmarks.study --out study --questions {letter} --commit`\n")
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        parts += [f"\n![{question.TITLE}](../figures/study/{name})\n" for name in found["figures"]]
        if found["claims"]:
            parts += ["\n| claim | | estimate | other problems | other seeds | seeds |\n|---|---|---|---|---|---|\n"]
            parts += [_claim_row(claim) for claim in found["claims"]]
        parts.append("\n" + _table(found["table"]))
        parts += [f"\n{found['note']}\n"] if found.get("note") else []
    return "".join(parts)


def _claim_row(claim: dict[str, Any]) -> str:
    unit = claim["unit"]
    ends = [_ends(claim.get(f"{prefix}low"), claim.get(f"{prefix}high"), unit) for prefix in ("", "seeds_")]
    estimate = f"{_number(claim['estimate'], unit)} {unit}"
    return f"| {claim['claim']} | **{claim['verdict']}** | {estimate} | {ends[0]} | {ends[1]} | {claim['seeds']} |\n"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{100 * value:+.1f}" if unit == "points" else f"{value:.2f}"


def _ends(low: float | None, high: float | None, unit: str) -> str:
    return "–" if low is None else f"{_number(low, unit)} to {_number(high, unit)}"


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return (
        ""
        if value is None
        else f"{value:.3g}"
        if isinstance(value, float)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )


if __name__ == "__main__":
    write_text(PAGE, page())
    print(PAGE)
