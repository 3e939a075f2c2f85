"""What is found about rows: counted by kind, with the first places of each in memory and every place on disk."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator

from dartune.data.records import Demonstration
from dartune.errors import KEPT_PROBLEMS, counted

FIRST = 5
"""Places of a kind that are shown, and rows up to which each has a line of its own."""
MOST_NAMES = 1000
_VARIES = re.compile(r"\d+|'[^']*'|\"[^\"]*\"")
_NUMBERED = re.compile(r"(.* (?:line|row)) (\d+(?: \(.*\))?)")


def label(row: Demonstration) -> str:
    """How messages name a row: by file, line and its own id; by the id alone where no file has it."""
    return row.place or row.id


def listed(places: Iterable[str], count: int | None = None) -> str:
    """Places one after the other, the file named once: `d.jsonl line 3, 9, 12 and 4 more`."""
    shown, before = [], None
    for place in places:
        match = _NUMBERED.fullmatch(place)
        same = match is not None and match[1] == before
        before = match[1] if match else None
        shown.append(match[2] if same else place)
    more = 0 if count is None else count - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


class _Pages:
    """Lines of text in a temporary file, which goes with this object; the latest are in memory."""

    HELD = 1000

    def __init__(self) -> None:
        self._latest: list[str] = []
        self._file: int | None = None

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def add(self, *texts: str) -> None:
        self._latest.append(json.dumps(texts) + "\n")
        if len(self._latest) < self.HELD:
            return
        if self._file is None:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        left = "".join(self._latest).encode()
        while left:
            left = left[os.write(self._file, left) :]
        self._latest = []

    def __iter__(self) -> Iterator[list[str]]:
        if self._file is not None:
            at, rest = 0, b""
            while block := os.pread(self._file, 1 << 16, at):
                *lines, rest = (rest + block).split(b"\n")
                yield from map(json.loads, lines)
                at += len(block)
        yield from map(json.loads, self._latest)


class Tally:
    """Rows that share a finding, by its kind."""

    def __init__(self) -> None:
        self._first: dict[str, list[str]] = {}
        self._count: Counter[str] = Counter()
        self._all = _Pages()

    def add(self, kind: str, place: str) -> None:
        self._count[kind] += 1
        first = self._first.setdefault(kind, [])
        if len(first) < FIRST:
            first.append(place)
        self._all.add(kind, place)

    @property
    def kinds(self) -> list[str]:
        """In the order in which they were found first."""
        return list(self._first)

    @property
    def total(self) -> int:
        return self._count.total()

    def count(self, kind: str) -> int:
        return self._count[kind]

    def first(self, kind: str) -> tuple[str, ...]:
        """The first places of a kind, `FIRST` at most."""
        return tuple(self._first.get(kind, ()))

    def every(self, kind: str) -> Iterator[str]:
        """All places of a kind."""
        return (place for name, place in self._all if name == kind)

    def places(self, kind: str, *, every: bool = False) -> str:
        """The places of a kind as text: the first, or all."""
        return listed(self.every(kind)) if every else listed(self.first(kind), self.count(kind))


class RowProblems:
    """What is wrong with rows. A problem that many rows share is one line."""

    def __init__(self) -> None:
        self.rows = Tally()
        self._lines: dict[str, list[tuple[int, str]]] = {}
        self._text: dict[str, str] = {}

    @property
    def count(self) -> int:
        return self.rows.total

    def add(self, place: str, problem: str) -> None:
        kind = _VARIES.sub("#", problem)
        self.rows.add(kind, place)
        self._text.setdefault(kind, problem)
        lines = self._lines.setdefault(kind, [])
        if len(lines) < FIRST:
            lines.append((self.count, f"{place}: {problem}"))

    def lines(self, *, every: bool = False) -> list[str]:
        """One line a row in the order of the rows, one line for all rows of a kind that many have.

        Args:
            every: such lines name all rows, not the first ones.
        """
        found: list[tuple[int, str]] = []
        for kind in self.rows.kinds[:KEPT_PROBLEMS]:
            count = self.rows.count(kind)
            if count <= FIRST:
                found += self._lines[kind]
            else:
                said = f"{self._text[kind]}: {counted(count, 'row')} ({self.rows.places(kind, every=every)})"
                found.append((self._lines[kind][0][0], said))
        shown = [line for _, line in sorted(found)]
        more = sum(self.rows.count(kind) for kind in self.rows.kinds[KEPT_PROBLEMS:])
        return [*shown, *([counted(more, "more problem")] if more else [])]


class Names:
    """Columns and keys of messages, with how many rows or messages have something in them."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def add(self, what: str, name: str) -> None:
        """`what` is such as `column`; `name` what it is called."""
        counts = self._counts.setdefault(what, Counter())
        counts[name if name in counts or len(counts) < MOST_NAMES else "(others)"] += 1

    def line(self, what_of_them: str) -> str | None:
        """All of them in one line, behind what is said of them; None where there are none."""
        parts = []
        for what, counts in self._counts.items():
            unit = "message" if what.startswith("message") else "row"
            names = ", ".join(f"{name!r} ({counted(count, unit)})" for name, count in counts.items())
            parts.append(f"{what if len(counts) == 1 else what + 's'} {names}")
        return f"{what_of_them}: {'; '.join(parts)}" if parts else None
