"""Real pretrained models, where LAYERLENS_REAL_MODELS names their folder: each as a GGUF file and as a Hugging Face folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import layerlens as ll

pytestmark = pytest.mark.real
FOLDER = os.environ.get("LAYERLENS_REAL_MODELS")


@pytest.mark.skipif(not FOLDER, reason="LAYERLENS_REAL_MODELS names no folder of real models")
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m", "qwen2.5-coder-0.5b-instruct"])
def test_gguf_file_and_converted_folder_are_one_model(name: str) -> None:
    folder = Path(str(FOLDER)) / name
    file, converted = ll.load(folder.with_name(f"{name}.gguf"), dtype="bfloat16"), ll.load(folder, dtype="bfloat16")
    assert file.fingerprint == converted.fingerprint
    text = "The capital of France is"
    ids = converted.tokenizer(text)["input_ids"]
    assert file.tokenizer(text)["input_ids"] == ids
    runs = [ll.analyze(lens, [ll.Sample(ids)], norm="final", top_k=1) for lens in (file, converted)]
    assert runs[0].data.drop_attrs().equals(runs[1].data.drop_attrs())
    if name != "gemma3-270m":  # which is not tuned to follow instructions
        top = runs[1].data["top_ids"].sel(layer=converted.n_layers, site="resid_post").values[-1, 0]
        assert converted.tokenizer.decode([top]).strip() == "Paris"


@pytest.mark.skipif(not FOLDER, reason="LAYERLENS_REAL_MODELS names no folder of real models")
@pytest.mark.filterwarnings("ignore")  # TransformerLens' own
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m", "qwen2.5-coder-0.5b-instruct"])
def test_real_model_has_the_same_entropies_through_transformer_lens(name: str) -> None:
    pytest.importorskip("transformer_lens", reason="needs the extra `tl`")
    runs = []
    for backend in ("transformers", "transformer_lens"):
        lens = ll.load(Path(str(FOLDER)) / name, dtype="float32", backend=backend)
        ids = lens.tokenizer("The capital of France is Paris.")["input_ids"]
        runs.append(ll.analyze(lens, [ll.Sample(ids)], metrics="entropy", norm="final"))
    assert abs(runs[1].data["entropy"] - runs[0].data["entropy"]).max() < 1e-3
