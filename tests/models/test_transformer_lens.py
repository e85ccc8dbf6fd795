"""TransformerLens gives the same numbers: its own readout of its own states, and its bridge wrapped as our model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.errors import ModelLayoutError
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # TransformerLens' own
]

HOOKS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "ffn_out": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
}


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
    for site, hook in HOOKS.items():
        for layer in run.layers:
            theirs = logit_readout(bridge, cache[hook.format(layer - 1)][0], apply_ln=norm == "final").entropy
            ours = run.data["entropy"].sel(layer=layer, site=site).values
            np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=f"{site} of layer {layer}")


def test_wrapped_bridge_gives_the_same_run_and_is_unchanged(folder: Path, bridge: Any) -> None:
    samples = [ll.Sample(random_ids(n, n), 2) for n in (6, 11)]
    hooks = {name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in bridge.named_modules()}
    weights = {name: weight.clone() for name, weight in bridge.state_dict().items()}
    theirs = ll.analyze(ll.LensModel.wrap(bridge), samples)
    ours = ll.analyze(ll.load(folder), samples)
    for name in ours.data.data_vars:
        np.testing.assert_allclose(theirs.data[name], ours.data[name], atol=1e-5, err_msg=str(name))
    assert hooks == {name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in bridge.named_modules()}
    assert all(torch.equal(weight, weights[name]) for name, weight in bridge.state_dict().items())


def test_wrapped_bridge_samples_the_same_responses(bridge: Any, folder: Path) -> None:
    prompts = [ll.Sample(random_ids(5, i), 5) for i in range(3)]
    settings = {"generate": ll.Generation(6, seed=1), "metrics": "entropy"}
    theirs = ll.analyze(ll.LensModel.wrap(bridge), prompts, **settings)
    ours = ll.analyze(ll.load(folder), prompts, **settings)
    np.testing.assert_array_equal(theirs.data["token_id"], ours.data["token_id"])


def test_folded_bridge_is_refused(folder: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    bridge.enable_compatibility_mode()
    with pytest.raises(ModelLayoutError, match="compatibility mode"):
        ll.LensModel.wrap(bridge)
