"""Task families: how a solution states its answer, and how two answers are compared.

A family compares answers itself where it can (`Task.same`). Answers whose mathematics must be parsed, or that execute
untrusted code, go to the processes of `checker.py`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from dartune.answers.closing_sentence import closing_number
from dartune.answers.equality import (
    MAX_ANSWER_CHARS,
    HasAnswer,
    Number,
    normalise,
    parse_number,
    resolve_answer,
    same_plain,
    without_markup,
)
from dartune.config.plugins import Registry
from dartune.errors import InputError
from dartune.sandbox.unit_tests import parsed_tests
from dartune.text.features import StatedAnswer, numbers, numbers_at, stated_answers
from dartune.text.number_spelling import normalise_spelling


class Task:
    """The family `math`, and the base class of the other families."""

    name = "math"
    inapplicable_gates: frozenset[str] = frozenset()
    """Gates that do not apply to solutions of this family."""
    of_numbers = True
    """Whether answers are calculated. An answer in front of the first equation was then known beforehand."""
    blocks = False
    """Whether an answer is a separate block of text (a program), which occurs once, at the end."""
    sandboxed: str | None = None
    """`module:function` of (answer, gold) that runs in the sandbox where `same` returns None. None: math-verify."""

    def stated(self, text: str) -> Sequence[StatedAnswer]:
        """Return every final answer that a text announces, in order."""
        return stated_answers(text)

    def implicit_answer(self, text: str) -> str:
        """Return the answer of a text that announces none; empty if nothing qualifies."""
        return closing_number(text)

    def closing_span(self, text: str) -> tuple[int, int] | None:
        """Return the characters `start:end` of an answer that is not announced; None without one."""
        number = closing_number(text) if self.of_numbers and not self.blocks else ""
        value = numbers(number)[-1:]
        starts = [start for start, candidate in numbers_at(text) if [candidate] == value]
        written = re.compile(r"\d[\d.,]*(?<=\d)").search(text, starts[-1]) if starts else None
        return written.span() if written else None

    def gold(self, row: HasAnswer) -> str | None:
        """Return the gold answer of a row; None if the row has none."""
        return resolve_answer(row)

    def problem(self, row: HasAnswer) -> str | None:
        """Return why a row does not fit this family, as `field: problem`; None if it fits."""
        return None

    def same(self, predicted: str, gold: str) -> bool | None:
        """Return whether two answers are the same; None if a process of the checker must decide."""
        verdict = same_plain(predicted, gold)
        # An answer that is too long to parse is wrong if the gold answer is short; otherwise it is undecided.
        return False if verdict is None and len(predicted) > MAX_ANSWER_CHARS >= len(gold) else verdict

    def worth_asking(self, predicted: str, gold: str) -> bool:
        """Return whether a process should decide an undecided pair. Otherwise its verdict stays None."""
        return max(len(predicted), len(gold)) <= MAX_ANSWER_CHARS


class Exact(Task):
    """Answers that must be the same text, except for case, white space, delimiters and closing punctuation."""

    name = "exact"
    of_numbers = False

    def implicit_answer(self, text: str) -> str:
        return (text.strip().splitlines() or [""])[-1]

    def same(self, predicted: str, gold: str) -> bool | None:
        return bool(normalise(predicted)) and normalise(predicted) == normalise(gold)


_UNIT = re.compile(r"(.*\d)[\s$]*([^\W\d_][^\s=]{0,11}|°\w?)[\s$.]*")
_TIMES_TEN = re.compile(
    r"(?:(?<=\d)\s?(?:\\times|\\cdot|[×·*x])\s?|(?<![\w.^*]))10\s?\^\s?\{?\s?([-+]?\d{1,3})\}?(?!\d)"
)


class Numeric(Task):
    """One number, equal to the gold answer in as many digits as that has, but at least in three significant digits."""

    name = "numeric"

    def problem(self, row: HasAnswer) -> str | None:
        gold = self.gold(row)
        no_number = gold is not None and _parse_measurement(gold) is None
        return f"answer: {gold!r} is not one number, which data.task: numeric requires" if no_number else None

    def same(self, predicted: str, gold: str) -> bool | None:
        number, gold_number = _parse_measurement(predicted), _parse_measurement(gold)
        if number is None or gold_number is None or number.percent != gold_number.percent:
            return False
        if number.unit and gold_number.unit and number.unit != gold_number.unit:
            return False
        return abs(number.value - gold_number.value) <= _tolerance(gold, gold_number.value)


def _parse_measurement(answer: str) -> Number | None:
    """Parse a number with an optional unit behind it: `9.81 m/s^2`."""
    answer = _with_e_notation(answer)
    number = parse_number(answer)
    match = None if number else _UNIT.fullmatch(answer)
    without_unit = parse_number(match[1]) if match else None
    return replace(without_unit, unit=match[2]) if match and without_unit else number


def _with_e_notation(answer: str) -> str:
    """Return an answer without LaTeX, with `3.0 \\times 10^8` as `3.0e8`."""
    if len(answer) > MAX_ANSWER_CHARS:
        return answer
    # The written digits of the gold answer define the tolerance, so the exponent is not multiplied out.
    text = without_markup(answer)
    return normalise_spelling(
        _TIMES_TEN.sub(lambda power: f"{'1' if power[0].startswith('10') else ''}e{power[1]}", text)
    )


def _tolerance(gold: str, value: Fraction) -> Fraction:
    """Return half a unit of the gold answer's last written digit, but at most of its third significant digit."""
    gold = _with_e_notation(gold)
    written = re.search(r"\d[\d,]*(?:\.(\d+))?", gold)
    exponent = re.search(r"\d[eE]([-+]?\d{1,3})", gold)
    decimals = len(written[1] or "") if written and "/" not in gold else 12  # a fraction is exact
    last = Fraction(10) ** (-decimals + int(exponent[1] if exponent else 0))
    third = Fraction(1)
    while value and abs(value) < 100 * third:
        third /= 10
    while abs(value) >= 1000 * third:
        third *= 10
    return min(last, third) / 2


_LABEL = re.compile(
    r"[\s(\[{*$]*(?:([A-Za-z])(?=[\s*$]*(?:[)\]}.:,]|[-–—]\s|$))|(\d)(?=[\s*$]*(?:[)\]}]|[.:,](?!\d)|[-–—]\s|$)))"
)
_SECOND = (
    r"[\s)\]}.:*$]*(?:(?:[,;/&]|\bor\b|\band\b|\\(?:lor|vee|to)\b)[\s(\[{*$]*(?:(?:and|or)\s+)?|\()[\s(\[{*$]*"
    r"%s(?=[\s*$]*(?:[)\]}.:,;/]|\bor\b|\band\b|$))"
)
_SECOND_LETTER, _SECOND_DIGIT = re.compile(_SECOND % "[A-Za-z]"), re.compile(_SECOND % r"\d")
_LABEL_ALONE = re.compile(r"(?<![\w'’])(?:\(([A-Za-z])\)|([B-HJ-Z])|A(?=\W*$))(?![\w'’])")


class Choice(Task):
    """Multiple choice: the label of an option, a letter or a digit, with or without the option's text behind it."""

    name = "choice"
    of_numbers = False

    def implicit_answer(self, text: str) -> str:
        labels = [match[0].strip("()") for match in _LABEL_ALONE.finditer(text)]
        return labels[-1] if labels else ""

    def problem(self, row: HasAnswer) -> str | None:
        gold = self.gold(row)
        if gold is None or label(gold):
            return None
        return f"answer: {gold!r} is not the label of an option, such as B; data.task: exact compares texts"

    def same(self, predicted: str, gold: str) -> bool | None:
        return label(predicted) is not None and label(predicted) == label(gold)


def label(answer: str) -> str | None:
    """Return the option that an answer names, as a capital letter or a digit: `(b) Paris` -> `B`.

    It is None if the answer names no option or several.
    """
    answer = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", answer)
    match = _LABEL.match(answer)
    if match is None:
        return None
    another = (_SECOND_LETTER if match[1] else _SECOND_DIGIT).match(answer, match.end())
    return None if another else (match[1] or match[2]).upper()


_FENCE = re.compile(r"^[ \t]*(```|~~~)[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = ("", "python", "py", "python3")


class Code(Task):
    """A Python program that passes unit tests.

    The gold answer is the tests. The answer of a solution is its last fenced block.
    """

    name = "code"
    of_numbers = False
    blocks = True
    inapplicable_gates = frozenset(
        {"quantities", "entities", "own_names", "follows", "true_sums", "informative", "language"}
    )
    sandboxed = "dartune.sandbox.unit_tests:passes"

    def stated(self, text: str) -> Sequence[StatedAnswer]:
        return _programs(text)

    def implicit_answer(self, text: str) -> str:
        return ""

    def gold(self, row: HasAnswer) -> str | None:
        return row.answer

    def problem(self, row: HasAnswer) -> str | None:
        if not self.stated(row.solution):
            return "solution: contains no program: put it into a ```python block"
        try:
            parsed_tests(row.answer or "assert True")
        except ValueError as error:
            return f"answer: must be unit tests in Python, but {error}"
        return None

    def same(self, predicted: str, gold: str) -> bool | None:
        return None if predicted.strip() else False

    def worth_asking(self, predicted: str, gold: str) -> bool:
        return True


@lru_cache(maxsize=4096)
def _programs(text: str) -> tuple[StatedAnswer, ...]:
    """Return the fenced blocks of Python; without a fence the whole text if it is a program."""
    fences = list(_FENCE.finditer(text))
    if fences:
        return tuple(
            StatedAnswer(match[3], match.start(3), match.end(3), match.start(), match.end())
            for match in fences
            if match[2].lower() in _PYTHON and match[3].strip()
        )
    return (StatedAnswer(text, 0, len(text), 0, len(text)),) if _is_program(text) else ()


def _is_program(text: str) -> bool:
    """Return whether a text is Python with a definition or an import, which plain words rarely are."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom) for node in body)


_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGym(Task):
    """An answer between tags, scored by reasoning-gym.

    The gold answer holds what the scoring function of the task needs, see `reasoning_gym.py`.
    """

    name = "reasoning_gym"
    of_numbers = False
    blocks = True
    inapplicable_gates = frozenset({"follows"})
    sandboxed = "dartune.answers.reasoning_gym:solves"

    def stated(self, text: str) -> Sequence[StatedAnswer]:
        return [
            StatedAnswer(match[1].strip(), match.start(1), match.end(1), match.start(), match.end())
            for match in _TAGGED.finditer(text)
        ]

    def implicit_answer(self, text: str) -> str:
        return ""

    def gold(self, row: HasAnswer) -> str | None:
        return row.answer

    def same(self, predicted: str, gold: str) -> bool | None:
        return None if predicted.strip() else False

    def worth_asking(self, predicted: str, gold: str) -> bool:
        return True


MATH = Task()
TASKS: Registry[Task] = Registry(
    {task.name: task for task in (MATH, Exact(), Numeric(), Choice(), Code(), ReasoningGym())}, "data.task", Task
)
"""The task families by name. A user-defined one is named `module:name`, where `name` is an instance of a `Task`."""


def same_answer(task: Task, predicted: str, gold: str) -> bool | None:
    """Return `task.same` of two answers.

    Raises:
        InputError: the family is user-defined and raises an exception.
    """
    try:
        return task.same(predicted, gold)
    except Exception as error:
        name = next((key for key, family in TASKS.items() if family is task and ":" in key), None)
        if name is None:
            raise
        call = f"same({predicted[:80]!r}, {gold[:80]!r})"
        raise InputError(f"data.task: {name}: {call} fails with {type(error).__name__}: {error}") from error
