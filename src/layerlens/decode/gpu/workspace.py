"""The backend "workspace": matrix products write the float32 logits of a chunk to a buffer, and one kernel reads them once.

Without Triton, torch reads them. With Triton, the whole pass over the vocabulary is queued on the GPU before its results are looked at.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from layerlens.decode.gpu import launch
from layerlens.decode.gpu.launch import PartBuffers, launching_on, logit_arguments
from layerlens.decode.gpu.product import TILE, ChunkedProduct
from layerlens.decode.moments import PartialSums, combine
from layerlens.decode.reduction import Reducer
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.second_look import SecondLook, add_sums
from layerlens.decode.top_tokens import RunningTopK, add_token_ids


def workspace_backend(request: ReadoutRequest) -> PartialSums:
    """Computes a request over the whole vocabulary, chunk by chunk in a workspace of bounded size. A second look is torch's."""
    vectors = request.all_vectors
    product = ChunkedProduct(vectors, request.unembedding.weight)
    reduction = (_KernelReduction if launch.kernels_run(vectors.device) else _TorchReduction)(request, product.chunk)
    n = len(vectors)
    kept = request.memory.take(n * request.vocabulary, vectors.device) if request.second else None
    with launching_on(vectors.device):
        logits = {}
        for start in range(0, request.vocabulary, product.chunk):
            stop = min(start + product.chunk, request.vocabulary)
            products = product(start, stop)
            if kept is not None:
                logits[start] = kept[n * start : n * stop].view(n, stop - start).copy_(products)
                request.unembedding.product_to_logits_(logits[start], start, stop)
            reduction.reduce(products, start)
        sums = reduction.result()
        if not request.second:
            return sums
        look = SecondLook(request, sums, _TorchReduction.block_elements)
        slices = request.row_slices.items()
        parts = [look({name: chunk[rows] for name, rows in slices}, start) for start, chunk in logits.items()]
        return replace(sums, second=add_sums(parts))


class _KernelReduction:
    """Reduces the product of each chunk by the kernel `reduce_rows`, tile by tile."""

    def __init__(self, request: ReadoutRequest, chunk: int):
        self.request = request
        self.tile = min(TILE, 1 << (chunk - 1).bit_length())
        self.buffers = PartBuffers(request, -(-request.vocabulary // self.tile))
        self.top = RunningTopK(len(request.hidden), request.top_k, request.hidden.device) if request.top_k else None

    def reduce(self, product: Float[Tensor, "n chunk"], start: int) -> None:
        request, buffers, (n, chunk) = self.request, self.buffers, product.shape
        arguments = logit_arguments(request.unembedding)
        if self.top is not None:  # a top-k search in torch needs logits in memory, so the kernel gets logits in place of the product
            own = request.unembedding.product_to_logits_(product, start, start + chunk)[buffers.slices["own"]]
            self.top.update_every_row(own, start)
            arguments = None, None, None, None
        final, reference = (
            product[buffers.slices[name]] if asked else None for name, asked in (("final", request.kl), ("reference", request.kl_from))
        )
        launch.kernels().reduce_rows[(n, -(-chunk // self.tile))](
            product, buffers.sums, buffers.ids, buffers.targets, final, reference, *arguments,
            start, buffers.parts, n, buffers.state_rows, chunk, TILE=self.tile, num_warps=8,
        )  # fmt: skip

    def result(self) -> PartialSums:
        return self.buffers.combined(None if self.top is None else (self.top.logits, self.top.ids))


class _TorchReduction:
    """Reduces the product of each chunk by torch, in blocks of a size for a GPU."""

    block_elements = 1 << 22

    class _Reducer(Reducer):
        block_elements = 1 << 22

    def __init__(self, request: ReadoutRequest, _chunk: int):
        self.request, self.reducer = request, self._Reducer(request)
        self.slices = request.row_slices
        self.parts: list[PartialSums] = []

    def reduce(self, product: Float[Tensor, "n chunk"], start: int) -> None:
        logits = self.request.unembedding.product_to_logits_(product, start, start + product.shape[1])
        self.parts.append(self.reducer.reduce({name: logits[rows] for name, rows in self.slices.items()}, start))

    def result(self) -> PartialSums:
        return add_token_ids(combine(self.parts), [self.reducer.largest])
