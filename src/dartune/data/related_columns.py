"""Columns beside question and solution that change their meaning: they are joined with the texts, or refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from dartune.data.columns import CONTEXT, PROSE_WORDS
from dartune.data.conversations import (
    CALLS,
    MEDIA,
    REASONING,
    SINGLE_TURN,
    attach_reasoning,
    decoded,
    has_content,
    python_literal_problem,
    reasoning_rule,
)

OPTIONS = ("options", "choices")
SYSTEM = ("system", "system_prompt", "system_message")
HISTORY = ("history", "chat_history", "conversation_history")
LETTERS = "ABCDEFGHIJ"
_OPTION_COLUMN = re.compile(r"(?:option|choice|op|ans)[ _]?([a-j1-9])", re.IGNORECASE)
_LABEL = re.compile(r"\s*[(\[]?([A-Za-z0-9])(?:[)\]]|[.:](?!\d))")
"""The label at the beginning of an option: `(A) 3`, `B. 4`, but not `2.5`."""


class RelatedColumns:
    """The columns of a row that belong to its question or solution without being a field.

    Args:
        row: the row.
        used: columns that are read as a field.
        joins: whether question and solution are joined with other columns. False for a field that is a template, which
            already defines the complete text.
    """

    def __init__(self, row: Mapping[str, Any], used: Collection[str], joins: tuple[bool, bool] = (True, True)) -> None:
        self.columns = {name: value for name, value in row.items() if name not in used and has_content(value)}
        """The columns that have a value and are not read as a field."""
        self.read: set[str] = set()
        """Columns that were joined or refused."""
        self._join_question, self._join_solution = joins
        self.repeats: set[str] = set()
        """Columns whose text is already part of the question."""
        self._numeric_options = False
        self._row = row
        self._option_texts: dict[str, str] = {}
        """Label -> text of the option without its label."""
        self.options = self._read_options() if self._join_question else {}
        """Label -> line below the question, or the problem with the options."""

    def refused(self) -> list[str]:
        """Returns a complaint for each column that cannot be expressed as text."""
        complaints = []
        for name in self.columns:
            if name.lower() in HISTORY:
                complaints.append(f"{name}: holds earlier turns; {SINGLE_TURN}")
            elif name.lower() in CALLS:
                complaints.append(f"{name}: the row has tools, which are not read; leave the row out")
            elif name.lower() in MEDIA:
                complaints.append(f"{name}: only text is read; leave the row out")
            else:
                continue
            self.read.add(name)
        return complaints

    def question(self, question: str) -> tuple[str, list[str]]:
        """Returns the question with its context above and its options below, and the problems of these columns."""
        complaints, above = [], []
        for name in self._columns_named(CONTEXT) if self._join_question else ():
            value = self.columns[name]
            texts = value if isinstance(value, list) else [value]
            if not all(isinstance(text, str) for text in texts):
                complaints.append(f"{name}: must be text, to be put above the question, not {type(value).__name__}")
                continue
            new = [text for text in texts if not _contains_context(question, text.strip())]
            above += new
            self.repeats.update(() if new else (name,))
        if above:
            question = "\n\n".join([*above, question])
        if isinstance(self.options, str):
            complaints.append(self.options)
        elif self.options and not all(self._shows_option(question, label) for label in self.options):
            question += "\n" + "\n".join(self.options.values())
        return question, complaints

    def system(self) -> Any:
        """Returns the system text of the row's columns, or None. A value that is not text is returned unchanged."""
        texts = [self.columns[name] for name in self._columns_named(SYSTEM)]
        invalid = [text for text in texts if not isinstance(text, str)]
        return invalid[0] if invalid else "\n\n".join(texts) or None

    def solution(self, solution: str, thinking: bool) -> tuple[str, list[str]]:
        """Returns the solution joined with the reasoning of another column, and the problems of that column."""
        columns = self.columns if self._join_solution else {}
        reasoning = {
            name: value for name, value in columns.items() if name.lower() in REASONING and isinstance(value, str)
        }
        self.read.update(reasoning)
        for name, value in columns.items():
            if name.lower() in REASONING and isinstance(value, list | tuple | Mapping):
                self.read.add(name)
                return solution, [f"{name}: {reasoning_rule(name, value)}"]
        return attach_reasoning(solution, reasoning, thinking, "solution") if reasoning else (solution, [])

    def answer(self, answer: Any, task: str) -> Any:
        """Returns the answer in the form of the task: an option's number (from 0) or text becomes its label or text.

        Args:
            answer: the value of the answer column.
            task: `choice` returns the label of the option, other task families return its text.

        Raises:
            ValueError: the answer is not one of the options.
        """
        if (
            not isinstance(self.options, dict)
            or not any(self.options)
            or isinstance(answer, bool)
            or not isinstance(answer, str | int)
        ):
            return answer
        labels, texts = list(self.options), [self._option_texts[label] for label in self.options]
        text = str(answer).strip()
        if not isinstance(answer, int) and (text.upper() in labels or not text.isdecimal()):
            if task != "choice" or text.upper() in labels:
                return answer
            if len(text) == 1 and text.isalpha() and text not in texts:
                raise ValueError(f"{text!r} is not one of the {len(labels)} options ({', '.join(labels)})")
            return labels[texts.index(text)] if texts.count(text) == 1 else answer
        # A number is an option's text if the options are numbers or the answer is text; otherwise it is an index.
        if texts.count(text) == 1 and (self._numeric_options or not isinstance(answer, int)):
            index = texts.index(text)
        elif int(text) in range(len(labels)):
            index = int(text)
        elif texts.count(text) == 1:
            index = texts.index(text)
        else:
            raise ValueError(f"{text} is not one of the {len(labels)} options (numbered from 0)")
        return labels[index] if task == "choice" else texts[index]

    def _columns_named(self, names: Collection[str]) -> list[str]:
        matches = [name for name in self.columns if name.lower() in names]
        self.read.update(matches)
        return matches

    def _read_options(self) -> dict[str, str] | str:
        """Returns label -> line of the option, or the problem with the options; empty if the row has none."""
        names = self._columns_named(OPTIONS)
        if any(self.columns[name] != self.columns[names[0]] for name in names):
            return f"{names[0]}: differs from the options in {names[1]!r}; keep one of them"
        for name in names:
            value = decoded(self.columns[name])
            if isinstance(value, str):
                problem = python_literal_problem(value)
                return f"{name}: {problem}" if problem else {"": value}
            pairs = _option_pairs(value)
            self._numeric_options = isinstance(value, list) and all(isinstance(option, int | float) for option in value)
            if pairs is None:
                return f"{name}: must be a list of texts, or as many labels as texts, to be put below the question"
            return self._option_lines(pairs)
        columns = {letter: letter for letter in LETTERS if letter in self._row}
        if "A" not in columns or "B" not in columns or not any(name in self.columns for name in columns):
            labels = {name: match[1] for name in self._row if (match := _OPTION_COLUMN.fullmatch(name))}
            columns = {label.upper(): name for name, label in labels.items()} if len(labels) > 1 else {}
        columns = dict(sorted(columns.items()))
        filled = {label: name for label, name in columns.items() if name in self.columns}
        if len(filled) < 2 or not all(isinstance(self.columns[name], str | int | float) for name in filled.values()):
            return {}
        self.read.update(filled.values())
        if empty := [name for name in list(columns.values())[: len(filled)] if name not in self.columns]:
            return f"{empty[0]}: is an empty option before others; fill it, or leave the row out"
        return self._option_lines([(label, str(self.columns[name])) for label, name in filled.items()])

    def _option_lines(self, pairs: list[tuple[str, str]]) -> dict[str, str]:
        """Returns label -> line. If all texts already begin with their labels, they are used unchanged."""
        matches = [_LABEL.match(text) for _, text in pairs]
        if all(match and match[1].upper() == label.upper() for match, (label, _) in zip(matches, pairs, strict=True)):
            self._option_texts = {label: _LABEL.sub("", text, count=1).strip() for label, text in pairs}
            return {label: text.strip() for label, text in pairs}
        self._option_texts = {label: text.strip() for label, text in pairs}
        return {label: f"{label}) {text.strip()}" for label, text in pairs}

    def _shows_option(self, question: str, label: str) -> bool:
        """Returns whether the question already contains the option with its label."""
        assert isinstance(self.options, dict)
        text = re.escape(self._option_texts.get(label, self.options[label]))
        return bool(re.search(rf"(?<!\w)[(\[]?{re.escape(label)}[)\].:]*\s*{text}", question))


def _contains_context(question: str, text: str) -> bool:
    """Returns whether a question already contains a context.

    It equals the context, or contains it as at least `PROSE_WORDS` words: fewer words could match by chance.
    """
    if text == question.strip():
        return True
    return len(text.split()) >= PROSE_WORDS and bool(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", question))


def _option_pairs(value: Any) -> list[tuple[str, str]] | None:
    """Returns options as (label, text) pairs, or None if the value has another form.

    Accepts a list of texts, {label: text}, {label: [...], text: [...]}, and a list of objects with label and text.
    """
    if isinstance(value, Mapping):
        labels, texts = value.get("label", value.get("labels")), value.get("text", value.get("texts"))
        if isinstance(labels, list) and isinstance(texts, list):
            if len(labels) != len(texts) or len(set(map(str, labels))) < len(labels):
                return None
            value = dict(zip(map(str, labels), texts, strict=True))
        pairs = [(str(label), text) for label, text in value.items()]
        # Parquet fills structs to a common length, so that options at the end may be null.
        while pairs and not has_content(pairs[-1][1]):
            pairs.pop()
    elif isinstance(value, list) and all(isinstance(option, Mapping) for option in value):
        pairs = [
            (str(option.get("label", option.get("key", ""))), option.get("text", option.get("value")))
            for option in value
        ]
    elif isinstance(value, list):
        pairs = list(zip(_labels(value), value, strict=True))
    else:
        return None
    usable = all(isinstance(text, str | int | float) and not isinstance(text, bool) for _, text in pairs)
    distinct = len({label for label, _ in pairs}) == len(pairs)
    return [(label, str(text)) for label, text in pairs] if usable and distinct else None


def _labels(texts: list[Any]) -> list[str]:
    """Returns the labels at the beginning of the options if they are the first letters or numbers, in any order.

    Otherwise returns letters in order. This keeps texts such as `E. coli` from being read as labels.
    """
    numbers = [str(number) for number in range(1, len(texts) + 1)]
    matches = [_LABEL.match(text) if isinstance(text, str) else None for text in texts]
    labels = [match[1].upper() for match in matches if match]
    letters = [*LETTERS[: len(texts)], *numbers[len(LETTERS) :]]
    return labels if sorted(labels) in (sorted(numbers), sorted(letters)) else letters
