"""reasoning-gym's tasks by name: rows to test and train on, and its own judgement of an answer.

Item i of seed s is drawn from `Random(s + i)`, so neighbouring seeds share all but one item: seeds are spaced by more
than any data set has rows.
"""

from __future__ import annotations

import ast
import json
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import yaml

from dartune.data.records import Demonstration
from dartune.errors import InputError, MachineError
from dartune.families import GYM

MOST_ROWS = 1_000_000
DEFAULT_ROWS = 1000
INSTRUCTION = "Give the final answer between <answer> and </answer>."
FORM = f"{GYM}<task>[:<rows>[:<setting>=<value>,...]], as in {GYM}leg_counting:500:max_animals=5"


@dataclass(frozen=True, slots=True)
class Address:
    """What an address asks for."""

    name: str
    rows: int = DEFAULT_ROWS
    settings: dict[str, Any] = field(default_factory=dict)


def address(text: str) -> Address:
    """Read `gym:<task>[:<rows>[:<setting>=<value>,...]]`.

    Raises:
        InputError: it has another form.
    """
    name, _, rest = text.removeprefix(GYM).partition(":")
    rows, _, settings = rest.partition(":")
    if not name or (rows and not (rows.isdigit() and 0 < int(rows) <= MOST_ROWS)):
        raise InputError(f"{text!r} must be {FORM}, with at most {MOST_ROWS:,} rows")
    pairs = [part.partition("=") for part in settings.split(",") if part]
    if any(not equals for _, equals, _ in pairs):
        raise InputError(f"{text!r}: settings are written {FORM}")
    try:
        values = {key.strip(): yaml.safe_load(value) for key, _, value in pairs}
    except yaml.YAMLError as error:
        raise InputError(f"{text!r}: the settings cannot be read: {error}") from error
    return Address(name, int(rows or DEFAULT_ROWS), values)


def rows(text: str, part: int, *, to_learn: bool) -> list[Demonstration]:
    """Rows of a task.

    Args:
        text: the address.
        part: which of the run's data sets this is: those of different numbers share no item.
        to_learn: each row needs a solution; the answer alone is one.

    Raises:
        InputError: there is no such task or setting, or it has no answers to learn from.
        MachineError: reasoning-gym is not installed.
    """
    wanted = address(text)
    dataset = _dataset(wanted.name, json.dumps(wanted.settings, sort_keys=True), wanted.rows, part * MOST_ROWS)
    made = []
    for index in range(wanted.rows):
        item = dataset[index]
        if to_learn and item["answer"] is None:
            raise InputError(f"{text} asks questions without saying the answer: test on it, it cannot be learned from")
        made.append(
            Demonstration(
                id=f"{wanted.name}-{part}-{index}",
                question=f"{item['question']}\n\n{INSTRUCTION}",
                solution=f"<answer>{'' if item['answer'] is None else item['answer']}</answer>",
                answer=_gold(wanted, item),
                task="reasoning_gym",
            )
        )
    return made


def _gold(wanted: Address, item: dict[str, Any]) -> str:
    """What judging an answer needs; as a Python literal, for JSON would make lists of tuples."""
    known = {key: value for key, value in item.items() if key != "question"}
    return json.dumps([wanted.name, wanted.settings, repr(_plain(known))])


def _plain(value: Any) -> Any:
    """A value with numpy's numbers and texts as Python's own."""
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(_plain, value))
    return value.item() if hasattr(value, "item") else value


@lru_cache(maxsize=32)
def _dataset(name: str, settings: str, size: int = 1, seed: int = 0) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MachineError(f"{GYM}{name} needs reasoning-gym: pip install reasoning-gym") from error
    if name not in DATASETS:
        raise InputError(f"reasoning-gym has no task {name!r}; it has {', '.join(sorted(DATASETS))}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # some tasks leave their files to be closed by chance
            return reasoning_gym.create_dataset(name, size=size, seed=seed, **json.loads(settings))
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        raise InputError(f"{GYM}{name} does not take the settings {settings}: {error}") from error


# ---------------------------------------------------------------- in the sandbox


def prepare(answer: str, gold: str) -> None:
    """Load the task, which is slow and trusted, before anything that a model wrote is read."""
    name, settings, _ = json.loads(gold)
    _dataset(name, json.dumps(settings, sort_keys=True))


def solves(answer: str, gold: str) -> bool:
    """Whether reasoning-gym gives an answer all its points."""
    name, settings, known = json.loads(gold)
    item = {"question": "", **ast.literal_eval(known)}
    return float(_dataset(name, json.dumps(settings, sort_keys=True)).score_answer(answer, item)) > 1 - 1e-6
