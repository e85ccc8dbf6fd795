"""Processes killed at random moments while they sample, measure, save, evaluate and train, and what the finished work then is.

    python -m benchmarks.kills --log kills.log > benchmarks/kills.json

One, two or four processes run one command into one folder (a training: as one launch over gloo) and get SIGKILL: after a random number of
finished pieces and a moment more, while texts are sampled (generation), measured (readout), answered (evaluation) or trained on
(training); or the instant before or after a file is put in its place, and inside a training's checkpoint (save). After at most three such
attempts the same command finishes the work, which must then be that of a run that nobody disturbed, byte for byte: texts, samples and
means; answers; weights, log and monitor. No text may be sampled after it was saved, and nothing be written twice. Last, eight processes
share 400 samples, three of them are killed, and the other five must finish.

Every finished run is noted in the log, from which the same command goes on. Processes are forked from one that has its imports done.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.killed_work import Work, analysed, count, events, make_inputs, watch, works
from tests.support.forked import PAUSE, Child, import_all, start

PROCESSES = (1, 2, 4)
ATTEMPTS = 3
SECONDS = 900.0
MOMENT = 0.3
"""Seconds within which a kill comes once enough pieces are done."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="in all; each kind gets an equal share")
    parser.add_argument("--kinds", default="generation,readout,save,evaluation,training,eight")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, required=True, help="holds a line for every finished run, of before too")
    args = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", ACCELERATE_USE_CPU="true")
    import_all()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_inputs(folder)
        for kind in args.kinds.split(","):
            if kind == "eight":
                if not logged(args.log, kind):
                    note(args.log, eight_processes(folder, args.seed))
                continue
            kills_of(kind, works(folder)[kind], args.kills // 5, args.seed, folder, args.log)
    lines = logged(args.log)
    print(json.dumps(summary(lines), indent=2))
    sys.exit(1 if any(line["wrong"] for line in lines) else 0)


def kills_of(kind: str, turns: list[Work], kills: int, seed: int, folder: Path, log: Path) -> None:
    """Rounds of one kind until the log has so many kills: each with the next number of processes, and each three with the next work."""
    expected: dict[tuple[int, int], Any] = {}
    while sum(line["kills"] for line in logged(log, kind)) < kills:
        number = len(logged(log, kind))
        processes, turn = PROCESSES[number % 3], number // 3 % len(turns)
        work = turns[turn]
        alone = processes if work.launched else 1
        if (turn, alone) not in expected:
            wrong = finish(work, whole := folder / f"{kind}-{turn}-whole-{alone}", alone)
            assert not wrong, wrong
            expected[turn, alone] = work.result(whole)
        rng = random.Random(f"{seed} {kind} {number}")
        note(log, {"kind": kind, **one_round(work, processes, rng, folder / f"{kind}-{number}", expected[turn, alone])})


def one_round(work: Work, processes: int, rng: random.Random, out: Path, expected: Any) -> dict[str, Any]:
    """Attempts that are killed, one that ends, and what is wrong with its result."""
    began, killed, wrong = time.perf_counter(), 0, ""
    for attempt in range(ATTEMPTS):
        pieces = range(max(work.done(out), work.between[0]), work.between[1])
        if not pieces:
            break
        at = [(rng.randint(1, 12), rng.uniform(0, 0.1)) if work.at_saves else None for _ in range(processes)]
        children = begin(work, out, processes, at, f"attempt-{attempt}")
        if not work.at_saves:
            target = rng.choice(pieces)
            while work.done(out) < target and any(child.poll() is None for child in children):
                time.sleep(PAUSE)
            moment = rng.uniform(0, MOMENT)
            for child in children if work.launched else rng.sample(children, rng.randint(1, processes)):
                time.sleep(moment)
                moment = 0 if work.launched else rng.uniform(0, MOMENT)
                child.kill()
        elif work.launched:  # the others would wait for the one that is gone
            while all(child.poll() is None for child in children):
                time.sleep(PAUSE)
            if any(child.code for child in children):
                for child in children:
                    child.kill()
        every = [child.wait(SECONDS) for child in children]
        killed += sum(ended.code == -signal.SIGKILL for ended in every)
        for ended in every:
            if ended.code not in (0, -signal.SIGKILL) and not work.launched:
                wrong = wrong or f"a process beside the killed ones: code {ended.code}: {ended.err[-400:]}"
    if not (work.launched and (out / "trainer_state.json").exists()):  # a training that is saved to its end is not taken up again
        wrong = wrong or finish(work, out, processes if work.launched else 1)
    found = work.result(out)
    wrong = wrong or ("" if found == expected else f"another result: {_differing(expected, found)}")
    told = events(out)
    shutil.rmtree(out)
    return {"processes": processes, "kills": killed, "wrong": wrong, **told, "seconds": round(time.perf_counter() - began, 1)}


def begin(work: Work, out: Path, processes: int, saves: list[tuple[int, float] | None], name: str) -> list[Child]:
    """Starts the command in so many processes; each kills itself at its entry of `saves`, if there is one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = work.words(out)
    out.mkdir(exist_ok=True, parents=True)
    place = out.with_name(f"{out.name}-said")
    place.mkdir(exist_ok=True)

    def before(number: int) -> None:
        if work.launched and processes > 1:
            where = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in where.items()} | {"MASTER_ADDR": "127.0.0.1"})
        watch(out, saves[number])

    return [start(words, place, name=f"{name}-{number}", before=lambda number=number: before(number)) for number in range(processes)]


def finish(work: Work, out: Path, processes: int) -> str:
    """Lets the command end; what was wrong with that."""
    children = begin(work, out, processes, [None] * processes, "finish")
    ended = [child.wait(SECONDS) for child in children]
    # a gloo process can abort once all is saved (pytorch#190489)
    allowed = (0, -signal.SIGABRT) if work.launched and processes > 1 else (0,)
    return "; ".join(f"the last run: code {each.code}: {each.err[-600:]}" for each in ended if each.code not in allowed)


def eight_processes(folder: Path, seed: int) -> dict[str, Any]:
    """Eight processes fill one folder with 400 samples, three of them are killed at random, and nobody starts another."""
    rng, began = random.Random(seed), time.perf_counter()
    texts = [" ".join(f"w{rng.randrange(200)}" for _ in range(rng.randint(3, 9))) for _ in range(400)]
    (folder / "many.txt").write_text("\n".join(texts) + "\n")
    words = ["analyze", folder / "model", folder / "many.txt", "--max-new-tokens", 6, "--sampling-batch", 8, "--batch-tokens", 64]
    work = Work(lambda out: [*words, "--out", out], lambda out: count(out, "texts/0*.json", "samples/*.nc"), (0, 440), analysed)
    alone = finish(work, folder / "eight-whole", 1)
    out = folder / "eight"
    children = begin(work, out, 8, [None] * 8, "share")
    targets = sorted(rng.sample(range(5, 430), 3))
    killed = 0
    for target, child in zip(targets, rng.sample(children, 3), strict=True):
        while work.done(out) < target and any(each.poll() is None for each in children):
            time.sleep(PAUSE)
        killed += child.kill()
    ended = [child.wait(SECONDS) for child in children]
    wrong = alone or "; ".join(f"code {each.code}: {each.err[-300:]}" for each in ended if each.code not in (0, -signal.SIGKILL))
    found, expected = work.result(out), work.result(folder / "eight-whole")
    wrong = wrong or ("" if found == expected else f"another result: {_differing(expected, found)}")
    shares = {"samples": count(out, "samples/*.nc"), "killed_after_pieces": targets, **events(out)}
    return {"kind": "eight", "processes": 8, "kills": killed, "wrong": wrong, **shares, "seconds": round(time.perf_counter() - began, 1)}


def _differing(expected: Any, found: Any) -> str:
    names = sorted(expected.keys() | found.keys())
    return ", ".join(name for name in names if expected.get(name) != found.get(name))[:400]


def logged(log: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [line for line in lines if kind in (None, line["kind"])]


def note(log: Path, line: dict[str, Any]) -> None:
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), file=sys.stderr, flush=True)


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers by kind."""
    kinds: dict[str, Any] = {}
    for kind in dict.fromkeys(line["kind"] for line in lines):
        of_kind = [line for line in lines if line["kind"] == kind]
        by_processes = Counter[str]()
        for line in of_kind:
            by_processes[str(line["processes"])] += line["kills"]
        kinds[kind] = {
            "kills": sum(by_processes.values()),
            "kills_by_processes": dict(by_processes),
            "finished_runs": len(of_kind),
            "not_equal": [line for line in of_kind if line["wrong"]],
            **{name: sum(line.get(name, 0) for line in of_kind) for name in ("texts_sampled", "sampled_though_saved", "written_twice")},
        }
    command = "python -m benchmarks.kills --log kills.log"
    return {"command": command, "kills": sum(kind["kills"] for kind in kinds.values()), "kinds": kinds}


if __name__ == "__main__":
    main()
