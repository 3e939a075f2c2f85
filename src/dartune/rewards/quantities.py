"""The numbers that a source works out, and whether a rewrite works them out too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache

from dartune.rewards.arithmetic import calculations
from dartune.rewards.items import GateInput
from dartune.rewards.languages import ENGLISH, language_of
from dartune.rewards.steps import Step, about, loosely_worked_out, place, stated, values, worked_out
from dartune.rewards.text import (
    REMEMBERED,
    borrowed,
    in_digits,
    lcs_fraction,
    numbers,
    results,
    spelled_numbers,
    stated_answers,
    without_notes,
    words,
)

TRIVIAL = ("0", "1", "-1")
PROSE_WORDS = 12
"""A solution of fewer words lists values."""
CALCULATION = re.compile(r"[=+*/×÷·]|\d\s?[-−–]\s?\d|\\(?:[dt]?frac|times|cdot|div)")
FEW_RESULTS = 0.8
"""Where a source has one result at most, every number is asked for, and this share of them will do."""
_SIGNS = re.compile(r"[-+*/×÷·−]|\\(?:times|cdot|div|sqrt|[dt]?frac)(?![a-z])")
_OPERATORS = {"×": "*", "·": "*", "\\times": "*", "\\cdot": "*", "÷": "/", "\\div": "/", "−": "-", "\\sqrt": "sqrt"} | {
    f"\\{size}frac": "/" for size in ("", "d", "t")
}
_EXPONENT = re.compile(r"\^\s?\{?-?\d+\}?")
_ARITHMETIC_AT_END = re.compile(r"(?:[\d\s.,()$£€%{}+*/×÷·−^-]|\\(?:[dt]?frac|times|cdot|div)(?![a-z]))*\Z")
_ALGEBRA = re.compile(r"\d\s?[a-z](?![^\W\d_])")
_EXPRESSION = re.compile(r"[\n;=]|[.,](?=\s)|\\\\|\b(?:is|are|so|and|makes?|gives?|pays?|has|have|costs?)\b")


def required_quantities(item: GateInput) -> list[str]:
    """The source's numbers that a rewrite must state, each once.

    What stands behind its equals signs, without 0, 1 and what the question gives, unless it gives all of it. Where that
    is nothing but the answer, or where the source writes no equations, every number it has but for exponents; of prose
    only those that the question has not, and neither 0 nor 1.
    """
    worked_out = list(dict.fromkeys(results(item.solution)))
    given = {*spelled_numbers(item.question), *TRIVIAL}
    if len(worked_out) > 1:
        new = [number for number in worked_out if number not in given]
        return new or [number for number in worked_out if number not in TRIVIAL]
    everything = list(dict.fromkeys(numbers(_EXPONENT.sub("", item.solution))))
    new = [number for number in everything if number not in given]
    if len(new) > 1 and is_prose(item.solution):
        return new
    return [n for n in everything if n not in TRIVIAL] if calculates(item.solution) else everything


def calculates(solution: str) -> bool:
    """Whether a solution writes calculations, and not values alone."""
    return bool(CALCULATION.search(reasoning(solution)))


def is_prose(solution: str) -> bool:
    """Whether a solution explains itself in words rather than listing values or writing formulas."""
    told = [word for word in words(reasoning(solution)) if word.isalnum()]
    return 2 * sum(word.isalpha() and len(word) > 1 for word in told) > len(told) >= PROSE_WORDS


def reasoning(text: str) -> str:
    """What comes before the first final answer."""
    stated = stated_answers(text)
    return text[: stated[0].cue] if stated else text


def covered(item: GateInput) -> float:
    """Share of the required quantities (0..1) that the rewrite works out: each in a step, none before what it needs.

    A step may be part of a longer calculation: `12 * 5 * 4 = 240` for `12 * 5 = 60` and `60 * 4 = 240`.
    Where the source calculates, a number counts only where the rewrite works it out (`steps.py`); where it lists
    values, every number counts, in the source's order. What the source itself does not work out is not asked for.
    """
    needed = required_quantities(item)
    told = in_digits(item.rewrite)
    from_results = set(results(item.solution)) - set(numbers(item.question))
    missing = {n for n in from_results if borrowed(told, n) and not borrowed(item.solution, n)}
    if not calculates(item.solution) and not is_prose(item.solution):
        return lcs_fraction(needed, [number for number in spelled_numbers(item.rewrite) if number not in missing])
    reading = _reading(item.question, item.solution)
    needed = [number for number in needed if number in reading.shown]
    if not needed:
        return 1.0
    met = [number for number in reading.met(item.rewrite, needed) if number not in missing]
    met += _merged(set(needed) - set(met), item.solution, told)
    enough = len(needed) if len(reading.uses) > 1 else FEW_RESULTS * len(needed)
    return min(1.0, len(met) / enough)


class _Reading:
    """Which of a row's numbers a text works out: as strictly as its source does.

    Where the source calculates, what it works out has to be worked out, and what it shows in another way (in algebra,
    say) has to stand in a sentence that calculates or tells something. Of prose the numbers are asked for alone.
    """

    def __init__(self, question: str, solution: str):
        written = equations(solution)
        self.uses = _uses(written)
        self.by_steps = calculates(solution)
        self.english = language_of(f"{question}\n{solution}") == ENGLISH
        self.steps: dict[Fraction, Step] = {}
        self.strict: set[Fraction] = set()
        for expression, result in written:
            value, operands = Fraction(result), frozenset(map(Fraction, _operands(expression)))
            if operands and value not in self.steps:
                operators = frozenset(_OPERATORS.get(sign, sign) for sign in _SIGNS.findall(expression))
                self.steps[value] = Step(operators, operands)
            if any(about(found, value) for _, found in calculations(expression)):
                self.strict.add(value)
        new = {Fraction(number) for number in results(solution)}
        asked = values(in_digits(question))
        self.given = asked | set().union(*stated(solution)) - (new - asked)
        self.shown = frozenset(self.met(solution, list(dict.fromkeys([*results(solution), *numbers(solution)]))))

    def _worked_out(self, text: str) -> list[set[Fraction]]:
        return worked_out(text, self.given, self.steps, self.english)

    def met(self, text: str, needed: Sequence[str]) -> list[str]:
        """Those of the needed numbers that a text has, each in a sentence not before the ones that it uses."""
        if not self.by_steps:
            strict, loose = [], stated(text)
        else:
            strict, loose = self._worked_out(text), loosely_worked_out(text, self.english)
        places = {}
        for number in needed:
            asked = strict if Fraction(number) in self.strict else loose
            if (at := place(number, asked)) is not None:
                places[number] = at
        return [
            number
            for number, at in places.items()
            if all(places[other] <= at for other in self.uses.get(number, ()) if other in places)
        ]


@lru_cache(maxsize=REMEMBERED)
def _reading(question: str, solution: str) -> _Reading:
    """The reading of a row, kept for its other rewrites."""
    return _Reading(question, solution)


def _merged(missing: set[str], solution: str, rewrite: str) -> list[str]:
    """Those of the missing results whose calculation stands inside a longer one of the rewrite."""
    operands: dict[str, set[str]] = {}
    for expression, result in equations(solution):
        operands.setdefault(result, _operands(expression))
    calculations = [_operands(expression) for expression, _ in equations(rewrite)]

    def leaves(number: str, calculation: set[str], above: frozenset[str]) -> set[str]:
        """What a number is made of: itself where the calculation has it, else its operands' leaves."""
        if above and (number in calculation or number in above):
            return {number}
        below = above | {number}
        return {n for part in operands.get(number, ()) for n in leaves(part, calculation, below)} or {number}

    return [n for n in missing if any(leaves(n, one, frozenset()) < one for one in calculations)]


def _operands(expression: str) -> set[str]:
    """The numbers of the arithmetic that an expression ends on; all where it has words in it, none of algebra."""
    if _ALGEBRA.search(expression):
        return set()
    at_end = set(numbers(_ARITHMETIC_AT_END.search(expression)[0]))
    return at_end if len(at_end) > 1 else set(numbers(expression))


def equations(text: str) -> list[tuple[str, str]]:
    """The calculations in front of equals signs, each with its result."""
    found = []
    for line in without_notes(text).split("\n"):
        sides = line.split("=")
        for i, side in enumerate(sides[1:], start=1):
            if told := results(f"={side}")[:1]:
                found.append((_EXPRESSION.split(sides[i - 1])[-1], told[0]))
    return found


def _uses(written: Sequence[tuple[str, str]]) -> Mapping[str, set[str]]:
    """Result -> the earlier results that its equation uses."""
    known: dict[str, set[str]] = {}
    for expression, result in written:
        if result not in known:
            known[result] = {number for number in numbers(expression) if number in known and number != result}
    return known
