"""Layouts of well-known public data sets: detects them by their columns and converts rows to one of our layouts.

A layout maps columns to our fields and cleans rows: it removes annotations that are not part of the text, such as
GSM8K's calculator notes, and joins columns that belong together. Missing columns and values of an unexpected type are
left unchanged, so that the row parser reports them under the data set's own column names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dartune.data.columns import FieldError, as_text
from dartune.data.conversations import has_content, messages_of

Row = dict[str, Any]

_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
_THOUGHT = re.compile(r"<\|begin_of_thought\|>(.*?)<\|end_of_thought\|>\s*", re.DOTALL)
_SOLUTION = re.compile(r"<\|begin_of_solution\|>\s*|\s*<\|end_of_solution\|>")
_SETUP = ("test_imports", "test_setup_code")
_NO_ANSWER = ("proof", "notfound", "nan", "none", "n/a")


@dataclass(frozen=True, slots=True)
class PublicLayout:
    """The layout of a public data set.

    Args:
        base: dartune's layout that rows are converted to.
        fields: our field -> column of the data set. A data set with all of these columns has this layout.
        optional: fields whose columns may be missing.
        tidy: returns a cleaned row, or the reason why the row cannot be used.
        also: further columns that `tidy` reads.
        fits: further condition on a row, for layouts whose columns are ambiguous.
    """

    base: str
    fields: Mapping[str, str]
    tidy: Callable[[Row], Row | str] = lambda row: row
    optional: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    fits: Callable[[Row], bool] = lambda row: True


def detect_public_layout(row: Row) -> PublicLayout | None:
    """Returns the public layout that the row fits, or None."""
    for layout in PUBLIC.values():
        required = [column for name, column in layout.fields.items() if name not in layout.optional]
        if all(column in row for column in required) and layout.fits(row):
            return layout
    return None


def _edited(row: Row, column: str, edit: Callable[[str], str]) -> Row:
    return {**row, column: edit(row[column])} if isinstance(row.get(column), str) else row


def _gsm8k(row: Row) -> Row:
    """Removes the calculator notes (`<<3*4=12>>`) from the text."""
    return _edited(row, "answer", lambda text: _CALCULATOR_NOTE.sub("", text))


def _without_placeholder(column: str) -> Callable[[Row], Row]:
    """Returns a function that empties an answer column with a word that stands for no answer, such as `proof`."""

    def tidy(row: Row) -> Row:
        value = row.get(column)
        return {**row, column: None} if str(value).strip().lower() in _NO_ANSWER else row

    return tidy


def _openthoughts(row: Row) -> Row:
    """Converts the data set's own reasoning markers to a `<think>` block."""
    turns = messages_of(row["conversations"])
    if turns is None:
        return row
    return {**row, "conversations": [_convert_reasoning(turn) for turn in turns]}


def _convert_reasoning(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    name = "value" if "value" in turn else "content"
    text = turn.get(name)
    if not isinstance(text, str) or "<|begin_of_thought|>" not in text:
        return turn
    text = _THOUGHT.sub(lambda match: f"<think>\n{match[1].strip()}\n</think>\n\n", text)
    return {**turn, name: _SOLUTION.sub("", text).strip()}


def _alpaca(row: Row) -> Row | str:
    """Puts the input below the instruction."""
    value = row.get("input")
    if not has_content(value) or value != value:  # tables store NaN in an empty cell
        return row
    if isinstance(value, list | tuple):
        value = FieldError("input", f"must be text or a number, not {type(value).__name__}")
    text = as_text(value, "input")
    if isinstance(text, FieldError):
        return f"{text.column}: {text.rule}"
    return _edited(row, "instruction", lambda instruction: f"{instruction}\n\n{text}")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(element, str) for element in value)


def _mbpp(question: str) -> Callable[[Row], Row]:
    """Returns a function that adds the tests to the question and puts the program into a code block.

    Without the tests the question does not state the name of the function.
    """

    def tidy(row: Row) -> Row:
        tests, imports = row["test_list"], row.get("test_imports") or []
        if not _are_texts(tests) or not _are_texts(imports):
            return row
        test_code, setup = "\n".join(tests), row.get("test_setup_code") or "\n".join(imports)
        row = _edited(row, question, lambda text: f"{text}\nYour code should pass these tests:\n\n{test_code}")
        row = _edited(row, "code", lambda text: f"```python\n{text.strip()}\n```")
        return {**row, "test_list": f"{setup}\n{test_code}".strip()}

    return tidy


def _join_tests(row: Row) -> Row:
    """Joins a list of tests, possibly stored as JSON, into one text."""
    tests = row["unit_tests"]
    try:
        tests = json.loads(tests) if isinstance(tests, str) else tests
    except (ValueError, RecursionError):
        return row
    return {**row, "unit_tests": "\n".join(test.strip() for test in tests)} if _are_texts(tests) else row


def _field_map(question: str, solution: str, answer: str | None = None) -> dict[str, str]:
    return {"question": question, "solution": solution, **({"answer": answer} if answer else {})}


PUBLIC = {
    "GSM8K": PublicLayout(
        "question/solution",
        _field_map("question", "answer"),
        _gsm8k,
        fits=lambda row: "####" in str(row["answer"]) and "solution" not in row,
    ),
    "OpenMathReasoning": PublicLayout(
        "question/solution",
        _field_map("problem", "generated_solution", "expected_answer"),
        _without_placeholder("expected_answer"),
    ),
    "NuminaMath": PublicLayout(
        "question/solution",
        _field_map("problem", "solution", "answer"),
        _without_placeholder("answer"),
        optional=("answer",),
    ),
    "OpenThoughts": PublicLayout("messages", {"messages": "conversations"}, _openthoughts),
    "MBPP": PublicLayout("question/solution", _field_map("text", "code", "test_list"), _mbpp("text"), also=_SETUP),
    "MBPP sanitized": PublicLayout(
        "question/solution", _field_map("prompt", "code", "test_list"), _mbpp("prompt"), also=_SETUP
    ),
    "OpenCodeInstruct": PublicLayout("question/solution", _field_map("input", "output", "unit_tests"), _join_tests),
    "Alpaca": PublicLayout("question/solution", _field_map("instruction", "output"), _alpaca, also=("input",)),
}
"""Data set -> its layout. The first layout that fits a row is used."""
