"""Which tokens of a solution count: in the alignment score those of the statements that say something new, and those
that write the final answer.

A mean over all tokens pays for padding: polite phrases and repetition are likely, and dilute what is not. So a
statement (a line or a sentence) counts where it has numbers that no earlier statement has together. Phrases without
numbers, repeated steps and the closing answer (its form is the same in all rewrites of a row) do not count. Their
wording still matters: it is the context of what follows. In a text that states nothing but its closing answer no token
counts: it shows no reasoning. The first token of a response does not count either: how a response begins is a choice of
its own, and moving a statement behind a phrase would pay.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from decimal import Decimal

from dartune.data.render import Renderer
from dartune.rewards.tasks import MATH, Task
from dartune.rewards.text import spelled_numbers, stated_answers

_END_OF_STATEMENT = re.compile(r"\n+|[.!?][\"')\]]*(?:\s+|$)|[。！？][”’」』）]*")


def content_spans(text: str) -> list[tuple[int, int]]:
    """Character spans (start, end) of the statements that count.

    The whole text where no statement has a number; nothing where only closing answers have.
    """
    spans, seen, start, announcements = [], [], 0, 0
    closing = [answer.cue for answer in stated_answers(text)]
    for end in (*(match.end() for match in _END_OF_STATEMENT.finditer(text)), len(text)):
        stated = frozenset(spelled_numbers(text[start:end]))
        announced = any(start <= cue < end and not spelled_numbers(text[start:cue]) for cue in closing)
        announcements += announced
        if stated and not announced and not any(stated <= earlier for earlier in seen):
            spans.append((start, end))
            seen.append(stated)
        start = max(start, end)
    return spans or ([] if announcements else [(0, len(text))])


def content_mask(ids: Sequence[int], text: str, decode: Callable[[Sequence[int]], str]) -> tuple[bool, ...]:
    """Whether each token belongs to a statement that counts.

    Args:
        ids: the tokens of `text`, with or without an end token, which belongs to the last statement.
        decode: ids to text.
    """
    places = range(len(ids) + 1)

    def first_token(character: int) -> int:
        """The token that writes this character: the last one whose text before it is no longer."""
        return bisect_left(places, character + 1, key=lambda n: len(decode(ids[:n]))) - 1

    mask = [False] * len(ids)
    for start, end in content_spans(text):
        low = 0 if start == 0 else first_token(start)
        high = len(ids) if end >= len(text) else first_token(end)
        mask[low:high] = [True] * (high - low)
    if any(mask[1:]):
        mask[0] = False
    return tuple(mask)


_PLAIN_NUMBER = re.compile(r"(?<![\w.])[-−]?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?!\w)")
_OPERATOR = re.compile(r"\s*[-−+*/×÷x]\s*[0-9]")
_FROM_DIGIT_TO_DIGIT = re.compile(r"[-−]?\d(?:.*\d)?", re.DOTALL)


def _first_statement_of(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """Where the number at `span` is first stated: in its statement or the one before, and so on from there.

    A number that came up earlier, with other statements between, is another quantity of the same size.
    """
    number = _value(text[slice(*span)])
    if number is None:
        return span
    starts = [0, *(match.end() for match in _END_OF_STATEMENT.finditer(text))]
    for match in reversed(list(_PLAIN_NUMBER.finditer(text, 0, span[0]))):
        if match.start() < starts[max(0, bisect_right(starts, span[0]) - 2)]:
            break
        if _value(match[0]) == number and not _OPERATOR.match(text, match.end()):
            span = match.span()
    return span


def _value(text: str) -> Decimal | None:
    """The value of a plain number; None for anything else."""
    return Decimal(text.replace(",", "").replace("−", "-")) if _PLAIN_NUMBER.fullmatch(text) else None


def answer_tokens(ids: Sequence[int], text: str, renderer: Renderer, task: Task = MATH) -> range:
    """Positions of the tokens that write the final answer; empty where there is none or it is a whole block.

    Stated more than once, it is the first time that counts: the second only repeats what the text has said
    (`168 / 7 = 24. The answer is 24`). Not announced, it is the number that the text ends on. Of an answer with digits
    (`24 bags`, `**72**`) what is in front of them and behind them does not count: many words and marks would do there.
    """
    stated = () if task.blocks else task.stated(text)
    span = (stated[0].start, stated[0].end) if stated else task.closing_span(text)
    if span is None:
        return range(0)
    if digits := _FROM_DIGIT_TO_DIGIT.search(text, *span) if task.of_numbers else None:
        span = _first_statement_of(text, digits.span())
    last = len(ids)
    while last > 0 and len(renderer.decode(ids[: last - 1])) >= span[1]:
        last -= 1
    first = last
    while first > 0 and len(renderer.decode(ids[:first])) > span[0]:
        first -= 1
    return range(first, last)
