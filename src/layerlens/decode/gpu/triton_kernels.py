"""The Triton kernels of the readout: `reduce_rows` reduces a product in memory, `fused_rows` computes it and reduces it in registers.

Both write the accumulators that `PartBuffers` (launch.py) describes, for every row and part of the vocabulary; moments.py gives
their formulas. A step whose argument is None is left out of the compiled kernel. Types are Triton's own, hence `no_type_check`.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _product_to_logits(x, bias, scale, softcap, temperature):
    """`Unembedding.product_to_logits_` in registers."""
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
def _load_logits(pointer, row, chunk, columns, inside, bias, scale, softcap, temperature):
    """The logits of one row of a product, [rows, chunk], in one tile."""
    x = tl.load(pointer + row.to(tl.int64) * chunk + columns, mask=inside, other=0.0)
    return _product_to_logits(x, bias, scale, softcap, temperature)


@triton.jit(do_not_specialize=["start", "parts", "n", "state_rows"])
@no_type_check
def reduce_rows(
    x_ptr, sums_ptr, ids_ptr, targets_ptr, final_ptr, reference_ptr, bias_ptr, scale, softcap, temperature,
    start, parts, n, state_rows, chunk, TILE: tl.constexpr,
):  # fmt: skip
    """Reduces tile program_id(1) of row program_id(0) of a product x [n, chunk], to sums [fields, parts, n] and ids [parts, n].

    x holds the tokens from `start` on. Each tile is a part of the vocabulary, which has `parts` of them. The rows of x are a stack of
    states of `state_rows` rows each; final and reference, [state_rows, chunk] each, are the anchors' products.
    """
    row, tile = tl.program_id(0), tl.program_id(1)
    columns = tile * TILE + tl.arange(0, TILE)
    inside = columns < chunk
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + start + columns, mask=inside, other=0.0).to(tl.float32)
    x = _load_logits(x_ptr, row, chunk, columns, inside, bias, scale, softcap, temperature)
    m = tl.max(tl.where(inside, x, -float("inf")), 0)
    y = tl.where(inside, x - m, 0.0)
    e = tl.where(inside, tl.exp(y), 0.0)
    out = sums_ptr + (start // TILE + tile).to(tl.int64) * n + row
    field = parts.to(tl.int64) * n
    tl.store(out, m)
    tl.store(out + field, tl.sum(e, 0))
    tl.store(out + 2 * field, tl.sum(e * y, 0))
    out += 3 * field
    if targets_ptr is not None:
        target = tl.load(targets_ptr + row) - start
        tl.store(out, tl.max(tl.where(inside & (columns == target), x, -float("inf")), 0))
        out += field
    if final_ptr is not None:
        q = _load_logits(final_ptr, row % state_rows, chunk, columns, inside, bias, scale, softcap, temperature)
        q_m = tl.max(tl.where(inside, q, -float("inf")), 0)
        tl.store(out, tl.sum(tl.where(inside, e * (q - q_m), 0.0), 0))
        out += field
    if reference_ptr is not None:
        q = _load_logits(reference_ptr, row % state_rows, chunk, columns, inside, bias, scale, softcap, temperature)
        q_m = tl.max(tl.where(inside, q, -float("inf")), 0)
        tl.store(out, tl.sum(tl.where(inside, tl.exp(q - q_m) * y, 0.0), 0))
    if ids_ptr is not None:
        lowest = tl.min(tl.where(inside & (x == m), columns, chunk), 0)
        tl.store(ids_ptr + (start // TILE + tile).to(tl.int64) * n + row, (start + lowest).to(tl.int64))


@triton.jit(do_not_specialize=["n", "vocabulary"])
@no_type_check
def fused_rows(
    h_ptr, w_ptr, sums_ptr, ids_ptr, targets_ptr, bias_ptr, scale, softcap, temperature,
    n, vocabulary, d_model, h_stride, w_stride, w_stride_d, PART: tl.constexpr, UPCAST: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Reduces ROWS rows of h [n, d] over PART tokens of w [vocabulary, d], to sums [fields, parts, n] and ids [parts, n].

    Consecutive programs read the same part of w, so that it stays in the cache. Rows and tokens beyond the end repeat the last one,
    so that loads need no mask in these dimensions.
    """
    blocks = tl.cdiv(n, ROWS)
    row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(0) // blocks
    depth = tl.arange(0, DEPTH)
    h_rows = h_ptr + tl.minimum(row, n - 1).to(tl.int64)[:, None] * h_stride + depth[None, :]
    if targets_ptr is not None:
        target = tl.load(targets_ptr + tl.minimum(row, n - 1))
        target_logit = tl.full((ROWS,), -float("inf"), tl.float32)
    m = tl.full((ROWS,), -float("inf"), tl.float32)
    S = tl.zeros((ROWS,), tl.float32)
    A = tl.zeros((ROWS,), tl.float32)
    argmax = tl.zeros((ROWS,), tl.int32)
    for first in range(part * PART, tl.minimum((part + 1) * PART, vocabulary), TOKENS):
        token = first + tl.arange(0, TOKENS)
        inside = token < vocabulary
        token_row = tl.minimum(token, vocabulary - 1).to(tl.int64)
        h_at = h_rows
        w_at = w_ptr + token_row[None, :] * w_stride + depth[:, None] * w_stride_d
        x = tl.zeros((ROWS, TOKENS), tl.float32)
        for k in range(0, d_model, DEPTH):
            if EVEN:
                h, w = tl.load(h_at), tl.load(w_at)
            else:
                h = tl.load(h_at, mask=depth[None, :] < d_model - k, other=0.0)
                w = tl.load(w_at, mask=depth[:, None] < d_model - k, other=0.0)
            if UPCAST:
                h, w = h.to(tl.float32), w.to(tl.float32)
            x = tl.dot(h, w, x, input_precision="ieee")
            h_at += DEPTH
            w_at += DEPTH * w_stride_d
        bias = None
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + token_row).to(tl.float32)[None, :]
        x = _product_to_logits(x, bias, scale, softcap, temperature)
        x = tl.where(inside[None, :], x, -float("inf"))
        if targets_ptr is not None:
            target_logit = tl.maximum(target_logit, tl.max(tl.where(token[None, :] == target[:, None], x, -float("inf")), 1))
        tile_m = tl.max(x, 1)
        if ids_ptr is not None:
            tile_argmax = tl.min(tl.where(x == tile_m[:, None], token[None, :], vocabulary), 1)
            argmax = tl.where(tile_m > m, tile_argmax, argmax)
        new_m = tl.maximum(m, tile_m)
        y = tl.where(inside[None, :], x - new_m[:, None], 0.0)
        e = tl.where(inside[None, :], tl.exp(y), 0.0)
        shift = tl.where(S > 0.0, m - new_m, 0.0)
        factor = tl.exp(shift)
        A = factor * (A + S * shift) + tl.sum(e * y, 1)
        S = factor * S + tl.sum(e, 1)
        m = new_m
    inside_rows = row < n
    out = sums_ptr + part.to(tl.int64) * n + row
    field = tl.cdiv(vocabulary, PART).to(tl.int64) * n
    tl.store(out, m, mask=inside_rows)
    tl.store(out + field, S, mask=inside_rows)
    tl.store(out + 2 * field, A, mask=inside_rows)
    if targets_ptr is not None:
        tl.store(out + 3 * field, target_logit, mask=inside_rows)
    if ids_ptr is not None:
        tl.store(ids_ptr + part.to(tl.int64) * n + row, argmax.to(tl.int64), mask=inside_rows)


INTERPRETED = not isinstance(reduce_rows, triton.JITFunction)
"""Whether Triton interprets the kernels with numpy on a CPU: TRITON_INTERPRET=1 was set when Triton was imported."""
