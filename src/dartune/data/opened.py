"""Data files as bytes: compressed or not, and in which encoding."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

GZIP = ".gz"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
OTHER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte order marks of encodings that are not read; the first that fits counts."""
FOREIGN = {
    b"PAR1": "a Parquet file; rename it to .parquet",
    b"PK\x03\x04": "a zip archive or an Excel file; unpack it, or save the table as CSV",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it, or compress it by gzip",
    b"BZh": "compressed by bzip2; unpack it, or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz; unpack it, or compress it by gzip",
}
"""How files begin that are no text -> what they are, and what to do."""
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
"""What reading a damaged gzip file raises."""
DEEPEST = 100
"""Levels of lists and objects in a row; deeper ones are refused, as Python cannot walk through them safely."""


class RawRow(NamedTuple):
    """A row as read: its place for messages, and its columns, or a sentence on why it cannot be read."""

    place: str
    content: dict[str, Any] | str


Reader = Callable[[Path, list[str]], Iterator[RawRow]]
"""Reads the rows of a file; notes on what it does not read go to the list."""


def opened(path: Path) -> BinaryIO:
    """The file's bytes. Gzip is detected by content, not by the file name."""
    file = path.open("rb")
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not packed and path.suffix.lower() != GZIP:
        return file
    file.close()
    return gzip.open(path)


def too_deep(value: Any) -> bool:
    """Whether lists and objects are nested in more than `DEEPEST` levels."""
    level = [value]
    for _ in range(DEEPEST + 1):
        held = [one for one in level if isinstance(one, dict | list)]
        level = [inner for one in held for inner in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return False
    return True


def unreadable(error: OSError) -> str:
    """Why a file cannot be read, and what to do."""
    remedy = "; give yourself the right to read it (chmod u+r)" if isinstance(error, PermissionError) else ""
    return f"cannot be read: {error.strerror or error}{remedy}"


def kind_of(path: Path) -> str:
    """The ending that says the format: `.jsonl` of `a.jsonl` and of `a.jsonl.gz`."""
    path = path.with_suffix("") if path.suffix.lower() == GZIP else path
    return path.suffix.lower()


def text_rows(read: Reader) -> Reader:
    """A reader of text files that first looks at the encoding; a damaged gzip file is one bad row."""

    def rows(path: Path, notes: list[str]) -> Iterator[RawRow]:
        try:
            with opened(path) as file:
                start = file.read(64)
            if foreign := next((what for mark, what in FOREIGN.items() if start.startswith(mark)), None):
                yield RawRow(path.name, f"is {foreign}")
                return
            if other := _other_encoding(start):
                known = other.removeprefix("probably ")
                remedy = f"save it as UTF-8, for example with `iconv -f {known} -t UTF-8 {path.name}`"
                yield RawRow(path.name, f"the encoding is {other}, which is not read; {remedy}")
                return
            yield from read(path, notes)
        except DAMAGED as error:
            yield RawRow(path.name, f"is a damaged gzip file ({error}); rest unread")
        except OSError as error:
            yield RawRow(path.name, unreadable(error))

    return rows


def _other_encoding(start: bytes) -> str | None:
    """The encoding that is not UTF-8, by its mark or by the zero bytes of its ASCII characters."""
    for mark, name in OTHER_MARKS.items():
        if start.startswith(mark):
            return name
    pairs = start[: len(start) // 2 * 2]
    for first, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if len(pairs) >= 8 and not any(pairs[first::2]) and all(pairs[1 - first :: 2]):
            return f"probably {name}"
    return None
