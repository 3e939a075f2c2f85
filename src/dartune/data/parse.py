"""One row to a demonstration: its texts by the layout, what belongs to them, and everything that is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from dartune.data.columns import LAYOUTS, TESTED, Field, Trouble, at, column_names
from dartune.data.conversations import EXPECTED, filled, messages_of, turns
from dartune.data.extras import Extras
from dartune.data.findings import Names
from dartune.data.records import Demonstration


@dataclass(frozen=True)
class Shape:
    """How the rows of a data set are read.

    Args:
        layout: one of `columns.LAYOUTS`.
        fields: our field -> where it is.
        also: columns that are read besides.
        thinking: reasoning that stands by itself is joined as a `<think>` block.
        task: the family of the answers.
        unused: counts what is not read.
        joined: counts the columns that are joined with question and solution.
    """

    layout: str
    fields: Mapping[str, Field]
    also: tuple[str, ...] = ()
    thinking: bool = False
    task: str = "math"
    unused: Names = field(default_factory=Names)
    joined: Names = field(default_factory=Names)

    @property
    def joins(self) -> tuple[bool, bool]:
        """Whether question and solution are joined with other columns: not where a template says what they are."""
        asked, *solved = LAYOUTS.get(self.layout, ("question", "solution"))
        fields = asked, *(solved or [asked])
        question, solution = (name not in self.fields or not self.fields[name].is_template for name in fields)
        return question, solution

    def used(self, row: Mapping[str, Any]) -> set[str]:
        """The row's columns that are fields of ours."""
        names = {name for where in self.fields.values() for name in where.columns}
        return {*names, *self.also, *(name.partition(".")[0] for name in names if name not in row)}


def parse_row(row: Mapping[str, Any], shape: Shape) -> tuple[Demonstration | None, list[str]]:
    """One row to a demonstration (id "" where the data has none), or None and what is wrong with it."""
    used = shape.used(row)
    extras = Extras(row, used, shape.joins)
    meta: dict[str, Any] = {}
    texts, complaints = _texts(row, shape, meta)
    complaints += extras.refused()
    if system := extras.system():
        said = meta.get("system", system)
        both = isinstance(system, str) and isinstance(said, str) and said != system
        # One that is no text stays, and is refused.
        meta["system"] = f"{system}\n\n{said}" if both else said if isinstance(system, str) else system
    texts = _joined(texts, extras, shape, complaints)
    if shape.layout in TESTED and texts:
        texts[shape.fields["answer"].text] = _short_text("answer", row, shape, complaints, extras)
    already = {complaint.partition(":")[0] for complaint in complaints}
    for column, value in [*texts.items(), *meta.items()]:
        rule = _text_rule(value)
        if rule and column not in already:
            complaints.append(f"{column}: {rule}")
    answer = _short_text("answer", row, shape, [] if shape.layout in TESTED else complaints, extras)
    name = _short_text("id", row, shape, complaints)
    for column in extras.there:
        if column not in extras.read:
            shape.unused.add("column", column)
        elif not complaints and column not in extras.repeats:
            shape.joined.add("column", column)
    for column in _beside(row, used):
        shape.unused.add("column", column)
    if complaints:
        return None, complaints
    question, solution = texts.values()
    return Demonstration(id=name or "", question=question, solution=solution, answer=answer, meta=meta), []


def _beside(row: Mapping[str, Any], used: set[str]) -> list[str]:
    """Columns with a value in structs of which another column is read."""
    inner = {name.partition(".")[0] for name in used if "." in name and name not in row}
    names = column_names({name: row[name] for name in inner if name in row})
    return [
        name
        for name in names
        if name not in used and name not in inner and not isinstance(value := at(row, name), Mapping) and filled(value)
    ]


def _texts(row: Mapping[str, Any], shape: Shape, meta: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Question and solution by what to call them, and what keeps the row from having them."""
    names = {**LAYOUTS, **TESTED}.get(shape.layout, ())
    values = {shape.fields[name].text: shape.fields[name].get(row) for name in names}
    complaints = [f"{value.column}: {value.rule}" for value in values.values() if isinstance(value, Trouble)]
    if complaints:
        return {}, complaints
    if shape.layout == "messages":
        [(column, value)] = values.items()
        messages = messages_of(value)
        return ({}, [f"{column}: {EXPECTED}"]) if messages is None else _conversation(messages, column, meta, shape)
    if len(values) == 2 and shape.layout in LAYOUTS and any(messages_of(value) for value in values.values()):
        messages = []
        for value, role in zip(values.values(), ("user", "assistant"), strict=True):
            messages += messages_of(value) or [{"role": role, "content": value}]
        return _conversation(messages, "/".join(values), meta, shape)
    return values, []


def _conversation(
    messages: list[Mapping[str, Any]], column: str, meta: dict[str, Any], shape: Shape
) -> tuple[dict[str, Any], list[str]]:
    return turns(messages, column, meta, shape.thinking, shape.unused)


def _joined(texts: dict[str, Any], extras: Extras, shape: Shape, complaints: list[str]) -> dict[str, Any]:
    """The texts with what stands in other columns of the row."""
    if not texts:
        return texts
    (asked, question), (solved, solution) = texts.items()
    if isinstance(question, str) and question.strip():
        question, found = extras.question(question)
        complaints += found
    if isinstance(solution, str) and solution.strip():
        solution, found = extras.solution(solution, shape.thinking)
        complaints += found
    return {asked: question, solved: solution}


def _text_rule(value: Any) -> str | None:
    if value is None:
        return "is empty (null)"
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    if not value.strip():
        return "is empty"
    return _character_rule(value)


def _character_rule(value: str) -> str | None:
    if "\0" in value:
        return f"has a NUL character at position {value.index(chr(0))}"
    broken = next((index for index, char in enumerate(value) if "\ud800" <= char <= "\udfff"), None)
    return None if broken is None else f"has half of a surrogate pair at position {broken}, which is no valid Unicode"


MISSING = ("", "nan", "n/a", "#n/a", "null", "<na>")
"""What tables write where there is no answer."""


def _short_text(
    name: str, row: Mapping[str, Any], shape: Shape, complaints: list[str], extras: Extras | None = None
) -> str | None:
    """An answer or id: text or a number, which becomes text; None where there is none."""
    if name not in shape.fields:
        return None
    value = shape.fields[name].get(row)
    if isinstance(value, Trouble):
        return None
    if isinstance(value, float | Decimal):
        if math.isnan(value):
            return None
        # Tables store whole numbers as floats as soon as one value is missing.
        value = int(value) if math.isfinite(value) and value == int(value) else value
    if extras is not None:
        try:
            value = extras.answer(value, shape.task)
        except ValueError as error:
            complaints.append(f"{shape.fields[name].text}: {error}")
            return None
    if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
        return None
    if isinstance(value, list | tuple | Mapping) and not filled(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        complaints.append(f"{shape.fields[name].text}: must be text or a number, not {type(value).__name__}")
        return None
    rule = _character_rule(value) if isinstance(value, str) else None
    if rule:
        complaints.append(f"{shape.fields[name].text}: {rule}")
    return str(value)
