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
"""Of a user's distinct questions, dev and test take at most this share each."""


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
        problems += error.lines
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
    """Dev and test rows are drawn at random, each question once.

    Rows that ask a tested question neither choose nor are trained on; nor are rows trained on that ask a dev row's.
    """
    order, asks = array("q", range(len(rows))), _questions(rows)
    random.Random(SPLIT_SEED).shuffle(order)
    distinct = _different(asks)
    share = max(1, int(HELD_OUT_SHARE * distinct))
    test = _drawn(order, asks, min(config.data.test, share), set())
    in_suites = {int(one) for part in suites.values() for one in _questions(part)}
    tested = in_suites | {int(asks[i]) for i in test}
    dev = _drawn(order, asks, min(config.data.dev, share), tested)
    held_out = tested | {int(asks[i]) for i in dev}
    kept = np.flatnonzero(np.fromiter((int(one) not in held_out for one in asks), bool, len(rows)))
    repeats = len(rows) - len(kept) - len(test) - len(dev)
    train, dev, test = taken(rows, kept[: config.data.limit or None]), [rows[i] for i in dev], [rows[i] for i in test]
    suites = {**({"in_distribution": test} if test else {}), **suites}
    if not train or not dev or not suites:
        raise InputError(_too_few(asks, in_suites))
    asked = sum(map(len, suites.values()))
    notes = [f"{len(train)} rows to adapt and train on, {len(dev)} to choose the learning rate, {asked} to test."]
    if repeats and not config.data.limit:
        notes.append(f"{repeats} rows repeat a held-out question and are left out of training.")
    unchecked = sum(row.answer is None for row in train)
    if unchecked:
        notes.append(f"{unchecked} of {len(train)} training rows have no checkable answer.")
    if all(row.answer is None for row in dev):
        notes.append("No dev row has a checkable answer, so every arm takes the smallest learning rate.")
    return Data(train, dev, suites, notes)


def _too_few(asks: np.ndarray, in_suites: set[int]) -> str:
    rows, distinct = len(asks), _different(asks)
    shared = sum(int(one) in in_suites for one in asks)
    if rows and shared == rows:
        return (
            f"every one of the {rows} rows asks a question of a suite (evaluate.suites), so that none is left to train "
            "on and to choose a learning rate: take the suites' questions from other data, or leave the suites out"
        )
    asked = "" if distinct == rows else f" with {distinct} distinct questions"
    tested = f", {shared} of which ask a question of a suite," if shared else ""
    return (
        f"{rows} rows{asked}{tested} are too few to train, choose a learning rate and test on: give at least 3 "
        f"{'questions' if asked else 'rows'}{' that no suite asks' if shared else ''}, and set data.dev and data.test "
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


def _questions(rows: Sequence[Demonstration]) -> np.ndarray:
    """What each row asks, (rows,) int64: equal where the questions are."""
    digests = (hashlib.blake2b(row.question.encode(), digest_size=8).digest() for row in rows)
    return np.fromiter((int.from_bytes(one, "little", signed=True) for one in digests), np.int64, len(rows))


def _different(values: np.ndarray) -> int:
    """How many different values there are; unlike by `np.unique`, which hashes, in no more memory than a copy."""
    ordered = np.sort(values)
    return len(values) and 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))


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
