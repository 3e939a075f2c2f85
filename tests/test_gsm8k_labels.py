"""Verdicts agree with the labels that the publisher of GSM8K gave to 5,276 model solutions.

The file is not part of the project. `DARTUNE_GSM8K_SOLUTIONS` is the path of `example_model_solutions.jsonl` from
openai/grade-school-math.
"""

import json
import os
import re
from pathlib import Path

import pytest

from dartune.answers.closing_sentence import closing_number
from dartune.answers.equality import same_plain
from dartune.answers.grading import stated_answer
from dartune.answers.task_families import MATH

FILE = os.environ.get("DARTUNE_GSM8K_SOLUTIONS", "")
NOTE = re.compile(r"<<[^<>]*>>")
pytestmark = pytest.mark.skipif(not FILE, reason="DARTUNE_GSM8K_SOLUTIONS is not set")


@pytest.fixture(scope="module")
def solutions():
    """Every (gold answer, solution with the publisher's label)."""
    rows = [json.loads(line) for line in Path(FILE).read_text("utf-8").splitlines()]
    return [
        (row["ground_truth"].rsplit("A:", 1)[-1].strip(), solution)
        for row in rows
        for solution in row.values()
        if isinstance(solution, dict)
    ]


def test_verdicts_agree_with_all_labels(solutions, checker):
    pairs = [(stated_answer(solution["solution"], MATH), gold) for gold, solution in solutions]
    verdicts = checker.check(pairs)
    agreed = [bool(right) == solution["is_correct"] for right, (_, solution) in zip(verdicts, solutions, strict=True)]
    assert len(agreed) == 5276 and all(agreed)


def test_closing_sentences_match_the_announced_answers(solutions):
    texts = [solution["solution"].rpartition("\nA:") for _, solution in solutions]
    pairs = [(closing_number(NOTE.sub("", body)), stated) for body, _, stated in texts if body.strip()]
    # Most of the rest are rounded answers (`= 93.4`, then `A: 93`).
    assert sum(bool(same_plain(*pair)) for pair in pairs) >= 0.975 * len(pairs) and len(pairs) > 5000
