"""Quantised checkpoints: what reads each kind, how it is named, and the plain weights of a quantised unembedding.

Kinds that transformers can dequantise while it loads (FP8, MXFP4, compressed-tensors) are dequantised: their numbers are then those
of the stored weights on every device, and activations stay as they are. The others stay quantised, and their library multiplies.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.util import find_spec
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
    stored = _stored(config)
    if quantize is not None and quantize not in ON_LOADING:
        raise ModelLoadError(f"unknown quantisation {quantize!r}: choose from {', '.join(ON_LOADING)}")
    if stored is None:
        return {} if quantize is None else {"quantization_config": _quantising(source, quantize)}
    if quantize is not None:
        raise ModelLoadError(f"{source} is quantised already ({describe(stored)}): leave out quantize={quantize!r}")
    kind = KINDS.get(_method(stored))
    if kind is not None:
        _require(kind, source)
        if kind.dequantise:
            stored["dequantize"] = True
    return {}


def describe_quantisation(config: Any) -> str | None:
    """How the weights of a model with this configuration are stored, in words; None if they are not quantised."""
    stored = _stored(config)
    return None if stored is None else describe(stored)


def describe(stored: Any) -> str:
    """A quantisation configuration in words: "bitsandbytes 4-bit NF4", "GPTQ 4-bit, groups of 128", "FP8, dequantised"."""
    said = stored if isinstance(stored, dict) else stored.to_dict()
    method = _method(said)
    kind = KINDS.get(method)
    words = kind.title if kind else method
    if method == "bitsandbytes":
        words += f" 4-bit {said.get('bnb_4bit_quant_type', 'fp4').upper()}" if said.get("load_in_4bit") else " 8-bit"
    elif method == "torchao":
        chosen = said.get("quant_type")
        chosen = chosen.get("default", chosen) if isinstance(chosen, dict) else chosen
        words += f" {str(chosen.get('_type', '') if isinstance(chosen, dict) else chosen).removesuffix('Config')}"
    elif method in ("gptq", "awq"):
        words += f" {said.get('bits', 4)}-bit, groups of {said.get('group_size', 128)}"
    elif method == "compressed-tensors":
        words += f" {said.get('format', '')}"
    return words + (", dequantised" if said.get("dequantize") else "")


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


def _stored(config: Any) -> Any:
    """The quantisation configuration of a model's configuration, where transformers looks for it."""
    return getattr(config, "quantization_config", None) or getattr(text_config(config), "quantization_config", None)


def _method(stored: Any) -> str:
    said = stored if isinstance(stored, dict) else stored.to_dict()
    bits = said.get("load_in_4bit") or said.get("load_in_8bit")  # old bitsandbytes checkpoints name no method
    method = said.get("quant_method") or ("bitsandbytes" if bits else "quantisation without a name")
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
