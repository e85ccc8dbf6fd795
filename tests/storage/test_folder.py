"""A folder that several processes fill: who may write into it, and what it says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from layerlens.errors import RunError
from layerlens.storage.folder import SharedFolder
from layerlens.storage.manifest import AnalysisConfig, ModelInfo, RunManifest, SampleSet

MANIFEST = RunManifest(model=ModelInfo("m", "f00d", "float32"), config=AnalysisConfig("none"), samples=SampleSet(1, "cafe"))


class Results(SharedFolder[RunManifest]):
    manifest_file = "results.json"
    manifest_type = RunManifest
    holds = "set of results"
    made_by = "layerlens make"
    entries = frozenset({"numbers"})


def test_a_folder_tells_the_manifest_it_was_made_with(tmp_path: Path) -> None:
    Results.create(tmp_path / "r", MANIFEST)
    assert Results(tmp_path / "r").manifest() == MANIFEST


def test_what_belongs_beside_the_manifest_is_made_before_it_and_again_if_it_is_lost(tmp_path: Path) -> None:
    def prepare(folder: Results) -> None:
        (folder.path / "numbers").mkdir(exist_ok=True)
        seen.append((folder.path / "results.json").exists())

    seen: list[bool] = []
    Results.create(tmp_path, MANIFEST, prepare)
    (tmp_path / "numbers").rmdir()
    Results.create(tmp_path, MANIFEST, prepare)
    assert seen == [False, True]
    assert (tmp_path / "numbers").is_dir()


def test_another_configuration_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    Results.create(tmp_path, MANIFEST)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(RunError, match="norm"):
        Results.create(tmp_path, replace(MANIFEST, config=AnalysisConfig("final")))
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_folder_with_something_else_in_it_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"holds no set of results \(thesis.tex\); choose another folder"):
        Results.create(tmp_path, MANIFEST)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_was_begun_and_killed_before_its_manifest_is_taken(tmp_path: Path) -> None:
    for name in ("numbers", ".locks"):
        (tmp_path / name).mkdir()
    (tmp_path / "results.json.1.tmp").touch()
    assert Results.create(tmp_path, MANIFEST).manifest() == MANIFEST


def test_a_folder_without_results_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"results.json is missing\); make one with `layerlens make`"):
        Results(tmp_path).manifest()


def test_a_claim_is_exclusive(tmp_path: Path) -> None:
    folder = Results.create(tmp_path, MANIFEST)
    with folder.claim("piece") as mine, Results(tmp_path).claim("piece") as theirs, folder.claim("other") as other:
        assert (mine, theirs, other) == (True, False, True)
    with folder.claim("piece") as again:
        assert again
