"""A tuned lens starts from the identity and goes down the gradient of the KL divergence that it is defined by."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import layerlens as ll
from layerlens.errors import PromptError, RunError, SelectionError
from layerlens.models.lenses import fit_tuned as module
from layerlens.models.lenses.fit_tuned import TunedSettings, fit_tuned
from tests.support.float64_reference import plain_states
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer

TEXTS = [random_ids(20, seed) for seed in range(6)]


def kl(model: ll.LensModel, texts: list[list[int]], **lens: Any) -> Tensor:
    """Mean KL(π_final ‖ π_l) at resid_post of each layer, over all positions but the first."""
    found = []
    for text in texts:
        with torch.no_grad():
            final = model.parts.model(torch.tensor([text])).logits[0, 1:].log_softmax(-1)
        rows = [_logp(model, layer, text, **lens)[1:] for layer in range(1, model.n_layers + 1)]
        found.append(torch.stack([(final.exp() * (final - row)).sum(-1).mean() for row in rows]))
    return torch.stack(found).mean(0)


def _logp(model: ll.LensModel, layer: int, text: list[int], **lens: Any) -> Tensor:
    policy = model.policy(layer, norm="final", **lens)
    return model.unembedding().logits(policy.read_states(torch.tensor([text]), None)[0]).log_softmax(-1).detach()


def test_fit_brings_every_layer_nearer_to_the_final_policy(qwen: ll.LensModel, tmp_path: Path) -> None:
    lens = fit_tuned(qwen, TEXTS, tmp_path / "lens", TunedSettings(steps=150, rate=3e-3))
    assert lens.fingerprint == ll.read_lens(f"tuned:{tmp_path / 'lens'}").fingerprint
    assert sorted(lens.matrices) == [(layer, "resid_post") for layer in range(4)]
    before, after = kl(qwen, TEXTS), kl(qwen, TEXTS, lens=lens)
    assert (after[:3] < 0.7 * before[:3]).all()
    assert after[3] == before[3] == pytest.approx(0, abs=1e-6)


def test_a_few_huge_entries_do_not_drown_the_others(tmp_path: Path) -> None:
    network = tiny_model("qwen3", layers=4)
    with torch.no_grad():  # two entries of the stream carry nothing and decide its length, as in Gemma and Qwen
        network.model.embed_tokens.weight[:, :2] += torch.tensor([300.0, -200.0])
        network.model.norm.weight[:2] /= 3000
        network.model.norm.weight[2:] *= 1000
    model = ll.LensModel.wrap(network, tiny_tokenizer())
    lens = fit_tuned(model, TEXTS, tmp_path / "lens", TunedSettings(steps=20))
    others = [random_ids(20, seed) for seed in range(50, 56)]
    before, after = kl(model, others), kl(model, others, lens=lens)
    assert (after[:3] < 0.5 * before[:3]).all()


def test_before_the_first_step_the_lens_is_the_identity(qwen: ll.LensModel, tmp_path: Path) -> None:
    lens = fit_tuned(qwen, TEXTS, tmp_path / "lens", TunedSettings(steps=1, rate=1e-12))
    torch.testing.assert_close(kl(qwen, TEXTS, lens=lens), kl(qwen, TEXTS), atol=1e-5, rtol=0)


def test_gradient_is_that_of_the_divergence_in_float64(qwen: ll.LensModel) -> None:
    text, rows = TEXTS[0], [1, 4, 9, 19]
    states, final = module._read(qwen, TEXTS, [(0, rows)])
    maps = module._Translators(states)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*maps.weights, *maps.biases):
            value += 0.1 * torch.randn(value.shape, generator=generator)
    net = copy.deepcopy(qwen.parts.model).double()
    plain = plain_states(net, text)
    target = net.lm_head(net.model.norm(plain[4, "resid_post"][rows])).log_softmax(-1).detach()
    for layer in range(4):
        h = plain[layer + 1, "resid_pre"][rows]
        torch.testing.assert_close(states[layer].double(), h, atol=1e-5, rtol=0)
        weight, bias = (value[layer].detach().double().requires_grad_() for value in (maps.weights, maps.biases))
        sigma = maps.sigma[layer].double()
        carried = h + sigma * ((h / sigma) @ weight.T + bias)
        own = net.lm_head(net.model.norm(carried)).log_softmax(-1)
        (target.exp() * (target - own)).sum(-1).mean().backward()
        for got, expected in zip(module._gradient(qwen, maps, layer, states[layer], final), (weight.grad, bias.grad), strict=True):
            torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-4)
    assert all(weight.grad is None for weight in qwen.parts.model.parameters())


def test_batches_take_every_row_but_each_texts_first_once_in_every_round() -> None:
    texts = [random_ids(n) for n in (2, 5, 8)]
    batches = module._batches(texts, TunedSettings(rows=4))
    seen = [(text, row) for _ in range(3) for text, rows in next(batches) for row in rows]
    assert sorted(seen) == [(text, row) for text, n in enumerate((2, 5, 8)) for row in range(1, n)]
    again = module._batches(texts, TunedSettings(rows=4, seed=1))
    assert next(again) != next(module._batches(texts, TunedSettings(rows=4)))


def test_a_stopped_fit_ends_with_the_same_bits(qwen: ll.LensModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TunedSettings(steps=25, rows=8)
    whole = fit_tuned(qwen, TEXTS, tmp_path / "whole", settings)
    compute, calls = module._gradient, 0

    def stop_at_step_17(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 17 * 4:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(module, "_gradient", stop_at_step_17)
    with pytest.raises(KeyboardInterrupt):
        fit_tuned(qwen, TEXTS, tmp_path / "lens", settings)
    calls = 0
    with pytest.raises(RunError, match="was left by a fit with other texts, settings or weights"):
        fit_tuned(qwen, TEXTS[1:], tmp_path / "lens", settings)
    lens = fit_tuned(qwen, TEXTS, tmp_path / "lens", settings)
    assert calls == 15 * 4  # from the checkpoint after step 10
    assert lens.fingerprint == whole.fingerprint
    assert not (tmp_path / "lens.partial").exists()


def test_settings_out_of_range_and_texts_of_one_token_are_refused(qwen: ll.LensModel, tmp_path: Path) -> None:
    for wrong in ({"steps": 0}, {"rows": 0}, {"max_tokens": 0}, {"rate": 0.0}, {"rate": float("nan")}):
        with pytest.raises(SelectionError, match="must be"):
            TunedSettings(**wrong)
    with pytest.raises(PromptError, match="no text has two tokens or more to fit a lens on"):
        fit_tuned(qwen, [[5]], tmp_path / "lens")
