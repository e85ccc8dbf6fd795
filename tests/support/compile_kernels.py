"""Compiles the Triton kernels for cards that need not be here, and prints what they need as JSON.

    python -m tests.support.compile_kernels

This is a process of its own, because the test process imports Triton with TRITON_INTERPRET=1. The JSON maps a compute capability, "80" or
"90", and "all" or "few", for how much is asked of the kernels, to two numbers of each kernel: `shared`, the bytes of shared memory of a
block, and `spilled`, the bytes of registers that the machine code spills.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from layerlens.decode.gpu import fused
from layerlens.decode.gpu import triton_kernels as kernels
from layerlens.decode.gpu.product import TILE
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.unembedding import Unembedding


def compiled(kernel: Any, capability: int, warps: int, stages: int, **arguments: Any) -> Any:
    """A kernel compiled for a compute capability; `arguments` are types, or the values of constants."""
    signature = {name: arguments[name] if isinstance(arguments[name], str) else "constexpr" for name in kernel.arg_names}
    constants = {name: arguments[name] for name, kind in signature.items() if kind == "constexpr"}
    sizes = ("d_model", "chunk", "h_stride", "w_stride")
    even = [i for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*" or name in sizes]
    source = ASTSource(kernel, signature, constants, attrs={(i,): [["tt.divisibility", 16]] for i in even})
    return compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages})


def all_kernels(capability: int, all_of_it: bool) -> list[Any]:
    """Both kernels with the tiling that a card of this capability would get, the fused one for each kind of weights."""
    pointers = {"ids_ptr": "*i64", "targets_ptr": "*i64", "bias_ptr": "*bf16", "softcap": "fp32", "scale": "fp32", "temperature": "fp32"}
    asked = pointers if all_of_it else dict.fromkeys(pointers) | {"targets_ptr": "*i64"}
    sums = {"sums_ptr": "*fp32", **asked}
    products = {"x_ptr": "*fp32", "final_ptr": "*fp32", "reference_ptr": "*fp32" if all_of_it else None}
    numbers = dict.fromkeys(("start", "parts", "n", "state_rows", "chunk"), "i32")
    made = [compiled(kernels.reduce_rows, capability, 8, 3, **sums, **products, **numbers, TILE=TILE)]
    numbers = dict.fromkeys(("n", "vocabulary", "d_model", "h_stride", "w_stride"), "i32")
    unembedding = Unembedding(torch.zeros(100, 64, dtype=torch.bfloat16), softcap=30.0 if all_of_it else None)
    request = ReadoutRequest(unembedding, torch.zeros(4, 64, dtype=torch.bfloat16), agrees=all_of_it)
    for dtype, exact in (("*bf16", True), ("*fp16", True), ("*fp32", False)):
        rows, tokens, depth, warps, stages = fused.tiling(request, exact, capability=divmod(capability, 10))
        tiling = {"PART": fused.PART, "UPCAST": not exact, "EVEN": not all_of_it, "ROWS": rows, "TOKENS": tokens, "DEPTH": depth}
        vectors = {"h_ptr": dtype, "w_ptr": dtype, "w_stride_d": 1}
        made.append(compiled(kernels.fused_rows, capability, warps, stages, **sums, **vectors, **numbers, **tiling))
    return made


def needs(kernel: Any, folder: Path) -> dict[str, int]:
    """Shared memory and spilled registers of a compiled kernel, in bytes, as NVIDIA's assembler reports them."""
    source = folder / "kernel.ptx"
    source.write_text(kernel.asm["ptx"])
    architecture = re.search(r"\.target (\w+)", kernel.asm["ptx"])[1]
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    command = [ptxas, "-v", f"--gpu-name={architecture}", source, "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {"shared": kernel.metadata.shared, "spilled": int(re.search(r"(\d+) bytes spill stores", said)[1])}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = {
            capability: {
                asked: [needs(kernel, Path(folder)) for kernel in all_kernels(capability, asked == "all")] for asked in ("few", "all")
            }
            for capability in (80, 90)
        }
    print(json.dumps(found))
