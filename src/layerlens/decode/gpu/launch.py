"""What both GPU backends need to launch Triton kernels: whether kernels run, their arguments, and the buffers that they write."""

from __future__ import annotations

import subprocess
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from layerlens.decode.moments import Moments, PartialSums, combine_stacked, divergence_sum
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.top_tokens import LargestTokens, add_token_ids, argmax_of_parts
from layerlens.decode.unembedding import Unembedding


@cache
def kernels_run(device: torch.device) -> bool:
    """Whether Triton is installed and runs on the device. On a CPU only its interpreter does (TRITON_INTERPRET=1), for tests.

    Warns once for each GPU if Triton is there and cannot launch a kernel, most often because it finds no C compiler.
    """
    if find_spec("triton") is None:
        return False
    if device.type == "cpu":
        return bool(kernels().INTERPRETED)
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) and _launches(device)


def _launches(device: torch.device) -> bool:
    """Whether a kernel that reduces 16 numbers can be launched; warns if it cannot be."""
    try:
        with launching_on(device):
            product, sums = torch.zeros(1, 16, device=device), torch.empty(3, 1, 1, device=device)
            kernels().reduce_rows[(1, 1)](product, sums, *[None] * 8, 0, 1, 1, 1, 16, TILE=16)
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"Triton cannot launch kernels on {device} ({reason}), so torch reduces logits, which takes longer: install a C compiler "
            "(gcc or clang, with Python's headers), or name one in CC",
            stacklevel=2,
        )
        return False
    return True


@cache
def kernels() -> ModuleType:
    """The module of the kernels. It is imported when it is first needed, because it imports Triton."""
    from layerlens.decode.gpu import triton_kernels

    return triton_kernels


def launching_on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes `device` the current GPU: Triton launches on the current GPU, which need not be the one that holds the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def logit_arguments(unembedding: Unembedding) -> tuple[Tensor | None, float | None, float | None, float | None]:
    """Bias, scale, soft-cap and temperature as the kernels take them: None if a step from product to logits is to be left out."""
    scale, temperature = (None if value == 1.0 else float(value) for value in (unembedding.scale, unembedding.temperature))
    return unembedding.bias, scale, None if unembedding.softcap is None else float(unembedding.softcap), temperature


class PartBuffers:
    """The buffers to which kernels write the accumulators of each part of the vocabulary, for all rows of `ReadoutRequest.all_vectors`.

    `sums` is [fields, parts, rows], float32: m, S and A, then, if asked for, the target's logit and the two sums Σ e^(p-m_p) (q-m_q)
    of `divergence_sum`. `ids` is [parts, rows]: the token of each row's largest logit in the part, or None if it is not asked for.
    """

    def __init__(self, request: ReadoutRequest, parts: int):
        self.slices, self.parts, weight = request.row_slices, parts, request.unembedding.weight
        n = request.total_rows
        self.state_rows = min(rows.stop - rows.start for rows in self.slices.values())
        asked = {"target_logit": request.targets is not None, "kl": request.kl, "kl_from": request.kl_from}
        self.fields = ["m", "S", "A", *(name for name, wanted in asked.items() if wanted)]
        self.sums = weight.new_empty((len(self.fields), parts, n), dtype=torch.float32)
        self.ids = weight.new_empty((parts, n), dtype=torch.long) if request.agrees else None
        # anchors have no targets
        self.targets = None if request.targets is None else pad(request.targets, (0, n - len(request.targets)), value=-1)

    def combined(self, top: tuple[Tensor, Tensor] | None = None) -> PartialSums:
        """The accumulators of the whole vocabulary, once all parts are written; `top` holds the k largest logits and their tokens."""
        values = dict(zip(self.fields, self.sums, strict=True))
        moments = {name: Moments(*(values[field][:, rows] for field in "mSA")) for name, rows in self.slices.items()}
        own = moments.pop("own")
        target_logit, kl, kl_from = (
            values[name][:, self.slices["own"]] if name in values else None for name in ("target_logit", "kl", "kl_from")
        )
        kl = None if kl is None else divergence_sum(own, moments["final"], kl)
        kl_from = None if kl_from is None else divergence_sum(moments["reference"], own, kl_from)
        sums = combine_stacked(PartialSums(own, moments, target_logit, kl, kl_from))
        argmax = {}
        if self.ids is not None:
            for name, rows in self.slices.items():
                m = values["m"][:, rows]
                argmax[name] = m.amax(0), argmax_of_parts(m, self.ids[:, rows])
        return add_token_ids(sums, [LargestTokens(argmax, top)])
