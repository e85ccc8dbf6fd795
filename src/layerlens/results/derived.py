"""Variables that a run does not store, but that follow from those it does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from layerlens.errors import SelectionError
from layerlens.metrics.entropy import entropy_change
from layerlens.metrics.perplexity import log_perplexity
from layerlens.metrics.settling import DEEP, SETTLED, agreement_depth, settles_deep, settling_depth
from layerlens.metrics.skill import skill
from layerlens.storage.manifest import RunManifest
from layerlens.types import DERIVED_FROM, METRIC_INFO, MODULE_SITES, Module


def variable(data: xr.Dataset, manifest: RunManifest, name: str) -> xr.DataArray:
    """A variable of a run's data, stored or derived, as `Run.values` describes it. Raises SelectionError if there is none."""
    if name == "entropy_change":
        there = set(map(str, data["site"].values))
        modules = [module for module, sites in MODULE_SITES.items() if set(sites) <= there]
        if not modules:
            return module_change(data, manifest, "ffn")  # raises, saying what is missing
        changes = [module_change(data, manifest, module) for module in modules]
        return xr.concat(changes, pd.Index(modules, name="module")).transpose("token", "layer", "module")
    if name == "log_perplexity":
        surprise: xr.DataArray = xr.apply_ufunc(log_perplexity, variable(data, manifest, "logp_next"))
        return surprise.rename(name)
    if name == "skill":
        vocabulary = manifest.model.vocabulary
        if vocabulary is None:
            raise SelectionError(
                f"the run of {manifest.model.name} does not say how large its vocabulary is, so it has no skill: analyse again"
            )
        beyond: xr.DataArray = skill(variable(data, manifest, "logp_next"), vocabulary)
        return beyond.rename(name)
    if name in DERIVED_FROM:
        return token_depth(data, manifest, name)
    if name not in data.data_vars:
        raise SelectionError(f"the run of {manifest.model.name} has no {name!r}; it has {', '.join(map(str, data.data_vars))}")
    return data[name]


def module_change(data: xr.Dataset, manifest: RunManifest, module: Module) -> xr.DataArray:
    """ΔS of a module at every token and layer, nats. Raises SelectionError if one of its two sites was not analysed."""
    if module not in MODULE_SITES:
        raise SelectionError(f"unknown module {module!r}: choose from {', '.join(MODULE_SITES)}")
    before, after = MODULE_SITES[module]
    entropy = variable(data, manifest, "entropy")
    require_module(list(map(str, data["site"].values)), manifest, module)
    change: xr.DataArray = xr.apply_ufunc(entropy_change, *(entropy.sel(site=site, drop=True) for site in (before, after)))
    change.attrs = {"long_name": f"{METRIC_INFO['entropy_change'][0]}: {module}", "units": "nats", "module": module}
    return change.rename("entropy_change")


def require_module(sites: Sequence[str], manifest: RunManifest, module: Module) -> None:
    """Raises SelectionError unless the sites that were analysed include the two of the module's ΔS."""
    before, after = MODULE_SITES[module]
    lens = manifest.config.lens
    lacking = [site for site in (before, after) if site not in sites]
    absent = [site for site in lacking if site in manifest.config.absent_sites]
    if absent:
        raise SelectionError(f"ΔS of {module} does not exist here: {manifest.model.architecture} has no {' and no '.join(absent)}")
    if lacking:
        hint = "analyse it with them" if lens == "logit" else f"a {lens} lens reads no input of a module"
        raise SelectionError(f"ΔS of {module} needs the sites {before} and {after}; the run lacks {', '.join(lacking)}: {hint}")


def token_depth(data: xr.Dataset, manifest: RunManifest, name: str, threshold: float = SETTLED, share: float = DEEP) -> xr.DataArray:
    """A metric of DERIVED_FROM at every token: a layer, or for `deep_thinking_ratio` 1 if the token settles deep and else 0.

    Args:
        data, manifest: of a run.
        name: "settling_depth", "agreement_depth" or "deep_thinking_ratio".
        threshold, share: as in `metrics.settling`.

    Raises:
        SelectionError: the run lacks the stored variable, its `resid_post`, or a layer.
    """
    source, n_layers = DERIVED_FROM[name], manifest.model.n_layers or data.sizes["layer"]
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
