"""Final answers: where a text states them, and whether two of them are the same.

Equality is decided exactly for numbers and plain words; only mathematical notation goes to
math-verify, which runs in processes of its own that can be killed: it has no safe time limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Protocol, Self

from dartune.rewards.text import stated_answers
from dartune.rewards.workers import Workers

MAX_ANSWER_CHARS = 256
"""Longer answers are never parsed as mathematics."""
NOT_STARTED = "the answer checker's process did not start: run `python -c 'import math_verify'` to see why"
CACHE_ENTRIES = 100_000
MEMORY_BYTES = 4 * 2**30
"""Address space of one worker: a hostile power such as 9^9^9 runs into this wall, not into the machine's."""


# ---------------------------------------------------------------- answers in a text


class HasAnswer(Protocol):
    """Anything with a source solution and perhaps an explicit answer: a demonstration, a gate's input."""

    @property
    def solution(self) -> str: ...

    @property
    def answer(self) -> str | None: ...


def final_answers(text: str) -> list[str]:
    """Every final answer stated in a text, in order; the last one counts as the answer.

    Read are `\\boxed{...}`, `#### 42`, `The answer is 42 .`, `final answer: 42`, `Answer: 42`.
    """
    return [answer.text for answer in stated_answers(text)]


def answer_span(text: str) -> tuple[int, int] | None:
    """Characters `start:end` of the last final answer, without what announces it; None where there is none."""
    stated = stated_answers(text)
    return (stated[-1].start, stated[-1].end) if stated else None


def strip_answer(text: str) -> tuple[str, tuple[int, int] | None]:
    """The text up to its last final answer (with the words that announce it), and that answer's span."""
    span = answer_span(text)
    return (text[: span[0]], span) if span else (text, None)


def resolve_answer(demonstration: HasAnswer) -> str | None:
    """The gold answer: the explicit one, else the last final answer of the solution, else None."""
    explicit = (demonstration.answer or "").strip()
    if explicit:
        return (final_answers(explicit) or [explicit])[-1]
    stated = final_answers(demonstration.solution)
    return stated[-1] if stated else None


# ---------------------------------------------------------------- equality without mathematics


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value; `50%` keeps its percent sign, `42 apples` its unit."""

    value: Fraction
    percent: bool
    unit: str


_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?<=\d)"
_VALUE = re.compile(
    rf"(?<![\w.])(?P<sign>[-+]?)(?P<currency>[$€£¥]?)(?P<inner>-?)"
    rf"(?:(?P<top>{_DECIMAL})(?:[eE](?P<power>[-+]?\d{{1,3}}))?(?:\s?/\s?(?P<bottom>{_DECIMAL}))?"
    r"|\\frac\{?(?P<num>-?\d+)\}?\{?(?P<den>\d+)\}?)(?!\d)"
    r"(?:\s?(?P<percent>%|percent\b))?(?:\s?[$€£¥])?(?P<glued>(?:kg|g|km|m|cm|mm|oz|lbs?|mph|ml|hrs?|min|mins)\b)?"
)
_WORD = re.compile(r"a|[^\W\d_]{2,}(?:['’/-][^\W\d_]+)*")
_CHANGES_VALUE = frozenset(
    """hundred thousand million billion trillion dozen half halves third thirds quarter quarters
    and or over plus minus negative times squared cubed root sqrt pi not than about roughly approximately
    between to cent least most""".split()
)
_MATHS = re.compile(r"[\\^_{}=<>√π∞()\[\]|*/+]")
_SUM = re.compile(r"[\d\s.,+*×x/÷-]+")
_SEVERAL = re.compile(r"\bor\b|\band\b|;|,\s")
_WRAPPED = re.compile(r"\\f?boxed\s*\{([^{}]*)\}|\$+([^$]*)\$+|\\\((.*)\\\)|\\\[(.*)\\\]", re.DOTALL)
_REWRITES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;:]|\^\{?\\circ\}?", ""),
        (r"\\ |~", " "),
        (r"(?<=\d)\{,\}(?=\d{3})", ","),
        (r"\\(?=[$%])", ""),
        (r"\\[dt]frac", r"\\frac"),
        (r"−", "-"),
        (r"^-\s+(?=\d)", "-"),
    )
)


def unwrapped(answer: str) -> str:
    """The answer without boxes and maths delimiters around all of it."""
    text = answer.strip()
    while match := _WRAPPED.fullmatch(text):
        text = next(inner for inner in match.groups() if inner is not None).strip()
    return text


def normalise(answer: str) -> str:
    """The answer in one spelling: no delimiters, spacing commands, text wrappers, closing dots or capitals."""
    text = unwrapped(answer)
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    text = " ".join(text.lower().split()).rstrip(" .,;:!?")
    choice = re.fullmatch(r"\(([a-z])\)", text)
    return choice[1] if choice else text


def parse_number(answer: str) -> Number | None:
    """The one plain number that `answer` states, alone or among words; None where it is anything else."""
    text = normalise(answer)
    matches = list(_VALUE.finditer(text)) if len(text) <= MAX_ANSWER_CHARS else []
    if len(matches) != 1:
        return None
    match = matches[0]
    before, after = text[: match.start()], text[match.end() :]
    around = [word for word in re.split(r"[\s,]+", f"{before} {after}") if word]
    if after[:1].isalnum() or any(not _WORD.fullmatch(word) or word in _CHANGES_VALUE for word in around):
        return None
    value = _fraction(match)
    unit = " ".join(word.rstrip("s") for word in [match["glued"] or "", *after.split()] if word)
    return None if value is None else Number(value, bool(match["percent"]), unit)


def _fraction(match: re.Match[str]) -> Fraction | None:
    top, bottom = (match["top"], match["bottom"] or "1") if match["top"] else (match["num"], match["den"])
    numerator, denominator = Fraction(top.replace(",", "")), Fraction(bottom.replace(",", ""))
    if not denominator:
        return None
    value = numerator / denominator * Fraction(10) ** int(match["power"] or 0)
    return -value if (match["sign"] == "-") != (match["inner"] == "-") else value


def same_plain(predicted: str, gold: str) -> bool | None:
    """Equality that needs no mathematics: exact numbers, the same words; None where notation must be read.

    `1,000` = `1000`, `$5` = `5`, `5.0` = `5`, `1/2` = `0.5`, `42 apples` = `42`; `50%` is neither `50`
    nor `0.5`. A number is not matched by several (`5 or 26`) nor by a sum left to do (`13 + 13`).
    """
    left, right = normalise(predicted), normalise(gold)
    if left == right:
        return bool(left)
    if not left or not right:
        return False
    a, b = parse_number(predicted), parse_number(gold)
    if a and b:
        return (a.value, a.percent) == (b.value, b.percent) and (not a.unit or not b.unit or a.unit == b.unit)
    if b and (_SUM.fullmatch(left) or _SEVERAL.search(left)):
        return False
    if not _MATHS.search(left + right) and (a or b or not (_SEVERAL.search(left) and _SEVERAL.search(right))):
        return not (a or b) and left.replace(" ", "") == right.replace(" ", "")
    return None


# ---------------------------------------------------------------- equality by math-verify, in killable processes


def serve() -> None:
    """The worker process: answers one JSON line with another until its input ends."""
    import logging
    import signal

    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not reach the replies
    logging.disable()
    import math_verify  # noqa: F401 - imported before "ready", so that its time is not the first answer's

    with contextlib.suppress(ImportError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        predicted, gold, timeout_s = json.loads(line)
        if hasattr(signal, "setitimer"):  # ends this process even where its parent is gone
            signal.setitimer(signal.ITIMER_REAL, timeout_s + 1.0)
        print(json.dumps(_same_maths(predicted, gold)), file=replies, flush=True)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0.0)


def _same_maths(predicted: str, gold: str) -> bool | str:
    from math_verify import parse, verify

    try:
        # Without a box, LaTeX is read as whatever plain number stands in it: 2^{10} as 2.
        left, right = (parse(f"\\boxed{{{unwrapped(answer)}}}", parsing_timeout=None) for answer in (predicted, gold))
        if not right:
            return "unreadable"
        return bool(left) and verify(right, left, timeout_seconds=None, raise_on_error=True)
    except Exception:
        return "unreadable"


class AnswerChecker:
    """Decides whether answers are right; nothing it is given can stall it.

    Args:
        workers: processes for mathematical notation, started when the first such pair comes.
        timeout_s: seconds after which a comparison's process is killed and the pair is an error.
    """

    def __init__(self, workers: int = 1, timeout_s: float = 5.0) -> None:
        self.timeout_s = timeout_s
        self._workers = Workers(max(1, workers), "dartune.rewards.verify:serve", NOT_STARTED)
        self._cache: dict[tuple[str, str], bool | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Whether each (predicted, gold) pair is the same answer; None is an error or a time-out, never a no.

        Raises:
            MachineError: the checking process cannot be started at all.
        """
        verdicts = {pair: self._without_process(*pair) for pair in dict.fromkeys(map(tuple, pairs))}
        open_pairs = [pair for pair, verdict in verdicts.items() if verdict is None and self._worth_asking(*pair)]
        todo = [pair for pair in open_pairs if pair not in self._cache]
        if todo:
            if len(self._cache) + len(todo) > CACHE_ENTRIES:
                self._cache.clear()
                todo = open_pairs
            questions = [(*pair, self.timeout_s) for pair in todo]
            answers = self._workers.ask(questions, self.timeout_s)
            self._cache.update(
                (pair, answer if isinstance(answer, bool) else None) for pair, answer in zip(todo, answers, strict=True)
            )
        verdicts.update((pair, self._cache[pair]) for pair in open_pairs)
        return [verdicts[tuple(pair)] for pair in pairs]

    @staticmethod
    def _without_process(predicted: str, gold: str) -> bool | None:
        verdict = same_plain(predicted, gold)
        # An answer far longer than a short gold one is a wrong answer, not one that cannot be judged.
        return False if verdict is None and len(predicted) > MAX_ANSWER_CHARS >= len(gold) else verdict

    @staticmethod
    def _worth_asking(predicted: str, gold: str) -> bool:
        return max(len(predicted), len(gold)) <= MAX_ANSWER_CHARS

    @property
    def pids(self) -> list[int]:
        """Process ids of the idle workers."""
        return self._workers.pids

    def close(self) -> None:
        """End all processes; the checker may be used again and then starts new ones."""
        self._workers.close()
