"""The laws that both GPU backends obey: in Triton's interpreter on a CPU, and on a card if there is one (see tests/conftest.py)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from layerlens.decode import Readout, interface, readout
from layerlens.decode.choose import choose_backend
from layerlens.decode.gpu import fused, launch, workspace
from layerlens.decode.gpu import product as gpu_product
from layerlens.decode.request import ReadoutRequest
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import ReadoutError, SelectionError
from tests.support.float64_policies import collision_entropy, entropy, js, kl, log_policy, rank, unembedded_log_policy

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = ("workspace", "triton")
FUSED_WANTS = ("entropy", "logp", "agrees")
"""All that the backend "triton" computes."""

FIELDS = (*interface.WANTS, "top_ids", "top_probs")

pytestmark = pytest.mark.skipif(not launch.kernels_run(DEVICE), reason="needs Triton (pip install triton), and a GPU or TRITON_INTERPRET=1")


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def asked(got: Readout) -> set[str]:
    """The fields of a readout that are not None."""
    return {name for name in FIELDS if getattr(got, name) is not None}


def check(
    got: Readout,
    want: tuple[str, ...],
    logp: Tensor,
    targets: Tensor | None = None,
    final: Tensor | None = None,
    reference: Tensor | None = None,
) -> None:
    """Each number that was asked for, and no other, against the float64 log-probabilities of rows and anchors.

    Equal to the rounding of logits to float32.
    """
    assert asked(got) - {"top_ids", "top_probs"} == set(want)
    size = 1e-5 * max(1.0, *(float(x.abs().max()) for x in (logp, final, reference) if x is not None))
    for name in want:
        if name == "agrees":
            assert torch.equal(got.agrees, logp.argmax(-1) == final.argmax(-1))
            continue
        exact = {
            "entropy": lambda: entropy(logp),
            "logp": lambda: logp.gather(-1, targets.expand(logp.shape[:-1])[..., None])[..., 0],
            "kl": lambda: kl(logp, final),
            "kl_from": lambda: kl(reference, logp),
            "js": lambda: js(logp, final),
            "kl_from_final": lambda: kl(final, logp),
            "rank": lambda: rank(logp, targets).double(),
            "renyi": lambda: collision_entropy(logp),
        }[name]()
        torch.testing.assert_close(getattr(got, name).double(), exact, atol=size, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, tiles and parts of the vocabulary, the last of each incomplete."""
    monkeypatch.setattr(gpu_product, "WORKSPACE_ELEMENTS", 28 * 512)
    monkeypatch.setattr(gpu_product, "TILE", 256)
    monkeypatch.setattr(workspace, "TILE", 256)
    monkeypatch.setattr(fused, "PART", 512)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("hidden", "weight"), [
    (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.float32), (torch.float64, torch.float64),
])  # fmt: skip
@pytest.mark.parametrize(("rows", "d_model", "vocabulary", "scale"), [(13, 72, 603, 0.3), (5, 128, 512, 1e3)])
def test_readout_of_all_dtypes_matches_whole_logits_in_float64(
    backend: str, hidden: torch.dtype, weight: torch.dtype, rows: int, d_model: int, vocabulary: int, scale: float
) -> None:
    """From flat rows to rows in which one token has all the probability; logits up to 1e4."""
    h = draw(1, rows, d_model) * torch.logspace(-3, 0, rows, device=DEVICE)[:, None]
    h, w = (h * scale).to(hidden), draw(2, vocabulary, d_model, dtype=weight)
    targets, want = torch.arange(rows, device=DEVICE) * 7 % vocabulary, ("entropy", "logp")
    check(readout(h, w, want=want, targets=targets, backend=backend), want, unembedded_log_policy(h, w), targets)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_readout_of_a_stack_and_its_anchors_matches_whole_logits_in_float64(dtype: torch.dtype) -> None:
    h, w = draw(1, 3, 7, 40, dtype=dtype), draw(2, 603, 40, dtype=dtype)
    final, reference = draw(3, 7, 40, dtype=dtype), draw(4, 7, 40, dtype=dtype)
    h[1] = final
    targets = torch.tensor([5, 0, 602, 255, 256, 511, 512], device=DEVICE)
    got = readout(h, w, want=interface.WANTS, targets=targets, final=final, reference=reference, top_k=6, backend="workspace")
    logp, final_logp = unembedded_log_policy(h, w), unembedded_log_policy(final, w)
    check(got, interface.WANTS, logp, targets, final_logp, unembedded_log_policy(reference, w))
    assert got.agrees[1].all()
    assert got.kl[1].abs().max() < 1e-5
    torch.testing.assert_close(got.top_probs.double(), logp.exp().topk(6).values, atol=1e-5, rtol=0)
    torch.testing.assert_close(logp.exp().gather(-1, got.top_ids), got.top_probs.double(), atol=1e-5, rtol=0)
    in_registers = readout(h, w, want=FUSED_WANTS, targets=targets, final=final, backend="triton")
    check(in_registers, FUSED_WANTS, logp, targets, final_logp)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("backend", "top_k"), [("workspace", 0), ("workspace", 3), ("triton", 0)])
def test_readout_applies_bias_scale_softcap_and_temperature(backend: str, top_k: int) -> None:
    h, w, final, bias = draw(1, 2, 6, 24), draw(2, 777, 24), draw(3, 6, 24), draw(4, 777)
    unembedding = Unembedding(w, bias=bias, scale=0.1, softcap=1.0, temperature=0.5)
    want = ("entropy", "agrees") if backend == "triton" else ("entropy", "agrees", "kl")
    got = readout(h, unembedding, want=want, final=final, top_k=top_k, backend=backend)
    logp = unembedded_log_policy(h, unembedding)
    check(got, want, logp, final=unembedded_log_policy(final, unembedding))
    if top_k:
        assert torch.equal(got.top_ids, logp.topk(top_k).indices)
    else:
        assert got.top_ids is None


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [-200.0, 0.0, 200.0])
def test_entropy_of_extreme_rows_matches_float64(backend: str, offset: float) -> None:
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
    got = readout(torch.eye(5, device=DEVICE), weight, backend=backend)
    torch.testing.assert_close(got.entropy.double(), entropy(log_policy(rows + offset)), atol=1e-4, rtol=0)
    assert got.entropy[-1].item() == pytest.approx(math.log(777), abs=1e-5)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropy_of_a_zero_row_is_log_v_and_of_a_single_token_zero(backend: str, dtype: torch.dtype) -> None:
    zero = readout(torch.zeros(1, 20, device=DEVICE, dtype=dtype), draw(1, 1003, 20, dtype=dtype), backend=backend)
    assert zero.entropy.item() == pytest.approx(math.log(1003), abs=1e-6)
    one = readout(draw(1, 3, 20, dtype=dtype), draw(2, 1, 20, dtype=dtype), backend=backend)
    assert one.entropy.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["hidden", "bias"])
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")  # numpy's, in the interpreter
def test_readout_names_the_row_of_a_bad_number(backend: str, poison: float, where: str) -> None:
    hidden, bias = draw(1, 2, 5, 20), torch.zeros(700, device=DEVICE)
    (hidden[1, 3] if where == "hidden" else bias)[2] = poison
    row = "row 3 of state 1" if where == "hidden" else "row 0 of state 0"
    with pytest.raises(ReadoutError, match=row):
        readout(hidden, Unembedding(draw(2, 700, 20), bias=bias), backend=backend)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
def test_log_probability_is_nan_of_a_negative_target_and_else_at_most_zero(backend: str) -> None:
    h, w = draw(1, 6, 20) * 50, draw(2, 1003, 20)
    targets = (h @ w.T).argmax(-1)
    targets[2] = -1
    got = readout(h, w, want=("logp",), targets=targets, backend=backend).logp
    assert got.isnan().tolist() == [False, False, True, False, False, False]
    assert (got[~got.isnan()] <= 0).all()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_give_the_same_bits_twice_and_the_lowest_of_equal_tokens(backend: str) -> None:
    h, w = (draw(seed, n, 40).mul(3).round().to(torch.bfloat16) for seed, n in ((1, 9), (2, 1003)))  # logits are integers, exact in float32
    w[600:] = w[:403].clone()
    request = ReadoutRequest(Unembedding(w), h, {"final": h.flip(0)}, agrees=True, targets=torch.arange(9, device=DEVICE))
    one, two = (choose_backend(request, backend)(request) for _ in range(2))
    for field in ("m", "S", "A", "argmax"):
        assert torch.equal(getattr(one.own, field), getattr(two.own, field))
    assert torch.equal(one.target_logit, two.target_logit)
    assert torch.equal(one.own.argmax, (h.float() @ w.float().T).cpu().argmax(-1).to(DEVICE))
    assert torch.equal(one.own.argmax, one.anchors["final"].argmax.flip(0))


def test_fused_readout_of_a_row_does_not_depend_on_the_number_of_rows() -> None:
    h, w = draw(1, 40, 48, dtype=torch.bfloat16), draw(2, 2501, 48, dtype=torch.bfloat16)
    if DEVICE.type == "cpu":  # the interpreter multiplies by a CPU's BLAS, which may sum in any order: make all sums exact
        h, w = ((8 * x).round() / 8 for x in (h, w))
    together = readout(h, w, backend="triton").entropy
    assert torch.equal(readout(h[33:34], w, backend="triton").entropy, together[33:34])


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("backend", "triton"), [("workspace", True), ("workspace", False), ("triton", True)])
def test_gpu_backends_agree_with_the_torch_backend(backend: str, triton: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernels, and in torch if there is no Triton; all numbers but those that the fused kernel does not compute."""
    h, w, final, reference = draw(1, 2, 5, 32, dtype=dtype), draw(2, 603, 32, dtype=dtype), draw(3, 5, 32), draw(4, 5, 32)
    final, reference, targets = final.to(dtype), reference.to(dtype), torch.arange(5, device=DEVICE)
    want, top_k = (FUSED_WANTS, 0) if backend == "triton" else (interface.WANTS, 4)
    arguments = {"want": want, "targets": targets, "final": final, "reference": reference, "top_k": top_k}
    base = readout(h, w, **arguments, backend="torch")
    if not triton:
        monkeypatch.setattr(launch, "kernels_run", lambda device: False)
        monkeypatch.setattr(interface, "choose_backend", lambda request, backend: workspace.workspace_backend)
    got = readout(h, w, **arguments, backend=backend)
    assert asked(got) == asked(base) == {*want, *(("top_ids", "top_probs") if top_k else ())}
    for field in asked(got):
        torch.testing.assert_close(
            getattr(got, field), getattr(base, field), atol=2e-5, rtol=0, msg=lambda text, field=field: f"{field}: {text}"
        )


def test_fused_readout_refuses_divergence() -> None:
    h, w = draw(1, 2, 16), draw(2, 50, 16)
    with pytest.raises(SelectionError, match="choose 'workspace'"):
        readout(h, w, want=("kl",), final=h, backend="triton")
