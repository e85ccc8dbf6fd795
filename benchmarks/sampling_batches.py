"""In how many groups 100 responses of a Qwen3-4B are sampled, for a stated free memory; computed from the configuration alone.

    python -m benchmarks.sampling_batches

"before" counts the batches of at most 8,192 padded tokens, prompt and longest response, in which responses were sampled until they
had groups of their own.
"""

from __future__ import annotations

from transformers import Qwen3Config

from layerlens.models.memory import LARGEST, SequenceCost, fitting_batch

QWEN3_4B = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 151936,
}  # fmt: skip
PROMPTS, PROMPT_TOKENS, BFLOAT16 = 100, 150, 2
NEW_TOKENS = (1024, 2048, 4096, 8192)
FREE_GB = (70, 30)


def groups(new_tokens: int, free: int) -> int:
    """Groups in which 100 responses are sampled."""
    cost = SequenceCost.of(Qwen3Config(**QWEN3_4B), BFLOAT16).bytes(PROMPT_TOKENS, new_tokens)
    return -(-PROMPTS // fitting_batch(cost, free, PROMPTS, LARGEST["cuda"]))


def groups_before(new_tokens: int) -> int:
    """Groups in which they were sampled as parts of measuring batches."""
    return -(-PROMPTS // max(1, 8192 // (PROMPT_TOKENS + new_tokens)))


def rows() -> list[str]:
    """The lines of the table in docs/real-sizes.md."""
    return [f"| {new:,} | {' | '.join(str(groups(new, gb * 10**9)) for gb in FREE_GB)} | {groups_before(new)} |" for new in NEW_TOKENS]


if __name__ == "__main__":
    print("\n".join(rows()))
