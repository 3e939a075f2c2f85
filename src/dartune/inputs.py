"""What a run starts from: the demonstrations, split, and the suites, from a user's data or the lab."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

from dartune.config import Config
from dartune.data.findings import RowProblems, label
from dartune.data.load import Read, read_demonstrations
from dartune.data.records import Demonstration
from dartune.data.rows import Spool, demonstration
from dartune.errors import InputError, counted
from dartune.families import GYM
from dartune.lab import source as lab
from dartune.redaction import printable
from dartune.rewards import gym
from dartune.rewards.tasks import TASKS
from dartune.split import Parts, split

logger = logging.getLogger(__name__)


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
    """sha256 over every field of the rows, in order; but not over the files they came from."""
    digest = hashlib.sha256()
    for row in rows:
        known = {name: value for name, value in asdict(row).items() if name != "place"}
        digest.update(json.dumps(known, sort_keys=True, default=str).encode())
    return digest.hexdigest()


class Failure(Protocol):
    """Something that keeps data from being used."""

    def error(self, *, every: bool = False) -> InputError | None:
        """It as an error; `every` row is named, not only the first ones."""


@dataclass(frozen=True)
class Refused:
    """Data that could not be read at all."""

    reason: InputError

    def error(self, *, every: bool = False) -> InputError | None:
        return self.reason


@dataclass(frozen=True)
class Unfit:
    """Rows that are not of the task family."""

    path: str
    task: str
    rows: int
    problems: RowProblems

    def error(self, *, every: bool = False) -> InputError | None:
        count = self.problems.count
        if not count:
            return None
        message = f"{self.path}: {count} of {counted(self.rows, 'row')} {'is' if count == 1 else 'are'} no data.task: "
        return InputError(message + self.task, self.problems.lines(every=every))


@dataclass
class Sources:
    """What was read: the good rows of the data and of each suite, and all that is wrong or worth knowing."""

    rows: Sequence[Demonstration] = ()
    suites: dict[str, Sequence[Demonstration]] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parts: Parts | None = None
    """How the rows are split, where the data bring that with them."""

    def problems(self, *, every: bool = False) -> list[str]:
        """All that keeps the data from being used, one line each; `every` row is named."""
        errors = [failure.error(every=every) for failure in self.failures]
        return [line for error in errors if error for line in error.lines]

    def warnings(self, *, every: bool = False, repeats: bool = True) -> list[str]:
        """What was not used, or was changed; `every` row is named, those that repeat another where `repeats` is set."""
        found = (line for read in self.reads for line in read.warnings(every=every, repeats=repeats))
        return [*found, *self.notes]


def load(config: Config) -> Data:
    """Read and split the data of `config`; what is not used is logged.

    Raises:
        InputError: everything that is wrong with the data and the suites' files, at once.
    """
    sources = read(config)
    for line in sources.warnings():
        logger.warning("%s", printable(line))
    if problems := sources.problems():
        raise InputError("the data cannot be used", problems)
    return divided(config, sources)


def divided(config: Config, sources: Sources) -> Data:
    """The rows that train, choose and test.

    Raises:
        InputError: there are too few rows.
    """
    parts = sources.parts or split(config.data, sources.rows, sources.suites)
    return Data(parts.train, parts.dev, parts.suites, parts.notes)


def read(config: Config) -> Sources:
    """Read the data and the suites; what is wrong with them is in the result.

    Raises:
        InputError: an address of the lab that it does not have.
    """
    sources = Sources()
    if lab.is_lab(config.data.path):
        train, dev, suites = lab.data(config.data.path, config.data.limit, config.data.dev, config.evaluate.questions)
        sources.rows, sources.suites, sources.parts = [*train, *dev], suites, Parts(train, dev, suites)
        return sources
    sources.rows = _read(config.data.path, config, 0, sources)
    for part, (name, path) in enumerate(config.evaluate.suites.items(), start=1):
        sources.suites[name] = _read(path, config, part, sources)
    return sources


def _read(path: str, config: Config, part: int, sources: Sources) -> Sequence[Demonstration]:
    """The good rows of the data (part 0) or of a suite, each with its gold answer; the rest goes to `sources`."""
    task, data = TASKS[config.data.task], config.data
    try:
        if path.startswith(GYM):
            return gym.rows(path, part, to_learn=part == 0)
        settings = {"thinking": config.target.thinking, "task": task.name, "tested": part > 0}
        found = read_demonstrations(path, split=data.split, columns=data.columns, **settings)
    except InputError as error:
        sources.failures.append(Refused(error))
        sources.notes += getattr(error, "__notes__", [])
        return []
    sources.reads.append(found)
    sources.failures.append(found)
    problems = RowProblems()
    above = 0
    with Spool() as spool:
        for row in found.rows:
            if trouble := task.trouble(row):
                problems.add(label(row), trouble)
                continue
            question = _below_system(row, config.target.system_prompt)
            above += question != row.question
            spool.add(asdict(replace(row, question=question, answer=task.gold(row), task=task.name)))
        sources.failures.append(Unfit(found.path, task.name, len(found.rows), problems))
        if above:
            sources.notes.append(
                f"{found.path}: {counted(above, 'row has', 'rows have')} a system message, which is put above the "
                "question (unless it is target.system_prompt)"
            )
        return spool.rows(demonstration)


def _below_system(row: Demonstration, system_prompt: str | None) -> str:
    """The question below the row's own system text, where the target's prompt is another."""
    system = row.meta.get("system")
    if not system or system.strip() == (system_prompt or "").strip():
        return row.question
    return f"{system}\n\n{row.question}"


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
