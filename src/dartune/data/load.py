"""Reads demonstrations from files, folders and the Hub, and reports all bad rows at once by place and field."""

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

from dartune.data.columns import Field, choose_layout, column_names, map_fields, matching_layouts
from dartune.data.file_encoding import RawRow
from dartune.data.findings import FindingCounts, RowProblems
from dartune.data.public_datasets import PublicLayout, detect_public_layout
from dartune.data.readers import read_rows
from dartune.data.records import Demonstration
from dartune.data.row_filter import RowFilter
from dartune.data.row_parser import RowSchema, parse_row
from dartune.data.row_store import Rows, RowWriter, demonstration_from_dict
from dartune.errors import InputError, counted
from dartune.run.redaction import printable, shown

logger = logging.getLogger(__name__)

LAYOUT_SAMPLE_ROWS = 100
"""Number of readable rows that are searched for one that fits a layout."""
ROW_PLACE = re.compile(r" (?:line|row) \d+$")
"""The place of a single row, as opposed to the place of a whole file."""
MAX_ID_CHARS = 80
"""Longer ids are shortened in messages."""
REPEATED, RENAMED = "repeated", "renamed"


@dataclass
class LoadedData:
    """The result of reading a data set: its valid rows, the problems of the other rows, and notes.

    Args:
        notes: input that was not read, one line each.
        repeats: rows that repeat an earlier row, and rows whose id belongs to an earlier row.
        facts: how rows were read, where this is not obvious from the data.
        selection: how many rows `where` keeps; empty without it.
    """

    path: str | Path
    rows: Rows[Demonstration]
    problems: RowProblems
    notes: list[str] = field(default_factory=list)
    repeats: FindingCounts = field(default_factory=FindingCounts)
    facts: list[str] = field(default_factory=list)
    selection: str = ""

    def error(self, *, every: bool = False) -> InputError | None:
        """Returns all problems of rows as one error, or None if there are none.

        Args:
            every: name all rows instead of the first rows with each problem.
        """
        count, good = self.problems.count, len(self.rows)
        if not count:
            return None
        valid = f"; {counted(good, 'other is', 'others are')} good" if good else ""
        remedy = "; correct or remove these rows" if count > 1 else "; correct or remove this row"
        # A problem of a whole file, such as its encoding, has its own remedy.
        concerns_rows = any(
            ROW_PLACE.search(place) for kind in self.problems.rows.kinds for place in self.problems.rows.first(kind)
        )
        message = f"{self.path}: {counted(count, 'problem')} in the data{valid}{remedy if concerns_rows else ''}"
        return InputError(message, self.problems.lines(every=every))

    def warnings(self, *, every: bool = False, repeats: bool = True) -> list[str]:
        """Returns what was not read or was changed, one line each.

        Args:
            every: name all rows instead of the first ones.
            repeats: include the rows that repeat an earlier row.
        """
        lines = list(self.notes)
        if repeats and (count := self.repeats.count(REPEATED)):
            places = self.repeats.places(REPEATED, every=every)
            lines.append(f"{self.path}: {counted(count, 'row repeats', 'rows repeat')} an earlier one (kept): {places}")
        if count := self.repeats.count(RENAMED):
            places = self.repeats.places(RENAMED, every=every)
            subject = counted(count, "row has", "rows have")
            lines.append(f"{self.path}: {subject} the id of an earlier row; a suffix (-2, -3, ...) was added: {places}")
        return lines


def load_demonstrations(
    path: str | Path,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    thinking: bool = False,
    task: str = "math",
    where: str | None = None,
) -> Rows[Demonstration]:
    """Reads and checks a data set.

    Rows are written to a temporary file one by one, so that memory use does not grow with their length. Input that is
    not used (columns, message keys, files of a folder) is logged as a warning.

    Args:
        path: a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file (text formats also as .gz); a folder of such files
            or one written by `datasets.save_to_disk`, with `#<split>` behind it if it is not `split`; or
            `hub:<owner>/<name>[:<config>][@<revision>][#<split>]`, the only form that uses the network.
        split: the split of a folder or of a Hub data set whose address names none.
        columns: maps fields of `columns.FIELDS` to a column of the data or a template of columns.
        limit: number of rows to read, starting with the first; of those that `where` keeps.
        thinking: reasoning in a separate key or column becomes a `<think>` block. False: such rows are refused.
        task: the task family. An answer given as an option's number becomes its label (`choice`) or its text (others).
        where: condition on the columns of a row (docs/data-format.md); other rows are left out.

    Raises:
        InputError: with one line in `.problems` per bad row, or per problem that many rows share. No row is skipped
            silently.
    """
    read = read_demonstrations(
        path, split=split, columns=columns, limit=limit, thinking=thinking, task=task, where=where
    )
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
    where: str | None = None,
) -> LoadedData:
    """Like `load_demonstrations`, but returns the problems of rows together with the valid rows.

    Args:
        tested: the rows are used for tests only, so rows with a question and an answer need no solution.

    Raises:
        InputError: there are no rows, or they fit no layout.
    """
    notes: list[str] = []
    rows = read_rows(path, split, notes)
    path = shown(path)
    selected = RowFilter(path, where) if where else None
    if selected:
        rows = selected.apply(rows)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path} holds no rows; expected one demonstration per row, see docs/data-format.md")
    columns = dict(columns or {})
    rows, samples, struct = _sample_rows(chain([first], rows), columns)
    if struct:
        notes.append(f"{path}: question and solution are read from the column {struct!r}")
        rows = (row._replace(content=_unwrap_struct(row.content, struct)) for row in rows)
        samples = [row for row in (_unwrap_struct(row, struct) for row in samples) if not isinstance(row, str)]
    schema = RowSchema("", {}, thinking=thinking, task=task)
    # A column map of the user, or a layout of our own, takes precedence over the layouts of public data sets.
    public = detect_public_layout(samples[0]) if samples and not columns and not matching_layouts(samples[0]) else None
    if public:
        rows = (row._replace(content=_clean_public_row(row.content, public)) for row in rows)
        fields = {"id": "id", **public.fields}
        schema = replace(schema, layout=public.base, fields=_fields(fields, ()), also=public.also)
    elif samples:
        try:
            layout, fields = choose_layout(samples, columns, path, tested=tested)
        except InputError as error:
            raise _with_unreadable_rows(error, rows, limit, notes) from error
        fields = _fields(fields, column_names(samples[0]))
        schema = replace(schema, layout=layout, fields=fields)
    read = _collect(rows, schema, limit, path)
    read.selection = selected.line if selected else ""
    unused = schema.unused.line("not used", selected.columns if selected else ())
    joined = schema.joined.line("joined with question and solution")
    read.notes += [*notes, *([f"{path}: {unused}"] if unused else [])]
    read.facts += [f"{path}: {joined}"] if joined else []
    return read


def _with_unreadable_rows(error: InputError, rows: Iterator[RawRow], limit: int | None, notes: list[str]) -> InputError:
    """Adds the unreadable rows and the notes to an error about the layout, so that one run reports all of them."""
    problems = RowProblems()
    for row in islice(rows, limit):
        if isinstance(row.content, str):
            problems.add(row.place, row.content)
    extended = InputError(error.message, [*error.problems, *problems.lines()])
    for note in notes:
        extended.add_note(note)
    return extended


def _fields(fields: Mapping[str, str], names: Sequence[str]) -> dict[str, Field]:
    return {name: Field(text, names) for name, text in fields.items()}


def _clean_public_row(content: dict[str, Any] | str, public: PublicLayout) -> dict[str, Any] | str:
    required = [column for name, column in public.fields.items() if name not in public.optional]
    complete = not isinstance(content, str) and all(column in content for column in required)
    return public.tidy(content) if complete and not isinstance(content, str) else content


def _unwrap_struct(content: dict[str, Any] | str, struct: str) -> dict[str, Any] | str:
    """Moves the columns of a struct to the top level of the row."""
    if isinstance(content, str) or not isinstance(content.get(struct), Mapping):
        return content
    inner = content[struct]
    # An outer column with the same name as an inner one is renamed, so that it is reported as not used.
    outer = {f"{name} (beside {struct})" if name in inner else name: value for name, value in content.items()}
    duplicates = {f"{name} (beside {struct})" for name, value in inner.items() if content.get(name) == value}
    return {**{name: value for name, value in outer.items() if name != struct and name not in duplicates}, **inner}


def _sample_rows(
    rows: Iterator[RawRow], columns: Mapping[str, str]
) -> tuple[Iterator[RawRow], list[dict[str, Any]], str | None]:
    """Returns all rows, the contents that show the layout, and the struct that holds the layout's columns, if any.

    The layout is taken from the first row that fits one, otherwise from the first readable row. A bad first row is
    therefore reported like any other bad row.
    """
    consumed, readable = [], []
    for row in rows:
        consumed.append(row)
        if isinstance(row.content, str):
            continue
        if _fits_layout(row.content, columns):
            return chain(consumed, rows), [row.content], None
        readable.append(row.content)
        if len(readable) == LAYOUT_SAMPLE_ROWS:
            break
    for content in () if columns else readable:
        structs = [name for name, value in content.items() if isinstance(value, Mapping) and _fits_layout(value, {})]
        if len(structs) == 1:
            return chain(consumed, rows), [content], structs[0]
    return chain(consumed, rows), readable, None


def _fits_layout(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
    if not columns:
        return bool(matching_layouts(row)) or detect_public_layout(dict(row)) is not None
    names = column_names(row)
    try:
        required = {name for text in columns.values() for name in Field(text, names).columns}
    except ValueError:
        return False
    return required <= set(names) and bool(matching_layouts(map_fields(names, columns)))


def _collect(rows: Iterator[RawRow], schema: RowSchema, limit: int | None, path: str | Path) -> LoadedData:
    """Parses all rows. Rows without an id get a hash of their text; a repeated id gets a numeric suffix."""
    problems, repeats = RowProblems(), FindingCounts()
    with RowWriter() as spool, _IdRegistry() as ids:
        for row in islice(rows, limit):
            if isinstance(row.content, str):
                problems.add(row.place, row.content)
                continue
            parsed, complaints = parse_row(row.content, schema)
            for complaint in complaints:
                problems.add(row.place, complaint)
            if parsed is None:
                continue
            text_hash = _text_hash(parsed)
            row_id = parsed.id or text_hash[:16]
            short_id = shown(repr(parsed.id), MAX_ID_CHARS)
            row_place = f"{row.place} ({short_id})" if parsed.id else row.place
            if earlier := ids.get(row_id):
                place, earlier_hash = earlier
                if earlier_hash == text_hash:
                    repeats.add(REPEATED, f"{row.place} repeats {place}")
                else:
                    repeats.add(RENAMED, f"{row.place} ({short_id} as in {place})")
                row_id = ids.next_free(row_id)
            ids.add(row_id, row.place, text_hash)
            spool.add(asdict(replace(parsed, id=row_id, place=row_place)))
        return LoadedData(path, spool.rows(demonstration_from_dict), problems, [], repeats)


class _IdRegistry:
    """The ids assigned so far, each with the place and the text hash of its row.

    A temporary SQLite database holds them on disk, because a dict of all ids would grow with the data set.
    """

    def __enter__(self) -> Self:
        self._database = sqlite3.connect("")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(
            "CREATE TABLE ids (id TEXT PRIMARY KEY, place TEXT, text_hash TEXT, next INTEGER) WITHOUT ROWID"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def get(self, row_id: str) -> tuple[str, str] | None:
        """Returns the place and the text hash of the row with this id."""
        return self._database.execute("SELECT place, text_hash FROM ids WHERE id = ?", (row_id,)).fetchone()

    def add(self, row_id: str, place: str, text_hash: str) -> None:
        self._database.execute("INSERT INTO ids VALUES (?, ?, ?, 2)", (row_id, place, text_hash))

    def next_free(self, row_id: str) -> str:
        """Returns `row_id` with the first suffix from 2 on that is not in use."""
        # The next suffix is stored, because a search from 2 for each of n repeats would take n^2 look-ups.
        (number,) = self._database.execute("SELECT next FROM ids WHERE id = ?", (row_id,)).fetchone()
        while self.get(f"{row_id}-{number}"):
            number += 1
        self._database.execute("UPDATE ids SET next = ? WHERE id = ?", (number + 1, row_id))
        return f"{row_id}-{number}"


def _text_hash(row: Demonstration) -> str:
    content = "\0".join([row.meta.get("system", ""), row.question, row.solution, row.answer or ""])
    return hashlib.sha256(content.encode()).hexdigest()
