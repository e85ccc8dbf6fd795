"""GGUF files: the numbers of the model that they were written from, and one line for a file that cannot be read."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gguf import GGUFWriter, LlamaFileType, TokenType
from tokenizers import pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM

import layerlens as ll
from layerlens.errors import ModelLoadError
from layerlens.models.gguf import gguf_loading
from layerlens.plots.kit.caption import describe_runs
from tests.support.architectures import perturb

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "xy"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
"""Modules of a block, and their names in a GGUF file."""


def small_model() -> torch.nn.Module:
    config = Qwen2Config(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False, rms_norm_eps=1e-6, bos_token_id=0, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    return perturb(Qwen2ForCausalLM(config).eval())


def write_gguf(file: Path, model: torch.nn.Module, architecture: str = "qwen2") -> Path:
    """A float32 GGUF file with the model's weights, a byte-level tokenizer and a chat template."""
    config, writer = model.config, GGUFWriter(str(file), architecture)
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "x y"])  # earlier versions of transformers misread a list of one
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, weight in model.state_dict().items():
        stem, kind = name.removeprefix("model.").rsplit(".", 1)
        if stem.startswith("layers."):
            _, number, module = stem.split(".", 2)
            stem = f"blk.{number}.{NAMES[module]}"
        else:
            stem = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[stem]
        writer.add_tensor(f"{stem}.{kind}", weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_gguf_file_gives_the_numbers_tokens_and_template_of_its_model(tmp_path: Path) -> None:
    model = small_model()
    file = write_gguf(tmp_path / "small.gguf", model)
    for name in (file, tmp_path):
        lens = ll.load(name)
        assert (lens.name, lens.quantisation, lens.parts.dtype) == ("small", "GGUF F32, dequantised", torch.float32)
        ids = lens.tokenizer("ab b")["input_ids"]
        assert [TOKENS[i] for i in ids] == ["ab", "Ġ", "b"]
        torch.testing.assert_close(lens.parts.model(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits, atol=0, rtol=0)
        [prompt] = ll.read_prompts(["a"], lens)
        assert [TOKENS[i] for i in prompt.token_ids] == ["<|im_start|>", "a", "<|im_end|>"]
    run = ll.analyze(lens, [prompt])
    assert run.manifest.model.quantisation == "GGUF F32, dequantised"
    assert describe_runs(run).startswith("small (GGUF F32, dequantised)")
    assert ll.load(file, dtype="bfloat16").parts.dtype == torch.bfloat16


def test_gguf_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", small_model())
    text, cut, unknown = tmp_path / "text.gguf", tmp_path / "cut.gguf", tmp_path / "unknown.gguf"
    text.write_text("not a model")
    cut.write_bytes(whole.read_bytes()[:20_000])
    write_gguf(unknown, small_model(), architecture="perceptron")
    for file, message in (
        (tmp_path / "none.gguf", "no such GGUF file"),
        (text, "is no GGUF file"),
        (cut, "cut.gguf: could not be loaded"),
        (unknown, "unknown.gguf: could not be loaded .*perceptron"),
        (tmp_path, r"holds 4 GGUF files: name one of them, e\.g\. .*cut\.gguf"),
    ):
        with pytest.raises(ModelLoadError, match=message) as told:
            ll.load(file)
        assert "\n" not in str(told.value)
    monkeypatch.setattr("layerlens.models.gguf.find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match=r"pip install 'layerlens-policy\[gguf\]'"):
        ll.load(whole)


def test_a_transformers_without_gguf_settings_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    with pytest.raises(ModelLoadError, match=r"needs a newer transformers: pip install -U 'layerlens-policy\[gguf\]'$"):
        gguf_loading()
