"""Evaluation: solutions of every suite's questions, checked by answer and, where possible, by steps.

The greedy solution always; on request several sampled ones too, at the model's own temperature, for avg@k and pass@k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine, Sample, SampleSpec
from dartune.progress import Progress
from dartune.rewards.text import numbers
from dartune.rewards.verify import AnswerChecker, final_answers

SAMPLING_TEMPERATURE = 1.0
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
    samples: int = 0,
    judge: StepJudge | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One record per question: correct, steps and names where a judge can tell, tokens, finish, text.

    With `samples` = k, `avg_at_k` is the share of k sampled solutions that are correct, `pass_at_k` whether any is.
    A question without a checkable answer, or whose check failed, is `correct: None`.
    """
    greedy = SampleSpec(1, max_new_tokens, 0.0, (renderer.end_id,), 0)
    several = {"n": samples, "temperature": SAMPLING_TEMPERATURE}
    records = []
    for suite, rows in suites.items():
        first = _solved(rows, engine, renderer, checker, greedy)
        more = _solved(rows, engine, renderer, checker, replace(greedy, **several)) if samples else [[] for _ in rows]
        for row, [(sample, text, correct)], others in zip(rows, first, more, strict=True):
            judged = judge(row.question, text) if judge else {}
            known = [right for *_, right in others if right is not None]
            records.append(
                {
                    "suite": suite,
                    "id": row.id,
                    "correct": correct,
                    "steps_correct": judged.get("steps_correct"),
                    "names_correct": judged.get("names_correct"),
                    "avg_at_k": sum(known) / len(known) if known else None,
                    "pass_at_k": any(known) if known else None,
                    "finish": sample.finish,
                    "n_tokens": len(sample.ids),
                    "text": text,
                }
            )
        if progress:
            progress.update(len(rows))
    return records


def _solved(
    rows: Sequence[Demonstration], engine: Engine, renderer: Renderer, checker: AnswerChecker, spec: SampleSpec
) -> list[list[tuple[Sample, str, bool | None]]]:
    """Every row's samples, each with its text and whether its answer is right (None: nobody knows)."""
    drawn = engine.generate([renderer.prompt_ids(row.question) for row in rows], spec)
    flat = [
        (row, sample, renderer.decode(sample.ids)) for row, group in zip(rows, drawn, strict=True) for sample in group
    ]
    plain = {row.id: not final_answers(row.solution) for row in rows}
    verdicts = checker.check([(stated_answer(text, plain[row.id]), row.answer or "") for row, _, text in flat])
    found = iter(
        (sample, text, verdict if row.answer else None)
        for (row, sample, text), verdict in zip(flat, verdicts, strict=True)
    )
    return [[next(found) for _ in group] for group in drawn]


def accuracy(records: Sequence[Mapping[str, Any]]) -> float:
    """Share of correct answers among the questions that could be checked; 0 where none could."""
    checked = [record["correct"] for record in records if record["correct"] is not None]
    return sum(checked) / len(checked) if checked else 0.0
