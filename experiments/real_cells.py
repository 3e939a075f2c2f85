"""One cell of the comparison on real models: a run of dartune, and what its models keep of the untouched target.

A cell can have a second round (`run --again`): the data are adapted again, for the model that `dart` made in the first
round, from the mapper of the first round. Its `base` is the result of the first round; `sft_on_mapper_start` trains as
long again on rewrites of the first mapper, without adapting anew.

Beside the run's own accuracies, every arm is measured by
* `calculated`: whether the solution contains a calculation that gives the right answer if it is worked out correctly.
  These models choose the right calculation far more often than they get its result right;
* `answer_logprob`: log-probability (nats) of the right answer after the model's own greedy solution and "The answer
  is", a measure with more power than accuracy where few answers are right, and which no answer format favours;
* `nll_rise`: rise of the negative log-likelihood (nats per token) of what the untouched target samples on prompts that
  have nothing to do with the task, and `kl`, KL(untouched || arm) on the same tokens;
* `counting`, `boolean`: log-probability of the right answer to object_counting and boolean_expressions of BIG-Bench
  Hard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from finished_models import dart_model, mapper_model
from real_pages import AGAIN
from real_tasks import SUITE_NAMES, TARGETS

from dartune.config.arms import ARMS
from dartune.config.load import load_config
from dartune.config.schema import Config
from dartune.data.chat_template import Renderer
from dartune.engines.base import SampleSpec
from dartune.engines.hf import HFEngine
from dartune.engines.logprobs import anchored_logprobs
from dartune.models.loading import load_model, load_tokenizer
from dartune.pipeline import run
from dartune.run.files import atomic_write_json, read_json, read_jsonl
from dartune.stages.names import evaluation_stage, train_stage
from dartune.text.equations import calculations

RECIPE = Path(__file__).parent / "real-models.yaml"
UNRELATED_TOKENS, UNRELATED_TEMPERATURE = 40, 0.7
BATCH, EPOCHS = 8, 2
BBH_QUESTIONS = 60
CORE_ARMS = ("base", "sft", "dart", "best_of_k", "sft_stm", "sft_on_mapper_start", "sft_low_lr", "sft_matched", "rft",
             "grpo_tokens", "sdft")  # fmt: skip
AGAIN_ARMS = ("base", "dart", "sft_on_mapper_start")
"""Of the second round; `base` is the `dart` of the first round."""
MEASURES = "measures"
"""Folder of the measures in a run's folder: a file per arm and seed."""
UNRELATED = (
    "What is the capital of France?",
    "Write two sentences about a dog who likes rain.",
    "Explain why the sky is blue.",
    "Give me three tips for sleeping better.",
    "What is the difference between a lake and a sea?",
    "How do I boil an egg?",
    "What does a librarian do?",
    "Describe a busy market.",
    "Why do leaves fall in autumn?",
    "How can I learn to swim?",
    "Write an email asking for a day off.",
    "What is gravity?",
    "Name three animals that live in the sea.",
    "What is a good breakfast for a cold day?",
    "Why do people shake hands?",
    "Tell me about the moon.",
    "How does a bicycle stay upright?",
    "What is bread made of?",
    "Who was Marie Curie?",
    "Give a reason to visit the mountains.",
    "What does the word 'patient' mean?",
    "How are rainbows made?",
    "Describe the smell of coffee.",
    "What should I do before a job interview?",
)


def cell_config(
    folder: Path, target_name: str, expert: str, seeds: Sequence[int], arms: Sequence[str] = CORE_ARMS,
    again: bool = False,
) -> Config:  # fmt: skip
    """The recipe with a cell's paths, sizes and arms.

    Args:
        target_name: folder of the target, `<model>-<target>`.
        again: the second round of a finished cell, from the models of its first seed.
    """
    tasks, rows = folder / "tasks", TARGETS[target_name.rpartition("-")[2]].rows
    first = folder / "cells" / f"{target_name.removesuffix('-task')}-{expert}"
    suites = {name: str(tasks / f"suite-{name}.jsonl") for name in SUITE_NAMES}
    target, mapper = folder / target_name, folder / f"{target_name}-mapper"
    if again:
        target, mapper = dart_model(first, seeds[0]), mapper_model(first, seeds[0])
    flags = {
        "output": f"{first}{AGAIN}" if again else str(first),
        "data.path": str(tasks / f"{expert}.jsonl"),
        "data.limit": str(rows),
        "sft.steps": str(EPOCHS * rows // BATCH),
        "target.path": str(target),
        "mapper.path": str(mapper),
        "seeds": json.dumps(list(seeds)),
        "evaluate.suites": json.dumps(suites),
        "arms": json.dumps(AGAIN_ARMS if again else list(arms)),
    }
    return load_config(RECIPE, flags)


def run_cell(config: Config, folder: Path, target_name: str) -> None:
    """Run or continue a cell, then measure the models of its arms that have not been measured."""
    print(run(config), flush=True)
    measure(config, folder, folder / target_name)


def measure(config: Config, folder: Path, untouched: Path) -> None:
    """Write the measures of every arm and seed of a finished cell that has none.

    Args:
        untouched: the target before any round; retention is measured against it.
    """
    output = Path(config.output)
    results = json.loads((output / "report" / "results.json").read_text())
    pending = [
        (arm, seed, path)
        for arm in config.arms
        for seed in (config.seeds if ARMS[arm].trained else config.seeds[:1])
        if not (path := output / MEASURES / f"{arm}-s{seed}.json").exists()
    ]
    if not pending:
        return
    renderer = Renderer(load_tokenizer(config.target.path))
    reference = load_model(untouched)
    target = reference if Path(config.target.path) == untouched else load_model(config.target.path)
    unrelated = unrelated_samples(reference, renderer)
    bbh = {"counting": _bbh(folder, "object_counting"), "boolean": _bbh(folder, "boolean_expressions")}
    for arm, seed, path in pending:
        model = target
        if ARMS[arm].trained:
            rate = results["learning_rates"][arm][str(seed)]["chosen"]
            model = load_model(output / "stages" / train_stage(arm, seed, rate) / "model")
        records = read_jsonl(output / "stages" / evaluation_stage(arm, seed) / "records.jsonl")
        path.parent.mkdir(exist_ok=True)
        atomic_write_json(
            path,
            {
                "answer_logprob": answer_logprobs(model, renderer, records, _gold(folder)),
                **{name: _answer_logprobs(model, renderer, rows) for name, rows in bbh.items()},
                **drift(model, reference, unrelated),
            },
        )
        print(f"measured: {arm}, seed {seed}", flush=True)


def _gold(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {name: read_jsonl(folder / "tasks" / f"suite-{name}.jsonl") for name in SUITE_NAMES}


def _bbh(folder: Path, name: str) -> list[tuple[str, str]]:
    """(question, answer) pairs."""
    rows = read_jsonl(folder / "tasks" / f"bbh-{name}.jsonl")[:BBH_QUESTIONS]
    return [(row["question"], row["answer"]) for row in rows]


def unrelated_samples(target: torch.nn.Module, renderer: Renderer) -> list[tuple[list[int], tuple[int, ...]]]:
    """(prompt, sample) token ids of the untouched target on the unrelated prompts."""
    prompts = [renderer.prompt_ids(prompt) for prompt in UNRELATED]
    spec = SampleSpec(1, UNRELATED_TOKENS, UNRELATED_TEMPERATURE, renderer.stop_ids, 1)
    drawn = HFEngine(target).generate(prompts, spec)
    return [(prompt, group[0].ids) for prompt, group in zip(prompts, drawn, strict=True)]


@torch.no_grad()
def drift(
    model: torch.nn.Module, target: torch.nn.Module, pairs: Sequence[tuple[list[int], tuple[int, ...]]]
) -> dict[str, list[float]]:
    """`nll_rise` and `kl` of each pair, nats per token."""
    rise, divergence = [], []
    for low in range(0, len(pairs), BATCH):
        rows = pairs[low : low + BATCH]
        after, kl, mask = anchored_logprobs(model, target, rows)
        before, _, _ = anchored_logprobs(target, target, rows)
        tokens = mask.sum(dim=1)
        rise += (((before - after) * mask).sum(dim=1) / tokens).tolist()
        divergence += ((kl * mask).sum(dim=1) / tokens).tolist()
    return {"nll_rise": rise, "kl": divergence}


def answer_logprobs(
    model: torch.nn.Module,
    renderer: Renderer,
    records: Sequence[dict[str, Any]],
    gold: dict[str, list[dict[str, str]]],
) -> dict[str, list[float]]:
    """Suite -> log-probability of the right answer to each of its questions, in order."""
    by_suite: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_suite.setdefault(record["suite"], []).append(record)
    return {
        suite: _answer_logprobs(
            model,
            renderer,
            [(row["question"], row["answer"]) for row in gold[suite]],
            [record["text"] for record in rows],
        )
        for suite, rows in by_suite.items()
    }


def _answer_logprobs(
    model: torch.nn.Module,
    renderer: Renderer,
    questions: Sequence[tuple[str, str]],
    solutions: Sequence[str] | None = None,
) -> list[float]:
    """Log-probability (nats) of each answer after the question, the solution if there is one, and "The answer is"."""
    texts = [f"{text}\nThe answer is" for text in solutions] if solutions else ["The answer is"] * len(questions)
    pairs = [
        ([*renderer.prompt_ids(question), *renderer.text_ids(text)], renderer.text_ids(f" {answer}"))
        for (question, answer), text in zip(questions, texts, strict=True)
    ]
    return [sum(row) for row in HFEngine(model).score(pairs)]


def collect(folder: Path, path: Path) -> None:
    """Write the figures of every finished cell below `folder` to `path`, by cell; other cells in `path` stay."""
    found = read_json(path) or {}
    for report in sorted(folder.glob("cells/*/report/results.json")):
        found[report.parents[1].name] = cell_results(report.parents[1], folder)
    atomic_write_json(path, found)
    print(f"{path}: {', '.join(found)}")


def calculates(text: str, answer: str) -> bool:
    """Whether a calculation that is written in `text`, worked out correctly, has the value `answer`."""
    value = Fraction(answer.replace(",", ""))
    return any(result == value for _, result in calculations(text))


def cell_results(output: Path, folder: Path) -> dict[str, Any]:
    """What the page needs of a cell: outcomes by question, measures, costs, and the first rewrites.

    Args:
        folder: has the suites, in `tasks`.
    """
    results, gold = json.loads((output / "report" / "results.json").read_text()), _gold(folder)
    seeds = results["config"]["seeds"]
    outcomes: dict[str, Any] = {}
    for arm in results["arms"]:
        for seed in seeds if ARMS[arm].trained else seeds[:1]:
            measures = read_json(output / MEASURES / f"{arm}-s{seed}.json")
            if measures is None:
                print(f"{output.name}: {arm}, seed {seed}, is not measured yet and left out")
                continue
            records = read_jsonl(output / "stages" / evaluation_stage(arm, seed) / "records.jsonl")
            correct: dict[str, list[bool | None]] = {}
            calculated: dict[str, list[bool]] = {}
            for record in records:
                suite = record["suite"]
                answer = gold[suite][len(correct.setdefault(suite, []))]["answer"]
                correct[suite].append(record["correct"])
                calculated.setdefault(suite, []).append(calculates(record["text"], answer))
            outcomes.setdefault(arm, {})[str(seed)] = {"correct": correct, "calculated": calculated, **measures}
    rows = read_jsonl(output / "stages" / f"synthesise-s{seeds[0]}" / "rows.jsonl")
    shown = ("question", "source_solution", "solution", "provenance", "reason", "alignment_before", "alignment_after")
    mapper = read_jsonl(output / "stages" / f"mapper-s{seeds[0]}" / "metrics.jsonl")
    return {
        "seeds": seeds,
        "outcomes": outcomes,
        "rewrites": [{name: row[name] for name in shown} for row in rows[:10]],
        "provenance": _counts(row["provenance"] for row in rows),
        "hacks_refused": _counts(hack for row in rows for hack in row["hacks_refused"]),
        "hacks_accepted": _counts(hack for row in rows for hack in row["hacks"]),
        "mapper": [{name: row[name] for name in ("reward", "gate_pass", "alignment_after")} for row in mapper],
        "costs": results["costs"]["arms"],
        "environment": read_json(output / "environment.json"),
    }


def _counts(values: Any) -> dict[str, int]:
    counted: dict[str, int] = {}
    for value in values:
        counted[value] = counted.get(value, 0) + 1
    return counted
