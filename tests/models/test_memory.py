"""How many responses fit the memory at once."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from benchmarks.sampling_batches import groups, rows
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    DeepseekV3Config,
    DynamicCache,
    Gemma4TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Qwen3Config,
)

from layerlens.models import LAYOUTS
from layerlens.models.memory import SHARE, SequenceCost, fitting_batch, free_bytes
from tests.support.tiny_models import tiny_model

ROOT = Path(__file__).parents[2]
SIZES = st.integers(1, 10**6)


@given(SIZES, st.integers(0, 10**12), st.integers(1, 500), st.integers(1, 256), st.integers(1, 16))
def test_a_group_fits_and_groups_are_even_and_enough_for_all(cost: int, free: int, waiting: int, largest: int, processes: int) -> None:
    batch = fitting_batch(cost, free, waiting, largest, processes)
    groups = -(-waiting // batch)
    assert 1 <= batch <= min(waiting, largest)
    assert batch == 1 or batch * cost <= SHARE * free
    assert batch <= -(-waiting // min(processes, waiting)), "every process can have its part"
    most = max(batch, min(waiting, largest, int(SHARE * free) // cost))
    assert groups == -(-waiting // most) or processes > 1, "no more groups than the memory needs"
    assert batch == 1 or -(-waiting // (batch - 1)) > groups, "groups are of one size"


def test_keys_and_values_of_a_token_are_those_that_the_cache_holds() -> None:
    model = tiny_model("qwen3")
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=torch.ones((1, 7), dtype=torch.long), past_key_values=cache)
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert SequenceCost.of(model.config, 4).per_token == held * 4 // 7


def test_costs_of_published_shapes() -> None:
    qwen = Qwen3Config(hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    assert SequenceCost.of(qwen, 2).per_token == 36 * 8 * 128 * 2 * 2
    llama = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    assert SequenceCost.of(llama, 2).per_token == 32 * 8 * 128 * 2 * 2
    assert SequenceCost.of(GPT2Config(), 4).per_token == 12 * 12 * 64 * 2 * 4, "every head has keys of its own"
    latent = DeepseekV3Config(num_hidden_layers=2, num_attention_heads=4, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6)
    assert SequenceCost.of(latent, 1).per_token == 2 * 4 * (12 + 6)
    layers = {"layer_types": ["sliding_attention", "full_attention"], "num_key_value_heads": 2}
    gemma = Gemma4TextConfig(num_hidden_layers=2, head_dim=8, global_head_dim=16, num_kv_shared_layers=0, **layers)
    assert SequenceCost.of(gemma, 1).per_token == 2 * 2 * (8 + 16), "heads of full attention are wider"
    assert SequenceCost.of(MambaConfig(), 2).per_token == 0, "what Mamba keeps does not grow with the text"


@pytest.mark.parametrize("model_type", sorted(LAYOUTS))
def test_every_row_has_a_cost_with_its_own_defaults(model_type: str) -> None:
    if model_type not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cost = SequenceCost.of(AutoConfig.for_model(model_type), 2)
    assert min(cost.per_token, cost.per_prompt_token, cost.fixed) > 0


def test_the_memory_of_this_machine_is_known() -> None:
    model = tiny_model("qwen3")
    assert free_bytes(model, model.model.layers) > 1 << 20


def test_the_table_of_groups_in_the_docs_is_what_is_computed() -> None:
    page = (ROOT / "docs" / "real-sizes.md").read_text()
    assert all(row in page for row in rows())
    assert [groups(new, 70 * 10**9) for new in (1024, 8192)] == [1, 4]
