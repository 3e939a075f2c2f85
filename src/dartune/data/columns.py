"""Maps the columns of a data set to our fields: by name, or by a user's column map with templates."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from dartune.errors import InputError

FIELDS = ("question", "solution", "answer", "id", "prompt", "completion", "messages")
LAYOUTS = {
    "question/solution": ("question", "solution"),
    "prompt/completion": ("prompt", "completion"),
    "messages": ("messages",),
}
TEST_LAYOUTS = {"question/answer": ("question", "answer")}
"""Layouts of rows that are used for tests only. The answer takes the place of the solution."""
# Names seen in public data sets. They are only used to propose a column map in an error message.
NAMES_TO_PROPOSE = {
    "question": (
        "question problem instruction query prompt input user task title frage aufgabe pregunta problema problème "
        "probleme énoncé 问题 题目 题目"
    ).split(),
    "solution": (
        "solution reasoning rationale explanation cot chain_of_thought thought working response output completion "
        "chosen assistant equation answer text lösung loesung rechenweg solución solucion résolution 解答 解析 解题过程"
    ).split(),
    "answer": (
        "final_answer result expected_answer target answer ground_truth gold answerkey answer_key label correct "
        "antwort ergebnis respuesta resultado réponse reponse résultat 答案"
    ).split(),
    "messages": "conversations conversation dialogue dialog chat turns".split(),
}
CONTEXT = "context body passage paragraph article story background document documents".split()
"""Columns whose text is put above the question."""
REASONS = "reasoning rationale explanation cot chain_of_thought thought working".split()
"""Columns whose text is put before the other columns of a solution."""
PROSE_WORDS = 4
"""Texts with fewer words are treated as a category, not as prose."""
MAX_STRUCT_DEPTH = 4


class FieldError(NamedTuple):
    """The reason why a field cannot be read from a row: the column and the rule that it breaks."""

    column: str
    rule: str


class Field:
    """The source of one of our fields: a column, a column of a struct (`a.b`), or a template of several columns."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        """Parses the text of a column map.

        Args:
            text: a column name or a template such as `{Body} {Question}`.
            names: the columns of the data. An existing column takes precedence over a template.

        Raises:
            ValueError: the text is neither a column nor a valid template.
        """
        self.text = text
        self.parts: list[tuple[str, str | None]] = [("", text)]
        self.formats: list[str] = []
        """Format specifications in the template, such as `:.2f` and `!r`. They are rejected by `_map_problems`."""
        self.is_template = text not in names and "{" in text
        if self.is_template:
            parsed = list(string.Formatter().parse(text))
            self.parts = [(literal, name) for literal, name, *_ in parsed]
            self.formats = [
                f"!{conversion}" if conversion else f":{form}" for *_, form, conversion in parsed if form or conversion
            ]

    @property
    def columns(self) -> list[str]:
        return [name for _, name in self.parts if name is not None]

    def get(self, row: Mapping[str, Any]) -> Any:
        """Returns the field's value in a row, or a `FieldError`."""
        if not self.is_template:
            return column_value(row, self.text)
        pieces = []
        for literal, name in self.parts:
            value = "" if name is None else as_text(column_value(row, name), name)
            if isinstance(value, FieldError):
                return value
            pieces += [literal, value]
        return "".join(pieces).strip()


def column_value(row: Mapping[str, Any], column: str) -> Any:
    """Returns the value of a column or of a column inside a struct (`a.b`); a `FieldError` if it is missing."""
    if column in row:
        return row[column]
    head, _, rest = column.partition(".")
    while rest:
        if isinstance(row.get(head), Mapping):
            return column_value(row[head], rest)
        more, _, rest = rest.partition(".")
        head = f"{head}.{more}"
    return FieldError(column, "the field is missing")


def as_text(value: Any, name: str) -> Any:
    """Returns a value as text for a template: texts, numbers and lists of texts; an empty text for null."""
    if value is None or isinstance(value, str | FieldError):
        return value or ""
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return str(int(value) if value == value and abs(value) < 1e15 and value == int(value) else value)
    if isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    return FieldError(name, f"must be text or a number, not {type(value).__name__}")


def column_names(row: Mapping[str, Any], depth: int = 0) -> list[str]:
    """Returns the columns of a row; columns inside structs are written as `a.b`."""
    names = []
    for name, value in row.items():
        names.append(name)
        if isinstance(value, Mapping) and depth < MAX_STRUCT_DEPTH:
            names += [f"{name}.{inner}" for inner in column_names(value, depth + 1)]
    return names


def matching_layouts(fields: Iterable[str]) -> list[str]:
    """Returns the names of the layouts whose fields are all present."""
    return [layout for layout, required in LAYOUTS.items() if set(required) <= set(fields)]


def map_fields(names: Collection[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Returns a map from our fields to columns or templates of the data.

    Args:
        names: the columns of the data.
        columns: the user's column map. Fields that it does not name are read from the column of the same name.
    """
    # A column that is mapped to one field is not read again for the field with the column's own name.
    mapped = {column for text in columns.values() for column in _columns(text, names)}
    # Single rows may lack the answer or the id, so the columns of one row do not decide about these two fields.
    fields = {name: name for name in FIELDS if name in (*names, "answer", "id") and name not in mapped}
    return fields | dict(columns)


def _columns(text: str, names: Collection[str]) -> list[str]:
    try:
        return Field(text, names).columns
    except ValueError:
        return []


def choose_layout(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], path: str | Path, *, tested: bool = False
) -> tuple[str, dict[str, str]]:
    """Returns the name of the layout, and a map from our fields to columns or templates of the data.

    Args:
        rows: sample rows. The first one determines the columns; the others help to propose a column map.
        columns: the user's column map.
        tested: the rows are used for tests only and need no solution.

    Raises:
        InputError: no layout or more than one fits, or `columns` names a column that does not exist.
    """
    names = column_names(rows[0])
    existing = f"columns found: {', '.join(map(repr, names)) or 'none'}"
    if problems := _map_problems(names, columns):
        raise InputError(f"{path}: data.columns does not fit; {existing}", problems)
    fields = map_fields(names, columns)
    fits = matching_layouts(fields)
    requested = [layout for layout in fits if any(name in columns for name in LAYOUTS[layout])]
    if len(requested or fits) == 1:
        return _layout_fields((requested or fits)[0], fields)
    if tested and not fits and "question" in fields and ("answer" in names or "answer" in columns):
        return _layout_fields("question/answer", fields)
    if fits:
        example = LAYOUTS[fits[0]][0]
        raise InputError(
            f"{path} fits several layouts ({', '.join(fits)}); {existing}; choose one by naming one of its "
            f"columns, for example data.columns: {{{example}: {fields[example]}}}"
        )
    raise InputError(f"{path} fits no layout ({', '.join(LAYOUTS)}); {existing}; {_advice(names, rows)}")


def _layout_fields(layout: str, fields: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Keeps the fields that the layout reads. A column named like a field of another layout is an ordinary column."""
    read = (*{**LAYOUTS, **TEST_LAYOUTS}[layout], "answer", "id")
    return layout, {name: text for name, text in fields.items() if name in read}


def _map_problems(names: Collection[str], columns: Mapping[str, str]) -> list[str]:
    problems = []
    for ours, theirs in columns.items():
        if ours not in FIELDS:
            problems.append(f"data.columns.{ours} is not a field; the fields are {', '.join(FIELDS)}")
            continue
        try:
            field = Field(theirs, names)
        except ValueError as error:
            problems.append(f"data.columns.{ours} is not a valid template: {error}; write a literal brace twice: {{{{")
            continue
        missing = [name for name in field.columns if name not in names]
        problems += [f"data.columns.{ours} names the column {name!r}, which does not exist" for name in missing]
        problems += [f"data.columns.{ours} has the format {form!r}, which is not supported" for form in field.formats]
        if not field.columns:
            problems.append(
                f"data.columns.{ours} names no column, so {theirs!r} is the same text in every row; write {{column}} "
                "with one brace"
            )
    repeated = [theirs for theirs in set(columns.values()) if list(columns.values()).count(theirs) > 1]
    return problems + [f"data.columns maps {theirs!r} to several fields" for theirs in repeated]


def _advice(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    proposal, unused = propose_columns(names, rows)
    example = "{" + ", ".join(f"{ours}: {_quoted(theirs)}" for ours, theirs in proposal.items()) + "}"
    advice = f"name them with data.columns, for example data.columns: {example}"
    if proposal.get("solution") == UNKNOWN:
        advice += ". No column looks like a worked solution, which every row needs"
    if unused:
        names = ", ".join(map(repr, unused))
        advice += f". Not used in this example: {names}; add columns that belong to the text with a template"
    return advice


def _quoted(name: str) -> str:
    """Returns a column name as written in YAML braces; names that YAML would parse differently are quoted."""
    plain = name.startswith('"') or re.fullmatch(r"\w[\w.-]*", name) or name == UNKNOWN
    return name if plain else json.dumps(name, ensure_ascii=False)


UNKNOWN = "<their column>"
_OTHER_SOLUTION = re.compile(
    r"solution|answer|response|completion|output|generation|rationale|reasoning|explanation|\bcot\b"
)
"""Matches names of columns with alternative solutions (`r1_solution_2`), which must not become part of the question."""


def propose_columns(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """Returns a proposed column map for columns of unknown names, and the text columns that it does not use."""
    column_by_name = {_last_part(name): name for name in reversed(names)}
    samples = {name: [value for row in rows if isinstance(value := column_value(row, name), str)] for name in names}
    proposal: dict[str, str] = {}
    for usual in NAMES_TO_PROPOSE["messages"]:
        if usual in column_by_name:
            column = column_by_name[usual]
            return {"messages": column}, _unused_texts([column], samples)
    for ours in ("question", "solution", "answer"):
        free = [
            column_by_name[name]
            for name in NAMES_TO_PROPOSE[ours]
            if name in column_by_name and column_by_name[name] not in proposal.values()
        ]
        if ours == "answer":
            free = [
                name for name in free if not any(isinstance(column_value(row, name), list | Mapping) for row in rows)
            ]
        if ours == "solution":
            free = [name for name in free if samples[name] and not _is_option_answer(name, column_by_name)]
        if free:
            proposal[ours] = free[0]
        elif ours != "answer":
            proposal[ours] = UNKNOWN
    used = set(proposal.values())
    for ours in ("question", "solution"):
        prose = [name for name in names if name not in used and _is_prose(samples[name])]
        if proposal[ours] == UNKNOWN and prose:
            proposal[ours] = prose[0]
            used.add(prose[0])
    for ours in ("question", "solution"):
        joined = _with_related_columns(ours, proposal[ours], [name for name in names if name not in used], samples)
        used.update(joined)
        if len(joined) > 1:
            proposal[ours] = '"' + "\\n\\n".join(f"{{{name}}}" for name in joined) + '"'
    return proposal, _unused_texts(used, samples)


def _last_part(name: str) -> str:
    """Returns the name of a column without the structs around it, in lower case."""
    return name.rpartition(".")[2].strip().lower()


def _with_related_columns(
    ours: str, chosen: str, free: Sequence[str], samples: Mapping[str, Sequence[str]]
) -> list[str]:
    """Returns a field's column with the free columns that belong to it: context above the question, prose below."""
    if chosen == UNKNOWN:
        return []
    last = {name: _last_part(name) for name in free}
    explanations = [name for name in free if last[name] in NAMES_TO_PROPOSE["solution"] and _is_prose(samples[name])]
    if ours == "solution":
        return sorted([chosen, *explanations], key=lambda name: name.rpartition(".")[2].lower() not in REASONS)
    above = [name for name in free if last[name] in CONTEXT]
    prose = [name for name in free if name not in (*above, *explanations) and _is_prose(samples[name])]
    prose = [name for name in prose if not _OTHER_SOLUTION.search(last[name])]
    prose = [name for name in prose if not _is_rewording(chosen, name)]
    below = [name for name in free if last[name] == "input" and samples[name] and name not in prose]
    return [*above, chosen, *prose, *below]


def _is_rewording(question: str, name: str) -> bool:
    """Returns whether a column is named like another wording of the question, such as `original_question`."""
    *prefix, last = name.lower().split("_")
    return bool(prefix) and last in (*NAMES_TO_PROPOSE["question"], question.lower())


def _is_option_answer(name: str, column_by_name: Mapping[str, str]) -> bool:
    """Returns whether a column named `answer` stands beside options, so that it is a label and not a solution."""
    options = any(option in column_by_name for option in ("options", "choices"))
    return name.rpartition(".")[2].lower() == "answer" and options


def _unused_texts(used: Collection[str], samples: Mapping[str, Sequence[str]]) -> list[str]:
    return [name for name, values in samples.items() if values and name not in used]


def _is_prose(values: Sequence[str]) -> bool:
    """Returns whether the median text has several words and most texts differ from row to row."""
    word_counts = sorted(len(value.split()) for value in values)
    return (
        bool(word_counts) and word_counts[len(word_counts) // 2] >= PROSE_WORDS and 2 * len(set(values)) > len(values)
    )
