"""Quantised checkpoints: the numbers of the weights that they mean, named in manifest, caption and fingerprint, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import layerlens as ll
from layerlens.errors import ModelLayoutError, ModelLoadError
from layerlens.models import discover_layout
from layerlens.models.quantised import KINDS, describe
from layerlens.plots.kit.caption import describe_runs
from tests.support.quantised import (
    gpt_oss_model,
    plain_model,
    write_awq,
    write_compressed_tensors,
    write_fp8,
    write_gptq,
    write_mxfp4,
)
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer

SAMPLES = [ll.Sample(random_ids(20), 5), ll.Sample(random_ids(12, 1), 4)]
CHECKPOINTS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Path], None], float]] = {
    "FP8, dequantised": (lambda: plain_model(256, 128), write_fp8, 0.0),
    "MXFP4, dequantised": (gpt_oss_model, write_mxfp4, 0.0),
    "GPTQ 4-bit, groups of 32": (plain_model, write_gptq, 2e-2),
    "AWQ 4-bit, groups of 32": (plain_model, write_awq, 2e-2),
    "compressed-tensors pack-quantized, dequantised": (plain_model, write_compressed_tensors, 2e-2),
}
"""By their names in words: the model, what writes it, and how far its entropies may be from those of the weights meant, in nats."""

ON_LOADING = {
    "bnb-4bit": ("bitsandbytes 4-bit NF4", 0.0),
    "bnb-8bit": ("bitsandbytes 8-bit", 0.3),
    "torchao-int8": ("torchao Int8WeightOnly", 2e-5),
}
"""What `quantize` takes: its name in words, and the bound as above. LLM.int8 rounds what a layer reads as well, to 1/127."""

# what the libraries themselves warn of, and what gptqmodel leaves behind
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def needs(*libraries: str) -> None:
    for library in libraries:
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed")


def entropies(lens: ll.LensModel) -> torch.Tensor:
    run = ll.analyze(lens, SAMPLES, metrics="entropy", norm="final")
    assert run.manifest.model.quantisation == lens.quantisation
    if lens.quantisation:
        assert f"({lens.quantisation})" in describe_runs(run)
    return torch.from_numpy(run.data["entropy"].values)


def save(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("words", CHECKPOINTS)
def test_published_checkpoint_gives_the_numbers_of_the_weights_it_means(words: str, tmp_path: Path) -> None:
    make, write, bound = CHECKPOINTS[words]
    needs(*next(kind.libraries for kind in KINDS.values() if words.startswith(kind.title)))
    model = make()
    write(model, tmp_path)
    lens = ll.load(tmp_path, dtype="float32")
    assert (lens.quantisation, lens.parts.dtype, lens.parts.quantised_head) == (words, torch.float32, False)
    gap = (entropies(lens) - entropies(ll.LensModel.wrap(model))).abs().max()
    assert gap <= bound
    assert ll.load(tmp_path).parts.dtype == (torch.bfloat16 if "FP" in words else torch.float16)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(plain_model(), tmp_path / "plain")


def dequantised(folder: Path) -> ll.LensModel:
    """The resident model with the weights that the library itself makes of its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if model.quantization_method == "bitsandbytes":
        return ll.LensModel.wrap(model.dequantize(torch.float32))
    state = {name: weight.dequantize() if hasattr(weight, "qdata") else weight for name, weight in model.state_dict().items()}
    plain = plain_model()
    plain.load_state_dict(state)
    return ll.LensModel.wrap(plain)


@pytest.mark.parametrize("quantize", ON_LOADING)
def test_model_quantised_on_loading_gives_the_numbers_of_its_dequantised_weights(quantize: str, checkpoint: Path, tmp_path: Path) -> None:
    words, bound = ON_LOADING[quantize]
    needs(words.split()[0], "accelerate")
    lens = ll.load(checkpoint, quantize=quantize)
    assert (lens.quantisation, lens.parts.quantised_head) == (words, False)
    numbers = entropies(lens)
    again = ll.load(save(lens.parts.model, tmp_path / "quantised"))
    assert (again.quantisation, again.fingerprint) == (words, lens.fingerprint)
    assert lens.parts.fingerprint() == lens.fingerprint != ll.load(checkpoint).fingerprint, "using it changes no weight"
    assert torch.equal(numbers, entropies(again))
    assert (numbers - entropies(dequantised(tmp_path / "quantised"))).abs().max() <= bound
    with pytest.raises(ModelLoadError, match=f"is quantised already \\({words}\\): leave out quantize='{quantize}'"):
        ll.load(tmp_path / "quantised", quantize=quantize)


def head_config(kind: str) -> Any:
    if kind == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), include_input_output_embeddings=True)
    return BitsAndBytesConfig(**{f"load_in_{kind}": True}, llm_int8_skip_modules=["none"])


@pytest.mark.parametrize(("kind", "bound"), [("4bit", 0.0), ("8bit", 0.3), ("torchao", 2e-5)])
def test_quantised_head_is_read_dequantised(kind: str, bound: float, checkpoint: Path, tmp_path: Path) -> None:
    needs("torchao" if kind == "torchao" else "bitsandbytes")
    save(AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=head_config(kind)), tmp_path / "head")
    lens, plain = ll.load(tmp_path / "head"), dequantised(tmp_path / "head")
    assert lens.parts.quantised_head
    torch.testing.assert_close(lens.parts.unembedding_weight, plain.parts.unembedding_weight, rtol=5e-5, atol=1e-6)
    assert (entropies(lens) - entropies(plain)).abs().max() <= bound


def test_model_whose_weights_a_library_rewrote_is_refused(checkpoint: Path) -> None:
    """On a CPU with AVX512-BF16 bitsandbytes rewrites 4-bit weights when they are first used; reading them then damages the model."""
    needs("bitsandbytes")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    assert ll.LensModel.wrap(model).quantisation == "bitsandbytes 4-bit FP4"
    model.model.layers[1].mlp.up_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelLoadError, match=r"rewrote the 4-bit weights of model.layers.*wrap it before it runs"):
        ll.LensModel.wrap(model)


def test_discovery_asks_for_unquantised_weights(checkpoint: Path) -> None:
    needs("bitsandbytes")
    with pytest.raises(ModelLayoutError, match="discovery needs its weights in float32: run `layerlens check --discover --dtype float32`"):
        discover_layout(ll.load(checkpoint, dtype="bfloat16", quantize="bnb-4bit").parts.model)


def test_partial_fp8_blocks_are_refused(tmp_path: Path) -> None:
    """transformers reads 160 rows with two scales as two blocks of 80, not as 128 and 32."""
    write_fp8(plain_model(256, 160), tmp_path)
    with pytest.raises(ModelLoadError, match=r"layers\.0\.mlp\.down_proj\.weight is 256 x 160, no whole number of FP8 blocks of 128 x 128"):
        ll.load(tmp_path)


@pytest.mark.parametrize("method", KINDS)
def test_missing_library_is_refused_with_the_extra_that_brings_it(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerlens.models.quantised.find_spec", lambda name: None)
    save(tiny_model(quantization_config={"quant_method": method}), tmp_path)
    with pytest.raises(ModelLoadError, match=rf"needs .*: pip install 'layerlens-policy\[{KINDS[method].extra}\]'") as told:
        ll.load(tmp_path)
    assert "\n" not in str(told.value)


def test_quantising_on_loading_is_refused_in_one_line(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelLoadError, match="unknown quantisation 'int3': choose from bnb-4bit, bnb-8bit, torchao-int8"):
        ll.load(checkpoint, quantize="int3")
    monkeypatch.setattr("layerlens.models.quantised.find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match=r"needs torchao: pip install 'layerlens-policy\[torchao\]'"):
        ll.load(checkpoint, quantize="torchao-int8")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"load_in_8bit": True}, "bitsandbytes 8-bit"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4-bit FP4"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "GPTQ 8-bit, groups of 128"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, "torchao Int4WeightOnly"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao int8_weight_only"),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_quantisation_is_named_in_words(config: dict[str, Any], words: str) -> None:
    assert describe(config) == words
