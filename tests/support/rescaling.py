"""A rescaling of weights that no output of a model shows."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def rescale_norm_gains(model: Any, factor: float) -> None:
    """Divides the gains of the norms by a factor that the weights behind them make up for."""
    for block in model.model.layers:
        attention, ffn = block.self_attn, block.mlp
        readers = {block.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj)}
        readers |= {block.post_attention_layernorm: (ffn.gate_proj, ffn.up_proj)}
        for norm, behind in readers.items():
            norm.weight /= factor
            for reader in behind:
                reader.weight *= factor
