"""Finds answers that are announced in words (`The answer is 42 .`), and phrases that only comment on an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise, zip_longest
from typing import NamedTuple

from dartune.text.spans import trimmed

_PHRASE = re.compile(
    r"\banswers?\b(?: to (?:the|this) \w+)?[*_]{0,3}\s{0,3}"
    r"(?:(?:is|are|would be|will be|must be|should be)\b\s{0,3}:?|[:：]|=|equals\b)[*_]{0,3}\s*"
    r"(?:(?:as follows|the following)\s{0,3}:\s*)?"
    r"|^[#*_ \t]{0,9}(?:the )?(?:final )?answer[*_ \t]{0,9}\n\s*"  # a heading
    r"|\b(?:antwort|ergebnis|réponse|résultat|respuesta|resultado)\b(?: final(?:e)?\b)?[*_]{0,3}"
    r"(?: (?:ist|lautet|beträgt|est|es)\b\s?:?|\s?:)[*_]{0,3}\s*"
    r"|(?:答案|答)[*_]{0,3}(?:应?该?是|为|[:：])[*_]{0,3}\s*",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<!\bRs)[.!?]+(?=[\s*\"'”)$]|$)|[。！？]|\n|;(?!\s*or\b)(?=\s|$)")
_REASON = re.compile(r",?\s(?:because|since|which|so|as(?! well as))\b", re.IGNORECASE)
_IN_A_REASON = re.compile(
    r"\b(?:because|since|as|whether|if)(?:\s(?:the|this|that|our|its|any|final|correct)){0,3}\s$", re.IGNORECASE
)
_EQUALS = re.compile(r"(?<![<>!=≤≥])=(?!=)")
_ALTERNATIVES = re.compile(
    r"\bor\b|[→⇒∨]|\\(?:to|vee|lor|implies|[A-Za-z]{0,9}arrow)(?![A-Za-z])|(?:[,;]|\band\b)[\s$\\({]{0,4}[A-Za-z](?:_?\d)?\s*$"
)
_WHOLE_NUMBER = re.compile(r"[\s$£€*(\\]*[-−]?\d[\d,]*[\s$)\\]*")
_CALCULATION = re.compile(
    r"(?:[\d\s.+*/×÷·()$£€^{}−–-]|,(?=\d)|(?<=[\d(])[a-z](?![a-z])|\\(?:[dt]?frac|times|cdot|div|sqrt|left|right)(?![A-Za-z]))*"
)
_OPERATOR = re.compile(r"[\d)}]\s*(?:[+*/×÷·^−–-]|\\(?:times|cdot|div))|\\[dt]?frac|\\sqrt|[\d)]\s*\(|\d[a-z]")
_MATHS = re.compile(r"[\d\\$=<>^√π∞]")
_JUDGEMENT = re.compile(
    r"(?:indeed |now |thus |also |therefore |clearly )?(?:(?:in)?correct|right|confirmed|verified|consistent|"
    r"reasonable|valid|plausible|sensible|unique|complete|checked|"
    r"(?:less|greater|more|smaller|larger|higher|lower) than)\b"
)
_WORDS_ONLY = re.compile(r"(?!(?:yes|no|true|false|none|infinity|undefined)\b)[a-z][a-z'’-]")


class Phrase(NamedTuple):
    """An announced answer: characters `start:end` are the answer, `cue:stop` include the announcement."""

    start: int
    end: int
    cue: int
    stop: int


def phrases(text: str) -> Iterator[Phrase]:
    """Yield the announced answers (`The answer is 42 .`) of a text in order.

    An answer extends to the end of its sentence. A reason behind it (`because ...`) and an `x =` in front of it are not
    part of it. A phrase inside a reason (`since the answer must be odd`) states no answer.
    """
    matches = [match for match in _PHRASE.finditer(text) if not _in_a_reason(text, match.start())]
    sentence_end = -1  # end of the sentence around the last match: each sentence is searched once, in linear time
    for match, following in zip_longest(matches, matches[1:]):
        if sentence_end < match.end():
            end = _SENTENCE_END.search(text, match.end())
            sentence_end = end.start() if end else len(text)
        if following and following.start() < sentence_end:
            continue  # "Final answer: the answer is 42" states one answer
        reason = _REASON.search(text, match.end(), sentence_end)
        stop = reason.start() if reason else sentence_end
        answer = trimmed(text, _value_start(text, match.end(), stop), stop)
        if answer:
            yield Phrase(*answer, match.start(), stop)


def _in_a_reason(text: str, cue: int) -> bool:
    """Return whether the phrase at `cue` follows a word such as `because`."""
    return bool(_IN_A_REASON.search(text, max(0, cue - 40), cue))


def _value_start(text: str, start: int, stop: int) -> int:
    """Return where the value starts: behind the last `=` of `x = 5` or of a calculation.

    It is `start` without an `=`, and where several equations may be listed (`x = 2, y = 3`).
    """
    signs = [sign.end() for sign in _EQUALS.finditer(text, start, stop)]
    if not signs:
        return start
    two_numbers = _WHOLE_NUMBER.fullmatch(text, start, signs[0] - 1) and _WHOLE_NUMBER.fullmatch(text, signs[-1], stop)
    if two_numbers or _ALTERNATIVES.search(text, start, signs[-1] - 1):
        return start
    between = [text[left : right - 1] for left, right in pairwise(signs)]
    return signs[-1] if all(_CALCULATION.fullmatch(part) and _OPERATOR.search(part) for part in between) else start


def is_remark(phrase: str, of_maths: bool) -> bool:
    """Return whether a phrase comments on a boxed answer (`correct`) instead of stating another answer.

    Args:
        phrase: what follows `the answer is`.
        of_maths: whether the box holds mathematics. If it holds words, words in the phrase may be an answer too.
    """
    if _JUDGEMENT.match(phrase):
        return True
    return of_maths and not _MATHS.search(phrase) and bool(_WORDS_ONLY.match(phrase))
