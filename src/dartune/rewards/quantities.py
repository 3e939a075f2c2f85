"""The numbers that a source works out, and whether a rewrite works them out too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from dartune.rewards.items import GateInput
from dartune.rewards.languages import CJK, ENGLISH, language_of
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
_OPERATES = re.compile(
    r"\b(?:hal(?:f|ves?|ved)|thirds?|quarters?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|twice|doubles?|doubled|"
    r"triples?|tripled|times|each|every|per|by|more|less|fewer|left|leav\w+|remain\w*|totals?|together|altogether|sum|"
    r"add\w*|plus|minus|subtract\w*|takes?|taking|took|multipl\w+|divid\w+|split\w*|shar\w+|difference|increas\w+|"
    r"decreas\w+|sav(?:es?|ed|ing)|sp(?:ends?|ent)|costs?|older|younger|longer|shorter|ways?|choices)\b"
    r"|(?:%|percent|th|ths) of\b",
    re.IGNORECASE,
)
_RESULTS_IN = re.compile(
    r"\b(?:mak(?:es?|ing)|giv(?:es?|ing)|gets?|comes? to|equals?|needs?|brings?|because|since|so|therefore|hence|thus|"
    r"means|would be|amounts?)\b",
    re.IGNORECASE,
)
"""Words that state a result; a step has more numbers than these: `48 and 24 makes 72`, not `then we get 72`."""
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
_LETTERS = re.compile(r"[^\W\d_]+")
_WITHOUT_SPACES = re.compile(rf"[{CJK}]")
"""Characters of scripts that write no spaces; two of them are about a word."""
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+|(?<=[。！？])")
_EQUALS_BEFORE = re.compile(r"[=≈][\s$]*\Z")
_EXPONENT = re.compile(r"\^\s?\{?-?\d+\}?")
_ARITHMETIC_AT_END = re.compile(r"(?:[\d\s.,()$£€%{}+*/×÷·−^-]|\\(?:[dt]?frac|times|cdot|div)(?![a-z]))*\Z")
_ALGEBRA = re.compile(r"\d\s?[a-z](?![^\W\d_])")
_EXPRESSION = re.compile(r"[\n;=]|[.,](?=\s)|\\\\|\b(?:is|are|so|and|makes?|gives?|pays?|has|have|costs?)\b")
_FRACTION = re.compile(
    r"(?<![\w.])(?:(\d{1,20})\s+)?(?:(\d{1,20})\s?/\s?(\d{1,20})|"
    r"\\[dt]?frac\s?\{(\d{1,20})\}\s?\{(\d{1,20})\})(?![\w.]*\d)"
)
_PERCENT = re.compile(r"(?<![\w.])(\d{1,20}(?:\.\d{1,20})?)\s?(?:\\?%|percent\b)")
_AND_A_PART = re.compile(r"(?<![\w.])(\d{1,20}) and (?:a (half|quarter)|(three) quarters)\b", re.IGNORECASE)
_A_HALF = re.compile(r"\bhalf an? |\b(?:a|one) half\b", re.IGNORECASE)
_PARTS = {"half": Fraction(1, 2), "quarter": Fraction(1, 4), "three": Fraction(3, 4)}


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
    Where the source calculates, a number counts only in a sentence that calculates or tells a step; where it lists
    values, every number counts, in the source's order. What the source itself does not work out so is not asked for.
    """
    needed = required_quantities(item)
    told = in_digits(item.rewrite)
    worked_out = set(results(item.solution)) - set(numbers(item.question))
    missing = {n for n in worked_out if borrowed(told, n) and not borrowed(item.solution, n)}
    by_steps, uses = calculates(item.solution), _uses(item.solution)
    english = language_of(f"{item.question}\n{item.solution}") == ENGLISH
    if by_steps or is_prose(item.solution):
        needed = _met(item.solution, needed, uses, by_steps, english) if by_steps else needed
        if not needed:
            return 1.0
        met = [number for number in _met(item.rewrite, needed, uses, by_steps, english) if number not in missing]
        met += _merged(set(needed) - set(met), item.solution, told)
        enough = len(needed) if len(uses) > 1 else FEW_RESULTS * len(needed)
        return min(1.0, len(met) / enough)
    return lcs_fraction(needed, [number for number in spelled_numbers(item.rewrite) if number not in missing])


def _met(text: str, needed: Sequence[str], uses: Mapping[str, set[str]], only_worked: bool, english: bool) -> list[str]:
    """Those of the needed numbers that a text has, each in a sentence not before the ones that it uses."""
    steps = _steps(text, only_worked=only_worked, english=english)
    places = {number: place for number in needed if (place := _place(number, steps)) is not None}
    return [
        number
        for number, place in places.items()
        if all(places[other] <= place for other in uses.get(number, ()) if other in places)
    ]


def _steps(text: str, *, only_worked: bool, english: bool) -> list[set[Fraction]]:
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
        worked_out = _SIGN.search(told) or _tells_a_step(told, english)
        found.append(_values(told) if worked_out else set())
    return found


def _tells_a_step(sentence: str, english: bool) -> bool:
    """Whether a sentence tells a step in words; where the words are not English, whether it has words enough."""
    if english:
        told = [word for word in words(sentence) if word.isalpha() and len(word) > 1]
        count = len(numbers(sentence))
        calculates = _OPERATES.search(sentence) or 0 < len(_RESULTS_IN.findall(sentence)) < count
        return bool(calculates and _TELLS.search(sentence)) and len(told) >= max(2, count)
    characters = len(_WITHOUT_SPACES.findall(sentence))
    told = [word for word in _LETTERS.findall(_WITHOUT_SPACES.sub(" ", sentence)) if len(word) > 1]
    return len(told) + characters / 2 > max(2, len(numbers(sentence)))


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
    if _A_HALF.search(sentence):
        values.add(Fraction(1, 2))
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


def _merged(missing: set[str], solution: str, rewrite: str) -> list[str]:
    """Those of the missing results whose calculation stands inside a longer one of the rewrite."""
    operands: dict[str, set[str]] = {}
    for expression, result in _equations(solution):
        operands.setdefault(result, _operands(expression))
    calculations = [_operands(expression) for expression, _ in _equations(rewrite)]

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


def _equations(text: str) -> list[tuple[str, str]]:
    """The calculations in front of equals signs, each with its result."""
    found = []
    for line in without_notes(text).split("\n"):
        sides = line.split("=")
        for i, side in enumerate(sides[1:], start=1):
            if told := results(f"={side}")[:1]:
                found.append((_EXPRESSION.split(sides[i - 1])[-1], told[0]))
    return found


def _uses(solution: str) -> Mapping[str, set[str]]:
    """Result -> the earlier results that its equation uses."""
    known: dict[str, set[str]] = {}
    for expression, result in _equations(solution):
        if result not in known:
            known[result] = {number for number in numbers(expression) if number in known and number != result}
    return known
