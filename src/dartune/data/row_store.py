"""Rows on disk as a sequence: a JSONL file with one object per line, and an index file with the ends of the lines.

Memory holds eight bytes per row, independent of the row's length. Rows are read on access. With the index, opening a
file or appending to it does not require reading it.
"""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import numpy as np

from dartune import distributed
from dartune.data.records import Demonstration
from dartune.errors import DartuneError
from dartune.run.files import write_jsonl, writing

T = TypeVar("T")
BLOCK = 1 << 16
"""Bytes per read: about a hundred rows, so that sequential access needs few system calls."""


class _SharedFile:
    """An open file descriptor that several `Rows` read at arbitrary positions; closed with the last of them."""

    def __init__(self, name: Path | str, descriptor: int) -> None:
        self.name, self._descriptor = name, descriptor

    def read(self, size: int, offset: int) -> bytes:
        # `pread` moves no file position, so that views of the same file do not interfere.
        return os.pread(self._descriptor, size, offset)

    def __del__(self) -> None:
        os.close(self._descriptor)


class Rows(Sequence[T]):
    """A read-only sequence of the rows of a JSONL file. Each row is read on access.

    A slice, or the result of `select_rows`, is a view of the same file. Equal to any sequence of equal rows.

    Args:
        file: the open file.
        starts: (rows,) int64, byte offset of each line.
        make: converts the object of a line to a row.
    """

    def __init__(self, file: _SharedFile, starts: np.ndarray, make: Callable[[dict[str, Any]], T]) -> None:
        self.file, self.starts, self.make = file, starts, make
        self._block_start, self._block = 0, b""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index) -> Any:
        if isinstance(index, slice):
            return self.view(index)
        line = self._line(int(self.starts[index]))
        try:
            return self.make(json.loads(line))
        except ValueError as error:
            number = range(len(self))[index] + 1
            raise DartuneError(f"{self.file.name} row {number} is not JSON ({error}); was it edited?") from error

    def view(self, which: slice | np.ndarray) -> Rows[T]:
        """Returns the rows of a slice, or at the given indices, without copying them."""
        return Rows(self.file, self.starts[which], self.make)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType] # how Python says it; the stubs of object differ

    def _line(self, start: int) -> bytes:
        """Returns the line at a byte offset, from the last block if it contains the complete line."""
        offset, size = start - self._block_start, BLOCK
        end = self._block.find(b"\n", offset) if 0 <= offset < len(self._block) else -1
        while end < 0:
            self._block_start, self._block, offset = start, self.file.read(size, start), 0
            end = self._block.find(b"\n")
            if end < 0 and len(self._block) < size:
                raise DartuneError(f"{self.file.name} ends within a row; was it edited?")
            size *= 4
        return self._block[offset:end]


class RowWriter:
    """Appends rows to a file and returns them as `Rows`.

    With a path, rows up to the last call of `keep` survive a crash, and a new spool with this path continues after
    them.

    Args:
        path: the JSONL file. None: a temporary file, which is deleted with the last `Rows` that reads it.
    """

    def __init__(self, path: Path | None = None) -> None:
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
            # An index that does not match the file is replaced.
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
        """Truncates the file to its first `rows` rows. An incomplete last line is removed as well."""
        del self._ends[rows:]
        self._indexed = rows
        self._file.truncate(self._end)
        if self._index is not None:
            self._index.truncate(rows * self._ends.itemsize)

    def keep(self) -> None:
        """Flushes the added rows to disk. The rows go first, so that the index never refers to missing rows."""
        if self.path is None or self._index is None:
            return
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._index.write(self._ends[self._indexed :].tobytes())
            self._index.flush()
            os.fsync(self._index.fileno())
        self._indexed = len(self)

    def rows(self, make: Callable[[dict[str, Any]], T] = dict) -> Rows[T]:
        """Returns the rows added so far; `make` converts the object of each line."""
        self._file.flush()
        file = _SharedFile(self.path or "a temporary file", os.dup(self._file.fileno()))
        return Rows(file, _starts(np.array(self._ends, np.int64)), make)


def select_rows(rows: Sequence[T], indices: np.ndarray) -> Sequence[T]:
    """Returns the rows at the given indices: a view for `Rows`, a list for other sequences."""
    return rows.view(indices) if isinstance(rows, Rows) else [rows[index] for index in indices]


def demonstration_from_dict(row: dict[str, Any]) -> Demonstration:
    """Converts an object with all fields of a `Demonstration`, as written by `asdict`."""
    return Demonstration(**row)


def index_path(path: Path) -> Path:
    """Returns the path of a JSONL file's index: (rows,) int64, the byte offset of the end of each line."""
    return path.with_suffix(".index")


@overload
def open_rows(path: Path) -> Rows[Any]: ...


@overload
def open_rows(path: Path, make: Callable[[dict[str, Any]], T]) -> Rows[T]: ...


def open_rows(path: Path, make: Callable[[dict[str, Any]], Any] = dict) -> Rows[Any]:
    """Opens a JSONL file written by this module. A last line that a crash cut is ignored."""
    return Rows(_SharedFile(path, os.open(path, os.O_RDONLY)), _starts(_line_ends(path)), make)


@distributed.main_only
def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSONL file and its index atomically: after a crash, the file has its old or its new content.

    Raises:
        MachineError: the disk is full; the old file is unchanged.
    """
    with writing(path):
        # Removed first: a crash after the next line must not leave the old index beside the new file.
        index_path(path).unlink(missing_ok=True)
        write_jsonl(path, rows)
        index_path(path).write_bytes(_line_ends(path).tobytes())


def _starts(ends: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), ends])[:-1]


def _line_ends(path: Path) -> np.ndarray:
    """Returns the end of each line, (rows,) int64, from the index, or by reading the file if the index is stale."""
    with suppress(FileNotFoundError):
        index = index_path(path).read_bytes()
        ends = np.frombuffer(index[: len(index) // 8 * 8], np.int64)  # a crash may have cut the last entry
        # The last entry must follow a line break; otherwise the index belongs to another version of the file.
        if len(ends) and path.stat().st_size >= ends[-1] and _byte(path, int(ends[-1]) - 1) == b"\n":
            return ends
    line_ends = array("q")
    with path.open("rb") as file:
        offset = 0
        while block := file.read(16 * BLOCK):
            line_ends.frombytes((np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + offset + 1).tobytes())
            offset += len(block)
    return np.array(line_ends, np.int64)


def _byte(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(1)
