"""Where a solution ends, and what its answer is if it announces none: what its last sentence with numbers is about."""

from __future__ import annotations

import re

from dartune.rewards.languages import CJK
from dartune.rewards.spelling import SCALES, VULGAR, dollars_and_cents, vulgar_fraction, without_spaces_in_thousands
from dartune.rewards.text import aloud, in_digits
from dartune.rewards.units import CONVERTED, in_one_unit, unit_name
from dartune.rewards.verify import without_markup

_NEXT_QUESTION = re.compile(
    r"\n[#* \t]{0,9}(?:question|problem|exercise|instruction|q|human|user|assistant)\s?\d{0,3}\s?[*_]{0,2}[:.)]"
    r"|<\|[a-z_]{2,20}\|>",
    re.IGNORECASE,
)
LONGEST = 2000
"""Characters at the end of a text in which its closing number is looked for."""
NEAR = 48
"""Characters in front of a number that are looked at."""
_CLOSING_REMARK = re.compile(r"\s?\([^()]{0,300}\)[\s.]{0,9}\Z")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n")
_OPEN = re.compile(
    r"(?:\b(?:is|can|could|must)(?:n['’]t| not|not)\b(?: be)?|\bbetween)\s+[$£€]?\d"
    r"|(?:\\sqrt\s?\{?|√)\s?\d[\d.,]*\}?[$.\s]*\Z|\d\s?(?:\\pi|π)[$.\s]*\Z|[\d)]\s?\^\s?\{?-?\d+\}?[$.\s]*\Z"
    r"|\d\s(?:or|to)\s[$£€]?\d[^.]{0,60}[.\s]*\Z"
    r"|[\d)%]\s*[-+*×÷·−]\s*[$£€(]*\d[\d.,]*[\s)%$.]*\Z"
    r"|(?:\)\s*/\s*|[\d.]\s+/\s+|\.\d+/)\(*\d[\d.,]*[\s).]*\Z"
    r"|\A[\s(]*[-+*/×÷](?:\s+[-+*/×÷]?[\d.]+){2,}\s*\Z"
)
"""A sentence that ends on a formula, a calculation left to do, a range or a denial states no number."""
_RATIO = re.compile(r"\bratio\b", re.IGNORECASE)
_SIDES = re.compile(r"(?<![\d.])(\d{1,12}) to (\d{1,12})(?!\d|\.\d)")
_LIST_MARK = re.compile(r"^\s*[-*•]\s+")
_MATHS = re.compile(r"(?<!\\)\$([^$]*[\\=^{][^$]*|-?[\d./:]+)\$")
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
_LATEX_FRACTION = re.compile(r"(\d)?\s?\\[dt]?frac\s?\{(\d+)\}\s?\{(\d+)\}")
_DECIMAL = (
    r"(?:(?:\d{1,3}(?:\.\d{3})+|\d+),\d{1,2}(?![\w,]|\.\d)(?!\s*[,)])"
    r"|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)
_SCIENTIFIC = r"\d+(?:\.\d+)?\s?(?:×|x|\*|\\times)\s?10\s?\^\s?\{?[-+]?\d{1,2}\}?"
_VALUE = re.compile(
    rf"(?<![^\W{CJK}])(?<![.^_{{/])(?:"
    r"(?P<time>\d{1,2}:\d\d(?:\s?[ap]\.?\s?m\b\.?)?|\d{1,2}\s?[ap]\.?m\b\.?)"
    r"|\d+(?:\s?:\s?\d+)+"  # a ratio
    rf"|[$£€¥₹]?(?:{_SCIENTIFIC}|\d+\s\d+/\d+|\d+/\d+|{_DECIMAL}(?:\s?(?:{'|'.join(SCALES)})\b)?)(?:\s?\\?%)?"
    r"(?:\sand\s(?:an?|one|three)\s(?:half|third|quarters?)\b)?)",
    re.IGNORECASE,
)
_WORD_BEHIND = re.compile(r"\s(?!in\b)([A-Za-z]{1,14})\b(?!\s(?:per|an?|each|every|of|in|and)\b)")
_SIGN_BEFORE = re.compile(r"(?:\A|[^\w)%}\s]|[^\d)%}\s]\s)\s*\$?[-−]\Z")
_RESULT = re.compile(r"(?:[=≈]|\\approx)[\s$*({]*([-−]?)\Z")
_GOES_ON = re.compile(r"\s*\$?\s*(?:[+*×·÷/−-]|\\(?:times|cdot|div))\s*\$?[\d(]")
_CONCLUSION = re.compile(r"\b(?:so|therefore|thus|hence|meaning|which means)\b(.*)", re.DOTALL | re.IGNORECASE)
_CONCLUDES = re.compile(r"(?:so|therefore|thus|hence|there|altogether|in total|he|she|they|it)\b", re.IGNORECASE)
_TWO_ROOTS = re.compile(
    r"(?:\b([a-z])\s?=\s?)?(?<![\d.])\$?([-−]?\d++)\$?,?\s+(and|or)\s+\$?(?:\1\s?=\s?)?([-−]?\d+)\$?[.\s$]*\Z"
)
"""`x = 4 or x = -4`, `4 and -4` at a sentence's end."""
_BETWEEN = (
    r"\s+(?:(?:the|an?|all|his|her|their|its|these|those|only|just|another|day|week|month|year|class)\s+){0,2}"
    r"[$£€(*]*\Z"
)
_ASIDE = re.compile(
    r"\b(?:after|in|over|within|on|during|among|between|than|every|per|each|until|into|who (?:is|was|has)|to reach)"
    + _BETWEEN
    + r"|\b(?:after|by|before|from|when|while|for|as|since) [a-z]+ing"
    + _BETWEEN
    + r"|\b(?:as|since|because|so that|so as to [a-z]+|to [a-z]+ (?:at|by|until|before))"
    + _BETWEEN
    + r"|\d\S*\s(?!(?:and|but|so|then|or|is|are)\b)[a-z]+\s(?:(?!needs?\b|ha[sd]\b|wants?\b)[a-z]+\s)?to\s[a-z]+"
    + _BETWEEN,
    re.IGNORECASE,
)
"""What stands in front of numbers that a sentence mentions aside: `9 apples after 2 days`."""
_HAPPENS_AT = re.compile(
    r"\b(?:ends?|starts?|begins?|arrives?|leaves?|finish(?:es)?|opens?|closes?|is|was|be) (?:at|by|until)\s*\Z",
    re.IGNORECASE,
)
_NOT_ASIDE = (
    "total sum product average cost price profit balance value amount comes amounts equal up down rounds simplifies "
    "reduces"
)
_PERHAPS_ASIDE = re.compile(
    "".join(f"(?<!{word} )" for word in _NOT_ASIDE.split()) + r"\b(?:of|for|from|to|by|at|with)" + _BETWEEN,
    re.IGNORECASE,
)


def solution_part(text: str) -> str:
    """What a text says after its thinking, up to where it goes on with another question, as base models do."""
    text = aloud(text)
    other = _NEXT_QUESTION.search(text)
    return text[: other.start()] if other and text[: other.start()].strip() else text


def closing_number(text: str) -> str:
    """The value that a text without an announced answer ends on, as it is written there; empty where it has none.

    Of the last sentence with numbers it is the last result (`48 + 24 = 72`, `45 / 27 ≈ 1.7`), or what a conclusion
    behind it says (`150 / 40 = 3.75, so they need 4 buses`); without a result, the last number that is not mentioned
    aside (`9 apples after 2 days`, `18 girls in a class of 30`). In a sentence with numbers in bold only these count. A
    remark in parentheses behind the last sentence is passed over.
    """
    text = text[-LONGEST:]
    shorter = _CLOSING_REMARK.sub("", text.rstrip())
    for sentence in reversed(_SENTENCE.split(shorter if _VALUE.search(_plain(shorter)) else text)):
        told = _plain(sentence)
        if not _VALUE.search(told) and _CONCLUDES.match(told):
            told = _with_one_number(told)
        if _VALUE.search(told):
            bold = " ; ".join(part for part in _BOLD.findall(told) if _VALUE.search(part))
            return (
                ""
                if _OPEN.search(sentence.replace("**", "")) and not _RATIO.search(sentence)
                else _told(bold or told.replace("**", ""))
            )
    return ""


def _plain(sentence: str) -> str:
    """The sentence without list mark and LaTeX around its numbers.

    Mixed numbers become `2 1/2`, thousands lose their spaces, measures in two units become one (`270 minutes`), and
    ratios are written as `3:2`.
    """
    sentence = _LATEX_FRACTION.sub(lambda part: f"{part[1] + ' ' if part[1] else ''}{part[2]}/{part[3]}", sentence)
    sentence = _MATHS.sub(r"\1", _LIST_MARK.sub("", sentence))
    sentence = VULGAR.sub(lambda part: f" {vulgar_fraction(part[0])}", without_markup(sentence, whole=False))
    if _RATIO.search(sentence):
        sentence = _SIDES.sub(r"\1:\2", sentence)
    return in_one_unit(dollars_and_cents(without_spaces_in_thousands(sentence)))


def _with_one_number(sentence: str) -> str:
    """A sentence with its number word in digits if it has one: `so six are left over`."""
    told = in_digits(sentence)
    return told if len(_VALUE.findall(told)) == 1 else sentence


def _told(sentence: str) -> str:
    """The value that a sentence is about."""
    two = _TWO_ROOTS.search(sentence)
    if two and (two[1] or two[2].lstrip("-−") == two[4].lstrip("-−")):
        return f"{two[2]}{' or ' if two[3] == 'or' else ', '}{two[4]}"
    values = list(_VALUE.finditer(sentence))
    results = [
        value
        for value in values
        if _RESULT.search(sentence[max(0, value.start() - NEAR) : value.start()])
        and not _GOES_ON.match(sentence, value.end())
    ]
    if results:
        conclusion = _CONCLUSION.search(sentence, results[-1].end())
        behind = conclusion[1] if conclusion else ""
        behind = behind if _VALUE.search(behind) else _with_one_number(behind)
        return _told(behind) if _VALUE.search(behind) else _signed(sentence, results[-1])
    aside = [_aside(sentence, value) for value in values]
    return _signed(sentence, [value for value, level in zip(values, aside, strict=True) if level == min(aside)][-1])


def _aside(sentence: str, value: re.Match[str]) -> int:
    """How much a number is mentioned aside: 0 not, 1 perhaps, 2 surely."""
    before = sentence[max(0, value.start() - NEAR) : value.start()]
    if value["time"] and _HAPPENS_AT.search(before):
        return 0
    return 2 if _ASIDE.search(before) else 1 if _PERHAPS_ASIDE.search(before) else 0


def _signed(sentence: str, value: re.Match[str]) -> str:
    """The value as it is written, with its sign and a unit that converts to others."""
    negative = _SIGN_BEFORE.search(sentence[max(0, value.start() - NEAR) : value.start()])
    unit = _WORD_BEHIND.match(sentence, value.end())
    measured = unit and value[0][-1].isdigit() and unit_name([unit[1].lower()]) in CONVERTED
    return f"{'-' if negative else ''}{value[0]}{unit[0] if measured else ''}".rstrip(". ")
