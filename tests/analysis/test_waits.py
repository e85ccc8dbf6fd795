"""What the host waits for on a GPU, counted on a card that is none: once for each block of rows, and once for all numbers of a batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.analysis import pipeline
from layerlens.analysis.layer_similarity import layer_similarity
from layerlens.analysis.row_decoder import RowDecoder, to_host
from layerlens.analysis.text_batch import TextBatch
from layerlens.models import Convention, LayerSite, LensModel
from tests.support.fake_card import CARD, fake_card, to_card
from tests.support.tiny_models import tiny_model

LENGTHS = (30, 19)
IDS = [torch.randint(3, 200, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]


def decoder_of(lens: LensModel, backend: str, norm: str = "final") -> RowDecoder:
    convention: Convention = lens.convention(norm)  # type: ignore[arg-type]
    asked = ("all", "js_to_final", "kl_from_final", "rank_next", "renyi_2")
    plan = pipeline._resolved_plan(lens, convention, "all", "all", asked, "all", "response", 1.0, 2, 3, ())
    return RowDecoder(lens, TextBatch(IDS, [torch.arange(n) for n in LENGTHS], ["0", "1"]), replace(plan, backend=backend), convention)


def states_of(lens: LensModel) -> dict[LayerSite, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    places = [(layer, site) for layer in range(1, lens.n_layers + 1) for site in lens.sites]
    return {place: torch.randn(sum(LENGTHS), 32, generator=generator) for place in places}


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_host_waits_once_for_each_block_and_once_for_a_batch(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_model("qwen3")
    expected = decoder_of(lens := ll.LensModel.wrap(net), "torch-mm")
    states = states_of(lens)
    anchors = {"final": states[4, "resid_post"], "reference": states[2, "resid_post"]}
    expected.decode(states, anchors)
    expected.collect()
    with fake_card(monkeypatch) as card:
        to_card(net)
        decoder = decoder_of(lens := ll.LensModel.wrap(net), "workspace")
        on_card = {place: rows.to(CARD) for place, rows in states.items()}
        rows = sum(LENGTHS)
        monkeypatch.setattr(decoder, "_block_rows", lambda *_: -(-rows // blocks))
        lens.logit_spread  # noqa: B018 (measured once for each model)
        card.clear()
        decoder.decode(on_card, {"final": on_card[4, "resid_post"], "reference": on_card[2, "resid_post"]})
        assert sum(card.waits.values()) == blocks, f"one for each block, to know whether every row has a policy: {card.waits}"
        decoder.collect()
        assert sum(card.waits.values()) == blocks + 1, f"and one packed copy: {card.waits}"
        assert card.sent == blocks, "the targets of each block"
    for name, values in expected.values.items():
        np.testing.assert_allclose(decoder.values[name].astype(float), values.astype(float), atol=2e-5, err_msg=name)


def test_similarity_of_all_texts_is_one_copy_and_rows_are_numbered_on_a_card_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = TextBatch(IDS, [torch.arange(3, n) for n in LENGTHS], ["0", "1"])
    padded = [torch.randn(2, 30, 32, generator=torch.Generator().manual_seed(layer)) for layer in range(4)]
    with fake_card(monkeypatch) as card:
        on_card = [states.to(CARD) for states in padded]
        card.clear()
        layers = [batch.rows(states) for states in on_card]
        assert (card.sent, dict(card.waits)) == (1, {})
        numbers = torch.arange(len(batch))
        found = [layer_similarity(layers, numbers[a:b], CARD) for a, b in zip(batch.cuts, batch.cuts[1:], strict=False)]
        assert not card.waits
        copied = to_host({f"{i} {name}": matrix for i, text in enumerate(found) for name, matrix in text.items()})
        assert sum(card.waits.values()) == 1
    np.testing.assert_allclose(np.diagonal(copied["1 similarity"][0]), 1, atol=1e-5)
