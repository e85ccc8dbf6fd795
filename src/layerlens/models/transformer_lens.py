"""TransformerLens: its TransformerBridge in place of a Hugging Face model, and its names for our sites."""

from __future__ import annotations

import copy
import re
import sys
import warnings
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from layerlens.errors import ModelLayoutError, ModelLoadError, SelectionError, message_of
from layerlens.models.capture import LayerSite
from layerlens.models.layout import Layout, module_names
from layerlens.types import SITES, Site

MIXERS = ("attn", "linear_attn", "mamba", "conv", "mixer")
"""Names that TransformerLens gives to the module of a block that mixes tokens."""

HOOKS: dict[Site, str] = {
    "resid_pre": "hook_resid_pre",
    "attn_in": "{mixer}.hook_in",
    "attn_out": "{mixer}.hook_out",
    "resid_mid": "hook_resid_mid",
    "ffn_in": "mlp.hook_in",
    "ffn_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
"""The hook of a TransformerBridge's block at which a site's vectors pass. `attn_out` of a block with attention is `hook_attn_out`."""


def hook_name(layer: int, site: Site, mixer: str = "attn") -> str:
    """TransformerLens' name of a layer (1...L) and site: `hook_name(3, "ffn_out")` is "blocks.2.hook_mlp_out".

    `mixer` is what mixes tokens in that block, one of `MIXERS`. docs/architectures.md lists the few architectures whose hook does
    not hold the site's vectors. Raises SelectionError for a layer below 1 and for an unknown mixer.
    """
    if layer < 1:
        raise SelectionError(f"layers are counted from 1, got {layer}")
    return f"blocks.{layer - 1}.{block_hook(site, mixer)}"


def block_hook(site: Site, mixer: str = "attn") -> str:
    """The part of `hook_name` that follows "blocks.N."."""
    if mixer not in MIXERS:
        raise SelectionError(f"TransformerLens has no mixer {mixer!r}: choose from {', '.join(MIXERS)}")
    return "hook_attn_out" if (site, mixer) == ("attn_out", "attn") else HOOKS[site].format(mixer=mixer)


def layer_site(hook: str) -> LayerSite:
    """The layer (1...L) and site of a TransformerLens hook name: "blocks.2.hook_mlp_out" is `(3, "ffn_out")`.

    Raises SelectionError for a hook at which no site's vectors pass.
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    site = _SITES.get(found[2]) if found else None
    if found is None or site is None:
        raise SelectionError(f"{hook!r} is none of our sites; those of block 0 are {', '.join(hook_name(1, site) for site in SITES)}")
    return int(found[1]) + 1, site


_SITES: dict[str, Site] = {block_hook(site, mixer): site for site in SITES for mixer in MIXERS}


def mixers(layout: Layout) -> list[str]:
    """TransformerLens' names of what mixes tokens in an architecture's blocks: `linear_attn` and `attn` for Qwen3-Next.

    Mamba has either of two names there, by architecture; both are given.
    """
    names = [module if module in MIXERS else "attn" for module in module_names(layout.attn)]
    return [each for name in names for each in (("mamba", "mixer") if name == "mamba" else (name,))]


def is_bridge(model: Any) -> bool:
    """Whether `model` is a TransformerBridge; TransformerLens is not imported to find out."""
    module = sys.modules.get("transformer_lens.model_bridge")
    return module is not None and isinstance(model, module.TransformerBridge)


def library_version() -> str:
    """The library's name and version, as manifests record it: "TransformerLens 4.3.0"."""
    return f"TransformerLens {version('transformer-lens')}"


def build_bridge(model: Any, name: str) -> Any:
    """A TransformerBridge around a Hugging Face model, which it takes over: its modules are replaced, its attention becomes eager.

    No weight is folded or centred. The bridge has no tokenizer, since TransformerLens would read it again with a BOS token put in
    front of every text: give the bridge token ids.

    Raises ModelLoadError, naming the model, if TransformerLens is not installed, has no such architecture or cannot run it.
    """
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise ModelLoadError(f"{name}: TransformerLens runs a model on one device here; give device in place of device_map")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside TransformerLens
            from transformer_lens.model_bridge.sources import build_bridge_from_module
    except ImportError as error:
        raise ModelLoadError(
            f"{name}: loading through TransformerLens needs its library: pip install 'layerlens-policy[tl]' ({error})"
        ) from error
    model.set_attn_implementation("eager")  # under any other, its hooks on attention patterns never run
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bridge = build_bridge_from_module(model, type(model).__name__, hf_config=copy.deepcopy(model.config), model_name=name)
            with torch.inference_mode():
                model.eval()(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    except Exception as error:  # adapters are written by hand, and fail in many ways
        reason = message_of(error)
        raise ModelLoadError(f"{name}: {library_version()} cannot run {type(model).__name__} ({reason}); load it directly") from error
    return bridge


def unwrap_bridge(bridge: Any) -> nn.Module:
    """The Hugging Face model inside a bridge, whose modules are wrapped by the bridge's hook points.

    No weight is folded, centred or moved, and the user's hooks on the bridge act as in the bridge's own forward.
    Raises ModelLayoutError for a bridge in compatibility mode: folded weights change every policy read with `norm="none"`
    and every similarity.
    """
    if getattr(bridge, "compatibility_mode", False):
        raise ModelLayoutError(
            "this TransformerBridge is in compatibility mode, which may fold weights and so changes internal policies; "
            "wrap a bridge on which enable_compatibility_mode() was not called"
        )
    return bridge.original_model  # type: ignore[no-any-return]
