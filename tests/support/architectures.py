"""A tiny random model of every architecture that has a row, and the float64 states of its sites, written down once more.

The table repeats, independently of `layerlens.models.layout`, which modules' outputs each architecture adds to its residual stream
and with which factors; the factors are the numbers of the tiny configurations.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.tiny_models import VOCABULARY

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "topk_group": 1}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
GRANITE = {"residual_multiplier": 0.31, "logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.3}
MAMBA = {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
YARN = {"type": "yarn", "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}


@dataclass(frozen=True)
class Architecture:
    """One architecture: its configuration beside `SIZES`, and what its blocks add to the stream."""

    config: dict[str, Any]
    attn: str = "self_attn"
    """Modules whose outputs are added up to attn_out, separated by spaces; those that a block does not have are left out."""
    ffn: str = "mlp"
    attn_in: str = "self_attn"
    """Modules of which the first that a block has reads attn_in."""
    ffn_in: str = "mlp"
    attn_factors: tuple[float, ...] = (1.0, 1.0)
    ffn_factor: float = 1.0
    parallel: bool = False
    further: str = ""
    stream_factor: Callable[[int], float] = lambda layer: 1.0
    blocks: str = "model.layers"
    norm: str = "model.norm"
    scale: float = 1.0
    softcap: float | None = None
    ties: bool = True
    """Whether the class can tie unembedding and embedding."""
    seed: int = 0
    """Of the random weights."""


POST_NORM = {"attn": "post_attention_layernorm", "ffn": "post_feedforward_layernorm"}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
HYBRID = {"attn": "linear_attn self_attn", "attn_in": "linear_attn self_attn"}

ARCHITECTURES: dict[str, Architecture] = {
    "cohere": Architecture({"logit_scale": 0.25}, parallel=True, scale=0.25),
    "cohere2": Architecture({"logit_scale": 0.25, "sliding_window": 8}, parallel=True, scale=0.25),
    "deepseek_v2": Architecture({**ROUTED, **LATENT, "n_group": 1}),
    "deepseek_v3": Architecture({**ROUTED, **LATENT, "n_group": 2}),
    "exaone4": Architecture({"head_dim": 8, "sliding_window": 8}, **POST_NORM),
    "falcon_h1": Architecture(
        {"head_dim": 8, "mamba_d_ssm": 32, "mamba_d_head": 8, "ssm_out_multiplier": 0.6, "attention_out_multiplier": 0.8, **MAMBA}
        | {"attention_in_multiplier": 1.3, "lm_head_multiplier": 0.4, "embedding_multiplier": 1.5, "mlp_multipliers": [0.7, 0.9]},
        attn="mamba self_attn",
        attn_in="mamba",
        attn_factors=(0.6, 0.8),
        ffn="feed_forward",
        ffn_in="feed_forward",
        norm="model.final_layernorm",
        scale=0.4,
    ),
    "gemma": Architecture({"head_dim": 8}),
    "gemma2": Architecture(GEMMA, **POST_NORM, softcap=30.0),
    "gemma3_text": Architecture({**GEMMA, "final_logit_softcapping": 7.0}, **POST_NORM, softcap=7.0),
    "gemma4_text": Architecture(
        {"head_dim": 8, "global_head_dim": 16, "sliding_window": 8, "hidden_size_per_layer_input": 6}
        | {"vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0, "final_logit_softcapping": 9.0}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2},
        **POST_NORM,
        further="post_per_layer_input_norm",
        stream_factor=lambda layer: 0.6 + 0.1 * layer,
        softcap=9.0,
    ),
    "glm4": Architecture({"head_dim": 8}, attn="post_self_attn_layernorm", ffn="post_mlp_layernorm"),
    "glm4_moe": Architecture({"head_dim": 8, **ROUTED, "n_group": 1}),
    "gpt2": Architecture(
        {"n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 128, "num_key_value_heads": 4},
        attn="attn",
        attn_in="attn",
        blocks="transformer.h",
        norm="transformer.ln_f",
    ),
    "gpt_neox": Architecture(
        {"num_key_value_heads": 4},
        attn="attention",
        attn_in="attention",
        parallel=True,
        blocks="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
    ),
    "gpt_oss": Architecture({**LOCAL_EXPERTS, "head_dim": 8, "sliding_window": 8, "rope_parameters": YARN}),
    "granite": Architecture(GRANITE, attn_factors=(0.31,), ffn_factor=0.31, scale=1 / 3),
    "granitemoehybrid": Architecture(
        {**GRANITE, **LOCAL_EXPERTS, **MAMBA, "mamba_d_head": 16, "mamba_expand": 2, "shared_intermediate_size": 24}
        | {"layer_types": ["mamba", "attention"] * 2, "position_embedding_type": "nope"},
        attn="mamba self_attn",
        attn_in="mamba self_attn",
        attn_factors=(0.31, 0.31),
        ffn="block_sparse_moe shared_mlp",
        ffn_in="shared_mlp",
        ffn_factor=0.31,
        scale=1 / 3,
    ),
    "lfm2": Architecture(
        {"layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3, "block_multiple_of": 8},
        attn="conv self_attn",
        attn_in="conv self_attn",
        ffn="feed_forward",
        ffn_in="feed_forward",
        norm="model.embedding_norm",
    ),
    "llama": Architecture({}),
    "llama4_text": Architecture(
        {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 8, "intermediate_size_mlp": 48}
        | {"interleave_moe_layer_step": 2, "attention_chunk_size": 16},
        ffn="feed_forward",
        ffn_in="feed_forward",
    ),
    "ministral3": Architecture({"head_dim": 8, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}}),
    "mistral": Architecture({"head_dim": 8}),
    "mixtral": Architecture(LOCAL_EXPERTS),
    "nemotron_h": Architecture(
        {"head_dim": 8, "layers_block_type": ["linear_attention", "full_attention", "mlp", "linear_attention"], "mamba_num_heads": 4}
        | {"mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 2, "chunk_size": 8, "expand": 2},
        attn="mixer",
        attn_in="mixer",
        ffn="",
        norm="model.norm_f",
        ties=False,
    ),
    "olmo": Architecture({}),
    "olmo2": Architecture({}, **POST_NORM),
    "olmo3": Architecture({"sliding_window": 8}, **POST_NORM),
    "phi3": Architecture({}),
    "qwen2": Architecture({}),
    "qwen2_moe": Architecture({**EXPERTS, "shared_expert_intermediate_size": 24}),
    "qwen3": Architecture({"head_dim": 8}),
    "qwen3_5_moe_text": Architecture({"head_dim": 8, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 24}, **HYBRID),
    "qwen3_5_text": Architecture({"head_dim": 8, **LINEAR}, **HYBRID),
    "qwen3_moe": Architecture({"head_dim": 8, "mlp_only_layers": [0], **EXPERTS}),
    "qwen3_next": Architecture(
        {"head_dim": 8, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 24, "mlp_only_layers": [1]},
        **HYBRID,
        seed=2,  # with 0 its gated norm divides by a vector that nearly vanishes, and its own float32 is off by 2e-5
    ),
    "smollm3": Architecture({}),
}


def build(name: str, config: dict[str, Any], *, tied: bool = False, seed: int = 0, perturbed: bool = True) -> nn.Module:
    """A random model of an architecture, in float32; without `perturbed` as transformers initialises it."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = AutoConfig.for_model(name, **{**SIZES, **config, "tie_word_embeddings": tied})
        model = AutoModelForCausalLM.from_config(made, attn_implementation="eager").eval().float()
    return perturb(model, seed) if perturbed else model


@torch.no_grad()
def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random weights, and norm weights, biases and stream factors away from their defaults.

    Weights are small enough that the rounding of every architecture's own forward, in float32, stays under 1e-5 of its states.
    """
    generator = torch.Generator().manual_seed(seed)
    for path, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() < 2:
            weight.add_((0.3 if "norm" in path or "ln_" in path else 0.1) * noise)
        else:
            embedding = any(word in path for word in ("embed", "lm_head", "wte", "wpe"))
            weight.copy_(noise * (0.5 if embedding else 0.12))
    for path, value in model.named_buffers():
        if path.endswith("layer_scalar"):
            value.fill_(0.7 + 0.1 * int(path.split("layers.")[1].split(".")[0]))
    return model


def tiny_architecture(name: str, *, tied: bool = False) -> nn.Module:
    about = ARCHITECTURES[name]
    return build(name, about.config, tied=tied, seed=about.seed)


@torch.no_grad()
def architecture_states(
    model: nn.Module, name: str, ids: list[int]
) -> tuple[dict[tuple[int, str], Tensor], Callable[[Tensor, str], Tensor]]:
    """Every (layer, site) to its states [seq, d] in float64, and the function from states and a norm to log-probabilities.

    The contributions are what the float64 copy's modules return, times the table's factors; the stream is their running sum.
    """
    about = ARCHITECTURES[name]
    net = copy.deepcopy(model).double()
    net.config._experts_implementation = "eager"  # the others take no float64
    blocks = net.get_submodule(about.blocks)
    read: dict[nn.Module, Tensor] = {}
    returned: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read[module] = (args[0] if args else kwargs["hidden_states"]).reshape(len(ids), -1)
        returned[module] = (output[0] if isinstance(output, tuple) else output).reshape(len(ids), -1)

    wanted = {each for names in (about.attn, about.attn_in, about.ffn, about.ffn_in, about.further) for each in names.split()}
    for block in blocks:
        block.register_forward_hook(note, with_kwargs=True)
        for child, module in block.named_children():
            if child in wanted:
                module.register_forward_hook(note, with_kwargs=True)
    net(input_ids=torch.tensor([ids]), use_cache=False)

    states: dict[tuple[int, str], Tensor] = {}
    h = read[blocks[0]]
    for layer, block in enumerate(blocks, 1):

        def added(names: str, factors: tuple[float, ...], block: nn.Module = block) -> Tensor:
            outputs = [getattr(block, each, None) for each in names.split()]
            terms = [factor * returned[module] for module, factor in zip(outputs, factors, strict=False) if module is not None]
            return torch.stack(terms).sum(0)

        def entering(names: str, block: nn.Module = block) -> Tensor:
            return next(read[module] for each in names.split() if (module := getattr(block, each, None)) is not None)

        sites = {"resid_pre": h, "attn_in": entering(about.attn_in), "attn_out": added(about.attn, about.attn_factors)}
        h = h + sites["attn_out"]
        if about.ffn:
            if not about.parallel:
                sites["resid_mid"] = h
            sites |= {"ffn_in": entering(about.ffn_in), "ffn_out": added(about.ffn, (about.ffn_factor,) * 2)}
            h = h + sites["ffn_out"]
        if about.further:
            h = h + added(about.further, (1.0,))
        h = h * about.stream_factor(layer)
        sites["resid_post"] = h
        states |= {(layer, site): value for site, value in sites.items()}

    def log_policy(vectors: Tensor, norm: str) -> Tensor:
        vectors = net.get_submodule(about.norm)(vectors) if norm == "final" else vectors
        logits = about.scale * net.get_output_embeddings()(vectors)
        return (logits if about.softcap is None else about.softcap * torch.tanh(logits / about.softcap)).log_softmax(-1)

    return states, log_policy
