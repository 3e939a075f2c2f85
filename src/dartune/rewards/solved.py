"""Whether solutions are right, by their final answers: what evaluation counts and direct RL pays for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise

from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Sample
from dartune.rewards.checker import AnswerChecker
from dartune.rewards.closing import solution_part
from dartune.rewards.languages import gold_with_points, reader
from dartune.rewards.tasks import MATH, TASKS, Task
from dartune.rewards.text import StatedAnswer

CHUNK = 1024
"""Rows whose answers are checked at once."""


_CORRECTION = re.compile(r"\b(?:wait|actually|mistake|correction|no,|should (?:be|have been)|is wrong)", re.IGNORECASE)


_JOINT = re.compile(r"[\s$*\\)]*(,|\bor\b|\band\b)[\s$*\\(]*", re.IGNORECASE)


def stated_answer(text: str, task: Task) -> str:
    """The last final answer of a solution; without any, what ends the text as answers do."""
    text = solution_part(text)
    stated = task.stated(text)
    if not stated:
        return task.unannounced(text)
    if task.of_numbers and (joined := _joined(text, stated)):
        return joined
    behind = text[stated[-1].stop :]
    corrected = task.unannounced(behind) if task.of_numbers and _CORRECTION.search(behind) else ""
    return corrected or stated[-1].text


def _joined(text: str, stated: Sequence[StatedAnswer]) -> str:
    """The last answers as one where nothing but `or`, `and` or a comma stands between them (two boxes); else empty."""
    parts = [stated[-1].text]
    for one, other in reversed(list(pairwise(stated))):
        joint = _JOINT.fullmatch(text, one.stop, other.cue)
        if not joint:
            break
        parts[:0] = [one.text, " or " if joint[1].lower() == "or" else ", "]
    return "".join(parts) if len(parts) > 1 else ""


def _as_read(row: Demonstration, text: str, task: Task) -> tuple[str, str]:
    """The answer that a text states and the row's own, both with decimal points."""
    answer = row.answer or ""
    read = reader(row.question, row.solution) if task.of_numbers else str
    return stated_answer(read(text), task), answer if read is str else gold_with_points(answer, row.solution)


def contradicting(
    rows: Iterable[Demonstration], checker: AnswerChecker
) -> tuple[list[tuple[Demonstration, str]], list[Demonstration]]:
    """Rows of one task family whose own solution gives another answer than the row has, with it; those giving none."""
    wrong: list[tuple[Demonstration, str]] = []
    silent, checked = [], (row for row in rows if row.answer)
    while chunk := list(islice(checked, CHUNK)):
        (task,) = {TASKS[row.task] for row in chunk}
        pairs = [_as_read(row, row.solution, task) for row in chunk]
        for row, (stated, _), right in zip(chunk, pairs, checker.check(pairs, task), strict=True):
            if right is False:
                if stated:
                    wrong.append((row, stated))
                else:
                    silent.append(row)
    return wrong, silent


def solved(
    rows: Sequence[Demonstration],
    samples: Sequence[Sequence[Sample]],
    renderer: Renderer,
    checker: AnswerChecker,
) -> list[list[tuple[str, bool | None]]]:
    """Every row's samples as text, each with whether it is right (None: the row has no answer, or the check failed).

    Right is a finished sample with the right answer: text cut at the token limit has not given its last answer.
    The rows are of one task family.
    """
    texts = [[renderer.decode(sample.ids) for sample in group] for group in samples]
    (task,) = {TASKS[row.task] for row in rows} or {MATH}
    pairs = [_as_read(row, text, task) for row, group in zip(rows, texts, strict=True) for text in group]
    verdicts = iter(checker.check(pairs, task))

    def verdict(row: Demonstration, sample: Sample) -> bool | None:
        right = next(verdicts)
        if not row.answer:
            return None
        return right if sample.finish == "stop" else False

    return [
        [(text, verdict(row, sample)) for text, sample in zip(group_texts, group, strict=True)]
        for row, group_texts, group in zip(rows, texts, samples, strict=True)
    ]
