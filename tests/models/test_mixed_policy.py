"""Mixtures and contrasts of layers' policies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.models.mixed_policy import LayerMix, contrasted, mixture, parse_mix
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer

IDS = random_ids(9)


@pytest.fixture(scope="module", params=["qwen3", "gemma3"])
def model(request: pytest.FixtureRequest) -> ll.LensModel:
    from tests.support.architectures import tiny_architecture

    return ll.LensModel.wrap(tiny_model("qwen3") if request.param == "qwen3" else tiny_architecture("gemma3_text"), tiny_tokenizer())


def policies(model: ll.LensModel, layers: list[int], **options: Any) -> torch.Tensor:
    """Each layer's policy at each token, from whole logits in float64."""
    parts = [model.policy(layer, **options) for layer in layers]
    ids = torch.tensor([IDS])
    return torch.stack([part.unembedding.logits(part.read_states(ids, None)[0]).double().softmax(-1) for part in parts])


@pytest.mark.parametrize("norm", ["none", "final"])
def test_a_mixture_of_one_layer_is_that_layers_policy(model: ll.LensModel, norm: Any) -> None:
    one, mixed = model.policy(2, norm=norm), model.policy(layers=[2], norm=norm)
    torch.testing.assert_close(mixed.log_probs(IDS), one.log_probs(IDS), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(mixed.entropy(IDS), one.entropy(IDS), atol=1e-5, rtol=1e-5)
    assert mixed.sample(IDS, 3, max_new_tokens=5, seed=1) == one.sample(IDS, 3, max_new_tokens=5, seed=1)
    assert mixed.top(IDS, 3)["token_id"].tolist() == one.top(IDS, 3)["token_id"].tolist()


def test_a_mixture_is_the_weighted_sum_of_policies(model: ll.LensModel) -> None:
    mixed = model.policy(layers=[1, 3, 2], weights=[1.0, 2.0, 1.0], norm="final")
    pi = torch.einsum("l,ltv->tv", torch.tensor([0.25, 0.5, 0.25]).double(), policies(model, [1, 3, 2], norm="final"))
    targets = torch.tensor(IDS[1:])[:, None]
    torch.testing.assert_close(mixed.log_probs(IDS).double(), pi.log()[:-1].gather(-1, targets)[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed.entropy(IDS).double(), -(pi * pi.log()).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(mixed.top(IDS, 4)["prob"]).double(), pi[-1].topk(4).values, atol=1e-6, rtol=1e-5)


def test_a_contrast_is_that_of_dola(model: ll.LensModel) -> None:
    last = model.n_layers
    contrast = model.policy(contrast=(last, 1), norm="final")
    q, p = policies(model, [last, 1], norm="final")
    scores = (q / p).log().masked_fill(q < 0.1 * q.amax(-1, keepdim=True), -torch.inf).log_softmax(-1)
    expected = scores[:-1].gather(-1, torch.tensor(IDS[1:])[:, None])[:, 0]
    torch.testing.assert_close(contrast.log_probs(IDS).double(), expected, atol=2e-5, rtol=1e-5)
    drawn = contrast.sample(IDS, 20, max_new_tokens=1)
    assert {row[0] for row in drawn} <= set(scores[-1].isfinite().nonzero()[:, 0].tolist()), "only plausible tokens are drawn"
    assert torch.isfinite(contrast.entropy(IDS)).all()


def test_a_cache_gives_the_tokens_of_whole_texts() -> None:
    lens = ll.LensModel.wrap(tiny_model("llama"), tiny_tokenizer())
    mixed = lens.policy(layers=[2, 4], norm="final")
    [drawn] = mixed.sample(IDS, max_new_tokens=6, temperature=0.0)
    text = list(IDS)
    for token in drawn:
        assert token == mixed.top(text, 1)["token_id"].item()
        text.append(token)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4, unique=True), st.data())
def test_a_mix_is_read_as_it_is_written(layers: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(layers), max_size=len(layers)))
    mix = mixture(layers, [weight / 8 for weight in weights])
    read = parse_mix(mix.text)
    assert isinstance(read, LayerMix)
    assert read.layers == tuple(layers)
    assert read.weights == pytest.approx(mix.weights, rel=1e-5)
    assert sum(mix.weights or ()) == pytest.approx(1)
    assert parse_mix(f"{layers[0]}") == layers[0]
    assert parse_mix("contrast:9, 2") == contrasted([9, 2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "a layer is like 6, mix:4,8,12"), ("mix:", "a layer is like"), ("4,8", "a layer is like"), ("mix:4=1,8", "a layer is like"),
        ("contrast:4=1,8=1", "a layer is like"), ("blend:4,8", "a layer is like"), ("mix:4,4", "each once"),
        ("mix:4=0,8=1", "weights above 0"), ("mix:4=1.1.1,8=1", "a layer is like"), ("contrast:4", "two layers"),
        ("contrast:4,4", "uniform over the plausible tokens"),
    ],
)  # fmt: skip
def test_what_is_no_mix_is_refused(text: str, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        parse_mix(text)


def test_a_policy_is_of_one_thing(model: ll.LensModel) -> None:
    for asked in ({}, {"layer": 1, "layers": [2]}, {"layers": [1], "contrast": (2, 1)}, {"layer": 1, "weights": [1.0]}):
        with pytest.raises(SelectionError, match="give one of them"):
            model.policy(**asked)
    with pytest.raises(SelectionError, match="9"):
        model.policy(layers=[1, 9])
    with pytest.raises(SelectionError, match="with itself says nothing"):
        model.policy(contrast=(2, 2))


def test_layers_on_several_devices_are_mixed_on_the_unembeddings(model: ll.LensModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values stand for two cards."""
    width = model.parts.unembedding_weight.shape[1]

    def forward(self: Any, ids: torch.Tensor, places: Any, on_state: Any, cache: Any = None) -> None:
        for layer, site in places:
            on_state(layer, site, torch.empty(1, 5, width, device=f"cuda:{layer - 2}"))

    monkeypatch.setattr(ll.LensModel, "forward", forward)
    with FakeTensorMode(allow_non_fake_inputs=True):
        mixed = model.policy(layers=[2, 3])
        assert mixed.read_stack(torch.zeros(1, 5, dtype=torch.long), None).device == model.parts.unembedding_weight.device
