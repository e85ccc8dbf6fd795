"""The texts that a run sampled, as token ids: written before anything is measured, so that no text is sampled twice.

```
texts/texts.json   which prompts, by which model and how
texts/000000.json  the texts of the first group of prompts, which were sampled together, with a digest
```
Which prompts form a group is part of what makes a continued run the same to the last bit: `batch` in texts.json fixes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from layerlens.errors import RunError
from layerlens.storage.files import write_text
from layerlens.storage.folder import SharedFolder
from layerlens.storage.manifest import TextManifest

TEXTS = "texts"
"""The folder of the texts, in that of the run."""

TokenIds = tuple[int, ...]


class TextMemory:
    """Texts in memory alone, with the interface of those in a folder."""

    def __init__(self) -> None:
        self._groups: dict[int, dict[int, TokenIds]] = {}

    def has(self, group: int) -> bool:
        """Whether a group of texts is there."""
        return group in self._groups

    def read(self, group: int) -> dict[int, TokenIds]:
        """The token ids of a group's texts, prompt and response, by sample number."""
        return self._groups[group]

    def write(self, group: int, texts: Mapping[int, Sequence[int]]) -> None:
        """Keeps a group's texts."""
        self._groups[group] = {number: tuple(ids) for number, ids in texts.items()}

    def claim(self, name: str) -> AbstractContextManager[bool]:
        """A context that tells whether this process may do the named piece of work."""
        return nullcontext(True)


class TextFolder(SharedFolder[TextManifest]):
    """Texts in a folder. Make one with `create` to write, or with the path of an existing one to read."""

    manifest_file = "texts.json"
    manifest_type = TextManifest
    holds = "texts"
    made_by = "layerlens analyze --out"
    entries = frozenset()

    def begun(self) -> TextManifest | None:
        """The manifest if the folder was begun, else None."""
        return self.manifest() if (self.path / self.manifest_file).is_file() else None

    def has(self, group: int) -> bool:
        """Whether a group of texts is there."""
        return self._file(group).exists()

    def read(self, group: int) -> dict[int, TokenIds]:
        """The token ids of a group's texts, prompt and response, by sample number. Raises RunError if the file is damaged."""
        file = self._file(group)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            texts = {int(number): tuple(map(int, ids)) for number, ids in found["texts"].items()}
            if found["digest"] != _digest(texts):
                raise ValueError("its digest does not fit its texts")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{file} is damaged ({error}); remove it and run the same analysis again, which samples these texts anew"
            ) from error
        return texts

    def write(self, group: int, texts: Mapping[int, Sequence[int]]) -> None:
        """Writes a group's texts, whole or not at all."""
        kept = {number: tuple(ids) for number, ids in texts.items()}
        write_text(self._file(group), json.dumps({"digest": _digest(kept), "texts": kept}) + "\n")

    def _file(self, group: int) -> Path:
        return self.path / f"{group:06d}.json"


def _digest(texts: Mapping[int, TokenIds]) -> str:
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]
