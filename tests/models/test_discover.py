"""Discovery: the layout found in a model's own structure is the row's, or right without a row, or refused with what was found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerlens as ll
from layerlens.errors import ModelLayoutError
from layerlens.models import DecoderParts, LayerSite, Layout, discover_layout, find_decoder_parts, layout_row
from layerlens.models.capture import capture
from tests.support.architectures import ARCHITECTURES, EXPERTS, GRANITE, LOCAL_EXPERTS, MAMBA, build, tiny_architecture
from tests.support.tiny_models import random_ids, tiny_model

GPT = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 128}
XGLM = {"d_model": 32, "ffn_dim": 48, "num_layers": 3, "attention_heads": 4}

WITHOUT_ROW: dict[str, tuple[dict[str, Any], Layout]] = {
    "bloom": (
        {"n_layer": 3, "n_head": 4},
        Layout("transformer", "h", "ln_f", attn="self_attention", attn_out="self_attention.dense", ffn_out="mlp.dense_4h_to_h"),
    ),
    "opt": (
        {"ffn_dim": 48, "word_embed_proj_dim": 32},
        Layout("model.decoder", final_norm="final_layer_norm", mid="final_layer_norm", ffn="fc1", ffn_out="fc2"),
    ),
    "phi": ({}, Layout(final_norm="final_layernorm", parallel=True)),
    "gptj": ({**GPT, "rotary_dim": 4}, Layout("transformer", "h", "ln_f", attn="attn", parallel=True)),
    "falcon": ({"new_decoder_architecture": False}, Layout("transformer", "h", "ln_f", attn="self_attention", parallel=True)),
    "starcoder2": ({}, Layout()),
    "olmoe": (EXPERTS, Layout()),
    "granitemoe": (
        {**GRANITE, **LOCAL_EXPERTS},
        Layout(attn_factor="residual_multiplier", ffn="block_sparse_moe", ffn_factor="residual_multiplier", logit_scale="1/logits_scaling"),
    ),
    "bamba": (
        {**MAMBA, "mamba_d_head": 16, "mamba_expand": 2, "attn_layer_indices": [1]},
        Layout(final_norm="final_layernorm", attn=("mamba", "self_attn"), mid="pre_ff_layernorm", ffn="feed_forward"),
    ),
    "mamba": ({"state_size": 8}, Layout("backbone", final_norm="norm_f", attn="mixer", ffn=())),
    "mpt": (
        {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 128, "expansion_ratio": 2},
        Layout("transformer", "blocks", "norm_f", attn="attn", mid="norm_2", ffn="ffn", ffn_out="ffn.down_proj"),
    ),
    "recurrent_gemma": (
        {"head_dim": 8, "lru_width": 32, "attention_window_size": 16, "logits_soft_cap": 30.0},
        Layout(final_norm="final_norm", attn="temporal_block", mid="channel_pre_norm", ffn="mlp_block", logit_softcap="logits_soft_cap"),
    ),
    "gpt_neo": (
        {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "num_heads": 4, "window_size": 8},
        Layout("transformer", "h", "ln_f", attn="attn", mid="ln_2"),
    ),
    "xglm": (XGLM, Layout(final_norm="layer_norm", mid="final_layer_norm", ffn="fc1", ffn_out="fc2")),
    "afmoe": ({}, Layout(attn_out="post_attention_layernorm", mid="pre_mlp_layernorm", ffn_out="post_mlp_layernorm")),
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "openai-gpt": (GPT, r"openai-gpt, block 1: no sum of its modules' outputs gives resid_post; .* misses it by 0\.\d+ of its size"),
    "rwkv": ({"attention_hidden_size": 32}, r"rwkv, block 1: no sum of its modules' outputs gives resid_post"),
    "minimax": ({"num_local_experts": 4, "head_dim": 8, "block_size": 8}, r"minimax, block 1: no sum of its modules' outputs"),
    "modernbert-decoder": ({}, "no module of model leads from the last block's output to the unembedding's input"),
    "nanochat": ({}, "no module of model leads from the last block's output to the unembedding's input"),
    "bert": ({}, "bert cannot be read: its logits depend on later tokens"),
    "deepseek_v4": ({}, r"several residual streams|passes on \(1, 13, 4, 32\) where one residual stream is \(1, 13, 32\)"),
    "olmo_hybrid": ({}, "blocks differ in what reads resid_mid"),
}


def states_of(parts: DecoderParts) -> dict[LayerSite, Tensor]:
    seen: dict[LayerSite, Tensor] = {}
    places = [(layer, site) for layer in range(1, len(parts.blocks) + 1) for site in parts.sites]
    with torch.no_grad(), capture(parts, places, lambda layer, site, states: seen.update({(layer, site): states.clone()})):
        parts.model(torch.tensor([random_ids(9)]), use_cache=False)
    return seen


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_discovery_gives_the_same_states_as_the_row(name: str) -> None:
    model = tiny_architecture(name)
    row, found = find_decoder_parts(model), find_decoder_parts(model, discover_layout(model))
    theirs, ours = states_of(row), states_of(found)
    assert theirs.keys() == ours.keys()
    for place, states in theirs.items():
        torch.testing.assert_close(ours[place], states, atol=1e-6, rtol=1e-6)
    assert (found.decoder, found.blocks, found.final_norm) == (row.decoder, row.blocks, row.final_norm)
    assert found.logit_scale == pytest.approx(row.logit_scale, rel=1e-5)
    assert (found.logit_softcap or 0) == pytest.approx(row.logit_softcap or 0, rel=1e-4)


@pytest.mark.parametrize("name", WITHOUT_ROW)
def test_architecture_without_a_row_is_discovered(name: str) -> None:
    config, expected = WITHOUT_ROW[name]
    lens = ll.LensModel.wrap(build(name, config))
    assert lens.discovered
    assert lens.parts.layout == expected
    assert eval(layout_row(name, lens.parts.layout).partition(": ")[2].rstrip(","), {"Layout": Layout}) == expected
    ids = random_ids(7)
    with torch.no_grad():
        logp = lens.parts.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    run = ll.analyze(lens, [ll.Sample(ids)], norm="final")
    assert run.manifest.model.discovered
    top = run.data["entropy"].sel(layer=lens.n_layers, site="resid_post")
    torch.testing.assert_close(torch.tensor(top.values), -(logp.exp() * logp).sum(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_architecture_that_cannot_be_read_is_refused_with_the_reason(name: str) -> None:
    config, message = REFUSED[name]
    with pytest.raises(ModelLayoutError, match=message) as caught:
        ll.LensModel.wrap(build(name, config))
    assert "\n" not in str(caught.value)


def test_contributions_of_bloom_are_without_the_stream() -> None:
    """BLOOM's modules return stream and contribution together; the contribution is output - input."""
    model = build("bloom", WITHOUT_ROW["bloom"][0])
    returned: dict[str, Tensor] = {}
    block = model.transformer.h[1]
    block.self_attention.register_forward_hook(lambda _m, _a, output: returned.update(attn=output[0]))
    block.mlp.register_forward_hook(lambda _m, _a, output: returned.update(ffn=output))
    states = states_of(ll.LensModel.wrap(model).parts)
    torch.testing.assert_close(states[2, "attn_out"], returned["attn"] - states[2, "resid_pre"], atol=1e-5, rtol=0)
    torch.testing.assert_close(states[2, "ffn_out"], returned["ffn"] - returned["attn"], atol=1e-5, rtol=0)


def altered(model: nn.Module, change: Any) -> nn.Module:
    """The model with `change(block, hidden_states, out)` as the output of its second block."""
    block = model.model.layers[1]
    forward = type(block).forward

    class Altered(type(block)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return change(self, hidden_states, forward(self, hidden_states, *args, **kwargs))

    block.__class__ = Altered
    return model


def test_factor_that_no_attribute_holds_differs_between_blocks_and_is_refused() -> None:
    model = altered(tiny_model(), lambda block, _before, after: after - 0.5 * block.ffn_out)
    block = model.model.layers[1]
    block.mlp.register_forward_hook(lambda _m, _a, output: setattr(block, "ffn_out", output))
    with pytest.raises(ModelLayoutError, match=r"a factor differs between blocks \(1, 0\.5\), and no attribute of theirs holds it"):
        discover_layout(model)


def test_factor_held_by_the_blocks_is_named() -> None:
    model = tiny_model()
    for number, block in enumerate(model.model.layers):
        block.damping = 0.5 + 0.1 * number
        block.forward = lambda *args, block=block, run=block.forward, **kwargs: args[0] + block.damping * (run(*args, **kwargs) - args[0])
    assert discover_layout(model) == Layout(attn_factor="damping", ffn_factor="damping", parallel=True)


def test_block_with_an_unexplained_addend_is_refused_by_number() -> None:
    model = altered(tiny_model(), lambda _block, before, after: after + 0.1 * before.roll(1, -1))
    with pytest.raises(ModelLayoutError, match=r"qwen3, block 2: no sum .* comes closest and misses it by [\d.e-]+ of its size"):
        discover_layout(model)


def test_sums_that_are_not_unique_are_refused() -> None:
    model = tiny_model()
    for block in model.model.layers:
        block.echo = nn.Identity()

        def after(module: nn.Module, _args: Any, output: Tensor, block: nn.Module = block) -> None:
            block.echo(output + block.attn_out)

        block.self_attn.register_forward_hook(lambda _m, _a, output, block=block: setattr(block, "attn_out", output[0]))
        block.mlp.register_forward_hook(after)
    with pytest.raises(ModelLayoutError, match=r"block 1: .* is not unique: echo and self_attn \+ mlp give the same resid_post"):
        discover_layout(model)


@pytest.mark.parametrize("name", ["exaone4", "granite", "olmo2", "qwen3"])
def test_discovery_of_freshly_initialised_weights_finds_the_row(name: str) -> None:
    """The FFN's output is so small that its post-norm, whose epsilon rules, only multiplies it by 316."""
    model = build(name, ARCHITECTURES[name].config, perturbed=False)
    assert discover_layout(model) == find_decoder_parts(model).layout


def test_discovery_leaves_the_model_as_it_was() -> None:
    model = tiny_model().train()
    model.model.layers[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert discover_layout(model) == Layout()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_model_in_half_precision_is_discovered_in_float32() -> None:
    model = tiny_architecture("granite").to(torch.bfloat16)
    assert discover_layout(model) == find_decoder_parts(model).layout
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
