"""How many rewrites the reward scores in a second, and where the time goes.

python benchmarks/reward.py [REPEATS]     prints a table, writes results/reward-throughput.json

Two loads on one CPU core: a step of mapper training on the lab (12 questions x 8 samples of the initial mapper, under
the 0.6M-parameter target), and the English fixtures with every hack committed on them (gates alone, no target). Parts
are timed by themselves over the same rows, so that they need not add up to the whole exactly.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dartune.answers.checker import AnswerChecker
from dartune.data.chat_template import Renderer
from dartune.engines.base import SampleSpec
from dartune.engines.hf import HFEngine
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.gates.registry import PLAIN_GATES, run_gates
from dartune.hacks.detect import detect_hacks
from dartune.lab.build import MAPPER_PROMPT
from dartune.lab.source import model_folder
from dartune.lab.suites import DEMONSTRATIONS, write_demonstrations
from dartune.lab.world import sample_problems
from dartune.models.loading import load_model, load_tokenizer
from dartune.red_team.fixtures import SHIPPED, apply_hacks, load_fixtures
from dartune.rewards.penalties import PENALTIES, Rewritten
from dartune.rewards.references import source_references
from dartune.rewards.reward import GatedReward
from dartune.run.files import atomic_write_json
from dartune.stages.mapper_prompt import mapper_prompt

RESULTS = Path(__file__).parents[1] / "results" / "reward-throughput.json"
QUESTIONS, SAMPLES = 12, 8
THRESHOLDS = GateThresholds(answer_logprob=-0.7)


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Time of every repeat after one to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def gate_parts(items: list[GateInput], checker: AnswerChecker) -> dict[str, Callable[[], Any]]:
    verdicts = run_gates(items, THRESHOLDS, checker)

    def one(gate):
        return lambda: [gate(item, THRESHOLDS) for item in items]

    parts = {f"gate {name}": one(gate) for name, gate in PLAIN_GATES.items()}
    return parts | {
        "all gates": lambda: run_gates(items, THRESHOLDS, checker),
        "naming hacks": lambda: [detect_hacks(i, gates, THRESHOLDS) for i, gates in zip(items, verdicts, strict=True)],
    }


def lab_parts(checker: AnswerChecker) -> tuple[int, dict[str, Callable[[], Any]]]:
    """The parts of one training step's reward, and how many rewrites they score."""
    folder = model_folder("lab:backward")
    renderer, target = Renderer(load_tokenizer(folder)), HFEngine(load_model(folder))
    mapper = HFEngine(load_model(model_folder("lab:mapper")))
    rows = write_demonstrations(sample_problems("benchmark", DEMONSTRATIONS, QUESTIONS), "values")
    spec = SampleSpec(SAMPLES, 128, 1.0, renderer.stop_ids, 0)
    samples = mapper.generate([renderer.prompt_ids(mapper_prompt(MAPPER_PROMPT, row)) for row in rows], spec)
    reward = GatedReward(target, renderer, checker, THRESHOLDS, source_references(target, renderer, rows))
    owners = [(row, sample) for row, group in zip(rows, samples, strict=True) for sample in group]
    pairs = [(renderer.prompt_ids(row.question), sample.ids) for row, sample in owners]
    known = target.score(pairs)
    made = [Rewritten(r, s, renderer.decode(s.ids), p) for (r, s), p in zip(owners, known, strict=True)]
    items = [reward._gate_input(row) for row in made]

    def penalty(work):
        return lambda: work(made, target, renderer)

    parts = {
        "whole reward": lambda: reward(rows, samples),
        "target's forward": lambda: target.score(pairs),
        "reading tokens": lambda: [reward._gate_input(row) for row in made],
        **gate_parts(items, checker),
        **{f"penalty {name} (off by default)": penalty(work) for name, work in PENALTIES.items()},
    }
    return len(owners), parts


def english_parts(checker: AnswerChecker) -> tuple[int, dict[str, Callable[[], Any]]]:
    fixtures = load_fixtures(SHIPPED)
    rows = [(f.demonstration, f) for f in [*fixtures, *apply_hacks(fixtures)]]
    items = [GateInput(d.question, d.solution, f.rewrite, d.answer, f.finish) for d, f in rows]
    return len(items), gate_parts(items, checker)


def main(repeats: int) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with AnswerChecker() as checker:
        for name, load in (("lab step", lab_parts), ("English texts, gates alone", english_parts)):
            n, parts = load(checker)
            times = {part: seconds(work, repeats) for part, work in parts.items()}
            whole = median(times.get("whole reward", times["all gates"]))
            found[name] = {"rewrites": n, "seconds": times, "rewrites_per_second": n / whole}
            print(f"\n{name}: {n} rewrites, {n / whole:,.0f} rewrites/s (median of {repeats})")
            for part, taken in sorted(times.items(), key=lambda kv: -median(kv[1])):
                spread = f"{1e3 * min(taken):.1f} .. {1e3 * max(taken):.1f}"
                print(f"  {part:44}{1e3 * median(taken):9.1f} ms  ({spread}){median(taken) / whole:8.1%}")
    RESULTS.parent.mkdir(exist_ok=True)
    atomic_write_json(RESULTS, found)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
