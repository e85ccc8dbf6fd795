"""`layerlens contribution`: from evaluations to what each layer contributes to the gain of training."""

from __future__ import annotations

import math
import re
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlens.cli.options import AsJson, print_json
from layerlens.errors import SelectionError

if TYPE_CHECKING:
    from layerlens.results.contribution import LayerContribution

WHAT = re.compile(r"base|all|\d+(?:[-,]\d+)*")
"""What may be said to be trained in a folder."""


def contribution(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="[WHAT=]FOLDER...",
            help="Evaluations, as `layerlens eval --out` made them: base=FOLDER (before training), all=FOLDER (all layers trained) and "
            "3=FOLDER (layer 3 alone, --train_layers 3). Several of one kind are its seeds, in one order. Where `layerlens train` made the "
            "model, FOLDER is enough: layers and seed are those of its training.",
        ),
    ],
    run: Annotated[
        Path | None,
        typer.Option(help="A run of the model before training, whose curves are drawn under the contributions.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the table (contribution.csv) and the figure.")] = Path("figures"),
    figure: Annotated[bool, typer.Option("--figure/--no-figure", help="Draw the figure.")] = True,
    as_json: AsJson = False,
) -> None:
    """What each layer contributes: C(k), the gain of training layer k alone as a share of what training all layers gains.

    1 is what all layers together gain; without a gain of theirs there is no C(k). In brackets: 95% intervals of paired problems, and for
    other seeds of training. All evaluations must be of the same problems, sampled alike.

    Example: layerlens contribution base=evals/base evals/all-0 evals/all-1 evals/l3-0 evals/l3-1 --run runs/base
    """
    import pandas as pd

    import layerlens as ll
    from layerlens.storage.files import write_text

    evaluations = _evaluations(folders)
    found = ll.layer_contribution(evaluations)
    for each in chain.from_iterable(evaluations.values()):
        if each.unchecked:
            print(f"not checked, counted as wrong: {each.unchecked_text} in {each.path}", file=sys.stderr)
    before = None if run is None else ll.open_run(run)
    rows = pd.concat([found.table, pd.DataFrame([{"layers": "all", **found.full}])])
    write_text(out / "contribution.csv", rows.assign(base=found.base).to_csv(index=False))
    drawn = []
    if figure:
        drawn = [ll.plots.save(ll.plots.layer_contribution(found, before), out / "contribution.png")]
    if as_json:
        table = [{name: _plain(value) for name, value in row.items()} for row in found.table.to_dict("records")]
        full = {name: _plain(value) for name, value in found.full.items()}
        print_json(
            {"model": found.model, "task": found.task, "base": found.base, "all": full, "layers": table, "figures": list(map(str, drawn))}
        )
        return
    _show(found)
    for path in (out / "contribution.csv", *drawn):
        print(path)


def _evaluations(given: list[str]) -> dict[int | str, Any]:
    """The evaluations by what was trained: as the words say, or as the trainings do, and these in the order of their seeds."""
    from layerlens.evaluate import open_evaluation

    found: dict[int | str, Any] = {}
    unnamed: dict[tuple[str, int], Any] = {}
    for word in given:
        what, equals, folder = word.partition("=")
        named = equals and WHAT.fullmatch(what)
        path = Path(folder if named else word).expanduser()
        if not named and not path.exists():
            raise SelectionError(f"no folder {word}: give evaluations as FOLDER, or base=FOLDER, all=FOLDER or LAYER=FOLDER")
        evaluation = open_evaluation(_evaluation_in(path))
        if named:
            found.setdefault(what, []).append(evaluation)
            continue
        trained = evaluation.manifest.model.trained
        if trained is None or trained.seed is None:
            raise SelectionError(f"{word} does not say what was trained: give it as base={word}, all={word} or LAYER={word}")
        twin = unnamed.setdefault((trained.layers, trained.seed), evaluation)
        if twin is not evaluation:
            raise SelectionError(
                f"{twin.path} and {evaluation.path} are of two trainings of the same layers ({trained.layers}) with seed {trained.seed}: "
                "leave one out"
            )
    for layers, seed in sorted(unnamed):
        found.setdefault(layers, []).append(unnamed[layers, seed])
    return found


def _evaluation_in(folder: Path) -> Path:
    """The folder itself, or that of the one task in it."""
    inside = [file.parent for file in folder.glob("*/eval.json")]
    if (folder / "eval.json").exists() or not inside:
        return folder
    if len(inside) > 1:
        raise SelectionError(f"{folder} holds {len(inside)} tasks: name one, such as {sorted(inside)[0]}")
    return inside[0]


def _show(found: LayerContribution) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(f"{found.task}, {found.model}", "gain, points", "other seeds", "C(k)", "other seeds", box=None, pad_edge=False)
    for row in [*found.table.to_dict("records"), {"layers": "all", **found.full}]:
        share = not math.isnan(row.get("contribution", math.nan))
        table.add_row(
            f"{'layer' if row['layers'].isdigit() else 'layers'} {row['layers']}",
            f"{100 * row['gain']:+.1f}  {_ends(row['low'], row['high'], 100)}",
            _ends(row["seeds_low"], row["seeds_high"], 100),
            f"{row['contribution']:.2f}  {_ends(row['contribution_low'], row['contribution_high'])}" if share else "–",
            _ends(row["contribution_seeds_low"], row["contribution_seeds_high"]) if share else "",
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(
        f"Before training {100 * found.base:.1f}%. {found.full['problems']} problems, {found.full['seeds']} seed(s). In brackets: 95% "
        "intervals, for other problems like these (paired) and for other seeds."
    )
    if rates := found.learning_rates():
        console.print(f"{rates.capitalize()}: what differs between them may come from the rate.")
    if found.table["contribution"].isna().all():
        console.print(
            "No C(k): the interval of what training all layers gains reaches 0, so there is no share of it. Read the gains, or evaluate "
            "more problems and seeds."
        )


def _ends(low: float, high: float, unit: int = 1) -> str:
    digits = 2 if unit == 1 else 1
    return "" if math.isnan(low) else f"({unit * low:.{digits}f}, {unit * high:.{digits}f})"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value.item() if hasattr(value, "item") else value
