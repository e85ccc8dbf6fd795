"""The two Triton kernels of the readout: one reduces logits that a product has written, one makes and reduces them in registers.

Both leave sums of every row and part of the vocabulary as `sums.py` defines them, float32, in the order m, S, A, then what else
was asked for; arguments that are None cost nothing. Kernels are left to Triton's own typing, hence `no_type_check`.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _finish(x, bias, scale, softcap, temperature):
    """`Unembedding.finish_` in registers."""
    if scale is not None:
        x = x * scale
    if bias is not None:
        x = x + bias
    if softcap is not None:
        x = softcap * (1.0 - 2.0 / (tl.exp(x / softcap * 2.0) + 1.0))
    if temperature is not None:
        x = x / temperature
    return x


@triton.jit
@no_type_check
def _load(pointer, row, width, columns, inside, bias, scale, softcap, temperature):
    """The logits of one row in one tile."""
    x = tl.load(pointer + row.to(tl.int64) * width + columns, mask=inside, other=0.0)
    return _finish(x, bias, scale, softcap, temperature)


@triton.jit(do_not_specialize=["start", "tiles", "n", "rows"])
@no_type_check
def reduce_rows(
    x_ptr, sums_ptr, ids_ptr, targets_ptr, final_ptr, reference_ptr, bias_ptr, scale, softcap, temperature,
    start, tiles, n, rows, width, TILE: tl.constexpr,
):  # fmt: skip
    """Sums of row program_id(0) of x [n, width] over its tile program_id(1), to sums [fields, tiles, n] and ids [tiles, n].

    x is the chunk of the vocabulary from token `start` on, `tiles` the number of those of the whole vocabulary.

    final and reference, [rows, width] each, are the anchors' products; rows of x are any number of states of `rows` rows each.
    """
    row, tile = tl.program_id(0), tl.program_id(1)
    columns = tile * TILE + tl.arange(0, TILE)
    inside = columns < width
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + start + columns, mask=inside, other=0.0).to(tl.float32)
    x = _load(x_ptr, row, width, columns, inside, bias, scale, softcap, temperature)
    m = tl.max(tl.where(inside, x, -float("inf")), 0)
    y = tl.where(inside, x - m, 0.0)
    e = tl.where(inside, tl.exp(y), 0.0)
    out = sums_ptr + (start // TILE + tile).to(tl.int64) * n + row
    field = tiles.to(tl.int64) * n
    tl.store(out, m)
    tl.store(out + field, tl.sum(e, 0))
    tl.store(out + 2 * field, tl.sum(e * y, 0))
    out += 3 * field
    if targets_ptr is not None:
        target = tl.load(targets_ptr + row) - start
        tl.store(out, tl.max(tl.where(inside & (columns == target), x, -float("inf")), 0))
        out += field
    if final_ptr is not None:
        q = _load(final_ptr, row % rows, width, columns, inside, bias, scale, softcap, temperature)
        q_m = tl.max(tl.where(inside, q, -float("inf")), 0)
        tl.store(out, tl.sum(tl.where(inside, e * (q - q_m), 0.0), 0))
        out += field
    if reference_ptr is not None:
        q = _load(reference_ptr, row % rows, width, columns, inside, bias, scale, softcap, temperature)
        q_m = tl.max(tl.where(inside, q, -float("inf")), 0)
        tl.store(out, tl.sum(tl.where(inside, tl.exp(q - q_m) * y, 0.0), 0))
    if ids_ptr is not None:
        lowest = tl.min(tl.where(inside & (x == m), columns, width), 0)
        tl.store(ids_ptr + (start // TILE + tile).to(tl.int64) * n + row, (start + lowest).to(tl.int64))


@triton.jit(do_not_specialize=["n", "vocab"])
@no_type_check
def fused_rows(
    h_ptr, w_ptr, sums_ptr, ids_ptr, targets_ptr, bias_ptr, scale, softcap, temperature,
    n, vocab, d, h_stride, w_stride, w_stride_d, PART: tl.constexpr, UPCAST: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Sums of ROWS rows of h [n, d] over PART tokens of w [vocab, d], to sums [fields, parts, n] and ids [parts, n].

    Programs that follow each other read the same part of w, which so stays in the cache. Rows and tokens beyond the end repeat
    the last one instead of being masked in every load.
    """
    blocks = tl.cdiv(n, ROWS)
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(0) // blocks
    depth = tl.arange(0, DEPTH)
    h_rows = h_ptr + tl.minimum(row, n - 1).to(tl.int64)[:, None] * h_stride + depth[None, :]
    if targets_ptr is not None:
        target = tl.load(targets_ptr + tl.minimum(row, n - 1))
        hit = tl.full((ROWS,), -float("inf"), tl.float32)
    m = tl.full((ROWS,), -float("inf"), tl.float32)
    S = tl.zeros((ROWS,), tl.float32)
    A = tl.zeros((ROWS,), tl.float32)
    best = tl.zeros((ROWS,), tl.int32)
    for first in range(part * PART, tl.minimum((part + 1) * PART, vocab), TOKENS):
        token = first + tl.arange(0, TOKENS)
        inside = token < vocab
        token_row = tl.minimum(token, vocab - 1).to(tl.int64)
        h_at = h_rows
        w_at = w_ptr + token_row[None, :] * w_stride + depth[:, None] * w_stride_d
        x = tl.zeros((ROWS, TOKENS), tl.float32)
        for k in range(0, d, DEPTH):
            if EVEN:
                h, w = tl.load(h_at), tl.load(w_at)
            else:
                h = tl.load(h_at, mask=depth[None, :] < d - k, other=0.0)
                w = tl.load(w_at, mask=depth[:, None] < d - k, other=0.0)
            if UPCAST:
                h, w = h.to(tl.float32), w.to(tl.float32)
            x = tl.dot(h, w, x, input_precision="ieee")
            h_at += DEPTH
            w_at += DEPTH * w_stride_d
        bias = None
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + token_row).to(tl.float32)[None, :]
        x = _finish(x, bias, scale, softcap, temperature)
        x = tl.where(inside[None, :], x, -float("inf"))
        if targets_ptr is not None:
            hit = tl.maximum(hit, tl.max(tl.where(token[None, :] == target[:, None], x, -float("inf")), 1))
        tile_m = tl.max(x, 1)
        if ids_ptr is not None:
            tile_best = tl.min(tl.where(x == tile_m[:, None], token[None, :], vocab), 1)
            best = tl.where(tile_m > m, tile_best, best)
        new_m = tl.maximum(m, tile_m)
        y = tl.where(inside[None, :], x - new_m[:, None], 0.0)
        e = tl.where(inside[None, :], tl.exp(y), 0.0)
        shift = tl.where(S > 0.0, m - new_m, 0.0)
        factor = tl.exp(shift)
        A = factor * (A + S * shift) + tl.sum(e * y, 1)
        S = factor * S + tl.sum(e, 1)
        m = new_m
    real = row < n
    out = sums_ptr + part.to(tl.int64) * n + row
    field = tl.cdiv(vocab, PART).to(tl.int64) * n
    tl.store(out, m, mask=real)
    tl.store(out + field, S, mask=real)
    tl.store(out + 2 * field, A, mask=real)
    if targets_ptr is not None:
        tl.store(out + 3 * field, hit, mask=real)
    if ids_ptr is not None:
        tl.store(ids_ptr + part.to(tl.int64) * n + row, best.to(tl.int64), mask=real)


INTERPRETED = not isinstance(reduce_rows, triton.JITFunction)
"""Whether kernels run as numpy, on a CPU (TRITON_INTERPRET=1)."""
