"""Fixtures that several test modules share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dartune.answers.checker import AnswerChecker


@pytest.fixture(scope="session")
def checker() -> Iterator[AnswerChecker]:
    with AnswerChecker() as one:
        yield one


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """The folder of a run that has ended: a tiny target, a mapper kept as an adapter, word problems."""
    from dartune.cli import main
    from fixtures_models import save_tiny
    from test_pipeline import arguments, word_problems

    folder = tmp_path_factory.mktemp("finished")
    problems = word_problems(folder / "problems.jsonl", 40)
    target = save_tiny(folder / "target", "llama", context=2048)
    lora = ["--mapper.lora_rank=2"]
    assert main(arguments(problems, target, folder / "run", *lora)) == 0
    return folder / "run"
