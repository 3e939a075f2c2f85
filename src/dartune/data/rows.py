"""Rows on disk as a sequence: one JSON object a line, and an index of where the lines end.

Whatever the rows hold, eight bytes of each are in memory; the rest is read when it is asked for. The index is a file
beside the rows, so that opening them, or adding to them, takes no reading of them.
"""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from dartune import processes
from dartune.data.records import Demonstration
from dartune.errors import DartuneError
from dartune.files import write_jsonl, writing

T = TypeVar("T")
BLOCK = 1 << 16
"""Bytes read at once: some hundred rows where they are read in order."""


class _Open:
    """A file that is read at any place, and closed with the last that reads it."""

    def __init__(self, name: Path | str, descriptor: int) -> None:
        self.name, self._descriptor = name, descriptor

    def read(self, size: int, at: int) -> bytes:
        return os.pread(self._descriptor, size, at)

    def __del__(self) -> None:
        os.close(self._descriptor)


class Rows(Sequence[T]):
    """Rows of a JSONL file, read when they are asked for.

    A slice, or `taken`, is a view of the same file. Equal to any sequence of equal rows.
    """

    def __init__(self, file: _Open, starts: np.ndarray, make: Callable[[dict[str, Any]], T]) -> None:
        """`starts` are the lines' places in bytes, (rows,) int64; `make` turns what a line holds into a row."""
        self.file, self.starts, self.make = file, starts, make
        self._at, self._block = 0, b""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.view(index)
        line = self._line(int(self.starts[index]))
        try:
            return self.make(json.loads(line))
        except ValueError as error:
            number = range(len(self))[index] + 1
            raise DartuneError(f"{self.file.name} row {number} is not JSON ({error}); was it edited?") from error

    def view(self, which: slice | np.ndarray) -> Rows[T]:
        """The rows of a slice, or at some indices."""
        return Rows(self.file, self.starts[which], self.make)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None

    def _line(self, start: int) -> bytes:
        """The line that begins at `start`, from the block read last if it is in there."""
        at, size = start - self._at, BLOCK
        end = self._block.find(b"\n", at) if 0 <= at < len(self._block) else -1
        while end < 0:
            self._at, self._block, at = start, self.file.read(size, start), 0
            end = self._block.find(b"\n")
            if end < 0 and len(self._block) < size:
                raise DartuneError(f"{self.file.name} ends within a row; was it edited?")
            size *= 4
        return self._block[at:end]


class Spool:
    """Rows that are being collected: added to the end of a file, then read.

    With a path, what was added up to the last `keep` survives a crash, and a spool of that path goes on from there.
    """

    def __init__(self, path: Path | None = None) -> None:
        """`path` is the JSONL file; None: a temporary one, which goes with the last that reads it."""
        self.path, self._index = path, None
        if path is None:
            self._file, self._ends = tempfile.TemporaryFile(), array("q")  # noqa: SIM115 - closed by __exit__
            return
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+")
            ends = _line_ends(path).tobytes()
            self._index = index_path(path).open("ab+")
            self._index.seek(0)
            if not self._index.read().startswith(ends):
                index_path(path).write_bytes(ends)
            self._ends = array("q", ends)
        self.cut(len(self))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in filter(None, (self._file, self._index)):
            file.close()

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def _end(self) -> int:
        return self._ends[-1] if self._ends else 0

    def add(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        self._file.write(line)
        self._ends.append(self._end + len(line))

    def cut(self, rows: int) -> None:
        """Keep the first so many rows, and neither half a line nor rows that were not kept yet."""
        del self._ends[rows:]
        self._indexed = rows
        self._file.truncate(self._end)
        if self._index is not None:
            self._index.truncate(rows * self._ends.itemsize)

    def keep(self) -> None:
        """Flush what was added to disk: the rows first, so that the index never names any that are not there."""
        if self._index is None:
            return
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._index.write(self._ends[self._indexed :].tobytes())
            self._index.flush()
            os.fsync(self._index.fileno())
        self._indexed = len(self)

    def rows(self, make: Callable[[dict[str, Any]], T] = dict) -> Rows[T]:
        """What was added."""
        self._file.flush()
        file = _Open(self.path or "a temporary file", os.dup(self._file.fileno()))
        return Rows(file, _starts(np.array(self._ends, np.int64)), make)


def taken(rows: Sequence[T], indices: np.ndarray) -> Sequence[T]:
    """The rows at some indices: of rows on disk a view, of others a list."""
    return rows.view(indices) if isinstance(rows, Rows) else [rows[index] for index in indices]


def demonstration(row: dict[str, Any]) -> Demonstration:
    """A row of ours that holds every field."""
    return Demonstration(**row)


def index_path(path: Path) -> Path:
    """Where the index of a JSONL file is: int64 each line's end, in bytes from the file's start."""
    return path.with_suffix(".index")


def open_rows(path: Path, make: Callable[[dict[str, Any]], T] = dict) -> Rows[T]:
    """Rows of a JSONL file of ours; a last line cut by a crash is left out."""
    return Rows(_Open(path, os.open(path, os.O_RDONLY)), _starts(_line_ends(path)), make)


@processes.first_only
def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSONL file and its index; the file is, after a crash at any point, either the old one or the new one.

    Raises:
        MachineError: the disk is full; the old file is untouched.
    """
    with writing(path):
        index_path(path).unlink(missing_ok=True)  # the index of another file must never be believed
        write_jsonl(path, rows)
        index_path(path).write_bytes(_line_ends(path).tobytes())


def _starts(ends: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), ends])[:-1]


def _line_ends(path: Path) -> np.ndarray:
    """Where the lines of a file end, (rows,) int64: from its index, or, where that is not this file's, from itself."""
    with suppress(FileNotFoundError):
        index = index_path(path).read_bytes()
        ends = np.frombuffer(index[: len(index) // 8 * 8], np.int64)
        if len(ends) and path.stat().st_size >= ends[-1] and _byte(path, int(ends[-1]) - 1) == b"\n":
            return ends
    found = array("q")
    with path.open("rb") as file:
        at = 0
        while block := file.read(16 * BLOCK):
            found.frombytes((np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + at + 1).tobytes())
            at += len(block)
    return np.array(found, np.int64)


def _byte(path: Path, at: int) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(1)
