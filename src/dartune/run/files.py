"""Crash-safe files: written to a draft, flushed and renamed, or appended line by line.

With several processes, only rank 0 writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from dartune import distributed
from dartune.errors import DartuneError, MachineError, machine_error
from dartune.run.redaction import redacted

DRAFT = ".draft"
"""Suffix of a file that is still being written."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert every `OSError` of the block into a `MachineError` that names `path`."""
    try:
        yield
    except OSError as error:
        reason = machine_error(error) or error.strerror or error
        raise MachineError(f"cannot write {path}: {reason}") from error


def sync(path: Path) -> None:
    """Call fsync on a file or folder.

    Without it, a crash after a rename could leave a complete name with incomplete contents.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file. After a crash at any point, `path` holds either the old or the new contents.

    Raises:
        MachineError: the disk is full; the old file is unchanged.
    """
    _atomic_write(path, [text])


@distributed.main_only
def _atomic_write(path: Path, pieces: Iterable[str]) -> None:
    # The draft's name is fixed, so that a draft left by a crash is overwritten instead of accumulating.
    draft = path.with_name(f".{path.name}{DRAFT}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("w", encoding="utf-8", newline="\n") as stream:
                stream.writelines(pieces)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync(path.parent)


def atomic_write_json(path: Path, value: Any) -> None:
    """Write indented JSON with `atomic_write_text`."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically. `rows` is consumed while writing, so it need not fit in memory."""
    _atomic_write(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@distributed.main_only
def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row and flush it to disk. A last line truncated by a crash is removed first."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            if (end := stream.tell()) and _last_byte(stream) != b"\n":
                stream.seek(0)
                last_line = stream.read().rpartition(b"\n")[2]
                if _is_json(last_line):  # only the line break is missing
                    stream.write(b"\n")
                else:
                    stream.truncate(end - len(last_line))
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())


def read_jsonl(path: Path, *, damaged: bool = False) -> list[dict[str, Any]]:
    """Read the rows of a JSONL file written by this package. A last line truncated by a crash is skipped.

    Args:
        damaged: stop at the first line that is not JSON, instead of raising.

    Raises:
        DartuneError: a line other than the last is not JSON.
    """
    lines = path.read_bytes().split(b"\n")
    if not _is_json(lines[-1]):
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if damaged:
                break
            raise DartuneError(f"{path} line {number} is not JSON ({error}); was it edited?") from error
    return rows


def _last_byte(stream: Any) -> bytes:
    stream.seek(-1, os.SEEK_END)
    return stream.read(1)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in `path`, or None if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@distributed.main_only
def append_log(path: Path, text: str) -> None:
    """Append `text` to a log file with a timestamp; secrets are redacted."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {redacted(text)}\n")
