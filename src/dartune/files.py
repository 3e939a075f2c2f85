"""Files that survive a crash: written beside their place, flushed and renamed, or appended line by line.

Of several processes that work together only the first one writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from dartune import processes
from dartune.errors import DartuneError, MachineError, machine_error
from dartune.redaction import redacted

DRAFT = ".draft"
"""Ends the name of a file that is being written."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Calls every failure to write `path` a `MachineError` that names it."""
    try:
        yield
    except OSError as error:
        reason = machine_error(error) or error.strerror or error
        raise MachineError(f"cannot write {path}: {reason}") from error


def sync(path: Path) -> None:
    """fsync a file or folder, so that a rename never names contents that are still in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file that is, after a crash at any point, either the old one or the new one.

    Raises:
        MachineError: the disk is full; the old file is untouched.
    """
    _atomic_write(path, [text])


@processes.first_only
def _atomic_write(path: Path, pieces: Iterable[str]) -> None:
    draft = path.with_name(f".{path.name}{DRAFT}")  # one name, so a draft left by a crash is overwritten
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
    """`atomic_write_text` of indented JSON."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`atomic_write_text` of one JSON object per line; the rows are taken as they are written."""
    _atomic_write(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@processes.first_only
def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row and flush it to disk; a line cut by a crash is removed first."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            if (end := stream.tell()) and _last_byte(stream) != b"\n":
                stream.seek(0)
                last = stream.read().rpartition(b"\n")[2]
                if _is_json(last):
                    stream.write(b"\n")
                else:
                    stream.truncate(end - len(last))
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())


def read_jsonl(path: Path, *, damaged: bool = False) -> list[dict[str, Any]]:
    """Rows of a JSONL file of ours; a last line cut by a crash is left out.

    Args:
        damaged: it may be: then reading ends before the first line that is not JSON.

    Raises:
        DartuneError: any other line is not JSON.
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
    """The object in `path`, None where there is none or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@processes.first_only
def append_log(path: Path, text: str) -> None:
    """Append `text` to a log file, without secrets and with the time in front of it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {redacted(text)}\n")
