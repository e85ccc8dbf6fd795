"""Float32 products on a GPU: what is lost to 16-bit weights, how much memory they take, and that TF32 stays off."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from layerlens.decode.gpu import product as gpu_product
from layerlens.decode.gpu.product import TILE

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def test_product_of_float32_vectors_and_bfloat16_weights_is_as_good_as_float32() -> None:
    """The three bfloat16 terms of a float32 vector sum to it exactly."""
    h = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 300)
    terms = gpu_product._exact_terms(h, torch.empty(1, 300, dtype=BF16))
    assert [term.dtype for term in terms] == [BF16] * 3
    assert torch.equal(sum(term.double() for term in terms), h.double())
    h = torch.randn(50, 300, generator=torch.Generator().manual_seed(1))
    w = torch.randn(700, 300, generator=torch.Generator().manual_seed(2)).to(BF16)
    exact = h.double() @ w.double().T
    error = (gpu_product.float32_product(h, w) - exact).abs().max()
    assert error < 2 * (h @ w.float().T - exact).abs().max()
    assert error < 1e-3 * (h.to(BF16).double() @ w.double().T - exact).abs().max()


@pytest.mark.parametrize(("hidden", "weight", "terms"), [
    (BF16, BF16, [BF16]), (FP16, FP16, [FP16]), (FP32, BF16, [BF16] * 3), (torch.float64, BF16, [BF16] * 3),
    (FP32, FP16, [FP32]), (BF16, FP16, [FP32]), (BF16, FP32, [FP32]), (FP32, FP32, [FP32]), (torch.float64, torch.float64, [FP32]),
])  # fmt: skip
@pytest.mark.parametrize("rows", [1, 100, 4096, 12288])
@pytest.mark.parametrize("d_model", [64, 4096])
def test_workspace_of_a_chunked_product_is_bounded(
    monkeypatch: pytest.MonkeyPatch, hidden: torch.dtype, weight: torch.dtype, terms: list[torch.dtype], rows: int, d_model: int
) -> None:
    """No vector is rounded below its own dtype or float32; products and float32 weights take at most 64 MiB each, in whole tiles."""
    monkeypatch.setattr(gpu_product, "_multiplies_low_precision", lambda device: True)
    with torch.device("meta"):
        product = gpu_product.ChunkedProduct(torch.empty(rows, d_model, dtype=hidden), torch.empty(151936, d_model, dtype=weight))
    assert [term.dtype for term in product.terms] == terms
    limit = gpu_product.WORKSPACE_ELEMENTS
    assert sum(buffer.numel() for buffer in product.buffers) <= limit
    assert terms[0] == weight or product.chunk * d_model <= limit
    assert product.chunk % TILE == 0 or TILE % product.chunk == 0 or product.chunk == 151936


@pytest.mark.parametrize(
    "program", ["", "torch.set_float32_matmul_precision('medium')", "torch.backends.cuda.matmul.fp32_precision = 'tf32'"]
)
def test_no_tf32_turns_tf32_off_and_restores_the_setting(program: str) -> None:
    """Whichever of torch's two settings the program has used; a mix of both would make the next product fail."""
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
