"""Columns beside question and solution that change what they mean: they are joined with them, or refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from dartune.data.columns import CONTEXT
from dartune.data.conversations import CALLS, MEDIA, ONE_EACH, REASONING, decoded, filled, thought_rule, thoughtful

OPTIONS = ("options", "choices")
SYSTEM = ("system", "system_prompt", "system_message")
HISTORY = ("history", "chat_history", "conversation_history")
LETTERS = "ABCDEFGHIJ"
_OPTION_COLUMN = re.compile(r"(?:option|choice|op|ans)[ _]?([a-e1-5])", re.IGNORECASE)
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
        self._numbers = False
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
            above += [text for text in texts if text.strip() not in question]
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
        labels, texts = list(self.options), [self._bare(line) for line in self.options.values()]
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
        for name in self._named(OPTIONS):
            value = decoded(self.there[name])
            if isinstance(value, str):
                return {"": value}
            pairs = _pairs(value)
            self._numbers = isinstance(value, list) and all(isinstance(one, int | float) for one in value)
            if pairs is None:
                return f"{name}: must be a list of texts, or labels and texts, to stand below the question"
            return {label: _line(label, text) for label, text in pairs}
        letters = {letter: letter for letter in LETTERS if letter in self.there}
        columns = letters if "A" in letters and "B" in letters else {}
        if not columns:
            found = {name: match[1] for name in self.there if (match := _OPTION_COLUMN.fullmatch(name))}
            columns = {label.upper(): name for name, label in found.items()} if len(found) > 1 else {}
        if not all(isinstance(self.there[name], str | int | float) for name in columns.values()):
            return {}
        self.read.update(columns.values())
        return {label: _line(label, str(self.there[name])) for label, name in sorted(columns.items())}

    def _shown(self, label: str, question: str) -> bool:
        """Whether the question shows the option already."""
        text = re.escape(self._bare(self.options[label]))
        return bool(re.search(rf"(?<!\w)[(\[]?{re.escape(label)}[)\].:]*\s*{text}", question))

    @staticmethod
    def _bare(line: str) -> str:
        return _LABELLED.sub("", line, count=1).strip()


def _pairs(value: Any) -> list[tuple[str, str]] | None:
    """Options as labels and texts: a list of texts, {label: text}, {label: [...], text: [...]}, or objects of both."""
    if isinstance(value, Mapping):
        labels, texts = value.get("label", value.get("labels")), value.get("text", value.get("texts"))
        if isinstance(labels, list) and isinstance(texts, list):
            value = dict(zip(map(str, labels), texts, strict=False))
        pairs = [(str(label), text) for label, text in value.items() if filled(text)]
    elif isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        pairs = [(str(one.get("label", one.get("key", ""))), one.get("text", one.get("value"))) for one in value]
    elif isinstance(value, list):
        pairs = [(_label(index, text), text) for index, text in enumerate(value)]
    else:
        return None
    usable = all(isinstance(text, str | int | float) and not isinstance(text, bool) for _, text in pairs)
    distinct = len({label for label, _ in pairs}) == len(pairs)
    return [(label, str(text)) for label, text in pairs] if usable and distinct else None


def _label(index: int, text: Any) -> str:
    """The label that an option's text begins with, else a letter by its place."""
    expected = LETTERS[index] if index < len(LETTERS) else str(index + 1)
    match = _LABELLED.match(text) if isinstance(text, str) else None
    return match[1].upper() if match and match[1].upper() in (expected, str(index + 1)) else expected


def _line(label: str, text: str) -> str:
    match = _LABELLED.match(text)
    return text.strip() if match and match[1].upper() == label else f"{label}) {text.strip()}"
