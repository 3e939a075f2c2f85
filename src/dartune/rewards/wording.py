"""Gates on the wording of a rewrite as a whole: its language, what it copies, what it pads with."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

from dartune.rewards.languages import FEWEST_LETTERS, LIKELY, identify, probability, prose
from dartune.rewards.text import entities, mentions, stated_answers, words

COPIED_RUN = 12
"""This many words in a row, as they stand in the question, are a copy; a retold statement is shorter."""
NEW_WORDS = 6
"""Language is judged where the rewrite has this many different words that neither question nor source has."""
FOREIGN_LETTERS = 0.2
_LATEX_COMMAND = re.compile(r"\\[a-z]+")
_LETTERS = re.compile(r"[^\W\d_]+")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_NUMBER_WORDS = frozenset(
    """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand half third quarter twice
    double triple thrice dozen zero""".split()
)

_COMMON = frozenset(
    """about above after again also another because been before being between could does each every from have having
    into just like made make many more most much must only other over same should some such take than that their them
    then there these they thing this those through time under upon very ways well were what when where which while
    will with would your need know find first next last answer how""".split()
)


def copied_share(question: str, rewrite: str) -> float:
    """Share of the question's words (0..1) that stand in the rewrite in runs of at least `COPIED_RUN` words and marks.

    Formulas make runs longer but do not count: who solves an equation writes it down.
    """
    asked, written = (words(_LATEX_COMMAND.sub(" ", text.lower())) for text in (question, rewrite))
    if len(asked) < COPIED_RUN:
        return 0.0
    runs = {tuple(written[i : i + COPIED_RUN]) for i in range(len(written) - COPIED_RUN + 1)}
    copied: set[int] = set()
    for i in range(len(asked) - COPIED_RUN + 1):
        if tuple(asked[i : i + COPIED_RUN]) in runs:
            copied.update(range(i, i + COPIED_RUN))
    told = [i for i, word in enumerate(asked) if word.isalpha() and len(word) > 1]
    return sum(i in copied for i in told) / max(1, len(told))


def filler_share(question: str, solution: str, rewrite: str) -> float:
    """Share of the reasoning's words (0..1) in sentences that say nothing of this row.

    Such a sentence has no number (in digits or words), no name, and no longer word of the question or source.
    """
    stated = stated_answers(rewrite)
    reasoning = rewrite[: stated[-1].cue] if stated else rewrite
    topic = {word.lower() for word in _LETTERS.findall(f"{question} {solution}") if len(word) > 3} - _COMMON
    names = set(entities(question))
    total = empty = 0
    for sentence in _SENTENCE.split(reasoning):
        found = _LETTERS.findall(sentence)
        total += len(words(sentence))
        if len(found) > 1 and not (
            any(letter.isdigit() for letter in sentence)
            or mentions(sentence) & names
            or any(word.lower() in topic or word.lower() in _NUMBER_WORDS for word in found)
        ):
            empty += len(words(sentence))
    return empty / total if total else 0.0


def same_language(question: str, solution: str, rewrite: str) -> bool:
    """Whether the rewrite keeps to the scripts and the language of its question and source.

    The language is guessed by py3langid (97 languages) from the words that are new in the rewrite and their company.
    """
    known, rewrite = f"{question}\n{solution}", _LATEX_COMMAND.sub(" ", rewrite)
    scripts = Counter(map(_script, filter(str.isalpha, rewrite)))
    ours = set(map(_script, filter(str.isalpha, known)))
    foreign = sum(n for script, n in scripts.items() if script not in ours)
    if foreign > FOREIGN_LETTERS * max(1, scripts.total()):
        return False
    if len(prose(known)) < FEWEST_LETTERS:
        return True
    used = {word.lower() for word in _LETTERS.findall(known)}
    new = {word.lower() for word in _LETTERS.findall(rewrite)} - used
    if sum(len(word) > 2 for word in new) < NEW_WORDS:
        return True
    return probability(prose(rewrite), identify(prose(known))) >= LIKELY


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]
