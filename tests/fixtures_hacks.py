"""Honest rewrites in English and in the lab's language, and hacked ones made from them."""

import json
import random
from dataclasses import replace
from pathlib import Path

import dartune.rewards
from dartune.lab.dialects import DIALECTS
from dartune.lab.world import ProblemSpec, draw_many
from dartune.rewards.hacks import INSTRUCTION, STRANGERS
from dartune.rewards.items import GateInput, GateThresholds
from dartune.rewards.text import words

THRESHOLDS = GateThresholds(instruction=INSTRUCTION, names=frozenset(STRANGERS))
NATIVE = ("explicit", "equations", "verbose", "backward", "recall")
FIXTURES = [
    json.loads(line)
    for line in (Path(dartune.rewards.__file__).parent / "fixtures" / "english.jsonl").read_text("utf-8").splitlines()
]


def with_tokens(item: GateInput, expected: str) -> GateInput:
    """One token per word and an end token."""
    return replace(item, token_ids=tuple(range(len(words(item.rewrite)) + 1)), expected_tokens=len(words(expected)) + 1)


def english(label: str) -> list[GateInput]:
    rows = [row for row in FIXTURES if row["label"] == label]
    items = [GateInput(row["question"], row["solution"], row["rewrite"], row["answer"]) for row in rows]
    return [with_tokens(item, item.solution) for item in items]


def lab_item(problem, source: str, native: str) -> GateInput:
    item = GateInput(problem.question, DIALECTS[source](problem), DIALECTS[native](problem), str(problem.answer))
    return with_tokens(item, DIALECTS["backward"](problem))


def lab(n: int) -> list[GateInput]:
    problems = draw_many("hacks", ProblemSpec(steps=(2, 4), new_steps=(0, 2)), n)
    return [lab_item(p, source, native) for p in problems for source in sorted(DIALECTS) for native in NATIVE]


def hacked(hack, items: list[GateInput]) -> list[GateInput]:
    rng = random.Random(hack.name)
    pairs = [(hack.apply(item, rng), item) for item in items]
    tokens = {id(item): item.expected_tokens for item in items}
    done = [with_tokens(new, new.solution) for new, _ in pairs if new]
    kept = [item for new, item in pairs if new]
    return [replace(new, expected_tokens=tokens[id(item)]) for new, item in zip(done, kept, strict=True)]
