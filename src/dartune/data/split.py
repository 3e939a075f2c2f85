"""Splits rows into training, development and test rows with one shuffle, so that no question is in two parts."""

from __future__ import annotations

import hashlib
import math
import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dartune.config.schema import DataConfig
from dartune.data.near_duplicates import question_key
from dartune.data.records import Demonstration
from dartune.data.row_store import select_rows
from dartune.errors import InputError, counted

SPLIT_SEED = 0
HELD_OUT_SHARE = 0.1
"""Maximum share of the distinct questions for each of dev and test, so that small data sets keep training rows."""
FEW_TESTS = 100
"""With fewer test questions, the 95% interval of an accuracy is wider than plus or minus ten points."""


@dataclass(frozen=True, slots=True)
class Split:
    """The rows of a run.

    Args:
        train: rows that are adapted and trained on.
        dev: rows that select the learning rate.
        suites: name -> test rows. `in_distribution` are the test rows of the data itself.
        notes: sentences about the split, for the user.
    """

    train: Sequence[Demonstration]
    dev: Sequence[Demonstration]
    suites: dict[str, Sequence[Demonstration]]
    notes: list[str] = field(default_factory=list)


def split_rows(
    settings: DataConfig, rows: Sequence[Demonstration], suites: dict[str, Sequence[Demonstration]]
) -> Split:
    """Splits the rows into training, development and test rows.

    Dev and test rows are a random sample with one row per question. Questions of test rows and suites appear neither
    in dev nor in train, and questions of dev rows do not appear in train. Questions that differ only in case, spacing
    or punctuation count as the same. `data.limit` keeps the first training rows of the same shuffle.

    Raises:
        InputError: there are too few rows.
    """
    order, question_ids = array("q", range(len(rows))), questions(rows)
    random.Random(SPLIT_SEED).shuffle(order)
    held_out_limit = max(1, int(HELD_OUT_SHARE * _distinct_count(question_ids)))
    test = _sample_questions(order, question_ids, min(settings.test, held_out_limit), set())
    suite_ids = {int(question_id) for part in suites.values() for question_id in questions(part)}
    tested = suite_ids | {int(question_ids[i]) for i in test}
    dev = _sample_questions(order, question_ids, min(settings.dev, held_out_limit), tested)
    held_out = tested | {int(question_ids[i]) for i in dev}
    trainable = array("q", (index for index in order if int(question_ids[index]) not in held_out))
    repeats = len(rows) - len(trainable) - len(test) - len(dev)
    # Sorted, so that training rows keep the order of the data; the shuffle only selects them.
    chosen = np.sort(np.asarray(trainable[: settings.limit or None], dtype=np.int64))
    train, dev, test = select_rows(rows, chosen), [rows[i] for i in dev], [rows[i] for i in test]
    suites = {**({"in_distribution": test} if test else {}), **suites}
    if not train or not dev or not suites:
        raise InputError(_too_few_message(question_ids, suite_ids))
    notes = _notes(train, dev, [len(suite) for suite in suites.values()])
    if repeats:
        notes.append(
            f"{counted(repeats, 'row repeats a held-out question and is', 'rows repeat a held-out question and are')} "
            "left out of training."
        )
    if len(chosen) < len(trainable):
        notes.append(f"{counted(len(trainable) - len(chosen), 'row is', 'rows are')} left out by data.limit.")
    return Split(train, dev, suites, notes)


def _notes(train: Sequence[Demonstration], dev: Sequence[Demonstration], suite_sizes: Sequence[int]) -> list[str]:
    notes = [
        f"{counted(len(train), 'row')} to adapt and train on, {len(dev)} to choose the learning rate, "
        f"{sum(suite_sizes)} to test."
    ]
    smallest = min(suite_sizes)
    if smallest < FEW_TESTS:
        # Half width of the 95% interval in points, by the normal approximation at an accuracy of one half.
        points = 196 * math.sqrt(0.25 / smallest)
        notes.append(
            f"{counted(smallest, 'test question')} can tell an accuracy to about {points:.0f} points only (half a "
            "95% interval); for a claim give more rows, or test files of your own (evaluate.suites)."
        )
    if unchecked := sum(row.answer is None for row in train):
        verb = "has" if unchecked == 1 else "have"
        notes.append(f"{unchecked} of {counted(len(train), 'training row')} {verb} no checkable answer.")
    if all(row.answer is None for row in dev):
        notes.append("No dev row has a checkable answer, so every arm takes the smallest learning rate.")
    return notes


def _too_few_message(question_ids: np.ndarray, suite_ids: set[int]) -> str:
    rows, distinct = len(question_ids), _distinct_count(question_ids)
    shared = sum(int(question_id) in suite_ids for question_id in question_ids)
    if rows and shared == rows:
        subject = (
            f"every one of the {rows} rows asks a question of a suite"
            if rows > 1
            else "the only row asks a question of a suite"
        )
        return (
            f"{subject} (evaluate.suites), so that none is left to train on and to choose a learning rate: take the "
            "suites' questions from other data, or remove the suites"
        )
    repeated = "" if distinct == rows else f" with {counted(distinct, 'distinct question')}"
    tested = f", {shared} of which {'asks' if shared == 1 else 'ask'} a question of a suite," if shared else ""
    return (
        f"{counted(rows, 'row')}{repeated}{tested} {'is' if rows == 1 else 'are'} too few to train, choose a learning "
        f"rate and test on: give at least 3 {'questions' if repeated else 'rows'}"
        f"{' that no suite asks' if shared else ''}, and set data.dev and data.test "
        "to 1 or more (or evaluate.suites to test files of your own)"
    )


def _sample_questions(order: Iterable[int], question_ids: np.ndarray, count: int, excluded: set[int]) -> list[int]:
    """Returns the first `count` rows in `order` with distinct questions outside `excluded`, as sorted indices."""
    chosen: dict[int, int] = {}
    for index in order:
        if len(chosen) == count:
            break
        if question_ids[index] not in excluded:
            chosen.setdefault(int(question_ids[index]), index)
    return sorted(chosen.values())


def questions(rows: Sequence[Demonstration]) -> np.ndarray:
    """Returns a 64-bit hash of each row's question, (rows,) int64. Near-duplicates have the same hash."""
    return np.fromiter(map(_question_hash, rows), np.int64, len(rows))


def _question_hash(row: Demonstration) -> int:
    # A system text above the question is not part of the question.
    question = row.question.removeprefix(row.meta.get("system") or "").strip() or row.question
    digest = hashlib.blake2b((question_key(question) or question).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _distinct_count(values: np.ndarray) -> int:
    """Returns the number of distinct values. `np.unique` would need more memory, because it uses a hash table."""
    ordered = np.sort(values)
    return len(values) and 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))
