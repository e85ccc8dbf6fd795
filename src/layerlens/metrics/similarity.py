"""How alike layers are, how a module's output relates to the residual stream it is added to, and how long states are."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

CKA_TOKENS = 512
"""CKA compares all pairs of tokens; of a longer sample it reads this many evenly spaced tokens."""


def cosine_sums(states: Float[Tensor, "layers tokens d"]) -> Float[Tensor, "layers layers"]:
    """Σ over tokens of cos(H^l_t, H^m_t) for every pair of layers l, m, float64; divide by the number of tokens for the mean."""
    unit = normalize(states.float(), dim=-1).flatten(1)
    return (unit @ unit.T).double()


def debiased_cka(states: Float[Tensor, "layers tokens d"]) -> Float[Tensor, "layers layers"]:
    """Linear CKA between layers (Kornblith et al. 2019) with the unbiased HSIC estimator, float64; NaN with fewer than four tokens.

    U-centred Gram matrices make the estimator one inner product (Székely & Rizzo 2014; Song et al. 2012; used for
    representations by Nguyen et al. 2021). Its expectation is 0 for independent states, so values can lie below 0.
    """
    n_layers, n, _ = states.shape
    if n < 4:
        return torch.full((n_layers, n_layers), math.nan, dtype=torch.float64)
    gram = torch.empty(n_layers, n * n, dtype=torch.float64, device=states.device)
    for layer, x in enumerate(states):
        x = x.double()
        x = x - x.mean(0)  # changes nothing in exact arithmetic, but keeps digits in floating point
        k = x @ x.T
        k.fill_diagonal_(0)
        rows = k.sum(0) / (n - 2)
        k = k - rows[:, None] - rows[None, :] + k.sum() / ((n - 1) * (n - 2))
        gram[layer] = k.fill_diagonal_(0).flatten()
    hsic = gram @ gram.T
    scale = hsic.diagonal().clamp_min(0).sqrt()
    return hsic / (scale[:, None] * scale[None, :])


def stream_cosine(output: Float[Tensor, "*rows d"], stream: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
    """cos(module output, residual stream it is added to), float32: > 0 amplifies, near 0 writes new directions, < 0 erases."""
    return cosine_similarity(output.float(), stream.float(), dim=-1)


def state_norm(states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
    """‖h‖, the Euclidean norm of a state as it stands at its site, before any norm convention; float32.

    A few tokens, most often the first, have states a hundred times as long as all others (Sun et al. 2024, "Massive Activations in
    Large Language Models"): means over tokens that weigh by length, such as linear CKA, are then theirs alone.
    """
    length: Tensor = torch.linalg.vector_norm(states.float(), dim=-1)
    return length
