"""Models spread over devices: what accelerate keeps on the CPU or on disk is read as if it were resident."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn

import layerlens as ll
from layerlens.errors import ModelLoadError
from layerlens.models import find_decoder_parts
from layerlens.models.capture import capture
from tests.support.architectures import tiny_architecture
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer

BLOCKS = {f"model.layers.{number}": "disk" if number in (1, 3) else "cpu" for number in range(4)}
PLACES = {
    "blocks": {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu", **BLOCKS},
    "norm and head": {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "disk", "lm_head": "disk", **BLOCKS},
    "everything": {"": "disk"},
}
SAMPLES = [ll.Sample(random_ids(9), 3), ll.Sample(random_ids(6, 1), 2)]


def save(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def same_runs(one: ll.LensModel, other: ll.LensModel) -> None:
    ours, theirs = (ll.analyze(lens, SAMPLES, norm="final", top_k=3, kl_from_layer=2) for lens in (one, other))
    assert ours.data.identical(theirs.data)
    assert ours.manifest.model.fingerprint == theirs.manifest.model.fingerprint


@pytest.mark.parametrize(("places", "tied"), [("blocks", False), ("norm and head", True), ("everything", True)])
def test_offloaded_model_gives_the_numbers_of_the_resident_one(places: str, tied: bool, tmp_path: Path) -> None:
    device_map: dict[str, str] = PLACES[places]
    save(tiny_model(tied=tied), tmp_path)
    if tied and places == "norm and head":
        with pytest.raises(ModelLoadError, match=r"'lm_head.weight' .* must put a tied unembedding beside its embedding"):
            ll.load(tmp_path, device_map=device_map)
        device_map = {**device_map, "lm_head": "cpu"}
    resident, offloaded = ll.load(tmp_path), ll.load(tmp_path, device_map=device_map)
    assert offloaded.parts.blocks[1].mlp.up_proj.weight.is_meta
    assert (offloaded.device, offloaded.parts.unembedding_weight.device) == (torch.device("cpu"), torch.device("cpu"))
    assert offloaded.parts.tied == tied
    same_runs(resident, offloaded)
    assert offloaded.parts.blocks[1].mlp.up_proj.weight.is_meta, "it is offloaded again"
    policies = [lens.policy(2, norm="final") for lens in (resident, offloaded)]
    assert policies[0].sample(random_ids(4), 2, 3) == policies[1].sample(random_ids(4), 2, 3)
    answers = [
        ll.analyze(lens, [ll.Sample(random_ids(4), 4)], generate=ll.Generation(3)).data["text_token_id"] for lens in (resident, offloaded)
    ]
    assert answers[0].equals(answers[1])


def test_auto_puts_norm_and_head_out_first_and_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tiny_model(), tmp_path)
    monkeypatch.setattr("transformers.integrations.accelerate.get_max_memory", lambda *_: {"cpu": 120_000})
    offloaded = ll.load(tmp_path, device_map="auto")
    places = offloaded.parts.model.hf_device_map
    assert {places["model.norm"], places["lm_head"]} == {"disk"}
    assert {"cpu", "disk"} == set(places.values())
    same_runs(ll.load(tmp_path), offloaded)


def test_mixture_of_experts_is_offloaded_though_its_weights_are_rewritten(tmp_path: Path) -> None:
    """The files hold one matrix per expert and the model one for all experts, so transformers writes its own files to offload."""
    save(tiny_architecture("qwen3_moe"), tmp_path)
    same_runs(ll.load(tmp_path), ll.load(tmp_path, device_map={"": "disk"}))


def test_fingerprint_sees_a_change_in_an_offloaded_block(tmp_path: Path) -> None:
    model = tiny_model()
    save(model, tmp_path / "one")
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight[5, 7] += 1
    save(model, tmp_path / "other")
    loaded = [ll.load(tmp_path / name, device_map=PLACES[places]) for name in ("one", "other") for places in ("blocks", "everything")]
    prints = [lens.fingerprint for lens in loaded]
    assert prints[0] == prints[1] == ll.load(tmp_path / "one").fingerprint
    assert prints[2] == prints[3] == ll.LensModel.wrap(model).fingerprint != prints[0]


def test_model_that_its_user_offloaded_is_read_like_the_resident_one() -> None:
    """accelerate's `cpu_offload` keeps every weight in a dictionary, buffers as well."""
    resident = ll.LensModel.wrap(tiny_architecture("gemma4_text"), name="m")
    same_runs(resident, ll.LensModel.wrap(cpu_offload(tiny_architecture("gemma4_text"), "cpu", offload_buffers=True), name="m"))


def test_states_of_a_layer_are_on_the_device_of_its_block() -> None:
    """`meta` is a second device here: blocks 3 and 4, norm and head compute there, and accelerate moves what enters block 3."""
    model = tiny_model()
    parts = find_decoder_parts(model)
    for module in (*parts.blocks[2:], parts.final_norm, model.lm_head):
        add_hook_to_module(module.to("meta"), AlignDevicesHook("meta"))
    seen: dict[tuple[int, str], str] = {}

    def note(layer: int, site: str, states: torch.Tensor) -> None:
        seen[layer, site] = states.device.type

    with capture(parts, [(layer, site) for layer in (1, 2, 3, 4) for site in parts.sites], note), torch.no_grad():
        model(torch.tensor([random_ids(5)]), use_cache=False)
    assert seen == {(layer, site): "cpu" if layer < 3 else "meta" for layer in (1, 2, 3, 4) for site in parts.sites}
    with pytest.raises(ModelLoadError, match="are not in memory"):
        ll.LensModel.wrap(model)
