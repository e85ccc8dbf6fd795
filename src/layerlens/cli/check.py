"""`layerlens check`: where a model is read, and whether its identities hold."""

from __future__ import annotations

import math

import typer

from layerlens.cli.options import AsJson, ModelName, ModelOptions, grouped, print_json


@grouped
def check(
    model: ModelName,
    *,
    loading: ModelOptions,
    as_json: AsJson = False,
) -> None:
    """Show where layerlens reads a model, and whether what it reads adds up to the model's own states and logits.

    If the sums do not hold, the exit code is 2: such a model would be analysed wrongly, and `layerlens analyze` refuses it.

    Example: layerlens check Qwen/Qwen3-4B
    """
    import layerlens as ll
    from layerlens.models import check_identities

    lens = ll.load(model, **loading.keywords(), check=False)
    parts, config = lens.parts, lens.parts.model.config
    report = check_identities(parts)
    vocabulary, d_model = parts.unembedding.shape
    facts = {
        "model": lens.name,
        "architecture": config.model_type,
        "layers": lens.n_layers,
        "d_model": d_model,
        "vocabulary": vocabulary,
        "context": parts.context,
        "dtype": str(parts.dtype).removeprefix("torch."),
        "unembedding": "tied to the embedding" if parts.tied else "not tied",
        "decoder": parts.layout.decoder,
        "blocks": f"{parts.layout.decoder}.{parts.layout.blocks}",
        "final_norm": f"{parts.layout.decoder}.{parts.layout.final_norm}",
    }
    sites = {site: f"{point.side} of {point.module or 'the block'}" for site, point in parts.layout.hook_points.items()}
    if as_json:
        gaps = {"readout_gap": report.readout_gap, "additivity_gap": report.additivity_gap}
        plain = {name: gap if math.isfinite(gap) else None for name, gap in gaps.items()}
        print_json(
            {**facts, "sites": sites, **plain, "additivity_layer": report.additivity_layer, "tolerance": report.tolerance, "ok": report.ok}
        )
    else:
        for name, value in facts.items():
            print(f"{name.replace('_', ' '):13} {value}")
        for site, place in sites.items():
            print(f"  {site:11} {place}")
        print(f"readout       final norm and unembedding of the last resid_post miss the logits by {report.readout_gap:.2g} of their size")
        print(
            f"additivity    the sites miss the stream by {report.additivity_gap:.2g} of its size (worst in layer {report.additivity_layer})"
        )
        print(f"tolerance     {report.tolerance:.2g} -> {'ok' if report.ok else 'REFUSED'}")
    if not report.ok:
        raise typer.Exit(2)
