"""The quantities that a source works out, and the share of them that a rewrite works out too.

A quantity is required if it is a result of the source's reasoning. To count, it must be calculated in the rewrite and
not only stated: a rewrite that copies the values from the demonstration states them without any calculation.
`text/calculations.py` decides which values of a sentence are calculated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache

from dartune.gates.gate_input import GateInput
from dartune.text.calculations import (
    Step,
    equals_up_to_rounding,
    first_sentence_with,
    possibly_worked_out_by_sentence,
    values,
    values_by_sentence,
    worked_out_by_sentence,
)
from dartune.text.equations import calculations
from dartune.text.features import (
    CACHE_SIZE,
    appears_first_as_operand,
    equation_results,
    in_digits,
    lcs_fraction,
    numbers,
    spelled_numbers,
    stated_answers,
    without_notes,
    words,
)
from dartune.text.languages import ENGLISH, language_of

# Numbers too common to show a step.
TRIVIAL = ("0", "1", "-1")
# A solution with fewer words than this lists values; it does not explain them.
PROSE_WORDS = 12
CALCULATION = re.compile(r"[=+*/×÷·]|\d\s?[-−–]\s?\d|\\(?:[dt]?frac|times|cdot|div)")
# A source with at most one result requires all of its numbers, including incidental ones, so this share is enough.
FEW_RESULTS = 0.8
_SIGNS = re.compile(r"[-+*/×÷·−]|\\(?:times|cdot|div|sqrt|[dt]?frac)(?![a-z])")
_OPERATORS = {"×": "*", "·": "*", "\\times": "*", "\\cdot": "*", "÷": "/", "\\div": "/", "−": "-", "\\sqrt": "sqrt"} | {
    f"\\{size}frac": "/" for size in ("", "d", "t")
}
_EXPONENT = re.compile(r"\^\s?\{?-?\d+\}?")
_ARITHMETIC_AT_END = re.compile(r"(?:[\d\s.,()$£€%{}+*/×÷·−^-]|\\(?:[dt]?frac|times|cdot|div)(?![a-z]))*\Z")
# A multiple of an unknown: `3x`, `2 y`.
_ALGEBRA = re.compile(r"\d\s?[a-z](?![^\W\d_])")
# Where the expression before an equals sign can begin.
_EXPRESSION_START = re.compile(r"[\n;=]|[.,](?=\s)|\\\\|\b(?:is|are|so|and|makes?|gives?|pays?|has|have|costs?)\b")


def required_quantities(item: GateInput) -> list[str]:
    """Return the source's numbers that a rewrite must work out, each once, in the source's order.

    These are the results after its equals signs, without 0, 1 and the numbers of the question; if the question gives
    all of them, they are still required. A source with at most one result requires every number it has, except
    for exponents. If such a source is prose, only the numbers that the question does not give are required.
    """
    source_results = list(dict.fromkeys(equation_results(item.solution)))
    not_required = {*spelled_numbers(item.question), *TRIVIAL}
    if len(source_results) > 1:
        new = [number for number in source_results if number not in not_required]
        return new or [number for number in source_results if number not in TRIVIAL]
    source_numbers = list(dict.fromkeys(numbers(_EXPONENT.sub("", item.solution))))
    new = [number for number in source_numbers if number not in not_required]
    if len(new) > 1 and is_prose(item.solution):
        return new
    return [n for n in source_numbers if n not in TRIVIAL] if calculates(item.solution) else source_numbers


def calculates(solution: str) -> bool:
    """Return whether a solution writes calculations, rather than values alone."""
    return bool(CALCULATION.search(reasoning(solution)))


def is_prose(solution: str) -> bool:
    """Return whether a solution explains its steps in words, rather than listing values or writing formulas."""
    tokens = [word for word in words(reasoning(solution)) if word.isalnum()]
    return 2 * sum(word.isalpha() and len(word) > 1 for word in tokens) > len(tokens) >= PROSE_WORDS


def reasoning(text: str) -> str:
    """Return the part of a text before its first final answer."""
    answers = stated_answers(text)
    return text[: answers[0].cue] if answers else text


def quantity_coverage(item: GateInput) -> float:
    """Return the share of the required quantities (0..1) that the rewrite works out, each after what it depends on.

    A step may be part of a longer calculation: `12 * 5 * 4 = 240` for `12 * 5 = 60` and `60 * 4 = 240`.
    If the source calculates, a number counts only where the rewrite calculates it. If the source lists values, every
    number of the rewrite counts, in the source's order. Numbers that the source itself does not show are not required.
    """
    required = required_quantities(item)
    rewrite = in_digits(item.rewrite)
    # A result that the rewrite uses as an operand before working it out was copied from the demonstration.
    source_results = set(equation_results(item.solution)) - set(numbers(item.question))
    copied = {
        n
        for n in source_results
        if appears_first_as_operand(rewrite, n) and not appears_first_as_operand(item.solution, n)
    }
    if not calculates(item.solution) and not is_prose(item.solution):
        return lcs_fraction(required, [number for number in spelled_numbers(item.rewrite) if number not in copied])
    reader = _row_reader(item.question, item.solution)
    required = [number for number in required if number in reader.shown]
    if not required:
        return 1.0
    shown = [number for number in reader.find_shown(item.rewrite, required) if number not in copied]
    shown += _find_merged(set(required) - set(shown), item.solution, rewrite)
    enough = len(required) if len(reader.dependencies) > 1 else FEW_RESULTS * len(required)
    return min(1.0, len(shown) / enough)


class _RowReader:
    """Finds which numbers of a row a text works out, as strictly as the row's source does.

    If the source calculates, a number that it calculates must be calculated in the text as well. A number that the
    source shows in another way (in algebra, for example) only needs a sentence that calculates or tells something. In a
    source of prose, the numbers only have to be stated.
    """

    def __init__(self, question: str, solution: str):
        source_equations = equations(solution)
        self.dependencies = _dependencies(source_equations)
        self.calculates = calculates(solution)
        self.english = language_of(f"{question}\n{solution}") == ENGLISH
        self.steps: dict[Fraction, Step] = {}  # result -> its calculation in the source
        self.strict: set[Fraction] = set()  # results whose written calculation in the source is complete
        for expression, result in source_equations:
            value, operands = Fraction(result), frozenset(map(Fraction, _operands(expression)))
            if operands and value not in self.steps:
                signs: list[str] = _SIGNS.findall(expression)
                operators = frozenset(_OPERATORS.get(sign, sign) for sign in signs)
                self.steps[value] = Step(operators, operands)
            if any(equals_up_to_rounding(calculated, value) for _, calculated in calculations(expression)):
                self.strict.add(value)
        source_results = {Fraction(number) for number in equation_results(solution)}
        in_question = values(in_digits(question))
        # Constants of the source (such as 60 minutes) may be used like numbers of the question; its results may not.
        self.given = in_question | set().union(*values_by_sentence(solution)) - (source_results - in_question)
        # Only numbers that this reader finds in the source itself are required of a rewrite.
        self.shown = frozenset(
            self.find_shown(solution, list(dict.fromkeys([*equation_results(solution), *numbers(solution)])))
        )

    def find_shown(self, text: str, required: Sequence[str]) -> list[str]:
        """Return those required numbers that a text shows, each in a sentence not before the numbers it depends on."""
        if not self.calculates:
            strict, loose = [], values_by_sentence(text)
        else:
            strict = worked_out_by_sentence(text, self.given, self.steps, self.english)
            loose = possibly_worked_out_by_sentence(text, self.english)
        sentence_of = {}  # number -> index of the first sentence that shows it
        for number in required:
            shown_by_sentence = strict if Fraction(number) in self.strict else loose
            if (sentence := first_sentence_with(number, shown_by_sentence)) is not None:
                sentence_of[number] = sentence
        return [
            number
            for number, sentence in sentence_of.items()
            if all(sentence_of[n] <= sentence for n in self.dependencies.get(number, ()) if n in sentence_of)
        ]


@lru_cache(maxsize=CACHE_SIZE)
def _row_reader(question: str, solution: str) -> _RowReader:
    """Return the reader of a row. It is cached because a row has many rewrites."""
    return _RowReader(question, solution)


def _find_merged(missing: set[str], solution: str, rewrite: str) -> list[str]:
    """Return those missing results whose calculation is part of a longer calculation in the rewrite."""
    operands: dict[str, set[str]] = {}
    for expression, result in equations(solution):
        operands.setdefault(result, _operands(expression))
    rewrite_operands = [_operands(expression) for expression, _ in equations(rewrite)]

    def leaves(number: str, calculation: set[str], ancestors: frozenset[str]) -> set[str]:
        """Return the number itself if the calculation uses it, otherwise the leaves of its own operands.

        `ancestors` stops the recursion where equations refer to each other.
        """
        if ancestors and (number in calculation or number in ancestors):
            return {number}
        below = ancestors | {number}
        return {n for operand in operands.get(number, ()) for n in leaves(operand, calculation, below)} or {number}

    # A proper subset: the longer calculation also does something else.
    return [
        number
        for number in missing
        if any(leaves(number, calculation, frozenset()) < calculation for calculation in rewrite_operands)
    ]


def _operands(expression: str) -> set[str]:
    """Return the numbers of the arithmetic at the end of an expression.

    If words stand between the numbers, all numbers of the expression are returned. An expression with algebra has none.
    """
    if _ALGEBRA.search(expression):
        return set()
    arithmetic = _ARITHMETIC_AT_END.search(expression)
    at_end = set(numbers(arithmetic[0])) if arithmetic else set()
    return at_end if len(at_end) > 1 else set(numbers(expression))


def equations(text: str) -> list[tuple[str, str]]:
    """Return the calculations before equals signs, each with its result."""
    pairs = []
    for line in without_notes(text).split("\n"):
        sides = line.split("=")
        for i, side in enumerate(sides[1:], start=1):
            if result := equation_results(f"={side}")[:1]:
                pairs.append((_EXPRESSION_START.split(sides[i - 1])[-1], result[0]))
    return pairs


def _dependencies(source_equations: Sequence[tuple[str, str]]) -> Mapping[str, set[str]]:
    """Map each result to the earlier results that its equation uses."""
    used: dict[str, set[str]] = {}
    for expression, result in source_equations:
        if result not in used:
            used[result] = {number for number in numbers(expression) if number in used and number != result}
    return used
