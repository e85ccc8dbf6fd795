"""What a fit has so far, in a file beside its result: a fit that was stopped goes on there, and ends with the same bits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from layerlens.errors import RunError, message_of
from layerlens.storage.files import disk_errors_as_run_errors, write_atomic


class FitCheckpoint:
    """The state of one fit, kept in `<out>.partial` until the lens is written.

    Args:
        out: where the lens will be written.
        settings: what tells this fit from another one; a file that another fit left is refused.
        texts: token ids of the texts that the lens is fitted on.
    """

    def __init__(self, out: str | Path, settings: dict[str, Any], texts: Sequence[Sequence[int]]):
        path = Path(out).expanduser()
        self.file = path.with_name(f"{path.name}.partial")
        digest = hashlib.sha256(repr(sorted(settings.items())).encode())
        for text in texts:
            digest.update(f"{tuple(text)}\n".encode())
        self.key = digest.hexdigest()[:16]

    def read(self) -> dict[str, Any] | None:
        """The state that `write` kept; None if there is none. Raises RunError for the file of another fit, and for a damaged one."""
        if not self.file.is_file():
            return None
        try:
            kept: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
            key = kept["key"]
        except Exception as error:  # a damaged file fails in many ways
            reason = message_of(error)
            raise RunError(f"{self.file} is damaged ({reason}); remove it to begin this fit anew") from error
        if key != self.key:
            raise RunError(f"{self.file} was left by a fit with other texts, settings or weights; remove it, or name another --out")
        return kept

    def write(self, **state: Any) -> None:
        """Keeps a state of tensors and numbers, whole or not at all."""
        with disk_errors_as_run_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.file, lambda tmp: torch.save({"key": self.key, **state}, tmp))

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
