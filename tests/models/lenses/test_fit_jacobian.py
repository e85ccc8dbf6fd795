"""A fitted Jacobian is the mean of the derivatives that its definition names, however the fit came to its end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import layerlens as ll
from layerlens.errors import PromptError, RunError
from layerlens.models.lenses import fit_jacobian as module
from layerlens.models.lenses.fit_jacobian import fit_jacobian
from tests.support.architectures import tiny_architecture
from tests.support.tiny_models import random_ids, tiny_model

SKIP = 3
TEXTS = [random_ids(9, 1), random_ids(12, 2)]


def exact(model: torch.nn.Module, text: list[int], place: tuple[int, str]) -> Tensor:
    """J of one text in float64, from the whole Jacobian of the final layer's states with respect to the states at a place."""
    net = copy.deepcopy(model).double()
    lens = ll.LensModel.wrap(net, check=False)
    where = (1, "resid_pre") if place == (0, "resid_post") else place
    module = lens.parts.sources(*where)[0]
    reached: list[Tensor] = []

    def final(shift: Tensor) -> Tensor:
        """The final layer's states if the states at the place are shifted."""
        out: list[Tensor] = []
        if module.side == "input":

            def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                states = args[0] if args else kwargs["hidden_states"]
                reached.append(states)
                return ((states + shift, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states + shift})

            handle = module.module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = module.module.register_forward_hook(lambda _m, _a, o: o + shift if isinstance(o, Tensor) else (o[0] + shift, *o[1:]))
        try:
            lens.forward(torch.tensor([text]), [(lens.n_layers, "resid_post")], lambda _l, _s, states: out.append(states[0]))
        finally:
            handle.remove()
        return out[0]

    n, d = len(text), lens.parts.unembedding_weight.shape[1]
    whole = torch.autograd.functional.jacobian(final, torch.zeros(n, d, dtype=torch.float64))  # [t', i, t, j]
    counted = range(SKIP, n - 1)
    return sum(whole[later, :, t] for t in counted for later in counted if later >= t) / len(counted)


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_jacobian_is_the_mean_derivative_at_every_layer(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(architecture, layers=3)
    monkeypatch.setitem(module.ROWS_AT_ONCE, "cpu", 61)  # several output dimensions at once, and a last portion that is not full
    lens = fit_jacobian(ll.LensModel.wrap(model), TEXTS, tmp_path / "lens.pt", skip_first=SKIP)
    mids = [(layer, "resid_mid") for layer in (1, 2, 3)]
    assert sorted(lens.matrices) == sorted([(layer, "resid_post") for layer in (0, 1, 2)] + mids)
    assert lens.n_prompts == 2
    for place in [(0, "resid_post"), (1, "resid_post"), (2, "resid_post")]:
        expected = sum(exact(model, text, place) for text in TEXTS) / 2
        torch.testing.assert_close(lens.matrices[place].double(), expected, atol=2e-5, rtol=0)


def test_jacobian_between_attention_and_ffn_is_that_of_the_ffn_and_all_above(tmp_path: Path) -> None:
    """By the chain rule: the stream after the block is mid + FFN(mid), token by token, so J_mid is known from finite differences."""
    model = tiny_model("llama", layers=2)
    lens = fit_jacobian(ll.LensModel.wrap(model), TEXTS[:1], tmp_path / "lens.pt", skip_first=SKIP)
    net = copy.deepcopy(model).double()
    block = net.model.layers[1]
    kept: list[Tensor] = []
    wrapped = ll.LensModel.wrap(net, check=False)
    wrapped.forward(torch.tensor(TEXTS[:1]), [(2, "resid_mid")], lambda _l, _s, states: kept.append(states[0].detach()))
    counted = kept[0][SKIP:-1]
    expected = torch.stack(
        [torch.autograd.functional.jacobian(lambda h: h + block.mlp(block.post_attention_layernorm(h)), h) for h in counted]
    ).mean(0)
    torch.testing.assert_close(lens.matrices[2, "resid_mid"].double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["gpt_neox", "gemma3_text", "granite"])
def test_other_architectures_are_fitted_at_the_places_that_they_have(name: str, tmp_path: Path) -> None:
    model = tiny_architecture(name)
    wrapped = ll.LensModel.wrap(model)
    lens = fit_jacobian(wrapped, TEXTS, tmp_path / "lens.pt", skip_first=SKIP)
    assert any(site == "resid_mid" for _, site in lens.matrices) == ("resid_mid" in wrapped.sites)
    expected = sum(exact(model, text, (2, "resid_post")) for text in TEXTS) / 2
    torch.testing.assert_close(lens.matrices[2, "resid_post"].double(), expected, atol=1e-4, rtol=1e-4)


def test_a_model_without_trainable_weights_is_fitted_and_left_as_it_was(tmp_path: Path) -> None:
    model = tiny_model("llama")
    trainable = fit_jacobian(ll.LensModel.wrap(model), TEXTS, tmp_path / "a.pt", skip_first=SKIP)
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    model.requires_grad_(False)
    frozen = fit_jacobian(ll.LensModel.wrap(model), TEXTS, tmp_path / "b.pt", skip_first=SKIP)
    assert frozen.fingerprint == trainable.fingerprint
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_stopped_fit_ends_with_the_same_bits(qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*TEXTS, random_ids(8, 4), random_ids(4, 5)]  # the last is too short to count
    whole = fit_jacobian(qwen, texts, tmp_path / "whole.pt", skip_first=SKIP)
    read: list[int] = []
    compute = module.text_jacobians

    def stop_at_the_third(model: Any, text: Any, skip: int) -> Any:
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(len(text))
        return compute(model, text, skip)

    monkeypatch.setattr(module, "text_jacobians", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        fit_jacobian(qwen, texts, tmp_path / "lens.pt", skip_first=SKIP)
    assert (tmp_path / "lens.pt.partial").is_file()
    assert not (tmp_path / "lens.pt").exists()
    read.clear()
    with pytest.raises(RunError, match="was left by a fit with other texts, settings or weights"):
        fit_jacobian(qwen, texts, tmp_path / "lens.pt", skip_first=SKIP + 1)
    lens = fit_jacobian(qwen, texts, tmp_path / "lens.pt", skip_first=SKIP)
    assert read == [8]
    assert lens.fingerprint == whole.fingerprint == ll.read_lens(f"jacobian:{tmp_path / 'lens.pt'}").fingerprint
    assert not (tmp_path / "lens.pt.partial").exists()
    (tmp_path / "lens.pt.partial").write_text("no checkpoint")
    with pytest.raises(RunError, match=r"lens\.pt\.partial is damaged .*; remove it to begin this fit anew"):
        fit_jacobian(qwen, texts, tmp_path / "lens.pt", skip_first=SKIP)


def test_texts_without_a_position_that_counts_are_refused(qwen: ll.LensModel, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no text has more than 17 tokens within its first 128"):
        fit_jacobian(qwen, TEXTS, tmp_path / "lens.pt")
