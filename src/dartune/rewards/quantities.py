"""The numbers that a source works out, and whether a rewrite works them out too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from dartune.rewards.items import GateInput
from dartune.rewards.text import (
    borrowed,
    in_digits,
    lcs_fraction,
    numbers,
    numbers_at,
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
_SIGN = re.compile(r"[=≈+*×÷·]|\d\s?[-−–]\s?[\d(]|\d\s+/\s+\d|\\(?:times|cdot|div|approx|binom)(?![a-z])")
_ARITHMETIC = re.compile(
    r"\b(?:hal(?:f|ves?|ved)|thirds?|quarters?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|twice|doubles?|doubled|"
    r"triples?|tripled|times|each|every|per|by|more|less|fewer|left|leav\w+|remain\w*|totals?|together|altogether|sum|"
    r"add\w*|plus|minus|subtract\w*|takes?|taking|took|multipl\w+|divid\w+|split\w*|shar\w+|mak(?:es?|ing)|giv(?:es?|ing)|"
    r"gets?|comes? to|equals?|difference|increas\w+|decreas\w+|sav(?:es?|ed|ing)|sp(?:ends?|ent)|costs?|needs?|brings?|"
    r"older|younger|longer|shorter|ways?|choices|because|since|so|therefore|hence|thus|means|would be|amounts?)\b"
    r"|(?:%|percent|th|ths) of\b",
    re.IGNORECASE,
)
_TELLS = re.compile(
    r"\b(?:is|are|was|were|be|has|have|had|which|that|this|these|she|he|it|they|we|i|you|makes?|gives?|leaves?|gets?|costs?|"
    r"pays?|needs?|takes?|saves?|means|so)\b",
    re.IGNORECASE,
)
"""A sentence that tells a step without signs has one of the first words and one of the second; a list has not."""
_TAUTOLOGY = re.compile(
    r"(?<![\w.,+*/×÷·^-])(?<![+*/×÷·−-] )\$?(\d[\d,.]*\d|\d)\s*=\s*\$?\1(?![\w]|[.,]\d|\s*[+*/×÷·−-]\s*[\d($])"
)
_NOTHING_DONE = re.compile(
    r"(?<![\w.,+*/×÷·^-])(?<![+*/×÷·−-] )(\d[\d,.]*\d|\d)\s*(?:[+−-]\s*0|[*×·/÷]\s*1)\s*=\s*\1(?![\w]|[.,]\d)"
)
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+|(?<=[。！？])")
_EQUALS_BEFORE = re.compile(r"[=≈][\s$]*\Z")
_EXPONENT = re.compile(r"\^\s?\{?-?\d+\}?")
_EXPRESSION = re.compile(r"[\n;=]|[.,](?=\s)|\\\\|\b(?:is|are|so|and|makes?|gives?|pays?|has|have|costs?)\b")
_FRACTION = re.compile(
    r"(?<![\w.])(?:(\d{1,20})\s+)?(?:(\d{1,20})\s?/\s?(\d{1,20})|"
    r"\\[dt]?frac\s?\{(\d{1,20})\}\s?\{(\d{1,20})\})(?![\w.]*\d)"
)
_PERCENT = re.compile(r"(?<![\w.])(\d{1,20}(?:\.\d{1,20})?)\s?(?:\\?%|percent\b)")
_AND_A_PART = re.compile(r"(?<![\w.])(\d{1,20}) and (?:a (half|quarter)|(three) quarters)\b", re.IGNORECASE)
_PARTS = {"half": Fraction(1, 2), "quarter": Fraction(1, 4), "three": Fraction(3, 4)}


def required_quantities(item: GateInput) -> list[str]:
    """The source's numbers that a rewrite must state, each once.

    What stands behind its equals signs and is neither given by the question nor 0 or 1. Where that is nothing but the
    answer, or where the source writes no equations, every number it has but for exponents; of prose only those that
    the question has not, and neither 0 nor 1.
    """
    worked_out = list(dict.fromkeys(results(item.solution)))
    given = {*spelled_numbers(item.question), *TRIVIAL}
    if len(worked_out) > 1:
        return [number for number in worked_out if number not in given]
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

    Where the source calculates, a number counts only in a sentence that calculates or tells a step; where it lists
    values, every number counts, in the source's order. What the source itself does not work out so is not asked for.
    """
    needed = required_quantities(item)
    told = in_digits(item.rewrite)
    worked_out = set(results(item.solution)) - set(numbers(item.question))
    missing = {n for n in worked_out if borrowed(told, n) and not borrowed(item.solution, n)}
    by_steps, uses = calculates(item.solution), _uses(item.solution)
    if by_steps or is_prose(item.solution):
        needed = _met(item.solution, needed, uses, by_steps) if by_steps else needed
        if not needed:
            return 1.0
        met = [number for number in _met(item.rewrite, needed, uses, by_steps) if number not in missing]
        enough = len(needed) if len(uses) > 1 else FEW_RESULTS * len(needed)
        return min(1.0, len(met) / enough)
    return lcs_fraction(needed, [number for number in spelled_numbers(item.rewrite) if number not in missing])


def _met(text: str, needed: Sequence[str], uses: Mapping[str, set[str]], only_worked: bool) -> list[str]:
    """Those of the needed numbers that a text has, each in a sentence not before the ones that it uses."""
    steps = _steps(text, only_worked=only_worked)
    places = {number: place for number in needed if (place := _place(number, steps)) is not None}
    return [
        number
        for number, place in places.items()
        if all(places[other] <= place for other in uses.get(number, ()) if other in places)
    ]


def _steps(text: str, *, only_worked: bool) -> list[set[Fraction]]:
    """The values in each sentence of a text, in order; none where a sentence shows no step and steps are asked for.

    An equation that says nothing (`24 = 24`, `24 + 0 = 24`) is no step, nor is an announced answer without one.
    """
    if not only_worked:
        return [_values(in_digits(sentence)) for sentence in _SENTENCE.split(without_notes(text))]
    for answer in reversed(stated_answers(text)):
        announced, boxed = text[answer.cue : answer.stop], text.startswith("\\", answer.cue)
        worked_out = _EQUALS_BEFORE.search(text[: answer.cue]) if boxed else _SIGN.search(announced)
        if not worked_out:
            text = text[: answer.cue] + " " * (answer.stop - answer.cue) + text[answer.stop :]
    found = []
    for sentence in _SENTENCE.split(without_notes(text)):
        told = in_digits(_NOTHING_DONE.sub(" ", _TAUTOLOGY.sub(" ", sentence)))
        prose = [word for word in words(told) if word.isalpha() and len(word) > 1]
        in_words = _ARITHMETIC.search(told) and _TELLS.search(told) and len(prose) >= max(2, len(numbers(told)))
        found.append(_values(told) if in_words or _SIGN.search(told) else set())
    return found


def _values(sentence: str) -> set[Fraction]:
    """Every number of a sentence: as digits, fractions, percentages, and with `and a half`."""
    values = {Fraction(number) for _, number in numbers_at(sentence)}
    for match in _FRACTION.finditer(sentence):
        whole, *parts = match.groups()
        top, bottom = [int(part) for part in parts if part]
        if bottom:
            values.add(int(whole or 0) + Fraction(top, bottom))
            values.add(Fraction(top, bottom))
    values |= {Fraction(match[1]) / 100 for match in _PERCENT.finditer(sentence)}
    values |= {int(match[1]) + _PARTS[(match[2] or match[3]).lower()] for match in _AND_A_PART.finditer(sentence)}
    return values


def _place(number: str, steps: list[set[Fraction]]) -> int | None:
    """The first sentence that has the number, exactly or rounded to the decimals written there."""
    value = Fraction(number)
    return next((i for i, values in enumerate(steps) if value in values or _rounded(value, values)), None)


def _rounded(value: Fraction, values: set[Fraction]) -> bool:
    """Whether a value with more decimals than `values` have stands among them rounded (8.142857 as 8.14)."""
    for scale in (10, 100, 1000):
        short = Fraction((value * scale + Fraction(1, 2)).__floor__(), scale)
        if short != value and short in values:
            return True
    return False


def _uses(solution: str) -> Mapping[str, set[str]]:
    """Result -> the earlier results that its equation uses."""
    known: dict[str, set[str]] = {}
    for line in without_notes(solution).split("\n"):
        sides = line.split("=")
        for i, side in enumerate(sides[1:], start=1):
            told = results(f"={side}")
            if told and told[0] not in known:
                expression = _EXPRESSION.split(sides[i - 1])[-1]
                known[told[0]] = {number for number in numbers(expression) if number in known and number != told[0]}
    return known
