"""What is said of memory and time before the first batch."""

from __future__ import annotations

from typing import Any

import pytest

import layerlens as ll
from layerlens.analysis import forecast
from layerlens.analysis.forecast import Forecast, measuring_forecast, sampling_forecast
from layerlens.models.memory import SequenceCost


def test_a_line_says_memory_and_time_and_what_to_change_if_it_does_not_fit() -> None:
    fits = Forecast("sampling from m, 100 responses", int(31e9), int(70e9), 720.0, True, "lower --max-new-tokens or the batch")
    assert fits.line() == "sampling from m, 100 responses: 31 GB of 70 GB free memory, at most 12 min"
    tight = Forecast("measuring m, 2 texts", int(3.14e9), int(2e9), 65.0, False, "lower --batch-tokens")
    assert tight.line() == (
        "measuring m, 2 texts: 3.1 GB of 2.0 GB free memory, about 1 min; this may not fit: lower --batch-tokens, or load the model with "
        "--dtype bfloat16, --quantize bnb-4bit or --device-map auto"
    )


@pytest.mark.parametrize(
    ("seconds", "memory", "progress", "said"),
    [(29, 1, None, False), (31, 1, None, True), (31, 1, False, False), (0, 9, None, True), (0, 9, False, False)],
)
def test_only_long_or_large_work_is_announced(
    seconds: float, memory: int, progress: bool | None, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Forecast("work", memory, 5, float(seconds), True, "wait").announce(progress)
    assert (capsys.readouterr().err != "") == said


def test_time_grows_with_the_work_and_memory_with_the_batch(qwen: ll.LensModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "WORTH_TIMING", 0)
    monkeypatch.setattr(forecast, "_timed", lambda run, device: (run(), 0.5)[1])
    few, many = (sampling_forecast(qwen, 10, 20, 8, batch) for batch in (2, 4))
    assert (few.seconds, many.seconds) == (4 * 20 * 0.5, 2 * 20 * 0.5), "a step for each token, in each group"
    assert many.memory == 2 * few.memory == 4 * SequenceCost.of(qwen.parts.config, qwen.parts.dtype.itemsize).bytes(10, 20)
    assert sampling_forecast(qwen, 10, 20, 8, 2, processes=2).seconds == few.seconds / 2
    assert few.what == "sampling from tiny-random, 8 responses of up to 20 tokens in 4 groups of up to 2"
    once, thrice = (measuring_forecast(qwen, 1, 64 * times, 64 * times, 28, 128) for times in (1, 3))
    assert thrice.seconds == pytest.approx(3 * once.seconds)
    assert measuring_forecast(qwen, 1, 64, 64, 28, 256).memory > once.memory
    assert (few.fits, once.fits) == (True, True)


def test_a_step_of_sampling_counts_the_cache_it_carries(qwen: ll.LensModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "WORTH_TIMING", 0)
    monkeypatch.setattr(forecast, "TRIAL_BYTES", 1 << 20)
    short, long = (sampling_forecast(qwen, 10, new, 32, 32).seconds / new for new in (20, 200_000))
    assert long > 5 * short


def test_small_work_is_not_timed(qwen: ll.LensModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "_timed", None)
    assert sampling_forecast(qwen, 10, 20, 8, 2).seconds == 0
    assert measuring_forecast(qwen, 1, 64, 64, 28, 128).seconds == 0
    assert "about" not in measuring_forecast(qwen, 1, 64, 64, 28, 128).line()


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 6 + 6 + 44),
        ({"rows": "response"}, 3 + 5 + 40),
        ({"rows": "response", "tokens_per_sample": 4}, 3 + 4 + 4),
        ({"tokens_per_sample": 4}, 6 + 6 + 8),
    ],
)
def test_a_forecast_counts_the_rows_that_are_decoded(
    qwen: ll.LensModel, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], rows: int
) -> None:
    """Three texts: a response of 3 tokens, a text without a prompt, and a response of up to 40 tokens that is still to be sampled."""
    counted: list[tuple[int, int]] = []

    def told(model: object, texts: int, tokens: int, rows: int, *rest: Any) -> Forecast:
        counted.append((tokens, rows))
        return measuring_forecast(qwen, texts, tokens, rows, *rest)

    monkeypatch.setattr("layerlens.analysis.batches.measuring_forecast", told)
    texts = [ll.Sample([3, 4, 5, 6, 7, 8], 3), ll.Sample([3, 4, 5, 6, 7, 8]), ll.Sample([3, 4, 5, 6], 4)]
    ll.analyze(qwen, texts, generate=ll.Generation(40, seed=1), sites="resid_post", layers=1, **options)  # type: ignore[arg-type]
    assert counted[0] == (6 + 6 + 44, rows)


def test_an_analysis_says_what_sampling_and_measuring_take(
    qwen: ll.LensModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forecast, "WORTH_TIMING", 0)
    monkeypatch.setattr(forecast, "_timed", lambda run, device: 1e4)
    monkeypatch.setenv("WORLD_SIZE", "8")  # which share what is in a folder, and not what each of them keeps in memory
    prompts = [ll.Sample([3, 4, 5], 3), ll.Sample([3, 4], 2)]
    ll.analyze(qwen, prompts, generate=ll.Generation(40, seed=1), metrics="entropy", sites="resid_post", layers=1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["measuring tiny-random", "sampling from tiny-random", "measuring tiny-random"]
    assert "2 texts of 85 tokens" in lines[0]
    assert "at most" in lines[0]
    assert "2 responses of up to 40 tokens in 1 group of up to 2" in lines[1]
    assert "at most" not in lines[2], "the texts are there"
