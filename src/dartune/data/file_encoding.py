"""Opens data files: detects compression, text encodings and files of another kind."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

GZIP = ".gz"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
OTHER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte order marks of unsupported encodings. UTF-32 comes first, because its mark begins with the one of UTF-16."""
FOREIGN = {
    b"PAR1": "a Parquet file; rename it to .parquet",
    b"PK\x03\x04": "a zip archive or an Excel file; unpack it, or save the table as CSV",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it, or compress it by gzip",
    b"BZh": "compressed by bzip2; unpack it, or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz; unpack it, or compress it by gzip",
}
"""First bytes of files that are not text -> the kind of file, and the remedy."""
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
"""Exceptions raised when a damaged gzip file is read."""
MAX_DEPTH = 100
"""Maximum nesting of lists and objects in a row. Deeper rows would exceed Python's recursion limit later on."""


class RawRow(NamedTuple):
    """A row as read: its place for messages, and its columns, or a sentence that says why it cannot be read."""

    place: str
    content: dict[str, Any] | str


Reader = Callable[[Path, list[str]], Iterator[RawRow]]
"""Yields the rows of a file and appends notes about skipped input to the list."""


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file for reading and decompresses gzip, which is detected by content as well as by the file name."""
    file = path.open("rb")
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not compressed and path.suffix.lower() != GZIP:
        return file
    file.close()
    return cast("IO[bytes]", gzip.open(path))


def too_deep(value: Any) -> bool:
    """Returns whether lists and objects are nested in more than `MAX_DEPTH` levels. Does not recurse."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [element for element in level if isinstance(element, dict | list)]
        level = [
            inner
            for container in containers
            for inner in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return False
    return True


def unreadable(error: OSError) -> str:
    """Returns why a file cannot be read, and the remedy."""
    remedy = "; give yourself the right to read it (chmod u+r)" if isinstance(error, PermissionError) else ""
    return f"cannot be read: {error.strerror or error}{remedy}"


def format_suffix(path: Path) -> str:
    """Returns the suffix that names the format: `.jsonl` for both `a.jsonl` and `a.jsonl.gz`."""
    path = path.with_suffix("") if path.suffix.lower() == GZIP else path
    return path.suffix.lower()


def text_rows(read: Reader) -> Reader:
    """Decorates a reader of text files with a check of the encoding.

    A file that cannot be read, or a damaged gzip file, becomes one bad row, so that other files are still read.
    """

    def rows(path: Path, notes: list[str]) -> Iterator[RawRow]:
        try:
            with open_bytes(path) as file:
                start = file.read(64)
            if foreign := next((kind for mark, kind in FOREIGN.items() if start.startswith(mark)), None):
                yield RawRow(path.name, f"is {foreign}")
                return
            if encoding := _unsupported_encoding(start):
                name = encoding.removeprefix("probably ")
                remedy = f"save it as UTF-8, for example with `iconv -f {name} -t UTF-8 {path.name}`"
                yield RawRow(path.name, f"the encoding is {encoding}, which is not read; {remedy}")
                return
            yield from read(path, notes)
        except DAMAGED as error:
            yield RawRow(path.name, f"is a damaged gzip file ({error}); the rest of it was not read")
        except OSError as error:
            yield RawRow(path.name, unreadable(error))

    return rows


def _unsupported_encoding(start: bytes) -> str | None:
    """Returns the encoding if it is not UTF-8, detected by its mark or by the zero bytes of its ASCII characters."""
    for mark, name in OTHER_MARKS.items():
        if start.startswith(mark):
            return name
    pairs = start[: len(start) // 2 * 2]
    for first, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if len(pairs) >= 8 and not any(pairs[first::2]) and all(pairs[1 - first :: 2]):
            return f"probably {name}"
    return None
