"""`layerlens check`: where a model is read and whether its identities hold, or whether the files of a run are what was written."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated

import typer

from layerlens.cli.options import AsJson, LibraryOption, ModelOptions, grouped, print_json


@grouped
def check(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN", help="A hub name, a local folder or a bundled model (tiny-qwen3, tiny-llama); or a run folder."
        ),
    ],
    *,
    loading: ModelOptions,
    library: LibraryOption = "transformers",
    discover: Annotated[
        bool, typer.Option("--discover", help="Find the layout in the model's own structure, even if there is a row.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show where layerlens reads a model, and whether what it reads adds up to the model's own states and logits.

    If the sums do not hold, the exit code is 2: such a model would be analysed wrongly, and `layerlens analyze` refuses it.

    Of a run folder every file is read and compared with its digests. If one is damaged, swapped or of another run, the exit code is 2:
    the same `layerlens analyze` sets it aside and makes it again.

    Example: layerlens check Qwen/Qwen3-4B
    """
    from layerlens.results.check import is_run

    if is_run(model):
        _check_run(model, as_json)
        return
    import layerlens as ll
    from layerlens.models import block_hook, check_identities, discover_layout, find_decoder_parts, layout_row, mixers

    lens = ll.load(model, **loading.keywords(), backend=library, check=False)
    parts = find_decoder_parts(lens.parts.model, discover_layout(lens.parts.model)) if discover else lens.parts
    report, discovered = check_identities(parts), discover or lens.discovered
    vocabulary, d_model = parts.unembedding_weight.shape
    facts = {
        "model": lens.name,
        "architecture": parts.config.model_type,
        "layout": "discovered" if discovered else "a row of LAYOUTS",
        "layers": lens.n_layers,
        "d_model": d_model,
        "vocabulary": vocabulary,
        "context": parts.context,
        "dtype": str(parts.dtype).removeprefix("torch."),
        "weights": lens.quantisation or "not quantised",
        "unembedding": "tied to the embedding" if parts.tied else "not tied",
        "decoder": parts.decoder_path,
        "blocks": f"{parts.decoder_path}.{parts.layout.blocks}",
        "final_norm": f"{parts.decoder_path}.{parts.layout.final_norm}",
    }
    if parts.logit_scale != 1 or parts.logit_softcap is not None:
        facts["logits"] = {"scale": parts.logit_scale, "softcap": parts.logit_softcap}
    sites = {site: " + ".join(map(str, points)) for site, points in parts.layout.sites(parts.config).items()}
    hooks = {site: list(dict.fromkeys(block_hook(site, mixer) for mixer in mixers(parts.layout))) for site in sites}
    row = layout_row(parts.config.model_type, parts.layout)
    if as_json:
        gaps = {"readout_gap": report.readout_gap, "additivity_gap": report.additivity_gap}
        plain = {name: gap if math.isfinite(gap) else None for name, gap in gaps.items()}
        verdict = {"additivity_layer": report.additivity_layer, "tolerance": report.tolerance, "ok": report.ok}
        print_json({**facts, "sites": sites, "transformer_lens": hooks, "row": row, **plain, **verdict})
    else:
        for name, value in facts.items():
            print(f"{name.replace('_', ' '):13} {value}")
        width = max(map(len, sites.values()))
        print(f"  {'site':11} {'where it is read':{width}}  hook of TransformerLens, after blocks.N. (N from 0)")
        for site, place in sites.items():
            print(f"  {site:11} {place:{width}}  {' or '.join(hooks[site])}")
        print(f"readout       final norm and unembedding of the last resid_post miss the logits by {report.readout_gap:.2g} of their size")
        print(
            f"additivity    the sites miss the stream by {report.additivity_gap:.2g} of its size (worst in layer {report.additivity_layer})"
        )
        print(f"tolerance     {report.tolerance:.2g} -> {'ok' if report.ok else 'REFUSED'}")
        if discovered:
            print(f"row           {row}")
    if not report.ok:
        raise typer.Exit(2)


def _check_run(path: str, as_json: bool) -> None:
    """Prints what the digests of a run's files say. Raises typer.Exit with code 2 if one is damaged."""
    from layerlens.results.check import check_run

    found = check_run(path)
    if as_json:
        print_json({"run": path, **asdict(found), "ok": found.ok})
    else:
        print(f"{path}: {found.finished} of {found.samples} samples are there and as they were written")
        if found.undigested:
            print(
                f"no digest     {found.undigested} of them: an earlier layerlens wrote none, so damage to their numbers would not be seen"
            )
        for name, why in found.damaged.items():
            print(f"damaged       {name}: {why}")
        for name in found.strange:
            print(f"not a sample  {name}")
        if not found.ok:
            print("next: the same `layerlens analyze` again sets damaged files aside and makes them again")
    if not found.ok:
        raise typer.Exit(2)
