"""Evaluation: greedy solutions of every suite's questions, checked by answer and, where possible, by steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine, SampleSpec
from dartune.progress import Progress
from dartune.rewards.text import numbers
from dartune.rewards.verify import AnswerChecker, final_answers

StepJudge = Callable[[str, str], Mapping[str, bool | None]]
"""(question, solution) -> `steps_correct` and `names_correct`; the lab has one, most data has none."""


def stated_answer(text: str, plain_number: bool) -> str:
    """The last final answer of a solution; without any, the last number where `plain_number` allows it."""
    stated = final_answers(text)
    if stated:
        return stated[-1]
    found = numbers(text) if plain_number else []
    return found[-1] if found else ""


def evaluate(
    suites: Mapping[str, Sequence[Demonstration]],
    engine: Engine,
    renderer: Renderer,
    checker: AnswerChecker,
    max_new_tokens: int,
    *,
    judge: StepJudge | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One record per question: correct, steps and names where a judge can tell, tokens, finish, text.

    A question without a checkable answer, or whose check failed, is `correct: None`.
    """
    spec = SampleSpec(1, max_new_tokens, 0.0, (renderer.end_id,), 0)
    records = []
    for suite, rows in suites.items():
        drawn = engine.generate([renderer.prompt_ids(row.question) for row in rows], spec)
        texts = [renderer.decode(group[0].ids) for group in drawn]
        plain = [not final_answers(row.solution) for row in rows]
        pairs = [
            (stated_answer(text, flag), row.answer or "") for text, flag, row in zip(texts, plain, rows, strict=True)
        ]
        verdicts = checker.check(pairs)
        for row, group, text, (_, gold), verdict in zip(rows, drawn, texts, pairs, verdicts, strict=True):
            judged = judge(row.question, text) if judge else {}
            records.append(
                {
                    "suite": suite,
                    "id": row.id,
                    "correct": verdict if gold else None,
                    "steps_correct": judged.get("steps_correct"),
                    "names_correct": judged.get("names_correct"),
                    "finish": group[0].finish,
                    "n_tokens": len(group[0].ids),
                    "text": text,
                }
            )
        if progress:
            progress.update(len(rows))
    return records


def accuracy(records: Sequence[Mapping[str, Any]]) -> float:
    """Share of correct answers among the questions that could be checked; 0 where none could."""
    checked = [record["correct"] for record in records if record["correct"] is not None]
    return sum(checked) / len(checked) if checked else 0.0
