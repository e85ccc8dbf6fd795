"""The texts of a run, read again by another norm, by another model, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerlens as ll
from layerlens.errors import PromptError, RunError
from layerlens.results import texts_of
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer

LONG = ll.Sample(random_ids(12, 5), 4, id="long", ground_truth="7", thinking=((5, 8), (9, 10)), correct=True)
OPTIONS: dict[str, Any] = {"metrics": "entropy", "sites": "resid_post"}
COORDS = ("sample", "sample_id", "sample_text", "response_text", "ground_truth", "response_start", "segment", "token_id", "text_token_id")


def samples() -> list[ll.Sample]:
    return [ll.Sample(random_ids(5, 1), 5, id="prompt", ground_truth="3"), LONG]


@pytest.fixture(scope="module")
def run(qwen: ll.LensModel, tmp_path_factory: pytest.TempPathFactory) -> ll.Run:
    out = tmp_path_factory.mktemp("texts") / "run"
    return ll.analyze(qwen, samples(), generate=ll.Generation(6, seed=2), out=out, **OPTIONS)


def test_another_norm_and_a_fine_tuned_model_read_the_same_texts(qwen: ll.LensModel, run: ll.Run, tmp_path: Path) -> None:
    assert run.path is not None
    tuned = ll.LensModel.wrap(tiny_model("qwen3", seed=11), tiny_tokenizer(), name="tuned")
    for model, given in ((qwen, run), (tuned, run.path), (tuned, str(run.path))):
        again = ll.analyze(model, given, norm="final", out=tmp_path / f"{model.name}-{type(given).__name__}", **OPTIONS)
        for coord in COORDS:
            np.testing.assert_array_equal(again.data[coord].values, run.data[coord].values, coord)
        assert not again.data["entropy"].equals(run.data["entropy"])
        source = again.manifest.texts
        assert source is not None
        assert (source.model, source.run, source.fingerprint) == (qwen.name, str(run.path.resolve()), qwen.fingerprint)
        assert source.generate == run.manifest.config.generate
        assert again.manifest.config.generate is None
    assert ll.open_run(tmp_path / "tuned-str").manifest.texts == source


def test_texts_are_those_that_were_given(qwen: ll.LensModel, run: ll.Run) -> None:
    texts = texts_of(run, qwen.tokenizer, qwen.name)
    assert texts.samples[1] == LONG
    assert texts.samples[0].token_ids[:5] == samples()[0].token_ids
    assert len(texts.first(1)) == 1
    assert texts_of(ll.analyze(qwen, [LONG], **OPTIONS), None, "m").source.run == "in memory"


@pytest.mark.parametrize("rows", ["all", "response"])
def test_thinking_given_by_hand_is_kept_unless_its_rows_were_drawn(qwen: ll.LensModel, rows: Any) -> None:
    assert texts_of(ll.analyze(qwen, [LONG], rows=rows, **OPTIONS), qwen.tokenizer, "m").samples == [LONG]
    drawn = ll.analyze(qwen, [LONG], rows=rows, tokens_per_sample=5, **OPTIONS)
    with pytest.raises(RunError, match="thinking was given by hand for sample long, and its rows were drawn"):
        texts_of(drawn, qwen.tokenizer, "m")
    plain = replace(LONG, thinking=())
    assert texts_of(ll.analyze(qwen, [plain], rows=rows, tokens_per_sample=5, **OPTIONS), qwen.tokenizer, "m").samples == [plain]


def test_texts_of_a_run_of_means_alone(qwen: ll.LensModel, run: ll.Run, tmp_path: Path) -> None:
    plain = [samples()[0], replace(LONG, thinking=())]
    out = tmp_path / "run"
    made = ll.analyze(qwen, plain, generate=ll.Generation(6, seed=2), out=out, keep="means", **OPTIONS)
    expected = texts_of(run, qwen.tokenizer, qwen.name).samples
    assert texts_of(made, qwen.tokenizer, qwen.name).samples == [expected[0], plain[1]]
    again = ll.analyze(qwen, out, norm="final", **OPTIONS)
    assert again.data["text_token_id"].values.tolist() == run.data["text_token_id"].values.tolist()
    by_hand = ll.analyze(qwen, [LONG], out=tmp_path / "hand", keep="means", **OPTIONS)
    with pytest.raises(RunError, match="thinking was given by hand for sample long, and its rows were not kept"):
        texts_of(by_hand, qwen.tokenizer, qwen.name)


def test_another_tokenizer_is_refused(qwen: ll.LensModel, run: ll.Run) -> None:
    class Shifted:
        """Reads every token as the next one."""

        def decode(self, ids: list[int]) -> str:
            return str(tiny_tokenizer().decode([token + 1 for token in ids]))

    with pytest.raises(PromptError, match=r"other has another tokenizer than .* reads the token ids of sample prompt as another text"):
        texts_of(run, Shifted(), "other")


def test_a_run_that_is_not_complete_or_samples_anew_is_refused(qwen: ll.LensModel, run: ll.Run, tmp_path: Path) -> None:
    ll.analyze(qwen, [LONG, replace(LONG, id="b")], out=tmp_path / "run", **OPTIONS)
    (tmp_path / "run" / "samples" / "000001.nc").unlink()
    with pytest.raises(RunError, match="has 1 of 2 samples: run the analysis that made it again"):
        ll.analyze(qwen, tmp_path / "run", **OPTIONS)
    with pytest.raises(PromptError, match="taken as they are"):
        ll.analyze(qwen, run, generate=ll.Generation(4), **OPTIONS)
    with pytest.raises(PromptError, match="no run folder: read_prompts makes Samples"):
        ll.analyze(qwen, tmp_path / "nothing", **OPTIONS)
