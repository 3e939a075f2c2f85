"""Generates rows of reasoning-gym tasks, and scores answers with reasoning-gym's scoring functions.

reasoning-gym samples item i of seed s from `Random(s + i)`, so neighbouring seeds share all but one item. Seeds are
therefore spaced by `MOST_ROWS`, which no dataset exceeds.
"""

from __future__ import annotations

import ast
import json
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import yaml

from dartune.config.rewrite_prompts import GYM
from dartune.data.records import Demonstration
from dartune.errors import InputError, MachineError
from dartune.run.number_format import thousands

MOST_ROWS = 1_000_000
DEFAULT_ROWS = 1000
INSTRUCTION = "Give the final answer between <answer> and </answer>."
FORM = f"{GYM}<task>[:<rows>[:<setting>=<value>,...]], as in {GYM}leg_counting:500:max_animals=5"


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address: task name, number of rows and task settings."""

    name: str
    rows: int = DEFAULT_ROWS
    settings: dict[str, Any] = field(default_factory=dict)


def address(text: str) -> Address:
    """Parse `gym:<task>[:<rows>[:<setting>=<value>,...]]`.

    Raises:
        InputError: the text has another form.
    """
    name, _, rest = text.removeprefix(GYM).partition(":")
    rows, _, settings = rest.partition(":")
    if not name or (rows and not (rows.isdigit() and 0 < int(rows) <= MOST_ROWS)):
        raise InputError(f"{text!r} must be {FORM}, with at most {thousands(MOST_ROWS)} rows")
    pairs = [part.partition("=") for part in settings.split(",") if part]
    if any(not equals for _, equals, _ in pairs):
        raise InputError(f"{text!r}: settings are written {FORM}")
    try:
        values = {key.strip(): yaml.safe_load(value) for key, _, value in pairs}
    except yaml.YAMLError as error:
        raise InputError(f"{text!r}: the settings cannot be read: {error}") from error
    return Address(name, int(rows or DEFAULT_ROWS), values)


def rows(text: str, part: int, *, to_learn: bool) -> list[Demonstration]:
    """Generate the rows of a task.

    Args:
        text: the address, see `address`.
        part: index of the dataset in the run. Datasets with different indices share no item.
        to_learn: whether the rows are training data, so that each needs an answer. The answer serves as the solution.

    Raises:
        InputError: the task or a setting does not exist, or the task has no answers to learn from.
        MachineError: reasoning-gym is not installed.
    """
    parsed = address(text)
    dataset = _dataset(parsed.name, json.dumps(parsed.settings, sort_keys=True), parsed.rows, part * MOST_ROWS)
    demonstrations = []
    for index in range(parsed.rows):
        item = dataset[index]
        if to_learn and item["answer"] is None:
            raise InputError(f"{text} has questions without answers: it can be tested on, but cannot be learned from")
        demonstrations.append(
            Demonstration(
                id=f"{parsed.name}-{part}-{index}",
                question=f"{item['question']}\n\n{INSTRUCTION}",
                solution=f"<answer>{'' if item['answer'] is None else item['answer']}</answer>",
                answer=_gold(parsed, item),
                task="reasoning_gym",
            )
        )
    return demonstrations


def _gold(parsed: Address, item: dict[str, Any]) -> str:
    """Return what scoring an answer needs as JSON. The item is a Python literal inside, because JSON has no tuples."""
    entry = {key: value for key, value in item.items() if key != "question"}
    return json.dumps([parsed.name, parsed.settings, repr(_plain(entry))])


def _plain(value: Any) -> Any:
    """Convert NumPy scalars inside a value to Python scalars."""
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(map(_plain, value))
    return value.item() if hasattr(value, "item") else value


@lru_cache(maxsize=32)
def _dataset(name: str, settings: str, size: int = 1, seed: int = 0) -> Any:
    """Return the reasoning-gym dataset of a task; `settings` is JSON, because cached arguments must be hashable."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MachineError(f"{GYM}{name} needs reasoning-gym: pip install reasoning-gym") from error
    if name not in DATASETS:
        raise InputError(f"reasoning-gym has no task {name!r}; it has {', '.join(sorted(DATASETS))}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # some tasks do not close their files
            return reasoning_gym.create_dataset(name, size=size, seed=seed, **json.loads(settings))
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        raise InputError(f"{GYM}{name} does not take the settings {settings}: {error}") from error


# ---------------------------------------------------------------- in the sandbox


def prepare(answer: str, gold: str) -> None:
    """Load the task in the server, before untrusted code is read: loading is slow, and the task is trusted."""
    name, settings, _ = json.loads(gold)
    _dataset(name, json.dumps(settings, sort_keys=True))


def solves(answer: str, gold: str) -> bool:
    """Return whether reasoning-gym gives an answer the full score."""
    name, settings, entry = json.loads(gold)
    item = {"question": "", **ast.literal_eval(entry)}
    return float(_dataset(name, json.dumps(settings, sort_keys=True)).score_answer(answer, item)) > 1 - 1e-6
