"""Task families: where a solution of one states its answer, and when that answer is right.

A family answers what it can by itself (`same`); what needs mathematics read, or a stranger's program run, goes to the
processes of `checker.py`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from dartune.rewards.closing import closing_number
from dartune.rewards.spelling import ordinary
from dartune.rewards.text import StatedAnswer, numbers, numbers_at, stated_answers
from dartune.rewards.unit_tests import parsed_tests
from dartune.rewards.verify import (
    MAX_ANSWER_CHARS,
    HasAnswer,
    Number,
    normalise,
    parse_number,
    resolve_answer,
    same_plain,
    without_markup,
)


class Task:
    """Mathematics, and what the other families change."""

    name = "math"
    unfit: frozenset[str] = frozenset()
    """Gates that say nothing about such solutions."""
    of_numbers = True
    """Whether answers are worked out from numbers, so that one in front of the first equation was known beforehand."""
    blocks = False
    """Whether an answer is a block of text of its own (a program), of which there is one, at the end."""
    sandboxed: str | None = None
    """`module:function` of (answer, gold) that decides what `same` leaves open; None: math-verify."""

    def stated(self, text: str) -> Sequence[StatedAnswer]:
        """Every final answer that a text announces, in order."""
        return stated_answers(text)

    def unannounced(self, text: str) -> str:
        """What counts as the answer of a text that announces none; empty where there is nothing."""
        return closing_number(text)

    def closing_span(self, text: str) -> tuple[int, int] | None:
        """Characters `start:end` of an answer that is not announced; None where there is none."""
        number = closing_number(text) if self.of_numbers and not self.blocks else ""
        value = numbers(number)[-1:]
        places = [place for place, found in numbers_at(text) if [found] == value]
        written = re.compile(r"\d[\d.,]*(?<=\d)").search(text, places[-1]) if places else None
        return written.span() if written else None

    def gold(self, row: HasAnswer) -> str | None:
        """The right answer of a row; None where it cannot be checked."""
        return resolve_answer(row)

    def trouble(self, row: HasAnswer) -> str | None:
        """What keeps a row from being of this family, as `field: what is wrong`."""
        return None

    def same(self, predicted: str, gold: str) -> bool | None:
        """Whether two answers are the same; None where a process must say."""
        verdict = same_plain(predicted, gold)
        # An answer far longer than a short gold one is a wrong answer, not one that cannot be judged.
        return False if verdict is None and len(predicted) > MAX_ANSWER_CHARS >= len(gold) else verdict

    def worth_asking(self, predicted: str, gold: str) -> bool:
        return max(len(predicted), len(gold)) <= MAX_ANSWER_CHARS


class Exact(Task):
    """Answers that are the same text, but for capitals, white space, delimiters and closing punctuation."""

    name = "exact"
    of_numbers = False

    def unannounced(self, text: str) -> str:
        return (text.strip().splitlines() or [""])[-1]

    def same(self, predicted: str, gold: str) -> bool | None:
        return bool(normalise(predicted)) and normalise(predicted) == normalise(gold)


_UNIT = re.compile(r"(.*\d)[\s$]*([^\W\d_][^\s=]{0,11}|°\w?)[\s$.]*")
_TIMES_TEN = re.compile(
    r"(?:(?<=\d)\s?(?:\\times|\\cdot|[×·*x])\s?|(?<![\w.^*]))10\s?\^\s?\{?\s?([-+]?\d{1,3})\}?(?!\d)"
)


class Numeric(Task):
    """One number, right to as many digits as the gold answer has, but never to fewer than three that count."""

    name = "numeric"

    def trouble(self, row: HasAnswer) -> str | None:
        gold = self.gold(row)
        wrong = gold is not None and _measured(gold) is None
        return f"answer: {gold!r} is not one number, which data.task: numeric asks for" if wrong else None

    def same(self, predicted: str, gold: str) -> bool | None:
        one, other = _measured(predicted), _measured(gold)
        if one is None or other is None or one.percent != other.percent:
            return False
        if one.unit and other.unit and one.unit != other.unit:
            return False
        return abs(one.value - other.value) <= _half_unit(gold, other.value)


def _measured(answer: str) -> Number | None:
    """The number of an answer, perhaps with a unit behind it: `9.81 m/s^2`."""
    answer = _with_exponent(answer)
    number = parse_number(answer)
    match = None if number else _UNIT.fullmatch(answer)
    bare = parse_number(match[1]) if match else None
    return replace(bare, unit=match[2]) if bare else number


def _with_exponent(answer: str) -> str:
    """The answer without LaTeX, `3.0 \\times 10^8` as `3.0e8`."""
    if len(answer) > MAX_ANSWER_CHARS:
        return answer
    # The digits as they are written say how exact the gold answer is, so the exponent stays.
    text = without_markup(answer)
    return ordinary(_TIMES_TEN.sub(lambda power: f"{'1' if power[0].startswith('10') else ''}e{power[1]}", text))


def _half_unit(gold: str, value: Fraction) -> Fraction:
    """Half of the last written digit's unit, of the third counting digit's at most."""
    gold = _with_exponent(gold)
    written = re.search(r"\d[\d,]*(?:\.(\d+))?", gold)
    exponent = re.search(r"\d[eE]([-+]?\d{1,3})", gold)
    decimals = len(written[1] or "") if written and "/" not in gold else 12
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
    """Multiple choice: the label of an option, a letter or a digit, perhaps with the option's text behind it."""

    name = "choice"
    of_numbers = False

    def unannounced(self, text: str) -> str:
        labels = [match[0].strip("()") for match in _LABEL_ALONE.finditer(text)]
        return labels[-1] if labels else ""

    def trouble(self, row: HasAnswer) -> str | None:
        gold = self.gold(row)
        if gold is None or label(gold):
            return None
        return f"answer: {gold!r} is no option's label, such as B; data.task: exact compares texts"

    def same(self, predicted: str, gold: str) -> bool | None:
        return label(predicted) is not None and label(predicted) == label(gold)


def label(answer: str) -> str | None:
    """The option that an answer names, as a capital letter or a digit: `(b) Paris` is B; None where it is not one."""
    answer = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", answer)
    match = _LABEL.match(answer)
    if match is None:
        return None
    another = (_SECOND_LETTER if match[1] else _SECOND_DIGIT).match(answer, match.end())
    return None if another else (match[1] or match[2]).upper()


_FENCE = re.compile(r"^[ \t]*(```|~~~)[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = ("", "python", "py", "python3")


class Code(Task):
    """A Python program that fulfils unit tests: the row's answer is the tests, the solution's its last fenced block."""

    name = "code"
    of_numbers = False
    blocks = True
    unfit = frozenset({"quantities", "entities", "own_names", "follows", "true_sums", "informative", "language"})
    sandboxed = "dartune.rewards.unit_tests:passes"

    def stated(self, text: str) -> Sequence[StatedAnswer]:
        return _programs(text)

    def unannounced(self, text: str) -> str:
        return ""

    def gold(self, row: HasAnswer) -> str | None:
        return row.answer

    def trouble(self, row: HasAnswer) -> str | None:
        if not self.stated(row.solution):
            return "solution: holds no program: put it into a ```python block"
        try:
            parsed_tests(row.answer or "assert True")
        except ValueError as error:
            return f"answer: must be unit tests as Python, but {error}"
        return None

    def same(self, predicted: str, gold: str) -> bool | None:
        return None if predicted.strip() else False

    def worth_asking(self, predicted: str, gold: str) -> bool:
        return True


@lru_cache(maxsize=4096)
def _programs(text: str) -> tuple[StatedAnswer, ...]:
    """Fenced blocks of Python; without any fence the whole text, where it is a program."""
    fences = list(_FENCE.finditer(text))
    if fences:
        return tuple(
            StatedAnswer(match[3], match.start(3), match.end(3), match.start(), match.end())
            for match in fences
            if match[2].lower() in _PYTHON and match[3].strip()
        )
    return (StatedAnswer(text, 0, len(text), 0, len(text)),) if _is_program(text) else ()


def _is_program(text: str) -> bool:
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom) for node in body)


_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGym(Task):
    """An answer between tags, which reasoning-gym's own function judges; the row's answer has what that needs."""

    name = "reasoning_gym"
    of_numbers = False
    blocks = True
    unfit = frozenset({"follows"})
    sandboxed = "dartune.rewards.gym:solves"

    def stated(self, text: str) -> Sequence[StatedAnswer]:
        return [
            StatedAnswer(match[1].strip(), match.start(1), match.end(1), match.start(), match.end())
            for match in _TAGGED.finditer(text)
        ]

    def unannounced(self, text: str) -> str:
        return ""

    def gold(self, row: HasAnswer) -> str | None:
        return row.answer

    def same(self, predicted: str, gold: str) -> bool | None:
        return None if predicted.strip() else False

    def worth_asking(self, predicted: str, gold: str) -> bool:
        return True


MATH = Task()
TASKS: dict[str, Task] = {one.name: one for one in (MATH, Exact(), Numeric(), Choice(), Code(), ReasoningGym())}
