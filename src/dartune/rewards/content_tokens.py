"""The tokens of a solution that count in the alignment score, and the tokens of its final answer.

A mean over all tokens rewards padding: polite phrases and repetition are likely, and dilute unlikely tokens. Therefore
a statement (a line or a sentence) counts only if it has a set of numbers that no earlier statement contains. Phrases
without numbers, repeated steps and the closing answer (which has the same form in all rewrites of a row) do not count.
Their wording still has an effect, as context of the following tokens.

In a text that states only its closing answer no token counts, because it shows no reasoning. The first token of a
completion does not count either: completions seldom begin with a statement itself, so such a token is unlikely, and
moving the statement behind a phrase would raise the score (`docs/alignment-scores.md`).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from decimal import Decimal

from dartune.answers.task_families import MATH, Task
from dartune.data.chat_template import Renderer
from dartune.text.features import spelled_numbers, stated_answers

_END_OF_STATEMENT = re.compile(r"\n+|[.!?][\"')\]]*(?:\s+|$)|[。！？][”’」』）]*")


def content_spans(text: str) -> list[tuple[int, int]]:
    """Return the character spans (start, end) of the statements that count.

    This is the whole text if no statement has a number, and nothing if only closing answers have numbers.
    """
    spans, earlier_sets, start, announcements = [], [], 0, 0
    cues = [answer.cue for answer in stated_answers(text)]
    for end in (*(match.end() for match in _END_OF_STATEMENT.finditer(text)), len(text)):
        statement_numbers = frozenset(spelled_numbers(text[start:end]))
        # A number before the announcement makes the statement a step: `8 * 3 = 24, so the answer is 24`.
        announced = any(start <= cue < end and not spelled_numbers(text[start:cue]) for cue in cues)
        announcements += announced
        if statement_numbers and not announced and not any(statement_numbers <= earlier for earlier in earlier_sets):
            spans.append((start, end))
            earlier_sets.append(statement_numbers)
        start = max(start, end)
    return spans or ([] if announcements else [(0, len(text))])


def content_mask(ids: Sequence[int], text: str, decode: Callable[[Sequence[int]], str]) -> tuple[bool, ...]:
    """Return, for each token, whether it belongs to a statement that counts.

    Args:
        ids: the tokens of `text`. An end token is optional and belongs to the last statement.
        decode: converts ids to text.

    Returns:
        A mask of shape (tokens,).
    """
    prefix_lengths = range(len(ids) + 1)  # in tokens

    def first_token(character: int) -> int:
        """Return the index of the token that writes this character.

        The search is over decoded prefixes, since single tokens may decode to incomplete characters. Bisection needs
        log2(tokens) calls of `decode`.
        """
        return bisect_left(prefix_lengths, character + 1, key=lambda n: len(decode(ids[:n]))) - 1

    mask = [False] * len(ids)
    for start, end in content_spans(text):
        low = 0 if start == 0 else first_token(start)
        high = len(ids) if end >= len(text) else first_token(end)
        mask[low:high] = [True] * (high - low)
    # A text of one counted token keeps it: an empty mask would mean that the text shows no reasoning.
    if any(mask[1:]):
        mask[0] = False
    return tuple(mask)


_PLAIN_NUMBER = re.compile(r"(?<![\w.])[-−]?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?!\w)")
_OPERATOR = re.compile(r"\s*[-−+*/×÷x]\s*[0-9]")
_FROM_DIGIT_TO_DIGIT = re.compile(r"[-−]?\d(?:.*\d)?", re.DOTALL)


def _first_statement_of(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """Return the span where the number at `span` is first stated.

    The search goes back from statement to statement while each or the one before it has the number. A number that
    occurs earlier, with other statements in between, is a different quantity with the same value.
    """
    number = _value(text[slice(*span)])
    if number is None:
        return span
    starts = [0, *(match.end() for match in _END_OF_STATEMENT.finditer(text))]
    for match in reversed(list(_PLAIN_NUMBER.finditer(text, 0, span[0]))):
        # A match before the preceding statement ends the search.
        if match.start() < starts[max(0, bisect_right(starts, span[0]) - 2)]:
            break
        # An operand is not a statement of the number.
        if _value(match[0]) == number and not _OPERATOR.match(text, match.end()):
            span = match.span()
    return span


def _value(text: str) -> Decimal | None:
    """Return the value of a plain number; None for other text."""
    return Decimal(text.replace(",", "").replace("−", "-")) if _PLAIN_NUMBER.fullmatch(text) else None


def answer_tokens(
    ids: Sequence[int], text: str, renderer: Renderer, task: Task = MATH, *, worked_out: bool = False
) -> range:
    """Return the positions of the tokens of the final answer; empty if there is none or if it is a block (a program).

    An answer that is announced several times counts the first time; one that is not announced is the number at the end
    of the text. Words and marks around the digits (`24 bags`, `**72**`) do not count, because many alternatives would
    be equally good there.

    Args:
        worked_out: the position where the answer is first stated at all, which may be in the last calculation
            (`168 / 7 = 24. The answer is 24`): there it has to be worked out, and is not only copied.
    """
    stated = () if task.blocks else task.stated(text)
    span = (stated[0].start, stated[0].end) if stated else task.closing_span(text)
    if span is None:
        return range(0)
    if digits := _FROM_DIGIT_TO_DIGIT.search(text, *span) if task.of_numbers else None:
        span = _first_statement_of(text, digits.span()) if worked_out else digits.span()

    def characters(count: int) -> int:
        return len(renderer.decode(ids[:count]))

    # The smallest range of tokens that covers the characters of the answer; bisected, for it may be far from the end.
    last = min(len(ids), bisect_left(range(len(ids) + 1), span[1], key=characters))
    first = bisect_right(range(last + 1), span[0], key=characters) - 1
    return range(first, last)
