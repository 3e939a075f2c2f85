"""Tables: CSV with commas, semicolons, tabs or bars, and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dartune.data.opened import RawRow, opened, text_rows, unreadable
from dartune.errors import counted

LONGEST_FIELD = 2**31 - 1
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""What may stand between the fields of a line; of those that the header has most often, the first counts."""


@text_rows
def csv_rows(path: Path, notes: list[str]) -> Iterator[RawRow]:
    """Rows of a `.csv` or `.tsv` file; its header says what stands between fields.

    Spreadsheets often add blank rows and unnamed blank columns. Both are skipped; a note gives the number of rows.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with io.TextIOWrapper(opened(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        skipped, delimiter = _dialect(file)
        try:
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            header = next(reader, None)
        except (csv.Error, ValueError, TypeError) as error:  # the last two: a delimiter that cannot be one
            yield RawRow(path.name, f"the header is invalid CSV: {error}")
            return
        if header is None:
            return
        header, blank = [name or f"(column {i})" for i, name in enumerate(header, start=1)], 0
        if twice := sorted({name for name in header if header.count(name) > 1}):
            yield RawRow(path.name, f"the header names these columns twice: {', '.join(twice)}")
            return
        while True:
            place = f"{path.name} line {reader.line_num + 1 + skipped}"
            try:
                values = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                yield RawRow(place, f"invalid CSV: {error}")
                continue
            if any(value.strip() for value in values):
                yield RawRow(place, _named_values(header, values, DELIMITERS.get(delimiter, delimiter)))
            else:
                blank += bool(values)
        if blank:
            notes.append(f"{path.name}: {counted(blank, 'blank row is', 'blank rows are')} left out")


def _dialect(file: io.TextIOWrapper) -> tuple[int, str]:
    """Lines before the header (Excel's `sep=;`), and what stands between fields; the file is left at the header."""
    start = file.tell()
    first = file.readline()
    if first.lower().startswith("sep=") and len(first.strip()) == 5:
        return 1, first.strip()[4]
    if first.rstrip("\r\n").lower() == "sep=\t":
        return 1, "\t"
    file.seek(start)

    def fields(delimiter: str) -> int:
        try:
            return len(next(csv.reader([first], delimiter=delimiter), []))
        except csv.Error:
            return 0

    return 0, max(DELIMITERS, key=fields)


def _named_values(header: list[str], values: list[str], delimiter: str) -> dict[str, Any] | str:
    if len(values) != len(header):
        return f"has {len(values)} fields, the header has {len(header)}; quote fields that contain {delimiter}"
    for name, value in zip(header, values, strict=True):
        # `surrogateescape` stands in for a byte that is no UTF-8.
        if any("\udc80" <= char <= "\udcff" for char in value):
            return f"{name}: invalid UTF-8; save the file as UTF-8"
    row = dict(zip(header, values, strict=True))
    return {name: value for name, value in row.items() if value or not name.startswith("(column ")}


def parquet_rows(path: Path, notes: list[str]) -> Iterator[RawRow]:
    """Rows of a Parquet file, by number; structs are objects."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        if twice := _named_twice(file.schema_arrow):
            yield RawRow(path.name, f"has several columns of these names: {', '.join(twice)}")
            return
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for index in range(batch.num_rows):
                number += 1
                yield RawRow(f"{path.name} row {number}", _arrow_row(batch, index))
    except PermissionError as error:
        yield RawRow(path.name, unreadable(error))
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # a column name may be no Unicode
        yield RawRow(path.name, f"cannot be read as Parquet: {error}")


def _named_twice(fields: Any) -> list[str]:
    """Names that a schema, or a struct in it, gives to several columns: only the last of them would be read."""
    fields = list(fields)
    names = [field.name for field in fields]
    found = {name for name in names if names.count(name) > 1}
    for field in fields:
        kind = field.type
        inner = [kind.field(index) for index in range(kind.num_fields)]
        found.update(f"{field.name}.{name}" for name in (_named_twice(inner) if inner else ()))
    return sorted(found)


def _arrow_row(batch: Any, index: int) -> dict[str, Any] | str:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start + 1} of a field"
    except (ValueError, ArithmeticError, LookupError) as error:  # a date in the year 300 000, an unknown time zone
        return f"has a value that Python cannot hold: {error}"
