"""What commands work on, small and whole: models of every kind, prompt files of every reader, and a folder of every kind there is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.models.test_gguf import small_model, write_gguf
from tests.prompts.test_eval_logs import PACKED, ROW, inspect_sample, log
from tests.support.forked import start
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training_folders import write_training

MODELS = ("qwen3", "llama", "adapters", "model.gguf")
PROMPTS = ("prompts.txt", "prompts.jsonl", "prompts.parquet", "log.json", "log.eval", "samples_sums.jsonl", "details_sums.parquet")
TRAIN = {
    "dtype": "float32", "threads": 1, "problems": "arithmetic", "problems_limit": 8, "reward": "boxed", "internal_layer": 2,
    "internal_rollouts": 1, "internal_norm": "none", "per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 3,
    "max_steps": 2, "learning_rate": 1e-3, "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none", "seed": 0,
    "logging_steps": 1, "save_strategy": "steps", "save_steps": 1, "disable_tqdm": True, "monitor_every": 1, "monitor_problems": 2,
    "monitor_repeats": 1,
}  # fmt: skip
"""The settings of a training of two steps."""


def make_models(folder: Path) -> None:
    """Two models, adapters on the first, and a GGUF file, each in a folder `models` under its name of MODELS."""
    from peft import LoraConfig, get_peft_model

    for name in MODELS[:2]:
        tiny_model(name).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    (folder / "qwen3" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2], "temperature": 0.6, "top_k": 20}))
    lora = get_peft_model(tiny_model("qwen3"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    lora.save_pretrained(folder / "adapters")
    config = folder / "adapters" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(folder / "qwen3")}))
    write_gguf(folder / "model.gguf", small_model())


def make_prompts(folder: Path) -> None:
    """A file of two to four prompts for each name of PROMPTS, as the tools that write them do."""
    import pandas as pd

    folder.mkdir()
    (folder / "prompts.txt").write_text("w1 w2 w3\nw4\nw5 w6\n")
    (folder / "texts.txt").write_text("".join(" ".join(f"w{(7 * i * line + i) % 200}" for i in range(24)) + "\n" for line in (1, 2, 3)))
    records = [
        {"prompt": "w1 w2", "response": "w3 w4", "answer": "7"},
        {"messages": [{"role": "system", "content": "w9"}, {"role": "user", "content": "w4"}], "ground_truth": "5"},
        {
            "prompt": [{"role": "user", "content": "w8"}],
            "reward_model": {"ground_truth": "2"},
            "id": "z",
            "correct": True,
            "response": "w6",
        },
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    verl = {
        "prompt": [[{"role": "user", "content": f"w{i}"}] for i in range(3)],
        "reward_model": [{"ground_truth": f"{i}"} for i in range(3)],
    }
    pd.DataFrame(verl).to_parquet(folder / "prompts.parquet")
    (folder / "log.json").write_text(json.dumps(log(inspect_sample(1, "w5 w6"), inspect_sample(2, "w7", scores={"m": {"value": "C"}}))))
    shutil.copy(PACKED, folder / "log.eval")
    (folder / "samples_sums.jsonl").write_text("\n".join(json.dumps({**ROW, "doc_id": number}) for number in range(2)) + "\n")
    detail = {"doc": {"id": "7", "query": "w1", "choices": ["w2"], "gold_index": 0}, "metric": {"em": 1.0}}
    detail["model_response"] = {"text": ["w2 w3"], "input": "w1"}
    pd.DataFrame([detail, detail]).to_parquet(folder / "details_sums.parquet")


def commands(folder: Path) -> list[list[Any]]:
    """The commands that make the folders: runs, shards, evaluations, lenses, a training and a choice."""
    model, prompts = folder / "models" / "qwen3", folder / "prompts" / "prompts.txt"
    analyze = ["analyze", model, prompts, "--max-new-tokens", 6]
    evaluate = [
        "eval",
        model,
        "--tasks",
        folder / "prompts" / "prompts.parquet",
        "--reward",
        "boxed",
        "--answers",
        2,
        "--max-new-tokens",
        4,
    ]
    texts = folder / "prompts" / "texts.txt"
    fit = ["fit-lens", model, texts, "--steps", 2, "--rows", 8, "--max-new-tokens", 0, "--no-chat", "--held-out", 1]
    return [
        [*analyze, "--top-k", 2, "--out", folder / "rows"],
        [*analyze, "--norm", "final", "--keep", "means", "--out", folder / "means"],
        [*analyze, "--norm", "matched", "--tokens-per-sample", 2, "--out", folder / "drawn"],
        *([*analyze, "--shard", f"{number}/2", "--out", folder / "shards" / str(number)] for number in (1, 2)),
        *([*evaluate, "--seed", number, "--out", folder / "evaluations" / str(number)] for number in range(3)),
        [*fit, "--kind", "jacobian", "--out", folder / "lenses" / "jacobian"],
        [*fit, "--kind", "tuned", "--out", folder / "lenses" / "tuned"],
        ["train", "--config", folder / "train.yaml", "--output_dir", folder / "trained"],
    ]


def make_material(folder: Path) -> Path:
    """All of it in one folder, made by the commands themselves."""
    import yaml

    folder.mkdir(parents=True)
    (folder / "models").mkdir()
    make_models(folder / "models")
    make_prompts(folder / "prompts")
    (folder / "train.yaml").write_text(yaml.safe_dump({"model": str(folder / "models" / "qwen3"), **TRAIN}))
    for number, words in enumerate(commands(folder)):
        ended = start(words, folder, name=f"made-{number}").wait(300)
        assert ended.code == 0, (words, ended)
    write_training(folder / "training", layers=4, layer=2, internal=2, steps=8, every=2)
    chosen = start(["select", folder / "rows", "--json"], folder).wait(60)
    (folder / "choice.json").write_text(chosen.out)
    return folder
