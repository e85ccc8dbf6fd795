"""Measures how well every architecture that has a row is read, and writes docs/architectures.md.

    python -m benchmarks.architectures [--out docs/architectures.md]

Models are tiny, random and perturbed (tests/support/architectures.py), so everything runs on a CPU in a few minutes. The section on
real models shows what `python -m benchmarks.half_precision` has measured (benchmarks/half_precision.json).
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.models.test_discover import WITHOUT_ROW
from tests.support.architectures import ARCHITECTURES, architecture_states, build, tiny_architecture
from tests.support.hooks import hook_gaps
from tests.support.tiny_models import random_ids

import layerlens as ll
from layerlens.errors import ModelLayoutError, ModelLoadError
from layerlens.models import check_identities, discover_layout, find_decoder_parts, truncated_at
from layerlens.models.layout import REFUSED
from layerlens.models.transformer_lens import library_version
from layerlens.types import FORWARD_NORMS

TOKENS = 17
SAME = 1e-5
"""Two libraries give the same states if they differ by less than this share of the largest value."""

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
- *{library}*: the worst difference of what its hooks give, without folding, from our states and logits, as a share of the largest value,
  over all layers and sites ([below](#transformerlens)), in float32.
- *sites*: those that exist; parallel blocks have no resid_mid.

| model_type | additivity | readout | float32 | bfloat16 | cut | discovered | {library} | sites |
|---|---|---|---|---|---|---|---|---|
{rows}

An architecture without a row is discovered in the model's own structure and proved in the same way, or refused with the reason;
`layerlens check --discover MODEL` prints its row. These are refused by name, because one hidden vector per token and layer does not exist:
{refused}. Encoder-decoders and models without a causal head are refused as well.

## TransformerLens

`ll.load(NAME, backend="transformer_lens")` and `--library transformer_lens` run any of these in a TransformerBridge of {library}. Its
[hook names](definitions.md#sites) hold the same vectors as our sites, with these exceptions:

{exceptions}

Of the architectures without a row, discovered here: {without_row}.

## Real models in bfloat16

{half_precision}
"""

WHY = {
    "falcon_h1": "attention and Mamba run side by side. `hook_attn_out` holds what attention returns, without its factor and without "
    "Mamba's part, and `attn.hook_in` what attention reads, times its factor; our attn_in is what Mamba reads",
    "granitemoehybrid": "`mixer.hook_out` of a Mamba block holds what Mamba returns, before the residual multiplier; no hook holds the sum "
    "of the two FFNs. A model whose configuration leaves out `position_embedding_type` cannot be run: its bridge looks "
    "for a rotary embedding that it does not have",
    "recurrent_gemma": "its blocks are opaque to TransformerLens, which has hooks around them alone",
}
"""What lies behind a difference, read in TransformerLens' source."""

HALF_PRECISION = Path("benchmarks/half_precision.json")
HALF_PRECISION_TEXT = """From [half_precision.json](../benchmarks/half_precision.json), made by `python -m benchmarks.half_precision`
(transformers {transformers}, torch {torch}, CPU). Each model read the same texts in float32 and in bfloat16: {prompts} prompts with up to
{new_tokens} response tokens, sampled in float32. The figures are the largest change, over layers, of a mean over response tokens at
resid_post (*all sites*: at any site), in nats; of log-probability beside its largest mean. *agrees*: of the share of tokens on which a
layer agrees with the final policy. *same argmax*: the share of tokens and layers on which both dtypes have the same most likely token.
*one token*: the largest change of a single token's entropy.

| model | norm | entropy | all sites | ΔS attn | ΔS ffn | ΔS layer | KL to final | log-probability | agrees | same argmax | one token |
|---|---|---|---|---|---|---|---|---|---|---|---|
{rows}

So bfloat16 will do for mean curves of entropy and ΔS; take float32 for single tokens, and for KL and log-probability under norm none.
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
        for norm in FORWARD_NORMS:
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
        for norm in FORWARD_NORMS:
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


def library_gaps(model: Any) -> tuple[str, str | None]:
    """How far TransformerLens' hooks are from our states: a cell of the table, and the sites at which they differ, in words."""
    try:
        gaps = hook_gaps(model, random_ids(TOKENS, 3))
    except ModelLoadError as error:
        return "refused", f"refused: {error}"
    worst = max(gap for gap in gaps.values() if gap is not None)
    wrong = [f"{site} {'has no hook' if gap is None else f'{gap:.2g}'}" for site, gap in gaps.items() if gap is None or gap > SAME]
    return (f"{worst:.0e}", None) if not wrong else (f"[differs](#transformerlens) ({worst:.2g})", ", ".join(wrong))


def half_precision_section() -> str:
    found = json.loads(HALF_PRECISION.read_text(encoding="utf-8"))
    columns = ["entropy", "entropy_all_sites", *(f"entropy_change_{module}" for module in ("attn", "ffn", "layer")), "kl_to_final"]
    rows = [
        f"| {row['model']} | {row['norm']} | {' | '.join(f'{row[column]:.2g}' for column in columns)} "
        f"| {row['logp_next']:.2g} of {row['logp_next_largest']:,.0f} | {row['agrees']:.2g} | {row['same_argmax']:.1%} "
        f"| {row['entropy_single_token']:.2g} |"
        for row in found["rows"]
    ]
    return HALF_PRECISION_TEXT.format(**{**found, "torch": found["torch"].split("+")[0], "rows": "\n".join(rows)}).strip()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("docs/architectures.md"))
    out = parser.parse_args().out
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)  # discovery and TransformerLens tell what they found
    rows, exceptions, without_row = [], [], []
    for name in sorted(ARCHITECTURES):
        additivity, readout = worst_gaps(name)
        exact, half = entropy_errors(name, torch.float32).max(), entropy_errors(name, torch.bfloat16).mean()
        figures = [f"{value:.0e}" for value in (additivity, readout, float(exact))]
        sites = find_decoder_parts(tiny_architecture(name)).sites
        shown = "all" if len(sites) == 7 else ", ".join(sites)
        library, wrong = library_gaps(tiny_architecture(name))
        cells = [*figures, f"{float(half):.2g}", f"{cut_error(name):.0e}", discovered(name), library, shown]
        rows.append(f"| {name} | {' | '.join(cells)} |")
        if wrong:
            exceptions.append(f"- **{name}**: {wrong}. Here {WHY[name]}.")
        print(rows[-1], flush=True)
    for name, (config, _) in sorted(WITHOUT_ROW.items()):
        library, wrong = library_gaps(build(name, config))
        without_row.append(name if wrong else f"{name} {library}")
        if wrong:
            exceptions.append(f"- **{name}** (discovered): {wrong}. Here {WHY[name]}.")
    page = PAGE.format(
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        library=library_version(),
        rows="\n".join(rows),
        refused=", ".join(REFUSED),
        exceptions="\n".join(exceptions),
        without_row=", ".join(without_row),
        half_precision=half_precision_section(),
    )
    out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
