"""Evaluations as a table for a terminal, with what its brackets mean in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from layerlens.evaluate import DeepThinkingVote, Evaluation
    from layerlens.evaluate.scores import Estimate

MARK = "*"
BRACKETS = (
    "In brackets: 95% intervals, for other problems like these; in the lines 'with other answers' for other answers to these very "
    "problems, which is the question if the set is fixed."
)
BOUNDS = "* All are alike, so there is no spread to judge by: bounds on what can lie behind it (docs/definitions.md, Means and intervals)."
"""What is printed under the table."""


def show_evaluations(evaluations: Sequence[Evaluation]) -> None:
    """Prints one column per evaluation, the new one last, and one row per measure, in percent with intervals in brackets."""
    from layerlens.evaluate.scores import powers_of_two

    *earlier, last = evaluations
    table = Table(f"{last.task}, %", *(each.label for each in evaluations), box=None, pad_edge=False)
    table.add_row("problems", *(str(len(each.problems)) for each in evaluations))
    table.add_row("answers each", *(str(each.n_answers) for each in evaluations))
    table.add_row("Avg@K", *(_percent(each.avg()) for each in evaluations))
    table.add_row("  with other answers", *(_ends(each.avg_over_answers()) for each in evaluations))
    paired = [last.same_problems(each) for each in earlier]
    if any(paired):
        both = list(zip(earlier, paired, strict=True))
        table.add_row("gain over it", *(_percent(last.gain_over(each)) if same else "" for each, same in both))
        table.add_row("  with other answers", *(_ends(last.gain_over_answers(each)) if same else "" for each, same in both))
    passes = [each.pass_at().set_index("k") for each in evaluations]
    for k in powers_of_two(max(each.n_answers for each in evaluations))[1:]:
        cells = [_percent(_of_row(rows.loc[k])) if k in rows.index else "" for rows in passes]
        table.add_row(f"Pass@{k}", *cells)
    per_problem = [each.per_problem() for each in evaluations]
    table.add_row("ended by themselves", *(f"{100 * rows['finished'].mean():.1f}" for rows in per_problem))
    if any(each.unchecked for each in evaluations):
        table.add_row("not checked", *(f"{100 * len(each.unchecked) / each.correct.size:.1f}" for each in evaluations))
    table.add_row("mean tokens", *(f"{rows['tokens'].mean():.0f}" for rows in per_problem))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    told = [BRACKETS] if any(len(each.problems) > 1 or each.n_answers > 1 for each in evaluations) else []
    told += [BOUNDS] if any(cell.endswith(MARK) for column in table.columns for cell in map(str, column.cells)) else []
    told += [f"Not checked, so counted as wrong, are {each.unchecked_text} of {each.label}." for each in earlier if each.unchecked]
    for each, same in zip(earlier, paired, strict=True):
        differs = last.sampled_otherwise(each, policies=False) if same else ""
        told += [f"The gain over {each.label} is not of the model alone: the new evaluation has {differs}."] if differs else []
    for line in told:
        console.print(line)


def show_vote(vote: DeepThinkingVote) -> None:
    """Prints the share of problems that the votes solve, in percent with intervals for other problems like these."""
    found, answers = vote.estimates(), vote.kept.shape[1]
    table = Table("majority vote, %", "", box=None, pad_edge=False)
    table.add_row(f"of all {answers} answers", _percent(found["all"]))
    table.add_row(f"of the {vote.n_kept} that think deepest in their first {vote.prefix} tokens", _percent(found["kept"]))
    table.add_row(f"of {vote.n_kept} at random", _percent(found["random"]))
    table.add_row("gain over random", _percent(found["gain"]))
    Console(highlight=False, soft_wrap=True).print(table)


def _of_row(row: Any) -> Estimate:
    """The estimate in a row of the table of Pass@k."""
    from layerlens.evaluate.scores import BoundEstimate, Estimate

    return (BoundEstimate if row["bound"] else Estimate)(row["mean"], row["low"], row["high"])


def _percent(estimate: Estimate) -> str:
    """A mean with its interval, in percent; bounds marked."""
    ends = _ends(estimate)
    return f"{100 * estimate.mean:.1f}  {ends}" if ends else f"{100 * estimate.mean:.1f}"


def _ends(estimate: Estimate) -> str:
    """An interval in percent, bounds marked; "" if there is none."""
    from layerlens.evaluate.scores import BoundEstimate

    if math.isnan(estimate.low):
        return ""
    return f"({100 * estimate.low:.1f}, {100 * estimate.high:.1f}){MARK if isinstance(estimate, BoundEstimate) else ''}"
