"""Measures how well every architecture that has a row is read, and writes docs/architectures.md.

    python -m benchmarks.architectures [--out docs/architectures.md]

Models are tiny, random and perturbed (tests/support/architectures.py), so everything runs on a CPU in a few minutes.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
import transformers
from tests.support.architectures import ARCHITECTURES, architecture_states, tiny_architecture
from tests.support.tiny_models import random_ids

import layerlens as ll
from layerlens.errors import ModelLayoutError
from layerlens.models import check_identities, discover_layout, find_decoder_parts, truncated_at
from layerlens.models.layout import REFUSED
from layerlens.types import NORMS

TOKENS = 17

PAGE = """# Architectures

Written by `python -m benchmarks.architectures` (transformers {transformers}, torch {torch}) on tiny random models with perturbed norms,
biases and factors, each untied and tied. Every row is also proved on the real model when it is loaded: a model that breaks an identity
is refused.

- *additivity*: the worst difference between the layout's sums and resid_mid or resid_post, as a share of the largest value, in float32.
- *readout*: the same of final norm and unembedding of the last resid_post against the model's own logits.
- *float32*, *bfloat16*: the worst (float32) and the mean (bfloat16) difference of entropy from an independent float64 computation, over all
  layers and sites, norm none and final, in nats. In bfloat16 it is the rounding of the model's own forward.
- *cut*: the worst difference in entropy between BuPO's truncated forward and the policy of `LensModel.policy`, over all layers, in nats.
- *discovered*: whether discovery, without the row, finds the same modules and factors.
- *sites*: those that exist; parallel blocks have no resid_mid.

| model_type | additivity | readout | float32 | bfloat16 | cut | discovered | sites |
|---|---|---|---|---|---|---|---|
{rows}

An architecture without a row is discovered in the model's own structure and proved in the same way, or refused with the reason;
`layerlens check --discover MODEL` prints its row. These are refused by name, because one hidden vector per token and layer does not exist:
{refused}. Encoder-decoders and models without a causal head are refused as well.
"""


def worst_gaps(name: str) -> tuple[float, float]:
    reports = [check_identities(find_decoder_parts(tiny_architecture(name, tied=tied)), tokens=TOKENS) for tied in (False, True)]
    return max(report.additivity_gap for report in reports), max(report.readout_gap for report in reports)


@torch.no_grad()
def entropy_errors(name: str, dtype: torch.dtype) -> torch.Tensor:
    """Absolute differences from float64 of all entropies, nats."""
    errors = []
    for tied in (False, True):
        model, ids = tiny_architecture(name, tied=tied), random_ids(TOKENS, 3)
        states, log_policy = architecture_states(model, name, ids)
        lens = ll.LensModel.wrap(model.to(dtype), check=False)
        for norm in NORMS:
            run = ll.analyze(lens, [ll.Sample(ids)], metrics="entropy", norm=norm)
            for (layer, site), state in states.items():
                logp = log_policy(state, norm)
                ours = torch.tensor(run.data["entropy"].sel(layer=layer, site=site).values)
                errors.append((ours - -(logp.exp() * logp).sum(-1)).abs())
    return torch.cat(errors)


@torch.no_grad()
def cut_error(name: str) -> float:
    model, ids = tiny_architecture(name), random_ids(TOKENS)
    lens, worst = ll.LensModel.wrap(model), 0.0
    for layer in range(1, lens.n_layers + 1):
        for norm in NORMS:
            with truncated_at(model, layer, norm):
                logp = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
            worst = max(worst, float((-(logp.exp() * logp).sum(-1) - lens.policy(layer, norm=norm).entropy(ids)).abs().max()))
    return worst


def discovered(name: str) -> str:
    model = tiny_architecture(name)
    row = find_decoder_parts(model)
    try:
        found = find_decoder_parts(model, discover_layout(model))
    except ModelLayoutError as error:
        return f"no: {error}"
    places = [(layer, site) for layer in range(1, len(row.blocks) + 1) for site in row.sites]
    same = row.sites == found.sites and all(
        [(a.module, a.side) for a in row.sources(*place)] == [(b.module, b.side) for b in found.sources(*place)] for place in places
    )
    return "yes" if same else "other modules"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("docs/architectures.md"))
    out = parser.parse_args().out
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    rows = []
    for name in sorted(ARCHITECTURES):
        additivity, readout = worst_gaps(name)
        exact, half = entropy_errors(name, torch.float32).max(), entropy_errors(name, torch.bfloat16).mean()
        figures = [f"{value:.0e}" for value in (additivity, readout, float(exact))]
        sites = find_decoder_parts(tiny_architecture(name)).sites
        shown = "all" if len(sites) == 7 else ", ".join(sites)
        rows.append(f"| {name} | {' | '.join(figures)} | {float(half):.2g} | {cut_error(name):.0e} | {discovered(name)} | {shown} |")
        print(rows[-1], flush=True)
    page = PAGE.format(
        transformers=transformers.__version__, torch=torch.__version__.split("+")[0], rows="\n".join(rows), refused=", ".join(REFUSED)
    )
    out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
