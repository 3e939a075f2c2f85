"""Reads tables: CSV with commas, semicolons, tabs or bars, and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dartune.data.file_encoding import RawRow, open_bytes, text_rows, unreadable
from dartune.errors import counted

MAX_FIELD_CHARS = 2**31 - 1
"""The `csv` module's own limit of 128 KiB is too low for long solutions."""
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""Supported delimiters. The one that is most frequent in the header is used; ties go to the first."""


@text_rows
def csv_rows(path: Path, notes: list[str]) -> Iterator[RawRow]:
    """Yields the rows of a `.csv` or `.tsv` file. The delimiter is detected from the header.

    Spreadsheets often add blank rows and unnamed blank columns. Both are skipped; a note gives the number of rows.
    """
    csv.field_size_limit(MAX_FIELD_CHARS)
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        skipped, delimiter = _detect_delimiter(file)
        try:
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            header = next(reader, None)
        except (csv.Error, ValueError, TypeError) as error:  # the last two: an invalid delimiter after `sep=`
            yield RawRow(path.name, f"the header is invalid CSV: {error}")
            return
        if header is None:
            return
        header, blank = [name or f"(column {i})" for i, name in enumerate(header, start=1)], 0
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            yield RawRow(path.name, f"the header names these columns twice: {', '.join(repeated)}")
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
                yield RawRow(place, _row_content(header, values, DELIMITERS.get(delimiter, delimiter)))
            else:
                blank += bool(values)
        if blank:
            notes.append(f"{path.name}: {counted(blank, 'blank row was', 'blank rows were')} skipped")


def _detect_delimiter(file: io.TextIOWrapper) -> tuple[int, str]:
    """Returns the number of lines before the header (Excel's `sep=;`) and the delimiter; seeks to the header."""
    start = file.tell()
    line = file.readline()
    if line.lower().startswith("sep=") and len(line.strip()) == 5:
        return 1, line.strip()[4]
    if line.rstrip("\r\n").lower() == "sep=\t":
        return 1, "\t"
    file.seek(start)

    def field_count(delimiter: str) -> int:
        try:
            return len(next(csv.reader([line], delimiter=delimiter), []))
        except csv.Error:
            return 0

    return 0, max(DELIMITERS, key=field_count)


def _row_content(header: list[str], values: list[str], delimiter: str) -> dict[str, Any] | str:
    if len(values) != len(header):
        return f"has {len(values)} fields, the header has {len(header)}; quote fields that contain {delimiter}"
    for name, value in zip(header, values, strict=True):
        # `surrogateescape` maps bytes that are not valid UTF-8 to these characters.
        if any("\udc80" <= char <= "\udcff" for char in value):
            return f"{name}: invalid UTF-8; save the file as UTF-8"
    row = dict(zip(header, values, strict=True))
    return {name: value for name, value in row.items() if value or not name.startswith("(column ")}


def parquet_rows(path: Path, notes: list[str]) -> Iterator[RawRow]:
    """Yields the rows of a Parquet file; places are row numbers, structs become dicts."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        if repeated := _repeated_names(file.schema_arrow):
            yield RawRow(path.name, f"has several columns of these names: {', '.join(repeated)}")
            return
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for index in range(batch.num_rows):
                number += 1
                yield RawRow(f"{path.name} row {number}", _arrow_row(batch, index))
    except PermissionError as error:
        yield RawRow(path.name, unreadable(error))
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a column name that is not Unicode
        yield RawRow(path.name, f"cannot be read as Parquet: {error}")


def _repeated_names(fields: Any) -> list[str]:
    """Returns the names that a schema or a struct in it gives to several columns. `to_pylist` keeps only the last."""
    fields = list(fields)
    names = [field.name for field in fields]
    repeated = {name for name in names if names.count(name) > 1}
    for field in fields:
        kind = field.type
        inner = [kind.field(index) for index in range(kind.num_fields)]
        repeated.update(f"{field.name}.{name}" for name in (_repeated_names(inner) if inner else ()))
    return sorted(repeated)


def _arrow_row(batch: Any, index: int) -> dict[str, Any] | str:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start + 1} of a field"
    except (ValueError, ArithmeticError, LookupError) as error:  # a date in the year 300 000, an unknown time zone
        return f"has a value that Python cannot represent: {error}"
