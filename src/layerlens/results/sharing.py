"""How a Run is shown to others: on the hub, as a page, in a notebook. Each opens a room above this one, when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerlens.errors import RunError
from layerlens.results.folder import RunFolder
from layerlens.storage.hub import upload_folder


class Sharing:
    """These methods of a Run, which is what `self` is."""

    def push_to_hub(self: Any, repo: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Puts the run's folder on the Hugging Face hub as a data set, with a card that shows it, and returns its name for `open_run`.

        Args:
            repo: "user/run"; made if there is none. Files that are already there are not sent again.
            private: whether a new data set is private; None leaves it to the hub.
            token: the user's; None takes the one of `hf auth login`.

        Raises RunError if the run lies in memory alone, or the hub refuses it.
        """
        from layerlens.plots.run_card import write_run_card

        if self.path is None:
            raise RunError(f"the run of {self.model} lies in memory alone: analyse with out=FOLDER to keep it, then push it")
        name = f"hf://datasets/{repo}"
        entries = {RunFolder.manifest_file, *RunFolder.entries}
        return upload_folder(self.path, repo, entries, lambda card: write_run_card(self, card, name), private=private, token=token)

    def report(self: Any, out: str | Path = "report.html", **options: Any) -> Path:
        """Writes one interactive page of the run, which needs no network, and returns its path; options as in `write_report`."""
        from layerlens.report import write_report

        return write_report(self, out=out, **options)

    def _repr_html_(self: Any) -> str:
        from layerlens.report.notebook import run_html

        return run_html(self)
