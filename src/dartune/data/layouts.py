"""Layouts of well-known public data sets, recognised by their columns and put into one of our own.

A layout says which of its columns are our fields, and tidies a row: marks that were never meant to be learnt go, parts
that belong together are joined. What a row lacks, or has in another type, is left as it is, so that it is reported by
its own column's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dartune.data.columns import Trouble, as_text
from dartune.data.conversations import filled, messages_of

Row = dict[str, Any]

_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
_THOUGHT = re.compile(r"<\|begin_of_thought\|>(.*?)<\|end_of_thought\|>\s*", re.DOTALL)
_SOLUTION = re.compile(r"<\|begin_of_solution\|>\s*|\s*<\|end_of_solution\|>")
_SETUP = ("test_imports", "test_setup_code")
_NO_ANSWER = ("proof", "notfound", "nan", "none", "n/a")


@dataclass(frozen=True, slots=True)
class PublicLayout:
    """A data set's layout.

    Args:
        base: our layout that it is put into.
        fields: our field -> their column; those that are there say that a data set has this layout.
        optional: fields whose columns may be missing.
        tidy: their row -> the same row, tidied, or why it cannot be used.
        also: columns that `tidy` reads besides.
        fits: what its columns alone do not show.
    """

    base: str
    fields: Mapping[str, str]
    tidy: Callable[[Row], Row | str] = lambda row: row
    optional: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    fits: Callable[[Row], bool] = lambda row: True


def recognised(row: Row) -> PublicLayout | None:
    """The layout of a data set that has this row; None where it is none of them."""
    for layout in PUBLIC.values():
        needed = [column for name, column in layout.fields.items() if name not in layout.optional]
        if all(column in row for column in needed) and layout.fits(row):
            return layout
    return None


def _edited(row: Row, column: str, edit: Callable[[str], str]) -> Row:
    return {**row, column: edit(row[column])} if isinstance(row.get(column), str) else row


def _gsm8k(row: Row) -> Row:
    """Without the notes for a calculator, `<<3*4=12>>`, which stand in the middle of the text."""
    return _edited(row, "answer", lambda text: _CALCULATOR_NOTE.sub("", text))


def _without(column: str) -> Callable[[Row], Row]:
    """Words such as `proof` in the place of an answer say that there is none."""

    def tidy(row: Row) -> Row:
        value = row.get(column)
        return {**row, column: None} if str(value).strip().lower() in _NO_ANSWER else row

    return tidy


def _conversation(row: Row) -> Row:
    """A thought in a block of its own as `<think>`."""
    turns = messages_of(row["conversations"])
    if turns is None:
        return row
    return {**row, "conversations": [_thinking(turn) for turn in turns]}


def _thinking(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    name = "value" if "value" in turn else "content"
    text = turn.get(name)
    if not isinstance(text, str) or "<|begin_of_thought|>" not in text:
        return turn
    text = _THOUGHT.sub(lambda match: f"<think>\n{match[1].strip()}\n</think>\n\n", text)
    return {**turn, name: _SOLUTION.sub("", text).strip()}


def _alpaca(row: Row) -> Row | str:
    """What an instruction is about stands below it."""
    about = row.get("input")
    if not filled(about) or about != about:  # tables have a number that is none in an empty cell
        return row
    if isinstance(about, list | tuple):
        about = Trouble("input", f"must be text or a number, not {type(about).__name__}")
    about = as_text(about, "input")
    if isinstance(about, Trouble):
        return f"{about.column}: {about.rule}"
    return _edited(row, "instruction", lambda text: f"{text}\n\n{about}")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _mbpp(question: str) -> Callable[[Row], Row]:
    """The tests belong to the question, as they say what the function is called; the program stands in a block."""

    def tidy(row: Row) -> Row:
        tests, imports = row["test_list"], row.get("test_imports") or []
        if not _texts(tests) or not _texts(imports):
            return row
        shown, setup = "\n".join(tests), row.get("test_setup_code") or "\n".join(imports)
        row = _edited(row, question, lambda text: f"{text}\nYour code should pass these tests:\n\n{shown}")
        row = _edited(row, "code", lambda text: f"```python\n{text.strip()}\n```")
        return {**row, "test_list": f"{setup}\n{shown}".strip()}

    return tidy


def _listed_tests(row: Row) -> Row:
    """A list of tests, perhaps as JSON, becomes one text."""
    tests = row["unit_tests"]
    try:
        tests = json.loads(tests) if isinstance(tests, str) else tests
    except (ValueError, RecursionError):
        return row
    return {**row, "unit_tests": "\n".join(test.strip() for test in tests)} if _texts(tests) else row


def _solved(question: str, solution: str, answer: str | None = None) -> dict[str, str]:
    return {"question": question, "solution": solution, **({"answer": answer} if answer else {})}


PUBLIC = {
    "GSM8K": PublicLayout(
        "question/solution",
        _solved("question", "answer"),
        _gsm8k,
        fits=lambda row: "####" in str(row["answer"]) and "solution" not in row,
    ),
    "OpenMathReasoning": PublicLayout(
        "question/solution", _solved("problem", "generated_solution", "expected_answer"), _without("expected_answer")
    ),
    "NuminaMath": PublicLayout(
        "question/solution", _solved("problem", "solution", "answer"), _without("answer"), optional=("answer",)
    ),
    "OpenThoughts": PublicLayout("messages", {"messages": "conversations"}, _conversation),
    "MBPP": PublicLayout("question/solution", _solved("text", "code", "test_list"), _mbpp("text"), also=_SETUP),
    "MBPP sanitized": PublicLayout(
        "question/solution", _solved("prompt", "code", "test_list"), _mbpp("prompt"), also=_SETUP
    ),
    "OpenCodeInstruct": PublicLayout("question/solution", _solved("input", "output", "unit_tests"), _listed_tests),
    "Alpaca": PublicLayout("question/solution", _solved("instruction", "output"), _alpaca, also=("input",)),
}
"""Data set -> its layout; the first that fits counts."""
