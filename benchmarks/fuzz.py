"""Broken models, prompts, runs, evaluations, trainings, lenses and configurations, and command lines that nobody means.

    python -m benchmarks.fuzz --cases 500 > benchmarks/fuzz.json

Each case is made from its seed (`tests/support/fuzz`) and run by the command line itself, in a forked process. It must end with exit
code 0 and a right answer, or with exit code 2 and one line: no traceback, no hang, no file of the user changed. Whatever does not is a
finding, told on stderr as it comes; `--seed 1234 --cases 1` runs one case again. The tests run a few cases of each kind.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.forked import import_all
from tests.support.fuzz.cases import Found, run_case
from tests.support.fuzz.material import make_material


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case; the others follow")
    parser.add_argument("--material", type=Path, help="keep what the cases break here, and take it from here if it is there")
    parser.add_argument("--show", action="store_true", help="tell how every case ended")
    args = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import_all()
    start = time.perf_counter()
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as temporary:
        whole = args.material or Path(temporary) / "whole"
        if not (whole / "choice.json").exists():
            shutil.rmtree(whole, ignore_errors=True)
            make_material(whole)
        for seed in range(args.seed, args.seed + args.cases):
            each = run_case(seed, whole, Path(temporary) / f"case-{seed}")
            found.append(each)
            if each.wrong or args.show:
                print(json.dumps({"wrong": each.wrong, **_described(each)}), file=sys.stderr, flush=True)
                if each.wrong and args.cases < 10:
                    print(each.ended.err, file=sys.stderr)
    wrong = [each for each in found if each.wrong]
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.fuzz --cases {args.cases} --seed {args.seed}",
        "cases": len(found),
        "by_verb": dict(sorted(Counter(each.case.verb for each in found).items())),
        "ended": {str(code): count for code, count in sorted(Counter(each.ended.code for each in found).items())},
        "findings": [{"wrong": each.wrong, **_described(each)} for each in wrong],
        "seconds": round(time.perf_counter() - start),
    }
    print(json.dumps(result, indent=2))
    sys.exit(1 if wrong else 0)


def _described(each: Found) -> dict[str, Any]:
    last = (each.ended.err.strip().splitlines() or [""])[-1]
    command = " ".join([each.case.verb, *each.case.words])
    return {"seed": each.seed, "command": command[:300], "about": each.case.about[:200], "code": each.ended.code, "said": last[:300]}


if __name__ == "__main__":
    main()
