"""Honest rewrites in English and in the lab's language, and hacked ones made from them."""

import json
import random
from dataclasses import replace
from pathlib import Path

import dartune.red_team
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.hacks.catalogue import INSTRUCTION, INVENTED_NAMES
from dartune.lab.dialects import DIALECTS
from dartune.lab.world import ProblemSpec, sample_problems
from dartune.text.features import words

THRESHOLDS = GateThresholds(instruction=INSTRUCTION, names=frozenset(INVENTED_NAMES))
# Dialects of the lab that can be the native style of a target.
NATIVE = ("explicit", "equations", "verbose", "backward", "recall")
FIXTURES = [
    json.loads(line)
    for line in (Path(dartune.red_team.__file__).parent / "data" / "english.jsonl").read_text("utf-8").splitlines()
]


def with_tokens(item: GateInput, expected: str) -> GateInput:
    """Return `item` with one token per word and an end token; the length of `expected` is the expected length."""
    return replace(item, token_ids=tuple(range(len(words(item.rewrite)) + 1)), expected_tokens=len(words(expected)) + 1)


def english(label: str) -> list[GateInput]:
    rows = [row for row in FIXTURES if row["label"] == label]
    items = [GateInput(row["question"], row["solution"], row["rewrite"], row["answer"]) for row in rows]
    return [with_tokens(item, item.solution) for item in items]


def lab_item(problem, source: str, native: str) -> GateInput:
    item = GateInput(problem.question, DIALECTS[source](problem), DIALECTS[native](problem), str(problem.answer))
    return with_tokens(item, DIALECTS["backward"](problem))


def lab(n: int) -> list[GateInput]:
    problems = sample_problems("hacks", ProblemSpec(steps=(2, 4), new_steps=(0, 2)), n)
    return [lab_item(p, source, native) for p in problems for source in sorted(DIALECTS) for native in NATIVE]


def hacked(hack, items: list[GateInput]) -> list[GateInput]:
    """Return the items to which the hack can be applied, hacked, with the expected length of the honest item."""
    rng = random.Random(hack.name)
    pairs = [(hack.apply(item, rng), item) for item in items]
    return [replace(with_tokens(new, new.solution), expected_tokens=item.expected_tokens) for new, item in pairs if new]
