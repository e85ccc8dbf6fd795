"""What every way through a GPU has to obey. `test_gpu.py` runs this file in Triton's interpreter, and on a card where there is one.

TRITON_INTERPRET=1 python -m pytest tests/kernel_laws.py
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from layerlens.decode import Readout, readout
from layerlens.decode import interface as streamed
from layerlens.decode.choose import choose_backend
from layerlens.decode.gpu import passes as gpu
from layerlens.decode.gpu import product as gpu_product
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import ReadoutError, SelectionError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = ("workspace", "triton")
SIMPLE = ("entropy", "logp", "agrees")

pytestmark = pytest.mark.skipif(not gpu.kernels_run(DEVICE), reason="needs Triton, and a GPU or TRITON_INTERPRET=1")


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def plain(hidden: Tensor, logits: Tensor | Unembedding) -> Tensor:
    """Log-probabilities in float64."""
    logits = logits if isinstance(logits, Unembedding) else Unembedding(logits)
    x = logits.scale * (hidden.double() @ logits.weight.double().T)
    x = x if logits.bias is None else x + logits.bias.double()
    x = x if logits.softcap is None else logits.softcap * torch.tanh(x / logits.softcap)
    return (x / logits.temperature).log_softmax(-1)


def check(got: Readout, logp: Tensor, targets: Tensor | None = None, final: Tensor | None = None, reference: Tensor | None = None) -> None:
    """Against log-probabilities of the rows and of the anchors, to float32 rounding of the logits."""
    p = logp.exp()
    wanted = {"entropy": -(p * logp).sum(-1)}
    if targets is not None:
        wanted["logp"] = logp.gather(-1, targets.expand(logp.shape[:-1])[..., None])[..., 0]
    if final is not None:
        wanted["kl"] = (p * (logp - final)).sum(-1)
        assert torch.equal(got.agrees, logp.argmax(-1) == final.argmax(-1))
    if reference is not None:
        wanted["kl_from"] = (reference.exp() * (reference - logp)).sum(-1)
    size = 1e-5 * max(1.0, *(float(x.abs().max()) for x in (logp, final, reference) if x is not None))
    for name, values in wanted.items():
        if getattr(got, name) is not None:
            torch.testing.assert_close(
                getattr(got, name).double(), values, atol=size, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, tiles and parts of the vocabulary, the last of each not whole."""
    monkeypatch.setattr(gpu_product, "WORKSPACE_ELEMENTS", 28 * 512)
    monkeypatch.setattr(gpu_product, "TILE", 256)
    monkeypatch.setattr(gpu, "TILE", 256)
    monkeypatch.setattr(gpu, "PART", 512)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("hidden", "weight"), [
    (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.float32), (torch.float64, torch.float64),
])  # fmt: skip
@pytest.mark.parametrize(("rows", "d", "vocab", "scale"), [(13, 72, 603, 0.3), (5, 128, 512, 1e3)])
def test_all_dtypes_are_naive(backend: str, hidden: torch.dtype, weight: torch.dtype, rows: int, d: int, vocab: int, scale: float) -> None:
    """From flat rows to rows where one token has it all; logits up to 1e4."""
    h = draw(1, rows, d) * torch.logspace(-3, 0, rows, device=DEVICE)[:, None]
    h, w = (h * scale).to(hidden), draw(2, vocab, d, dtype=weight)
    targets = torch.arange(rows, device=DEVICE) * 7 % vocab
    check(readout(h, w, want=("entropy", "logp"), targets=targets, backend=backend), plain(h, w), targets)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stack_with_its_anchors_is_naive(dtype: torch.dtype) -> None:
    h, w = draw(1, 3, 7, 40, dtype=dtype), draw(2, 603, 40, dtype=dtype)
    final, reference = draw(3, 7, 40, dtype=dtype), draw(4, 7, 40, dtype=dtype)
    h[1] = final
    targets = torch.tensor([5, 0, 602, 255, 256, 511, 512], device=DEVICE)
    got = readout(h, w, want=streamed.WANTS, targets=targets, final=final, reference=reference, top_k=6, backend="workspace")
    logp = plain(h, w)
    check(got, logp, targets, plain(final, w), plain(reference, w))
    assert got.agrees[1].all()
    assert got.kl[1].abs().max() < 1e-5
    torch.testing.assert_close(got.top_probs.double(), logp.exp().topk(6).values, atol=1e-5, rtol=0)
    torch.testing.assert_close(logp.exp().gather(-1, got.top_ids), got.top_probs.double(), atol=1e-5, rtol=0)
    simple = readout(h, w, want=SIMPLE, targets=targets, final=final, backend="triton")
    assert torch.equal(simple.agrees, got.agrees)
    check(simple, logp, targets)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top_k", [0, 3])
def test_bias_scale_cap_and_temperature(backend: str, top_k: int) -> None:
    if backend == "triton" and top_k:
        pytest.skip("the fused kernel has no top-k")
    h, w, final, bias = draw(1, 2, 6, 24), draw(2, 777, 24), draw(3, 6, 24), draw(4, 777)
    logits = Unembedding(w, bias=bias, scale=0.1, softcap=1.0, temperature=0.5)
    want = ("entropy", "agrees") if backend == "triton" else ("entropy", "agrees", "kl")
    got = readout(h, logits, want=want, final=final, top_k=top_k, backend=backend)
    check(got, plain(h, logits), final=plain(final, logits))
    if top_k:
        assert torch.equal(got.top_ids, plain(h, logits).topk(top_k).indices)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [-200.0, 0.0, 200.0])
def test_extreme_rows(backend: str, offset: float) -> None:
    rows = torch.stack(
        [
            torch.tensor([1e4, *[0.0] * 776]),
            torch.tensor([*[0.0] * 776, 1e4]),
            torch.linspace(-1e-3, 1e-3, 777),
            torch.cat([torch.full((400,), 30.0), torch.linspace(-1, 1, 377)]),
            torch.zeros(777),
        ]
    ).to(DEVICE)
    weight = (rows + offset).T.contiguous()
    logp = (rows + offset).double().log_softmax(-1)
    got = readout(torch.eye(5, device=DEVICE), weight, backend=backend)
    torch.testing.assert_close(got.entropy.double(), -(logp.exp() * logp).sum(-1), atol=1e-4, rtol=0)
    assert got.entropy[-1].item() == pytest.approx(math.log(777), abs=1e-5)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_zero_row_is_uniform_and_a_single_token_certain(backend: str, dtype: torch.dtype) -> None:
    zero = readout(torch.zeros(1, 20, device=DEVICE, dtype=dtype), draw(1, 1003, 20, dtype=dtype), backend=backend)
    assert zero.entropy.item() == pytest.approx(math.log(1003), abs=1e-6)
    one = readout(draw(1, 3, 20, dtype=dtype), draw(2, 1, 20, dtype=dtype), backend=backend)
    assert one.entropy.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["hidden", "bias"])
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")  # numpy's, in the interpreter
def test_a_bad_row_is_refused(backend: str, poison: float, where: str) -> None:
    hidden, bias = draw(1, 2, 5, 20), torch.zeros(700, device=DEVICE)
    (hidden[1, 3] if where == "hidden" else bias)[2] = poison
    row = "row 3 of state 1" if where == "hidden" else "row 0 of state 0"
    with pytest.raises(ReadoutError, match=row):
        readout(hidden, Unembedding(draw(2, 700, 20), bias=bias), backend=backend)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_negative_target_has_no_probability_and_others_at_most_one(backend: str) -> None:
    h, w = draw(1, 6, 20) * 50, draw(2, 1003, 20)
    targets = (h @ w.T).argmax(-1)
    targets[2] = -1
    got = readout(h, w, want=("logp",), targets=targets, backend=backend).logp
    assert got.isnan().tolist() == [False, False, True, False, False, False]
    assert (got[~got.isnan()] <= 0).all()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bits_twice_and_the_lowest_of_equal_tokens(backend: str) -> None:
    h, w = (draw(seed, n, 40).mul(3).round().to(torch.bfloat16) for seed, n in ((1, 9), (2, 1003)))  # logits are whole numbers, exactly
    w[600:] = w[:403].clone()
    request = streamed.ReadoutRequest(Unembedding(w), h, {"final": h.flip(0)}, agrees=True, targets=torch.arange(9, device=DEVICE))
    one, two = (choose_backend(request, backend)(request) for _ in range(2))
    for field in ("m", "S", "A", "argmax"):
        assert torch.equal(getattr(one.own, field), getattr(two.own, field))
    assert torch.equal(one.target, two.target)
    assert torch.equal(one.own.argmax, (h.float() @ w.float().T).cpu().argmax(-1).to(DEVICE))
    assert torch.equal(one.own.argmax, one.anchors["final"].argmax.flip(0))


def test_a_row_does_not_know_how_many_come_with_it() -> None:
    h, w = draw(1, 40, 48, dtype=torch.bfloat16), draw(2, 2501, 48, dtype=torch.bfloat16)
    if DEVICE.type == "cpu":  # the interpreter multiplies with the BLAS of a CPU, whose order of summation is its own: make all sums exact
        h, w = ((8 * x).round() / 8 for x in (h, w))
    together = readout(h, w, backend="triton").entropy
    assert torch.equal(readout(h[33:34], w, backend="triton").entropy, together[33:34])


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_ways_agree(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels, torch where there is no Triton, and the readout of a CPU."""
    h, w, final, reference = draw(1, 2, 5, 32, dtype=dtype), draw(2, 603, 32, dtype=dtype), draw(3, 5, 32), draw(4, 5, 32)
    final, reference, targets = final.to(dtype), reference.to(dtype), torch.arange(5, device=DEVICE)

    def read(backend: str, simple: bool = False) -> Readout:
        more = {} if simple else {"reference": reference, "top_k": 4}
        return readout(h, w, want=SIMPLE if simple else streamed.WANTS, targets=targets, final=final, backend=backend, **more)

    ways = {"workspace": read("workspace"), "triton": read("triton", simple=True)}
    base = read("torch")
    monkeypatch.setattr(gpu, "kernels_run", lambda device: False)
    monkeypatch.setattr(streamed, "choose_backend", lambda request, backend: gpu.workspace)
    ways["without Triton"] = read("workspace")
    for name, got in ways.items():
        for field in ("entropy", "logp", "kl", "kl_from", "agrees", "top_ids", "top_probs"):
            if getattr(got, field) is not None:
                torch.testing.assert_close(
                    getattr(got, field), getattr(base, field), atol=2e-5, rtol=0, msg=lambda text, at=(name, field): f"{at}: {text}"
                )


def test_what_the_fused_kernel_can_not_do_is_refused() -> None:
    h, w = draw(1, 2, 16), draw(2, 50, 16)
    with pytest.raises(SelectionError, match="choose 'workspace'"):
        readout(h, w, want=("kl",), final=h, backend="triton")
