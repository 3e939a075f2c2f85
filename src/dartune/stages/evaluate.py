"""Evaluation: solutions of every suite's questions, checked by answer and, where possible, by steps.

The greedy solution always; on request several sampled ones too, at the model's own temperature, for avg@k and pass@k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine, SampleSpec
from dartune.progress import Progress
from dartune.rewards.checker import AnswerChecker
from dartune.rewards.closing import solution_part
from dartune.rewards.solved import solved
from dartune.rewards.tasks import TASKS

SAMPLING_TEMPERATURE = 1.0
StepJudge = Callable[[str, str], Mapping[str, bool | None]]
"""(question, solution) -> `steps_correct` and `names_correct`; the lab has one, most data has none."""


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
    """One record per question: correct, steps and names where a judge can tell, whether the text announces its answer
    (`announced`), tokens, finish, text.

    With `samples` = k, `avg_at_k` is the share of k sampled solutions that are correct, `pass_at_k` whether any is.
    A question without a checkable answer, or whose check failed, is `correct: None`.
    """
    greedy = SampleSpec(1, max_new_tokens, 0.0, renderer.stop_ids, 0)
    several = {"n": samples, "temperature": SAMPLING_TEMPERATURE}
    records = []
    for suite, rows in suites.items():
        prompts = [renderer.prompt_ids(row.question) for row in rows]
        drawn = engine.generate(prompts, greedy)
        more = engine.generate(prompts, replace(greedy, **several)) if samples else [[] for _ in rows]
        first, others = (solved(rows, groups, renderer, checker) for groups in (drawn, more))
        for row, [sample], [(text, correct)], tried in zip(rows, drawn, first, others, strict=True):
            judged = judge(row.question, text) if judge else {}
            known = [right for _, right in tried if right is not None]
            records.append(
                {
                    "suite": suite,
                    "id": row.id,
                    "correct": correct,
                    "steps_correct": judged.get("steps_correct"),
                    "names_correct": judged.get("names_correct"),
                    "avg_at_k": sum(known) / len(known) if known else None,
                    "pass_at_k": any(known) if known else None,
                    "announced": bool(TASKS[row.task].stated(solution_part(text))),
                    "finish": sample.finish,
                    "n_tokens": len(sample.ids),
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
