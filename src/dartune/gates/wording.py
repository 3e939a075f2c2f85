"""Measures of a rewrite's wording: the share copied from the question, the share of filler, and the language."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

from dartune.text.features import entities, stated_answers, words, words_as_written
from dartune.text.languages import FEWEST_LETTERS, LIKELY, identify, probability, prose

# Length (in words and marks) of the shortest run that counts as copied. Shorter runs also occur in honest solutions,
# which restate the facts of the question in a similar wording.
COPIED_RUN = 12
# The language is checked only if the rewrite has this many distinct words that neither question nor source has.
# Fewer are too little text for the classifier.
NEW_WORDS = 6
# Share of a rewrite's letters that may be in a script that neither question nor source uses, such as Greek symbols.
FOREIGN_LETTERS = 0.2
_LATEX_COMMAND = re.compile(r"\\[a-z]+")
_LETTERS = re.compile(r"[^\W\d_]+")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
# A sentence with one of these words states a quantity, so it is not filler.
_NUMBER_WORDS = frozenset(
    """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand half third quarter twice
    double triple thrice dozen zero""".split()
)

# Words of four letters or more that occur in any question. Sharing one of them with the question does not make a
# sentence specific to the row.
_COMMON = frozenset(
    """about above after again also another because been before being between could does each every from have having
    into just like made make many more most much must only other over same should some such take than that their them
    then there these they thing this those through time under upon very ways well were what when where which while
    will with would your need know find first next last answer how""".split()
)


def copied_share(question: str, rewrite: str) -> float:
    """Return the share of the question's words (0..1) that the rewrite repeats in runs of at least `COPIED_RUN` tokens.

    Formulas are part of the runs, but only words count in the share: solving an equation requires writing it down.
    """
    question_words, rewrite_words = (words(_LATEX_COMMAND.sub(" ", text.lower())) for text in (question, rewrite))
    if len(question_words) < COPIED_RUN:
        return 0.0
    runs = {tuple(rewrite_words[i : i + COPIED_RUN]) for i in range(len(rewrite_words) - COPIED_RUN + 1)}
    copied: set[int] = set()
    for i in range(len(question_words) - COPIED_RUN + 1):
        if tuple(question_words[i : i + COPIED_RUN]) in runs:
            copied.update(range(i, i + COPIED_RUN))
    # Single letters are variables, so they belong to formulas.
    prose_positions = [i for i, word in enumerate(question_words) if word.isalpha() and len(word) > 1]
    return sum(i in copied for i in prose_positions) / max(1, len(prose_positions))


def filler_share(question: str, solution: str, rewrite: str) -> float:
    """Return the share of the reasoning's words (0..1) in sentences that say nothing about this row.

    Such a sentence has no number (in digits or words), no name, and no longer word of the question or source.
    """
    stated = stated_answers(rewrite)
    reasoning = rewrite[: stated[-1].cue] if stated else rewrite
    topic = {word.lower() for word in _LETTERS.findall(f"{question} {solution}") if len(word) > 3} - _COMMON
    names = set(entities(question))
    total = filler = 0
    for sentence in _SENTENCE.split(reasoning):
        sentence_words = _LETTERS.findall(sentence)
        total += len(words(sentence))
        # Single words (headings, labels) do not count as filler.
        if len(sentence_words) > 1 and not (
            any(letter.isdigit() for letter in sentence)
            or words_as_written(sentence) & names
            or any(word.lower() in topic or word.lower() in _NUMBER_WORDS for word in sentence_words)
        ):
            filler += len(words(sentence))
    return filler / total if total else 0.0


def same_language(question: str, solution: str, rewrite: str) -> bool:
    """Return whether the rewrite keeps to the scripts and the language of its question and source.

    The script check needs no model. The language is classified by py3langid (97 languages); it is skipped if the
    source text is too short or the rewrite has too few new words.
    """
    source_text, rewrite = f"{question}\n{solution}", _LATEX_COMMAND.sub(" ", rewrite)
    rewrite_scripts = Counter(map(_script, filter(str.isalpha, rewrite)))
    source_scripts = set(map(_script, filter(str.isalpha, source_text)))
    foreign = sum(count for script, count in rewrite_scripts.items() if script not in source_scripts)
    if foreign > FOREIGN_LETTERS * max(1, rewrite_scripts.total()):
        return False
    if len(prose(source_text)) < FEWEST_LETTERS:
        return True
    source_words = {word.lower() for word in _LETTERS.findall(source_text)}
    new_words = {word.lower() for word in _LETTERS.findall(rewrite)} - source_words
    if sum(len(word) > 2 for word in new_words) < NEW_WORDS:
        return True
    return probability(prose(rewrite), identify(prose(source_text))) >= LIKELY


@cache
def _script(letter: str) -> str:
    """Return the script of a letter: the first word of its Unicode name, such as LATIN or CYRILLIC."""
    return unicodedata.name(letter, "UNKNOWN").split()[0]
