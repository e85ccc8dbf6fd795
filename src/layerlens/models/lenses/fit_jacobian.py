"""Fitting a Jacobian lens: the mean effect of a state on the final layer's states at the same and all later positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from layerlens.errors import PromptError, SelectionError
from layerlens.models.lens import LensModel
from layerlens.models.lenses.checkpoint import FitCheckpoint
from layerlens.models.lenses.files import save_lens
from layerlens.models.lenses.fitted_lens import FittedLens, Place
from layerlens.progress import progress_bar
from layerlens.types import Site

SKIP_FIRST = 16
"""Positions at the start of each text that are left out, as in the reference implementation: attention sinks lie there."""

ROWS_AT_ONCE = {"cpu": 512, "cuda": 8192}
"""Rows of one backward pass, by device type: the text stands in the batch as often as fits, each time with another output dimension."""

Jacobians = dict[Place, Float[Tensor, "d d"]]


def fit_jacobian(
    model: LensModel,
    texts: Sequence[Sequence[int]],
    out: str | Path,
    *,
    max_tokens: int = 128,
    skip_first: int = SKIP_FIRST,
    progress: bool | None = None,
) -> FittedLens:
    """Fits a Jacobian lens at the embedding, at every layer's resid_post and, if the model has it, resid_mid, and writes it to `out`.

    With h the state at one place, h_L the final layer's state before the final norm, and V the positions that count (not the first
    `skip_first` of a text, nor its last):

        J = mean over texts of 1/|V| Σ_{t ∈ V} Σ_{t' ∈ V, t' ≥ t} ∂h_L,t' / ∂h_t

    (Gurnee et al. 2026, with the estimator of its reference implementation, which TransformerLens shares.) Each text takes a forward
    pass and d backward passes through the blocks, so the time grows with d² × layers × tokens; the reference calls 100 texts of 128
    tokens usable. Nothing is random. A fit that was stopped goes on at the text that it had come to.

    Args:
        texts: token ids of each text; of a longer one than `max_tokens` the beginning counts. One without a position that counts is
            left out.
        out: file to write.
        progress: whether to show a progress bar; by default only on a terminal.

    Raises:
        PromptError: no text has a position that counts.
        SelectionError: the architecture computes a place of the stream in a way that gradients do not follow.
        RunError: `out` cannot be written, or another fit has left its unfinished work there.
    """
    used = [list(text[:max_tokens]) for text in texts if len(text[:max_tokens]) > skip_first + 1]
    if not used:
        raise PromptError(f"no text has more than {skip_first + 1} tokens within its first {max_tokens}: pass longer ones")
    settings = {"kind": "jacobian", "weights": model.fingerprint, "max_tokens": max_tokens, "skip_first": skip_first}
    checkpoint = FitCheckpoint(out, settings, used)
    kept = checkpoint.read()
    done = 0 if kept is None else int(kept["done"])
    total: Jacobians = {} if kept is None else kept["total"]
    with progress_bar(f"fitting a Jacobian lens to {model.name}", len(used), "tokens", progress) as advance:
        advance(done, 0)
        for number, text in enumerate(used[done:], done + 1):
            for place, jacobian in text_jacobians(model, text, skip_first).items():
                total[place] = total[place] + jacobian if place in total else jacobian
            checkpoint.write(done=number, total=total)
            advance(1, len(text))
    lens = FittedLens(
        "jacobian",
        {place: jacobian / len(used) for place, jacobian in total.items()},
        n_layers=model.n_layers,
        model=model.name,
        revision=model.revision,
        weights=model.fingerprint,
        n_prompts=len(used),
        file=str(out),
    )
    save_lens(lens, out)
    checkpoint.remove()
    return lens


def text_jacobians(model: LensModel, text: Sequence[int], skip_first: int) -> Jacobians:
    """J of one text at every place, float32 on the CPU."""
    last = model.n_layers
    places: list[tuple[int, Site]] = [(1, "resid_pre"), *((layer, "resid_post") for layer in range(1, last + 1))]
    if "resid_mid" in model.sites:
        places += [(layer, "resid_mid") for layer in range(1, last + 1)]
    d, copies = model.parts.unembedding_weight.shape[1], max(1, ROWS_AT_ONCE.get(model.device.type, 512) // len(text))
    copies = min(copies, d)
    seen: dict[Place, Tensor] = {}

    def on_state(layer: int, site: Site, states: Tensor) -> None:
        if not states.requires_grad:  # the embedding's output, of a model without trainable weights
            states.requires_grad_()
        seen[(0, "resid_post") if site == "resid_pre" else (layer, "resid_mid" if site == "resid_mid" else "resid_post")] = states

    with torch.enable_grad():
        model.forward(torch.tensor([list(text)] * copies), sorted(places), on_state)
    target = seen.pop((last, "resid_post"))
    counted = torch.arange(skip_first, len(text) - 1)
    found: Jacobians = {place: torch.zeros(d, d) for place in seen}
    cotangent = torch.zeros_like(target)
    for start in range(0, d, copies):
        rows = torch.arange(min(copies, d - start))
        cotangent.zero_()
        cotangent[rows[:, None], counted[None], start + rows[:, None]] = 1
        gradients = torch.autograd.grad(target, list(seen.values()), cotangent, retain_graph=start + copies < d, allow_unused=True)
        for place, gradient in zip(seen, gradients, strict=True):
            if gradient is None:
                raise SelectionError(f"{model.name} computes its {place[1]} of layer {place[0]} apart from the stream: no Jacobian there")
            here = gradient[: len(rows), skip_first : len(text) - 1]
            found[place][start : start + len(rows)] = here.float().mean(1).cpu()
    return found
