"""Collects findings about rows: counts by kind, the first places of each kind in memory, and all places on disk."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from dartune.data.records import Demonstration
from dartune.errors import KEPT_PROBLEMS, counted

FIRST = 5
"""Places of a kind that are listed. Up to this many rows with the same problem get a line each."""
MAX_NAMES = 1000
"""Distinct names that are counted. Rows with generated keys could otherwise use unbounded memory."""
_VARIABLE_PART = re.compile(r"\d+|'[^']*'|\"[^\"]*\"")
"""Parts of a message that differ between rows with the same problem: numbers and quoted values."""
_ROW_PLACE = re.compile(r"(.* (?:line|row)) (\d+(?: \(.*\))?)")


def row_label(row: Demonstration) -> str:
    """Returns the name of a row in messages: file, line and id, or only the id for rows without a place."""
    return row.place or row.id


def listed(places: Iterable[str], count: int | None = None) -> str:
    """Returns a list of places that repeats no file name: `d.jsonl line 3, 9, 12 and 4 more`.

    Args:
        count: total number of places, if `places` are only the first ones.
    """
    listing, previous = [], None
    for place in places:
        match = _ROW_PLACE.fullmatch(place)
        same_file = match is not None and match[1] == previous
        previous = match[1] if match else None
        listing.append(match[2] if match and same_file else place)
    more = 0 if count is None else count - len(listing)
    return ", ".join(listing) + (f" and {more} more" if more > 0 else "")


class _DiskLog:
    """Tuples of texts in a temporary file, which is deleted with this object. The latest entries are in memory."""

    BUFFERED = 1000

    def __init__(self) -> None:
        self._buffer: list[str] = []
        self._file: int | None = None

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def add(self, *texts: str) -> None:
        self._buffer.append(json.dumps(texts) + "\n")
        if len(self._buffer) < self.BUFFERED:
            return
        if self._file is None:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        unwritten = "".join(self._buffer).encode()
        while unwritten:
            unwritten = unwritten[os.write(self._file, unwritten) :]
        self._buffer = []

    def __iter__(self) -> Iterator[list[str]]:
        if self._file is not None:
            offset, rest = 0, b""
            while block := os.pread(self._file, 1 << 16, offset):
                *lines, rest = (rest + block).split(b"\n")
                yield from map(json.loads, lines)
                offset += len(block)
        yield from map(json.loads, self._buffer)


class FindingCounts:
    """Counts findings by kind and records the place of each."""

    def __init__(self) -> None:
        self._first: dict[str, list[str]] = {}
        self._count: Counter[str] = Counter()
        self._all = _DiskLog()

    def add(self, kind: str, place: str) -> None:
        self._count[kind] += 1
        first = self._first.setdefault(kind, [])
        if len(first) < FIRST:
            first.append(place)
        self._all.add(kind, place)

    @property
    def kinds(self) -> list[str]:
        """The kinds in the order of their first finding."""
        return list(self._first)

    @property
    def total(self) -> int:
        return self._count.total()

    def count(self, kind: str) -> int:
        return self._count[kind]

    def first(self, kind: str) -> tuple[str, ...]:
        """Returns the first places of a kind, at most `FIRST`."""
        return tuple(self._first.get(kind, ()))

    def every(self, kind: str) -> Iterator[str]:
        """Yields all places of a kind."""
        return (place for name, place in self._all if name == kind)

    def places(self, kind: str, *, every: bool = False) -> str:
        """Returns the places of a kind as text: the first ones, or all."""
        return listed(self.every(kind)) if every else listed(self.first(kind), self.count(kind))


class RowProblems:
    """Collects problems of rows. A problem that many rows share is reported in one line."""

    def __init__(self) -> None:
        self.rows = FindingCounts()
        self._lines: dict[str, list[tuple[int, str]]] = {}
        """Kind -> (number of the problem, line) for the first rows."""
        self._text: dict[str, str] = {}
        """Kind -> text of its first problem."""

    @property
    def count(self) -> int:
        return self.rows.total

    def add(self, place: str, problem: str) -> None:
        kind = _VARIABLE_PART.sub("#", problem)
        self.rows.add(kind, place)
        self._text.setdefault(kind, problem)
        lines = self._lines.setdefault(kind, [])
        if len(lines) < FIRST:
            lines.append((self.count, f"{place}: {problem}"))

    def lines(self, *, every: bool = False) -> list[str]:
        """Returns one line per row in the order of the rows; problems of more than `FIRST` rows share one line.

        Args:
            every: shared lines list all rows instead of the first ones.
        """
        numbered: list[tuple[int, str]] = []
        for kind in self.rows.kinds[:KEPT_PROBLEMS]:
            count = self.rows.count(kind)
            if count <= FIRST:
                numbered += self._lines[kind]
            else:
                line = f"{self._text[kind]}: {counted(count, 'row')} ({self.rows.places(kind, every=every)})"
                numbered.append((self._lines[kind][0][0], line))
        lines = [line for _, line in sorted(numbered)]
        more = sum(self.rows.count(kind) for kind in self.rows.kinds[KEPT_PROBLEMS:])
        return [*lines, *([counted(more, "more problem")] if more else [])]


class NameCounts:
    """Counts in how many rows or messages a column or message key has a value."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Counts a name.

        Args:
            kind: what the name refers to: `column` or `message key`.
            name: the name of the column or key.
        """
        counts = self._counts.setdefault(kind, Counter())
        counts[name if name in counts or len(counts) < MAX_NAMES else "(others)"] += 1

    def line(self, heading: str, omitted: Collection[str] = ()) -> str | None:
        """Returns one line with all names but the omitted ones after the heading, or None if there are none."""
        parts = []
        for kind, all_counts in self._counts.items():
            counts = {name: count for name, count in all_counts.items() if name not in omitted}
            if not counts:
                continue
            unit = "message" if kind.startswith("message") else "row"
            names = ", ".join(f"{name!r} ({counted(count, unit)})" for name, count in counts.items())
            parts.append(f"{kind if len(counts) == 1 else kind + 's'} {names}")
        return f"{heading}: {'; '.join(parts)}" if parts else None
