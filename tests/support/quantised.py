"""Quantised checkpoints as people publish them, written tensor by tensor, and the weights that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.support.architectures import perturb
from tests.support.tiny_models import VOCABULARY, tiny_tokenizer

GROUP = 32
"""Neighbouring inputs that share a scale in GPTQ, AWQ and MXFP4."""

BLOCK = 128
"""Rows and columns of a block that shares a scale in FP8."""

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])

Tensors = dict[str, Tensor]
Written = tuple[Tensors, Tensor]
"""What stands in the files for a linear layer, by the end of its name, and the weights [out, in] that it means."""


def plain_model(d: int = 64, ffn: int = 128) -> nn.Module:
    """A random Qwen3 with two blocks in float32, whose linear layers can be cut into groups of 32 inputs."""
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=d, intermediate_size=ffn, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return perturb(Qwen3ForCausalLM(config).eval())


def block_linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".layers." in name]


@torch.no_grad()
def write_quantised(
    model: nn.Module, folder: Path, write: Callable[[Tensor], Written], config: dict[str, object], dtype: torch.dtype
) -> None:
    """Writes a checkpoint of `dtype` whose blocks are quantised, and gives the model the weights that the checkpoint means."""
    round_to(model, dtype)
    stored: Tensors = {}
    for name, linear in block_linears(model):
        tensors, meant = write(linear.weight.float())
        stored |= {f"{name}.{end}": tensor for end, tensor in tensors.items()}
        linear.weight.copy_(meant)
    others = {
        name: weight.to(dtype)
        for name, weight in model.state_dict().items()
        if name.removesuffix(".weight") not in dict(block_linears(model))
    }
    finish(model, folder, {**others, **stored}, config, dtype)


def round_to(model: nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))


def finish(model: nn.Module, folder: Path, tensors: Tensors, config: dict[str, object], dtype: torch.dtype) -> None:
    model.config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    file = folder / "config.json"
    said = {"quantization_config": config, "dtype": str(dtype).removeprefix("torch."), "architectures": [type(model).__name__]}
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))


def write_fp8(model: nn.Module, folder: Path) -> None:
    """As Qwen and DeepSeek publish FP8: e4m3 weights, and per block of 128 x 128 what to multiply them with."""
    config = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    write_quantised(model, folder, fp8, config, torch.bfloat16)


def fp8(weight: Tensor) -> Written:
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    scales = torch.empty(rows, columns, dtype=torch.bfloat16)
    stored, meant = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
    for i in range(rows):
        for j in range(columns):
            block = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scales[i, j] = weight[block].abs().max() / 448
            stored[block] = (weight[block] / scales[i, j].float()).clamp(-448, 448).to(torch.float8_e4m3fn)
            meant[block] = stored[block].float() * scales[i, j].float()
    return {"weight": stored, "weight_scale_inv": scales}, meant


def write_gptq(model: nn.Module, folder: Path) -> None:
    """As AutoGPTQ and GPTQModel write 4 bits: eight inputs to an int32, zero points less one, the group of every input."""
    config = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True, "checkpoint_format": "gptq"}
    write_quantised(model, folder, gptq, config, torch.float16)


def gptq(weight: Tensor) -> Written:
    levels, zeros, scales, meant = four_bits(weight, 8)
    names = {
        "qweight": pack(levels, 0),
        "qzeros": pack(zeros - 1, 1),
        "scales": scales,
        "g_idx": torch.arange(weight.shape[1]).int() // GROUP,
    }
    return names, meant


def write_awq(model: nn.Module, folder: Path) -> None:
    """As AutoAWQ writes its GEMM version: eight outputs to an int32, in the order that its kernel unpacks."""
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    write_quantised(model, folder, awq, config, torch.float16)


def awq(weight: Tensor) -> Written:
    levels, zeros, scales, meant = four_bits(weight, 7)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return {"qweight": pack(levels, 1, order), "qzeros": pack(zeros, 1, order), "scales": scales}, meant


def write_compressed_tensors(model: nn.Module, folder: Path) -> None:
    """As vLLM's compressor writes 4 bits: eight inputs to an int32, levels -8...7 counted from 0, and each matrix's shape."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP, "dynamic": False}
    config = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}},
    }  # fmt: skip
    write_quantised(model, folder, compressed_tensors, config, torch.float16)


def compressed_tensors(weight: Tensor) -> Written:
    levels, _, scales, meant = four_bits(weight, 8)
    return {"weight_packed": pack(levels.T, 1), "weight_scale": scales.T, "weight_shape": torch.tensor(weight.shape)}, meant


def four_bits(weight: Tensor, zero: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Levels 0...15 [in, out], zero points and float16 scales [groups, out], and the weights that they mean [out, in]."""
    grouped = weight.T.reshape(-1, GROUP, weight.shape[0])
    scales = (grouped.abs().amax(1) / 7).half()
    levels = ((grouped / scales.float()[:, None]).round() + zero).clamp(0, 15)
    meant = ((levels - zero) * scales.float()[:, None]).reshape(weight.shape[1], -1).T
    return levels.reshape(weight.shape[1], -1).int(), torch.full_like(scales, zero, dtype=torch.int32), scales, meant


def pack(levels: Tensor, dim: int, order: Iterable[int] = range(8)) -> Tensor:
    """Eight neighbours along a dimension in one int32, the first of `order` in its lowest bits."""
    eights = levels.unflatten(dim, (-1, 8)).long()
    packed = sum(eights.select(dim + 1, place) << (4 * bit) for bit, place in enumerate(order))
    assert isinstance(packed, Tensor)
    return (packed & 0xFFFFFFFF).where(packed < 1 << 31, packed - (1 << 32)).int()


def gpt_oss_model() -> nn.Module:
    config = GptOssConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    return perturb(GptOssForCausalLM(config).eval())


@torch.no_grad()
def write_mxfp4(model: nn.Module, folder: Path) -> None:
    """As OpenAI publishes gpt-oss: the experts in 4-bit floats, two to a byte, and per 32 of them a power of two."""
    round_to(model, torch.bfloat16)
    tensors: Tensors = {}
    for name, weight in model.state_dict().items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = weight.to(torch.bfloat16)
            continue
        groups = weight.mT.reshape(*weight.mT.shape[:2], -1, 32)  # [experts, out, groups, 32]
        exponents = (groups.abs().amax(-1) / 6).clamp_min(2.0**-100).log2().ceil()
        places = (groups[..., None] / 2 ** exponents[..., None, None] - FP4).abs().argmin(-1)
        tensors[f"{name}_blocks"] = (places[..., ::2] | places[..., 1::2] << 4).to(torch.uint8)
        tensors[f"{name}_scales"] = (exponents + 127).to(torch.uint8)
        weight.copy_((FP4[places] * 2 ** exponents[..., None]).flatten(2).mT)
    config = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
    }
    finish(model, folder, tensors, config, torch.bfloat16)
