"""Extracts final answers from a text, and compares answers that need no mathematics.

Equality is decided exactly for numbers and plain words. It is undecided (None) where mathematical notation must be
parsed; `checker.py` then asks math-verify.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from dartune.text.features import numbers, stated_answers
from dartune.text.number_spelling import clock_time, decimal_point, normalise_spelling, same_time
from dartune.text.units import in_smallest_unit, same_unit, unit_name

MAX_ANSWER_CHARS = 256
"""Answers with more characters are never parsed as mathematics."""


# ---------------------------------------------------------------- answers in a text


class HasAnswer(Protocol):
    """An object with a source solution and an optional explicit answer: a demonstration or the input of a gate."""

    @property
    def solution(self) -> str: ...

    @property
    def answer(self) -> str | None: ...


def final_answers(text: str) -> list[str]:
    """Return every final answer that a text states, in order. The last one counts as the answer.

    The forms are `\\boxed{...}`, `#### 42`, `The answer is 42 .`, `final answer: 42` and `Answer: 42`.
    """
    return [answer.text for answer in stated_answers(text)]


def answer_span(text: str) -> tuple[int, int] | None:
    """Return the characters `start:end` of the last final answer without its announcement; None without an answer."""
    stated = stated_answers(text)
    return (stated[-1].start, stated[-1].end) if stated else None


def resolve_answer(demonstration: HasAnswer) -> str | None:
    """Return the gold answer: the explicit one, else the last final answer of the solution, else None."""
    explicit = (demonstration.answer or "").strip()
    if explicit:
        return (final_answers(explicit) or [explicit])[-1]
    stated = final_answers(demonstration.solution)
    return stated[-1] if stated else None


# ---------------------------------------------------------------- equality without mathematics


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value with its percent sign (`50%`), unit (`42 apples`) and currency."""

    value: Fraction
    percent: bool
    unit: str
    currency: str = ""
    named: frozenset[str] = frozenset()
    """Words in front of the number that distinguish it: `May` in `May 5`."""

    @property
    def of(self) -> str:
        """The unit, or `%`; empty without a unit."""
        return "%" if self.percent else self.unit

    @property
    def measure(self) -> tuple[str, Fraction] | None:
        """(dimension, value in its smallest unit) if the unit can be converted: `$1.50` is 150 cents; else None."""
        return None if self.percent else in_smallest_unit(self.value, self.unit or unit_name([self.currency]))


_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?<=\d)"
_VALUE = re.compile(
    rf"(?<![\w.^])(?P<sign>[-+]?)(?P<currency>[$€£¥₹]?)(?P<inner>-?)"
    rf"(?:(?P<top>{_DECIMAL})(?:[eE](?P<power>[-+]?\d{{1,3}}))?(?:\s?/\s?(?P<bottom>{_DECIMAL}))?"
    r"|\\frac\{?(?P<num>-?\d+)\}?\{?(?P<den>\d+)\}?)(?!\d)"
    r"(?:\s?(?P<percent>%|percent\b))?(?:\s?(?P<behind>[$€£¥¢]))?(?P<glued>[kcm]m\^[23]\b|(?:kg|g|km|m|cm|mm|oz|lbs?|mph|ml|hrs?|min|mins)\b)?"
)
_WORD = re.compile(r"[acfghjklmnsvwω]|[^\W\d_]{2,}(?:['’/-][^\W\d_]+)*|m/s(?:\^2)?|(?:k|c|m)?m\^[23]")
_CHANGES_VALUE = frozenset(
    """hundred thousand million billion trillion dozen half halves third thirds quarter quarters
    fifths tenths hundredths thousandths tens twice double triple square factorial log ln sin cos tan binary
    remainder point lakh crore mil bn below under above zero never no or plus minus negative times squared cubed
    root sqrt pi not about roughly approximately between cent least most""".split()
)
_CHANGES_BESIDE = frozenset(("to", "over", "than"))
"""Words that change a value only next to the number: `over 5`, in contrast to `she needs to pay 5`."""
_FILLER_WORDS = frozenset(
    """the that this there she her his they them their its has have had are was were will would gets got makes equals
    total answer result value number sum final altogether exactly only just then thus hence therefore for with
    from""".split()
)
_AND_MORE = re.compile(r"(?<=\d)\s+and\b|\band\s+(?=\d)")
"""`26 and a half`, `x and 5`. Between words, as in `sold 72 clips in April and May`, `and` changes nothing."""
_MATHS = re.compile(r"[\\^_{}=<>√π∞()\[\]|*/+]")
_RATIO = re.compile(r"(?:(?:the )?ratio (?:is |of )?)?\d{1,30}(?:\s?(?::|-?to-?)\s?\d{1,30}){1,4}")
_SUM = re.compile(r"[\d\s.,+*×x/÷-]+")
_SEVERAL = re.compile(r"\bor\b|\band\b|;|,\s")
_BETWEEN_NUMBERS = re.compile(r"(?<=[\d}%]),(?!\d{3}(?!\d))\s?(?=[-+.\d\\])|(?<=[\d}%])\s+and\s+(?=[-+.\d\\])")
_IGNORED_BY_MATH_VERIFY = tuple(
    re.compile(mark)
    for mark in (
        r"\\equiv(?![a-z])|[-=]>|(?<=\d)_|\\(?:to|gets|implies|iff|(?:long)?mapsto|[a-z]{0,12}arrow)(?![a-z])|[→⇒↔]",
        r"(?<!^)(?:\\(?:approx|sim)(?![a-z])|≈)",
        r"\\(?:max|min)(?![a-z])",
        r"\\(?:choose|mod|neg|lnot)(?![a-z])|\\&",
        r"\A(?!.*\\begin\b).*?\\\\",
    )
)
"""Notation of a second value that math-verify ignores: it reads `48 \\to 47` as 47."""
_EITHER = re.compile(r"\\(?:vee|lor|wedge|land|cup|mid)(?![a-z])|∨|\bor\b|(?<=\d)\s?\|\s?(?=\d)")
_MANY = re.compile(rf"{_SEVERAL.pattern}|{_EITHER.pattern}|,|[<>≤≥]|\\(?:pm|mp|[lg]eq?)(?![a-z])")
_DOZENS = re.compile(r"(\d{1,9}) dozens?\b")
_FACTORIAL = re.compile(r"\d\s?![\s$})]*\Z")
_SIDE = re.compile(r"-?\d{1,30}")
_WRAPPED = re.compile(
    r"\\f?boxed\s*\{([^{}]*)\}|\$+([^$]*)\$+|\\\(((?:(?!\\\)).)*)\\\)|\\\[((?:(?!\\\]).)*)\\\]", re.DOTALL
)
_REWRITES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 "),
        (r"(?<=\d)\s?(?:\^\s?\{?\\circ\}?|°)\s?([CF])\b", r" degrees \1"),
        (r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;:]|\^\{?\\circ\}?|(?<=\d)\s?°", ""),
        (r"(?<!\\)\\ |~", " "),
        (r"(?<=\d)\{,\}(?=\d{3})", ","),
        (r"\\(?=[$%])", ""),
        (r"\\[dt]frac", r"\\frac"),
        (r"−", "-"),
        (r"²", "^2"),
        (r"³", "^3"),
        (r"^(?:about|approximately|approx\.?|roughly|around|nearly|exactly|≈|~|\\approx)\s?(?=[-$£€₹\d])", ""),
        (r"^(?:Rs\.?|INR|USD|EUR)\s?(?=\d)|^\([A-E]\)\s+(?=[-$\d])", ""),
        (r"(?i)^(?:the )?(?:final )?answer\s?:\s", ""),
        (r"^(?:–|minus\b|negative\b)\s?(?=[$£€]?\d)", "-"),
        (r"^-\s+(?=\d)", "-"),
        (r"(?:US\s?|^)(?=\$\s?\d)", ""),
        (r"(?<=[$£€₹])\s(?=\d)", ""),
        (r"^([*_]{1,2})([^*_]+)\1$", r"\2"),
        (r"(?<=[A-Za-z])\s{0,4}/\s{0,4}(?=[A-Za-z])", "/"),
        (r"\b([kcm]m|KM|CM|MM)\s?\^\s?\{?([23])\}?", r"\1^\2"),
    )
)


def unwrapped(answer: str) -> str:
    """Return an answer without the boxes and maths delimiters that enclose it."""
    text = answer.strip()
    while match := _WRAPPED.fullmatch(text):
        text = next(inner for inner in match.groups() if inner is not None).strip()
    return text


def plain(answer: str) -> str:
    """Return an answer without delimiters, spacing commands, text wrappers and end marks, with its number in digits."""
    return normalise_spelling(without_markup(answer))


def without_markup(text: str, *, whole: bool = True) -> str:
    """Remove LaTeX wrappers and spacing commands, and normalise variants of signs.

    Args:
        text: a text.
        whole: whether the text is one answer, so that enclosing delimiters and end marks are removed too.
    """
    text = " ".join((unwrapped(text) if whole else text).split())
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    text = " ".join(text.split())
    return text.rstrip(" .,;:!?。") if whole else text


def normalise(answer: str) -> str:
    """Return an answer as `plain` and in lower case, an option `(b)` without parentheses."""
    text = plain(answer).lower()
    choice = re.fullmatch(r"\(([a-z])\)", text)
    return choice[1] if choice else text


def parse_number(answer: str) -> Number | None:
    """Return the only number of an answer, alone or among words; None for anything else."""
    text = normalise(answer)
    matches = list(_VALUE.finditer(text)) if len(text) <= MAX_ANSWER_CHARS else []
    if len(matches) != 1:
        return None
    match = matches[0]
    before, after = text[: match.start()], text[match.end() :]
    around = [word for word in re.split(r"[\s,]+", f"{before} {after}") if word]
    if after[:1].isalnum() or _AND_MORE.search(text):
        return None
    area = re.match(r"\s(?:square|sq)\s", after)  # `12 square feet`
    if any(not _WORD.fullmatch(word) or (word in _CHANGES_VALUE and not area) for word in around):
        return None
    beside = {*re.split(r"[\s,]+", before.strip())[-1:], *re.split(r"[\s,]+", after.strip())[:1]}
    if not beside.isdisjoint(_CHANGES_BESIDE):
        return None
    value = _fraction(match)
    unit = unit_name([word for word in (match["glued"], *after.split()) if word])
    named = frozenset(re.findall(r"[^\W\d_]{3,}", before)) - _FILLER_WORDS
    currency = match["currency"] or match["behind"] or ""
    return None if value is None else Number(value, bool(match["percent"]), unit, currency, named)


def _fraction(match: re.Match[str]) -> Fraction | None:
    """Return the signed value of a match of `_VALUE`; None for a zero denominator."""
    top, bottom = (match["top"], match["bottom"] or "1") if match["top"] else (match["num"], match["den"])
    numerator, denominator = Fraction(top.replace(",", "")), Fraction(bottom.replace(",", ""))
    if not denominator:
        return None
    value = numerator / denominator * Fraction(10) ** int(match["power"] or 0)
    return -value if (match["sign"] == "-") != (match["inner"] == "-") else value


def last_number(text: str) -> str | None:
    """Return the last number of a text as written, with fraction and percent sign; None without a number."""
    last = numbers(text)[-1:]
    if not last:
        return None
    last_digit = re.search(r"\d\D{0,12}", text[::-1])  # the last digit
    ending = without_markup(text[max(0, len(text) - (last_digit.start() + 80)) :]).lower() if last_digit else ""
    written = [match for match in _VALUE.finditer(ending) if not ending[match.end() : match.end() + 1].isalnum()]
    if not written or numbers(written[-1][0])[-1:] != last:
        return last[0]
    mixed = re.search(r"\d\s$", ending[: written[-1].start()]) if written[-1]["bottom"] else None
    return f"{ending[mixed.start()]} {written[-1][0]}" if mixed else written[-1][0]


def same_plain(predicted: str, gold: str) -> bool | None:
    """Compare two answers without mathematics: as exact numbers or words. None if notation must be parsed.

    `1,000` = `1000`, `$5` = `5`, `5.0` = `5`, `1/2` = `0.5`, `42 apples` = `42`, `50%` = `50` (not `0.5`), `4,5` =
    `4.5`. Several numbers (`5 or 26`) and unfinished sums (`13 + 13`) do not match one number.
    """
    left, right = normalise(predicted), normalise(gold)
    if _FACTORIAL.search(gold) and not _FACTORIAL.search(predicted):  # elsewhere the mark ends a sentence
        return None
    if left == right:
        return bool(left)
    if _RATIO.fullmatch(right) and _RATIO.fullmatch(left):
        return [int(part) for part in re.findall(r"\d+", left)] == [int(part) for part in re.findall(r"\d+", right)]
    if (time := clock_time(left)) and (gold_time := clock_time(right)):
        return same_time(time, gold_time)
    if not left or not right or _unbalanced(predicted):
        return False
    dozens = _DOZENS.match(predicted.lower())
    if dozens and "dozen" not in gold:  # the gold answer may count items or dozens
        return any(same_plain(str(value), gold) for value in (int(dozens[1]), 12 * int(dozens[1])))
    number, gold_number = parse_number(predicted), parse_number(gold)
    if number and gold_number:
        if number.named and gold_number.named and number.named.isdisjoint(gold_number.named):
            return False
        if number.measure and gold_number.measure and number.measure[0] == gold_number.measure[0]:
            return number.measure == gold_number.measure
        return number.value == gold_number.value and same_unit(number.of, gold_number.of)
    if gold_number and (with_point := decimal_point(predicted)) != predicted:
        return same_plain(with_point, gold)
    if gold_number and (_SUM.fullmatch(left) or _SEVERAL.search(left)):
        return False
    if _hedged(left, right):
        return False
    if not (_SEVERAL.search(left) and _SEVERAL.search(right)):  # math-verify reads `2,3` as one number
        listed = _numbers_listed(left), _numbers_listed(right)
        if all(listed):
            return listed[0] == listed[1]
    any_number = bool(number or gold_number)
    if not _MATHS.search(left + right) and (any_number or not (_SEVERAL.search(left) and _SEVERAL.search(right))):
        return not any_number and left.replace(" ", "") == right.replace(" ", "")
    return None


def _unbalanced(answer: str) -> bool:
    """Return whether a brace is missing (`\\boxed{{17}`), which math-verify would ignore."""
    braces = re.sub(r"\\.", "", answer)
    return braces.count("{") != braces.count("}")


def _hedged(predicted: str, gold: str) -> bool:
    """Return whether an answer offers several values where the gold answer has one.

    math-verify would read only one of them, so an answer could hedge between values.
    """
    if any(mark.search(predicted) and not mark.search(gold) for mark in _IGNORED_BY_MATH_VERIFY):
        return True
    if _EITHER.search(predicted) and not _MANY.search(gold):
        return True
    sides = [side.strip() for side in predicted.split("=")] if "=" in predicted and "=" not in gold else []
    return len({int(side) for side in sides if _SIDE.fullmatch(side)}) > 1


def _numbers_listed(answer: str) -> list[tuple[Fraction, bool]]:
    """Return the sorted (value, percent) of a list of numbers; empty for anything else. `1,000` is one number."""
    parts = _BETWEEN_NUMBERS.split(answer) if len(answer) <= MAX_ANSWER_CHARS else []
    listed = [number for number in map(parse_number, parts) if number is not None and not number.unit]
    if len(parts) < 2 or len(listed) < len(parts):
        return []
    return sorted((number.value, number.percent) for number in listed)
