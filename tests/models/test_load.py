"""Checkpoints on disk: read exactly, or refused in one line; never a random weight, never another model's layout."""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BartConfig, PreTrainedModel, T5Config

import layerlens as ll
from layerlens.errors import ModelLayoutError, ModelLoadError
from layerlens.models.tokenizer import read_tokenizer
from layerlens.storage.bundled import MODELS, bundled_model
from layerlens.storage.training_folder import TrainedAs
from tests.support.tiny_models import VOCABULARY, random_ids, tiny_model, tiny_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def save(model: nn.Module, folder: Path, **more: Any) -> Path:
    model.save_pretrained(folder, **more)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_model(), tmp_path_factory.mktemp("model") / "saved")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return shutil.copytree(saved, tmp_path / "model")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def reconfigure(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def refused(folder: Path | str, message: str, error: type[Exception] = ModelLoadError, **more: Any) -> str:
    with pytest.raises(error, match=message) as caught:
        ll.load(folder, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "tied", "shards"),
    [
        ("float32", True, "10GB"),
        ("float32", False, "20KB"),
        ("bfloat16", True, "20KB"),
        ("bfloat16", False, "10GB"),
        ("float16", False, "20KB"),
    ],
)
def test_save_then_load_is_the_identity(dtype: str, tied: bool, shards: str, tmp_path: Path) -> None:
    model = tiny_model("qwen2", tied=tied).to(DTYPES[dtype])
    lens = ll.load(save(model, tmp_path / "m", max_shard_size=shards))
    assert (len(list((tmp_path / "m").glob("*.safetensors"))) > 1) == (shards == "20KB")
    assert lens.parts.dtype == DTYPES[dtype], "auto is the dtype it was stored in"
    assert lens.parts.tied == tied
    assert (lens.name, lens.n_layers) == ("m", 4)
    assert lens.fingerprint == ll.LensModel.wrap(model).fingerprint
    theirs = dict(model.state_dict())
    assert all(torch.equal(weight, theirs[name]) for name, weight in lens.parts.model.state_dict().items())
    assert not lens.parts.model.training


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "mistral"])
def test_load_converts_dtype_of_every_architecture(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    lens = ll.load(str(save(model, tmp_path / "m")), dtype="float64")
    assert lens.parts.dtype == torch.float64
    assert lens.fingerprint != ll.LensModel.wrap(model).fingerprint, "another dtype is another model"
    ids = torch.tensor([random_ids(6)])
    with torch.no_grad():
        torch.testing.assert_close(lens.parts.model(ids).logits, model.double()(ids).logits)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing", "ignore:Could not find a config file")  # PEFT's
def test_adapter_folder_loads_as_merged_model(saved: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(ll.load(saved).parts.model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(saved)
    adapted.save_pretrained(tmp_path / "adapters")
    ids = torch.tensor([[5, 6, 7]])
    loaded = ll.load(tmp_path / "adapters")
    torch.testing.assert_close(loaded.parts.model(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)
    assert loaded.fingerprint != ll.load(saved).fingerprint
    assert (loaded.name, loaded.tokenizer.chat_template) == ("adapters", ll.load(saved).tokenizer.chat_template)
    assert all(weight.requires_grad for weight in loaded.parts.model.parameters()), "as those of every other model"
    trained = tiny_tokenizer()
    trained.chat_template = "{{ messages[0].content }}"
    trained.save_pretrained(tmp_path / "adapters")
    loaded = ll.load(tmp_path / "adapters")
    assert loaded.tokenizer.chat_template == trained.chat_template, "the one that stands beside the adapters"

    upper = get_peft_model(copy.deepcopy(loaded.parts.model), LoraConfig(r=1, target_modules=["o_proj"], init_lora_weights=False))
    upper.save_pretrained(tmp_path / "upper")
    both = ll.load(tmp_path / "upper")
    torch.testing.assert_close(both.parts.model(ids).logits, upper(ids).logits, atol=1e-5, rtol=1e-5)

    (tmp_path / "adapters" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match="its tokenizer could not be loaded"):
        ll.load(tmp_path / "adapters")
    (tmp_path / "adapters" / "tokenizer_config.json").unlink()
    (tmp_path / "adapters" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="its adapters could not be loaded"):
        ll.load(tmp_path / "adapters")
    (tmp_path / "adapters" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="does not say which model its adapters are of"):
        ll.load(tmp_path / "adapters")


def test_load_brings_the_tokenizer(saved: Path) -> None:
    lens = ll.load(saved)
    assert ll.read_prompts(["w1"], lens) == ll.read_prompts(["w1"], tiny_tokenizer())
    assert ll.load(saved, dtype=torch.bfloat16).parts.dtype == torch.bfloat16


def test_a_mistral_keeps_its_template_where_mistral_common_is_installed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    plain = tiny_tokenizer()
    theirs = type("MistralCommonBackend", (), {"__call__": lambda _, text: {"input_ids": [1]}, "decode": lambda _, ids: ""})()

    def read(source: Path, other_file: bool, **options: Any) -> Any:
        asked.append(options)
        return plain if other_file and options.get("mistral_format") is False else theirs

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", partial(read, other_file=True))
    assert read_tokenizer(saved, revision="main") is plain
    assert asked == [{"revision": "main"}, {"revision": "main", "mistral_format": False}]
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", partial(read, other_file=False))
    with pytest.warns(UserWarning, match="has a tokenizer of mistral-common alone, without a chat template"):
        assert read_tokenizer(saved) is theirs


@pytest.mark.parametrize(("rope", "context"), [({"rope_type": "yarn", "factor": 4.0}, 128), ({"rope_type": "linear", "factor": 4.0}, 40)])
def test_yarn_lengthens_the_context(rope: dict[str, Any], context: int) -> None:
    rope = {**rope, "original_max_position_embeddings": 32, "rope_theta": 1e4}
    assert ll.LensModel.wrap(tiny_model(context=40, rope_parameters=rope)).parts.context == context


def test_a_trained_model_says_how_it_was_trained(saved: Path) -> None:
    assert ll.load(saved).info().trained is None
    (saved / "schedule.json").write_text('{"norm": "none", "phases": [], "train_layers": "2", "seed": 3}')
    assert ll.load(saved).info().trained == TrainedAs("2", "final policy", None, 3)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such folder")
    refused("./none", "no such folder")
    refused("~/none/at/all", "no such folder")
    refused("nobody/nothing-here", "nobody/nothing-here: could not be loaded")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "could not be loaded")


def test_impossible_load_options_are_refused(saved: Path) -> None:
    refused(saved, "unknown dtype 'int3': choose from auto, bfloat16", dtype="int3")
    refused(saved, "either device or device_map", device="cpu", device_map="auto")
    refused(saved, "cannot be put on device 'nonsense'", device="nonsense")
    if not torch.cuda.is_available():
        refused(saved, "cannot be put on device 'cuda'", device="cuda")


@pytest.mark.parametrize("accelerate", [True, False])
def test_weights_are_read_straight_to_the_device_with_accelerate(saved: Path, accelerate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, moved = [], []
    load, to = AutoModelForCausalLM.from_pretrained, PreTrainedModel.to
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **more: (asked.append(more["device_map"]), load(*a, **more))[1])
    monkeypatch.setattr(PreTrainedModel, "to", lambda model, *a: (moved.append(a), to(model, *a))[1])
    if not accelerate:
        monkeypatch.setattr("layerlens.models.load.find_spec", lambda name: None)
    assert ll.load(saved, device="cpu").device == torch.device("cpu")
    assert (asked, moved) == ((["cpu"], []) if accelerate else ([None], [("cpu",)]))
    if not accelerate:
        refused(saved, r"pip install 'layerlens-policy\[accelerate\]'", device_map="auto")


@pytest.mark.parametrize("keep", [0, 4, 2000, -100])
def test_truncated_weights_are_refused(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, "could not be loaded")


def test_corrupted_weights_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[10:40] = b"\x00" * 30
    file.write_bytes(bytes(content))
    refused(folder, "could not be loaded")
    file.write_bytes(struct.pack("<Q", 1 << 60) + bytes(content[8:]))
    refused(folder, "could not be loaded")


def test_a_tokenizer_that_fails_at_its_first_text_is_refused(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": "x"}))
    refused(folder, "could not be loaded")


def test_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = save(tiny_model(), tmp_path / "m", max_shard_size="20KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    refused(folder, "could not be loaded")


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"])
def test_missing_weight_is_refused_in_one_line(folder: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    rewrite(folder, lambda weights: weights.pop(name))
    message = refused(folder, "1 weights are missing")
    assert name in message
    assert capfd.readouterr().err == "", "one line tells it, not a table as well"


def test_weight_of_another_shape_is_refused(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(47, 32)}))
    refused(folder, "model.layers.2.mlp.up_proj.weight|mismatch|another shape")


def test_config_with_more_layers_is_refused(folder: Path) -> None:
    refused(reconfigure(folder, num_hidden_layers=5, layer_types=None), "weights are missing")


def test_config_with_fewer_layers_warns_of_unused_weights(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"11 weights in the files have no place in the model, e\.g\. model\.layers\.3"):
        ll.load(reconfigure(folder, num_hidden_layers=3, layer_types=None))


def test_config_that_names_two_models_is_refused(folder: Path) -> None:
    reconfigure(folder, architectures=["GemmaForCausalLM"])
    refused(folder, "says model_type 'qwen3', but its architectures are GemmaForCausalLM, which is model_type 'gemma'")
    reconfigure(folder, architectures=["Qwen3ForSomethingElse"])  # a head that is not the causal one: its weights tell
    assert ll.load(folder).parts.config.model_type == "qwen3"


def test_config_of_another_model_is_refused(tmp_path: Path) -> None:
    """Llama has no q_norm, and would run without what the files hold."""
    folder = save(tiny_model("qwen3"), tmp_path / "m")
    reconfigure(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    refused(folder, r"weights that no LlamaForCausalLM has, e\.g\. model\.layers\.0\.self_attn\.k_norm\.weight; config\.json describes")
    lied = reconfigure(save(tiny_model("llama"), tmp_path / "l"), model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    refused(lied, "weights are missing or of another shape, e.g. model.layers.0.self_attn.k_proj.bias")


def test_constants_of_old_checkpoints_are_tolerated(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"model.layers.1.self_attn.masked_bias": torch.zeros(1)}))
    with pytest.warns(UserWarning, match="1 weights in the files have no place in the model"):
        ll.load(folder)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_nonfinite_weights_are_refused(folder: Path, where: str, poison: float) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights[where].flatten()[3] = poison

    message = refused(rewrite(folder, spoil), r"not finite.* on 8 random tokens|miss the model's own logits by", ModelLayoutError)
    assert ("from block 2 on" in message) == ("layers.1" in where)


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "safetensors")


def test_broken_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    refused(folder, "could not be loaded")
    (folder / "config.json").unlink()
    refused(folder, "could not be loaded")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config(), "architecture 't5' cannot be read: it is an encoder-decoder"),
        (BartConfig(), "architecture 'bart' cannot be read: it is an encoder-decoder"),
        (AutoConfig.for_model("deepseek_v4"), "architecture 'deepseek_v4' cannot be read: it keeps several residual streams"),
        (AutoConfig.for_model("gemma3n"), "architecture 'gemma3n_text' cannot be read: it keeps several residual streams"),
    ],
)
def test_unreadable_architecture_is_refused_before_weights_are_read(config: Any, reason: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
    refused(tmp_path, reason, ModelLayoutError)


def test_shipped_code_does_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling_evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import LlamaConfig\nclass EvilConfig(LlamaConfig):\n    model_type = 'evil'\n"
    )
    reconfigure(folder, model_type="evil", auto_map={"AutoConfig": "modeling_evil.EvilConfig"})
    refused(folder, "runs only with trust_remote_code")
    assert not (tmp_path / "ran").exists()


def test_vocabulary_rows_beyond_the_tokenizer_are_read(tmp_path: Path) -> None:
    model = tiny_model()
    model.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    lens = ll.load(save(model, tmp_path / "m"))
    run = ll.analyze(lens, [ll.Sample([*random_ids(5), VOCABULARY + 4], 2)], top_k=VOCABULARY + 5)
    assert run.data["top_ids"].max() == VOCABULARY + 4
    assert run.data["token_text"].values[-1] == f"<{VOCABULARY + 4}>"


def test_bundled_names_resolve() -> None:
    assert bundled_model("Qwen/Qwen3-4B") is None
    for name in MODELS:
        path = bundled_model(name)
        assert path is not None
        lens = ll.load(name)
        assert lens.name == name
        assert lens.tokenizer is not None
