"""Tiny random models, a tokenizer and a data set under the names that TRL's tests load from the hub.

The models lie in a hub cache, so that `from_pretrained` finds them by name where there is no network.
"""

from __future__ import annotations

import json
import re
from codecs import decode
from collections.abc import Callable
from contextlib import redirect_stdout
from hashlib import sha1
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset, DatasetDict
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

OWNER = "trl-internal-testing"

TOKENS = {
    293: " b", 314: " {", 330: ' "', 397: ">\n", 411: "out", 450: "dec", 497: '",', 522: "</", 606: "name", 788: '":', 894: " any",
    927: "sh", 944: "'t", 1318: "text", 1414: " know", 1513: " don", 2765: " won", 4913: '{"', 5212: ' {"', 5392: " tool", 6023: "hi",
    6659: "call", 7692: "async", 9520: "step", 11248: "}}\n", 13477: "rement", 14172: "tool", 16252: " increment", 16370: "arguments",
    17453: "Done", 22785: "_tool", 35744: "increment", 64648: "multiply", 93054: "_multiply", 95642: '"}}\n',
}  # fmt: skip
"""The tokens of Qwen2.5's vocabulary, by id, that tests let a model say. Single bytes have GPT-2's ids, 0 to 255."""

SPECIAL = {
    0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>", 14: "<tool_call>", 15: "</tool_call>", 22: "<tool_response>",
    23: "</tool_response>", 24: "<think>", 25: "</think>", 26: "<|finetune_right_pad_id|>",
}  # fmt: skip
"""Special tokens, by the distance of their id from that of the first."""

FIRST_SPECIAL = {"whole": 151643, "small": 16000}
"""The id of the first special token in Qwen2.5's vocabulary, and in one that takes a tenth of the time."""

SIZES: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "tiny-Qwen2ForCausalLM-2.5": ("Qwen2ForCausalLM", "qwen2_5", {}),
    "tiny-Qwen2ForSequenceClassification-2.5": ("Qwen2ForSequenceClassification", "qwen2_5", {"num_labels": 1}),
    "tiny-Qwen3ForCausalLM": ("Qwen3ForCausalLM", "qwen3", {"head_dim": 4}),
    "tiny-Qwen3ForSequenceClassification": ("Qwen3ForSequenceClassification", "qwen3", {"head_dim": 4, "num_labels": 1}),
    "tiny-Qwen3MoeForCausalLM": ("Qwen3MoeForCausalLM", "qwen3", {"head_dim": 4} | EXPERTS),
    "tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", "llama3_2", {"num_labels": 1}),
    "tiny-Gemma2ForCausalLM": ("Gemma2ForCausalLM", "gemma", {"head_dim": 4}),
    "tiny-Cohere2ForCausalLM": ("Cohere2ForCausalLM", "cohere2", {}),
    "tiny-GptOssForCausalLM": (
        "GptOssForCausalLM", "gptoss",
        {"head_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "tiny-Glm4MoeForCausalLM": (
        "Glm4MoeForCausalLM", "glm4moe",
        {"head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
    ),
    "tiny-NemotronHForCausalLM-nano": (
        "NemotronHForCausalLM", "nemotron_3_nano",
        {
            "layers_block_type": ["mamba", "attention", "moe"], "head_dim": 4, "mamba_num_heads": 4, "mamba_head_dim": 4,
            "ssm_state_size": 8, "n_groups": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
        },
    ),
}  # fmt: skip
"""The model's class, its chat template among TRL's, and the sizes that its configuration has besides `SIZES`."""

WORDS = (4, 2, 3, 1, 4, 3, 1, 4, 3, 3, 2, 6, 6, 6, 3, 5, 5, 5, 4)
"""How many words of each line of Python's `this` the prompts of TRL's data set are."""


def prompts() -> list[str]:
    """The beginnings of the lines of `this`, which prints them when it is imported."""
    with redirect_stdout(StringIO()):
        import this
    lines = decode(this.s, "rot13").splitlines()[2:]
    return [" ".join(line.split()[:count]) for line, count in zip(lines, WORDS, strict=True)]


PROMPTS = prompts()
TOOL = (
    '{"type": "function", "function": {"name": "multiply_tool", "description": "Multiplies two integers.", "parameters": '
    '{"type": "object", "properties": {"a": {"type": "integer", "description": "The first integer."}, "required": ["a", "b"]}, '
    '"return": {"type": "integer", "description": "The product"}}}}\n{"error": "unexpected keyword argument not found"}'
)
"""What a prompt with a tool, and the answer to a wrong call, look like."""

TRAINED = 17
"""So many of the prompts are the train split, the others the test split."""


def stand_in_tokenizer(template: str, first: int) -> PreTrainedTokenizerFast:
    """Bytes, pieces of what prompts hold, `TOKENS`, and words of several lengths, so that rewards differ; special tokens from `first`."""
    chat_template = files("trl").joinpath(f"chat_templates/{template}.jinja").read_text()
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    printable = sorted(each for each in alphabet if ord(each) < 256)
    words = [*printable, *sorted(set(alphabet) - set(printable))]
    named = {i: as_bytes.pre_tokenize_str(text)[0][0] for i, text in TOKENS.items() if i < first}
    merges = learned_merges([chat_template, TOOL, *PROMPTS], as_bytes)
    pieces = iter([each for each in ("".join(pair) for pair in merges) if each not in named.values()])
    words += [named.get(i) or next(pieces, f"w{i}" * (1 + i % 3)) for i in range(len(words), first)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = as_bytes, decoders.ByteLevel()
    special = [SPECIAL.get(i, f"<|extra_{i}|>") for i in range(max(SPECIAL) + 1)]
    tokenizer.add_tokens([AddedToken(name, special=name.startswith("<|"), normalized=False) for name in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = chat_template
    return fast


def learned_merges(texts: list[str], pre_tokenizer: Any) -> list[tuple[str, str]]:
    """Merges that make these texts short, whole lines one token: TRL scores the tokens of prompts too where there is no GPU."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    parts = [part for text in texts for part in re.split("|".join(map(re.escape, SPECIAL.values())), text)]
    tokenizer.train_from_iterator(parts, trainers.BpeTrainer(vocab_size=6000, min_frequency=1, show_progress=False))
    pairs = {"".join(pair): tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]}
    return list(pairs.values())


def stand_in_model(class_name: str, sizes: dict[str, Any], first: int) -> PreTrainedModel:
    """A random model for the tokenizer whose special tokens begin at the id `first`."""
    set_seed(0)
    model_class = getattr(transformers, class_name)
    tokens = {"vocab_size": first + max(SPECIAL) + 1, "bos_token_id": first, "eos_token_id": first + 2, "pad_token_id": first}
    model: PreTrainedModel = model_class(model_class.config_class(**SIZES | tokens | sizes))
    return model


def make_stand_ins(hub: Path) -> None:
    """Writes every model of `MODELS`, and one with code of its own, into the hub cache `hub`, with each vocabulary."""
    for vocabulary, first in FIRST_SPECIAL.items():
        for name, (class_name, template, sizes) in MODELS.items():
            stand_in_model(class_name, sizes, first).save_pretrained(snapshot(hub, name, vocabulary))
            stand_in_tokenizer(template, first).save_pretrained(snapshot(hub, name, vocabulary))
        make_remote_model(snapshot(hub, "tiny-RemoteForCausalLM", vocabulary), first)
    choose_vocabulary(hub, "small")


def make_remote_model(folder: Path, first: int) -> None:
    """A Qwen2 whose classes are in the folder, so that it loads with `trust_remote_code` alone."""
    model = stand_in_model("Qwen2ForCausalLM", {}, first)
    model.config.auto_map = {"AutoConfig": "remote.RemoteConfig", "AutoModelForCausalLM": "remote.RemoteForCausalLM"}
    model.save_pretrained(folder)
    stand_in_tokenizer("qwen2_5", first).save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"qwen2"', '"remote"').replace("Qwen2ForCausalLM", "RemoteForCausalLM"))
    (folder / "remote.py").write_text(
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n\n\n"
        'class RemoteConfig(Qwen2Config):\n    model_type = "remote"\n\n\n'
        "class RemoteForCausalLM(Qwen2ForCausalLM):\n    config_class = RemoteConfig\n"
    )


def revision(vocabulary: str) -> str:
    """The name of a snapshot, which must look like a commit's."""
    return sha1(vocabulary.encode()).hexdigest()


def snapshot(hub: Path, name: str, vocabulary: str) -> Path:
    """Where the hub cache holds the files of this model with this vocabulary."""
    folder = hub / f"models--{OWNER}--{name}" / "snapshots" / revision(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def choose_vocabulary(hub: Path, vocabulary: str) -> None:
    """Makes all models of the hub cache those with this vocabulary."""
    for repository in hub.glob(f"models--{OWNER}--*"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(revision(vocabulary))


def load_stand_in(path: str, name: str, split: str | None = None, streaming: bool = False, *, missing: Callable[[str], Any]) -> Any:
    """In place of `datasets.load_dataset`: prompts, as text or as a conversation; `missing` is told of any other data set."""
    if path != f"{OWNER}/zen":
        return missing(path)
    conversation = name == "conversational_prompt_only"
    rows = [{"prompt": [{"role": "user", "content": text}] if conversation else text} for text in PROMPTS]
    splits = DatasetDict(train=Dataset.from_list(rows[:TRAINED]), test=Dataset.from_list(rows[TRAINED:]))
    found = splits if split is None else splits[split]
    return found.to_iterable_dataset() if streaming else found
