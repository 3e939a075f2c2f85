"""Answers as read here agree with the labels that GSM8K's publisher gave to 5,276 machine solutions.

The file is not part of the project: `DARTUNE_GSM8K_SOLUTIONS` names `example_model_solutions.jsonl` of
openai/grade-school-math.
"""

import json
import os
import re
from pathlib import Path

import pytest

from dartune.rewards.closing import closing_number
from dartune.rewards.solved import stated_answer
from dartune.rewards.tasks import MATH
from dartune.rewards.verify import same_plain

FILE = os.environ.get("DARTUNE_GSM8K_SOLUTIONS", "")
NOTE = re.compile(r"<<[^<>]*>>")
pytestmark = pytest.mark.skipif(not FILE, reason="DARTUNE_GSM8K_SOLUTIONS names no file")


@pytest.fixture(scope="module")
def solutions():
    """(gold answer, solution with the publisher's label) of every solution."""
    rows = [json.loads(line) for line in Path(FILE).read_text("utf-8").splitlines()]
    return [
        (row["ground_truth"].rsplit("A:", 1)[-1].strip(), solution)
        for row in rows
        for solution in row.values()
        if isinstance(solution, dict)
    ]


def test_all_labels_are_agreed_with(solutions, checker):
    pairs = [(stated_answer(solution["solution"], MATH), gold) for gold, solution in solutions]
    verdicts = checker.check(pairs)
    agreed = [bool(right) == one["is_correct"] for right, (_, one) in zip(verdicts, solutions, strict=True)]
    assert len(agreed) == 5276 and all(agreed)


def test_closing_sentences_say_what_the_last_line_announces(solutions):
    texts = [solution["solution"].rpartition("\nA:") for _, solution in solutions]
    pairs = [(closing_number(NOTE.sub("", body)), stated) for body, _, stated in texts if body.strip()]
    # What is left are rounded answers mostly (`= 93.4`, then `A: 93`).
    assert sum(bool(same_plain(*pair)) for pair in pairs) >= 0.975 * len(pairs) and len(pairs) > 5000
