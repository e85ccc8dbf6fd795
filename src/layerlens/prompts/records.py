"""From a prompt source to records: one mapping of fields per prompt, from a file, a hub dataset or memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from layerlens.errors import PromptError, message_of
from layerlens.prompts.eval_logs import inspect_records, plain_records

Record = Mapping[str, Any]


def read_records(source: str | Path | Iterable[str | Record], split: str, limit: int | None) -> Iterator[Record]:
    """The first `limit` records of a source, or all. Text alone becomes a record with the field `prompt`.

    Raises PromptError for a limit below 1 and, while the records are read, for a source that is missing or malformed.
    """
    if limit is not None and limit < 1:
        raise PromptError(f"limit must be at least 1, got {limit}")
    return islice(_all_records(source, split), limit)


def _all_records(source: str | Path | Iterable[str | Record], split: str) -> Iterator[Record]:
    if not isinstance(source, str | Path):
        items = [source] if isinstance(source, Mapping) else source
        yield from (item if isinstance(item, Mapping) else {"prompt": item} for item in items)
        return
    path = prompt_file(source)
    yield from _hub_records(str(source), split) if path is None else FILE_READERS[path.suffix](path)


def prompt_file(source: str | Path) -> Path | None:
    """The file that a source names, None if the name is that of a hub dataset. Raises PromptError if it is neither."""
    path = Path(source).expanduser()
    if not path.is_file():
        if path.suffix in FILE_READERS or path.is_absolute() or str(source).count("/") != 1 or path.exists():
            raise PromptError(f"{source}: no such prompt file (known are {', '.join(FILE_READERS)}; a hub dataset is named owner/name)")
        return None
    if path.suffix not in FILE_READERS:
        raise PromptError(f"{path}: unknown kind of prompt file; known are {', '.join(FILE_READERS)}")
    return path


def _parquet_records(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                yield from _in_our_fields(row, str(path))
    except pyarrow.ArrowException as error:
        raise PromptError(f"{path}: not a readable parquet file ({error})") from error


def _jsonl_records(path: Path) -> Iterator[Record]:
    for number, line in _numbered_lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise PromptError(f"{path}, line {number}: not JSON ({error.msg})") from error
        yield from _in_our_fields(record, f"{path}, line {number}") if isinstance(record, dict) else ({"prompt": record},)


def _in_our_fields(row: Record, where: str) -> list[Record]:
    try:
        return list(plain_records(row))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise PromptError(f"{where}: not as lm-evaluation-harness or lighteval write it ({message_of(error)})") from error


def _text_records(path: Path) -> Iterator[Record]:
    for _, line in _numbered_lines(path):
        yield {"prompt": line}


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, stripped, each with its number from 1."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: cannot be read ({error})") from error


FILE_READERS = {
    ".parquet": _parquet_records, ".jsonl": _jsonl_records, ".txt": _text_records, ".eval": inspect_records, ".json": inspect_records,
}  # fmt: skip


def _hub_records(name: str, split: str) -> Iterator[Record]:
    try:
        import datasets
    except ImportError as error:
        raise PromptError(f"{name}: reading a hub dataset needs `pip install 'layerlens-policy[hub]'` (there is no such file)") from error
    try:
        yield from datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:  # every way a download can fail, told as one line
        reason = message_of(error)
        raise PromptError(f"{name}: no such file, and as a hub dataset it could not be read ({reason})") from error
