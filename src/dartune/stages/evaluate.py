"""Stage: evaluation. The arm's model solves every suite's questions; answers are checked, in the lab steps as well.

The greedy solution is always evaluated. With `evaluate.samples` = k, k solutions are sampled at temperature 1, too, for
avg@k and pass@k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dartune.answers.checker import AnswerChecker
from dartune.answers.closing_sentence import solution_part
from dartune.answers.grading import grade_samples
from dartune.answers.task_families import TASKS
from dartune.config.arms import ARMS
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.data.run_records import EvaluationRecord
from dartune.engines.base import Engine, Sample, SampleSpec, TokenIds
from dartune.engines.meter import Meter
from dartune.run.cost import Cost
from dartune.run.files import write_jsonl
from dartune.run.progress import Progress
from dartune.stages.arm_training import chosen_learning_rate
from dartune.stages.base import Stage, StageInputs
from dartune.stages.context import StageContext
from dartune.stages.names import evaluation_stage, train_stage

SAMPLING_TEMPERATURE = 1.0
StepJudge = Callable[[str, str], Mapping[str, Any]]
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
) -> list[EvaluationRecord]:
    """One record per question.

    `correct` is None if the question has no answer to compare with, or if the answer check failed (timeout, crash).
    `announced`: the text states a final answer, rather than ending on a number. With `samples` = k, `avg_at_k` is the
    share of k sampled solutions that are correct, and `pass_at_k` is whether any of them is.

    Args:
        judge: decides about steps and names; without one `steps_correct` and `names_correct` are None.
        progress: counts solutions (`solution_count`).
    """
    greedy = SampleSpec(1, max_new_tokens, 0.0, renderer.stop_ids, 0)
    sampling = replace(greedy, n=samples, temperature=SAMPLING_TEMPERATURE) if samples else None
    records: list[EvaluationRecord] = []
    greedy_solver = _GreedySolver(engine, renderer, checker, greedy, progress)
    for suite, rows in suites.items():
        prompts = [renderer.prompt_ids(row.question) for row in rows]
        solutions = greedy_solver.solve(rows, prompts)
        if progress and sampling:
            progress.begin(len(rows) * samples)
        extra_samples = engine.generate(prompts, sampling) if sampling else [[] for _ in rows]
        extra_verdicts = grade_samples(rows, extra_samples, renderer, checker)
        for row, (sample, text, correct), extra in zip(rows, solutions, extra_verdicts, strict=True):
            step_verdicts = judge(row.question, text) if judge else {}
            checked = [right for _, right in extra if right is not None]
            records.append(
                {
                    "suite": suite,
                    "id": row.id,
                    "correct": correct,
                    "steps_correct": step_verdicts.get("steps_correct"),
                    "names_correct": step_verdicts.get("names_correct"),
                    "avg_at_k": sum(checked) / len(checked) if checked else None,
                    "pass_at_k": any(checked) if checked else None,
                    "announced": bool(TASKS[row.task].stated(solution_part(text))),
                    "finish": sample.finish,
                    "n_tokens": len(sample.ids),
                    "text": text,
                }
            )
        if progress and sampling:
            progress.update(len(rows) * samples)
    return records


class _GreedySolver:
    """Solves and checks questions in batches, so that the accuracy so far can be shown.

    The batches are those that the engine would make of all questions, so the solutions are the same.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        checker: AnswerChecker,
        spec: SampleSpec,
        progress: Progress | None,
    ) -> None:
        self.engine, self.renderer, self.checker, self.spec, self.progress = engine, renderer, checker, spec, progress
        self._correct = self._checked = 0

    def solve(
        self, rows: Sequence[Demonstration], prompts: Sequence[TokenIds]
    ) -> list[tuple[Sample, str, bool | None]]:
        """Returns the solution of each question, its text, and whether it is correct."""
        solutions: dict[int, tuple[Sample, str, bool | None]] = {}
        places = sorted(range(len(rows)), key=lambda place: -len(prompts[place]))
        while places:
            remaining = [prompts[place] for place in places]
            count = self.engine.prompts_at_once(remaining, self.spec.max_new_tokens)
            batch, places = places[:count], places[count:]
            if self.progress:
                self.progress.begin(len(batch))
            groups = self.engine.generate([prompts[place] for place in batch], self.spec)
            verdicts = grade_samples([rows[place] for place in batch], groups, self.renderer, self.checker)
            for place, [sample], [(text, correct)] in zip(batch, groups, verdicts, strict=True):
                solutions[place] = (sample, text, correct)
                self._checked += correct is not None
                self._correct += correct is True
            if self.progress:
                figures = {"accuracy": self._correct / self._checked} if self._checked else {}
                self.progress.update(len(batch), **figures)
        return [solutions[place] for place in range(len(rows))]


def solution_count(suites: Mapping[str, Sequence[Demonstration]], samples: int = 0) -> int:
    """Returns how many solutions `evaluate` samples, which is what its progress counts."""
    return sum(map(len, suites.values())) * (1 + samples)


def accuracy(records: Sequence[EvaluationRecord]) -> float:
    """Share of correct answers among the questions that could be checked; 0 where none could."""
    checked = [record["correct"] for record in records if record["correct"] is not None]
    return sum(checked) / len(checked) if checked else 0.0


class Evaluate(Stage):
    """Solutions of every suite, by the arm's chosen model."""

    def __init__(self, context: StageContext, arm: str, seed: int):
        super().__init__(context, evaluation_stage(arm, seed))
        self.trained = (
            train_stage(arm, seed, chosen_learning_rate(context, arm, seed)[0]) if ARMS[arm].trained else None
        )
        """The stage whose model is evaluated; None for the untouched target."""

    def inputs(self) -> StageInputs:
        context, settings = self.context, self.context.config.evaluate
        return {
            "model": context.key(self.trained) if self.trained else context.models.target_fingerprint,
            "suites": context.data.suites_fingerprint,
            "max_new_tokens": settings.max_new_tokens,
            "samples": settings.samples,
        }

    def run(self, folder: Path) -> Cost:
        context, models, settings = self.context, self.context.models, self.context.config.evaluate
        engine = models.trained(context.folder(self.trained) / "model") if self.trained else models.target_engine
        meter = Meter(engine)
        with context.progress(solution_count(context.data.suites, settings.samples), self.name) as progress:
            records = evaluate(
                context.data.suites,
                engine,
                models.renderer,
                context.checker,
                settings.max_new_tokens,
                samples=settings.samples,
                judge=context.judge,
                progress=progress,
            )
        write_jsonl(folder / "records.jsonl", records)
        return meter.cost()
