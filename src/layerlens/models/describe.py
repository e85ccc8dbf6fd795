"""From what was found in each block of a model to the fields of a layout that describes all blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layerlens.errors import ModelLayoutError
from layerlens.models.layout import Factor
from layerlens.models.solve import Contribution, contributions_of
from layerlens.models.trace import Call, same


@dataclass
class FoundBlock:
    """What was found in one block. Modules are named by their path in the block, in the order in which they ran."""

    module: nn.Module
    where: str
    stream_factor: float
    contributions: list[Contribution]
    sources: dict[str, str]
    """From each contribution to the module that computes it, whose input is what attention or the FFN reads."""
    readers: dict[frozenset[str], str]
    """From the contributions added so far to the first module that reads the stream in this state."""


def find_in_block(block: Call, inside: Mapping[str, Call], where: str) -> FoundBlock:
    """Raises ModelLayoutError if what the block adds to the stream cannot be found, or is not unique."""
    once = {path: call for path, call in inside.items() if call.count == 1}
    assert block.input is not None
    assert block.output is not None
    stream_factor, contributions = contributions_of(once, block.input, block.output, where)
    sums = [(frozenset(each.path for each in chosen), sum_) for chosen, sum_ in _running_sums(block.input, contributions, once)]
    readers = {}
    for chosen, total in sums:
        reading = [path for path, call in once.items() if same(call.input, total)]
        if reading:
            readers[chosen] = min(reading, key=lambda path: (path.count("."), once[path].order))
    streams = [block.input, *(total for _, total in sums)]
    sources = {each.path: _source(once, each.path, streams) for each in contributions}
    return FoundBlock(block.module, where, stream_factor, contributions, sources, readers)


def _running_sums(
    before: Tensor, contributions: Sequence[Contribution], inside: Mapping[str, Call]
) -> Iterable[tuple[list[Contribution], Tensor]]:
    total = before.reshape(-1)
    for count, (path, factor) in enumerate(contributions, 1):
        output = inside[path].output
        assert output is not None
        total = total + factor * output.reshape(-1)
        yield list(contributions[:count]), total


def _source(inside: Mapping[str, Call], path: str, streams: Sequence[Tensor]) -> str:
    """The module that computes a contribution: what stands before its post-norms and projections, and behind a norm in front.

    A contribution inside a child of the block is computed by that child, unless the child reads the stream and norms it itself.
    """
    names = path.split(".")
    outer = [each for n in range(1, len(names)) if (each := ".".join(names[:n])) in inside]
    at = next((each for each in outer if not any(same(inside[each].input, stream) for stream in streams)), path)
    while True:
        made_by = [
            other
            for other, call in inside.items()
            if other.rpartition(".")[0] == at.rpartition(".")[0] and call.order < inside[at].order and same(call.output, inside[at].input)
        ]
        if not made_by or (_passes_on(inside[made_by[0]].module) and not _passes_on(inside[at].module)):
            return at
        at = made_by[0]


def _passes_on(module: nn.Module) -> bool:
    """Whether a module only normalises or drops what it reads."""
    return any(word in type(module).__name__.lower() for word in ("norm", "dropout", "identity"))


def describe_blocks(blocks: Sequence[FoundBlock], mixing: set[str], config: Any) -> dict[str, Any]:
    """The fields of a layout that describes all blocks.

    Args:
        mixing: those sources of contributions that mix tokens; what they add is attention's, everything else the FFN's.

    Raises ModelLayoutError if no one layout describes all blocks.
    """
    single = all(len(block.contributions) == 1 for block in blocks)
    attn: dict[str, str] = {}
    ffn: dict[str, str] = {}
    further: dict[str, str] = {}
    mids: list[str | None] = []
    for block in blocks:
        paths = [each.path for each in block.contributions]
        mixers = paths if single else [path for path in paths if block.sources[path] in mixing]
        others = [path for path in paths if path not in mixers]
        mid = block.readers.get(frozenset(mixers)) if others else None
        if mid is not None and paths[: len(mixers)] != mixers:
            raise ModelLayoutError(f"{block.where}: {others[0]}, which does not mix tokens, runs before {mixers[-1]}, which does")
        cut = next((n for n in range(1, len(others)) if frozenset([*mixers, *others[:n]]) in block.readers), len(others))
        for table, names in ((attn, mixers), (ffn, others[:cut]), (further, others[cut:])):
            table |= {path: block.sources[path] for path in names}
        mids.append(mid)
    if not any(source in mixing for source in attn.values()):
        raise ModelLayoutError(f"{blocks[0].where}: no module that adds to the residual stream mixes tokens, so none is attention")
    if len(set(mids)) > 1:
        raise ModelLayoutError(
            f"blocks differ in what reads resid_mid ({', '.join(sorted({str(mid) for mid in mids}))}), which no layout can say"
        )
    factors = {
        path: name_factor([(each.factor, block.module) for block in blocks for each in block.contributions if each.path == path], config)
        for path in (*attn, *ffn, *further)
    }
    fields: dict[str, Any] = {
        **_side("attn", attn, factors),
        **_side("ffn", ffn, factors),
        "further": _names(further),
        "stream_factor": name_factor([(block.stream_factor, block.module) for block in blocks], config),
    }
    if any(factors[path] != 1 for path in further):
        raise ModelLayoutError(f"{', '.join(further)}: a further addend with a factor is more than a layout can say")
    if ffn:
        fields |= {"mid": mids[0]} if mids[0] is not None else {"parallel": True}
    return fields


def _side(name: str, found: Mapping[str, str], factors: Mapping[str, Factor]) -> dict[str, Any]:
    outputs, sources = tuple(found), tuple(dict.fromkeys(found.values()))
    each = tuple(factors[path] for path in outputs)
    return {
        name: _names(sources),
        f"{name}_out": () if outputs == sources else _names(outputs),
        f"{name}_factor": each[0] if len(set(each)) == 1 else each or 1.0,
    }


def _names(paths: Iterable[str]) -> str | tuple[str, ...]:
    names = tuple(paths)
    return names[0] if len(names) == 1 else names


def name_factor(values: Sequence[tuple[float, nn.Module]], config: Any) -> Factor:
    """The attribute of the blocks or the configuration that holds a factor's value in every block; else the number itself.

    Raises ModelLayoutError if the value differs between blocks and no attribute of theirs holds it.
    """
    if all(value == 1 for value, _ in values):
        return 1.0
    value = values[0][0]
    names = [name for name in _numbers(values[0][1]) if all(_is(_numbers(owner).get(name), value) for value, owner in values)]
    constant = all(_is(value, other) for other, _ in values)
    if constant:
        held = {name: number for name, number in vars(config).items() if isinstance(number, float | int) and not isinstance(number, bool)}
        names += [name for name, number in held.items() if _is(number, value)]
        names += [f"1/{name}" for name, number in held.items() if number and _is(1 / number, value)]
    if names:
        return min(names, key=lambda name: (name.startswith("1/"), not any(word in name for word in ("mult", "scal", "factor"))))
    if not constant:
        found = ", ".join(f"{each:.4g}" for each in dict.fromkeys(value for value, _ in values))
        raise ModelLayoutError(f"a factor differs between blocks ({found}), and no attribute of theirs holds it")
    return float(f"{value:.6g}")


def _numbers(owner: nn.Module) -> dict[str, float]:
    """The attributes of a module that are one number, or a weight with one element."""
    held = {**vars(owner), **owner._parameters, **owner._buffers}
    one = {name: value for name, value in held.items() if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()}
    plain = {name: float(value) for name, value in held.items() if isinstance(value, float)}
    return plain | {name: float(value) for name, value in one.items()}


def _is(held: float | int | None, value: float) -> bool:
    return held is not None and abs(held - value) <= 1e-4 * abs(value)


def describe_logits(head: Call, logits: Tensor, decoder: nn.Module, config: Any, where: str) -> dict[str, Any]:
    """The fields of a layout that say what happens to the unembedding's output: nothing, a scale, or a soft-cap.

    Raises ModelLayoutError if it is something else.
    """
    product = head.output
    assert product is not None
    if same(product, logits):
        return {}
    a, b = product.reshape(-1), logits.reshape(-1)
    scale = float(a @ b / (a @ a)) if a.shape == b.shape else 0.0
    if same(scale * a, b, 1e-5):
        return {"logit_scale": name_factor([(scale, decoder)], config)}
    place = int(a.abs().argmax())
    cap = _softcap(float(a[place].abs()), float(b[place].abs()))
    if cap is not None and same(cap * torch.tanh(a / cap), b, 1e-5):
        return {"logit_softcap": name_factor([(cap, decoder)], config)}
    raise ModelLayoutError(f"{where}: its logits are neither the unembedding's output nor that with a scale or a soft-cap")


def _softcap(before: float, after: float) -> float | None:
    """The c with c · tanh(before / c) = after, which grows with c; None if there is none."""
    low, high = after, 1e6
    if not 0 < after < before:
        return None
    for _ in range(200):
        middle = (low + high) / 2
        value = middle * float(torch.tanh(torch.tensor(before / middle, dtype=torch.float64)))
        low, high = (middle, high) if value < after else (low, middle)
    return middle
