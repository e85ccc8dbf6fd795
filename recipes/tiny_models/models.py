"""The two small decoders, one of the Qwen3 and one of the Llama family, alike in tokenizer, width and depth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from recipes.tiny_models.tokenizer import MAX_LENGTH

SHAPE = {
    "num_hidden_layers": 12,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
"""Number of blocks, widths and heads of both models."""

_FAMILIES: dict[str, tuple[Callable[..., Qwen3Config | LlamaConfig], Callable[..., PreTrainedModel]]] = {
    "tiny-qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "tiny-llama": (LlamaConfig, LlamaForCausalLM),
}
MODELS = tuple(_FAMILIES)


def new_model(name: str, tokenizer: PreTrainedTokenizerBase, seed: int, **shape: int) -> PreTrainedModel:
    """An untrained float32 model called `name`, its weights drawn with `seed`. `shape` overrides entries of `SHAPE`."""
    make_config, make_model = _FAMILIES[name]
    config = make_config(
        **(SHAPE | shape),
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return make_model(config).float()
