"""Which backend computes a readout: names, refusals, the timing that "auto" stands for, and the backend that a run stores."""

from __future__ import annotations

import json
import platform
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerlens.decode import choose, interface, readout, timing
from layerlens.decode.choose import processor_name, resolve_backend
from layerlens.decode.cpu import native, native_library, products
from layerlens.decode.gpu import launch
from layerlens.decode.unembedding import Unembedding
from layerlens.errors import SelectionError
from tests.support.float64_policies import FAMILIES

CPU = torch.device("cpu")
POSSIBLE = [name for name in choose.CPU_BACKENDS if not name.startswith("native") or "native" in FAMILIES]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A fresh cache folder; requests of any size are large enough to be timed."""
    monkeypatch.setenv("LAYERLENS_CACHE", str(tmp_path))
    monkeypatch.setattr(choose, "WORTH_TIMING", 1)
    monkeypatch.setattr(timing, "_fastest", {})
    return tmp_path


def forbid_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_fastest", {})  # as a new process starts
    monkeypatch.setattr(timing, "_time", lambda *_: pytest.fail("backends were timed again"))


def record(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The concrete backends that compute requests from now on, in order."""
    ran: list[str] = []
    for name, compute in choose.CPU_BACKENDS.items():
        monkeypatch.setitem(choose.CPU_BACKENDS, name, lambda request, name=name, compute=compute: ran.append(name) or compute(request))
    return ran


def test_readout_finds_the_fastest_backend_once_and_stores_it(timed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h, w = torch.randn(20, 16), torch.randn(600, 16)
    want = readout(h, w, backend="torch-mm").entropy
    torch.testing.assert_close(readout(h, w).entropy, want, atol=1e-5, rtol=0)
    (stored,) = timed.glob("fastest-*.json")
    forbid_timing(monkeypatch)
    readout(h, w)
    assert json.loads(stored.read_text())["backend"] in choose.CPU_BACKENDS


def test_a_damaged_file_in_the_cache_is_written_anew(timed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h, w = torch.randn(20, 16), torch.randn(600, 16)
    readout(h, w)
    (stored,) = timed.glob("fastest-*.json")
    stored.write_text("")  # as a full disk leaves it
    monkeypatch.setattr(timing, "_fastest", {})
    monkeypatch.setattr(timing, "_time", lambda *_: "torch-mm")
    readout(h, w)
    assert json.loads(stored.read_text())["backend"] == "torch-mm"


def test_without_a_compiler_readout_runs_in_torch(timed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(timed))
    library = cache(native_library.library.__wrapped__)
    monkeypatch.setattr(native, "library", library)
    monkeypatch.setattr(native_library, "library", library)
    ran = record(monkeypatch)
    readout(torch.randn(2, 4), torch.randn(9, 4))
    assert all(name.startswith("torch") for name in ran)
    with pytest.raises(SelectionError, match=r"'native' cannot be used .* C\+\+ compiler"):
        readout(torch.randn(2, 4), torch.randn(9, 4), backend="native")
    with pytest.raises(SelectionError, match=r"'native-float32' cannot be used .* C\+\+ compiler"):
        resolve_backend(Unembedding(torch.randn(9, 4)), torch.float32, backend="native-float32")


def test_the_environment_variable_stands_in_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    unembedding = Unembedding(torch.randn(9, 4))
    monkeypatch.setenv("LAYERLENS_READOUT", "cuda")
    for ask in (lambda: readout(torch.randn(2, 4), unembedding), lambda: resolve_backend(unembedding, torch.float32)):
        with pytest.raises(SelectionError, match="unknown readout backend 'cuda': choose from auto, torch"):
            ask()
    monkeypatch.setenv("LAYERLENS_READOUT", "torch-onednn")
    assert resolve_backend(unembedding, torch.float32) == "torch-onednn"
    assert resolve_backend(unembedding, torch.float32, backend="torch-mm") == "torch-mm"


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", [name for name in POSSIBLE if not name.startswith("compile")])
def test_a_concrete_backend_computes_every_request(name: str, large: bool, timed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "WORTH_TIMING", 1 if large else 1 << 62)
    forbid_timing(monkeypatch)
    h, w, f = (torch.randn(n, 16).to(torch.bfloat16) for n in (20, 600, 20))
    if name == "native-dot" and not choose._possible(name, choose.ReadoutRequest(Unembedding(w), h)):
        pytest.skip("this processor does not multiply bfloat16 pairs")
    ran = record(monkeypatch)
    readout(h, w, want=("entropy", "kl", "agrees"), final=f, top_k=3, backend=name)
    assert ran == [name]


NUMBERS = st.fixed_dictionaries({"want": st.sets(st.sampled_from(interface.WANTS)), "top_k": st.integers(0, 20)})


@given(
    backend=st.sampled_from(["auto", *FAMILIES]), numbers=NUMBERS, rows=st.integers(1, 5000), vocabulary=st.integers(1, 300),
    d_model=st.integers(1, 24), dtype=st.sampled_from([torch.float32, torch.bfloat16]), worth=st.sampled_from([1, 10**5, 10**8]),
)  # fmt: skip
def test_resolve_backend_names_one_concrete_backend_and_stays_with_it(
    backend: str, numbers: dict[str, Any], rows: int, vocabulary: int, d_model: int, dtype: torch.dtype, worth: int
) -> None:
    unembedding = Unembedding(torch.randn(vocabulary, d_model).to(dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "WORTH_TIMING", worth)
        name = resolve_backend(unembedding, dtype, backend=backend, rows=rows, **numbers)
        large, _, small = name.partition("+")
        assert large in choose.CPU_BACKENDS
        assert small == ("torch-mm" if backend == "auto" and large != "torch-mm" else "")
        assert name.split("-")[0] == backend or (backend == "auto" and not name.startswith("compile"))
        forbid_timing(patch)
        assert resolve_backend(unembedding, dtype, backend=name, rows=rows, **numbers) == name
        if worth > rows * d_model * vocabulary:
            assert name == {"auto": "torch-mm", "torch": "torch-mm", "native": "native-float32"}[backend]


@pytest.mark.usefixtures("timed")
def test_resolve_backend_shares_the_stored_answer_with_readout(monkeypatch: pytest.MonkeyPatch) -> None:
    h, w, f = torch.randn(8, 40, 16), torch.randn(600, 16), torch.randn(40, 16)
    asked: dict[str, Any] = {"want": ("entropy", "kl"), "final": f, "top_k": 3}
    name = resolve_backend(Unembedding(w), torch.float32, want=("entropy", "kl"), top_k=3, rows=320)
    forbid_timing(monkeypatch)
    ran = record(monkeypatch)
    auto, named = readout(h, w, **asked), readout(h, w, **asked, backend=name)
    assert ran == [name.partition("+")[0]] * 2
    assert torch.equal(auto.kl, named.kl)


def test_resolve_backend_leaves_the_random_numbers_of_the_program_alone() -> None:
    before = torch.random.get_rng_state()
    resolve_backend(Unembedding(torch.ones(9, 4)), torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cuda", "unknown readout backend 'cuda': choose from auto, torch"),
        ("native", r"'native' cannot be used .* no soft-cap; choose 'torch'"),
        ("native-dot", "'native-dot' cannot be used .* choose 'native-float32' or 'torch'"),
        ("torch-onednn", "'torch-onednn' cannot be used .* choose 'torch-mm'"),
        ("compile-onednn", "'compile-onednn' cannot be used .* choose 'compile-mm'"),
        ("workspace", "'workspace' cannot be used .* on cpu: it needs a GPU; choose 'auto'"),
        ("triton", "'triton' cannot be used .* on cpu: it needs a GPU; choose 'auto'"),
    ],
)
def test_an_unknown_or_impossible_backend_is_refused_with_the_next_step(name: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_onednn", lambda: False)
    monkeypatch.setattr(launch, "kernels_run", lambda device: False)
    unembedding = Unembedding(torch.randn(9, 4), softcap=30.0)
    with pytest.raises(SelectionError, match=told):
        resolve_backend(unembedding, torch.float32, backend=name)
    with pytest.raises(SelectionError, match=told):
        readout(torch.randn(2, 4), unembedding, backend=name)


def test_processor_name_is_the_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    processor_name.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda _: "processor\t: 0\nmodel name\t: Maker's Processor 9\nflags\t: avx\nmodel name\t: x\n")
    assert processor_name(CPU) == "Maker's Processor 9"
    for text in ("", "model name\t:\n"):  # ARM has no such line
        processor_name.cache_clear()
        monkeypatch.setattr(Path, "read_text", lambda _, text=text: text)
        monkeypatch.setattr(platform, "processor", lambda: "")
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
        assert processor_name(CPU) == "aarch64"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    assert processor_name(torch.device("cuda", 1)) == "Card 1"
    processor_name.cache_clear()


@pytest.mark.skipif("native" not in FAMILIES, reason="needs a C++ compiler")
def test_pair_of_backends_computes_large_and_small_requests_as_auto_does(timed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h, w = torch.randn(64, 32), torch.randn(600, 32)
    monkeypatch.setattr(choose, "WORTH_TIMING", 64 * 32 * 600)
    monkeypatch.setattr(choose, "fastest_backend", lambda *_: "native-float32")
    resolved = resolve_backend(Unembedding(w), torch.float32, rows=64)
    assert resolved == "native-float32+torch-mm"
    assert resolve_backend(Unembedding(w), torch.float32, backend=resolved, rows=64) == resolved
    ran = record(monkeypatch)
    for rows in (64, 63):
        readout(h[:rows], w, backend=resolved)
        readout(h[:rows], w)
    assert ran == ["native-float32", "native-float32", "torch-mm", "torch-mm"]


@pytest.mark.parametrize("name", ["native-float32+", "+torch-mm", "torch-mm+workspace", "torch+torch-mm", "torch-mm+torch-mm+torch-mm"])
def test_pair_of_anything_but_two_concrete_cpu_backends_is_refused(name: str) -> None:
    with pytest.raises(SelectionError, match="unknown readout backend"):
        readout(torch.randn(2, 4), torch.randn(9, 4), backend=name)
