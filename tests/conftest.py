"""Fixtures that several test modules share."""

from collections.abc import Iterator

import pytest

from dartune.rewards.checker import AnswerChecker


@pytest.fixture(scope="session")
def checker() -> Iterator[AnswerChecker]:
    with AnswerChecker() as one:
        yield one
