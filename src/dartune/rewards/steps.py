"""The numbers that each sentence of a solution works out, by a written calculation or by a step told in words.

A number counts where the text calculates it: `48 + 24 = 72`, `half of 48 is 24`. It does not where it is only stated
(`May = 24`), restated (`24 = 24`, `24 x 1 = 24`), or put together from numbers that occur nowhere else (`30 + 6 = 36`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction

from dartune.rewards.arithmetic import calculations
from dartune.rewards.languages import CJK
from dartune.rewards.text import in_digits, numbers, numbers_at, stated_answers, without_notes, words

SENTENCE = re.compile(r"(?<=[.!?;])(?<!\bi\.e\.)(?<!\be\.g\.)\s+|\n+|(?<=[。！？])")
_SIGN = re.compile(r"[=≈+*×÷·]|\d\s?[-−–]\s?[\d(]|\d\s+/\s+\d|\\(?:times|cdot|div|approx|binom)(?![a-z])")
_EQUALS_BEFORE = re.compile(r"[=≈][\s$]*\Z")
_ALGEBRA = re.compile(r"\d\s?(?!x\s?[\d(])[abknpqrwxyz](?![^\W\d_])")
"""A multiple of an unknown; other letters behind a number are units, and an x in front of a number is a sign."""
_PROPORTION = re.compile(
    r"\b(?:hal(?:f|ves?|ved)|thirds?|quarters?|fifths?|sixths?|sevenths?|eighths?|fourths?|ninths?|tenths?|twice|doubl\w+|"
    r"tripl\w+|thrice|percent)\b|%|(?<=\d)(?:th|ths) of\b",
    re.IGNORECASE,
)
"""Words of a product or quotient that name its factor."""
_SCALES = re.compile(
    r"\b(?:times|each|every|per|by|of|divid\w+|split\w*|shar\w+|multipl\w+|cost\w*|average\w*|equally|apiece|rate|at|for|"
    r"mak(?:es?|ing)|means|seconds?|minutes?|hours?|days?|weeks?|ways?|choices|"
    r"in other words|i\.e|that is|that['’]s|or)\b",
    re.IGNORECASE,
)
_ADDS = re.compile(
    r"\b(?:totals?|together|altogether|in all|overall|combin\w+|sum|add\w*|plus|more|also|another|both|brings?|"
    r"brought|increas\w+|older|longer|taller|left|leav\w*|remain\w*|less|fewer|minus|subtract\w*|takes?|taking|took|short|"
    r"still|difference|decreas\w+|younger|shorter|sav(?:es?|ed|ing)|sp(?:ends?|ent)|los(?:es?|t)|giv\w*|gave|after|"
    r"rest|changes?|needs?|owes?|reduc\w+|discount|off|from|mak(?:es?|ing)|means|comes?|later|earlier|above|below|behind|ahead|over)\b",
    re.IGNORECASE,
)
_TELLS = re.compile(
    r"\b(?:is|are|was|were|be|has|have|had|which|that|this|these|she|he|it|they|we|i|you|makes?|gives?|leaves?|gets?|costs?|"
    r"pays?|needs?|takes?|saves?|means|so|starts?|receives?|reads?|sells?|sold|buys?|bought|eats?|ate|earns?|adds?|brings?|"
    r"spends?|spent|works?|uses?|comes?|came|gave|won|lost|made|[a-z]{3,}ed)\b",
    re.IGNORECASE,
)
"""A sentence that tells a step has one of these; a list of values has not."""
_CLAUSE = re.compile(r"[,;:](?!\d)\s?|\s(?=(?:so|then|and)\s)")
_LETTERS = re.compile(r"[^\W\d_]+")
_WITHOUT_SPACES = re.compile(rf"[{CJK}]")
"""Characters of scripts that write no spaces; two of them are about a word."""
_TAUTOLOGY = re.compile(
    r"(?<![\w.,+*/×÷·^-])(?<![+*/×÷·−-] )\$?(\d[\d,.]*\d|\d)\s*=\s*\$?\1(?![\w]|[.,]\d|\s*[+*/×÷·−-]\s*[\d($])"
)
_FRACTION = re.compile(
    r"(?<![\w.])(?:(\d{1,20})\s+)?(?:(\d{1,20})\s?/\s?(\d{1,20})|"
    r"\\[dt]?frac\s?\{(\d{1,20})\}\s?\{(\d{1,20})\})(?![\w.]*\d)"
)
_PERCENT = re.compile(r"(?<![\w.])(\d{1,20}(?:\.\d{1,20})?)\s?(?:\\?%|percent\b|cents?\b|¢)")
_AND_A_PART = re.compile(r"(?<![\w.])(\d{1,20}) and (?:a (half|quarter)|(three) quarters)\b", re.IGNORECASE)
_A_HALF = re.compile(r"\bhalf an? |\b(?:a|one) half\b", re.IGNORECASE)
_PARTS = {"half": Fraction(1, 2), "quarter": Fraction(1, 4), "three": Fraction(3, 4)}


PARTS_BEFORE = 6
"""Parts of a sentence that may lead to a value."""
Part = tuple[str, set[Fraction]]
"""A part of a sentence, with the values in it."""


@dataclass(frozen=True, slots=True)
class Step:
    """How a solution works a number out: the signs of its calculation, and the numbers that stand in it."""

    operators: frozenset[str]
    operands: frozenset[Fraction]


def stated(text: str) -> list[set[Fraction]]:
    """The values that each sentence of a text has."""
    return [values(in_digits(sentence)) for sentence in SENTENCE.split(without_notes(text))]


def loosely_worked_out(text: str, english: bool) -> list[set[Fraction]]:
    """The values of each sentence that has a sign of arithmetic or tells something; none of other sentences."""
    read = map(_read, _sentences(text))
    return [values(told) if _SIGN.search(told) or _tells(told, english) else set() for told in read]


def worked_out(text: str, given: Set[Fraction], steps: Mapping[Fraction, Step], english: bool) -> list[set[Fraction]]:
    """The values of each sentence that the text calculates, there or before.

    Args:
        given: numbers that may be calculated with before any is worked out: the question's, and the source's own.
        steps: how the source works its numbers out; a step in words has to fit it.
    """
    known, results, seen, done = set(given), set(), set(), set()
    found = []
    for sentence in _sentences(text):
        told = _read(sentence)
        there = values(told)
        seen |= there
        for operands, value in calculations(sentence):
            if len(operands) > 1 and not (known.isdisjoint(operands) and results.isdisjoint(operands)):
                results.add(value)
        signs = bool(_SIGN.search(told))
        algebra = bool(_ALGEBRA.search(told)) and "=" in told
        in_words = _has_words(told) if english else _tells(told, english)
        parts = [(part, values(part)) for part in _CLAUSE.split(told)] if in_words and english else []
        worked = {
            value
            for value in there
            if algebra
            or _calculated(value, results, steps.get(value), there if signs else set())
            or (in_words and (not english or _fits(value, parts, steps, seen)))
        }
        done |= worked
        # What follows from a result needs no sign of how, once all that it is made of has been said.
        worked |= {value for value in there & steps.keys() if in_words and _follows(steps[value], seen, done)}
        known |= worked
        found.append(worked)
    return found


def _sentences(text: str) -> list[str]:
    """A text's sentences, without announced answers that show no calculation."""
    for answer in reversed(stated_answers(text)):
        announced, boxed = text[answer.cue : answer.stop], text.startswith("\\", answer.cue)
        calculated = _EQUALS_BEFORE.search(text[: answer.cue]) if boxed else _SIGN.search(announced)
        if not calculated:
            text = text[: answer.cue] + " " * (answer.stop - answer.cue) + text[answer.stop :]
    return SENTENCE.split(text)


def _read(sentence: str) -> str:
    """A sentence with its small numbers in digits, without equations that say nothing."""
    return in_digits(_TAUTOLOGY.sub(" ", without_notes(sentence)))


def _calculated(value: Fraction, results: Set[Fraction | float], step: Step | None, beside: Set[Fraction]) -> bool:
    """Whether a value is a written calculation's result: of plain numbers, or with words between all of the source's.

    Args:
        beside: the values of its sentence if that has signs of arithmetic.
    """
    if any(about(result, value) for result in results):
        return True
    if step is None:
        return False
    if "sqrt" in step.operators and value * value in results:
        return True
    return len(step.operands) > 1 and step.operands <= beside


def _tells(sentence: str, english: bool) -> bool:
    """Whether a sentence tells something; where the words are not English, whether it has words enough."""
    count = len(numbers(sentence))
    if english:
        told = [word for word in words(sentence) if word.isalpha() and len(word) > 1]
        return bool(_TELLS.search(sentence)) and len(told) >= max(2, count)
    characters = len(_WITHOUT_SPACES.findall(sentence))
    told = [word for word in _LETTERS.findall(_WITHOUT_SPACES.sub(" ", sentence)) if len(word) > 1]
    return len(told) + characters / 2 > max(2, count)


def _has_words(sentence: str) -> bool:
    """Whether a sentence has about as many words as numbers, and two at least; a list of values has not."""
    told = [word for word in words(sentence) if word.isalpha() and len(word) > 1]
    return len(told) >= max(2, len(numbers(sentence)) - 1)


def _follows(step: Step, seen: Set[Fraction], done: Set[Fraction]) -> bool:
    """Whether all numbers of a step have been stated, a result that was worked out among them."""
    return step.operands <= seen and not step.operands.isdisjoint(done)


def _fits(value: Fraction, parts: Sequence[Part], steps: Mapping[Fraction, Step], seen: Set[Fraction]) -> bool:
    """Whether the words beside a value name a calculation like the source's, with a number of it stated so far.

    A factor that is a word (`half`, `twice`) needs no other number. `parts` are those of the sentence.
    """
    step = steps.get(value)
    scales = step is None or not step.operators.isdisjoint("*/")
    adds = step is None or not step.operators.isdisjoint("+-")
    beside = step is None or not step.operands.isdisjoint(seen - {value})
    for clause in _beside(value, parts, steps.keys() - (step.operands if step else set())):
        if scales and _PROPORTION.search(clause):
            return True
        if beside and ((scales and _SCALES.search(clause)) or (adds and _ADDS.search(clause))):
            return True
    return False


def _beside(value: Fraction, parts: Sequence[Part], results: Set[Fraction]) -> Iterator[str]:
    """The parts of a sentence that have a value, each with the parts before it back to another one of the `results`.

    A part behind it that has no number, or opens with a factor (`24, half of 48`), belongs to it as well.
    """
    for i, (part, there) in enumerate(parts):
        if value not in there:
            continue
        first = i
        while first > max(0, i - PARTS_BEFORE) and parts[first - 1][1].isdisjoint(results):
            first -= 1
        behind, next_values = parts[i + 1] if i + 1 < len(parts) else ("", set())
        belongs = not next_values or _PROPORTION.match(behind.lstrip(" (a"))
        yield f"{' '.join(text for text, _ in parts[first:i])} {part} {behind if belongs else ''}"


def about(result: Fraction | float, value: Fraction) -> bool:
    """Whether a calculation's result is a stated value, perhaps rounded to it or to a whole number."""
    if value.denominator == 1:
        return abs(result - value) < 1
    return abs(result - value) <= Fraction(1, 100) * max(1, abs(value))


def values(sentence: str) -> set[Fraction]:
    """Every number of a sentence: as digits, fractions, percentages, cents, and with `and a half`."""
    found = {Fraction(number) for _, number in numbers_at(sentence)}
    for match in _FRACTION.finditer(sentence):
        whole, *parts = match.groups()
        top, bottom = [int(part) for part in parts if part]
        if bottom:
            found.add(int(whole or 0) + Fraction(top, bottom))
            found.add(Fraction(top, bottom))
    found |= {Fraction(match[1]) / 100 for match in _PERCENT.finditer(sentence)}
    if _A_HALF.search(sentence):
        found.add(Fraction(1, 2))
    found |= {int(match[1]) + _PARTS[(match[2] or match[3]).lower()] for match in _AND_A_PART.finditer(sentence)}
    return found


def place(number: str, sentences: Sequence[Set[Fraction]]) -> int | None:
    """The first sentence that has the number, exactly or rounded to the decimals written there."""
    value = Fraction(number)
    return next((i for i, found in enumerate(sentences) if value in found or _rounded(value, found)), None)


def _rounded(value: Fraction, found: Set[Fraction]) -> bool:
    """Whether a value with more decimals than those found have stands among them rounded (8.142857 as 8.14)."""
    for scale in (10, 100, 1000):
        short = Fraction((value * scale + Fraction(1, 2)).__floor__(), scale)
        if short != value and short in found:
            return True
    return False
