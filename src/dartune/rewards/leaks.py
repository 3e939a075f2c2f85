"""Words that betray the demonstration: a rewrite must read as if its writer had seen the question alone."""

from __future__ import annotations

import re
from functools import cache

from dartune.rewards.text import spaced, words

COPIED_WORDS = 8
"""A span of the mapper's instruction this long is a copy."""

_THE = r"(?:the|this|that|your|our|my|their|an?)"
_SOURCE = (
    r"(?:given|provided|original|expert|expert s|experts|sample|example|demonstrated|reference|known|expected|gold|"
    r"official|supplied|stated|existing|aforementioned|teacher s|textbook|published|quoted)"
)
_TEXT = r"(?:solution|answer|derivation|explanation|rationale|demonstration|response|working|worked example)"
_WRITER = (
    r"(?:solution|answer key|reference|expert|demonstration|teacher|author|source|worked example|explanation|answer)"
)
_SAYS = (
    r"(?:says?|said|states?|stated|gives?|gave|shows?|showed|notes?|noted|writes?|wrote|explains?|explained|suggests?|"
    r"claims?|indicates?|does|did|has it|puts? it|tells? us)"
)
_BY = r"(?:given|provided|supplied|quoted|above|stated|shown|demonstrated|listed|saw|were told)"
_FITS = (
    r"(?:according to|based on|in line with|consistent with|in agreement with|agrees with|matches|matching|copied from|"
    r"taken from|borrowed from)"
)
_TOLD = r"(?:(?:are|were|was|am|have been) (?:told|given|shown|provided with))"
_FINAL = r"(?:final |correct |right )?"

_MARKS = re.compile(r"[*_`’“”\"]|(?<=[A-Za-z])'")

LEAKS: tuple[str, ...] = (
    rf"{_THE} (?:\w+ )?{_SOURCE} (?:\w+ )?{_TEXT}",
    rf"given {_THE} {_TEXT}",
    rf"{_THE} {_FINAL}{_TEXT} (?:(?:that|which) )?(?:was |is |were |we were |i was |we |you |i )?{_BY}",
    rf"{_THE} above {_TEXT}",
    rf"(?:as|like|what) {_THE} {_WRITER} {_SAYS}",
    rf"{_THE} (?!answer )(?!explanation ){_WRITER} {_SAYS}",
    rf"{_FITS} {_THE} (?:\w+ )?{_WRITER}",
    rf"(?:matches|matching|agrees with|fits|confirms) {_THE} {_SOURCE} (?:result|value|number|total)",
    r"to match the (?:\w+ )?(?:answer|result)",
    rf"(?:we|i) {_TOLD} (?:that )?{_THE} {_FINAL}(?:answer|solution|result)",
    rf"(?:already|we|i) (?:already )?(?:know|knew) (?:that )?{_THE} {_FINAL}(?:answer|solution)",
    rf"(?:since|as|because|knowing) (?:that )?the {_FINAL}answer (?:is known|is already known|must be|has to be)",
    rf"(?:working|reasoning|going|work|reason) (?:backwards?|back) from {_THE} (?:\w+ )?(?:answer|result|solution)",
    rf"to (?:get|reach|arrive at|obtain|land on) {_THE} {_SOURCE} (?:answer|result|value|number)",
    rf"{_THE} (?:answer|solution) key",
    r"the ground truth",
    r"the (?:solution|answer) manual",
    r"the reference (?:answer|solution)",
    r"as (?:shown|given|stated|explained|demonstrated) above",
    r"in your solution",
    r"(?:here is|here s|this is|below is|following is) (?:a|the|my|another) "
    r"(?:rewritten|rewrite|paraphras\w+|rephrased|reworded|restated|adapted)",
    r"(?:a|the|my) (?:rewrite|paraphrase) (?:of|:|is)",
    r"(?:rewritten|rewriting|rewrite|rephrasing|rephrased|paraphrasing|paraphrased|reworded|rewording) "
    rf"(?:{_THE} )?(?:\w+ )?(?:solution|answer|version|explanation|demonstration)",
    r"rewrite :",
    r"the demonstration",
)
"""Patterns over lower-case words with one space between them (`'` and other marks are words of their own)."""


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(rf"(?<= ){pattern}(?= )") for pattern in LEAKS)


@cache
def _phrases(added: tuple[str, ...], instruction: str) -> tuple[str, ...]:
    """The user's phrases and the instruction's long spans, as `spaced` writes them."""
    told = words(instruction)
    spans = (" ".join(told[i : i + COPIED_WORDS]) for i in range(len(told) - COPIED_WORDS + 1))
    return tuple(dict.fromkeys(spaced(phrase) for phrase in (*added, *spans) if phrase.strip()))


def _plain(text: str) -> str:
    """Words with one space around each, without the marks that split `expert's` or `**answer**`."""
    return spaced(_MARKS.sub(" ", text))


def leaks(rewrite: str, question: str, solution: str, added: tuple[str, ...] = (), instruction: str = "") -> list[str]:
    """What in the rewrite speaks of the demonstration or repeats the instruction; empty where nothing does.

    A phrase that the question or the source itself uses is allowed. So is every "original solution" where the
    question is about one: a mixture, say.
    """
    known = f"{_plain(question)}\n{_plain(solution)}"
    written = _plain(rewrite)
    mixture = " solution " in _plain(question) or " solutions " in _plain(question)
    found = [match[0] for pattern in _patterns() for match in pattern.finditer(written)]
    found = [phrase for phrase in found if f" {phrase} " not in known and not (mixture and phrase.endswith("solution"))]
    told, source = spaced(rewrite), f"{spaced(question)}\n{spaced(solution)}"
    return found + [
        phrase.strip() for phrase in _phrases(added, instruction) if phrase in told and phrase not in source
    ]
