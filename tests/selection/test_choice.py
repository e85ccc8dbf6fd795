"""A choice as plain values: written, read again, and refused if it is damaged."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import layerlens as ll
from layerlens.errors import SelectionError
from layerlens.storage.manifest import AnalysisConfig
from layerlens.types import RULES
from tests.support.choices import FEW, QWEN, plain
from tests.support.synthetic_runs import make_run
from tests.support.tiny_models import random_ids


@pytest.mark.parametrize("rule", RULES)
def test_answers_are_plain_values(rule: str) -> None:
    for run in (make_run(QWEN, samples=5), make_run(QWEN, samples=1), make_run([-1.0, -1.0]), make_run([1.0])):
        data = run.data.assign(js_to_final=run.data["kl_to_final"] / 8)
        run = replace(run, data=data, manifest=replace(run.manifest, config=AnalysisConfig("final")))
        answer = plain(ll.select_layer(run, rule, **FEW))
        assert set(answer) == {
            "model", "n_layers", "run", "fingerprint", "norm", "lens", "samples", "layer", "rule", "outcome", "reason", "frequency",
            "against", "usable", "skill", "final_skill", "diagnosis", "phases", "candidates", "settings",
        }  # fmt: skip
        assert answer["layer"] is None or isinstance(answer["layer"], int)
        assert all(isinstance(row["chosen"], bool) for row in answer["candidates"])
        assert plain(ll.LayerChoice.from_dict(answer)) == answer


def test_a_choice_of_an_earlier_version_is_read() -> None:
    """What layerlens 0.1 wrote, before choices had an outcome: the file in tests/formats was written by that version."""
    old = json.loads((Path(__file__).parents[1] / "formats" / "choice-1.json").read_text())
    choice = ll.LayerChoice.from_dict(old)
    assert (choice.layer, choice.rule, choice.outcome, choice.frequency) == (11, "boundary", "layer", 1.0)
    assert (choice.against, choice.usable, choice.is_usable, choice.diagnosis) == ((), None, None, None)
    assert choice.settings["z"] == 1.96
    none = ll.LayerChoice.from_dict(old | {"layer": None})
    assert (none.layer, none.outcome) == (None, "none")


def test_a_saved_choice_says_on_which_run_and_weights(qwen: ll.LensModel, tmp_path: Path) -> None:
    ll.analyze(qwen, [ll.Sample(random_ids(8, i), 3) for i in range(3)], out=tmp_path / "run")
    choice = ll.select_layer(ll.open_run(tmp_path / "run"), "entropy_drop", **FEW)
    assert (choice.run, choice.fingerprint, choice.n_layers) == (str(tmp_path / "run"), qwen.fingerprint, 4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rule": None}, "needs the key 'rule'"),
        ({"candidates": 3}, "holds a value of another kind"),
        ({"phases": {"exploration": 3}}, "holds a value of another kind"),
        ({"layer": 37}, "a layer in 1..n_layers or null, got rule 'boundary', norm 'none', layer 37 and n_layers 36"),
        ({"layer": "6"}, "layer '6'"),
        ({"rule": "best"}, "rule 'best'"),
        ({"outcome": "none"}, "a choice of layer 6 cannot have the outcome 'none'"),
        ({"usable": "all"}, "holds a value of another kind"),
    ],
)
def test_a_damaged_choice_is_refused(change: dict[str, Any], told: str) -> None:
    answer = plain(ll.select_layer(make_run(QWEN), **FEW)) | change
    with pytest.raises(SelectionError, match=re.escape(told)):
        ll.LayerChoice.from_dict({name: value for name, value in answer.items() if name != "rule" or value is not None})
