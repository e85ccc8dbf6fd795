"""The fingerprint of a model: one digest for equal weights, another as soon as one weight differs."""

from __future__ import annotations

import torch

import layerlens as ll
from layerlens.models import find_decoder_parts
from tests.support.tiny_models import tiny_model


def test_fingerprint_sees_one_ulp_in_any_weight() -> None:
    model = tiny_model()
    before = find_decoder_parts(model).fingerprint()
    assert before == find_decoder_parts(tiny_model()).fingerprint(), "where weights lie does not matter"
    for name, weight in list(model.named_parameters()):
        with torch.no_grad():
            flat = weight.view(-1)
            place = flat.numel() // 3 + 1
            old = flat[place].clone()
            flat[place] = torch.nextafter(old, torch.tensor(float("inf")))
            assert find_decoder_parts(model).fingerprint() != before, name
            flat[place] = old
    assert find_decoder_parts(model).fingerprint() == before


def test_fingerprint_depends_on_values_not_on_storage() -> None:
    tied = tiny_model(tied=True)
    untied = tiny_model(tied=False)
    untied.load_state_dict(tied.state_dict())
    assert find_decoder_parts(tied).tied
    assert not find_decoder_parts(untied).tied
    assert find_decoder_parts(tied).fingerprint() == find_decoder_parts(untied).fingerprint()
    assert ll.LensModel.wrap(tied).fingerprint != ll.LensModel.wrap(tiny_model(seed=1)).fingerprint
    flipped = tiny_model(tied=True)
    with torch.no_grad():
        weight = flipped.model.layers[0].mlp.up_proj.weight
        weight.copy_(weight.t().contiguous().t())
    assert find_decoder_parts(flipped).fingerprint() == find_decoder_parts(tied).fingerprint()


def test_fingerprint_is_taken_once() -> None:
    lens = ll.LensModel.wrap(tiny_model())
    first = lens.fingerprint
    with torch.no_grad():
        lens.parts.unembedding_weight.add_(1)
    assert lens.fingerprint == first
    assert lens.parts.fingerprint() != first
