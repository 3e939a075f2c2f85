"""Finds the numbers that each sentence of a solution works out, in a written calculation or in a step in words.

A number counts where the text calculates it: `48 + 24 = 72`, `half of 48 is 24`. It does not count where it is only
stated (`May = 24`), restated (`24 = 24`, `24 x 1 = 24`), or calculated from numbers that occur nowhere else
(`30 + 6 = 36`). Otherwise a rewrite could list the source's values and pass for a solution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction

from dartune.text.equations import calculations
from dartune.text.features import in_digits, numbers, numbers_at, stated_answers, without_notes, words
from dartune.text.languages import CJK

SENTENCE = re.compile(r"(?<=[.!?;])(?<!\bi\.e\.)(?<!\be\.g\.)\s+|\n+|(?<=[。！？])")
_SIGN = re.compile(r"[=≈+*×÷·]|\d\s?[-−–]\s?[\d(]|\d\s+/\s+\d|\\(?:times|cdot|div|approx|binom)(?![a-z])")
_EQUALS_BEFORE = re.compile(r"[=≈][\s$]*\Z")
_ALGEBRA = re.compile(r"\d\s?(?!x\s?[\d(])[abknpqrwxyz](?![^\W\d_])")
"""A multiple of an unknown. Other letters behind a number are units; an x in front of a number is a sign."""
_PROPORTION = re.compile(
    r"\b(?:hal(?:f|ves?|ved)|thirds?|quarters?|fifths?|sixths?|sevenths?|eighths?|fourths?|ninths?|tenths?|twice|doubl\w+|"
    r"tripl\w+|thrice|percent)\b|%|(?<=\d)(?:th|ths) of\b",
    re.IGNORECASE,
)
"""Words that name the factor of a product or quotient."""
_MULTIPLIES = re.compile(
    r"\b(?:times|each|every|per|by|of|divid\w+|split\w*|shar\w+|multipl\w+|cost\w*|average\w*|equally|apiece|rate|at|for|"
    r"mak(?:es?|ing)|means|seconds?|minutes?|hours?|days?|weeks?|ways?|choices|"
    r"in other words|i\.e|that is|that['’]s|or)\b",
    re.IGNORECASE,
)
"""Words of a multiplication or division."""
_ADDS = re.compile(
    r"\b(?:totals?|together|altogether|in all|overall|combin\w+|sum|add\w*|plus|more|also|another|both|brings?|"
    r"brought|increas\w+|older|longer|taller|left|leav\w*|remain\w*|less|fewer|minus|subtract\w*|takes?|taking|took|short|"
    r"still|difference|decreas\w+|younger|shorter|sav(?:es?|ed|ing)|sp(?:ends?|ent)|los(?:es?|t)|giv\w*|gave|after|"
    r"rest|changes?|needs?|owes?|reduc\w+|discount|off|from|mak(?:es?|ing)|means|comes?|later|earlier|above|below|behind|ahead|over)\b",
    re.IGNORECASE,
)
"""Words of an addition or subtraction."""
_VERBS = re.compile(
    r"\b(?:is|are|was|were|be|has|have|had|which|that|this|these|she|he|it|they|we|i|you|makes?|gives?|leaves?|gets?|costs?|"
    r"pays?|needs?|takes?|saves?|means|so|starts?|receives?|reads?|sells?|sold|buys?|bought|eats?|ate|earns?|adds?|brings?|"
    r"spends?|spent|works?|uses?|comes?|came|gave|won|lost|made|[a-z]{3,}ed)\b",
    re.IGNORECASE,
)
"""A sentence that explains a step contains one of these. A list of values does not."""
_CLAUSE = re.compile(r"[,;:](?!\d)\s?|\s(?=(?:so|then|and)\s)")
_LETTERS = re.compile(r"[^\W\d_]+")
_WITHOUT_SPACES = re.compile(rf"[{CJK}]")
"""Characters of scripts without spaces between words. About two of them make a word."""
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

CLAUSES_BEFORE = 6
"""Number of clauses in front of a value that may belong to its calculation."""
Clause = tuple[str, set[Fraction]]
"""A clause of a sentence, with the values in it."""


@dataclass(frozen=True, slots=True)
class Step:
    """How a solution works a number out: the operators and the operands of its calculation."""

    operators: frozenset[str]
    operands: frozenset[Fraction]


def values_by_sentence(text: str) -> list[set[Fraction]]:
    """Return the values in each sentence of a text."""
    return [values(in_digits(sentence)) for sentence in SENTENCE.split(without_notes(text))]


def possibly_worked_out_by_sentence(text: str, english: bool) -> list[set[Fraction]]:
    """Return the values of each sentence that has an arithmetic sign or explains a step, else an empty set."""
    sentences = map(_in_digits, _sentences(text))
    return [
        values(sentence) if _SIGN.search(sentence) or _explains(sentence, english) else set() for sentence in sentences
    ]


def worked_out_by_sentence(
    text: str, given: Set[Fraction], steps: Mapping[Fraction, Step], english: bool
) -> list[set[Fraction]]:
    """Return the values of each sentence that the text works out there or in an earlier sentence.

    Args:
        text: a solution.
        given: numbers that a calculation may use from the start: the question's, and those the source only states.
        steps: how the source works its numbers out. A step in words must match it.
        english: whether the words can be interpreted. Otherwise they are only counted.
    """
    known = set(given)  # may be used as an operand
    results = set()  # of written calculations from known numbers
    seen, calculated = set(), set()  # all values so far, and those with a calculation
    by_sentence = []
    for sentence in _sentences(text):
        normalised = _in_digits(sentence)
        sentence_values = values(normalised)
        seen |= sentence_values
        for operands, value in calculations(sentence):
            if len(operands) > 1 and not (known.isdisjoint(operands) and results.isdisjoint(operands)):
                results.add(value)
        has_signs = bool(_SIGN.search(normalised))
        algebra = bool(_ALGEBRA.search(normalised)) and "=" in normalised
        in_words = _has_words(normalised) if english else _explains(normalised, english)
        clauses = [(clause, values(clause)) for clause in _CLAUSE.split(normalised)] if in_words and english else []
        new_values = {
            value
            for value in sentence_values
            if algebra
            or _calculated(value, results, steps.get(value), sentence_values if has_signs else set())
            or (in_words and (not english or _fits(value, clauses, steps, seen)))
        }
        calculated |= new_values
        # A value that follows from a result needs no word for the operation once all its operands have been stated.
        if in_words:
            new_values |= {v for v in sentence_values & steps.keys() if _follows(steps[v], seen, calculated)}
        known |= new_values
        by_sentence.append(new_values)
    return by_sentence


def _sentences(text: str) -> list[str]:
    """Return a text's sentences, with announced answers that show no calculation blanked out."""
    for answer in reversed(stated_answers(text)):
        announcement, is_box = text[answer.cue : answer.stop], text.startswith("\\", answer.cue)
        calculated = _EQUALS_BEFORE.search(text[: answer.cue]) if is_box else _SIGN.search(announcement)
        if not calculated:
            text = text[: answer.cue] + " " * (answer.stop - answer.cue) + text[answer.stop :]
    return SENTENCE.split(text)


def _in_digits(sentence: str) -> str:
    """Return a sentence with its number words in digits and without tautologies (`24 = 24`)."""
    return in_digits(_TAUTOLOGY.sub(" ", without_notes(sentence)))


def _calculated(value: Fraction, results: Set[Fraction | float], step: Step | None, beside: Set[Fraction]) -> bool:
    """Return whether a value is the result of a written calculation.

    The calculation is one of plain numbers, or a sentence with arithmetic signs that has all operands of the source's
    step, with words between them.

    Args:
        beside: the values of the sentence if it has arithmetic signs, else empty.
    """
    if any(equals_up_to_rounding(result, value) for result in results):
        return True
    if step is None:
        return False
    if "sqrt" in step.operators and value * value in results:
        return True
    return len(step.operands) > 1 and step.operands <= beside


def _explains(sentence: str, english: bool) -> bool:
    """Return whether a sentence has a verb and at least as many words as numbers; if not English, more words."""
    number_count = len(numbers(sentence))
    if english:
        alphabetic = [word for word in words(sentence) if word.isalpha() and len(word) > 1]
        return bool(_VERBS.search(sentence)) and len(alphabetic) >= max(2, number_count)
    characters = len(_WITHOUT_SPACES.findall(sentence))
    alphabetic = [word for word in _LETTERS.findall(_WITHOUT_SPACES.sub(" ", sentence)) if len(word) > 1]
    return len(alphabetic) + characters / 2 > max(2, number_count)


def _has_words(sentence: str) -> bool:
    """Return whether a sentence has at least two words and about as many words as numbers, unlike a list of values."""
    alphabetic = [word for word in words(sentence) if word.isalpha() and len(word) > 1]
    return len(alphabetic) >= max(2, len(numbers(sentence)) - 1)


def _follows(step: Step, seen: Set[Fraction], calculated: Set[Fraction]) -> bool:
    """Return whether all operands of a step have been stated, and at least one of them was worked out."""
    return step.operands <= seen and not step.operands.isdisjoint(calculated)


def _fits(value: Fraction, clauses: Sequence[Clause], steps: Mapping[Fraction, Step], seen: Set[Fraction]) -> bool:
    """Return whether the words beside a value name the source's kind of calculation, and an operand has been stated.

    A factor in words (`half`, `twice`) needs no other number.

    Args:
        clauses: the clauses of the sentence.
        steps: the source's steps. A value without a step there fits any calculation.
        seen: all values of the text so far.
    """
    step = steps.get(value)
    multiplies = step is None or not step.operators.isdisjoint("*/")
    adds = step is None or not step.operators.isdisjoint("+-")
    operand_stated = step is None or not step.operands.isdisjoint(seen - {value})
    for context in _beside(value, clauses, steps.keys() - (step.operands if step else set())):
        if multiplies and _PROPORTION.search(context):
            return True
        if operand_stated and ((multiplies and _MULTIPLIES.search(context)) or (adds and _ADDS.search(context))):
            return True
    return False


def _beside(value: Fraction, clauses: Sequence[Clause], results: Set[Fraction]) -> Iterator[str]:
    """Yield each clause with a value, joined with the clauses before it back to another value of `results`.

    The clause behind it is included if it has no number or opens with a factor (`24, half of 48`).
    """
    for i, (clause, clause_values) in enumerate(clauses):
        if value not in clause_values:
            continue
        first = i
        while first > max(0, i - CLAUSES_BEFORE) and clauses[first - 1][1].isdisjoint(results):
            first -= 1
        behind, next_values = clauses[i + 1] if i + 1 < len(clauses) else ("", set())
        belongs = not next_values or _PROPORTION.match(behind.lstrip(" (a"))
        yield f"{' '.join(text for text, _ in clauses[first:i])} {clause} {behind if belongs else ''}"


def equals_up_to_rounding(result: Fraction | float, value: Fraction) -> bool:
    """Return whether a result equals a stated value up to rounding: within 1 of a whole number, else within 1 %."""
    if value.denominator == 1:
        return abs(result - value) < 1
    return abs(result - value) <= Fraction(1, 100) * max(1, abs(value))


def values(sentence: str) -> set[Fraction]:
    """Return every number of a sentence: digits, fractions, percentages, cents, and numbers `and a half`."""
    numbers_read = {Fraction(number) for _, number in numbers_at(sentence)}
    for match in _FRACTION.finditer(sentence):
        whole, *parts = match.groups()
        numerator, denominator = [int(part) for part in parts if part]
        if denominator:
            numbers_read.add(int(whole or 0) + Fraction(numerator, denominator))
            numbers_read.add(Fraction(numerator, denominator))
    numbers_read |= {Fraction(match[1]) / 100 for match in _PERCENT.finditer(sentence)}
    if _A_HALF.search(sentence):
        numbers_read.add(Fraction(1, 2))
    numbers_read |= {int(match[1]) + _PARTS[(match[2] or match[3]).lower()] for match in _AND_A_PART.finditer(sentence)}
    return numbers_read


def first_sentence_with(number: str, sentences: Sequence[Set[Fraction]]) -> int | None:
    """Return the index of the first sentence that contains a number, exactly or rounded; None without one.

    Args:
        number: in the spelling of `features.numbers`.
        sentences: the values of each sentence.
    """
    value = Fraction(number)
    for i, sentence_values in enumerate(sentences):
        if value in sentence_values or _is_rounded_in(value, sentence_values):
            return i
    return None


def _is_rounded_in(value: Fraction, candidates: Set[Fraction]) -> bool:
    """Return whether a set contains the value rounded to one, two or three decimals (8.142857 as 8.14)."""
    for scale in (10, 100, 1000):
        rounded = Fraction((value * scale + Fraction(1, 2)).__floor__(), scale)
        if rounded != value and rounded in candidates:
            return True
    return False
