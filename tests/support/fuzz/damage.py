"""What can become of a file: bytes changed, an end cut off, entries of JSON dropped or of other types, another file in its place."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3, 10**6, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("-inf"), "", "x", "none", "²", "\ud83d",
    "\x00", "a" * 3000, [], [[]], [None], [1, "x"], {}, {"a": {}}, {"": None},
]  # fmt: skip
"""Values that stand in a JSON or YAML file in place of what should be there."""


def changed(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few flipped, cut out, doubled or put in."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(found) + 1)
        match rng.randrange(4):
            case 0 if place < len(found):
                found[place] ^= 1 << rng.randrange(8)
            case 1:
                del found[place : place + rng.randint(1, 40)]
            case 2:
                found[place:place] = rng.randbytes(rng.randint(1, 8))
            case _:
                found[place:place] = found[place : place + rng.randint(1, 40)]
    return bytes(found)


def altered(value: Any, rng: random.Random) -> Any:
    """A value of JSON with one entry, at any depth, dropped, renamed, doubled or replaced by an odd one."""
    inside = list(value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ())
    if not inside or rng.random() < 0.05:
        return rng.choice(ODD)
    value, key = value.copy(), rng.choice(inside)
    if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.7:
        value[key] = altered(value[key], rng)
        return value
    kept = value.pop(key)
    match rng.randrange(5):
        case 0:
            pass
        case 1 if isinstance(value, dict):
            value[f"{key}x"] = kept
        case 2 if isinstance(value, list):
            value[key:key] = [kept, kept]
        case _ if isinstance(value, dict):
            value[key] = rng.choice(ODD)
        case _:
            value.insert(key, rng.choice(ODD))
    return value


def break_json(file: Path, rng: random.Random) -> str:
    """One entry of a JSON file, or of one line of a file of lines, is altered. Returns what was done, in words."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_text(encoding="utf-8")]
    if not lines:
        return break_bytes(file, rng)
    place = rng.randrange(len(lines))
    found = json.loads(lines[place])
    for _ in range(rng.choice((1, 1, 1, 2))):
        found = altered(found, rng)
    lines[place] = json.dumps(found)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"an entry of {file.name} altered"


def break_bytes(file: Path, rng: random.Random) -> str:
    """Bytes of a file are changed, or its end is cut off, or nothing is left, or it is gone, or it is a folder."""
    match rng.randrange(8):
        case 0:
            file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size + 1)])
            return f"{file.name} cut"
        case 1:
            file.write_bytes(rng.choice((b"", b"\0" * 64, rng.randbytes(300), b"\xff\xfe{}", b"{" * 5000)))
            return f"{file.name} of other bytes"
        case 2:
            file.unlink()
            if rng.random() < 0.4:
                file.mkdir()
            return f"{file.name} gone"
        case _:
            file.write_bytes(changed(file.read_bytes(), rng))
            return f"bytes of {file.name} changed"


def break_folder(folder: Path, rng: random.Random) -> str:
    """Something is done to one file of a folder, or two of them are swapped. Returns what, in words."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    file = rng.choice(files)
    if rng.random() < 0.15:
        other = rng.choice(files)
        one, two = file.read_bytes(), other.read_bytes()
        file.write_bytes(two)
        other.write_bytes(one)
        return f"{file.name} and {other.name} swapped"
    if rng.random() < 0.08:
        shutil.copy(file, file.with_name(rng.choice(("copy", "000099.nc", "-1.nc", "²" + file.suffix, "x.tmp"))))
        return f"a copy of {file.name}"
    if file.suffix in (".json", ".jsonl") and rng.random() < 0.7:
        return break_json(file, rng)
    return break_bytes(file, rng)
