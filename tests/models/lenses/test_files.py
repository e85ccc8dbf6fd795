"""Lens files: the published formats are read as they are, ours are of the same formats, and anything else is refused in a line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.models import FittedLens, save_lens
from tests.models.lenses.conftest import random_lens


def published(layers: int = 3, d: int = 32, **metadata: Any) -> dict[str, Any]:
    """A file as the reference implementation writes it: float16, blocks from 0, none for the last."""
    payload = {
        "J": {i: torch.randn(d, d).half() for i in range(layers)},
        "source_layers": list(range(layers)),
        "d_model": d,
        "n_prompts": 7,
    }
    return payload | ({"metadata": metadata} if metadata else {})


def same(a: FittedLens, b: FittedLens) -> bool:
    return all(
        x.keys() == y.keys() and all(torch.allclose(x[place], y[place], atol=1e-6) for place in x)
        for x, y in ((a.matrices, b.matrices), (a.biases, b.biases))
    )


def test_a_saved_lens_is_read_as_it_was(fitted: FittedLens, tmp_path: Path) -> None:
    save_lens(fitted, tmp_path / "lens")
    read = ll.read_lens(f"{fitted.name}:{tmp_path / 'lens'}")
    assert same(read, fitted)
    assert (read.n_layers, read.model, read.weights, read.file) == (4, "tiny-random", fitted.weights, str(tmp_path / "lens"))


def test_a_published_jacobian_file_is_read_with_layers_from_one(qwen: ll.LensModel, tmp_path: Path) -> None:
    payload = published()
    torch.save(payload, tmp_path / "lens.pt")
    lens = ll.read_lens(f"jacobian:{tmp_path / 'lens.pt'}")
    assert sorted(lens.matrices) == [(1, "resid_post"), (2, "resid_post"), (3, "resid_post")]
    assert torch.equal(lens.matrices[2, "resid_post"], payload["J"][1])
    assert (lens.n_prompts, lens.model, lens.n_layers) == (7, None, None)
    run = ll.analyze(qwen, [ll.Sample([5, 6, 7])], norm="final", lens=f"jacobian:{tmp_path / 'lens.pt'}", metrics="entropy")
    assert run.sites == ["ffn_out", "resid_post"]
    assert run.manifest.lens_file == str(tmp_path / "lens.pt")


def test_a_tuned_folder_is_read_with_the_map_of_the_embedding_first(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": "gpt2", "d_model": 6, "num_hidden_layers": 2, "bias": True, "lens_type": "linear_tuned_lens"}
    state = {f"{i}.{kind}": torch.randn(*((6, 6) if kind == "weight" else (6,))) for i in range(2) for kind in ("weight", "bias")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(state, tmp_path / "params.pt")
    lens, h = ll.read_lens(f"tuned:{tmp_path}"), torch.randn(3, 6)
    assert (lens.model, lens.n_layers) == ("gpt2", 2)
    for layer, site, number in ((1, "resid_pre", 0), (1, "resid_post", 1), (2, "resid_pre", 1)):
        theirs = h + torch.nn.functional.linear(h, state[f"{number}.weight"], state[f"{number}.bias"])
        torch.testing.assert_close(lens.carry(h, layer, site, 2), theirs)
    torch.testing.assert_close(lens.carry(h, 1, "ffn_out", 2), h + h @ state["1.weight"].T)
    assert torch.equal(lens.carry(h, 2, "resid_post", 2), h)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"d_model": 4}, "holds no Jacobian lens: expected a dictionary with J"),
        ([1, 2], "holds no Jacobian lens"),
        (published(estimator="regression"), "fitted by the estimator 'regression', whose matrices are no Jacobian lens"),
        (published(target_layer=1), r"carries states to block 1 \(from 0\), not to the last block"),
        (published() | {"d_model": 16}, "says d_model is 16, and its matrix of layer 1 is"),
        ({"J": {0: torch.eye(2)}}, "is no jacobian lens that can be read .KeyError: 'd_model'"),
    ],
)
def test_another_file_is_refused_in_a_line(payload: Any, message: str, tmp_path: Path) -> None:
    torch.save(payload, tmp_path / "lens.pt")
    with pytest.raises(SelectionError, match=message) as told:
        ll.read_lens(f"jacobian:{tmp_path / 'lens.pt'}")
    assert "\n" not in str(told.value)


class _Code:
    def __reduce__(self) -> Any:
        return print, ("this must not run",)


def test_a_file_with_code_is_refused_and_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lens.pt").write_bytes(pickle.dumps({"J": _Code()}))
    torch.save({"J": _Code()}, tmp_path / "zip.pt")
    for name in ("lens.pt", "zip.pt"):
        with pytest.raises(SelectionError, match="is no jacobian lens that can be read"):
            ll.read_lens(f"jacobian:{tmp_path / name}")
    assert "must not run" not in capsys.readouterr().out


def test_a_damaged_tuned_folder_is_refused(tmp_path: Path, qwen: ll.LensModel) -> None:
    with pytest.raises(SelectionError, match=r"is no tuned lens that can be read .FileNotFoundError"):
        ll.read_lens(f"tuned:{tmp_path / 'nowhere'}")
    save_lens(random_lens(qwen, "tuned"), tmp_path / "lens")
    state = torch.load(tmp_path / "lens" / "params.pt", weights_only=True)
    del state["2.weight"]
    torch.save(state, tmp_path / "lens" / "params.pt")
    with pytest.raises(SelectionError, match=r"holds no linear tuned lens of 4 layers: params.pt lacks 2\.weight"):
        ll.read_lens(f"tuned:{tmp_path / 'lens'}")


@pytest.mark.parametrize("text", ["jacobi:x", "tuned", "tuned:", "jacobian", "", "logits"])
def test_what_names_no_lens_is_refused(qwen: ll.LensModel, text: str) -> None:
    with pytest.raises(SelectionError, match="lens must be 'logit', 'jacobian:FILE' or 'tuned:FOLDER', got"):
        qwen.policy(2, norm="final", lens=text)


def test_a_lens_of_other_weights_is_refused_by_file_and_taken_as_an_object(qwen: ll.LensModel, lens: ll.LensModel, tmp_path: Path) -> None:
    if lens.fingerprint == qwen.fingerprint:
        pytest.skip("the same weights")
    save_lens(random_lens(lens), tmp_path / "lens.pt")
    which = f"jacobian:{tmp_path / 'lens.pt'}"
    with pytest.raises(SelectionError, match="and tiny-random has other weights"):
        qwen.policy(2, norm="final", lens=which)
    assert qwen.policy(2, norm="final", lens=ll.read_lens(which)).lens == "jacobian"
