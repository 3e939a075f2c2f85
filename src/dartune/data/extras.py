"""Columns beside question and solution that change what they mean: they are joined with them, or refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from dartune.data.columns import CONTEXT, PROSE_WORDS
from dartune.data.conversations import (
    CALLS,
    MEDIA,
    ONE_EACH,
    REASONING,
    decoded,
    filled,
    python_trouble,
    thought_rule,
    thoughtful,
)

OPTIONS = ("options", "choices")
SYSTEM = ("system", "system_prompt", "system_message")
HISTORY = ("history", "chat_history", "conversation_history")
LETTERS = "ABCDEFGHIJ"
_OPTION_COLUMN = re.compile(r"(?:option|choice|op|ans)[ _]?([a-j1-9])", re.IGNORECASE)
_LABELLED = re.compile(r"\s*[(\[]?([A-Za-z0-9])(?:[)\]]|[.:](?!\d))")
"""An option that begins with its label: `(A) 3`, `B. 4`, but not `2.5`."""


class Extras:
    """The columns of a row that belong to its texts.

    Args:
        row: the row.
        used: columns that are a field of ours already.
        joins: whether question and solution are joined with anything; a template says all that they are.
    """

    def __init__(self, row: Mapping[str, Any], used: Collection[str], joins: tuple[bool, bool] = (True, True)) -> None:
        self.there = {name: value for name, value in row.items() if name not in used and filled(value)}
        self.read: set[str] = set()
        """Columns that were joined, or refused."""
        self._to_question, self._to_solution = joins
        self.repeats: set[str] = set()
        """Columns whose text the question holds already."""
        self._numbers = False
        self._row = row
        self._bare: dict[str, str] = {}
        """Label -> the option without its label."""
        self.options = self._options() if self._to_question else {}

    def refused(self) -> list[str]:
        """What cannot be told by texts, and what to do."""
        complaints = []
        for name in self.there:
            if name.lower() in HISTORY:
                complaints.append(f"{name}: holds earlier turns; {ONE_EACH}")
            elif name.lower() in CALLS:
                complaints.append(f"{name}: the row has tools, which are not read; leave the row out")
            elif name.lower() in MEDIA:
                complaints.append(f"{name}: only text is read; leave the row out")
            else:
                continue
            self.read.add(name)
        return complaints

    def question(self, question: str) -> tuple[str, list[str]]:
        """The question below its context and above its options, and what is wrong with them."""
        complaints, above = [], []
        for name in self._named(CONTEXT) if self._to_question else ():
            value = self.there[name]
            texts = value if isinstance(value, list) else [value]
            if not all(isinstance(text, str) for text in texts):
                complaints.append(f"{name}: must be text, to stand above the question, not {type(value).__name__}")
                continue
            new = [text for text in texts if not _holds(question, text.strip())]
            above += new
            self.repeats.update(() if new else (name,))
        if above:
            question = "\n\n".join([*above, question])
        if isinstance(self.options, str):
            complaints.append(self.options)
        elif self.options and not all(self._shown(label, question) for label in self.options):
            question += "\n" + "\n".join(self.options.values())
        return question, complaints

    def system(self) -> Any:
        """The system text that a column holds; None where none does."""
        texts = [self.there[name] for name in self._named(SYSTEM)]
        wrong = [text for text in texts if not isinstance(text, str)]
        return wrong[0] if wrong else "\n\n".join(texts) or None

    def solution(self, solution: str, thinking: bool) -> tuple[str, list[str]]:
        """The solution behind the reasoning that another column holds."""
        there = self.there if self._to_solution else {}
        thought = {name: value for name, value in there.items() if name.lower() in REASONING and isinstance(value, str)}
        self.read.update(thought)
        for name, value in there.items():
            if name.lower() in REASONING and isinstance(value, list | tuple | Mapping):
                self.read.add(name)
                return solution, [f"{name}: {thought_rule(name, value)}"]
        return thoughtful(solution, thought, thinking, "solution") if thought else (solution, [])

    def answer(self, answer: Any, task: str) -> Any:
        """The answer as the task wants it: an option's number (from 0 on) or text becomes its label or text.

        Raises:
            ValueError: it is none of the options.
        """
        if (
            not isinstance(self.options, dict)
            or not any(self.options)
            or isinstance(answer, bool)
            or not isinstance(answer, str | int)
        ):
            return answer
        labels, texts = list(self.options), [self._bare[label] for label in self.options]
        text = str(answer).strip()
        if not isinstance(answer, int) and (text.upper() in labels or not text.isdecimal()):
            if task != "choice" or text.upper() in labels:
                return answer
            if len(text) == 1 and text.isalpha() and text not in texts:
                raise ValueError(f"{text!r} is not one of the {len(labels)} options ({', '.join(labels)})")
            return labels[texts.index(text)] if texts.count(text) == 1 else answer
        # A number is a text where the options are numbers, too, else the place of an option.
        if texts.count(text) == 1 and (self._numbers or not isinstance(answer, int)):
            at = texts.index(text)
        elif int(text) in range(len(labels)):
            at = int(text)
        elif texts.count(text) == 1:
            at = texts.index(text)
        else:
            raise ValueError(f"{text} is not one of the {len(labels)} options (numbered from 0)")
        return labels[at] if task == "choice" else texts[at]

    def _named(self, names: Collection[str]) -> list[str]:
        found = [name for name in self.there if name.lower() in names]
        self.read.update(found)
        return found

    def _options(self) -> dict[str, str] | str:
        """Label -> the line that shows the option, or what is wrong with the options; empty where there are none."""
        names = self._named(OPTIONS)
        if any(self.there[name] != self.there[names[0]] for name in names):
            return f"{names[0]}: stands beside {names[1]!r}, with other options; keep one of them"
        for name in names:
            value = decoded(self.there[name])
            if isinstance(value, str):
                trouble = python_trouble(value)
                return f"{name}: {trouble}" if trouble else {"": value}
            pairs = _pairs(value)
            self._numbers = isinstance(value, list) and all(isinstance(one, int | float) for one in value)
            if pairs is None:
                return f"{name}: must be a list of texts, or as many labels as texts, to stand below the question"
            return self._lines(pairs)
        columns = {letter: letter for letter in LETTERS if letter in self._row}
        if "A" not in columns or "B" not in columns or not any(name in self.there for name in columns):
            found = {name: match[1] for name in self._row if (match := _OPTION_COLUMN.fullmatch(name))}
            columns = {label.upper(): name for name, label in found.items()} if len(found) > 1 else {}
        columns = dict(sorted(columns.items()))
        given = {label: name for label, name in columns.items() if name in self.there}
        if len(given) < 2 or not all(isinstance(self.there[name], str | int | float) for name in given.values()):
            return {}
        self.read.update(given.values())
        if empty := [name for name in list(columns.values())[: len(given)] if name not in self.there]:
            return f"{empty[0]}: is an empty option before others; fill it, or leave the row out"
        return self._lines([(label, str(self.there[name])) for label, name in given.items()])

    def _lines(self, pairs: list[tuple[str, str]]) -> dict[str, str]:
        """Label -> line; texts that all begin with their labels stay as they are."""
        matches = [_LABELLED.match(text) for _, text in pairs]
        if all(match and match[1].upper() == label.upper() for match, (label, _) in zip(matches, pairs, strict=True)):
            self._bare = {label: _LABELLED.sub("", text, count=1).strip() for label, text in pairs}
            return {label: text.strip() for label, text in pairs}
        self._bare = {label: text.strip() for label, text in pairs}
        return {label: f"{label}) {text.strip()}" for label, text in pairs}

    def _shown(self, label: str, question: str) -> bool:
        """Whether the question shows the option already."""
        text = re.escape(self._bare.get(label, self.options[label]))
        return bool(re.search(rf"(?<!\w)[(\[]?{re.escape(label)}[)\].:]*\s*{text}", question))


def _holds(question: str, text: str) -> bool:
    """Whether a question holds a context: all of it, or a text of several words that cannot stand there by chance."""
    if text == question.strip():
        return True
    return len(text.split()) >= PROSE_WORDS and bool(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", question))


def _pairs(value: Any) -> list[tuple[str, str]] | None:
    """Options as labels and texts: a list of texts, {label: text}, {label: [...], text: [...]}, or objects of both."""
    if isinstance(value, Mapping):
        labels, texts = value.get("label", value.get("labels")), value.get("text", value.get("texts"))
        if isinstance(labels, list) and isinstance(texts, list):
            if len(labels) != len(texts) or len(set(map(str, labels))) < len(labels):
                return None
            value = dict(zip(map(str, labels), texts, strict=True))
        pairs = [(str(label), text) for label, text in value.items()]
        while pairs and not filled(pairs[-1][1]):
            pairs.pop()
    elif isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        pairs = [(str(one.get("label", one.get("key", ""))), one.get("text", one.get("value"))) for one in value]
    elif isinstance(value, list):
        pairs = list(zip(_labels(value), value, strict=True))
    else:
        return None
    usable = all(isinstance(text, str | int | float) and not isinstance(text, bool) for _, text in pairs)
    distinct = len({label for label, _ in pairs}) == len(pairs)
    return [(label, str(text)) for label, text in pairs] if usable and distinct else None


def _labels(texts: list[Any]) -> list[str]:
    """The labels that all options begin with, the first ones in any order; else letters by their places."""
    numbers = [str(number) for number in range(1, len(texts) + 1)]
    matches = [_LABELLED.match(text) if isinstance(text, str) else None for text in texts]
    found = [match[1].upper() for match in matches if match]
    letters = [*LETTERS[: len(texts)], *numbers[len(LETTERS) :]]
    return found if sorted(found) in (sorted(numbers), sorted(letters)) else letters
