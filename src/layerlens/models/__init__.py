"""Models: loading them, finding their parts, reading and cutting their residual stream, sampling from them."""

from layerlens.models.adapters import holds_adapters
from layerlens.models.capture import LayerSite
from layerlens.models.convention import Convention
from layerlens.models.discover import discover_layout, layout_row
from layerlens.models.generation import generate_responses, require_fits_context
from layerlens.models.identities import check_identities
from layerlens.models.layout import LAYOUTS, Layout, layout_for, require_readable, text_config
from layerlens.models.lens import LensModel
from layerlens.models.lenses import FittedLens, read_lens, save_lens
from layerlens.models.load import load_pretrained, read_unembedding_shape
from layerlens.models.mixed_policy import LayerMix, MixedPolicy, parse_mix
from layerlens.models.parts import DecoderParts, find_decoder_parts
from layerlens.models.policy import InternalPolicy
from layerlens.models.sampling import Generation, checked_end_tokens, response_seed
from layerlens.models.transformer_lens import block_hook, hook_name, layer_site, mixers
from layerlens.models.truncate import causal_lm, count_blocks, decoder_of, truncated_at

__all__ = [
    "LAYOUTS",
    "Convention",
    "DecoderParts",
    "FittedLens",
    "Generation",
    "InternalPolicy",
    "LayerMix",
    "LayerSite",
    "Layout",
    "LensModel",
    "MixedPolicy",
    "block_hook",
    "causal_lm",
    "check_identities",
    "checked_end_tokens",
    "count_blocks",
    "decoder_of",
    "discover_layout",
    "find_decoder_parts",
    "generate_responses",
    "holds_adapters",
    "hook_name",
    "layer_site",
    "layout_for",
    "layout_row",
    "load_pretrained",
    "mixers",
    "parse_mix",
    "read_lens",
    "read_unembedding_shape",
    "require_fits_context",
    "require_readable",
    "response_seed",
    "save_lens",
    "text_config",
    "truncated_at",
]
