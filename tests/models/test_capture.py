"""Capturing states: which states arrive, which modules run, and that hooks, modes and weights are as before afterwards."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import layerlens as ll
from layerlens.models import find_decoder_parts
from layerlens.types import SITES
from tests.support.float64_reference import plain_states
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def mixed_modes(model: nn.Module) -> nn.Module:
    """In training mode, but for a frozen block and a frozen norm elsewhere."""
    model.train()
    model.model.layers[1].eval()
    model.model.layers[3].input_layernorm.eval()
    return model


@contextmanager
def counted(modules: dict[str, nn.Module]) -> Iterator[Counter[str]]:
    calls: Counter[str] = Counter()
    handles = [m.register_forward_pre_hook(lambda *_, name=name: calls.update([name])) for name, m in modules.items()]
    yield calls
    for handle in handles:
        handle.remove()


def everywhere(lens: ll.LensModel) -> list[tuple[int, str]]:
    return [(layer, site) for layer in range(1, lens.n_layers + 1) for site in SITES]


def test_forward_hands_over_each_place_once_in_flow_order(lens: ll.LensModel) -> None:
    ids = torch.tensor([random_ids(9), random_ids(9, 1)])
    seen: list[tuple[int, str]] = []
    with torch.no_grad():
        lens.forward(ids, everywhere(lens)[::-1], lambda layer, site, states: seen.append((layer, site)))
    assert sorted(seen) == sorted(everywhere(lens))
    flow = {site: place for place, site in enumerate(SITES)}
    assert seen == sorted(seen, key=lambda place: (place[0], flow[place[1]]))


def test_captured_states_add_up_and_match_float64_states(lens: ll.LensModel) -> None:
    ids = random_ids(12)
    seen: dict[tuple[int, str], Tensor] = {}
    with torch.no_grad():
        lens.forward(torch.tensor([ids]), everywhere(lens), lambda layer, site, states: seen.update({(layer, site): states.clone()}))
        theirs = lens.parts.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for layer in range(1, lens.n_layers + 1):
        assert torch.equal(seen[layer, "resid_pre"] + seen[layer, "attn_out"], seen[layer, "resid_mid"])
        assert torch.equal(seen[layer, "resid_mid"] + seen[layer, "ffn_out"], seen[layer, "resid_post"])
        assert torch.equal(seen[layer, "resid_pre"], theirs[layer - 1]), "H^(l-1) is hidden_states[l-1]"
        if layer < lens.n_layers:
            assert torch.equal(seen[layer, "resid_post"], theirs[layer])
    for place, expected in plain_states(lens.parts.model, ids).items():
        torch.testing.assert_close(seen[place][0].double(), expected, atol=1e-4, rtol=0)


def test_layers_count_from_one(qwen: ll.LensModel) -> None:
    seen: list[Tensor] = []
    ids = torch.tensor([random_ids(5)])
    qwen.forward(ids, [(1, "resid_pre")], lambda *a: seen.append(a[2]))
    torch.testing.assert_close(seen[0], qwen.parts.model.model.embed_tokens(ids))
    for wrong in (0, -1, qwen.n_layers + 1):
        with pytest.raises(ll.LayerLensError, match=r"1\.\.4"):
            qwen.policy(wrong)
    assert qwen.policy(1).layer == 1


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["callback", "model", "analyze", "nowhere"])
def test_hooks_modes_and_weights_survive_exceptions(where: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    lens = ll.LensModel.wrap(model)
    mixed_modes(model)
    before, hooks_before = modes(model), count_hooks(model)
    weights = {name: (w.data_ptr(), w.clone()) for name, w in model.state_dict().items()}

    def fail(*_: object, **__: object) -> None:
        raise error

    def run() -> None:
        if where == "callback":
            lens.forward(torch.tensor([random_ids(4)]), everywhere(lens), fail)
        elif where == "analyze":
            monkeypatch.setattr("layerlens.analysis.row_decoder.readout", fail)
            ll.analyze(lens, [ll.Sample(random_ids(6), 2)])
        else:
            if where == "model":
                monkeypatch.setattr(model.model.layers[2].mlp, "forward", fail)
            ll.analyze(lens, [ll.Sample(random_ids(6), 6)], generate=ll.Generation(2))
            lens.policy(2).sample(random_ids(3), n=2)

    if where == "nowhere":
        run()
    else:
        with pytest.raises(error):
            run()
    assert count_hooks(model) == hooks_before == 0
    assert modes(model) == before
    for name, weight in model.state_dict().items():
        assert weight.data_ptr() == weights[name][0]
        assert torch.equal(weight, weights[name][1])


def test_wrap_keeps_the_mode_of_every_module() -> None:
    model = mixed_modes(tiny_model())
    before = modes(model)
    ll.LensModel.wrap(model, tiny_tokenizer())
    assert modes(model) == before
    assert count_hooks(model) == 0


@pytest.mark.parametrize(
    ("layer", "site", "attentions", "mlps"),
    [
        (1, "resid_pre", 0, 0),
        (1, "attn_in", 0, 0),
        (2, "attn_out", 2, 1),
        (2, "resid_mid", 2, 1),
        (3, "ffn_out", 3, 3),
        (4, "resid_post", 4, 4),
    ],
)
def test_forward_stops_after_the_last_place(qwen: ll.LensModel, layer: int, site: str, attentions: int, mlps: int) -> None:
    model, blocks = qwen.parts.model, qwen.parts.blocks
    modules = {f"block {i}": block for i, block in enumerate(blocks, 1)} | {f"mlp {i}": block.mlp for i, block in enumerate(blocks, 1)}
    modules |= {f"attn {i}": block.self_attn for i, block in enumerate(blocks, 1)} | {"norm": model.model.norm, "head": model.lm_head}
    # counting hooks on the very modules that are captured come first, so what is counted is what began to run
    with counted(modules) as calls:
        qwen.forward(torch.tensor([random_ids(4)]), [(1, "resid_pre"), (layer, site)], lambda *_: None)
    finished = {name for name in calls if calls[name]}
    assert all(calls[name] == 1 for name in finished)
    assert {name for name in finished if name.startswith("block")} == {f"block {i}" for i in range(1, layer + 1)}
    assert sum(name.startswith("attn") for name in finished) == attentions + (site == "attn_in")
    assert sum(name.startswith("mlp") for name in finished) == mlps
    assert not {"norm", "head"} & finished


def test_analyze_runs_a_text_once_and_no_block_above_the_last_place(qwen: ll.LensModel) -> None:
    with counted({"first": qwen.parts.blocks[0], "last": qwen.parts.blocks[-1]}) as calls:
        ll.analyze(qwen, [ll.Sample(random_ids(6), 2)])
        assert calls == {"first": 1, "last": 1}
        ll.analyze(qwen, [ll.Sample(random_ids(6), 2)], metrics=["entropy", "logp_next"], layers=[1, 2])
        assert calls == {"first": 2, "last": 1}


def test_analysis_of_a_training_model_keeps_no_graph() -> None:
    model = tiny_model().train().requires_grad_(True)
    lens = ll.LensModel.wrap(model)
    refs: list[weakref.ref[Tensor]] = []
    handle = model.model.layers[2].mlp.register_forward_hook(lambda _m, _a, out: refs.append(weakref.ref(out)))
    with torch.enable_grad():
        run = ll.analyze(lens, [ll.Sample(random_ids(7), 2)], kl_from_layer=1, top_k=2)
        policy = lens.policy(3, norm="final")
        outputs = [policy.log_probs(random_ids(5)), policy.entropy(random_ids(5))]
    handle.remove()
    gc.collect()
    assert refs
    assert all(ref() is None for ref in refs), "a state of the model is still alive"
    assert not any(output.requires_grad for output in outputs)
    assert run.data["entropy"].notnull().all()
    assert all(weight.grad is None for weight in model.parameters())
    loss = model(torch.tensor([random_ids(6)]), labels=torch.tensor([random_ids(6)])).loss
    loss.backward()  # training goes on as if nobody had looked
    assert all(weight.grad is not None for weight in model.parameters())


def test_dropout_is_off_during_analysis() -> None:
    model = tiny_model("llama", attention_dropout=0.5).train()
    lens = ll.LensModel.wrap(model)
    first, second = (ll.analyze(lens, [ll.Sample(random_ids(20), 5)], metrics="entropy").data["entropy"] for _ in range(2))
    assert first.equals(second)
    model.eval()
    assert first.equals(ll.analyze(lens, [ll.Sample(random_ids(20), 5)], metrics="entropy").data["entropy"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_captured_states_have_the_model_dtype(dtype: torch.dtype) -> None:
    lens = ll.LensModel.wrap(tiny_model().to(dtype))
    seen: list[torch.dtype] = []
    lens.forward(torch.tensor([random_ids(4)]), everywhere(lens), lambda *a: seen.append(a[2].dtype))
    assert set(seen) == {dtype}


def test_user_hooks_act_and_survive(qwen: ll.LensModel) -> None:
    """Steering by the user's own hook acts on what is measured, and is still there afterwards."""
    block = find_decoder_parts(qwen.parts.model).blocks[1]
    plain = ll.analyze(qwen, [ll.Sample(random_ids(8), 2)]).data["entropy"]
    handle = block.register_forward_hook(lambda _m, _a, out: out + 3.0)
    try:
        steered = ll.analyze(qwen, [ll.Sample(random_ids(8), 2)]).data["entropy"]
        assert handle.id in block._forward_hooks
    finally:
        handle.remove()
    assert steered.sel(layer=1).equals(plain.sel(layer=1))
    assert not steered.sel(layer=3, site="resid_pre").equals(plain.sel(layer=3, site="resid_pre"))
