"""Writes rows with arbitrary columns to a Parquet, JSONL or CSV file, with memory for a block of rows at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dartune.data.file_encoding import format_suffix
from dartune.run.files import DRAFT, sync, writing

if TYPE_CHECKING:
    import pyarrow

Row = Mapping[str, Any]
FORMATS = (".parquet", ".jsonl", ".csv")
ROWS_AT_ONCE = 1000
"""Rows of a block: a row group of a Parquet file."""


def column_types(rows: Iterable[Row], source: Path | None = None) -> tuple[dict[str, pyarrow.DataType], list[str]]:
    """Returns the Arrow type of every column that occurs in a row, and the problems of columns without a single type.

    Args:
        rows: all rows; they are read once.
        source: the file of the rows. If it is a Parquet file, its own types are returned.
    """
    import pyarrow
    from pyarrow import parquet

    if source is not None and source.is_file() and format_suffix(source) == ".parquet":
        return {field.name: field.type for field in parquet.read_schema(source)}, []
    types: dict[str, pyarrow.DataType] = {}
    problems: dict[str, str] = {}
    rows = iter(rows)
    while block := list(islice(rows, ROWS_AT_ONCE)):
        for name in dict.fromkeys(name for row in block for name in row):
            known = [pyarrow.schema([(name, types[name])])] if name in types else []
            try:
                values = pyarrow.array([row.get(name) for row in block])
                schema = pyarrow.unify_schemas(
                    [*known, pyarrow.schema([(name, values.type)])], promote_options="permissive"
                )
                types[name] = schema.field(name).type
            except (pyarrow.ArrowException, OverflowError, ValueError) as error:
                types.setdefault(name, pyarrow.null())
                problems.setdefault(name, f"the column {name!r} has no single type: {_first_line(error)}")
    return types, list(problems.values())


def write_problems(path: Path, types: Mapping[str, pyarrow.DataType]) -> list[str]:
    """Returns the problems of columns whose type the format of `path` cannot hold."""
    import pyarrow
    from pyarrow import csv, parquet

    problems = []
    for name, kind in types.items():
        schema = pyarrow.schema([(name, kind)])
        empty = pyarrow.array([None], kind)
        try:
            if path.suffix == ".parquet":
                parquet.ParquetWriter(pyarrow.BufferOutputStream(), schema).close()
            elif path.suffix == ".csv":
                csv.write_csv(pyarrow.table([empty], schema=schema), pyarrow.BufferOutputStream())
            else:
                _json_value_of(kind)
        except (pyarrow.ArrowException, TypeError) as error:
            problems.append(
                f"the column {name!r} of type {kind} cannot be written as {path.suffix}: {_first_line(error)}"
            )
    return problems


@contextmanager
def table_writer(path: Path, types: Mapping[str, pyarrow.DataType]) -> Iterator[Callable[[Sequence[Row]], None]]:
    """Opens a table for writing; yields a function that appends rows.

    The rows go to a draft, which is renamed to `path` at the end of the block and removed after an error.

    Args:
        path: the suffix is one of `FORMATS`.
        types: the type of every column, in order. JSONL rows keep their own columns.
    """
    draft = path.with_name(f".{path.name}{DRAFT}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _jsonl_writer(draft) if path.suffix == ".jsonl" else _arrow_writer(draft, path.suffix, types) as add:
                yield add
            sync(draft)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def _jsonl_writer(draft: Path) -> Iterator[Callable[[Sequence[Row]], None]]:
    with draft.open("w", encoding="utf-8", newline="\n") as file:
        yield lambda rows: file.writelines(
            json.dumps(row, ensure_ascii=False, default=_json_value) + "\n" for row in rows
        )


@contextmanager
def _arrow_writer(
    draft: Path, suffix: str, types: Mapping[str, pyarrow.DataType]
) -> Iterator[Callable[[Sequence[Row]], None]]:
    import pyarrow
    from pyarrow import csv, parquet

    schema = pyarrow.schema(list(types.items()))
    writer = parquet.ParquetWriter(draft, schema) if suffix == ".parquet" else csv.CSVWriter(draft, schema)
    with writer:
        yield lambda rows: writer.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows], schema=schema))


def _json_value(value: Any) -> Any:
    """Converts a value that JSON does not have: dates and times to ISO text, decimals to text."""
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value)


def _json_value_of(kind: pyarrow.DataType) -> None:
    """Raises a TypeError if JSON cannot hold values of this type, or of a type inside it."""
    from pyarrow import types

    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        raise TypeError("JSON has no bytes")
    for index in range(kind.num_fields):
        _json_value_of(kind.field(index).type)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
