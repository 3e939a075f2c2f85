"""Finds where a solution ends, and the answer in its closing sentence if it announces none."""

from __future__ import annotations

import re

from dartune.answers.equality import without_markup
from dartune.text.features import in_digits, without_thinking
from dartune.text.languages import CJK
from dartune.text.number_spelling import SCALES, VULGAR, dollars_and_cents, vulgar_fraction, without_spaces_in_thousands
from dartune.text.units import CONVERTED, in_one_unit, unit_name

_NEXT_QUESTION = re.compile(
    r"\n[#* \t]{0,9}(?:question|problem|exercise|instruction|q|human|user|assistant)\s?\d{0,3}\s?[*_]{0,2}[:.)]"
    r"|<\|[a-z_]{2,20}\|>",
    re.IGNORECASE,
)
LONGEST = 2000
"""Characters at the end of a text that are searched for its closing number."""
NEAR = 48
"""Characters in front of a number that are read as its context."""
_CLOSING_REMARK = re.compile(r"\s?\([^()]{0,300}\)[\s.]{0,9}\Z")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n")
_STATES_NO_NUMBER = re.compile(
    r"(?:\b(?:is|can|could|must)(?:n['’]t| not|not)\b(?: be)?|\bbetween)\s+[$£€]?\d"
    r"|(?:\\sqrt\s?\{?|√)\s?\d[\d.,]*\}?[$.\s]*\Z|\d\s?(?:\\pi|π)[$.\s]*\Z|[\d)]\s?\^\s?\{?-?\d+\}?[$.\s]*\Z"
    r"|\d\s(?:or|to)\s[$£€]?\d[^.]{0,60}[.\s]*\Z"
    r"|[\d)%]\s*[-+*×÷·−]\s*[$£€(]*\d[\d.,]*[\s)%$.]*\Z"
    r"|(?:\)\s*/\s*|[\d.]\s+/\s+|\.\d+/)\(*\d[\d.,]*[\s).]*\Z"
    r"|\A[\s(]*[-+*/×÷](?:\s+[-+*/×÷]?[\d.]+){2,}\s*\Z"
)
"""A sentence that ends with a formula, an unfinished calculation, a range or a negation states no number."""
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
_CONTINUES = re.compile(r"\s*\$?\s*(?:[+*×·÷/−-]|\\(?:times|cdot|div))\s*\$?[\d(]")
_CONCLUSION = re.compile(r"\b(?:so|therefore|thus|hence|meaning|which means)\b(.*)", re.DOTALL | re.IGNORECASE)
_CONCLUDES = re.compile(r"(?:so|therefore|thus|hence|there|altogether|in total|he|she|they|it)\b", re.IGNORECASE)
_TWO_ROOTS = re.compile(
    r"(?:\b([a-z])\s?=\s?)?(?<![\d.])\$?([-−]?\d++)\$?,?\s+(and|or)\s+\$?(?:\1\s?=\s?)?([-−]?\d+)\$?[.\s$]*\Z"
)
"""`x = 4 or x = -4` and `4 and -4` at the end of a sentence."""
_BETWEEN = (
    r"\s+(?:(?:the|an?|all|his|her|their|its|these|those|only|just|another|day|week|month|year|class)\s+){0,2}"
    r"[$£€(*]*\Z"
)
_INCIDENTAL = re.compile(
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
"""Text in front of a number that is incidental to its sentence: `9 apples after 2 days`."""
_HAPPENS_AT = re.compile(
    r"\b(?:ends?|starts?|begins?|arrives?|leaves?|finish(?:es)?|opens?|closes?|is|was|be) (?:at|by|until)\s*\Z",
    re.IGNORECASE,
)
_NOT_INCIDENTAL = (
    "total sum product average cost price profit balance value amount comes amounts equal up down rounds simplifies "
    "reduces"
)
_PERHAPS_INCIDENTAL = re.compile(
    "".join(f"(?<!{word} )" for word in _NOT_INCIDENTAL.split()) + r"\b(?:of|for|from|to|by|at|with)" + _BETWEEN,
    re.IGNORECASE,
)


def solution_part(text: str) -> str:
    """Return the text behind the thinking, up to the next question: base models continue with further questions."""
    text = without_thinking(text)
    following = _NEXT_QUESTION.search(text)
    return text[: following.start()] if following and text[: following.start()].strip() else text


def closing_number(text: str) -> str:
    """Return the value, as written, with which a text without an announced answer ends; empty without one.

    It is taken from the last sentence with numbers: the last result (`48 + 24 = 72`, `45 / 27 ≈ 1.7`), or the number of
    a conclusion behind it (`150 / 40 = 3.75, so they need 4 buses`). Without a result it is the last number that is not
    incidental (`9 apples after 2 days`, `18 girls in a class of 30`). If numbers of the sentence are bold, only these
    count. A remark in parentheses behind the last sentence is ignored.
    """
    text = text[-LONGEST:]
    without_remark = _CLOSING_REMARK.sub("", text.rstrip())
    for sentence in reversed(_SENTENCE.split(without_remark if _VALUE.search(_plain(without_remark)) else text)):
        plain = _plain(sentence)
        if not _VALUE.search(plain) and _CONCLUDES.match(plain):
            plain = _with_one_number(plain)
        if not _VALUE.search(plain):
            continue
        if _STATES_NO_NUMBER.search(sentence.replace("**", "")) and not _RATIO.search(sentence):
            return ""
        bold = " ; ".join(part for part in _BOLD.findall(plain) if _VALUE.search(part))
        return _value_of_sentence(bold or plain.replace("**", ""))
    return ""


def _plain(sentence: str) -> str:
    """Return a sentence without its list mark and without LaTeX around its numbers.

    Mixed numbers become `2 1/2`, thousands lose their spaces, measures in two units are converted to one
    (`270 minutes`), and ratios become `3:2`.
    """
    sentence = _LATEX_FRACTION.sub(lambda part: f"{part[1] + ' ' if part[1] else ''}{part[2]}/{part[3]}", sentence)
    sentence = _MATHS.sub(r"\1", _LIST_MARK.sub("", sentence))
    sentence = VULGAR.sub(lambda part: f" {vulgar_fraction(part[0])}", without_markup(sentence, whole=False))
    if _RATIO.search(sentence):
        sentence = _SIDES.sub(r"\1:\2", sentence)
    return in_one_unit(dollars_and_cents(without_spaces_in_thousands(sentence)))


def _with_one_number(sentence: str) -> str:
    """Return a sentence with its number word in digits if it has exactly one: `so six are left over`."""
    with_digits = in_digits(sentence)
    return with_digits if len(_VALUE.findall(with_digits)) == 1 else sentence


def _value_of_sentence(sentence: str) -> str:
    """Return the value that a sentence states, see `closing_number`."""
    roots = _TWO_ROOTS.search(sentence)
    if roots and (roots[1] or roots[2].lstrip("-−") == roots[4].lstrip("-−")):
        return f"{roots[2]}{' or ' if roots[3] == 'or' else ', '}{roots[4]}"
    values = list(_VALUE.finditer(sentence))
    results = [
        value
        for value in values
        if _RESULT.search(sentence[max(0, value.start() - NEAR) : value.start()])
        and not _CONTINUES.match(sentence, value.end())
    ]
    if results:
        conclusion = _CONCLUSION.search(sentence, results[-1].end())
        conclusion_text = conclusion[1] if conclusion else ""
        conclusion_text = conclusion_text if _VALUE.search(conclusion_text) else _with_one_number(conclusion_text)
        return _value_of_sentence(conclusion_text) if _VALUE.search(conclusion_text) else _signed(sentence, results[-1])
    levels = [_incidental_level(sentence, value) for value in values]
    return _signed(sentence, [value for value, level in zip(values, levels, strict=True) if level == min(levels)][-1])


def _incidental_level(sentence: str, value: re.Match[str]) -> int:
    """Return how likely a number is incidental to its sentence: 0 no, 1 perhaps, 2 certainly."""
    before = sentence[max(0, value.start() - NEAR) : value.start()]
    if value["time"] and _HAPPENS_AT.search(before):
        return 0
    return 2 if _INCIDENTAL.search(before) else 1 if _PERHAPS_INCIDENTAL.search(before) else 0


def _signed(sentence: str, value: re.Match[str]) -> str:
    """Return the value as written, with its sign and with a unit that can be converted to others."""
    negative = _SIGN_BEFORE.search(sentence[max(0, value.start() - NEAR) : value.start()])
    unit = _WORD_BEHIND.match(sentence, value.end())
    has_unit = unit and value[0][-1].isdigit() and unit_name([unit[1].lower()]) in CONVERTED
    return f"{'-' if negative else ''}{value[0]}{unit[0] if unit and has_unit else ''}".rstrip(". ")
