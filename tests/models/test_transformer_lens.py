"""TransformerLens gives the same numbers: its own readout of its own states, its hooks at our sites, and its bridge as our model."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import layerlens as ll
from layerlens.errors import ModelLayoutError, ModelLoadError, RunError, SelectionError
from layerlens.models import hook_name, layer_site
from layerlens.models.transformer_lens import MIXERS, build_bridge
from layerlens.types import SITES
from tests.support.architectures import ARCHITECTURES, build, tiny_architecture
from tests.support.hooks import hook_gaps
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # TransformerLens' own
needs_library = pytest.mark.skipif(not importlib.util.find_spec("transformer_lens"), reason="needs the extra `tl`")

SAME = 1e-5
"""Nats, and shares of the largest value."""
EXCEPTIONS: dict[str, set[str]] = {
    "falcon_h1": {"attn_in", "attn_out"},  # its hook is of attention alone, beside which Mamba runs
    "granitemoehybrid": {"attn_out", "ffn_in", "ffn_out"},  # no factor on Mamba's, and two FFNs without a hook of their sum
}
"""Sites whose vectors TransformerLens' hook does not hold, as docs/architectures.md says."""


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / request.param
    tiny_model(request.param).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bridge(folder: Path) -> Any:
    pytest.importorskip("transformer_lens", reason="needs the extra `tl`")
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    bridge.eval()
    return bridge


@pytest.mark.parametrize("norm", ["none", "final"])
def test_bridge_logit_readout_matches_our_entropies(folder: Path, bridge: Any, norm: str) -> None:
    from transformer_lens.tools.analysis import logit_readout

    ids = random_ids(13)
    run = ll.analyze(ll.load(folder), [ll.Sample(ids)], norm=norm, metrics="entropy")
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor([ids]), prepend_bos=False)
    for site in SITES:
        for layer in run.layers:
            theirs = logit_readout(bridge, cache[hook_name(layer, site)][0], apply_ln=norm == "final").entropy
            ours = run.data["entropy"].sel(layer=layer, site=site).values
            np.testing.assert_allclose(ours, theirs, atol=SAME, err_msg=f"{site} of layer {layer}")


def test_wrapped_bridge_gives_the_same_run_and_is_unchanged(folder: Path, bridge: Any) -> None:
    samples = [ll.Sample(random_ids(n, n), 2) for n in (6, 11)]
    hooks = {name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in bridge.named_modules()}
    weights = {name: weight.clone() for name, weight in bridge.state_dict().items()}
    theirs = ll.analyze(ll.LensModel.wrap(bridge), samples)
    ours = ll.analyze(ll.load(folder), samples)
    for name in ours.data.data_vars:
        np.testing.assert_allclose(theirs.data[name], ours.data[name], atol=SAME, err_msg=str(name))
    assert hooks == {name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in bridge.named_modules()}
    assert all(torch.equal(weight, weights[name]) for name, weight in bridge.state_dict().items())


def test_wrapped_bridge_samples_the_same_responses(bridge: Any, folder: Path) -> None:
    prompts = [ll.Sample(random_ids(5, i), 5) for i in range(3)]
    settings = {"generate": ll.Generation(6, seed=1), "metrics": "entropy"}
    theirs = ll.analyze(ll.LensModel.wrap(bridge), prompts, **settings)
    ours = ll.analyze(ll.load(folder), prompts, **settings)
    np.testing.assert_array_equal(theirs.data["token_id"], ours.data["token_id"])


@needs_library
def test_folded_bridge_is_refused(folder: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    bridge.enable_compatibility_mode()
    with pytest.raises(ModelLayoutError, match="compatibility mode"):
        ll.LensModel.wrap(bridge)


@needs_library
def test_model_loaded_through_the_library_gives_the_same_prompts_runs_choice_and_policies(folder: Path) -> None:
    ours, theirs = ll.load(folder), ll.load(folder, backend="transformer_lens")
    assert ours.bridge is None
    prompts = [{"prompt": f"w{n} w9 w4", "response": "w1 w2 w3"} for n in range(4)]
    samples = ll.read_prompts(prompts, ours)
    assert ll.read_prompts(prompts, theirs) == samples
    assert ll.read_prompts(["w1"], theirs, chat=False)[0].token_ids == (9,)  # no BOS of TransformerLens' in front
    a, b = (ll.analyze(lens, samples, top_k=3, kl_from_layer=2) for lens in (ours, theirs))
    assert set(a.data.data_vars) == set(b.data.data_vars)
    for name in a.data.data_vars:
        np.testing.assert_allclose(b.data[name], a.data[name], atol=SAME, err_msg=str(name))
    assert a.manifest.model.fingerprint == b.manifest.model.fingerprint
    choices = [ll.select_layer(run) for run in (a, b)]
    assert choices[0].candidates.equals(choices[1].candidates)
    assert choices[0].reason == choices[1].reason
    for layer, site in ((1, "attn_out"), (3, "resid_post")):
        policies = [lens.policy(layer, site, "final") for lens in (ours, theirs)]
        torch.testing.assert_close(policies[1].entropy(samples[0].token_ids), policies[0].entropy(samples[0].token_ids), atol=SAME, rtol=0)
        drawn = [policy.sample(samples[0].token_ids, max_new_tokens=4, seed=3) for policy in policies]
        assert drawn[0] == drawn[1]


@needs_library
def test_hooks_of_the_bridge_act_on_what_is_read(folder: Path) -> None:
    lens, sample = ll.load(folder, backend="transformer_lens"), ll.Sample(random_ids(7))
    before = ll.analyze(lens, [sample])
    lens.bridge.add_hook(hook_name(2, "ffn_out"), lambda states, hook: torch.zeros_like(states))
    after = ll.analyze(lens, [sample])
    lens.bridge.reset_hooks()
    vocabulary = before.manifest.model.vocabulary
    np.testing.assert_allclose(after.data["entropy"].sel(layer=2, site="ffn_out"), np.log(vocabulary), atol=SAME)
    assert after.data["entropy"].sel(layer=1).equals(before.data["entropy"].sel(layer=1))
    assert not np.allclose(after.data["entropy"].sel(layer=3), before.data["entropy"].sel(layer=3), atol=1e-3)
    assert ll.analyze(lens, [sample]).data.equals(before.data)


@needs_library
def test_run_says_what_ran_the_model_and_is_continued_by_that_alone(folder: Path, tmp_path: Path) -> None:
    sample = [ll.Sample(random_ids(7))]
    run = ll.analyze(ll.load(folder, backend="transformer_lens"), sample, out=tmp_path / "run")
    assert run.manifest.model.library.startswith("TransformerLens 4.")
    assert ll.open_run(tmp_path / "run").manifest.model.library == run.manifest.model.library
    assert ll.analyze(ll.load(folder), sample).manifest.model.library is None
    with pytest.raises(RunError, match=r"model.library is 'TransformerLens 4\.\S+' there and '' now"):
        ll.analyze(ll.load(folder), sample, out=tmp_path / "run")


@needs_library
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_hooks_hold_our_states_and_the_bridge_gives_our_entropies_of_every_row(name: str) -> None:
    model, ids = tiny_architecture(name), random_ids(17, 3)
    gaps = hook_gaps(model, ids)
    differing = {site for site, gap in gaps.items() if gap is None or gap > SAME}
    assert differing == EXCEPTIONS.get(name, set())
    ours = ll.analyze(ll.LensModel.wrap(model), [ll.Sample(ids)], metrics="entropy")
    theirs = ll.analyze(ll.LensModel.wrap(build_bridge(model, name)), [ll.Sample(ids)], metrics="entropy")
    assert theirs.manifest.model.fingerprint == ours.manifest.model.fingerprint
    np.testing.assert_allclose(theirs.data["entropy"], ours.data["entropy"], atol=SAME)


@given(layer=st.integers(1, 200), site=st.sampled_from(SITES), mixer=st.sampled_from(MIXERS))
def test_hook_names_and_sites_translate_both_ways(layer: int, site: Any, mixer: str) -> None:
    assert layer_site(hook_name(layer, site, mixer)) == (layer, site)


def test_hook_names_are_transformer_lens_own() -> None:
    assert hook_name(1, "attn_out") == "blocks.0.hook_attn_out"
    assert hook_name(12, "ffn_in") == "blocks.11.mlp.hook_in"
    assert hook_name(3, "attn_out", "linear_attn") == "blocks.2.linear_attn.hook_out"
    for hook in ("blocks.0.attn.hook_out", "blocks.0.attn.hook_pattern", "hook_embed", "blocks.x.hook_resid_post", "resid_post"):
        with pytest.raises(SelectionError, match=r"is none of our sites; those of block 0 are blocks\.0\.hook_resid_pre"):
            layer_site(hook)
    with pytest.raises(SelectionError, match="layers are counted from 1, got 0"):
        hook_name(0, "resid_pre")
    with pytest.raises(SelectionError, match="TransformerLens has no mixer 'self_attn': choose from attn, linear_attn"):
        hook_name(1, "attn_in", "self_attn")


def test_what_cannot_run_in_a_bridge_is_refused_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(message: str, call: Any) -> None:
        with pytest.raises(ModelLoadError, match=message) as told:
            call()
        assert "\n" not in str(told.value)

    refused("unknown backend 'nnsight': choose from transformers, transformer_lens", lambda: ll.load(folder, backend="nnsight"))
    spread = tiny_model()
    spread.hf_device_map = {"model.layers.0": "cpu", "": "meta"}
    refused("one device here; give device in place of device_map", lambda: build_bridge(spread, "spread"))
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge.sources", None)
    refused(r"pip install 'layerlens-policy\[tl\]'", lambda: ll.load(folder, backend="transformer_lens"))


@needs_library
def test_model_that_the_library_cannot_run_is_refused_in_one_line() -> None:
    for name, config, message in (
        ("granitemoehybrid", {**ARCHITECTURES["granitemoehybrid"].config, "position_embedding_type": None}, "rotary_emb"),
        ("exaone_moe", {"mlp_layer_types": ["dense"] * 4}, "Unsupported architecture: ExaoneMoeForCausalLM"),
    ):
        with pytest.raises(ModelLoadError, match=rf"cannot run .*{message}.*load it directly") as told:
            build_bridge(build(name, config), name)
        assert "\n" not in str(told.value)


@needs_library
def test_our_jacobian_lens_is_the_one_that_transformer_lens_fits_and_reads(folder: Path, bridge: Any, tmp_path: Path) -> None:
    from transformer_lens.tools.analysis import JacobianLens

    from layerlens.models.lenses.fit_jacobian import fit_jacobian

    texts = [" ".join(f"w{i}" for i in random_ids(n, n)) for n in (14, 20)]
    options = {"max_seq_len": 16, "skip_first_positions": 4, "show_progress": False}
    theirs = JacobianLens.fit(bridge, texts, corpus="test", **options)
    ids = [bridge.to_tokens(text)[0].tolist() for text in texts]
    model = ll.load(folder)
    ours = fit_jacobian(model, ids, tmp_path / "ours.pt", max_tokens=16, skip_first=4)
    for index, matrix in theirs.jacobians.items():
        torch.testing.assert_close(ours.matrices[index + 1, "resid_post"], matrix, atol=1e-5, rtol=0)

    # each reads the other's file, and the policies are the same
    theirs.save(str(tmp_path / "theirs.pt"), dtype=torch.float32)
    read = JacobianLens.load(str(tmp_path / "ours.pt"))
    assert read.source_layers == theirs.source_layers == [0, 1, 2]
    text = torch.tensor([random_ids(9)])
    read.metadata.pop("model_name")  # the folder's name here, its whole path there
    logits = read.readout(bridge, text, return_full_logits=True).lens_logits
    for layer in (1, 2, 3, 4):
        expected = logits[layer - 1].log_softmax(-1)
        for file in ("ours.pt", "theirs.pt"):
            policy = model.policy(layer, norm="final", lens=ll.read_lens(f"jacobian:{tmp_path / file}"))
            torch.testing.assert_close(policy.entropy(text), -(expected.exp() * expected).sum(-1), atol=1e-4, rtol=0)
