"""Converts one row to a demonstration: reads its texts by the layout, joins related columns, and lists its problems."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from dartune.data.columns import LAYOUTS, TEST_LAYOUTS, Field, FieldError, column_names, column_value
from dartune.data.conversations import EXPECTED, has_content, messages_of, parse_conversation
from dartune.data.findings import NameCounts
from dartune.data.records import Demonstration
from dartune.data.related_columns import RelatedColumns


@dataclass(frozen=True)
class RowSchema:
    """How the rows of a data set are read.

    Args:
        layout: a key of `columns.LAYOUTS` or `columns.TEST_LAYOUTS`.
        fields: our field -> its source in the data.
        also: columns that are read in addition to the fields.
        thinking: reasoning in a separate key or column becomes a `<think>` block.
        task: the task family of the answers.
        unused: counts the columns and keys that are not read.
        joined: counts the columns that are joined with the question or the solution.
    """

    layout: str
    fields: Mapping[str, Field]
    also: tuple[str, ...] = ()
    thinking: bool = False
    task: str = "math"
    unused: NameCounts = field(default_factory=NameCounts)
    joined: NameCounts = field(default_factory=NameCounts)

    @property
    def joins(self) -> tuple[bool, bool]:
        """Whether question and solution are joined with other columns. A template already defines the complete text."""
        question_field, *solution_fields = LAYOUTS.get(self.layout, ("question", "solution"))
        fields = question_field, *(solution_fields or [question_field])
        question, solution = (name not in self.fields or not self.fields[name].is_template for name in fields)
        return question, solution

    def used_columns(self, row: Mapping[str, Any]) -> set[str]:
        """Returns the columns that are read as one of our fields, including the structs that contain them."""
        names = {name for source in self.fields.values() for name in source.columns}
        return {*names, *self.also, *(name.partition(".")[0] for name in names if name not in row)}


def parse_row(row: Mapping[str, Any], schema: RowSchema) -> tuple[Demonstration | None, list[str]]:
    """Returns the demonstration (id "" if the data has none), or None and the row's problems."""
    used = schema.used_columns(row)
    related = RelatedColumns(row, used, schema.joins)
    meta: dict[str, Any] = {}
    texts, complaints = _texts(row, schema, meta)
    complaints += related.refused()
    if system := related.system():
        message = meta.get("system", system)
        both = isinstance(system, str) and isinstance(message, str) and message != system
        # A value that is not text is passed on, so that the text rule below refuses the row.
        meta["system"] = f"{system}\n\n{message}" if both else message if isinstance(system, str) else system
    texts = _join_related(texts, related, schema, complaints)
    if schema.layout in TEST_LAYOUTS and texts:
        texts[schema.fields["answer"].text] = _short_text("answer", row, schema, complaints, related)
    reported = {complaint.partition(":")[0] for complaint in complaints}
    for column, value in [*texts.items(), *meta.items()]:
        rule = _text_rule(value)
        if rule and column not in reported:
            complaints.append(f"{column}: {rule}")
    # In a test layout the answer was checked above; its complaints must not appear twice.
    answer = _short_text("answer", row, schema, [] if schema.layout in TEST_LAYOUTS else complaints, related)
    row_id = _short_text("id", row, schema, complaints)
    for column in related.columns:
        if column not in related.read:
            schema.unused.add("column", column)
        elif not complaints and column not in related.repeats:
            schema.joined.add("column", column)
    for column in _unused_struct_columns(row, used):
        schema.unused.add("column", column)
    if complaints:
        return None, complaints
    question, solution = texts.values()
    return Demonstration(id=row_id or "", question=question, solution=solution, answer=answer, meta=meta), []


def _unused_struct_columns(row: Mapping[str, Any], used: set[str]) -> list[str]:
    """Returns the columns with a value that are not read, in structs of which another column is read."""
    structs = {name.partition(".")[0] for name in used if "." in name and name not in row}
    names = column_names({name: row[name] for name in structs if name in row})
    return [
        name
        for name in names
        if name not in used
        and name not in structs
        and not isinstance(value := column_value(row, name), Mapping)
        and has_content(value)
    ]


def _texts(row: Mapping[str, Any], schema: RowSchema, meta: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns question and solution by their names in messages, and the problems that prevent reading them."""
    names = {**LAYOUTS, **TEST_LAYOUTS}.get(schema.layout, ())
    values = {schema.fields[name].text: schema.fields[name].get(row) for name in names}
    complaints = [f"{value.column}: {value.rule}" for value in values.values() if isinstance(value, FieldError)]
    if complaints:
        return {}, complaints
    if schema.layout == "messages":
        [(column, value)] = values.items()
        messages = messages_of(value)
        return ({}, [f"{column}: {EXPECTED}"]) if messages is None else _conversation(messages, column, meta, schema)
    # `prompt` and `completion` may be lists of messages (TRL's conversational format).
    if len(values) == 2 and schema.layout in LAYOUTS and any(messages_of(value) for value in values.values()):
        messages = []
        for value, role in zip(values.values(), ("user", "assistant"), strict=True):
            messages += messages_of(value) or [{"role": role, "content": value}]
        return _conversation(messages, "/".join(values), meta, schema)
    return values, []


def _conversation(
    messages: list[Mapping[str, Any]], column: str, meta: dict[str, Any], schema: RowSchema
) -> tuple[dict[str, Any], list[str]]:
    return parse_conversation(messages, column, meta, schema.thinking, schema.unused)


def _join_related(
    texts: dict[str, Any], related: RelatedColumns, schema: RowSchema, complaints: list[str]
) -> dict[str, Any]:
    """Joins question and solution with related columns of the row; appends problems to `complaints`."""
    if not texts:
        return texts
    (question_name, question), (solution_name, solution) = texts.items()
    if isinstance(question, str) and question.strip():
        question, problems = related.question(question)
        complaints += problems
    if isinstance(solution, str) and solution.strip():
        solution, problems = related.solution(solution, schema.thinking)
        complaints += problems
    return {question_name: question, solution_name: solution}


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
    position = next((index for index, char in enumerate(value) if "\ud800" <= char <= "\udfff"), None)
    return None if position is None else f"has an unpaired surrogate at position {position}, which is invalid Unicode"


MISSING = ("", "nan", "n/a", "#n/a", "null", "<na>")
"""Texts that tables write for a missing answer, in lower case."""


def _short_text(
    name: str, row: Mapping[str, Any], schema: RowSchema, complaints: list[str], related: RelatedColumns | None = None
) -> str | None:
    """Returns an answer or id as text; numbers are converted. None if the row has none."""
    if name not in schema.fields:
        return None
    value = schema.fields[name].get(row)
    if isinstance(value, FieldError):
        return None
    if isinstance(value, float | Decimal):
        if math.isnan(value):
            return None
        # Tables store whole numbers as floats as soon as one value is missing.
        value = int(value) if math.isfinite(value) and value == int(value) else value
    if related is not None:
        try:
            value = related.answer(value, schema.task)
        except ValueError as error:
            complaints.append(f"{schema.fields[name].text}: {error}")
            return None
    if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
        return None
    if isinstance(value, list | tuple | Mapping) and not has_content(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        complaints.append(f"{schema.fields[name].text}: must be text or a number, not {type(value).__name__}")
        return None
    rule = _character_rule(value) if isinstance(value, str) else None
    if rule:
        complaints.append(f"{schema.fields[name].text}: {rule}")
    return str(value)
