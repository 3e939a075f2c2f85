"""`dartune lab show`: measurements of the shipped lab models, as Markdown tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from dartune.data.records import Demonstration
from dartune.lab.build import CHECKPOINTS, MAPPER_PROMPT, TARGETS
from dartune.lab.dialects import DIALECTS, EXPERTS
from dartune.lab.step_checker import Verdict, check_solution
from dartune.lab.suites import DEMONSTRATIONS, NEW, SUITES, suite, write_demonstrations
from dartune.lab.world import Problem, ProblemSpec, parse_question, sample_problems
from dartune.run.number_format import decimals, percent

MAX_NEW_TOKENS = 160
NEW_RELATIONS_SPEC = ProblemSpec(steps=(4, 4), new_steps=(1, 2))


def _mean_percent(values: list[bool] | list[float]) -> str:
    return percent(mean(values) if values else None)


def _solve(engine, renderer, problems: list[Problem]) -> list[Verdict]:
    from dartune.engines.base import SampleSpec

    spec = SampleSpec(1, MAX_NEW_TOKENS, 0.0, renderer.stop_ids, 0)
    samples = engine.generate([renderer.prompt_ids(problem.question) for problem in problems], spec)
    return [
        check_solution(renderer.decode(group[0].ids), problem) for group, problem in zip(samples, problems, strict=True)
    ]


def target_table(engine, renderer, n: int, native: str) -> list[str]:
    """Share of correct answers, of correct steps and of the native dialect, per suite."""
    lines = ["| suite | answer % | steps % | native dialect % |", "|---|---|---|---|"]
    suites = {name: suite(name, n) for name in SUITES}
    suites["new relations, 4 steps"] = sample_problems("four", NEW_RELATIONS_SPEC, n)
    for name, problems in suites.items():
        verdicts = _solve(engine, renderer, problems)
        cells = (
            [v.answer_correct for v in verdicts],
            [v.steps_correct for v in verdicts],
            [v.dialect == native for v in verdicts],
        )
        lines.append(f"| {name} | " + " | ".join(map(_mean_percent, cells)) + " |")
    # Accuracy of a model that always gives the most common answer: the level of chance for the row above.
    answers = Counter(problem.answer for problem in suites["new relations, 4 steps"])
    lines.append(f"| (most common answer of these) | {percent(answers.most_common(1)[0][1] / n)} | | |")
    return lines


def alignment_table(engine, renderer, n: int) -> list[str]:
    """Mean log-probability of gold solutions, summed over tokens, per dialect, on old and on new relations."""
    old = sample_problems("alignment-old", ProblemSpec(steps=(2, 3)), n)
    new = sample_problems("alignment-new", NEW, n)
    lines = ["| dialect | old relations, nats | new relations, nats | tokens |", "|---|---|---|---|"]
    for dialect, write in DIALECTS.items():
        sums, tokens = [], []
        for problems in (old, new):
            pairs = [(renderer.prompt_ids(p.question), renderer.response_ids(write(p))) for p in problems]
            sums.append(mean(sum(row) for row in engine.score(pairs)))
            tokens.append(mean(len(reply) for _, reply in pairs))
        lines.append(f"| {dialect} | {decimals(sums[0], 1)} | {decimals(sums[1], 1)} | {decimals(mean(tokens), 0)} |")
    return lines


def mapper_table(
    engine, renderer, gates_of: Callable[[list[Demonstration], list[list[str]]], list[bool]], n: int
) -> list[str]:
    """Distribution over dialects, share of correct steps and gate pass rate of the initial mapper, per expert."""
    from dartune.engines.base import SampleSpec

    lines = [
        "| expert | " + " | ".join(DIALECTS) + " | none | steps % | gate pass % |",
        "|" + "---|" * (len(DIALECTS) + 4),
    ]
    problems = sample_problems("mapper", DEMONSTRATIONS, n)
    spec = SampleSpec(8, MAX_NEW_TOKENS, 1.0, renderer.stop_ids, 0)
    for expert in EXPERTS:
        rows = write_demonstrations(problems, expert)
        prompts = [
            renderer.prompt_ids(MAPPER_PROMPT.format(question=row.question, solution=row.solution)) for row in rows
        ]
        rewrites = [[renderer.decode(sample.ids) for sample in group] for group in engine.generate(prompts, spec)]
        verdicts = [
            check_solution(rewrite, parse_question(row.question))
            for row, group in zip(rows, rewrites, strict=True)
            for rewrite in group
        ]
        shares = Counter(v.dialect or "none" for v in verdicts)
        cells = [percent(shares[dialect] / len(verdicts)) for dialect in (*DIALECTS, "none")]
        cells += [_mean_percent([v.steps_correct for v in verdicts]), _mean_percent(gates_of(rows, rewrites))]
        lines.append(f"| {expert} | {' | '.join(cells)} |")
    return lines


def text_gates(rows: list[Demonstration], texts: list[list[str]]) -> list[bool]:
    """Whether each text passes all gates that need no target model (answer, coverage, sums, loops, leaks, wording)."""
    from dartune.answers.checker import AnswerChecker
    from dartune.gates.gate_input import GateInput, GateThresholds
    from dartune.gates.registry import run_gates

    inputs = [
        GateInput(row.question, row.solution, text, row.answer)
        for row, group in zip(rows, texts, strict=True)
        for text in group
    ]
    with AnswerChecker() as checker:
        return [all(gates.values()) for gates in run_gates(inputs, GateThresholds(), checker)]


def report(n: int = 256, folder: Path = CHECKPOINTS) -> str:
    """Return the measurements of all lab models in `folder` as Markdown tables."""
    from dartune.data.chat_template import Renderer
    from dartune.engines.hf import HFEngine
    from dartune.models.loading import load_model, load_tokenizer

    lines = []
    for name in (name for name in TARGETS if (folder / name / "config.json").exists()):
        engine, renderer = HFEngine(load_model(folder / name)), Renderer(load_tokenizer(folder / name))
        lines += [f"### Target `{name}`: accuracy ({n} questions per suite, greedy decoding)", ""]
        lines += [*target_table(engine, renderer, n, name), ""]
        lines += [f"### Target `{name}`: alignment of gold solutions given the question ({n} per dialect)", ""]
        lines += [*alignment_table(engine, renderer, n), ""]
    engine, renderer = HFEngine(load_model(folder / "mapper")), Renderer(load_tokenizer(folder / "mapper"))
    lines += [f"### Initial mapper: dialects of its rewrites ({n} demonstrations, 8 samples each, %)", ""]
    lines += mapper_table(engine, renderer, text_gates, n)
    return "\n".join(lines) + "\n"
