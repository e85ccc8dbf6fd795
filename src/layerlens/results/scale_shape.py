"""How much of an entropy change under norm none is a change of scale, and how much a change of shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from layerlens.errors import SelectionError
from layerlens.metrics.intervals import LEVEL, interval
from layerlens.metrics.rank_correlation import rank_correlation
from layerlens.results.difference import require_same_tokens
from layerlens.results.run import Run
from layerlens.types import MODULE_SITES

PARTS = ("change", "shape", "scale")


def scale_shape(run: Run, matched: Run, *, level: float = LEVEL, **means: Any) -> xr.Dataset:
    """Mean ΔS under norm none by layer and module, as the sum of a part of shape and a part of scale.

    Of the vector h that is unembedded, norm "matched" keeps the direction alone: it gives the logits of every state one spread over the
    vocabulary. So ΔS under norm "matched" is what the change of the policy's shape contributes. The rest is due to the logits' spread,
    which has no meaning to the model where a norm follows: ΔS(none) = shape + scale, exactly, token by token.

    Args:
        run, matched: runs of the same model, tokens and layers, with norm "none" and norm "matched".
        level: of the interval, between 0 and 1.
        means: keyword arguments of `Run.bootstrap`.

    Returns:
        A Dataset of `mean`, `low` and `high`, each part × layer × module, nats, float64; `part` is `change` (ΔS under norm none),
        `shape` and `scale`. The parts are resampled in pairs, so their intervals are of the same data sets. `rank_correlation`, by
        module: of entropy under norm none with the spread of the logits, over tokens, layers and the module's two sites (Spearman); NaN
        if the run does not hold `logit_sd`. Attrs: those of the mean, `level`, and `spread`, the spread in logits that norm "matched"
        scaled to.

    Raises:
        SelectionError: the runs have other norms than these, or differ in weights, temperature, layers or tokens, or lack a site.
    """
    if (run.norm, matched.norm) != ("none", "matched"):
        raise SelectionError(
            f"scale and shape are told apart by a run with norm none and one with norm matched; got norms {run.norm} and {matched.norm}"
        )
    require_same_tokens(run, matched)
    change, change_draws = run.bootstrap("entropy_change", **means)
    shape, shape_draws = matched.bootstrap("entropy_change", **means)
    modules = [module for module in change["module"].values if module in shape["module"].values]
    change, change_draws, shape, shape_draws = (part.sel(module=modules) for part in (change, change_draws, shape, shape_draws))
    parts = np.stack([change.values, shape.values, (change - shape).values])
    draws = np.stack([change_draws.values, shape_draws.values, (change_draws - shape_draws).values], axis=1)
    low, high = interval(draws, parts, change.attrs["problems"], level)
    dims = ("part", "layer", "module")
    kept = run.row_mask(change.attrs["rows"], change.attrs["drop_first"], change.attrs["segment"] or None)
    return xr.Dataset(
        {
            "mean": (dims, parts),
            "low": (dims, low),
            "high": (dims, high),
            "rank_correlation": ("module", [_correlation(run, kept, MODULE_SITES[module]) for module in modules]),
        },
        {"part": list(PARTS), "layer": change["layer"].values, "module": modules},
        {**change.attrs, "level": level, "spread": matched.spread},
    )


def _correlation(run: Run, kept: np.ndarray, sites: tuple[str, str]) -> float:
    """Of entropy with the spread of the logits, over the kept rows, all layers and two sites."""
    if "logit_sd" not in run.variables:
        return float("nan")
    entropy, spread = (run.values(name).sel(site=list(sites)).values[kept].ravel() for name in ("entropy", "logit_sd"))
    return rank_correlation(entropy.astype(np.float64), spread.astype(np.float64))
