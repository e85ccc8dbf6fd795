from __future__ import annotations

import pytest
import torch

from layerlens.models import FittedLens, LensModel


def random_lens(model: LensModel, name: str = "jacobian", seed: int = 0) -> FittedLens:
    """Random maps at every place of the stream."""
    generator = torch.Generator().manual_seed(seed)
    d, last = model.parts.unembedding_weight.shape[1], model.n_layers
    places = [(layer, "resid_post") for layer in range(last)]
    places += [(layer, "resid_mid") for layer in range(1, last + 1)] if name == "jacobian" else []
    matrices = {place: torch.eye(d) + 0.3 * torch.randn(d, d, generator=generator) for place in places}
    biases = {place: torch.randn(d, generator=generator) for place in places} if name == "tuned" else {}
    return FittedLens(name, matrices, biases, n_layers=last, model=model.name, weights=model.fingerprint)


@pytest.fixture(scope="session", params=["jacobian", "tuned"])
def fitted(request: pytest.FixtureRequest, qwen: LensModel) -> FittedLens:
    return random_lens(qwen, request.param)
