"""Reads demonstrations from files, folders and the Hub; reports all bad rows at once, by place and field."""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

from dartune.data.columns import Field, choose_layout, column_names, fitting, named
from dartune.data.findings import RowProblems, Tally
from dartune.data.layouts import PublicLayout, recognised
from dartune.data.opened import RawRow
from dartune.data.parse import Shape, parse_row
from dartune.data.readers import read_rows
from dartune.data.records import Demonstration
from dartune.data.rows import Rows, Spool, demonstration
from dartune.errors import InputError, counted
from dartune.redaction import printable, shown

logger = logging.getLogger(__name__)

LOOKED_AT = 100
"""So many readable rows are looked at for one that fits a layout."""
NUMBERED = re.compile(r" (?:line|row) \d+$")
"""The place of a row, not of a whole file."""
LONGEST_NAME = 80
"""Characters of an id that messages show."""
REPEATED, RENAMED = "repeated", "renamed"


@dataclass
class Read:
    """A data set as it was read: its good rows, what is wrong with the others, and what is worth knowing.

    Args:
        notes: what was not read, one line each.
        repeats: rows that repeat an earlier one, and rows whose id another one has.
        facts: how rows were read, where that is no matter of course.
    """

    path: str | Path
    rows: Rows[Demonstration]
    problems: RowProblems
    notes: list[str] = field(default_factory=list)
    repeats: Tally = field(default_factory=Tally)
    facts: list[str] = field(default_factory=list)

    def error(self, *, every: bool = False) -> InputError | None:
        """What is wrong with rows, all at once; None where nothing is.

        Args:
            every: all rows are named, not only the first of those with the same problem.
        """
        count, good = self.problems.count, len(self.rows)
        if not count:
            return None
        kept = f"; {counted(good, 'other is', 'others are')} good" if good else ""
        remedy = "; correct or remove these rows" if count > 1 else "; correct or remove this row"
        of_rows = any(
            NUMBERED.search(place) for kind in self.problems.rows.kinds for place in self.problems.rows.first(kind)
        )
        message = f"{self.path}: {counted(count, 'problem')} in the data{kept}{remedy if of_rows else ''}"
        return InputError(message, self.problems.lines(every=every))

    def warnings(self, *, every: bool = False, repeats: bool = True) -> list[str]:
        """What was not read or was changed, one line each; `repeats` names rows that repeat another."""
        lines = list(self.notes)
        if repeats and (count := self.repeats.count(REPEATED)):
            shown = self.repeats.places(REPEATED, every=every)
            lines.append(f"{self.path}: {counted(count, 'row repeats', 'rows repeat')} an earlier one (kept): {shown}")
        if count := self.repeats.count(RENAMED):
            shown = self.repeats.places(RENAMED, every=every)
            have = counted(count, "row has", "rows have")
            lines.append(f"{self.path}: {have} the id of an earlier row; a suffix (-2, -3, ...) was added: {shown}")
        return lines


def load_demonstrations(
    path: str | Path,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    thinking: bool = False,
    task: str = "math",
) -> Rows[Demonstration]:
    """Reads and checks a data set, row by row into a temporary file: its size is no matter of memory.

    What is not used (columns, keys of messages, files of a folder) is logged as a warning.

    Args:
        path: a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file, a text also as .gz; a folder of such files or one
            written by `datasets.save_to_disk`; or `hub:<owner>/<name>[:<config>][@<revision>][#<split>]`, the only
            form that uses the network.
        split: which split of a folder, or of a Hub data set whose address names none.
        columns: our field -> their column or a template of columns, for any of `columns.FIELDS`.
        limit: number of rows to read, from the first on.
        thinking: reasoning in a key or column of its own is joined as a `<think>` block; else it is refused.
        task: the family of the answers, by which an option's number becomes its label (`choice`) or its text.

    Raises:
        InputError: with one line per bad row in `.problems`, or per problem that many rows have; no row is ever left
            out silently.
    """
    read = read_demonstrations(path, split=split, columns=columns, limit=limit, thinking=thinking, task=task)
    for line in read.warnings():
        logger.warning("%s", printable(line))
    if error := read.error():
        raise error
    return read.rows


def read_demonstrations(
    path: str | Path,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    thinking: bool = False,
    task: str = "math",
    tested: bool = False,
) -> Read:
    """As `load_demonstrations`, with what is wrong with rows beside the good ones.

    Args:
        tested: the rows are only tested on: those of questions and answers need no solution.

    Raises:
        InputError: there are no rows, or they fit no layout.
    """
    notes: list[str] = []
    rows = read_rows(path, split, notes)
    path = shown(path)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path} holds no rows; expected one demonstration per row, see docs/data-format.md")
    columns = dict(columns or {})
    rows, samples, struct = _telling(chain([first], rows), columns)
    if struct:
        notes.append(f"{path}: question and solution are read from the column {struct!r}")
        rows = (row._replace(content=_unwrapped(row.content, struct)) for row in rows)
        samples = [_unwrapped(row, struct) for row in samples]
    shape = Shape("", {}, thinking=thinking, task=task)
    public = recognised(samples[0]) if samples and not columns and not fitting(samples[0]) else None
    if public:
        rows = (row._replace(content=_tidied(row.content, public)) for row in rows)
        fields = {"id": "id", **public.fields}
        shape = replace(shape, layout=public.base, fields=_fields(fields, ()), also=public.also)
    elif samples:
        try:
            layout, fields = choose_layout(samples, columns, path, tested=tested)
        except InputError as error:
            raise _with_the_rest(error, rows, limit, notes) from error
        fields = _fields(fields, column_names(samples[0]))
        shape = replace(shape, layout=layout, fields=fields)
    read = _collect(rows, shape, limit, path)
    unused, joined = shape.unused.line("not used"), shape.joined.line("joined with question and solution")
    read.notes += [*notes, *([f"{path}: {unused}"] if unused else [])]
    read.facts += [f"{path}: {joined}"] if joined else []
    return read


def _with_the_rest(error: InputError, rows: Iterator[RawRow], limit: int | None, notes: list[str]) -> InputError:
    """An error about the layout, with the rows that cannot be read at all as well; notes go with it."""
    problems = RowProblems()
    for row in islice(rows, limit):
        if isinstance(row.content, str):
            problems.add(row.place, row.content)
    found = InputError(error.message, [*error.problems, *problems.lines()])
    for note in notes:
        found.add_note(note)
    return found


def _fields(fields: Mapping[str, str], names: Sequence[str]) -> dict[str, Field]:
    return {name: Field(text, names) for name, text in fields.items()}


def _tidied(content: dict[str, Any] | str, public: PublicLayout) -> dict[str, Any] | str:
    needed = [column for name, column in public.fields.items() if name not in public.optional]
    complete = not isinstance(content, str) and all(column in content for column in needed)
    return public.tidy(content) if complete else content


def _unwrapped(content: dict[str, Any] | str, struct: str) -> dict[str, Any] | str:
    """A row with the columns of one of its structs as its own."""
    if isinstance(content, str) or not isinstance(content.get(struct), Mapping):
        return content
    inner = content[struct]
    # An outer column with the name of a struct's column is renamed, so that it is reported as not used.
    outer = {f"{name} (beside {struct})" if name in inner else name: value for name, value in content.items()}
    same = {f"{name} (beside {struct})" for name, value in inner.items() if content.get(name) == value}
    return {**{name: value for name, value in outer.items() if name != struct and name not in same}, **inner}


def _telling(
    rows: Iterator[RawRow], columns: Mapping[str, str]
) -> tuple[Iterator[RawRow], list[dict[str, Any]], str | None]:
    """All rows, some contents of which the first shows the layout, and the struct that it is in, if it is in one.

    The layout shows in the first row that fits one, else in the first readable one, so a bad first row is then told
    like any other.
    """
    passed, readable = [], []
    for row in rows:
        passed.append(row)
        if isinstance(row.content, str):
            continue
        if _fits(row.content, columns):
            return chain(passed, rows), [row.content], None
        readable.append(row.content)
        if len(readable) == LOOKED_AT:
            break
    for content in () if columns else readable:
        structs = [name for name, value in content.items() if isinstance(value, Mapping) and _fits(value, {})]
        if len(structs) == 1:
            return chain(passed, rows), [content], structs[0]
    return chain(passed, rows), readable, None


def _fits(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    if not columns:
        return bool(fitting(row)) or recognised(dict(row)) is not None
    names = column_names(row)
    try:
        needed = {name for text in columns.values() for name in Field(text, names).columns}
    except ValueError:
        return False
    return needed <= set(names) and bool(fitting(named(names, columns)))


def _collect(rows: Iterator[RawRow], shape: Shape, limit: int | None, path: str | Path) -> Read:
    problems, repeats = RowProblems(), Tally()
    with Spool() as spool, _Names() as names:
        for row in islice(rows, limit):
            if isinstance(row.content, str):
                problems.add(row.place, row.content)
                continue
            found, complaints = parse_row(row.content, shape)
            for complaint in complaints:
                problems.add(row.place, complaint)
            if found is None:
                continue
            text = _text_hash(found)
            name = found.id or text[:16]
            called = shown(repr(found.id), LONGEST_NAME)
            row_place = f"{row.place} ({called})" if found.id else row.place
            if known := names.get(name):
                place, earlier = known
                if earlier == text:
                    repeats.add(REPEATED, f"{row.place} repeats {place}")
                else:
                    repeats.add(RENAMED, f"{row.place} ({called} as in {place})")
                name = names.next_free(name)
            names.add(name, row.place, text)
            spool.add(asdict(replace(found, id=name, place=row_place)))
        return Read(path, spool.rows(demonstration), problems, [], repeats)


class _Names:
    """Ids given so far, with the place and the text's hash of their rows, in a temporary database on disk."""

    def __enter__(self) -> Self:
        self._rows = sqlite3.connect("")
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute(
            "CREATE TABLE names (name TEXT PRIMARY KEY, place TEXT, text TEXT, next INTEGER) WITHOUT ROWID"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def get(self, name: str) -> tuple[str, str] | None:
        return self._rows.execute("SELECT place, text FROM names WHERE name = ?", (name,)).fetchone()

    def add(self, name: str, place: str, text: str) -> None:
        self._rows.execute("INSERT INTO names VALUES (?, ?, ?, 2)", (name, place, text))

    def next_free(self, name: str) -> str:
        """`name` with the first number from 2 on that nobody has."""
        (number,) = self._rows.execute("SELECT next FROM names WHERE name = ?", (name,)).fetchone()
        while self.get(f"{name}-{number}"):
            number += 1
        self._rows.execute("UPDATE names SET next = ? WHERE name = ?", (number + 1, name))
        return f"{name}-{number}"


def _text_hash(row: Demonstration) -> str:
    content = "\0".join([row.meta.get("system", ""), row.question, row.solution, row.answer or ""])
    return hashlib.sha256(content.encode()).hexdigest()
