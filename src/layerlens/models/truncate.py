"""BuPO's cut: inside it a model's own forward computes an internal policy, and no block above the chosen layer runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

from layerlens.errors import SelectionError
from layerlens.models.capture import input_of
from layerlens.models.layout import Layout, submodule_at
from layerlens.models.lenses.fitted_lens import FittedLens
from layerlens.models.parts import find_blocks, layout_of
from layerlens.types import ForwardNorm


def causal_lm(model: Any) -> Any:
    """The Hugging Face causal language model inside DDP, DeepSpeed and PEFT wrappers (FSDP2 has none)."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(model: Any) -> tuple[str, nn.Module, Layout]:
    """The path to the module that owns the blocks, this module, and the layout that names them.

    Raises ModelLayoutError if no layout describes the model.
    """
    network = causal_lm(model)
    layout, _ = layout_of(network)
    path, decoder, _ = find_blocks(network, layout)
    return path, decoder, layout


def count_blocks(model: Any) -> int:
    """L, the number of blocks."""
    _, decoder, layout = decoder_of(model)
    return len(getattr(decoder, layout.blocks))


@contextmanager
def truncated_at(model: Any, layer: int | None, norm: ForwardNorm = "none", lens: FittedLens | None = None) -> Iterator[None]:
    """Inside, `model` computes softmax(E_u · N(T H^layer + b)): only blocks 1...layer run, forward and backward.

    T is the identity and b zero unless a fitted `lens` is given, with `norm="final"`; its maps are constants that get no gradient.

    `layer` None changes nothing: the model computes its final policy, as it does at layer L with `norm="final"`.

    With `norm="none"` the final norm is still called, and a hook replaces its output by its input: FSDP2 gathers norm and
    unembedding as one group when the norm is called, and would otherwise leave the unembedding's gradient unreduced across
    ranks. Only the forward pass must run inside; backward, and the recomputation of gradient checkpointing, may run outside.

    Raises SelectionError if `layer` is not in 1...L, and for a lens without norm "final" or without a map for the layer.
    """
    if layer is None:
        yield
        return
    _, decoder, layout = decoder_of(model)
    blocks: nn.ModuleList = getattr(decoder, layout.blocks)
    if not 1 <= layer <= len(blocks):
        raise SelectionError(f"the internal layer must be in 1..{len(blocks)}, got {layer}")
    if lens is not None:
        if norm != "final":
            raise SelectionError(f"a {lens.name} lens carries states to the final norm: norm must be 'final' with it, got {norm!r}")
        lens.place(layer, "resid_post", len(blocks))  # raises if there is no map
    final_norm = submodule_at(decoder, layout.final_norm, "the final norm")
    skip = (
        None
        if norm == "final"
        else final_norm.register_forward_hook(lambda module, args, kwargs, output: input_of(args, kwargs), with_kwargs=True)
    )
    carried = None if lens is None else final_norm.register_forward_pre_hook(_carrying(lens, layer, len(blocks)), with_kwargs=True)
    _hook_all_blocks(decoder)
    setattr(decoder, layout.blocks, nn.ModuleList(list(blocks)[:layer]))
    try:
        yield
    finally:
        setattr(decoder, layout.blocks, blocks)
        for hook in (skip, carried):
            if hook is not None:
                hook.remove()


def _hook_all_blocks(decoder: nn.Module) -> None:
    """Has transformers put the hooks that collect router logits and hidden states on all blocks.

    transformers does so once, at the first forward pass that collects any, on the modules that are there at that time.
    """
    with suppress(ImportError):  # in transformers 5.0, which leaves none behind
        from transformers.utils.output_capturing import maybe_install_capturing_hooks

        maybe_install_capturing_hooks(decoder)


def _carrying(lens: FittedLens, layer: int, n_layers: int) -> Callable[..., Any]:
    """A pre-hook of the final norm that carries its input by a layer's map, in the input's dtype afterwards."""

    def carry(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = input_of(args, kwargs)
        moved = lens.carry(states, layer, "resid_post", n_layers).to(states.dtype)
        return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})

    return carry
