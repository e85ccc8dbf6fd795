"""Every metric of an analysis against the independent float64 computation, on every architecture of the fixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.results import Run
from layerlens.types import NORMS, REQUESTED_METRICS, SITES
from tests.support.float64_reference import plain_metrics, plain_spread
from tests.support.tiny_models import random_ids, tiny_model

REFERENCE = 2


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_metric_matches_float64(architecture: str, tied: bool, norm: str) -> None:
    model = tiny_model(architecture, tied=tied)
    lengths = (9, 17, 7)
    samples = [ll.Sample(random_ids(n, seed), n // 3) for seed, n in enumerate(lengths)]
    run = ll.analyze(ll.LensModel.wrap(model), samples, norm=norm, metrics=("all", *REQUESTED_METRICS), kl_from_layer=REFERENCE, top_k=5)
    if norm == "matched":
        assert run.spread == pytest.approx(plain_spread(model, [list(sample.token_ids) for sample in samples]), rel=1e-6)
    for index, sample in enumerate(samples):
        expected = plain_metrics(model, list(sample.token_ids), norm, REFERENCE, sample.response_start, run.spread)
        data = run.sample(index)
        for name, values in expected.items():
            if name == "entropy_change":
                got = np.stack([run.entropy_change(m).values[run.data["sample"].values == index] for m in ("attn", "ffn", "layer")], -1)
            else:
                rows = Run(data, run.manifest)
                got = rows.values(name).values[0] if name in ("similarity", "cka") else rows.values(name).values
            np.testing.assert_allclose(got, values.numpy(), atol=1e-4, rtol=0, err_msg=f"{name} of sample {index}")
    perplexity = np.exp(-np.nanmean([np.nanmean(_response_logp(run, i), axis=0) for i in range(3)], axis=0))
    np.testing.assert_allclose(run.mean("perplexity")["mean"].values, perplexity, rtol=1e-5)


def _response_logp(run: ll.Run, index: int) -> np.ndarray:
    data = run.sample(index)
    return data["logp_next"].values[data["in_response"].values.astype(bool)].astype(np.float64)


def test_last_layer_with_final_norm_is_the_final_policy(lens: ll.LensModel) -> None:
    ids = random_ids(11)
    with torch.no_grad():
        logp = lens.parts.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    run = ll.analyze(lens, [ll.Sample(ids)], norm="final", sites="resid_post", layers=lens.n_layers)
    last = run.data.isel(layer=-1, site=-1)
    np.testing.assert_allclose(last["entropy"], -(logp.exp() * logp).sum(-1), atol=1e-5)
    np.testing.assert_allclose(last["logp_next"][:-1], logp[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0], atol=1e-5)
    np.testing.assert_allclose(last["kl_to_final"], 0, atol=1e-6)
    assert last["agrees"].values.all()
    policy = lens.policy(lens.n_layers, "resid_post", "final")
    np.testing.assert_allclose(policy.log_probs(ids), last["logp_next"][:-1], atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_batching_and_padding_change_no_metric(qwen: ll.LensModel, batch_tokens: int) -> None:
    samples = [ll.Sample(random_ids(n, n), 2) for n in (5, 30, 8, 19)]
    alone = [ll.analyze(qwen, [sample]) for sample in samples]
    together = ll.analyze(qwen, samples, batch_tokens=batch_tokens)
    for name in together.data.data_vars:
        joined = np.concatenate([run.data[name].values for run in alone])
        np.testing.assert_allclose(together.data[name].values, joined, atol=2e-5, err_msg=str(name))


def test_subset_of_sites_and_layers_gives_the_same_numbers(qwen: ll.LensModel) -> None:
    samples = [ll.Sample(random_ids(n, n), 3) for n in (7, 12)]
    everything = ll.analyze(qwen, samples)
    some = ll.analyze(qwen, samples, sites=["ffn_out", "resid_pre"], layers=[4, 2], metrics=["entropy", "stream_cosine"])
    assert set(some.data.data_vars) == {"entropy", "logit_sd", "stream_cosine"}
    assert some.layers == [2, 4]
    assert some.sites == ["resid_pre", "ffn_out"]
    for name in some.data.data_vars:
        where = {"site": some.sites} if name != "stream_cosine" else {}
        np.testing.assert_allclose(some.data[name], everything.data[name].sel(layer=[2, 4], **where), atol=1e-5)
    response = ll.analyze(qwen, samples, rows="response")
    keep = everything.data["in_response"].values.astype(bool)
    np.testing.assert_allclose(response.data["entropy"], everything.data["entropy"].values[keep], atol=1e-5)
    np.testing.assert_allclose(response.mean("entropy")["mean"], everything.mean("entropy")["mean"], atol=1e-5)


def test_similarity_in_blocks_of_rows_is_that_of_all_rows(qwen: ll.LensModel, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [ll.Sample(random_ids(n, n), 0) for n in (23, 40)]
    at_once = ll.analyze(qwen, samples, metrics="similarity")
    monkeypatch.setattr("layerlens.analysis.layer_similarity.BLOCK_BYTES", 4 * 32 * 4 * 7)
    cut = ll.analyze(qwen, samples, metrics="similarity")
    for name in ("similarity", "cka"):
        np.testing.assert_allclose(cut.data[name], at_once.data[name], atol=1e-6)
        matrix = at_once.data[name].values
        np.testing.assert_allclose(matrix, matrix.transpose(0, 2, 1), atol=1e-6)
        np.testing.assert_allclose(np.diagonal(matrix, axis1=1, axis2=2), 1, atol=1e-6)


def test_bfloat16_and_float16_stay_near_float32() -> None:
    ids = random_ids(40)
    entropies = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        lens = ll.LensModel.wrap(tiny_model("llama").to(dtype))
        run = ll.analyze(lens, [ll.Sample(ids)], norm="final", sites=["resid_post", "ffn_out"], metrics="entropy")
        entropies[dtype] = run.data["entropy"].values
    assert np.abs(entropies[torch.float16] - entropies[torch.float32]).mean() < 0.01
    assert np.abs(entropies[torch.bfloat16] - entropies[torch.float32]).mean() < 0.05


def test_sites_keep_their_order() -> None:
    assert SITES == ("resid_pre", "attn_in", "attn_out", "resid_mid", "ffn_in", "ffn_out", "resid_post")
