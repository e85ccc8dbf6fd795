"""Depths of a run's tokens, which follow from a stored variable at `resid_post` of all layers."""

from __future__ import annotations

import numpy as np
import xarray as xr

from layerlens.errors import SelectionError
from layerlens.metrics.settling import DEEP, SETTLED, agreement_depth, settles_deep, settling_depth
from layerlens.types import DERIVED_FROM, METRIC_INFO


def token_depth(data: xr.Dataset, n_layers: int, name: str, threshold: float = SETTLED, share: float = DEEP) -> xr.DataArray:
    """A metric of DERIVED_FROM at every token: a layer, or for `deep_thinking_ratio` 1 if the token settles deep and else 0.

    Args:
        data: of a run.
        n_layers: L.
        name: "settling_depth", "agreement_depth" or "deep_thinking_ratio".
        threshold, share: as in `metrics.settling`.

    Raises:
        SelectionError: the run lacks the stored variable, its `resid_post`, or a layer.
    """
    source = DERIVED_FROM[name]
    if source not in data.data_vars:
        raise SelectionError(f"{name} follows from {source}, which the run lacks: analyse with metrics={source!r} among others")
    if "resid_post" not in data["site"].values or data.sizes["layer"] != n_layers:
        held = f"{data.sizes['layer']} layers at {', '.join(map(str, data['site'].values))}"
        raise SelectionError(f"{name} needs resid_post of all {n_layers} layers; the run has {held}")
    values = data[source].sel(site="resid_post").transpose("token", "layer").values
    depth = agreement_depth(values) if name == "agreement_depth" else settling_depth(values, threshold)
    if name == "deep_thinking_ratio":
        depth = settles_deep(depth, n_layers, share).astype(np.float64)
    long_name, unit = METRIC_INFO[name]
    constants = {"settling_depth": {"threshold": threshold}, "deep_thinking_ratio": {"threshold": threshold, "share": share}}
    attrs = {"long_name": long_name, "units": unit, **constants.get(name, {})}
    coords = data[source].isel(layer=0, site=0, drop=True).coords
    return xr.DataArray(depth, coords, ("token",), name=name, attrs=attrs)
