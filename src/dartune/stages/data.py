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

from dartune.answers import reasoning_gym
from dartune.answers.task_families import TASKS
from dartune.config.rewrite_prompts import GYM
from dartune.config.schema import Config
from dartune.data.findings import RowProblems, row_label
from dartune.data.load import LoadedData, read_demonstrations
from dartune.data.records import Demonstration
from dartune.data.row_store import RowWriter, demonstration_from_dict
from dartune.data.split import Split, split_rows
from dartune.errors import InputError, counted
from dartune.lab import source as lab
from dartune.run.redaction import printable

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
        fields = {name: value for name, value in asdict(row).items() if name != "place"}
        digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
    return digest.hexdigest()


class Failure(Protocol):
    """Something that keeps data from being used."""

    def error(self, *, every: bool = False) -> InputError | None:
        """The failure as an error; None if there is nothing wrong.

        Args:
            every: name all rows, not only the first ones.
        """


@dataclass(frozen=True)
class Refused:
    """Data that could not be read at all."""

    reason: InputError

    def error(self, *, every: bool = False) -> InputError | None:
        return self.reason


@dataclass(frozen=True)
class Unfit:
    """Rows that do not fit the task family."""

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
    """The usable rows of the data and of each suite, with all failures, warnings and notes."""

    rows: Sequence[Demonstration] = ()
    suites: dict[str, Sequence[Demonstration]] = field(default_factory=dict)
    reads: list[LoadedData] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parts: Split | None = None
    """The split, if the data define one (the lab); None if the rows are still to be split."""

    @property
    def selections(self) -> list[str]:
        """How many rows `data.where` keeps, if it is set."""
        return [read.selection for read in self.reads if read.selection]

    def problems(self, *, every: bool = False) -> list[str]:
        """Everything that prevents the data from being used, one line each."""
        errors = [failure.error(every=every) for failure in self.failures]
        return [line for error in errors if error for line in error.lines]

    def warnings(self, *, every: bool = False, repeats: bool = True) -> list[str]:
        """Warnings about content that was not used or was changed.

        Args:
            every: name all rows, not only the first ones.
            repeats: include the rows that repeat another row.
        """
        warnings = (line for read in self.reads for line in read.warnings(every=every, repeats=repeats))
        return [*warnings, *self.notes]


def load(config: Config) -> Data:
    """Read and split the data of `config`; warnings are logged.

    Raises:
        InputError: all problems of the data and of the suites.
    """
    sources = read(config)
    for line in sources.warnings():
        logger.warning("%s", printable(line))
    if problems := sources.problems():
        raise InputError("the data cannot be used", problems)
    return divided(config, sources)


def divided(config: Config, sources: Sources) -> Data:
    """Split the rows into training, development and test rows.

    Raises:
        InputError: there are too few rows.
    """
    parts = sources.parts or split_rows(config.data, sources.rows, sources.suites)
    return Data(parts.train, parts.dev, parts.suites, [*sources.selections, *parts.notes])


def read(config: Config) -> Sources:
    """Read the data and the suites; problems are part of the result.

    Raises:
        InputError: the lab has no such data, or no questions to test.
    """
    sources = Sources()
    if config.data.where and not config.data.path.startswith("hub:") and not is_file(config.data.path):
        raise InputError(f"data.where selects rows of files and Hub data sets; {config.data.path} generates its rows")
    if lab.is_lab(config.data.path):
        if not config.data.test:
            raise InputError("data.test is 0, but it is the number of questions per suite in the lab; set at least 1")
        train, dev, suites = lab.data(config.data.path, config.data.limit, config.data.dev, config.data.test)
        sources.rows, sources.suites, sources.parts = [*train, *dev], suites, Split(train, dev, suites)
        return sources
    sources.rows = _read(config.data.path, config, 0, sources)
    for part, (name, path) in enumerate(config.evaluate.suites.items(), start=1):
        sources.suites[name] = _read(path, config, part, sources)
    return sources


def _read(path: str, config: Config, part: int, sources: Sources) -> Sequence[Demonstration]:
    """The usable rows of the data (part 0) or of a suite, with their gold answers; problems are added to `sources`."""
    task, data = TASKS[config.data.task], config.data
    try:
        if path.startswith(GYM):
            return reasoning_gym.rows(path, part, to_learn=part == 0)
        settings = {"thinking": config.target.thinking, "task": config.data.task, "tested": part > 0}
        settings |= {"where": data.where} if part == 0 else {}
        read_result = read_demonstrations(path, columns=data.columns, **settings)
    except InputError as error:
        sources.failures.append(Refused(error))
        sources.notes += getattr(error, "__notes__", [])
        return []
    sources.reads.append(read_result)
    sources.failures.append(read_result)
    problems = RowProblems()
    with_system_text = 0
    with RowWriter() as spool:
        for row in read_result.rows:
            if problem := task.problem(row):
                problems.add(row_label(row), problem)
                continue
            question = _below_system(row, config.target.system_prompt)
            with_system_text += question != row.question
            spool.add(asdict(replace(row, question=question, answer=task.gold(row), task=config.data.task)))
        sources.failures.append(Unfit(str(read_result.path), task.name, len(read_result.rows), problems))
        if with_system_text:
            rows = counted(with_system_text, "row has", "rows have")
            sources.notes.append(
                f"{read_result.path}: {rows} a system message, which is put above the question (unless it is "
                "target.system_prompt)"
            )
        return spool.rows(demonstration_from_dict)


def _below_system(row: Demonstration, system_prompt: str | None) -> str:
    """The question, preceded by the row's own system text if that differs from the target's system prompt."""
    system = row.meta.get("system")
    if not system or system.strip() == (system_prompt or "").strip():
        return row.question
    return f"{system}\n\n{row.question}"


def model_path(address: str) -> str:
    """The folder or Hub id of a model address; `lab:` addresses are shipped checkpoints."""
    return str(lab.model_folder(address)) if lab.is_lab(address) else address


def model_paths(config: Config) -> dict[str, str]:
    """The folder or Hub id of each model address of `config`: target, initial mapper, other target.

    Raises:
        InputError: the lab has no such model; all such addresses are listed.
    """
    addresses = [config.target.path, config.mapper.path or config.target.path, config.target.other]
    paths, problems = {}, []
    for address in dict.fromkeys(address for address in addresses if address):
        try:
            paths[address] = model_path(address)
        except InputError as error:
            problems += error.lines
    if problems:
        raise InputError("the models cannot be used", problems)
    return paths


def model_name(address: str, *, is_folder: bool) -> str:
    """A model's name for publication: its lab or Hub address, or the folder's name without its path."""
    return _base_name(address) if is_folder and not lab.is_lab(address) else address.removeprefix("hub:")


def data_name(address: str) -> str:
    """A data set's name for publication: its address, or the file's name without its path."""
    return _base_name(address) if is_file(address) else address


def _base_name(path: str) -> str:
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
