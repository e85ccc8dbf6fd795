"""Which rows are measured, and over which rows layers are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.analysis.row_positions import NOWHERE, measured_rows, reference_start, similarity_rows
from layerlens.errors import PromptError, SelectionError
from tests.support.float64_reference import plain_metrics
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer

SYSTEM, USER, TASK, HEADER, END = 11, 12, 13, 14, 15
"""Tokens of a chat that are neither the word "assistant" nor a line break."""
BREAK, COLON = 16, 17


class Words:
    """The tiny tokenizer, but for how it cuts the word "assistant"."""

    def __init__(self, **pieces: list[int]):
        self.pieces, self.tokenizer = pieces, tiny_tokenizer()

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.pieces.get(text, [9, 9, 9])}

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


CHATS = {
    "chatml": (Words(assistant=[7]), [SYSTEM, TASK, END, BREAK, HEADER, 7, BREAK], 1),
    "chatml, word in pieces": (Words(assistant=[8, 7]), [SYSTEM, 7, END, BREAK, HEADER, 8, 7, BREAK], 1),
    "llama-3": (Words(assistant=[7]), [SYSTEM, TASK, END, HEADER, 7, END, BREAK], 0),
    "octothinker": (Words(assistant=[9, 9], Assistant=[6]), [USER, TASK, BREAK, 6, COLON], 1),
}
"""A tokenizer, a prompt, and how many of our response rows the paper's code leaves out."""


@pytest.fixture(params=CHATS)
def chat(request: pytest.FixtureRequest) -> tuple[ll.LensModel, ll.Sample, int]:
    tokenizer, prompt, dropped = CHATS[request.param]
    lens = ll.LensModel.wrap(tiny_model("qwen3"), tokenizer)
    return lens, ll.Sample([*prompt, *random_ids(6, 5)], len(prompt)), dropped


def test_reference_begins_as_papers_code_does(chat: tuple[ll.LensModel, ll.Sample, int]) -> None:
    lens, sample, dropped = chat
    start = reference_start(sample, lens)
    assert start == sample.response_start - 1 + dropped
    rows = measured_rows(sample, "reference", start)
    assert rows.tolist() == list(range(start, len(sample.token_ids))), "the last position predicts nothing and counts all the same"


def test_mean_over_reference_rows_is_papers(chat: tuple[ll.LensModel, ll.Sample, int]) -> None:
    """Σ over tokens of all samples, from the position after the role on, of S(out) - S(in), in float64."""
    lens, sample, dropped = chat
    other = ll.Sample([*sample.token_ids[: sample.response_start], *random_ids(9, 8)], sample.response_start)
    samples = [sample, other]
    changes = [
        plain_metrics(lens.parts.model, list(each.token_ids), "none", 1)["entropy_change"][each.response_start - 1 + dropped :]
        for each in samples
    ]
    expected = torch.cat(changes).mean(0).numpy()
    whole, alone = (ll.analyze(lens, samples, rows=rows, metrics="entropy") for rows in ("all", "reference"))
    for run in (whole, alone):
        mean = run.mean("entropy_change", over="token", rows="reference")
        np.testing.assert_allclose(mean["mean"].transpose("layer", "module"), expected, atol=1e-5)
        assert mean.attrs["rows"] == "reference"
    other_rows = whole.mean("entropy_change", over="token", drop_first=dropped)["mean"]
    assert np.abs(other_rows.values - expected).max() > 1e-3, "no drop_first gives them: the last position is missing"


def test_reference_rows_that_are_not_there_are_refused(chat: tuple[ll.LensModel, ll.Sample, int]) -> None:
    lens, sample, _ = chat
    response = ll.analyze(lens, [sample], rows="response", metrics="entropy")
    with pytest.raises(SelectionError, match="which was not decoded: analyse with rows='reference'"):
        response.mean("entropy", rows="reference")
    drawn = ll.analyze(lens, [sample], tokens_per_sample=2, metrics="entropy")
    with pytest.raises(SelectionError, match="which was not decoded"):
        drawn.mean("entropy", rows="reference")
    alone = ll.analyze(lens, [sample], rows="reference", metrics="entropy")
    with pytest.raises(SelectionError, match="ask for rows='reference'"):
        alone.mean("entropy")
    with pytest.raises(SelectionError, match="drop_first counts response rows"):
        alone.mean("entropy", rows="reference", drop_first=1)


def test_prompts_that_name_no_assistant_have_no_reference_rows(qwen: ll.LensModel) -> None:
    sample = ll.Sample(random_ids(8), 4)
    assert reference_start(sample, qwen) == NOWHERE, "no tokenizer"
    lens = ll.LensModel.wrap(tiny_model("qwen3"), Words())
    with pytest.raises(PromptError, match="prompt 0 holds no 'assistant'"):
        ll.analyze(lens, [sample], rows="reference")
    with pytest.raises(SelectionError, match="does not know of every sample"):
        ll.analyze(lens, [sample], metrics="entropy").mean("entropy", rows="reference")


def test_layers_are_compared_over_response_rows_without_the_first_position() -> None:
    assert similarity_rows(ll.Sample(range(9), 4), "response").tolist() == [3, 4, 5, 6, 7]
    assert similarity_rows(ll.Sample(range(5), 1), "response").tolist() == [1, 2, 3]
    assert similarity_rows(ll.Sample(range(5)), "response").tolist() == [1, 2, 3]
    assert similarity_rows(ll.Sample(range(5), 5), "response").tolist() == [1, 2, 3, 4], "a prompt alone: all but the first"
    assert similarity_rows(ll.Sample(range(5), 3), "all").tolist() == [0, 1, 2, 3, 4]
    assert similarity_rows(ll.Sample([3]), "response").tolist() == []


@pytest.mark.parametrize("start", [0, 5, 12])
def test_one_state_a_hundred_times_as_long_does_not_decide_cka(start: int) -> None:
    """Without attention rows do not see each other, so a longer first embedding moves the states of position 0 alone."""
    ids = [3, *(token if token != 3 else 4 for token in random_ids(11, 1))]
    runs: dict[str, list[ll.Run]] = {"response": [], "all": []}
    for factor in (1, 100):
        model: Any = tiny_model("qwen3", tied=False)
        with torch.no_grad():
            for block in model.model.layers:
                block.self_attn.o_proj.weight.zero_()
            model.model.embed_tokens.weight[3] *= factor
        for rows, found in runs.items():
            lens = ll.LensModel.wrap(model)
            found.append(ll.analyze(lens, [ll.Sample(ids, start)], metrics="similarity", similarity_rows=rows))
    for name in ("cka", "similarity"):
        plain, long = (run.data[name].values for run in runs["response"])
        np.testing.assert_allclose(long, plain, atol=1e-5)
    plain, long = (run.data["cka"].values for run in runs["all"])
    assert np.abs(long - plain).max() > 0.1, "over all rows that one row decides it"
    for rows, position_0 in (("response", 0), ("all", 1)):
        attrs = runs[rows][0].mean("cka", rows="all").attrs
        assert (attrs["rows"], attrs["position_0"]) == (rows, position_0)


def test_text_of_one_token_has_no_similarity(qwen: ll.LensModel) -> None:
    run = ll.analyze(qwen, [ll.Sample([3]), ll.Sample(random_ids(9), 2)])
    assert np.isnan(run.data["similarity"].values[0]).all()
    alone = ll.analyze(qwen, [ll.Sample(random_ids(9), 2)])
    np.testing.assert_allclose(run.data["similarity"].values[1], alone.data["similarity"].values[0], atol=1e-6)


def test_state_norm_alone_is_measured_without_a_readout(qwen: ll.LensModel) -> None:
    samples = [ll.Sample(random_ids(n, n), 2) for n in (7, 4)]
    run, whole = ll.analyze(qwen, samples, metrics="state_norm"), ll.analyze(qwen, samples, norm="final")
    assert set(run.data.data_vars) == {"state_norm"}
    np.testing.assert_allclose(run.data["state_norm"], whole.data["state_norm"], rtol=1e-5)
    pre, post = (run.data["state_norm"].sel(site=site) for site in ("resid_pre", "resid_post"))
    np.testing.assert_array_equal(pre.sel(layer=[2, 3, 4]), post.sel(layer=[1, 2, 3]))
