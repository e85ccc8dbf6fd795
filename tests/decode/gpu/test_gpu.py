"""The readout on a GPU: its laws (`kernel_laws.py`) in Triton's interpreter, what a card would be given, and the choice of a way.

python -m pytest -m gpu tests/test_gpu.py      the same laws and the bound on memory, on a card
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from layerlens.decode import interface as streamed
from layerlens.decode import readout
from layerlens.decode.gpu import passes as gpu
from layerlens.decode.gpu import product as gpu_product
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import SelectionError

HERE = Path(__file__).parent
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

ON_A_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(
    "interpreted", [pytest.param(True, id="interpreter"), pytest.param(False, marks=[pytest.mark.gpu, ON_A_CARD], id="card")]
)
def test_the_kernels_keep_their_laws(interpreted: bool) -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    pytest.importorskip("triton", reason="the GPU kernels need Triton: pip install triton")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "TRITON_"))}
    if interpreted:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / "test_kernel_laws.py")]
    done = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{2} passed", done.stdout), done.stdout


def request(
    hidden: torch.dtype = BF16,
    weight: torch.dtype = BF16,
    d: int = 64,
    vocab: int = 100,
    rows: int = 4,
    softcap: float | None = None,
    **asked: Any,
) -> ReadoutRequest:
    return ReadoutRequest(Unembedding(torch.zeros(vocab, d, dtype=weight), softcap=softcap), torch.zeros(rows, d, dtype=hidden), **asked)


def test_small_widths_are_fused_and_what_needs_logits_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "kernels_run", lambda device: True)
    assert gpu.gpu_backend(request(d=gpu.FUSED_D)) == "triton"
    assert gpu.gpu_backend(request(d=gpu.FUSED_D, agrees=True)) == "triton"
    for other in (
        request(d=gpu.FUSED_D + 1),
        request(hidden=FP32),
        request(FP32, FP32),
        request(kl=True),
        request(kl_from=True),
        request(top_k=1),
    ):
        assert gpu.gpu_backend(other) == "workspace"
    assert gpu.gpu_backend(request(d=4096), "triton") == "triton"
    assert gpu.gpu_backend(request(), "workspace") == "workspace"
    with pytest.raises(SelectionError, match="choose 'workspace' for KL"):
        gpu.gpu_backend(request(kl=True), "triton")


@pytest.mark.parametrize("backend", ["workspace", "triton"])
def test_a_cpu_is_refused(backend: str) -> None:
    with pytest.raises(SelectionError, match="needs a GPU"):
        readout(torch.zeros(2, 4), torch.zeros(9, 4), backend=backend)


def test_without_triton_the_workspace_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    h, w, final, reference = (torch.randn(n, 24, generator=generator) for n in (18, 700, 6, 6))
    asked = {"want": streamed.WANTS, "targets": torch.arange(-1, 5), "final": final, "reference": reference, "top_k": 5}
    base = readout(h.view(3, 6, 24), w, **asked)
    monkeypatch.setattr(gpu_product, "WORKSPACE_ELEMENTS", 30 * 128)
    monkeypatch.setattr(streamed, "choose_backend", lambda request, backend: gpu.workspace)
    got = readout(h.view(3, 6, 24), w, **asked)
    for field in ("entropy", "logp", "kl", "kl_from", "agrees", "top_ids", "top_probs"):
        torch.testing.assert_close(getattr(got, field), getattr(base, field), atol=2e-5, rtol=0, equal_nan=True)


def test_float32_vectors_lose_nothing_to_bfloat16_weights() -> None:
    """Their three bfloat16 parts add up to them exactly, so the product is as good as float32's own."""
    h = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 300)
    terms = gpu_product._terms(h, torch.empty(1, 300, dtype=BF16))
    assert [term.dtype for term in terms] == [BF16] * 3
    assert torch.equal(sum(term.double() for term in terms), h.double())
    h = torch.randn(50, 300, generator=torch.Generator().manual_seed(1))
    w = torch.randn(700, 300, generator=torch.Generator().manual_seed(2)).to(BF16)
    exact = h.double() @ w.double().T
    error = (gpu_product.product(h, w) - exact).abs().max()
    assert error < 2 * (h @ w.float().T - exact).abs().max()
    assert error < 1e-3 * (h.to(BF16).double() @ w.double().T - exact).abs().max()


@pytest.mark.parametrize(("hidden", "weight", "terms"), [
    (BF16, BF16, [BF16]), (FP16, FP16, [FP16]), (FP32, BF16, [BF16] * 3), (torch.float64, BF16, [BF16] * 3),
    (FP32, FP16, [FP32]), (BF16, FP16, [FP32]), (BF16, FP32, [FP32]), (FP32, FP32, [FP32]), (torch.float64, torch.float64, [FP32]),
])  # fmt: skip
@pytest.mark.parametrize("rows", [1, 100, 4096, 12288])
@pytest.mark.parametrize("d", [64, 4096])
def test_a_workspace_is_bounded(
    monkeypatch: pytest.MonkeyPatch, hidden: torch.dtype, weight: torch.dtype, terms: list[torch.dtype], rows: int, d: int
) -> None:
    """No vector is rounded below what it was or float32; logits and float32 weights stay within 64 MiB each, and in whole tiles."""
    monkeypatch.setattr(gpu_product, "_multiplies_low_precision", lambda device: True)
    with torch.device("meta"):
        product = gpu_product.Product(torch.empty(rows, d, dtype=hidden), torch.empty(151936, d, dtype=weight))
    assert [term.dtype for term in product.terms] == terms
    limit = gpu_product.WORKSPACE_ELEMENTS
    assert sum(space.numel() for space in product.space) <= limit
    assert terms[0] == weight or product.chunk * d <= limit
    assert product.chunk % gpu.TILE == 0 or gpu.TILE % product.chunk == 0 or product.chunk == 151936


@pytest.mark.parametrize(
    "program", ["", "torch.set_float32_matmul_precision('medium')", "torch.backends.cuda.matmul.fp32_precision = 'tf32'"]
)
def test_tf32_is_off_and_put_back(program: str) -> None:
    """Whichever of torch's two ways a program has used; the product that follows must not stumble over a mix of both."""
    script = f"""if True:
        import runpy, torch, warnings
        no_tf32 = runpy.run_path({gpu_product.__file__!r})["_no_tf32"]
        warnings.simplefilter("error")
        {program or "pass"}
        matmul = torch.backends.cuda.matmul
        def state():
            try:
                return matmul.fp32_precision, torch.get_float32_matmul_precision()
            except RuntimeError:
                return matmul.fp32_precision, None
        before = state()
        with no_tf32():
            assert matmul.fp32_precision != "tf32" and not matmul.allow_tf32, state()
        assert state() == before, (before, state())
    """
    subprocess.run([sys.executable, "-c", script], check=True)


def test_importing_layerlens_leaves_triton_alone() -> None:
    script = "import sys, torch; known = set(sys.modules); import layerlens.decode; assert 'triton' not in set(sys.modules) - known"
    subprocess.run([sys.executable, "-c", script], check=True)


def compiled(kernel: Any, capability: int, warps: int, stages: int, **arguments: Any) -> Any:
    """A kernel as Triton makes it for a card that need not be here; arguments are types, or values of constants."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    signature = {name: arguments[name] if isinstance(arguments[name], str) else "constexpr" for name in kernel.arg_names}
    constants = {name: arguments[name] for name, kind in signature.items() if kind == "constexpr"}
    even = [i for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*" or name in ("d", "width", "h_stride", "w_stride")]
    source = ASTSource(kernel, signature, constants, attrs={(i,): [["tt.divisibility", 16]] for i in even})
    return compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages})


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("all_of_it", [False, True])
def test_kernels_compile_for_cards_and_fit_registers(capability: int, all_of_it: bool, tmp_path: Path) -> None:
    """To the machine code of an A100 and an H100, with the tiling that they would get; registers suffice for every tile."""
    triton = pytest.importorskip("triton", reason="the GPU kernels need Triton: pip install triton")
    from layerlens.decode.gpu import triton_kernels as kernels

    pointers = {"ids_ptr": "*i64", "targets_ptr": "*i64", "bias_ptr": "*bf16", "softcap": "fp32", "scale": "fp32", "temperature": "fp32"}
    asked = pointers if all_of_it else dict.fromkeys(pointers) | {"targets_ptr": "*i64"}
    sums = {"sums_ptr": "*fp32", **asked}
    logits = {"x_ptr": "*fp32", "final_ptr": "*fp32", "reference_ptr": "*fp32" if all_of_it else None}
    numbers = dict.fromkeys(("start", "tiles", "n", "rows", "width"), "i32")
    made = [compiled(kernels.reduce_rows, capability, 8, 3, **sums, **logits, **numbers, TILE=gpu.TILE)]
    numbers = dict.fromkeys(("n", "vocab", "d", "h_stride", "w_stride"), "i32")
    for dtype, exact in (("*bf16", True), ("*fp16", True), ("*fp32", False)):
        like = request(agrees=all_of_it, softcap=30.0 if all_of_it else None)
        rows, tokens, depth, warps, stages = gpu._tiling(like, exact, capability=divmod(capability, 10))
        tiling = {"PART": gpu.PART, "UPCAST": not exact, "EVEN": not all_of_it, "ROWS": rows, "TOKENS": tokens, "DEPTH": depth}
        vectors = {"h_ptr": dtype, "w_ptr": dtype, "w_stride_d": 1}
        made.append(compiled(kernels.fused_rows, capability, warps, stages, **sums, **vectors, **numbers, **tiling))
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    for kernel in made:
        assert kernel.metadata.shared <= 160 << 10  # what a block of an A100 may have, and less than an H100's
        source = tmp_path / "kernel.ptx"
        source.write_text(kernel.asm["ptx"])
        architecture = re.search(r"\.target (\w+)", kernel.asm["ptx"])
        said = subprocess.run([ptxas, "-v", f"--gpu-name={architecture[1]}", source, "-o", os.devnull], capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        spilled = re.search(r"(\d+) bytes spill stores", said.stderr)
        assert spilled
        assert int(spilled[1]) <= 64, said.stderr  # counters of loops at most


@pytest.mark.gpu
@ON_A_CARD
@pytest.mark.parametrize("backend", ["workspace", "triton"])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_extra_memory_is_bounded(backend: str, dtype: torch.dtype) -> None:
    """At most 256 MB over the inputs, for Qwen3's vocabulary and 4,096 rows."""
    d, vocab, rows = 1024, 151936, 4096
    h, w = torch.randn(rows, d, device="cuda", dtype=dtype), torch.randn(vocab, d, device="cuda", dtype=dtype)
    asked: dict[str, Any] = {"want": ("entropy", "logp"), "targets": torch.arange(rows, device="cuda")}
    if backend == "workspace":
        asked |= {"want": streamed.WANTS, "final": h.flip(0), "reference": h.roll(1, 0), "top_k": 10}
    readout(h[:256], w, backend=backend)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    readout(h, w, backend=backend, **asked)
    assert torch.cuda.max_memory_allocated() - before <= 256e6


@pytest.mark.gpu
@ON_A_CARD
@pytest.mark.parametrize("backend", ["workspace", "triton", "auto"])
@pytest.mark.parametrize(("dtype", "d"), [(BF16, 1024), (BF16, 2560), (FP16, 1024), (FP32, 512)])
def test_a_whole_vocabulary_on_a_card(backend: str, dtype: torch.dtype, d: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    h = (torch.randn(300, d, device="cuda", generator=generator) * torch.logspace(-2, 0.5, 300, device="cuda")[:, None]).to(dtype)
    w = (torch.randn(151936, d, device="cuda", generator=generator) * d**-0.5 * 3).to(dtype)
    logp = torch.cat([(rows.double() @ w.double().T).log_softmax(-1) for rows in h.split(50)])
    got = readout(h, w, backend=backend)
    torch.testing.assert_close(got.entropy.double(), -(logp.exp() * logp).sum(-1), atol=2e-4, rtol=0)
    assert torch.equal(readout(h, w, backend=backend).entropy, got.entropy)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("backend", ["workspace", "triton"])
def test_the_unembedding_may_lie_on_another_card(backend: str) -> None:
    h, w = torch.randn(20, 256, device="cuda:0", dtype=BF16), torch.randn(5000, 256, device="cuda:1", dtype=BF16)
    there = readout(h, w, backend=backend).entropy
    assert there.device == w.device
    torch.testing.assert_close(there.cpu(), readout(h, w.to("cuda:0"), backend=backend).entropy.cpu(), atol=1e-6, rtol=0)
