"""Whether solutions are right, by their final answers: what evaluation counts and direct RL pays for."""

from __future__ import annotations

from collections.abc import Sequence

from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Sample
from dartune.rewards.text import aloud, numbers
from dartune.rewards.verify import AnswerChecker, final_answers


def stated_answer(text: str, plain_number: bool) -> str:
    """The last final answer of a solution, said after its thinking; without any, the last number where
    `plain_number` allows it."""
    text = aloud(text)
    stated = final_answers(text)
    if stated:
        return stated[-1]
    found = numbers(text) if plain_number else []
    return found[-1] if found else ""


def solved(
    rows: Sequence[Demonstration],
    samples: Sequence[Sequence[Sample]],
    renderer: Renderer,
    checker: AnswerChecker,
) -> list[list[tuple[str, bool | None]]]:
    """Every row's samples as text, each with whether its answer is right (None: nobody knows)."""
    texts = [[renderer.decode(sample.ids) for sample in group] for group in samples]
    plain = [not final_answers(row.solution) for row in rows]
    pairs = [
        (stated_answer(text, flag), row.answer or "")
        for row, flag, group in zip(rows, plain, texts, strict=True)
        for text in group
    ]
    verdicts = iter(checker.check(pairs))
    return [
        [(text, verdict if row.answer else None) for text, verdict in [(text, next(verdicts)) for text in group]]
        for row, group in zip(rows, texts, strict=True)
    ]
