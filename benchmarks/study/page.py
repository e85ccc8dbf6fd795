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
    e_phase_settings,
    f_refinement,
    g_pretraining,
    h_data_order,
)
from benchmarks.study.settings import KEPT, RESULTS, ROOT, SIZES, describe

from layerlens.storage.files import write_text

QUESTIONS: dict[str, Any] = {
    "a": a_contribution, "b": b_bupo_layers, "c": c_predictors, "d": d_methods, "e": e_phase_settings, "f": f_refinement,
    "g": g_pretraining, "h": h_data_order,
}  # fmt: skip
PAGE = ROOT / "docs" / "study.md"
HEAD = """# The study

Does anything one can measure about a layer predict what training it will gain? Eight questions on the two bundled models, each
answered by commands of this package that `python -m benchmarks.study --out study` runs (two cores, ten to twenty hours; `--cuda` on a
GPU, where `--size full` asks for more of all), and goes on with if it is stopped. Numbers come from the files in
[benchmarks/study/results](../benchmarks/study), and this page from `python -m benchmarks.study.page`.
`benchmarks/study/kept.jsonl` has what each training and evaluation left: with `--kept` and that file, the study leaves those out and runs
what is missing. (a) was run before there was such a file, which has no more of it than GRPO: to repeat (a) is to train each layer again.

A claim is **held** if its 95% intervals for other problems and for other seeds of training both lie above 0, **not held** if both lie
below, and **undecided** otherwise. In tables an estimate is followed by these intervals: (other problems; other seeds). A dash
stands for an interval that does not exist, and the claim then rests on the other.
"""
DIGITS = {"cosine": 4, "nats": 3}
"""Behind the point, of units that need others than two."""
VERDICTS = ("held", "not held", "undecided")


def page(results: Path = RESULTS) -> str:
    """The page in Markdown, of the results in a folder."""
    files = {letter: results / f"{letter}.json" for letter in QUESTIONS}
    found = {letter: json.loads(file.read_text(encoding="utf-8")) for letter, file in files.items() if file.is_file()}
    sizes = dict.fromkeys(each["size"] for each in found.values())
    parts = [HEAD, *(f"\n{describe(SIZES[size])}\n" for size in sizes), *_summary(found)]
    for letter, question in QUESTIONS.items():
        parts.append(f"\n## ({letter}) {question.TITLE}\n")
        if letter in found:
            parts += _answer(found[letter])
        else:
            parts.append(
                f"\nNot run. `python -m benchmarks.study --out study --kept {KEPT.relative_to(ROOT)} --questions {letter} --commit`\n"
            )
    return "".join(parts)


def _summary(found: dict[str, dict[str, Any]]) -> list[str]:
    claims = [(letter, claim) for letter, each in found.items() for claim in each["claims"]]
    lists = {
        verdict: [
            f"- ({letter}) {claim['claim']}: {_in_unit(_found(claim), claim)}\n" for letter, claim in claims if claim["verdict"] == verdict
        ]
        for verdict in VERDICTS
    }
    return [text for verdict, lines in lists.items() if lines for text in (f"\n**{verdict.capitalize()}**\n\n", *lines)]


def _answer(found: dict[str, Any]) -> list[str]:
    how = " ".join(found["how"].split())
    figures = [f"\n![{found['question']}](../figures/study/{name})\n" for name in found["figures"]]
    claims = [_claim_row(claim) for claim in found["claims"]]
    head = ["\n| claim | | estimate | other problems | other seeds | seeds |\n|---|---|---|---|---|---|\n"] if claims else []
    note = [f"\n{found['note']}\n"] if found.get("note") else []
    torch = [f"\nEvaluated with torch {_counted(found['torch'])}.\n"] if found.get("torch") else []
    return [f"\n{how}\n", *figures, *head, *claims, "\n" + _table(found["table"]), *note, *torch]


def _counted(versions: dict[str, int]) -> str:
    """One version, or each with the number of models."""
    return next(iter(versions)) if len(versions) == 1 else ", ".join(f"{name} ({count} models)" for name, count in versions.items())


def _claim_row(claim: dict[str, Any]) -> str:
    estimate = _in_unit(_number(claim["estimate"], claim["unit"]), claim) + _chance(claim)
    ends = " | ".join(_ends(claim, prefix) for prefix in ("", "seeds_"))
    return f"| {claim['claim']} | **{claim['verdict']}** | {estimate} | {ends} | {claim['seeds']} |\n"


def _in_unit(text: str, found: dict[str, Any]) -> str:
    return f"ρ {text}" if found["unit"] == "ρ" else f"{text} {found['unit']}"


def _found(found: dict[str, Any]) -> str:
    """A number with its intervals, and with its p if it has one."""
    if found["estimate"] is None:
        return "–"
    ends = "; ".join(_ends(found, prefix) for prefix in ("", "seeds_"))
    return f"{_number(found['estimate'], found['unit'])} ({ends}){_chance(found)}"


def _number(value: float, unit: str) -> str:
    return f"{100 * value:+.1f}" if unit == "points" else f"{value:+.{DIGITS.get(unit, 2)}f}"


def _ends(found: dict[str, Any], prefix: str) -> str:
    low, high = (found.get(f"{prefix}{end}") for end in ("low", "high"))
    return "–" if low is None or high is None else f"{_number(low, found['unit'])} to {_number(high, found['unit'])}"


def _chance(found: dict[str, Any]) -> str:
    return f", p {found['p']:.2g}" if found.get("p") is not None else ""


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case dict():
            return _found(value)
        case float():
            return f"{value:.3g}"
        case list():
            return ", ".join(map(str, value))
    return str(value)


if __name__ == "__main__":
    write_text(PAGE, page())
    print(PAGE)
