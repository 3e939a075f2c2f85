"""`lab:` addresses: the lab's models, demonstrations, suites and step judge for the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dartune.data.records import Demonstration
from dartune.errors import InputError
from dartune.lab.build import CHECKPOINTS, MODELS, TARGETS
from dartune.lab.dialects import DIALECTS, EXPERTS, WRITERS
from dartune.lab.step_checker import check_solution, dialect_of
from dartune.lab.suites import LEVELS, Level, demonstration_problems, suite, write_demonstrations
from dartune.lab.world import parse_question

PREFIX = "lab:"
DEFAULT_ROWS = 600
DATA_SEED = 0


def is_lab(address: str | None) -> bool:
    """Whether an address names something of the lab."""
    return bool(address) and address.startswith(PREFIX)


def model_folder(address: str) -> Path:
    """Folder of a shipped model, for example of `lab:backward`.

    Raises:
        InputError: the lab has no such model, or it has not been built.
    """
    name = address.removeprefix(PREFIX)
    if name not in MODELS:
        raise InputError(f"the lab has no model {name!r}; available: {', '.join(PREFIX + m for m in MODELS)}")
    if not (CHECKPOINTS / name / "config.json").exists():
        raise InputError(f"{address} has not been built. Build it with: dartune lab build --only {name}")
    return CHECKPOINTS / name


def world(address: str) -> tuple[Level, str]:
    """Level and expert of a data address: `lab:values` has the level `plain`, `lab:deep/values` the level `deep`.

    Raises:
        InputError: the lab has no such expert dialect, or no such level.
    """
    name, _, expert = address.removeprefix(PREFIX).rpartition("/")
    if name and name not in LEVELS:
        raise InputError(f"the lab has no level {name!r}; available: {', '.join(LEVELS)}")
    if expert not in WRITERS:
        raise InputError(
            f"the lab has no expert {expert!r}; available: {', '.join(PREFIX + e for e in EXPERTS)} "
            f"(and all other styles: {', '.join(WRITERS)})"
        )
    return LEVELS[name or "plain"], expert


def data(
    address: str, rows: int | None, dev: int, questions: int
) -> tuple[list[Demonstration], list[Demonstration], dict[str, Sequence[Demonstration]]]:
    """Return an expert's demonstrations, the dev rows, and the test suites by name.

    Dev rows and demonstrations are distinct questions of the same distribution; none of them occurs in a suite.

    Args:
        address: see `world`.
        rows: number of demonstrations; None: DEFAULT_ROWS.
        dev: number of dev rows.
        questions: number of questions per suite.

    Raises:
        InputError: the lab has no such expert dialect, or no such level.
    """
    level, expert = world(address)
    n = rows or DEFAULT_ROWS
    problems = demonstration_problems(n + dev, DATA_SEED, questions, level)
    demonstrations = write_demonstrations(problems, expert)
    suites: dict[str, Sequence[Demonstration]]
    suites = {name: write_demonstrations(suite(name, questions, level), expert, name) for name in level.suites}
    return demonstrations[:n], demonstrations[n:], suites


def native_solutions(target: str, rows: Sequence[Demonstration]) -> list[Demonstration]:
    """The same questions solved in the native dialect of a `lab:` target: an upper bound for adaptation.

    Raises:
        InputError: the target is not one of the lab's.
    """
    name = target.removeprefix(PREFIX)
    if not is_lab(target) or name not in TARGETS:
        raise InputError(f"arms: `gold` needs a lab target ({', '.join(PREFIX + t for t in TARGETS)}), not {target}")
    return [replace(row, solution=DIALECTS[name](parse_question(row.question))) for row in rows]


def other_target(target: str) -> str | None:
    """A different lab target; None if `target` is not a lab model."""
    return next((PREFIX + name for name in TARGETS if is_lab(target) and PREFIX + name != target), None)


def judge(question: str, solution: str) -> dict[str, bool | str | None]:
    """The step checker's verdict on a solution, as a dict."""
    verdict = check_solution(solution, parse_question(question))
    return {
        "steps_correct": verdict.steps_correct,
        "names_correct": verdict.names_correct,
        "dialect": verdict.dialect,
    }


def dialect(_: Demonstration, text: str) -> str | None:
    """Dialect of a rewrite; None if no grammar accepts it."""
    return dialect_of(text)
