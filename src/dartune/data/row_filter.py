"""Keeps the rows of a data set that a condition holds for (`data.where`), block by block as they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import date
from decimal import Decimal
from itertools import islice
from typing import Any

from dartune.config.condition import NUMBER, TEXT, TRUTH, Condition
from dartune.data.columns import FieldError, column_names, column_value
from dartune.data.file_encoding import RawRow
from dartune.errors import InputError
from dartune.run.number_format import thousands

BLOCK = 1000
"""Rows that are in memory together."""
LISTED_COLUMNS = 100
"""Existing columns that a message lists."""
TRUTHS = {"true": True, "false": False}


class RowFilter:
    """Keeps the rows that a condition holds for.

    Rows that cannot be read are passed on. A row with a value that cannot be compared becomes a row with a problem.

    Args:
        path: the data, for messages.
        text: the condition.
    """

    def __init__(self, path: str, text: str) -> None:
        self.path, self.condition = path, Condition(text)
        self.total = self.kept = self._problems = 0
        self._existing: set[str] = set()
        """Columns of the condition that occur in a row."""
        self._columns: dict[str, None] = {}
        """Columns of the rows so far, for messages."""

    @property
    def columns(self) -> set[str]:
        """The columns of the condition, and the structs they are in."""
        return {name for column in self.condition.kinds for name in (column, column.partition(".")[0])}

    @property
    def line(self) -> str:
        """How many of the rows read so far are kept."""
        return f"{self.path}: data.where keeps {thousands(self.kept)} of {thousands(self.total)} rows"

    def apply(self, rows: Iterator[RawRow]) -> Iterator[RawRow]:
        """Yields the rows that are kept.

        Raises:
            InputError: at the end: the condition names a column that no row has, or holds for no row.
        """
        while block := list(islice(rows, BLOCK)):
            yield from self._kept(block)
        if self.total and (missing := [name for name in self.condition.kinds if name not in self._existing]):
            names, existing = (", ".join(map(repr, columns)) for columns in (missing, self._columns))
            raise InputError(f"{self.path}: data.where names {names}, which no row has; columns found: {existing}")
        if self.total and not self.kept and not self._problems:
            raise InputError(
                f"{self.path}: data.where keeps none of the {thousands(self.total)} rows: {self.condition.text}"
            )

    def _kept(self, block: list[RawRow]) -> Iterator[RawRow]:
        import pyarrow

        values: dict[str, list[Any]] = {name: [] for name in self.condition.kinds}
        problems: dict[int, str] = {}
        for index, row in enumerate(block):
            content = {} if isinstance(row.content, str) else row.content
            self.total += not isinstance(row.content, str)
            if len(self._columns) < LISTED_COLUMNS:
                self._columns |= dict.fromkeys(column_names(content))
            for name, kind in self.condition.kinds.items():
                try:
                    values[name].append(self._converted(content, name, kind))
                except ValueError as error:
                    values[name].append(None)
                    problems.setdefault(index, str(error))
        types = {NUMBER: pyarrow.float64(), TEXT: pyarrow.string(), TRUTH: pyarrow.bool_(), None: pyarrow.bool_()}
        arrays = {name: pyarrow.array(values[name], types[kind]) for name, kind in self.condition.kinds.items()}
        # The column of row numbers has a name that no column of a condition can have.
        table = pyarrow.table({**arrays, "": pyarrow.array(range(len(block)))})
        holds = set(table.filter(self.condition.expression)[""].to_pylist())
        for index, row in enumerate(block):
            if problem := problems.get(index):
                self._problems += 1
                yield RawRow(row.place, problem)
            elif isinstance(row.content, str):
                yield row
            elif index in holds:
                self.kept += 1
                yield row

    def _converted(self, row: Mapping[str, Any], name: str, kind: str | None) -> Any:
        """Returns a value as the type of its kind; None if it is missing.

        Raises:
            ValueError: it is of another kind.
        """
        value = column_value(row, name)
        if isinstance(value, FieldError):
            return None
        self._existing.add(name)
        # Tables have no other missing values than an empty text and NaN.
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            return None
        if kind is None:
            return True
        try:
            return _as_kind(value, kind)
        except (ValueError, OverflowError):
            text = repr(value)
            text = text if len(text) <= 60 else f"{text[:60]}..."
            raise ValueError(f"data.where compares {name!r} with {kind}, and here it is {text}") from None


def _as_kind(value: Any, kind: str) -> Any:
    """Returns a value as a float, a text or a bool.

    Raises:
        ValueError: it is of another kind. `"3"` is a number too, because all values of a CSV file are text.
    """
    if kind == TEXT and isinstance(value, str | date):
        return value if isinstance(value, str) else value.isoformat()
    if kind == NUMBER and isinstance(value, str | int | float | Decimal) and not isinstance(value, bool):
        return float(value)
    if kind == TRUTH and isinstance(value, str | bool):
        truth = TRUTHS.get(value.strip().lower()) if isinstance(value, str) else value
        if truth is not None:
            return truth
    raise ValueError
