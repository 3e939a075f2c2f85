"""Questions without a verdict: there is no reference answer, or the answer check failed (timeout or crash).

Such a question is excluded from the results of all arms. Excluding it only from the arm whose check failed would let
an arm improve its accuracy by failing checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dartune.errors import InputError

T = TypeVar("T")
Nested = Mapping[str, Mapping[str, Mapping[int, Mapping[str, T]]]]  # arm -> suite -> seed -> question id


def graded_records(
    records: Nested[T], verdict: Callable[[T], Any]
) -> tuple[dict[str, dict[str, dict[int, dict[str, T]]]], dict[str, set[str]]]:
    """Split records into graded and excluded questions.

    Args:
        records: arm -> suite -> seed -> question id -> record.
        verdict: returns a record's verdict, or None if it has none.

    Returns:
        The records of the questions that have a verdict in all arms and seeds, without suites that have none left;
        and the excluded questions by suite.
    """
    excluded: dict[str, set[str]] = {}
    for suites in records.values():
        for suite, seeds in suites.items():
            ungraded = {key for answers in seeds.values() for key, record in answers.items() if verdict(record) is None}
            excluded.setdefault(suite, set()).update(ungraded)
    graded: dict[str, dict[str, dict[int, dict[str, T]]]] = {arm: {} for arm in records}
    for arm, suites in records.items():
        for suite, seeds in suites.items():
            remaining = {
                seed: {key: record for key, record in answers.items() if key not in excluded[suite]}
                for seed, answers in seeds.items()
            }
            if all(remaining.values()):
                graded[arm][suite] = remaining
    return graded, {suite: questions for suite, questions in excluded.items() if questions}


def ungraded_notes(
    excluded: Mapping[str, set[str]], records: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> list[str]:
    """Return a note for each suite with excluded questions.

    Args:
        excluded: suite -> excluded question ids.
        records: suite -> seed -> question id -> record of one arm, excluded questions included.

    Raises:
        InputError: all questions of all suites are excluded.
    """
    sizes = {suite: len({key for answers in seeds.values() for key in answers}) for suite, seeds in records.items()}
    if sizes and all(len(excluded.get(suite, ())) == n for suite, n in sizes.items()):
        raise InputError(
            "no test question has a verdict: give the questions answers (in `answer`, or stated in the solution) that "
            "the checker can parse, at most 256 characters long"
        )
    return [
        f"{suite}: {len(questions)} of {sizes[suite]} questions have no verdict in at least one arm (no reference "
        "answer, or a failed check) and are excluded from all arms."
        for suite, questions in excluded.items()
    ]
