"""Command lines: for each verb one that works and is quick, and values that nobody means for its options."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

LIKE_NUMBERS = (
    "-1",
    "0",
    "1",
    "2",
    "3",
    "1.5",
    "-0.5",
    "1e400",
    "1e-320",
    "1e308",
    "nan",
    "-inf",
    "1e3",
    "0x10",
    "²",
    "9" * 30,
    "-" + "9" * 30,
    "1_0",
)
LIKE_TEXT = (
    "", " ", "x", "all", "none", "auto", "none,all", ",", "1,,2", "1-", "-", "--", "é", "\udcff", "😀", "%s", "{0}", "[]", "{}", "null",
    "true", "a" * 5000, ".", "..", "/dev/null", "no/such/place", "x:y", ":", "=", "x=", "\n", "a\nb", "~nobody/x", "*", "tiny-qwen3",
)  # fmt: skip
FOR_OPTION = {
    "--device": ("cuda", "cuda:99", "meta", "cpu:7", "xla", "mps", "cpu,cpu", "cpu"),
    "--device-map": ("auto", "balanced", "nowhere", "cpu", "disk"),
    "--quantize": ("bnb-4bit", "bnb-8bit", "torchao-int8", "int4", "gptq"),
    "--dtype": ("int8", "float8", "float64", "bfloat16", "float16", "auto", "torch.float32"),
    "--layers": ("1-", "0", "5-2", "1,1,1", "1-9999", "-3", "4", "1-2,4"),
    "--layer": (
        "mix:",
        "mix:1=0",
        "mix:1=nan",
        "mix:1,1",
        "contrast:2",
        "contrast:4,1",
        "contrast:1,1",
        "mix:1=-1,2=1",
        "99",
        "mix:2=1e400",
    ),
    "--sites": ("resid_post,resid_post", "all,x", "resid_post", "ffn_out,attn_in", "embedding"),
    "--metrics": ("entropy,entropy", "all", "top_ids", "entropy,similarity", "cka", "js_to_final", "kl_from_layer"),
    "--lens": ("jacobian:", "tuned:.", "jacobian:x", "logit", "tuned:models/qwen3", "jacobian:lenses/tuned", "tuned:lenses/jacobian"),
    "--shard": ("0/2", "3/2", "1/1", "2/2", "a/b", "1/0", "1/2/3", "auto"),
    "--kind": ("all", "sites,sites", "heatmap", "kl,nothing", "similarity", "family", "difference", "scale-shape", "settling-text"),
    "--sample": ("0", "1", "99", "-1", "²", "p0", "00"),
    "--format": ("png", "svg", "pdf", "exe", "PNG", "jpg"),
    "--tasks": ("arithmetic:0", "arithmetic:x", "arithmetic:-3", "math500", "aime24,aime24", "arithmetic:1,arithmetic:1", "arithmetic:1"),
    "--reward": ("math", "boxed", "arithmetic", "nowhere:f", "json:dumps", "json:", ":f", "os.path:join", "recorded"),
    "--backend": ("torch", "native", "triton", "torch-mm", "native-float32", "native-dot", "fast"),
    "--tokens-per-sample": ("auto", "1", "2", "0", "-3", "1.5"),
    "--norm": ("final", "matched", "none", "layer"),
    "--config": ("tiny-qwen3-cpu", "qwen3-4b", "choice.json", "models/model.gguf", "models"),
    "--compare": ("evaluations/1", "rows", "models", "evaluations/2/prompts"),
    "--run": ("rows", "means", "evaluations/0", "models"),
    "--training": ("training", "rows", "trained", "models"),
}
"""Values that an option might have been given in earnest, right or wrong."""
SLOW_VALUES = {"--samples": ("1.5",), "--every": (), "--repeats": ("9" * 30,), "--threads": (), "--steps": ()}
"""Values that would be honoured at length, by option; empty leaves the option to its numbers alone."""


def commands(folder: Path) -> dict[str, list[str]]:
    """For each verb the words of a command that works in a folder of `material`."""
    model, prompts = "models/qwen3", "prompts/prompts.txt"
    return {
        "analyze": [model, prompts, "--max-new-tokens", "3", "--metrics", "entropy", "--out", "out/run"],
        "select": ["rows", "--json"],
        "compare": ["rows", "means", "--json"],
        "plot": ["rows", "--kind", "sites,flow", "--out", "out/figures"],
        "report": ["rows", "--training", "training", "--out", "out/report.html"],
        "watch": ["rows", "training", "--no-browser"],
        "merge": ["out/merged", "shards/1", "shards/2"],
        "eval": [model, "--tasks", "arithmetic:2", "--answers", "2", "--max-new-tokens", "3", "--out", "out/evaluation"],
        "contribution": [f"{what}=evaluations/{place}" for what, place in (("base", 0), ("all", 1), ("2", 2))]
        + ["--out", "out/contribution"],
        "bench": ["--rows", "2", "--d-model", "4", "--vocabulary", "8", "--repeats", "1", "--threads", "1", "--no-memory"],
        "fit-lens": [model, "prompts/texts.txt", "--steps", "2", "--rows", "8", "--max-new-tokens", "0", "--no-chat", "--out", "out/lens"],
        "check": [model],
        "train": ["--config", str(folder / "train.yaml"), "--max_steps", "1", "--output_dir", "out/trained"],
        "demo": ["--samples", "0", "--out", "out/demo"],  # which is refused: the demo takes minutes
    }


def odd_words(verb: str, words: list[str], rng: random.Random) -> tuple[list[str], str]:
    """The command with one to three of its words odd: an option more or changed, an argument changed, one left out, one doubled."""
    words = words.copy()
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        what = 9 if verb == "demo" else rng.randrange(10)
        if what == 0 and words:
            done.append(f"without {words.pop(rng.randrange(len(words)))!r}")
        elif what == 1 and words:
            place = rng.randrange(len(words))
            words[place] = rng.choice((*LIKE_NUMBERS, *LIKE_TEXT, "rows", "means", "models", "evaluations/0", "trained", "lenses/jacobian"))
            done.append(f"word {place}: {words[place][:40]!r}")
        elif verb == "train":
            words += (pair := _odd_field(rng))
            done.append(" ".join(pair)[:60])
        else:
            option, flag, count = rng.choice(list(_options(verb)))
            given = [] if flag else [_odd_value(option, rng) for _ in range(count)]
            words += [option, *given]
            done.append(" ".join([option, *given])[:60])
    return words, "; ".join(done)


def _odd_value(option: str, rng: random.Random) -> str:
    if option in SLOW_VALUES:
        return rng.choice((*SLOW_VALUES[option], "-1", "0", "x", "9" * 30))
    if option in FOR_OPTION and rng.random() < 0.7:
        return rng.choice(FOR_OPTION[option])
    return rng.choice(LIKE_NUMBERS if rng.random() < 0.5 else LIKE_TEXT)


def _options(verb: str) -> Iterator[tuple[str, bool, int]]:
    """Each option of a verb, whether it is a flag, and how many values it takes."""
    from layerlens.cli.app import app

    listed: Any = typer.main.get_command(app)
    for each in listed.commands[verb].params:
        if getattr(each, "is_flag", None) is None or each.opts[0] == "--trust-remote-code":
            continue
        for name in (*each.opts, *each.secondary_opts):
            yield name, bool(each.is_flag), each.nargs


def _odd_field(rng: random.Random) -> list[str]:
    """A field of a training's configuration with a value of another kind."""
    from layerlens.train.config import BuPOConfig
    from layerlens.train.fields import BuPOFields, ScriptArguments

    ours = [each.name for half in (ScriptArguments, BuPOFields) for each in fields(half) if each.init]
    every = [each.name for each in fields(BuPOConfig) if each.init and each.name not in NOT_FUZZED]
    name = rng.choice(ours if rng.random() < 0.5 else every)
    number = rng.random() < 0.5
    return [f"--{name}", rng.choice(LIKE_NUMBERS if number else LIKE_TEXT)]


NOT_FUZZED = {"output_dir", "push_to_hub", "hub_token", "trackio_space_id", "deepspeed", "fsdp", "fsdp_config", "local_rank", "ddp_backend"}
"""Fields that would reach for a network or other processes."""
