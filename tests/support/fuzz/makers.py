"""What is broken, and the command that meets it: a function for each kind of case, which breaks a folder of `material` and gives a Case."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.fuzz import material
from tests.support.fuzz.damage import altered, break_bytes, break_folder, break_json
from tests.support.fuzz.words import commands, odd_words


@dataclass
class Case:
    """A command in a folder of its own.

    Attributes:
        about: what is broken, in words.
        writes: paths under which files may change.
        same_output: whether, if it ends well, it must say what it says of the unbroken folder.
        same_files: folders that, if it ends well, must hold the files of the unbroken ones, byte for byte.
    """

    verb: str
    words: list[str]
    about: str
    writes: tuple[str, ...] = ("out",)
    same_output: bool = False
    same_files: tuple[str, ...] = ()


def _model(folder: Path, rng: random.Random) -> Case:
    """A model of which a file is broken."""
    name = rng.choices(material.MODELS, (6, 2, 2, 3))[0]
    place = folder / "models" / name
    if place.is_file():
        about = break_bytes(place, rng)
    elif rng.random() < 0.6:
        file = rng.choice(sorted([*place.glob("*.json"), *place.glob("*.jinja")]))
        about = break_json(file, rng) if file.suffix == ".json" else break_bytes(file, rng)
    else:
        about = break_folder(place, rng)
    verb = rng.choice(("check", "analyze", "analyze", "eval", "fit-lens", "train", "bench"))
    words = commands(folder)[verb]
    if verb == "train":
        words += ["--model", f"models/{name}"]
    elif verb == "bench":
        words = [f"models/{name}", "--rows", "2", "--repeats", "1", "--no-memory"]
    else:
        words[0] = f"models/{name}"
    return Case(verb, words, f"{name}: {about}")


def _prompts(folder: Path, rng: random.Random) -> Case:
    """A prompt file of any reader, broken."""
    name = rng.choice(material.PROMPTS)
    file = folder / "prompts" / name
    lines = file.suffix in (".json", ".jsonl")
    about = break_json(file, rng) if lines and rng.random() < 0.75 else break_bytes(file, rng)
    verb = rng.choice(("analyze", "analyze", "eval", "fit-lens", "train"))
    words = commands(folder)[verb]
    match verb:
        case "eval":
            words[words.index("--tasks") + 1] = f"prompts/{name}"
            words += ["--reward", rng.choice(("boxed", "math"))]
        case "train":
            words += ["--problems", f"prompts/{name}"]
        case _:
            words[1] = f"prompts/{name}"
    return Case(verb, words, about)


def _run(folder: Path, rng: random.Random) -> Case:
    """A run folder of which a file is broken, read by each verb that reads one, or made again by the command that made it."""
    name = rng.choice(("rows", "rows", "means", "drawn"))
    about = break_folder(folder / name, rng)
    quiet = not any(word in about for word in ("run.json", "gone", "copy of"))
    choices: list[Case] = [
        Case("select", [name, "--json"], about, same_output=quiet),
        Case("compare", [name, "rows", "--json"], about, same_output=quiet),
        Case("plot", [name, "--out", "out/figures"], about),
        Case("report", [name, "--out", "out/report.html"], about),
        Case("check", [name], about),
        Case("watch", [name, "--no-browser"], about),
        Case("analyze", ["models/qwen3", name, "--metrics", "entropy", "--out", "out/again"], about),
        Case("merge", ["out/merged", name], about),
        Case("contribution", [*commands(folder)["contribution"], "--run", name], about),
    ]
    made = {each[-1].name: each for each in material.commands(folder)}[name]
    places = tuple(f"{name}/{part}" for part in (("samples", "means") if name != "means" else ("means",)))
    again = Case("analyze", list(map(str, made[1:])), about, writes=(name,), same_files=places)
    return again if rng.random() < 0.25 else rng.choice(choices)


def _shards(folder: Path, rng: random.Random) -> Case:
    """Shards of which one is broken."""
    about = break_folder(folder / "shards" / rng.choice("12"), rng)
    return Case("merge", commands(folder)["merge"], about)


def _evaluation(folder: Path, rng: random.Random) -> Case:
    """An evaluation that is broken, gone on with, compared with or read for contributions."""
    number = rng.randrange(3)
    about = break_folder(folder / "evaluations" / str(number) / "prompts", rng)
    made = next(each for each in material.commands(folder) if str(each[-1]).endswith(f"evaluations/{number}"))
    words = list(map(str, made[1:]))
    other = [*words[:-1], "out/evaluation", "--compare", f"evaluations/{number}"]
    cases = [
        Case("eval", words, about, writes=(f"evaluations/{number}",)),
        Case("eval", other, about),
        Case("contribution", commands(folder)["contribution"], about),
    ]
    return rng.choice(cases)


def _training(folder: Path, rng: random.Random) -> Case:
    """A training's folder that is broken: drawn, reported, watched, or gone on with."""
    name = rng.choice(("training", "trained"))
    about = break_folder(folder / name, rng)
    resumed = ["--config", "train.yaml", "--output_dir", "trained", "--max_steps", "3", "--resume", "true"]
    cases = [
        Case("plot", [name, "--out", "out/figures"], about),
        Case("report", ["--training", name, "--out", "out/report.html"], about),
        Case("watch", [name, "--no-browser"], about),
        Case("train", resumed, about, writes=("trained",)),
        Case("analyze", ["trained", *commands(folder)["analyze"][1:]], about),
    ]
    return rng.choice(cases)


def _lens(folder: Path, rng: random.Random) -> Case:
    """A fitted lens of which a file is broken, read through or written over."""
    kind = rng.choice(("jacobian", "tuned"))
    place = folder / "lenses" / kind
    about = break_bytes(place, rng) if place.is_file() else break_folder(place, rng)
    lens = f"{kind}:lenses/{kind}"
    made = {str(each[-1]).rpartition("/")[2]: each for each in material.commands(folder)}[kind]
    words = commands(folder)
    cases = [
        Case("analyze", [*words["analyze"], "--norm", "final", "--lens", lens], about),
        Case("eval", [*words["eval"], "--layer", "2", "--norm", "final", "--lens", lens], about),
        Case("train", [*words["train"], "--internal_norm", "final", "--internal_lens", lens], about),
        Case("fit-lens", list(map(str, made[1:])), about, writes=("lenses",)),
    ]
    return rng.choice(cases)


def _config(folder: Path, rng: random.Random) -> Case:
    """A training's configuration with fields dropped or of other types, or a file that is no YAML; or a broken choice.json."""
    import yaml

    file, choice = folder / "train.yaml", folder / "choice.json"
    words = ["--config", "train.yaml", "--max_steps", "1", "--output_dir", "out/trained"]
    match rng.randrange(6):
        case 0:
            about = break_json(choice, rng) if rng.random() < 0.7 else break_bytes(choice, rng)
            words += ["--internal_layer", "choice.json"]
        case 1:
            about = break_bytes(file, rng)
        case 2:
            about = "text that is no YAML of fields"
            file.write_text(
                rng.choice(("[1, 2]", "a: !!python/object:os.system x", "a: &a [*a]", "? [1]\n: 2", "model: {x: [", "1: 2", "\t"))
            )
        case _:
            found = yaml.safe_load(file.read_text())
            for _ in range(rng.randint(1, 3)):
                found = altered(found, rng)
            about = "fields altered"
            file.write_text(json.dumps(found) if rng.random() < 0.5 else yaml.safe_dump(found))
    return Case("train", words, about)


def _words(folder: Path, rng: random.Random) -> Case:
    """A command line with odd words."""
    known = commands(folder)
    verb = rng.choice(list(known))
    words, about = odd_words(verb, known[verb], rng)
    return Case(verb, words, about)


def _places(folder: Path, rng: random.Random) -> Case:
    """A command that is to write where something else is, or read something else than it expects."""
    known = commands(folder)
    places = ("models/qwen3", "models/model.gguf", "prompts/prompts.txt", "rows", "means", "shards/1", "evaluations/0",
              "evaluations/0/prompts", "trained", "training", "lenses/tuned", "train.yaml", "rows/run.json", ".")  # fmt: skip
    verb = rng.choice([verb for verb in known if verb not in ("bench", "demo")])
    words = known[verb]
    place = rng.choice(places)
    out = next((option for option in ("--out", "--output_dir") if option in words), None)
    if out is not None and rng.random() < 0.5:
        words[words.index(out) + 1] = place
        return Case(verb, words, f"{out} {place}", writes=("out", "trained") if place == "trained" else ("out",))
    reads = [number for number, word in enumerate(words) if (folder / word).exists() and not word.startswith("out")]
    if not reads:
        return Case(verb, words, "as it should be")
    words[number := rng.choice(reads)] = place
    return Case(verb, words, f"word {number} is {place}")


MAKERS: dict[Callable[[Path, random.Random], Case], float] = {
    _model: 20, _prompts: 14, _run: 20, _shards: 4, _evaluation: 8, _training: 8, _lens: 6, _config: 10, _words: 26, _places: 8,
}  # fmt: skip
"""What makes a case, with how often each is taken."""
