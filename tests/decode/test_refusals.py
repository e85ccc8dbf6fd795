"""What the readout refuses: arguments that do not fit, and rows that have no policy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import layerlens as ll
from layerlens.decode import readout
from layerlens.decode.interface import _refuse_bad_input
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import ReadoutError, SelectionError
from tests.support.float64_policies import FAMILIES
from tests.support.tiny_models import random_ids, tiny_model


@pytest.mark.parametrize("backend", FAMILIES)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_readout_names_the_row_and_state_of_a_bad_vector(poison: float, backend: str) -> None:
    hidden = torch.randn(2, 5, 4)
    hidden[1, 3, 2] = poison
    with pytest.raises(ReadoutError, match="row 3 of state 1") as caught:
        readout(hidden, torch.randn(50, 4), backend=backend)
    assert (caught.value.stack, caught.value.row) == (1, 3)


@pytest.mark.parametrize(("layers", "told"), [("all", "layer 2, ffn_out: .* at token 4"), ([1], "layer 4, resid_post: .* at token 0")])
def test_analyze_names_token_layer_and_site_of_a_bad_vector(layers: object, told: str) -> None:
    """The first bad vector in the order of the flow; or the final policy's, if all that is measured is good and it alone is bad.

    By the final layer attention has spread the NaN to all tokens, because a token that a mask hides counts 0 times NaN.
    """
    model = tiny_model()
    lens = ll.LensModel.wrap(model)
    samples = [ll.Sample(random_ids(9), 3, id="good"), ll.Sample(random_ids(7, seed=1), 3, id="bad")]

    def spoil(_module: object, _inputs: object, output: torch.Tensor) -> None:
        output[1, 4, 0] = math.nan

    model.model.layers[1].mlp.register_forward_hook(spoil)
    with pytest.raises(ReadoutError, match=f"^{told} of sample bad"):
        ll.analyze(lens, samples, layers=layers, progress=False)


@pytest.mark.parametrize("backend", FAMILIES)
def test_readout_refuses_minus_infinity_and_an_empty_vocabulary(backend: str) -> None:
    bias = torch.zeros(50)
    bias[7] = -math.inf
    with pytest.raises(ReadoutError, match="infinite"):
        readout(torch.randn(2, 4), Unembedding(torch.randn(50, 4), bias=bias), backend=backend)
    with pytest.raises(ReadoutError, match="empty vocabulary"):
        readout(torch.randn(2, 4), torch.randn(0, 4), backend=backend)


def test_readout_asks_for_missing_arguments() -> None:
    h, w = torch.randn(2, 4), torch.randn(9, 4)
    with pytest.raises(SelectionError, match="'kl' needs final="):
        readout(h, w, want=("kl",))
    with pytest.raises(SelectionError, match="unknown readout 'surprise'"):
        readout(h, w, want=("surprise",))
    assert readout(h, w, want="entropy").entropy is not None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"unembedding": Unembedding(torch.ones(9, 5))}, "4 dimensions, the unembedding 5"),
        ({"bias": torch.ones(8)}, r"bias must be of shape \[9\], got \[8\]"),
        ({"hidden": torch.ones(4)}, r"with at least one row; got \[4\]"),
        ({"hidden": torch.ones(0, 4)}, r"with at least one row; got \[0, 4\]"),
        ({"targets": torch.zeros(5, dtype=torch.long)}, r"targets must be of shape \[6\], got \[5\]"),
        ({"targets": torch.full((6,), 9)}, "token ids below 9, or negative for none"),
        ({"targets": torch.zeros(6)}, "token ids below 9, or negative for none"),
        ({"final": torch.ones(5, 4)}, r"final must be of shape \[6, 4\], got \[5, 4\]"),
        ({"reference": torch.ones(6, 3)}, r"reference must be of shape \[6, 4\], got \[6, 3\]"),
        ({"top_k": -1}, "top_k must be 0 or more, got -1"),
    ],
)
def test_readout_refuses_bad_arguments_before_a_backend_reads_them(given: dict[str, Any], told: str) -> None:
    """By the private function, because in tests the checks of array shapes would refuse some of them first."""
    given = dict(given)
    good: dict[str, Any] = {"hidden": torch.ones(6, 4), "unembedding": Unembedding(torch.ones(9, 4)), "want": (), "top_k": 0}
    object.__setattr__(good["unembedding"], "bias", given.pop("bias", None))
    vectors = {name: given.pop(name, None) for name in ("targets", "final", "reference")}
    with pytest.raises(SelectionError, match=told):
        _refuse_bad_input(**{**good, **given}, given=vectors)
