"""What a run starts from: the demonstrations, split, and the suites, from a user's data or the lab."""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from dartune.config import Config
from dartune.data.load import load_demonstrations
from dartune.data.records import Demonstration
from dartune.data.rows import Spool, demonstration, taken
from dartune.errors import InputError, Problems
from dartune.families import GYM
from dartune.lab import source as lab
from dartune.rewards import gym
from dartune.rewards.tasks import TASKS

SPLIT_SEED = 0
HELD_OUT_SHARE = 0.1
"""Of a user's data, dev and test take at most this share each."""


@dataclass(frozen=True, slots=True)
class Data:
    """The rows of a run: `train` is adapted and trained on, `dev` chooses, `suites` test."""

    train: Sequence[Demonstration]
    dev: Sequence[Demonstration]
    suites: dict[str, Sequence[Demonstration]]
    notes: list[str] = field(default_factory=list)

    @property
    def parts(self) -> dict[str, Sequence[Demonstration]]:
        return {
            "train": self.train,
            "dev": self.dev,
            **{f"suite-{name}": rows for name, rows in self.suites.items()},
        }

    @property
    def fingerprint(self) -> str:
        return fingerprint(chain(self.train, self.dev))

    @property
    def suites_fingerprint(self) -> str:
        return fingerprint(replace(row, id=f"{name}/{row.id}") for name, rows in self.suites.items() for row in rows)


def fingerprint(rows: Iterable[Demonstration]) -> str:
    """sha256 over every field of the rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(asdict(row), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def load(config: Config) -> Data:
    """Read and split the data of `config`.

    Raises:
        InputError: everything that is wrong with the data and the suites' files, at once.
    """
    if lab.is_lab(config.data.path):
        train, dev, suites = lab.data(config.data.path, config.data.limit, config.data.dev, config.evaluate.questions)
        return Data(train, dev, suites)
    problems: list[str] = []
    rows = _loaded(lambda: _read(config.data.path, config), problems)
    suites = {
        name: _loaded(lambda path=path, part=part: _read(path, config, part), problems) or []
        for part, (name, path) in enumerate(config.evaluate.suites.items(), start=1)
    }
    if problems:
        raise InputError("the data cannot be used", problems)
    return _split(config, rows or [], suites)


def _loaded(read: Callable[[], Sequence[Demonstration]], problems: list[str]) -> Sequence[Demonstration] | None:
    try:
        return read()
    except InputError as error:
        problems += error.problems or [error.message]
        return None


def _read(path: str, config: Config, part: int = 0) -> Sequence[Demonstration]:
    """Rows of the data (part 0) or of a suite, each with its gold answer.

    Raises:
        InputError: everything that is wrong with them.
    """
    if path.startswith(GYM):
        return gym.rows(path, part, to_learn=part == 0)
    task = TASKS[config.data.task]
    rows, problems = load_demonstrations(path, split=config.data.split, columns=config.data.columns), Problems()
    with Spool() as spool:
        for row in rows:
            if trouble := task.trouble(row):
                problems.add(f"{path}: row {row.id}: {trouble}")
            else:
                spool.add(asdict(replace(row, answer=task.gold(row), task=task.name)))
        if problems.count:
            raise InputError(
                f"{path}: {problems.count} of {len(rows)} rows are no data.task: {task.name}",
                problems.lines,
                problems.count,
            )
        return spool.rows(demonstration)


def _split(config: Config, rows: Sequence[Demonstration], suites: dict[str, Sequence[Demonstration]]) -> Data:
    """Dev and test rows are drawn at random; rows that repeat a tested question are left out of training."""
    order = array("q", range(len(rows)))
    random.Random(SPLIT_SEED).shuffle(order)
    order = np.array(order, np.int64)
    share = max(1, int(HELD_OUT_SHARE * len(rows)))
    n_test = min(config.data.test, share)
    n_dev = min(config.data.dev, share)
    test = [rows[i] for i in np.sort(order[:n_test])]
    dev = [rows[i] for i in np.sort(order[n_test : n_test + n_dev])]
    suites = {**({"in_distribution": test} if test else {}), **suites}
    held_out = {row.question for row in dev} | {row.question for part in suites.values() for row in part}
    others = np.sort(order[n_test + n_dev :])
    kept = others[np.fromiter((rows[i].question not in held_out for i in others), bool, len(others))]
    train = taken(rows, kept[: config.data.limit or None])
    if not train or not dev or not suites:
        raise InputError(
            f"{len(rows)} rows are too few to train, choose a learning rate and test on: give at least 3 rows, "
            "and set data.dev and data.test to 1 or more (or evaluate.suites to test files of your own)"
        )
    asked = sum(map(len, suites.values()))
    notes = [f"{len(train)} rows to adapt and train on, {len(dev)} to choose the learning rate, {asked} to test."]
    if len(others) != len(kept) and not config.data.limit:
        notes.append(f"{len(others) - len(kept)} rows repeat a held-out question and are left out of training.")
    unchecked = sum(row.answer is None for row in train)
    if unchecked:
        notes.append(f"{unchecked} of {len(train)} training rows have no checkable answer.")
    if all(row.answer is None for row in dev):
        notes.append("No dev row has a checkable answer, so every arm takes the smallest learning rate.")
    return Data(train, dev, suites, notes)


def model_path(address: str) -> str:
    """A folder or Hub id for a model address; `lab:` ones are the shipped checkpoints."""
    return str(lab.model_folder(address)) if lab.is_lab(address) else address


def model_name(address: str, *, is_folder: bool) -> str:
    """What to call a model in public: its address in the lab or on the Hub, or a folder's own name without its path."""
    return _own_name(address) if is_folder and not lab.is_lab(address) else address.removeprefix("hub:")


def data_name(address: str) -> str:
    """What to call a data set in public: its address, or a file's name without its path."""
    return _own_name(address) if is_file(address) else address


def _own_name(path: str) -> str:
    return Path(path).name.strip(".") or "local"  # such as the folder .


def is_file(address: str) -> bool:
    """Whether data come from a file or folder of this machine."""
    return not lab.is_lab(address) and not address.startswith(("hub:", GYM))


def content_hash(path: str) -> str:
    """sha256 over a model folder's files (name and content); a Hub id stands for itself."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
