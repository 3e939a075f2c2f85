"""Which columns of a data set are which of our fields: by their names, or by a column map with templates."""

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
TESTED = {"question/answer": ("question", "answer")}
"""Layouts of rows that are only tested on; the answer stands for the solution."""
# Names seen in public data sets, only used to propose a column map.
USUAL_NAMES = {
    "question": (
        "question problem instruction query prompt input user task title frage aufgabe pregunta problema problème "
        "probleme énoncé 问题 題目 题目"
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
"""Columns that stand above the question."""
REASONS = "reasoning rationale explanation cot chain_of_thought thought working".split()
"""Columns that stand before what they lead to."""
PROSE_WORDS = 4
"""Words from which on a text is taken for more than a category."""
DEEPEST = 4


class Trouble(NamedTuple):
    """What keeps a field from being read: the column, and what is wrong with it."""

    column: str
    rule: str


class Field:
    """Where a field of ours is in a row: in a column, in a column of a struct (`a.b`), or in a template of several."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        """`names` are the columns there are.

        Raises:
            ValueError: the text is no column and no template.
        """
        self.text = text
        self.parts: list[tuple[str, str | None]] = [("", text)]
        self.formats: list[str] = []
        """What a template says about the form of a column: `:.2f`, `!r`."""
        self.is_template = text not in names and "{" in text
        if self.is_template:
            parsed = list(string.Formatter().parse(text))
            self.parts = [(before, name) for before, name, *_ in parsed]
            self.formats = [f"!{how}" if how else f":{form}" for *_, form, how in parsed if form or how]

    @property
    def columns(self) -> list[str]:
        return [name for _, name in self.parts if name is not None]

    def get(self, row: Mapping[str, Any]) -> Any:
        """The field's value, or `Trouble`."""
        if not self.is_template:
            return at(row, self.text)
        pieces = []
        for before, name in self.parts:
            value = "" if name is None else as_text(at(row, name), name)
            if isinstance(value, Trouble):
                return value
            pieces += [before, value]
        return "".join(pieces).strip()


def at(row: Mapping[str, Any], column: str) -> Any:
    """A column's value, also of a column within a struct; `Trouble` where it is missing."""
    if column in row:
        return row[column]
    head, _, rest = column.partition(".")
    while rest:
        if isinstance(row.get(head), Mapping):
            return at(row[head], rest)
        more, _, rest = rest.partition(".")
        head = f"{head}.{more}"
    return Trouble(column, "the field is missing")


def as_text(value: Any, name: str) -> Any:
    """A value within a template: text, a number, a list of texts; nothing for null."""
    if value is None or isinstance(value, str | Trouble):
        return value or ""
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return str(int(value) if value == value and abs(value) < 1e15 and value == int(value) else value)
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return "\n".join(value)
    return Trouble(name, f"must be text or a number, not {type(value).__name__}")


def column_names(row: Mapping[str, Any], depth: int = 0) -> list[str]:
    """The columns of a row, those within structs as `a.b`."""
    names = []
    for name, value in row.items():
        names.append(name)
        if isinstance(value, Mapping) and depth < DEEPEST:
            names += [f"{name}.{inner}" for inner in column_names(value, depth + 1)]
    return names


def fitting(fields: Iterable[str]) -> list[str]:
    """The layouts of ours whose fields there are."""
    return [layout for layout, needed in LAYOUTS.items() if set(needed) <= set(fields)]


def named(names: Collection[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our field -> their column or template."""
    # A column given to one field is not read again for the field that happens to have its name.
    given = {column for text in columns.values() for column in _columns(text, names)}
    # Rows may lack the answer or the id, so one row's columns do not decide about these two.
    fields = {name: name for name in FIELDS if name in (*names, "answer", "id") and name not in given}
    return fields | dict(columns)


def _columns(text: str, names: Collection[str]) -> list[str]:
    try:
        return Field(text, names).columns
    except ValueError:
        return []


def choose_layout(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], path: str | Path, *, tested: bool = False
) -> tuple[str, dict[str, str]]:
    """Returns the name of the layout and our field -> their column or template.

    Args:
        rows: some rows, of which the first shows the columns.
        tested: the rows are only tested on, and need no solution.

    Raises:
        InputError: no layout or several fit, or `columns` names what does not exist.
    """
    names = column_names(rows[0])
    found = f"columns found: {', '.join(map(repr, names)) or 'none'}"
    if problems := _map_problems(names, columns):
        raise InputError(f"{path}: data.columns does not fit; {found}", problems)
    fields = named(names, columns)
    fits = fitting(fields)
    asked = [layout for layout in fits if any(name in columns for name in LAYOUTS[layout])]
    if len(asked or fits) == 1:
        return _of_layout((asked or fits)[0], fields)
    if tested and not fits and "question" in fields and ("answer" in names or "answer" in columns):
        return _of_layout("question/answer", fields)
    if fits:
        example = LAYOUTS[fits[0]][0]
        raise InputError(
            f"{path} fits several layouts ({', '.join(fits)}); {found}; say which by naming one of its "
            f"columns, for example data.columns: {{{example}: {fields[example]}}}"
        )
    raise InputError(f"{path} fits no layout ({', '.join(LAYOUTS)}); {found}; {_advice(names, rows)}")


def _of_layout(layout: str, fields: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """A layout with the fields that it reads: what is called as another layout's field is a column like any other."""
    read = (*{**LAYOUTS, **TESTED}[layout], "answer", "id")
    return layout, {name: text for name, text in fields.items() if name in read}


def _map_problems(names: Collection[str], columns: Mapping[str, str]) -> list[str]:
    problems = []
    for ours, theirs in columns.items():
        if ours not in FIELDS:
            problems.append(f"data.columns.{ours} is no field; the fields are {', '.join(FIELDS)}")
            continue
        try:
            field = Field(theirs, names)
        except ValueError as error:
            problems.append(f"data.columns.{ours} is no template: {error}; write a brace of the text twice: {{{{")
            continue
        missing = [name for name in field.columns if name not in names]
        problems += [f"data.columns.{ours} names the column {name!r}, which does not exist" for name in missing]
        problems += [f"data.columns.{ours} has the format {form!r}, which is not applied" for form in field.formats]
        if not field.columns:
            problems.append(
                f"data.columns.{ours} names no column, so {theirs!r} is the same text in every row; write {{column}} "
                "with one brace"
            )
    twice = [theirs for theirs in set(columns.values()) if list(columns.values()).count(theirs) > 1]
    return problems + [f"data.columns gives {theirs!r} to several fields" for theirs in twice]


def _advice(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    proposal, left_out = proposed(names, rows)
    shown = "{" + ", ".join(f"{ours}: {_quoted(theirs)}" for ours, theirs in proposal.items()) + "}"
    advice = f"name them with data.columns, for example data.columns: {shown}"
    if proposal.get("solution") == UNKNOWN:
        advice += ". No column looks like a worked solution, which every row needs"
    if left_out:
        names = ", ".join(map(repr, left_out))
        advice += f". Not used in this example: {names}; add what belongs to the text with a template"
    return advice


def _quoted(name: str) -> str:
    """A column's name as YAML reads it within braces: in quotes where it would be read as something else."""
    plain = name.startswith('"') or re.fullmatch(r"\w[\w.-]*", name) or name == UNKNOWN
    return name if plain else json.dumps(name, ensure_ascii=False)


UNKNOWN = "<their column>"
_SOLVES = re.compile(r"solution|answer|response|completion|output|generation|rationale|reasoning|explanation|\bcot\b")
"""Names of columns with other solutions, which do not belong to the question (`r1_solution_2`)."""


def proposed(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """A column map for columns of unknown names, and the text columns that it leaves out."""
    lower = {name.rpartition(".")[2].strip().lower(): name for name in reversed(names)}
    samples = {name: [value for row in rows if isinstance(value := at(row, name), str)] for name in names}
    proposal: dict[str, str] = {}
    for usual in USUAL_NAMES["messages"]:
        if usual in lower:
            return {"messages": lower[usual]}, _texts_besides([lower[usual]], samples)
    for ours in ("question", "solution", "answer"):
        free = [lower[name] for name in USUAL_NAMES[ours] if name in lower and lower[name] not in proposal.values()]
        if ours == "answer":
            free = [name for name in free if not any(isinstance(at(row, name), list | Mapping) for row in rows)]
        if ours == "solution":
            free = [name for name in free if samples[name] and not _bare_answer(name, lower)]
        if free:
            proposal[ours] = free[0]
        elif ours != "answer":
            proposal[ours] = UNKNOWN
    given = set(proposal.values())
    for ours in ("question", "solution"):
        prose = [name for name in names if name not in given and _is_prose(samples[name])]
        if proposal[ours] == UNKNOWN and prose:
            proposal[ours] = prose[0]
            given.add(prose[0])
    for ours in ("question", "solution"):
        joined = _with_the_others(ours, proposal[ours], [name for name in names if name not in given], samples)
        given.update(joined)
        if len(joined) > 1:
            proposal[ours] = '"' + "\\n\\n".join(f"{{{name}}}" for name in joined) + '"'
    return proposal, _texts_besides(given, samples)


def _with_the_others(ours: str, chosen: str, free: Sequence[str], samples: Mapping[str, Sequence[str]]) -> list[str]:
    """The column of a field and the free ones that belong to it: context above, prose below."""
    if chosen == UNKNOWN:
        return []
    last = {name: name.rpartition(".")[2].strip().lower() for name in free}
    explains = [name for name in free if last[name] in USUAL_NAMES["solution"] and _is_prose(samples[name])]
    if ours == "solution":
        return sorted([chosen, *explains], key=lambda name: name.rpartition(".")[2].lower() not in REASONS)
    above = [name for name in free if last[name] in CONTEXT]
    others = [name for name in free if name not in (*above, *explains) and _is_prose(samples[name])]
    others = [name for name in others if not _SOLVES.search(last[name])]
    prose = [name for name in others if not _another_wording(chosen, name)]
    below = [name for name in free if last[name] == "input" and samples[name] and name not in prose]
    return [*above, chosen, *prose, *below]


def _another_wording(question: str, name: str) -> bool:
    """Whether a column is called as another wording of the question, such as `original_question`."""
    *before, last = name.lower().split("_")
    return bool(before) and last in (*USUAL_NAMES["question"], question.lower())


def _bare_answer(name: str, lower: Mapping[str, str]) -> bool:
    """Whether a column called `answer` is an option's label or number, not a solution."""
    options = any(other in lower for other in ("options", "choices"))
    return name.rpartition(".")[2].lower() == "answer" and options


def _texts_besides(used: Collection[str], samples: Mapping[str, Sequence[str]]) -> list[str]:
    return [name for name, values in samples.items() if values and name not in used]


def _is_prose(values: Sequence[str]) -> bool:
    """Texts of several words that differ from row to row."""
    words = sorted(len(value.split()) for value in values)
    return bool(words) and words[len(words) // 2] >= PROSE_WORDS and 2 * len(set(values)) > len(values)
