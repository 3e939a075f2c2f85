"""Answers as read here agree with the labels that GSM8K's publisher gave to 5,276 machine solutions.

The file is not part of the project: `DARTUNE_GSM8K_SOLUTIONS` names `example_model_solutions.jsonl` of
openai/grade-school-math.
"""

import json
import os
from pathlib import Path

import pytest

from dartune.rewards.solved import stated_answer
from dartune.rewards.tasks import MATH

FILE = os.environ.get("DARTUNE_GSM8K_SOLUTIONS", "")


@pytest.mark.skipif(not FILE, reason="DARTUNE_GSM8K_SOLUTIONS names no file")
def test_all_labels_are_agreed_with(checker):
    rows = [json.loads(line) for line in Path(FILE).read_text("utf-8").splitlines()]
    solutions = [
        (row["ground_truth"].rsplit("A:", 1)[-1].strip(), solution)
        for row in rows
        for solution in row.values()
        if isinstance(solution, dict)
    ]
    pairs = [(stated_answer(solution["solution"], MATH), gold) for gold, solution in solutions]
    verdicts = checker.check(pairs)
    agreed = [bool(right) == one["is_correct"] for right, (_, one) in zip(verdicts, solutions, strict=True)]
    assert len(agreed) == 5276 and all(agreed)
