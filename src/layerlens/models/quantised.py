"""Quantised checkpoints: what reads each kind, how it is named, and the plain weights of a quantised unembedding.

Kinds that transformers can dequantise while it loads (FP8, MXFP4, compressed-tensors) are dequantised: their numbers are then those
of the stored weights on every device, and activations stay as they are. The others stay quantised, and their library multiplies.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerlens.errors import ModelLoadError
from layerlens.models.layout import text_config
from layerlens.models.offload import device_of


class Kind(NamedTuple):
    """A kind of quantised checkpoint, by its `quant_method`."""

    title: str
    libraries: tuple[str, ...]
    """Modules that must be importable."""
    extra: str
    """The extra of our distribution that brings them."""
    dequantise: bool = False
    """Whether transformers dequantises the weights while it loads them."""


KINDS: dict[str, Kind] = {
    "bitsandbytes": Kind("bitsandbytes", ("bitsandbytes", "accelerate"), "bitsandbytes"),
    "torchao": Kind("torchao", ("torchao",), "torchao"),
    "gptq": Kind("GPTQ", ("gptqmodel", "optimum", "accelerate"), "gptq"),
    "awq": Kind("AWQ", ("gptqmodel", "accelerate"), "gptq"),
    "fp8": Kind("FP8", ("accelerate",), "accelerate", dequantise=True),
    "mxfp4": Kind("MXFP4", ("accelerate",), "accelerate", dequantise=True),
    "compressed-tensors": Kind("compressed-tensors", ("compressed_tensors",), "compressed-tensors", dequantise=True),
}

ON_LOADING = {"bnb-4bit": "bitsandbytes", "bnb-8bit": "bitsandbytes", "torchao-int8": "torchao"}
"""What `load(..., quantize=)` takes, and the kind that it makes of a checkpoint that is not quantised."""


def prepare_loading(config: Any, source: str, quantize: str | None) -> dict[str, Any]:
    """What `from_pretrained` is to be told beside a model's configuration, which is told to dequantise if its kind can be.

    Raises ModelLoadError if a library is missing, or if `quantize` is unknown or asked for a checkpoint that is quantised already.
    """
    stored = quantisation_config(config)
    if quantize is not None and quantize not in ON_LOADING:
        raise ModelLoadError(f"unknown quantisation {quantize!r}: choose from {', '.join(ON_LOADING)}")
    if not stored:
        return {} if quantize is None else {"quantization_config": _quantising(source, quantize)}
    if quantize is not None:
        raise ModelLoadError(f"{source} is quantised already ({describe(stored)}): leave out quantize={quantize!r}")
    kind = KINDS.get(_method(stored))
    if kind is not None:
        _require(kind, source)
        if kind.dequantise:
            holder = config if getattr(config, "quantization_config", None) else text_config(config)
            holder.quantization_config = {**stored, "dequantize": True}
    return {}


def finish_loading(model: nn.Module, stored: dict[str, Any], dtype: torch.dtype | None, source: str, revision: str | None) -> None:
    """Does what the libraries leave undone, so that the weights are those that the checkpoint means.

    On a CPU with AVX512-BF16, bitsandbytes (0.50) rounds the scales of 4-bit weights to bfloat16 in their first forward pass, and
    mixes them up when the state dict is read afterwards; it is told to multiply as on other CPUs. transformers (5.23) leaves the
    weights beside dequantised ones as they are stored, whatever dtype is asked for.

    Raises ModelLoadError if transformers dequantised a weight wrongly.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    if not stored.get("dequantize"):
        return
    if _method(stored) == "fp8" and stored.get("weight_block_size"):
        _require_whole_blocks(stored["weight_block_size"], source, revision)
    for parameter in model.parameters():
        if dtype is not None and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.to(dtype)


def _require_whole_blocks(block: Sequence[int], source: str, revision: str | None) -> None:
    """Raises ModelLoadError if an FP8 weight ends in a part of a block.

    transformers (5.23, `Fp8Dequantize`) divides rows by the number of scales, so that 160 rows with two scales become two blocks of 80
    in place of 128 and 32.
    """
    from safetensors import safe_open
    from transformers.utils import cached_file

    for file in sorted(Path(cached_file(source, "config.json", revision=revision)).parent.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            names = set(opened.keys())
            for name in sorted(name for name in names if f"{name}_scale_inv" in names):
                shape, scales = (opened.get_slice(each).get_shape()[-2:] for each in (name, f"{name}_scale_inv"))
                if any(count > 1 and count * side != size for size, count, side in zip(shape, scales, block, strict=True)):
                    raise ModelLoadError(
                        f"{source}: {name} is {shape[0]} x {shape[1]}, no whole number of FP8 blocks of {block[0]} x {block[1]}, which "
                        "transformers dequantises wrongly; load the checkpoint that was not quantised"
                    )


def describe_quantisation(config: Any) -> str | None:
    """How the weights of a model with this configuration are stored, in words; None if they are not quantised."""
    stored = quantisation_config(config)
    return describe(stored) if stored else None


def describe(stored: dict[str, Any]) -> str:
    """A quantisation configuration in words: "bitsandbytes 4-bit NF4", "GPTQ 4-bit, groups of 128", "FP8, dequantised"."""
    method = _method(stored)
    kind = KINDS.get(method)
    words = kind.title if kind else method
    if method == "bitsandbytes":
        words += f" 4-bit {stored.get('bnb_4bit_quant_type', 'fp4').upper()}" if stored.get("load_in_4bit") else " 8-bit"
    elif method == "torchao":
        chosen = stored.get("quant_type")
        chosen = chosen.get("default", chosen) if isinstance(chosen, dict) else chosen
        words += f" {str(chosen.get('_type', '') if isinstance(chosen, dict) else chosen).removesuffix('Config')}"
    elif method in ("gptq", "awq"):
        words += f" {stored.get('bits', 4)}-bit, groups of {stored.get('group_size', 128)}"
    elif method == "compressed-tensors":
        words += f" {stored.get('format', '')}"
    return words + (", dequantised" if stored.get("dequantize") else "")


def require_intact(model: nn.Module) -> None:
    """Raises ModelLoadError if reading the state dict would damage the model: see `finish_loading`."""
    for name, module in model.named_modules():
        if getattr(getattr(getattr(module, "weight", None), "quant_state", None), "packing_format_for_cpu", False):
            raise ModelLoadError(
                f"bitsandbytes rewrote the 4-bit weights of {name} for this CPU in their first forward pass, and cannot read them back: "
                "load the model with layerlens.load, or wrap it before it runs"
            )


def library_tensor(weight: Any) -> bool:
    """Whether a weight is a quantisation library's own tensor class, of which torch's operations are not all defined."""
    return type(weight).__module__.split(".")[0] != "torch"


def inner_tensors(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A weight by its name; a tensor that wraps others as those, e.g. its integers and its scales."""
    if library_tensor(weight) and hasattr(weight, "__tensor_flatten__"):
        for inner in weight.__tensor_flatten__()[0]:
            yield from inner_tensors(f"{name}.{inner}", getattr(weight, inner))
    else:
        yield name, weight


def is_plain(weight: Any) -> TypeGuard[Tensor]:
    """Whether a weight is a tensor of floating-point numbers that can be multiplied with as it is."""
    return isinstance(weight, Tensor) and not library_tensor(weight) and weight.is_floating_point() and weight.element_size() > 1


@torch.no_grad()
def dequantised_weight(linear: nn.Module, d_in: int, dtype: torch.dtype) -> Float[Tensor, "out d_in"]:
    """The weights that a quantised linear layer multiplies with, read from what it makes of the unit vectors."""
    device, columns = device_of(linear), []
    bias = getattr(linear, "bias", None)
    for rows in torch.split(torch.eye(d_in, dtype=dtype, device=device), 512):
        product = linear(rows)
        columns.append((product if bias is None else product - bias).T)
    return torch.cat(columns, 1).contiguous()


def quantisation_config(config: Any) -> dict[str, Any]:
    """How a model's configuration says that its weights are quantised, where transformers looks for it; empty if they are not."""
    stored = getattr(config, "quantization_config", None) or getattr(text_config(config), "quantization_config", None) or {}
    return dict(stored if isinstance(stored, dict) else stored.to_dict())


def _method(stored: dict[str, Any]) -> str:
    bits = stored.get("load_in_4bit") or stored.get("load_in_8bit")  # old bitsandbytes checkpoints name no method
    method = stored.get("quant_method") or ("bitsandbytes" if bits else "quantisation without a name")
    return str(getattr(method, "value", method))


def _require(kind: Kind, source: str) -> None:
    missing = [library for library in kind.libraries if find_spec(library) is None]
    if missing:
        raise ModelLoadError(
            f"{source}: reading {kind.title} weights needs {' and '.join(missing)}: pip install 'layerlens-policy[{kind.extra}]'"
        )
    if "bitsandbytes" in kind.libraries:  # it says at every product of 8-bit weights that it casts to float16
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _quantising(source: str, quantize: str) -> Any:
    from transformers import BitsAndBytesConfig, TorchAoConfig

    _require(KINDS[ON_LOADING[quantize]], source)
    if quantize == "bnb-4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    if quantize == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())
