"""Every architecture that has a row: identities, metrics against float64, the final policy, and BuPO's cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.models import LAYOUTS, check_identities, find_decoder_parts, truncated_at
from layerlens.results import Run
from layerlens.types import FORWARD_NORMS, REQUESTED_METRICS, SITES
from tests.support.architectures import ARCHITECTURES, architecture_states, tiny_architecture
from tests.support.float64_reference import metrics_of
from tests.support.tiny_models import random_ids

NAMES = sorted(ARCHITECTURES)
REFERENCE = 2


def test_every_row_is_tested() -> None:
    assert sorted(LAYOUTS) == NAMES
    assert len(NAMES) >= 30


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_identities_hold_for_every_row(name: str, tied: bool) -> None:
    parts = find_decoder_parts(tiny_architecture(name, tied=tied))
    report = check_identities(parts)
    assert report.additivity_gap < 3e-6
    assert report.readout_gap < 3e-6
    assert parts.tied == (tied and ARCHITECTURES[name].ties)
    assert not parts.discovered


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_metric_of_every_row_matches_float64(name: str, tied: bool) -> None:
    model = tiny_architecture(name, tied=tied)
    lens = ll.LensModel.wrap(model)
    ids = random_ids(17, 3)
    states, log_policy = architecture_states(model, name, ids)
    assert {site for _, site in states} == set(lens.sites)
    for norm in FORWARD_NORMS:
        samples, metrics = [ll.Sample(random_ids(5, 1)), ll.Sample(ids)], ("all", *REQUESTED_METRICS)
        run = ll.analyze(lens, samples, norm=norm, metrics=metrics, kl_from_layer=REFERENCE, top_k=5)
        of_sample = Run(run.sample(1), run.manifest)
        expected = metrics_of(states, log_policy, ids, norm, REFERENCE)
        changes = [
            run.entropy_change(m).values[run.data["sample"].values == 1]
            for m in ("attn", "ffn", "layer")
            if m != "ffn" or ARCHITECTURES[name].ffn
        ]
        for metric, values in expected.items():
            if metric == "entropy_change":
                got = np.stack(changes, -1)
            else:
                got = of_sample.values(metric).values[0] if metric in ("similarity", "cka") else of_sample.values(metric).values
            np.testing.assert_allclose(got, values.numpy(), atol=1e-4, rtol=0, err_msg=f"{metric}, norm {norm}")


@pytest.mark.parametrize("name", NAMES)
def test_last_layer_with_final_norm_is_the_final_policy_of_every_row(name: str) -> None:
    model, ids = tiny_architecture(name), random_ids(11)
    lens = ll.LensModel.wrap(model)
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    policy = lens.policy(lens.n_layers, norm="final")
    torch.testing.assert_close(policy.entropy(ids), -(logp.exp() * logp).sum(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(policy.log_probs(ids), logp[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_truncated_model_is_the_internal_policy_and_runs_no_further_block(name: str) -> None:
    model, ids = tiny_architecture(name), torch.tensor([random_ids(9)])
    lens = ll.LensModel.wrap(model)
    blocks = lens.parts.blocks
    ran: list[int] = []
    handles = [block.register_forward_pre_hook(lambda *_, number=number: ran.append(number)) for number, block in enumerate(blocks, 1)]
    with torch.no_grad():
        full = model(ids, use_cache=False).logits
        with truncated_at(model, len(blocks), "final"):
            assert torch.equal(model(ids, use_cache=False).logits, full)
        for layer in range(1, len(blocks) + 1):
            for norm in FORWARD_NORMS:
                ran.clear()
                with truncated_at(model, layer, norm):
                    logp = model(ids, use_cache=False).logits[0].log_softmax(-1)
                assert ran == list(range(1, layer + 1))
                expected = lens.policy(layer, norm=norm).entropy(ids)
                torch.testing.assert_close(-(logp.exp() * logp).sum(-1), expected, atol=1e-4, rtol=0)
        assert torch.equal(model(ids, use_cache=False).logits, full)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_truncated_loss_reaches_no_weight_above_the_layer(name: str) -> None:
    model, ids = tiny_architecture(name), torch.tensor([random_ids(9)])
    blocks = ll.LensModel.wrap(model).parts.blocks
    with truncated_at(model, 2):
        model(ids, use_cache=False).logits.log_softmax(-1)[0, 3, 5].backward()
    reached = [any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in block.parameters()) for block in blocks]
    assert reached == [True, True, False, False]


@pytest.mark.parametrize("name", NAMES)
def test_cached_sampling_of_every_row_matches_uncached_loop(name: str) -> None:
    lens = ll.LensModel.wrap(tiny_architecture(name))
    for layer, site in ((1, "resid_post"), (2, "attn_out"), (4, "resid_post")):
        policy, text = lens.policy(layer, site, "final"), random_ids(6, 2)
        while len(text) < 11 and text[-1] not in policy.end_tokens:
            text.append(int(policy.top(text, 1)["token_id"][0]))
        assert policy.sample(text[:6], max_new_tokens=5, temperature=0.0) == [text[6:]]


@pytest.mark.parametrize("name", [name for name in NAMES if ARCHITECTURES[name].parallel or not ARCHITECTURES[name].ffn])
def test_sites_that_an_architecture_lacks_are_refused_by_name(name: str) -> None:
    lens = ll.LensModel.wrap(tiny_architecture(name))
    absent = [site for site in SITES if site not in lens.sites]
    assert absent == (["resid_mid"] if ARCHITECTURES[name].ffn else ["resid_mid", "ffn_in", "ffn_out"])
    run = ll.analyze(lens, [ll.Sample(random_ids(6))])
    assert run.sites == list(lens.sites)
    assert run.manifest.config.absent_sites == tuple(absent)
    assert run.data["stream_cosine"]["module"].values.tolist() == ["attn"]
    assert run.data["entropy"].notnull().all()
    if "ffn_out" in absent:
        with pytest.raises(SelectionError, match="ΔS of ffn does not exist here: nemotron_h has no ffn_in and no ffn_out"):
            run.entropy_change("ffn")
    for site in absent:
        message = f"{site} does not exist in {name}"
        with pytest.raises(SelectionError, match=message):
            ll.analyze(lens, [ll.Sample(random_ids(6))], sites=["resid_post", site])
        with pytest.raises(SelectionError, match=message):
            lens.policy(1, site)


def test_sequential_gpt_neox_has_resid_mid() -> None:
    from tests.support.architectures import build

    lens = ll.LensModel.wrap(build("gpt_neox", {"use_parallel_residual": False}))
    assert lens.sites == SITES
