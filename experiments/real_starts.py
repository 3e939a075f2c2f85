"""Models that the experiments start from: published models, fine-tuned briefly with dartune's own loop.

`warm_up` makes `gemma3-warm`: Gemma 3 270M is a base model that answers a question with a list of choices, more
questions or blank lines, and hardly ever ends, so it has no way of solving to speak of. A few steps on solutions that
people wrote (short rows of GSM8K's training file, without annotations) teach it to answer and to stop.

`mapper_start` makes `<model>-mapper` for reinforcement learning: these models do not follow the request for a rewrite
(1 to 3% of their rewrites pass), so they learn it from 240 other short rows of GSM8K, whose calculator annotations are
given as prefix equations and whose human solution is the rewrite.

`task_start` makes a target and the initial mapper of the comparison (`TARGETS` of real_tasks.py), which all arms share:
`<model>-<target>` learns to solve word problems in plain sentences, so that its way of solving is known; from it,
`<model>-<target>-mapper` learns to put an expert's solution of the same problems into such sentences.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from real_tasks import EXPERTS, TARGETS, native, tasks
from real_weights import COMPLETE
from style_texts import Problem, gsm8k_problem, prefix, source

from dartune.config.schema import SFTConfig
from dartune.data.chat_template import Renderer
from dartune.models.loading import load_model, load_tokenizer, save_model, stop_at
from dartune.train.sft import fine_tune

WARM = "gemma3-warm"
WARM_ROWS, MAPPER_ROWS, MAPPER_TASK_ROWS, RATE = 160, 240, 40, 5e-5
SKIPPED = 4000
"""First rows of GSM8K's training file that are left to the experiments."""
MAPPER_PROMPT = (
    "{question}\n\nThe calculation: {solution}\n\n"
    "Solve the problem in one or two short sentences. State the calculation and end with the result."
)


def warm_up(folder: Path, data: Path) -> Path:
    """Fine-tune Gemma 3 270M briefly on human solutions; `data` holds gsm8k-train.jsonl."""
    pairs = [(problem.question, source(problem)) for problem in _short_problems(data)[:WARM_ROWS]]
    return _fine_tuned(folder, "gemma3", WARM, pairs, "question to human solution, short GSM8K training rows")


def mapper_start(name: str, folder: Path, data: Path) -> Path:
    """Fine-tune a model on putting prefix equations into words, on problems that Gemma's warm-up did not have."""
    problems = _short_problems(data)[WARM_ROWS : WARM_ROWS + MAPPER_ROWS]
    pairs = []
    for problem in problems:
        equations = [f"{prefix(expression)} = {result}" for expression, result in problem.equations]
        request = MAPPER_PROMPT.format(question=problem.question, solution="; ".join(equations))
        pairs.append((request, "\n".join(problem.sentences)))
    start = WARM if name == "gemma3" else name
    task = "question and prefix equations to human solution, short GSM8K training rows"
    return _fine_tuned(folder, start, f"{name}-mapper", pairs, task)


def task_start(name: str, target: str, folder: Path, data: Path) -> None:
    """Fine-tune a model on solving word problems plainly, and a copy of it on rewriting the experts' solutions."""
    warm_up, _, _ = tasks(data)
    problems = warm_up[: TARGETS[target].warm_up_rows]
    solve = [(problem.question, native(problem)) for problem in problems]
    _fine_tuned(folder, name, f"{name}-{target}", solve, "question to plain sentences, word problems")
    experts = [expert for expert in EXPERTS.values() if expert is not native]
    rewrite = [
        (MAPPER_PROMPT.format(question=problem.question, solution=experts[i % len(experts)](problem)), native(problem))
        for i, problem in enumerate(problems[:MAPPER_TASK_ROWS])
    ]
    task = "question and expert solution to plain sentences, word problems"
    _fine_tuned(folder, f"{name}-{target}", f"{name}-{target}-mapper", rewrite, task)


def _short_problems(data: Path) -> list[Problem]:
    """GSM8K problems outside the experiments' rows, the shortest first."""
    lines = (data / "gsm8k-train.jsonl").read_text(encoding="utf-8").splitlines()[SKIPPED:]
    rows = sorted(map(json.loads, lines), key=lambda row: len(row["question"]) + len(row["answer"]))
    return [problem for problem in map(gsm8k_problem, rows) if problem]


def _fine_tuned(folder: Path, start: str, name: str, pairs: list[tuple[str, str]], task: str) -> Path:
    """One epoch of `pairs`, eight a step, from the model `start` into the folder `name`."""
    out = folder / name
    if (out / COMPLETE).exists():
        print(f"{out} is complete")
        return out
    steps = len(pairs) // 8
    tokenizer = load_tokenizer(folder / start)
    renderer = Renderer(tokenizer)
    settings = SFTConfig(steps=steps, batch_size=8, learning_rates=(RATE,))
    scratch = folder / f".{name}.training"
    scratch.mkdir(exist_ok=True)
    model, _ = fine_tune(
        load_model(folder / start, dtype="float32"),
        pairs,
        renderer,
        settings,
        RATE,
        0,
        scratch,
        on_step=lambda step, row: print(step, row["loss"], flush=True),
    )
    stop_at(model, renderer.stop_ids)
    save_model(model, tokenizer, out)
    source_of = json.loads((folder / start / COMPLETE).read_text())
    how = f"{task}, {len(pairs)} rows, {steps} steps of 8, learning rate {RATE:g}"
    (out / COMPLETE).write_text(json.dumps(source_of | {name: how}, indent=1) + "\n")
    shutil.rmtree(scratch, ignore_errors=True)
    return out
