"""Grades solutions by their final answers, for evaluation, direct RL and the check of datasets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise

from dartune.answers.checker import AnswerChecker
from dartune.answers.closing_sentence import solution_part
from dartune.answers.task_families import MATH, TASKS, Task
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import Sample
from dartune.text.features import StatedAnswer
from dartune.text.languages import gold_with_points, number_normaliser

CHUNK = 1024
"""Rows whose answers are checked at once, so that the rows may be a stream."""
_CORRECTION = re.compile(r"\b(?:wait|actually|mistake|correction|no,|should (?:be|have been)|is wrong)", re.IGNORECASE)
_SEPARATOR = re.compile(r"[\s$*\\)]*(,|\bor\b|\band\b)[\s$*\\(]*", re.IGNORECASE)


def stated_answer(text: str, task: Task) -> str:
    """Return the last announced answer of a solution, or what the family takes as its answer if none is announced."""
    text = solution_part(text)
    stated = task.stated(text)
    if not stated:
        return task.implicit_answer(text)
    if task.of_numbers and (joined := _joined(text, stated)):
        return joined
    # A correction behind the announced answer (`Wait, it is 12.`) replaces it.
    behind = text[stated[-1].stop :]
    corrected = task.implicit_answer(behind) if task.of_numbers and _CORRECTION.search(behind) else ""
    return corrected or stated[-1].text


def _joined(text: str, stated: Sequence[StatedAnswer]) -> str:
    """Join the last answers if only `or`, `and` or a comma separates them (two boxes); else return an empty string."""
    parts = [stated[-1].text]
    for earlier, later in reversed(list(pairwise(stated))):
        separator = _SEPARATOR.fullmatch(text, earlier.stop, later.cue)
        if not separator:
            break
        parts[:0] = [earlier.text, " or " if separator[1].lower() == "or" else ", "]
    return "".join(parts) if len(parts) > 1 else ""


def _answers_with_points(row: Demonstration, text: str, task: Task) -> tuple[str, str]:
    """Return the answer that a text states and the row's gold answer, both with decimal points."""
    answer = row.answer or ""
    normalise = number_normaliser(row.question, row.solution) if task.of_numbers else str
    return stated_answer(normalise(text), task), answer if normalise is str else gold_with_points(answer, row.solution)


def find_contradictions(
    rows: Iterable[Demonstration], checker: AnswerChecker
) -> tuple[list[tuple[Demonstration, str]], list[Demonstration]]:
    """Find rows whose solution states another answer than the row's gold answer.

    Args:
        rows: rows of one task family. Rows without an answer are skipped.

    Returns:
        The contradicting rows with the answers that their solutions state, and the rows whose solutions state none.
    """
    wrong: list[tuple[Demonstration, str]] = []
    silent, checked = [], (row for row in rows if row.answer)
    while chunk := list(islice(checked, CHUNK)):
        (task,) = {TASKS[row.task] for row in chunk}
        pairs = [_answers_with_points(row, row.solution, task) for row in chunk]
        for row, (stated, _), right in zip(chunk, pairs, checker.check(pairs, task), strict=True):
            if right is False:
                if stated:
                    wrong.append((row, stated))
                else:
                    silent.append(row)
    return wrong, silent


def grade_samples(
    rows: Sequence[Demonstration],
    samples: Sequence[Sequence[Sample]],
    renderer: Renderer,
    checker: AnswerChecker,
) -> list[list[tuple[str, bool | None]]]:
    """Decode and grade every row's samples.

    A sample is correct if it is finished and its answer is right. A sample that was cut at the token limit is wrong,
    because it might have stated another answer later.

    Args:
        rows: rows of one task family.
        samples: (rows, samples per row).
        renderer: decodes the samples.
        checker: compares the answers.

    Returns:
        (text, correct) for each sample. `correct` is None if the row has no answer or the check failed.
    """
    texts = [[renderer.decode(sample.ids) for sample in group] for group in samples]
    (task,) = {TASKS[row.task] for row in rows} or {MATH}
    pairs = [_answers_with_points(row, text, task) for row, group in zip(rows, texts, strict=True) for text in group]
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
