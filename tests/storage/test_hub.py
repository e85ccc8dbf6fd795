"""Runs on the hub: what is sent, what comes back, and what the card says. The hub is a folder here; nothing is sent."""

from __future__ import annotations

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import layerlens as ll
from layerlens.errors import RunError
from tests.support.tiny_models import random_ids, tiny_model, tiny_tokenizer


class FakeHub:
    """Keeps data sets as folders, and counts the files that it was sent; `broken` is what it says in place of answering."""

    def __init__(self, root: Path):
        self.root, self.sent, self.private, self.broken = root, 0, dict[str, Any](), ""

    def create_repo(self, *, repo_id: str, repo_type: str, private: bool | None, exist_ok: bool) -> None:
        assert (repo_type, exist_ok) == ("dataset", True)
        if self.broken:
            raise OSError(self.broken)
        self.private.setdefault(repo_id, private)
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(
        self, *, repo_id: str, repo_type: str, folder_path: Any, commit_message: str, allow_patterns: Any = "*", ignore_patterns: Any = ()
    ) -> None:
        for file in Path(folder_path).rglob("*"):
            name = file.relative_to(folder_path).as_posix()
            allowed = any(fnmatch(name, pattern) for pattern in allow_patterns) and not any(fnmatch(name, each) for each in ignore_patterns)
            if file.is_file() and allowed:
                target = self.root / repo_id / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
                self.sent += 1

    def snapshot_download(self, repo: str, *, repo_type: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert repo_type == "dataset"
        if revision or not (self.root / repo).is_dir():
            raise OSError(f"404: no {repo}\nat {revision}")
        return str(self.root / repo)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def make_run(out: Path | None, name: str = "tiny-random") -> ll.Run:
    lens = ll.LensModel.wrap(tiny_model(), tiny_tokenizer(), name=name)
    return ll.analyze(lens, [ll.Sample(random_ids(6, n), 2) for n in range(3)], out=out)


def test_a_run_comes_back_from_the_hub_as_it_was(hub: FakeHub, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "run" / "samples" / ".000000.nc.abc.tmp").write_text("left by a killed process")
    assert run.push_to_hub("me/run", private=True) == "hf://datasets/me/run"
    assert hub.private == {"me/run": True}
    there = {path.relative_to(hub.root / "me/run").as_posix() for path in (hub.root / "me/run").rglob("*") if path.is_file()}
    figures = {f"figures/{name}.png" for name in ("entropy", "entropy-flow", "ffn-change", "kl")}
    files = {name.format(number) for name in ("samples/{:06d}.nc", "means/{:06d}.safetensors") for number in range(3)}
    assert there == {"run.json", "README.md", *files, *figures}
    for name in ("hf://datasets/me/run", Path("hf://datasets/me/run")):  # a path object has one slash less
        back = ll.open_run(name)
        assert back.data.identical(run.data)
        assert back.manifest == ll.open_run(tmp_path / "run").manifest


def test_the_card_says_what_was_measured_and_how_to_open_it(hub: FakeHub, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", name="evil|model <b>")
    run.push_to_hub("me/run")
    card = (hub.root / "me/run/README.md").read_text()
    front, body = card.split("\n---\n", 1)
    assert front.splitlines() == [
        "---", "library_name: layerlens", "tags: [layerlens, interpretability, logit-lens]", 'pretty_name: "evil|model <b>"',
    ]  # fmt: skip
    assert "run = ll.open_run('hf://datasets/me/run')" in body
    rows = dict(re.findall(r"^\| (\w[\w ]*) \| (.*) \|$", body, re.MULTILINE))
    assert rows["model"] == "evil&#124;model &#60;b&#62;, 4 layers"
    assert rows["read with"] == "norm none, logit lens"
    assert rows["samples"] == "3; 18 decoded rows (all)"
    assert rows["sites"] == "resid_pre, attn_in, attn_out, resid_mid, ffn_in, ffn_out, resid_post"
    assert run.manifest.model.fingerprint in rows["weights"]
    assert body.count("](figures/") == 4


def test_a_figure_without_data_and_samples_that_are_missing_are_told(hub: FakeHub, tmp_path: Path) -> None:
    lens = ll.LensModel.wrap(tiny_model(), tiny_tokenizer(), name="tiny-random")
    ll.analyze(lens, [ll.Sample(random_ids(6, n), 2) for n in range(3)], out=tmp_path / "run", metrics="entropy", sites="resid_post")
    (tmp_path / "run" / "samples" / "000001.nc").unlink()
    ll.open_run(tmp_path / "run").push_to_hub("me/run")
    card = (hub.root / "me/run/README.md").read_text()
    assert "| samples | 2 of 3: the run is not complete; 12 decoded rows (all) |" in card
    assert "](figures/entropy.png)" in card
    assert "figures/kl.png" not in card
    assert not (hub.root / "me/run/figures/kl.png").exists()


def test_what_the_hub_refuses_is_one_line(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^the run of tiny-random lies in memory alone: analyse with out=FOLDER to keep it, then push it$"):
        make_run(None).push_to_hub("me/run")
    for name in ("hf://datasets/me/none", "hf://datasets/me/run@v9"):
        with pytest.raises(RunError) as error:
            ll.open_run(name)
        assert str(error.value).startswith(f"{name} could not be loaded from the hub (404: no me/")
        assert "\n" not in str(error.value)
    with pytest.raises(RunError, match=r"^hf://me/run: a run on the hub is named hf://datasets/user/run, or "):
        ll.open_run("hf://me/run")
    hub.broken = "401 Unauthorized"
    with pytest.raises(RunError, match=r"^me/run could not be written to the hub \(401 Unauthorized\); log in with `hf auth login`$"):
        make_run(tmp_path / "run").push_to_hub("me/run")
    assert hub.sent == 0
