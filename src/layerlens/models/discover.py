"""The layout of an architecture without a row, found in the model's own structure and proved by its identities, or refused.

One forward pass traces what every module reads and returns. The blocks are the list of modules that hand one tensor on; the
final norm is what stands between the last of them and the unembedding. In every block the contributions are those module outputs
C_i with resid_post = s · (resid_pre + Σ f_i · C_i) for some numbers f_i and s ≠ 0; there must be one such sum and no other. A
module that returns stream and contribution together would need s = 0, so it is never taken for a contribution.
"""

from __future__ import annotations

import copy
import itertools
import logging
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layerlens.errors import ModelLayoutError
from layerlens.models.describe import describe_blocks, describe_logits, find_in_block
from layerlens.models.identities import check_identities, evaluation_mode
from layerlens.models.layout import Layout, text_config
from layerlens.models.parts import find_decoder_parts
from layerlens.models.quantised import describe_quantisation
from layerlens.models.trace import Call, Trace, same, token_mixers, trace_modules

log = logging.getLogger(__name__)

PROBE_TOKENS = 13
CHECKS = ((1, 8), (2, 21), (3, 2))
"""Seed and number of random tokens of the inputs on which all identities must hold."""

_FOUND: dict[str, Layout] = {}
"""Layouts found so far, by the model's class and configuration."""


def discovered_layout(model: PreTrainedModel) -> Layout:
    """The layout that discovery finds, kept for further models of this class and configuration.

    Raises ModelLayoutError, with what was found, if no unique layout obeys all identities.
    """
    key = f"{type(model).__name__} {model.config.to_json_string()}"
    if key not in _FOUND:
        _FOUND[key] = discover_layout(model)
        log.warning(
            "%s has no row in LAYOUTS; discovered %s", type(model).__name__, layout_row(text_config(model.config).model_type, _FOUND[key])
        )
    return _FOUND[key]


def discover_layout(model: PreTrainedModel) -> Layout:
    """Finds a layout in a model's own structure; rows are not consulted. A model in half precision is copied in float32.

    Raises ModelLayoutError, with what was found, if no unique layout obeys all identities.
    """
    name = text_config(model.config).model_type
    if next(model.parameters()).dtype not in (torch.float32, torch.float64):
        if describe_quantisation(model.config) or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
            raise ModelLayoutError(
                f"architecture {name!r} has no row in LAYOUTS, and discovery needs its weights in float32: run `layerlens check --discover "
                "--dtype float32` on unquantised weights on one device, and add the row that it prints"
            )
        model = copy.deepcopy(model).float()
    with evaluation_mode(model):
        layout = _find(model, name)
    parts = find_decoder_parts(model, layout)
    for seed, tokens in CHECKS:
        check_identities(parts, seed, tokens).require(name)
    return layout


def layout_row(model_type: str, layout: Layout) -> str:
    """A layout as a row of `LAYOUTS`, ready to paste."""
    given = [f"{item.name}={getattr(layout, item.name)!r}" for item in fields(layout) if getattr(layout, item.name) != item.default]
    return f'"{model_type}": Layout({", ".join(given)}),'.replace("'", '"')


def _find(model: PreTrainedModel, name: str) -> Layout:
    embedding = model.get_input_embeddings().weight
    ids = torch.randint(0, embedding.shape[0], (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(0)).to(embedding.device)
    trace = trace_modules(model, ids)
    _require_causal(model, ids, trace.logits, name)
    head = trace.of(model.get_output_embeddings())
    if head is None or head.input is None:
        raise ModelLayoutError(f"{name}: its unembedding does not run in a forward pass, so it has no causal head that can be read")
    path, calls = _find_blocks(model, trace, head.input, name)
    decoder_path, _, list_name = path.rpartition(".")
    config, decoder = text_config(model.config), model.get_submodule(decoder_path)
    blocks = [find_in_block(call, trace.below(call.path), f"{name}, block {number}") for number, call in enumerate(calls, 1)]
    sources = {block.module.get_submodule(source): source for block in blocks for source in block.sources.values()}
    mixing = {sources[module] for module in token_mixers(model, ids, sources)}
    return Layout(
        decoder=decoder_path,
        blocks=list_name,
        final_norm=_find_norm(trace, decoder_path, list_name, calls[-1], head, name),
        **describe_blocks(blocks, mixing, config),
        **describe_logits(head, trace.logits, decoder, config, name),
    )


def _find_blocks(model: nn.Module, trace: Trace, state: Tensor, name: str) -> tuple[str, list[Call]]:
    """The path and the calls of the blocks: the outermost list of modules that each run once and hand one tensor on."""
    reason = "it has no list of blocks that run one after another"
    found: list[tuple[str, list[Call]]] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer, _ in found):
            continue
        calls = [trace.calls[each] for number in range(len(module)) if (each := f"{path}.{number}") in trace.calls]
        states = [(call.input, call.output) for call in calls]
        if not calls or len(calls) < len(module) or any(a is None or b is None or a.shape[-1] != state.shape[-1] for a, b in states):
            continue
        wrong = next((call for call in calls if call.output is not None and call.output.numel() != state.numel()), None)
        broken = next((i for i, (a, b) in enumerate(itertools.pairwise(calls), 2) if not same(a.output, b.input)), None)
        if wrong is not None and wrong.output is not None:
            reason = f"{wrong.path} passes on {tuple(wrong.output.shape)} where one residual stream is {tuple(state.shape)}"
        elif any(call.count > 1 for call in calls):
            reason = f"the blocks in {path} run more than once"
        elif broken is not None:
            reason = f"block {broken} of {path} does not read what block {broken - 1} returned"
        else:
            found.append((path, calls))
    if len(found) == 1:
        return found[0]
    several = f"it has several lists of blocks ({', '.join(path for path, _ in found)})"
    raise ModelLayoutError(f"{name} cannot be read: {several if found else reason}")


def _find_norm(trace: Trace, decoder: str, blocks: str, last: Call, head: Call, name: str) -> str:
    inside = {path: call for path, call in trace.below(decoder).items() if not path.startswith(f"{blocks}.")}
    norms = [path for path, call in inside.items() if same(call.input, last.output) and same(call.output, head.input)]
    if not norms:
        raise ModelLayoutError(f"{name}: no module of {decoder} leads from the last block's output to the unembedding's input")
    return min(norms, key=lambda path: path.count("."))


@torch.inference_mode()
def _require_causal(model: Any, ids: Tensor, logits: Tensor, name: str) -> None:
    """Raises ModelLayoutError if the logits at earlier tokens depend on the last token."""
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % model.get_input_embeddings().weight.shape[0]
    again = model(input_ids=other, use_cache=False).logits.double().cpu()
    if not same(again[:, :-1], logits[:, :-1], 1e-4):
        raise ModelLayoutError(f"{name} cannot be read: its logits depend on later tokens, so it has no causal head")
