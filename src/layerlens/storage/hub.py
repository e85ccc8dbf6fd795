"""Folders of results as data sets on the Hugging Face hub."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from layerlens.errors import RunError, message_of

HUB_NAME = re.compile(r"hf:/{1,2}datasets/(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>.+))?")
"""`hf://datasets/user/run`, with `@` in front of a branch, tag or commit; a path object loses the second slash."""


def local_folder(path: str | Path, entries: Collection[str]) -> Path:
    """The folder itself, or a copy in the hub's cache of the data set that `hf://datasets/user/run` names.

    `entries` are the files and folders in it that are copied. A copy that is up to date is not loaded again, and without a network the
    last copy is taken.

    Raises RunError, naming the data set, if it cannot be loaded.
    """
    found = HUB_NAME.fullmatch(str(path))
    if found is None:
        if str(path).startswith("hf:"):
            raise RunError(f"{path}: a run on the hub is named hf://datasets/user/run, or hf://datasets/user/run@revision")
        return Path(path).expanduser()
    from huggingface_hub import snapshot_download

    try:
        wanted = [pattern for entry in sorted(entries) for pattern in (entry, f"{entry}/*")]
        return Path(snapshot_download(found["repo"], repo_type="dataset", revision=found["revision"], allow_patterns=wanted))
    except Exception as error:  # every way a download can fail, told as one line
        raise RunError(f"{path} could not be loaded from the hub ({message_of(error)})") from error


def upload_folder(
    folder: Path, repo: str, entries: Collection[str], write_card: Callable[[Path], object], *, private: bool | None, token: str | None
) -> str:
    """Puts a folder and its card on the hub as a data set, and returns its name, `hf://datasets/user/run`.

    Files that are already there are not sent again. The card goes last: what has one is whole.

    Args:
        folder: where the files are.
        repo: "user/run"; made if there is none.
        entries: the files and folders in it that are sent.
        write_card: writes README.md, and the figures that it shows, into the folder that it is given.
        private: whether a new data set is private; None leaves it to the hub.
        token: the user's; None takes the one of `hf auth login`.

    Raises RunError, naming the data set, if it cannot be written; what has been sent stays, and the same call goes on.
    """
    from huggingface_hub import HfApi

    sent = [pattern for entry in sorted(entries) for pattern in (entry, f"{entry}/*")]
    with tempfile.TemporaryDirectory() as card:
        write_card(Path(card))
        try:
            api = HfApi(token=token)
            api.create_repo(repo_id=repo, repo_type="dataset", private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo, repo_type="dataset", folder_path=folder, allow_patterns=sent, ignore_patterns=[".*", "*/.*"],
                commit_message="Add the samples of a layerlens run",
            )  # fmt: skip
            api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=card, commit_message="Add the card of a layerlens run")
        except Exception as error:
            raise RunError(f"{repo} could not be written to the hub ({message_of(error)}); log in with `hf auth login`") from error
    return f"hf://datasets/{repo}"
