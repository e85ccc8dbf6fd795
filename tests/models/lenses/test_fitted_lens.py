"""A fitted lens carries each state by the map of its own place, and is the identity at the top."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import layerlens as ll
from layerlens.errors import RunError, SelectionError
from layerlens.models import FittedLens
from tests.models.lenses.conftest import random_lens
from tests.support.architectures import tiny_architecture
from tests.support.float64_reference import plain_states
from tests.support.tiny_models import random_ids, tiny_model

TEXT = random_ids(14, 3)
CARRIED = ["resid_pre", "attn_out", "resid_mid", "ffn_out", "resid_post"]


def carried(lens: FittedLens, states: dict[tuple[int, str], Tensor], n_layers: int) -> dict[tuple[int, str], Tensor]:
    """The states after the lens, in float64, as docs/definitions.md says: written down a second time."""
    out = {}
    for (layer, site), h in states.items():
        place = {"resid_pre": (layer - 1, "resid_post"), "attn_out": (layer, "resid_mid"), "resid_mid": (layer, "resid_mid")}.get(
            site, (layer, "resid_post")
        )
        if site in ("attn_in", "ffn_in") or (place not in lens.matrices and place != (n_layers, "resid_post")):
            continue
        if place == (n_layers, "resid_post"):
            out[layer, site] = h
            continue
        bias = lens.biases.get(place, torch.zeros(1)) if site in ("resid_pre", "resid_mid", "resid_post") else torch.zeros(1)
        out[layer, site] = h @ lens.matrices[place].double().T + bias.double()
    return out


def test_every_metric_through_a_lens_matches_float64(qwen: ll.LensModel, fitted: FittedLens) -> None:
    net = copy.deepcopy(qwen.parts.model).double()
    plain = plain_states(net, TEXT)
    states = carried(fitted, plain, qwen.n_layers)
    run = ll.analyze(qwen, [ll.Sample(TEXT)], norm="final", lens=fitted, kl_from_layer=2, top_k=5)
    assert run.sites == (CARRIED if fitted.name == "jacobian" else ["resid_pre", "ffn_out", "resid_post"])

    def log_policy(h: Tensor) -> Tensor:
        return net.lm_head(net.model.norm(h)).log_softmax(-1)

    with torch.no_grad():
        final, reference = log_policy(plain[qwen.n_layers, "resid_post"]), log_policy(states[2, "resid_post"])
        for layer in run.layers:
            for site in run.sites:
                x = log_policy(states[layer, site])
                expected = {
                    "entropy": -(x.exp() * x).sum(-1),
                    "logit_sd": net.lm_head(net.model.norm(states[layer, site])).std(-1, unbiased=False),
                    "logp_next": x.gather(1, torch.tensor([*TEXT[1:], 0])[:, None])[:, 0],
                    "kl_to_final": (x.exp() * (x - final)).sum(-1),
                    "kl_from_layer": (reference.exp() * (reference - x)).sum(-1),
                    "agrees": (x.argmax(-1) == final.argmax(-1)).double(),
                    "top_probs": x.exp().sort(-1, descending=True).values[:, :5],
                }
                for name, values in expected.items():
                    got = run.data[name].sel(layer=layer, site=site).values
                    rows = slice(-1) if name == "logp_next" else slice(None)
                    np.testing.assert_allclose(got[rows], values.numpy()[rows], atol=1e-4, rtol=0, err_msg=f"{name} {layer} {site}")
    logit = ll.analyze(qwen, [ll.Sample(TEXT)], norm="final")
    for name in ("similarity", "cka", "stream_cosine"):  # of the states as they are
        assert run.data[name].equals(logit.data[name])


def test_identity_maps_are_the_logit_lens(qwen: ll.LensModel, fitted: FittedLens) -> None:
    none = {place: torch.zeros(fitted.d_model) for place in fitted.biases}
    same = replace(fitted, matrices={place: torch.eye(fitted.d_model) for place in fitted.matrices}, biases=none)
    through, logit = (ll.analyze(qwen, [ll.Sample(TEXT)], norm="final", lens=lens) for lens in (same, "logit"))
    for name in through.data.data_vars:
        expected = logit.data[name].sel(site=through.sites) if "site" in logit.data[name].dims else logit.data[name]
        np.testing.assert_allclose(through.data[name], expected, atol=1e-5, err_msg=str(name))


def test_autocast_does_not_round_what_a_lens_carries(qwen: ll.LensModel, fitted: FittedLens) -> None:
    states = torch.randn(5, fitted.d_model, generator=torch.Generator().manual_seed(0))
    alone = fitted.carry(states, 2, "resid_post", qwen.n_layers)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fitted.carry(states, 2, "resid_post", qwen.n_layers), alone)


def test_policy_through_a_lens_scores_as_the_analysis_and_is_final_at_the_top(qwen: ll.LensModel, fitted: FittedLens) -> None:
    run = ll.analyze(qwen, [ll.Sample(TEXT)], norm="final", lens=fitted)
    for layer, site in ((1, "resid_pre"), (2, "ffn_out"), (3, "resid_post"), (4, "resid_post")):
        policy = qwen.policy(layer, site, "final", lens=fitted)
        assert policy.lens == fitted.name
        np.testing.assert_allclose(policy.entropy(TEXT), run.data["entropy"].sel(layer=layer, site=site), atol=1e-5)
        np.testing.assert_allclose(policy.log_probs(TEXT), run.data["logp_next"].sel(layer=layer, site=site)[:-1], atol=1e-5)
    assert torch.equal(qwen.policy(4, norm="final", lens=fitted).entropy(TEXT), qwen.policy(4, norm="final").entropy(TEXT))
    text = qwen.policy(2, norm="final", lens=fitted).sample(TEXT, max_new_tokens=3, temperature=0.0)[0]
    assert text[0] == int(qwen.policy(2, norm="final", lens=fitted).top(TEXT, 1)["token_id"][0])


def test_what_attention_adds_in_parallel_blocks_is_read_as_what_the_ffn_adds() -> None:
    model = ll.LensModel.wrap(tiny_architecture("gpt_neox"))
    lens = replace(random_lens(model), matrices={p: m for p, m in random_lens(model).matrices.items() if p[1] == "resid_post"})
    run = ll.analyze(model, [ll.Sample(TEXT)], norm="final", lens=lens, metrics="entropy")
    assert run.sites == ["resid_pre", "attn_out", "ffn_out", "resid_post"]
    kept: list[Tensor] = []
    model.forward(torch.tensor([TEXT]), [(2, "attn_out")], lambda layer, site, states: kept.append(states[0].detach()))
    carried_out = model.convention("final").vectors(2, "attn_out", kept[0] @ lens.matrices[2, "resid_post"].T)
    logp = model.unembedding().logits(carried_out).log_softmax(-1)
    np.testing.assert_allclose(run.data["entropy"].sel(layer=2, site="attn_out"), -(logp.exp() * logp).sum(-1).detach(), atol=1e-4)


@pytest.mark.parametrize("site", ["attn_in", "ffn_in"])
def test_what_a_module_reads_is_carried_by_no_lens(qwen: ll.LensModel, fitted: FittedLens, site: str) -> None:
    with pytest.raises(SelectionError, match=f"{site} is what a module reads, and no lens carries it"):
        qwen.policy(2, site, "final", lens=fitted)
    with pytest.raises(SelectionError, match=f"{site} is what a module reads"):
        ll.analyze(qwen, [ll.Sample(TEXT)], norm="final", lens=fitted, sites=["resid_post", site])
    with pytest.raises(
        SelectionError, match=f"ΔS of ffn needs the sites ffn_in and ffn_out; .* a {fitted.name} lens reads no input of a module"
    ):
        ll.analyze(qwen, [ll.Sample(TEXT)], norm="final", lens=fitted, metrics="entropy").entropy_change("ffn")


def test_places_without_a_map_are_refused_by_name(qwen: ll.LensModel) -> None:
    tuned = random_lens(qwen, "tuned")
    for site in ("resid_mid", "attn_out"):
        with pytest.raises(SelectionError, match=f"lens tuned holds no map fitted at resid_mid of layer 3, which {site} of layer 3 needs"):
            qwen.policy(3, site, "final", lens=tuned)
    published = replace(tuned, matrices={place: m for place, m in tuned.matrices.items() if place[0] in (1, 3)}, biases={})
    with pytest.raises(SelectionError, match="no map fitted at the embedding, which resid_pre of layer 1 needs"):
        qwen.policy(1, "resid_pre", "final", lens=published)
    with pytest.raises(SelectionError, match="no map fitted at resid_post of layer 2"):
        ll.analyze(qwen, [ll.Sample(TEXT)], norm="final", lens=published, sites="resid_post")
    run = ll.analyze(qwen, [ll.Sample(TEXT)], norm="final", lens=published, layers=[1, 3, 4], metrics="entropy")
    assert run.sites == ["ffn_out", "resid_post"]


def test_a_lens_goes_with_the_final_norm_and_a_model_of_its_shape(qwen: ll.LensModel, fitted: FittedLens) -> None:
    for norm in ("none", "matched"):
        with pytest.raises(
            SelectionError, match=f"{fitted.name} lens carries states to the final norm: pass norm='final' .*, got '{norm}'"
        ):
            ll.analyze(qwen, [ll.Sample(TEXT)], norm=norm, lens=fitted)
    with pytest.raises(SelectionError, match=f"lens {fitted.name} was fitted to a model of 4 layers, and this one has 3"):
        ll.LensModel.wrap(tiny_model(layers=3)).policy(1, norm="final", lens=fitted)
    with pytest.raises(SelectionError, match="was fitted to a model of 4 layers, and this one has 5"):
        ll.LensModel.wrap(tiny_model(layers=5)).policy(1, norm="final", lens=fitted)
    small = replace(fitted, matrices={place: m[:8, :8] for place, m in fitted.matrices.items()}, biases={})
    with pytest.raises(SelectionError, match=f"the matrices of lens {fitted.name} are 8 × 8, and the model's states have 32 dimensions"):
        qwen.policy(1, norm="final", lens=small)


def test_model_and_revision_that_the_file_names_must_be_the_models(fitted: FittedLens) -> None:
    lens = replace(fitted, model="Org/Tiny-Model", revision="abc", weights=None)
    lens.require_model("elsewhere/tiny-model", None, lambda: "1")
    lens.require_model("tiny-model", "abc", lambda: "1")
    with pytest.raises(SelectionError, match="was fitted to Org/Tiny-Model, not to other; if that is the same model, load it"):
        lens.require_model("other", None, lambda: "1")
    with pytest.raises(SelectionError, match="was fitted to revision abc of Org/Tiny-Model, and this is revision def"):
        lens.require_model("tiny-model", "def", lambda: "1")
    exact = replace(lens, weights="1")
    exact.require_model("whatever", "def", lambda: "1")
    with pytest.raises(SelectionError, match=r"with weights 1, and tiny-model has other weights, or another dtype \(2\)"):
        exact.require_model("tiny-model", "abc", lambda: "2")


def test_a_run_stores_its_lens_and_mixes_with_no_other(qwen: ll.LensModel, fitted: FittedLens, tmp_path) -> None:
    sample = [ll.Sample(TEXT, 4)]
    ll.analyze(qwen, sample, norm="final", lens=fitted, out=tmp_path / "run", sites="resid_post")
    run = ll.open_run(tmp_path / "run")
    assert (run.lens, run.convention, run.data.attrs["lens"]) == (fitted.name, f"final, {fitted.name} lens", fitted.name)
    assert run.manifest.config.lens_fingerprint == fitted.fingerprint
    with pytest.raises(RunError, match="begun with another configuration"):
        ll.analyze(qwen, sample, norm="final", lens=random_lens(qwen, fitted.name, seed=1), out=tmp_path / "run", sites="resid_post")
    logit = ll.analyze(qwen, sample, norm="final", sites="resid_post")
    with pytest.raises(SelectionError, match="lens is logit before and"):
        ll.difference(logit, run)
    with pytest.raises(SelectionError, match="these runs mix the lenses"):
        ll.compare([logit, run])
    assert ll.select_layer(run, "agreement").lens == fitted.name
    assert ll.LayerChoice.from_dict(ll.select_layer(run, "agreement").to_dict()).lens == fitted.name
