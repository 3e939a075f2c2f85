"""Normalises the ways to write a number or a time in an answer.

`**72**`, `72 (seventy-two)`, `15 000`, `3 1/2`, `two and a half`, `1.5 million`, `six`, `$5 and 50 cents`, `3:30 p.m.`
become `72`, `72`, `15000`, `7/2`, `5/2`, `1500000`, `6`, `$5.50`, `3:30 pm`.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

from dartune.text.units import in_one_unit

UNITS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
TENS = {
    word: 10 * value
    for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SMALL = rf"(?:(?:{'|'.join(TENS)})(?:[\s-](?:{'|'.join(list(UNITS)[1:10])}))?|(?:{'|'.join(UNITS)}))"
_AND = r"(?:\s+and\s+|[\s-])"
_SCALE = rf"(?:{'|'.join(SCALES)})"
_COMPOUND = rf"(?:(?:an?|{_SMALL})[\s-])?{_SCALE}(?:{_AND}(?:{_SMALL}[\s-])?{_SCALE}){{0,5}}(?:{_AND}{_SMALL})?"
_NUMBER_WORDS = re.compile(rf"\b(?:{_COMPOUND}|{_SMALL})\b", re.IGNORECASE)
COMPOUND = re.compile(rf"\b{_COMPOUND}\b", re.IGNORECASE)
"""A number in words that includes a scale: `six dozen`, `a hundred`, `two thousand and six`."""
_PARTS = {
    name: size
    for size, names in enumerate(
        ("half halves", "third", "quarter fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"), start=2
    )
    for name in names.split()
}
_COUNT = rf"(?:\d{{1,9}}|{_SMALL})"
_IN_PARTS = re.compile(
    rf"(?<![\w/.,])(?:({_COUNT})\s(?:and\s)?)?(?:(an?|{_COUNT})[\s-])?({'|'.join(_PARTS)})s?\b(?!\s(?:past|an?\sdozen|dozen))",
    re.IGNORECASE,
)
_CENTS = re.compile(r"(?<![\w.,])\$?(\d+)(?:\sdollars?)?(?:\sand)?\s(\d\d?)\scents?\b", re.IGNORECASE)
_SCIENTIFIC = re.compile(
    r"(?<![\w.])(\d{1,20}(?:\.\d{1,20})?)\s?(?:\\times|\\cdot|[×x*·])\s?10\s?\^\s?\{?\s?([-+]?\d{1,2})\s?\}?"
)
_MINUS = re.compile(r"^(?:minus|negative)\s(?=\d)", re.IGNORECASE)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3002: ord("."), 0x3000: ord(" ")}
VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
"""Fraction characters such as `½`."""
_EMPHASIS = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])|`")
LONGEST = 256
"""Answers with more characters are not normalised, which bounds the time of the patterns."""
_THOUSANDS = re.compile(r"(?<![\w.,])\d{1,3}(?:[ \u00a0\u2009\u202f'’]\d{3})+(?![\w/]|[.,]\d)")
_SCALED = re.compile(rf"(?<![\w.,])(\d[\d,]*(?:\.\d+)?)\s+({'|'.join(SCALES)})\b", re.IGNORECASE)
_MIXED = re.compile(r"(?<![\w/.,])(\d+)\s+(?:and\s+)?(\d+)\s?/\s?(\d+)(?![\w/.]|,\d)")
_MIXED_LATEX = re.compile(r"(?<![\w/.,])(\d+)\s?\\frac\s?\{(\d+)\}\s?\{(\d+)\}(?=\s*(?:$|[^\W\d_]))")
_HEDGE = r"(?!\s*(?:or|wait|not|no|maybe|perhaps|correct\w*)\b)"
_IN_WORDS = re.compile(rf"\s?\({_HEDGE}[^()\d=+*/\\]{{2,}}\)$")
_REMARK = re.compile(rf"(?<=\d)(\s+[^\W\d_]{{2,}}(?:\s+[^\W\d_]+)*)\s+\({_HEDGE}[^()]*\)$")
_CLOCK = re.compile(r"\b(\d{1,2})(?:[:.](\d\d))?\s?([ap])\s?\.?\s?m\b\.?", re.IGNORECASE)
_OUT_OF = re.compile(r"^(\d{1,9})\s(?:out of|in)\s(\d{1,9})$", re.IGNORECASE)
_CJK_DIGITS = "〇一二三四五六七八九"
_CJK_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10_000}
_CJK_NUMBER = re.compile("(?<![分之])[零〇一二两三四五六七八九十百千万]{1,12}(?![分之])")
_AT = re.compile(r"^(?:at|by|around)\s|\son\s\w{3,6}day$")
_PART_OF_DAY = re.compile(r"\s(?:in the (?:(morning)|afternoon|evening)|at night)$")
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?: ([ap])m)?")
_NAMED_TIMES = {"noon": (0, 0, "p"), "midnight": (0, 0, "a")}
_COUNTER = re.compile(r"(?<=\d)\s?(?!.*[十百千万萬億亿兆半以未])[\u3040-\u30ff\u4e00-\u9fff]{1,4}$")
_SUBJECT = re.compile(r"^[\u4e00-\u9fff]{1,16}(?<![不非约近超过少多大小于半第])\s?(?=-?\d)")
"""The subject in `桃树有380`, unless it ends in a word that changes the number."""
_POINT_AND_COMMA = re.compile(r"(?<![\w.,])\d{1,3}(?:\.\d{3})+,\d+(?![\w,.])")
_DECIMAL_COMMA = re.compile(r"(?<![\w.,])(\d+),(\d{1,2}|\d{4,})(?![\w,]|\.\d)")


def normalise_spelling(answer: str) -> str:
    """Return an answer with its number in digits, without emphasis, remarks and thousands separators around it."""
    if len(answer) > LONGEST:
        return answer
    text = _EMPHASIS.sub("", answer.translate(_FULL_WIDTH)).strip()
    text = VULGAR.sub(lambda part: f" {vulgar_fraction(part[0])}", text).strip()
    text = _CLOCK.sub(lambda time: f"{int(time[1])}:{time[2] or '00'} {time[3].lower()}m", text)
    text = without_spaces_in_thousands(text)
    text = _SCALED.sub(lambda number: _times(number[1], SCALES[number[2].lower()]), text)
    text = _IN_PARTS.sub(_in_parts, _MIXED.sub(_improper, _MIXED_LATEX.sub(_improper, text)))
    text = _SCIENTIFIC.sub(lambda number: format(Decimal(number[1]).scaleb(int(number[2])), "f"), text)
    text = in_one_unit(dollars_and_cents(text))
    text = _OUT_OF.sub(r"\1/\2", text)
    if not re.search(r"\d", text):
        text = _CJK_NUMBER.sub(lambda number: str(_cjk_value(number[0])), text)
        text = _NUMBER_WORDS.sub(lambda number: str(value_of(number[0])), text)
    text = _MINUS.sub("-", text)
    return _SUBJECT.sub("", _COUNTER.sub("", _REMARK.sub(r"\1", _IN_WORDS.sub("", text))))


def clock_time(answer: str) -> tuple[int, int, str] | None:
    """Parse an `normalise_spelling` answer that is a time of day: `3:30 pm`, `15:30`, `noon`.

    Returns:
        (hour in 0..11, minute, half of the day), or None if it is not a time. The half is `a`, `p`, or empty if neither
        the answer nor the hour determines it.
    """
    answer = _AT.sub("", answer).replace("12 noon", "noon").replace("12 midnight", "midnight")
    answer = re.sub(r"^(\d{1,2}) ?o['’]clock", r"\1:00", answer)
    if part_of_day := _PART_OF_DAY.search(answer):
        answer = f"{answer[: part_of_day.start()]} {'am' if part_of_day[1] else 'pm'}"
    if answer in _NAMED_TIMES:
        return _NAMED_TIMES[answer]
    match = _TIME.fullmatch(answer)
    if not match or int(match[1]) > 23 or (match[3] and int(match[1]) > 12):
        return None
    hour, half = int(match[1]), match[3] or ""
    if not half and (hour > 12 or hour == 0):
        half = "p" if hour > 12 else "a"
    return hour % 12, int(match[2]), half


def same_time(first: tuple[int, int, str], second: tuple[int, int, str]) -> bool:
    """Return whether two results of `clock_time` agree; on the half of the day only if both have it."""
    return first[:2] == second[:2] and (first[2] == second[2] or not first[2] or not second[2])


def without_spaces_in_thousands(text: str) -> str:
    """Remove spaces and apostrophes between thousands: `15 000` -> `15000`."""
    return _THOUSANDS.sub(lambda number: re.sub(r"\D", "", number[0]), text)


def dollars_and_cents(text: str) -> str:
    """Join dollars and cents: `1 dollar and 50 cents` -> `$1.50`."""
    return _CENTS.sub(lambda money: f"${money[1]}.{int(money[2]):02d}", text)


def _cjk_value(number: str) -> int:
    """Return the value of a Chinese numeral: `三百二十` -> 320; without a scale its digits are positional."""
    if not any(sign in _CJK_SCALES for sign in number):
        return int("".join(str(_CJK_DIGITS.index(sign)) for sign in number.replace("零", "〇").replace("两", "二")))
    total, group, digit = 0, 0, 0
    for sign in number.replace("零", "").replace("〇", "").replace("两", "二"):
        if sign == "万":
            total, group, digit = (total + group + digit) * 10_000, 0, 0
        elif sign in _CJK_SCALES:
            group, digit = group + max(digit, 1) * _CJK_SCALES[sign], 0
        else:
            digit = _CJK_DIGITS.index(sign)
    return total + group + digit


def vulgar_fraction(sign: str) -> str:
    """Spell out a fraction character: `½` -> `1/2`."""
    return unicodedata.normalize("NFKC", sign).replace("\u2044", "/")


def decimal_point(answer: str) -> str:
    """Convert decimal commas (`4,5`, `1.234,50`) to points. `1,500` and lists stay."""
    answer = _POINT_AND_COMMA.sub(lambda number: number[0].replace(".", "").replace(",", "."), answer)
    return _DECIMAL_COMMA.sub(r"\1.\2", answer)


def _times(number: str, scale: int) -> str:
    """Return the product as a whole number: `1.5` million -> `1500000`; unchanged in words if it is not whole."""
    value = Fraction(number.replace(",", "")) * scale
    return str(value.numerator) if value.denominator == 1 else f"{number} times {scale}"


def _improper(mixed: re.Match[str]) -> str:
    """Convert a mixed number to an improper fraction: `3 1/2` -> `7/2`."""
    whole, numerator, denominator = (int(part) for part in mixed.groups())
    return f"{whole * denominator + numerator}/{denominator}" if numerator < denominator else mixed[0]


def _in_parts(match: re.Match[str]) -> str:
    """Convert a fraction in words: `two and a half` -> `5/2`.

    Without a count only `half` is a fraction, because `third` is also an ordinal.
    """
    whole, count, part = match[1], match[2], match[3].lower()
    if whole and not count and " and " not in match[0].lower():  # in `two thirds` the number counts the parts
        whole, count = None, whole
    if not count and part != "half":
        return match[0]
    numerator = int(count) if count and count.isdecimal() else value_of(count or "a") or 1
    whole_value = 0 if not whole else int(whole) if whole.isdecimal() else value_of(whole)
    return f"{whole_value * _PARTS[part] + numerator}/{_PARTS[part]}"


def value_of(words: str) -> int:
    """Return the value of a number in words: `two hundred and six` -> 206, `a dozen` -> 12."""
    total, group = 0, 0
    for word in re.split(r"-|\s+", words.lower()):
        if word in ("and", "a", "an"):
            continue
        if word in ("hundred", "dozen"):
            group = max(group, 1) * SCALES[word]
        elif word in SCALES:
            total, group = total + max(group, 1) * SCALES[word], 0
        else:
            group += UNITS[word] if word in UNITS else TENS[word]
    return total + group
