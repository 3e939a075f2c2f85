"""`lab:` addresses: the lab's models, demonstrations, suites and step judge, as the pipeline asks for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dartune.data.records import Demonstration
from dartune.errors import InputError
from dartune.lab.build import CHECKPOINTS, MODELS, TARGETS
from dartune.lab.checker import check, dialect_of
from dartune.lab.dialects import DIALECTS, EXPERTS, WRITERS
from dartune.lab.suites import LEVELS, Level, demonstrate, demonstration_problems, suite
from dartune.lab.world import parse_question

PREFIX = "lab:"
DEFAULT_ROWS = 600
DATA_SEED = 0


def is_lab(address: str | None) -> bool:
    return bool(address) and address.startswith(PREFIX)


def model_folder(address: str) -> Path:
    """Folder of a shipped model, as in `lab:explicit`.

    Raises:
        InputError: the lab has no such model, or it has not been built.
    """
    name = address.removeprefix(PREFIX)
    if name not in MODELS:
        raise InputError(f"the lab has no model {name!r}: it has {', '.join(PREFIX + m for m in MODELS)}")
    if not (CHECKPOINTS / name / "config.json").exists():
        raise InputError(f"{address} has not been built; pretrain it once: dartune lab build --only {name}")
    return CHECKPOINTS / name


def world(address: str) -> tuple[Level, str]:
    """Level and expert of demonstrations: `lab:values` is of the shipped models' level, `lab:deep/values` harder.

    Raises:
        InputError: the lab has no such expert dialect, or no such level.
    """
    name, _, expert = address.removeprefix(PREFIX).rpartition("/")
    if name and name not in LEVELS:
        raise InputError(f"the lab has no level {name!r}: it has {', '.join(LEVELS)}")
    if expert not in WRITERS:
        raise InputError(
            f"the lab has no expert {expert!r}: it has {', '.join(PREFIX + e for e in EXPERTS)} "
            f"(and every other writer: {', '.join(WRITERS)})"
        )
    return LEVELS[name or "plain"], expert


def data(
    address: str, rows: int | None, dev: int, questions: int
) -> tuple[list[Demonstration], list[Demonstration], dict[str, list[Demonstration]]]:
    """Demonstrations of an expert (see `world`), the dev rows, and every suite.

    Dev rows and demonstrations are distinct questions of one distribution; none is in a suite.

    Raises:
        InputError: the lab has no such expert dialect, or no such level.
    """
    level, expert = world(address)
    n = rows or DEFAULT_ROWS
    problems = demonstration_problems(n + dev, DATA_SEED, questions, level)
    demonstrations = demonstrate(problems, expert)
    suites = {name: demonstrate(suite(name, questions, level), expert, name) for name in level.suites}
    return demonstrations[:n], demonstrations[n:], suites


def native_solutions(target: str, rows: list[Demonstration]) -> list[Demonstration]:
    """The same questions solved in the native dialect of a `lab:` target: what adapting can reach at best.

    Raises:
        InputError: the target is not one of the lab's.
    """
    name = target.removeprefix(PREFIX)
    if not is_lab(target) or name not in TARGETS:
        raise InputError(
            f"arms: gold needs a target of the lab ({', '.join(PREFIX + t for t in TARGETS)}), not {target}"
        )
    return [replace(row, solution=DIALECTS[name](parse_question(row.question))) for row in rows]


def other_target(target: str) -> str | None:
    """Another target of the lab; None for a model that is not the lab's."""
    return next((PREFIX + name for name in TARGETS if is_lab(target) and PREFIX + name != target), None)


def judge(question: str, solution: str) -> dict[str, bool | str | None]:
    """What the step checker says of a solution."""
    verdict = check(solution, parse_question(question))
    return {
        "steps_correct": verdict.steps_correct,
        "names_correct": verdict.names_correct,
        "dialect": verdict.dialect,
    }


def dialect(_: Demonstration, text: str) -> str | None:
    return dialect_of(text)
