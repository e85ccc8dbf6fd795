"""Runs the study: `python -m benchmarks.study --out study`. The same command goes on where it was stopped.

Each question's result is written to `<out>/results/<letter>.json` when its steps are done. `--commit` copies results and figures into the
repository, and `python -m benchmarks.study.page` makes docs/study.md from what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.study.findings import plain
from benchmarks.study.kept import Keeper, made_with
from benchmarks.study.page import QUESTIONS
from benchmarks.study.settings import FIGURES, KEPT, RESULTS, ROOT, SIZES, held_out
from benchmarks.study.steps import run_chains

from layerlens.errors import LayerLensError
from layerlens.storage.files import write_text


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of models, evaluations, runs and results")
    parser.add_argument(
        "--size", choices=SIZES, default="small", help="smoke: does it run; small: two cores, 10 to 20 hours; full: for a GPU"
    )
    parser.add_argument("--questions", default=",".join(QUESTIONS), help=f"some of {','.join(QUESTIONS)}")
    parser.add_argument("--seeds", type=int, help="of every training, in place of the size's; twice as many in (d)")
    parser.add_argument("--jobs", type=int, default=2, help="commands at a time, one thread each")
    parser.add_argument("--cuda", action="store_true", help="train and evaluate on this machine's CUDA card")
    parser.add_argument(
        "--kept",
        type=Path,
        help="leave out the trainings and evaluations of which this file keeps what results read, and add to it what others leave:\n"
        f"{KEPT.relative_to(ROOT)} goes on with the study of the repository",
    )
    parser.add_argument("--commit", action="store_true", help="copy results and figures into the repository; not of a smoke run")
    given = parser.parse_args(words)
    size, asked, out = SIZES[given.size], given.questions.split(","), given.out.resolve()
    if given.seeds is not None:
        if given.seeds < 2:
            parser.error(f"--seeds {given.seeds}: an interval over seeds needs 2 or more")
        size = replace(size, seeds=given.seeds, many_seeds=2 * given.seeds)
    if unknown := set(asked) - set(QUESTIONS):
        parser.error(f"unknown question {', '.join(sorted(unknown))}: choose from {', '.join(QUESTIONS)}")
    if given.commit and given.size == "smoke":
        parser.error("a smoke run says that the study runs, and nothing of the models: its results are not committed")
    try:
        keeper = None if given.kept is None else Keeper(given.kept)
        held_out(size).run(out)
        for letter in asked:
            question = QUESTIONS[letter]
            if letter in "gh" and not size.pretraining:
                print(f"({letter}) is left out at size {given.size}", file=sys.stderr)
                continue
            chains = question.chains(size)
            if keeper is not None:
                chains = keeper.restore(chains, out)
            run_chains(chains, out, given.jobs, lambda step: None if keeper is None else keeper.add(step, out), given.cuda)
            about = {"question": question.TITLE, "size": given.size, "how": question.method(size)}
            found = {**about, "torch": made_with(question.chains(size), out), **plain(question.result(out, size))}
            write_text(out / "results" / f"{letter}.json", json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
            if given.commit:
                write_text(RESULTS / f"{letter}.json", (out / "results" / f"{letter}.json").read_text())
                FIGURES.mkdir(parents=True, exist_ok=True)
                for name in found["figures"]:
                    shutil.copy(out / "figures" / name, FIGURES / name)
            print(f"({letter}) {out / 'results' / f'{letter}.json'}")
    except LayerLensError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
