"""Which rows train, choose and test: drawn by one shuffle, so that no question is in two parts."""

from __future__ import annotations

import hashlib
import math
import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dartune.config import DataConfig
from dartune.data.records import Demonstration
from dartune.data.rows import taken
from dartune.data.sameness import question_key
from dartune.errors import InputError, counted

SPLIT_SEED = 0
HELD_OUT_SHARE = 0.1
"""Of a user's distinct questions, dev and test take at most this share each."""
FEW_TESTS = 100
"""Fewer test questions than this leave an accuracy ten points and more uncertain."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The rows of a run: `train` is adapted and trained on, `dev` chooses, `suites` test."""

    train: Sequence[Demonstration]
    dev: Sequence[Demonstration]
    suites: dict[str, Sequence[Demonstration]]
    notes: list[str] = field(default_factory=list)


def split(settings: DataConfig, rows: Sequence[Demonstration], suites: dict[str, Sequence[Demonstration]]) -> Parts:
    """Dev and test rows are drawn at random, each question once.

    Rows that ask a tested question neither choose nor are trained on; nor are rows trained on that ask a dev row's.
    Questions that differ only in case, spacing or punctuation are the same. `data.limit` takes the first training rows
    of the same shuffle.

    Raises:
        InputError: there are too few rows.
    """
    order, asks = array("q", range(len(rows))), questions(rows)
    random.Random(SPLIT_SEED).shuffle(order)
    distinct = _different(asks)
    share = max(1, int(HELD_OUT_SHARE * distinct))
    test = _drawn(order, asks, min(settings.test, share), set())
    in_suites = {int(one) for part in suites.values() for one in questions(part)}
    tested = in_suites | {int(asks[i]) for i in test}
    dev = _drawn(order, asks, min(settings.dev, share), tested)
    held_out = tested | {int(asks[i]) for i in dev}
    kept = array("q", (index for index in order if int(asks[index]) not in held_out))
    repeats = len(rows) - len(kept) - len(test) - len(dev)
    chosen = np.sort(np.asarray(kept[: settings.limit or None], dtype=np.int64))
    train, dev, test = taken(rows, chosen), [rows[i] for i in dev], [rows[i] for i in test]
    suites = {**({"in_distribution": test} if test else {}), **suites}
    if not train or not dev or not suites:
        raise InputError(_too_few(asks, in_suites))
    notes = _notes(train, dev, [len(suite) for suite in suites.values()])
    if repeats:
        notes.append(
            f"{counted(repeats, 'row repeats a held-out question and is', 'rows repeat a held-out question and are')} "
            "left out of training."
        )
    if len(chosen) < len(kept):
        notes.append(f"{counted(len(kept) - len(chosen), 'row is', 'rows are')} left out by data.limit.")
    return Parts(train, dev, suites, notes)


def _notes(train: Sequence[Demonstration], dev: Sequence[Demonstration], asked: Sequence[int]) -> list[str]:
    notes = [
        f"{counted(len(train), 'row')} to adapt and train on, {len(dev)} to choose the learning rate, {sum(asked)} to "
        "test."
    ]
    if min(asked) < FEW_TESTS:
        points = 196 * math.sqrt(0.25 / min(asked))  # of a share near one half, by the normal distribution
        notes.append(
            f"{counted(min(asked), 'test question')} can tell an accuracy to about {points:.0f} points only (half a "
            "95% interval); for a claim give more rows, or test files of your own (evaluate.suites)."
        )
    if unchecked := sum(row.answer is None for row in train):
        has = "has" if unchecked == 1 else "have"
        notes.append(f"{unchecked} of {counted(len(train), 'training row')} {has} no checkable answer.")
    if all(row.answer is None for row in dev):
        notes.append("No dev row has a checkable answer, so every arm takes the smallest learning rate.")
    return notes


def _too_few(asks: np.ndarray, in_suites: set[int]) -> str:
    rows, distinct = len(asks), _different(asks)
    shared = sum(int(one) in in_suites for one in asks)
    if rows and shared == rows:
        every = f"every one of the {rows} rows asks a question of a suite"
        asking = every if rows > 1 else "the only row asks a question of a suite"
        return (
            f"{asking} (evaluate.suites), so that none is left to train on and to choose a learning rate: take the "
            "suites' questions from other data, or leave the suites out"
        )
    asked = "" if distinct == rows else f" with {counted(distinct, 'distinct question')}"
    tested = f", {shared} of which {'asks' if shared == 1 else 'ask'} a question of a suite," if shared else ""
    return (
        f"{counted(rows, 'row')}{asked}{tested} {'is' if rows == 1 else 'are'} too few to train, choose a learning "
        f"rate and test on: give at least 3 {'questions' if asked else 'rows'}"
        f"{' that no suite asks' if shared else ''}, and set data.dev and data.test "
        "to 1 or more (or evaluate.suites to test files of your own)"
    )


def _drawn(order: Iterable[int], asks: np.ndarray, count: int, besides: set[int]) -> list[int]:
    """The first `count` rows of an order that ask what neither an earlier one of them nor `besides` asks, sorted."""
    chosen: dict[int, int] = {}
    for index in order:
        if len(chosen) == count:
            break
        if asks[index] not in besides:
            chosen.setdefault(int(asks[index]), index)
    return sorted(chosen.values())


def questions(rows: Sequence[Demonstration]) -> np.ndarray:
    """What each row asks, (rows,) int64: equal where the questions are the same to a reader."""
    return np.fromiter(map(_digest, rows), np.int64, len(rows))


def _digest(row: Demonstration) -> int:
    # A system text that stands above the question is not part of what is asked.
    asked = row.question.removeprefix(row.meta.get("system") or "").strip() or row.question
    digest = hashlib.blake2b((question_key(asked) or asked).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _different(values: np.ndarray) -> int:
    """How many different values there are; unlike by `np.unique`, which hashes, in no more memory than a copy."""
    ordered = np.sort(values)
    return len(values) and 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))
