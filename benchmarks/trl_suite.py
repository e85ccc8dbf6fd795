"""Is BuPOTrainer without an internal phase a drop-in for GRPOTrainer? TRL's own tests of GRPOTrainer, run with each, test by test.

    python -m benchmarks.trl_suite PATH_OF_TRL_TESTS --out benchmarks/trl_suite.json

PATH_OF_TRL_TESTS is the folder `tests` of a checkout of TRL, best of the release that is installed. Nothing is downloaded: models and
data have stand-ins (`benchmarks.trl_stand_ins`), and tests of what has none are left out, as are those that pytest skips. Besides the
outcome of each test, the weights after each training are compared, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from layerlens import __version__

ROOT = Path(__file__).parents[1]
TRAINERS = ("GRPOTrainer", "BuPOTrainer")


@dataclass(frozen=True)
class Outcome:
    """How one test ended: passed, failed or skipped, in which words, and what each training in it ended with."""

    status: str
    message: str
    weights: tuple[str, ...]
    losses: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", type=Path, help="the folder `tests` of TRL")
    parser.add_argument("--out", type=Path, help="file for the result, else stdout")
    parser.add_argument("--file", default="test_grpo_trainer.py", help="which file of the folder")
    parser.add_argument("-k", default="", dest="chosen", help="pytest's choice of tests")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = prepared(folder)
        found = [run_suite(each, args.tests / args.file, args.chosen, folder, environment) for each in TRAINERS]
    text = json.dumps(compared(*found) | {"command": f"python -m benchmarks.trl_suite PATH_OF_TRL_TESTS{choice(args.chosen)}"}, indent=2)
    if args.out:
        args.out.write_text(text + "\n")
    else:
        print(text)


def choice(chosen: str) -> str:
    return f" -k {chosen!r}" if chosen else ""


def prepared(folder: Path) -> dict[str, str]:
    """The environment of a run without network, with the stand-ins in the hub's cache."""
    caches = {"HF_HOME": folder / "home", "HF_HUB_CACHE": folder / "hub", "HF_MODULES_CACHE": folder / "modules"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    keeps_memory = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}  # which halves the time of a large vocabulary
    environment = os.environ | {name: str(place) for name, place in caches.items()} | keeps_memory
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    code = "import sys; from pathlib import Path; from benchmarks.trl_stand_ins import make_stand_ins; make_stand_ins(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder / "hub")], env=environment, check=True)
    return environment


def run_suite(trainer: str, tests: Path, chosen: str, folder: Path, environment: dict[str, str]) -> dict[str, Outcome]:
    """How each test ends with this trainer, by the test's name."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow\n")
    report = folder / f"{trainer}.xml"
    options = ["-q", "--tb=short", "-p", "benchmarks.trl_suite_plugin", "-p", "no:cacheprovider", "-c", str(folder / "pytest.ini")]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", "-k", chosen, str(tests.resolve())]
    subprocess.run(command, env=environment | {"TRAINER_UNDER_TEST": trainer}, cwd=folder, stdout=sys.stderr, check=False)
    if not report.exists():
        raise SystemExit(f"pytest made no report of {trainer}: is {tests} TRL's file?")
    return dict(outcome(case) for case in ElementTree.parse(report).iter("testcase"))


def outcome(case: ElementTree.Element) -> tuple[str, Outcome]:
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    ended = next((child for child in case if child.tag in kinds), None)
    message = "" if ended is None else ended.get("message", "").strip()
    properties = [(each.get("name"), each.get("value", "")) for each in case.iter("property")]
    return f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}", Outcome(
        status="passed" if ended is None else kinds[ended.tag],
        message=message.splitlines()[0][:300] if message else "",
        weights=tuple(value for name, value in properties if name == "weights"),
        losses=tuple(float(value) for name, value in properties if name == "train_loss"),
    )


def compared(grpo: dict[str, Outcome], bupo: dict[str, Outcome]) -> dict[str, Any]:
    """The result: where the two trainers agree and where they do not."""
    pairs = {name: (grpo[name], bupo[name]) for name in grpo if name in bupo}
    left_out = {name: a.message for name, (a, b) in pairs.items() if a.status == b.status == "skipped"}
    trained = {name: (a, b) for name, (a, b) in pairs.items() if a.status == b.status == "passed" and a.weights}
    return {
        "versions": {"layerlens": __version__} | {name: version(name) for name in ("trl", "transformers", "torch", "peft")},
        "tests": len(pairs) - len(left_out),
        "passed": {name: sum(each.status == "passed" for each in run.values()) for name, run in zip(TRAINERS, (grpo, bupo), strict=True)},
        "differing": {
            name: {each: f"{run.status} {run.message}".strip() for each, run in zip(TRAINERS, pair, strict=True)}
            for name, pair in pairs.items()
            if pair[0].status != pair[1].status
        },
        "only_collected_with_one": sorted(grpo.keys() ^ bupo.keys()),
        "failed_with_both": {name: a.message for name, (a, b) in pairs.items() if a.status == b.status == "failed"},
        "tests_that_train": len(trained),
        "same_weights_bit_for_bit": sum(a.weights == b.weights for a, b in trained.values()),
        "other_weights": {
            name: {"losses": dict(zip(TRAINERS, (a.losses, b.losses), strict=True))}
            for name, (a, b) in trained.items()
            if a.weights != b.weights
        },
        "left_out": dict(sorted(Counter(left_out.values()).items())),
        "left_out_tests": sorted(left_out),
    }


if __name__ == "__main__":
    main()
