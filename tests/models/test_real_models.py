"""Real pretrained models, where LAYERLENS_REAL_MODELS names their folder: each as a GGUF file and as a Hugging Face folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.types import NORMS, REQUESTED_METRICS
from tests.support.float64_reference import metrics_of, plain_states

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


@pytest.mark.skipif(not FOLDER, reason="LAYERLENS_REAL_MODELS names no folder of real models")
def test_spread_and_matched_entropies_of_a_real_model_match_float64() -> None:
    folder = Path(str(FOLDER)) / "smollm2-135m-instruct"
    model = ll.load(folder, dtype="float32")
    ids = model.tokenizer("The residual stream carries a state from layer to layer; its length grows on the way.")["input_ids"]
    net = ll.load(folder, dtype="float64").parts.model
    places = {"layers": [1, 15, 30], "sites": ["ffn_in", "ffn_out", "resid_post"]}
    none, final, matched = (ll.analyze(model, [ll.Sample(ids)], norm=norm, metrics="entropy", **places) for norm in NORMS)
    with torch.no_grad():
        states = plain_states(net, ids)
        own = net.lm_head(net.model.norm(states[30, "resid_post"]))
        spread = float(own.std(-1, unbiased=False).mean())
        assert matched.spread == pytest.approx(spread, rel=1e-5)
        for layer in places["layers"]:
            for site in places["sites"]:
                raw = net.lm_head(states[layer, site])
                sd = raw.std(-1, unbiased=False)
                at = {"layer": layer, "site": site}
                np.testing.assert_allclose(none.data["logit_sd"].sel(at), sd, rtol=2e-5)
                normed = net.lm_head(net.model.norm(states[layer, site])).std(-1, unbiased=False)
                np.testing.assert_allclose(final.data["logit_sd"].sel(at), normed, rtol=2e-5)
                logp = (raw * (spread / sd)[:, None]).log_softmax(-1)
                np.testing.assert_allclose(matched.data["entropy"].sel(at), -(logp.exp() * logp).sum(-1), atol=5e-4)


@pytest.mark.skipif(not FOLDER, reason="LAYERLENS_REAL_MODELS names no folder of real models")
@pytest.mark.parametrize("norm", ["none", "final"])
def test_metrics_on_request_of_a_real_model_match_float64(norm: str) -> None:
    folder = Path(str(FOLDER)) / "smollm2-135m-instruct"
    model = ll.load(folder, dtype="float32")
    ids = model.tokenizer("Add 17 and 25: the sum is 42.")["input_ids"]
    run = ll.analyze(model, [ll.Sample(ids)], norm=norm, metrics=("agrees", *REQUESTED_METRICS))
    net = ll.load(folder, dtype="float64").parts.model
    with torch.no_grad():

        def log_policy(h: torch.Tensor, how: str) -> torch.Tensor:
            return net.lm_head(net.model.norm(h) if how == "final" else h).log_softmax(-1)

        expected = metrics_of(plain_states(net, ids), log_policy, ids, norm, reference=1)
    # float32 rounds logits of up to 2e4 under norm none, and KL is then thousands of nats
    bounds = {"js_to_final": 5e-5, "kl_from_final": 1e-3 if norm == "final" else 0.05, "renyi_2": 5e-4}
    for name in (*REQUESTED_METRICS, "settling_depth", "agreement_depth", "deep_thinking_ratio"):
        error = np.abs(run.values(name).values - expected[name].numpy())
        if name == "rank_next":  # tokens whose logits differ by less than float32 can tell change places
            assert np.nanmean(error > 0) < 0.02
            assert np.nanmax(error / expected[name].numpy()) < 1e-3
        else:
            assert np.nanmax(error) <= bounds.get(name, 0), name
