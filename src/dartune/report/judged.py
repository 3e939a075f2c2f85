"""Questions without a verdict: no answer to compare with, or a check that failed.

They have no say. An arm must not gain by failing its checks, so such a question is left out of every arm's results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dartune.errors import InputError

T = TypeVar("T")
Nested = Mapping[str, Mapping[str, Mapping[int, Mapping[str, T]]]]  # arm -> suite -> seed -> question id


def judged(
    records: Nested[T], verdict: Callable[[T], Any]
) -> tuple[dict[str, dict[str, dict[int, dict[str, T]]]], dict[str, set[str]]]:
    """The records of questions that all arms have a verdict on with all seeds, and the questions left out, by suite.

    A suite of which nothing is left is gone.

    Args:
        verdict: of a record, None where there is none.
    """
    left_out: dict[str, set[str]] = {}
    for suites in records.values():
        for suite, seeds in suites.items():
            unknown = {key for answers in seeds.values() for key, one in answers.items() if verdict(one) is None}
            left_out.setdefault(suite, set()).update(unknown)
    kept: dict[str, dict[str, dict[int, dict[str, T]]]] = {arm: {} for arm in records}
    for arm, suites in records.items():
        for suite, seeds in suites.items():
            known = {
                seed: {key: one for key, one in answers.items() if key not in left_out[suite]}
                for seed, answers in seeds.items()
            }
            if all(known.values()):
                kept[arm][suite] = known
    return kept, {suite: questions for suite, questions in left_out.items() if questions}


def told(left_out: Mapping[str, set[str]], asked: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """A sentence for each suite that lost questions; `asked` are an arm's records with all of them.

    Raises:
        InputError: every suite has lost all.
    """
    sizes = {suite: len({key for answers in seeds.values() for key in answers}) for suite, seeds in asked.items()}
    if sizes and all(len(left_out.get(suite, ())) == n for suite, n in sizes.items()):
        raise InputError(
            "no test question has a verdict: give them answers (`answer`, or one stated in the solution) that the "
            "checker can read, at most 256 characters long"
        )
    return [
        f"{suite}: {len(questions)} of {sizes[suite]} questions have no verdict in some arm (no answer to compare "
        "with, or a check that failed) and count in none."
        for suite, questions in left_out.items()
    ]
