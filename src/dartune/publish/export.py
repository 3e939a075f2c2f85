"""`dartune export`: the adapted rows of a run in the layout that another training tool reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dartune.config.arms import ADAPTATIONS, ARMS, adaptation_stage
from dartune.data.adapted_dataset import VIEWS
from dartune.errors import InputError, counted
from dartune.publish.layouts import LAYOUTS, TRAIN_FILE, Layout
from dartune.run.files import atomic_write_text, read_json, write_jsonl
from dartune.run.folder import DONE, lost_outputs
from dartune.run.number_format import thousands
from dartune.run.status import status_lines

ROWS_FILE = "data.jsonl"
DEFAULT_ARM = "dart"


@dataclass(frozen=True)
class AdaptedData:
    """One view of an adapted data set.

    Args:
        folder: the folder that `write_adapted` wrote.
        view: a key of `VIEWS`.
        source: where the rows come from, for messages.
        chat: whether the target has a chat template.
        count: number of rows.
    """

    folder: Path
    view: str
    source: str
    chat: bool
    count: int

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the view, one at a time."""
        path = self.folder / ROWS_FILE
        with path.open(encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    row = json.loads(line)
                    included = row["provenance"] in VIEWS[self.view].provenances
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(f"{path} line {number} is not a row of an adapted data set: {error!r}") from error
                if included:
                    yield row


def export(
    folder: Path,
    layout: str,
    output: Path,
    *,
    view: str = "success_only",
    arm: str | None = None,
    seed: int | None = None,
) -> str:
    """Write the adapted rows of a run in the layout of another tool; return what was written and how to use it.

    Rows are read and written one at a time. Existing files of the same layout are replaced.

    Args:
        folder: a run folder, the output folder of `dartune adapt`, or an adapted data set (`adapted/`).
        layout: a key of `LAYOUTS`.
        output: the folder to write.
        view: a key of `VIEWS`.
        arm: an arm with adapted data; None: `dart`, or else the only one.
        seed: a seed of the run; None: the first one.

    Raises:
        InputError: the rows cannot be read, or the tool could not use them; all problems are listed.
        MachineError: a file cannot be written.
    """
    spec = LAYOUTS[layout]
    problems, data = _output_problems(output, spec), None
    try:
        data = _open(folder, view, arm, seed)
        if data.count < spec.fewest_rows:
            rows = counted(data.count, "row")
            problems.append(f"{data.source} has {rows}; {spec.tool} needs at least {spec.fewest_rows}")
    except InputError as error:
        problems = [*error.lines, *problems]
    if problems or data is None:
        raise InputError(f"cannot export {folder}", problems)
    convert = spec.chat_row if data.chat else spec.plain_row
    write_jsonl(output / TRAIN_FILE, map(convert, data.rows()))
    lines = [f"{output / TRAIN_FILE}: {counted(data.count, 'row')} of {data.source}, in the layout of {spec.tool}"]
    if spec.description:
        name, content = spec.description
        atomic_write_text(output / name, content(output, data.chat))
        lines.append(f"{output / name}: describes it to {spec.tool}")
    return "\n".join([*lines, f"use: {spec.usage(output, data.chat)}"])


def _open(folder: Path, view: str, arm: str | None, seed: int | None) -> AdaptedData:
    """Find the adapted data set and check its files.

    Raises:
        InputError: there is no such data set, it is not complete, or the view has no rows.
    """
    adapted, source = folder, str(folder)
    if not (folder / ROWS_FILE).is_file():
        arm, seed, stage = _choose_stage(folder, arm, seed)
        adapted, source = stage / "adapted", f"{folder} (arm {arm}, seed {seed}, {view})"
    elif arm is not None or seed is not None:
        raise InputError(f"{folder} is the data set of one arm and seed; leave out --arm and --seed")
    views = [name for name in VIEWS if (adapted / f"{name}.parquet").is_file()]
    if view not in views:
        other_view = f"; --view {views[0]} has some" if views else ""
        raise InputError(f"{adapted} has no {view}.parquet, because no row belongs to this view{other_view}")
    chat, count = _shape(adapted / f"{view}.parquet")
    data = AdaptedData(adapted, view, source, chat, count)
    if (rows := sum(1 for _ in data.rows())) != count:
        raise InputError(
            f"{adapted}: {ROWS_FILE} has {thousands(rows)} rows of the view {view}, but {view}.parquet has "
            f"{thousands(count)}; one of them was changed"
        )
    return data


def _shape(path: Path) -> tuple[bool, int]:
    """Whether the rows of a view are conversations, and their number."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from error
    with file:
        return "messages" in file.schema_arrow.names, file.metadata.num_rows


def _choose_stage(folder: Path, arm: str | None, seed: int | None) -> tuple[str, int, Path]:
    """The arm, the seed and the folder of a complete synthesis.

    Raises:
        InputError: the run has no complete synthesis of this arm and seed.
    """
    status_lines(folder)  # raises if this is not the folder of one run
    stages = _stages(folder)
    if not stages:
        raise InputError(f"{folder} has no adapted rows yet: no stage named synthesise")
    adaptations = list(dict.fromkeys(adaptation for adaptation, _ in stages))
    if arm is None:
        arm = DEFAULT_ARM if DEFAULT_ARM in adaptations or len(adaptations) > 1 else adaptations[0]
    available = "; ".join(
        f"--arm {name} with --seed {' or '.join(str(number) for key, number in stages if key == name)}"
        for name in adaptations
    )
    if arm in ARMS and ARMS[arm].renewed:
        raise InputError(
            f"--arm {arm}: this arm trains on renewed rows, which are not exported; available: {available}"
        )
    adaptation = ARMS[arm].rows if arm in ARMS else None
    seeds = [number for name, number in stages if name == adaptation]
    if not seeds or (seed is not None and seed not in seeds):
        flags = f"--arm {arm}" if seed is None or not seeds else f"--seed {seed}"
        raise InputError(f"{flags}: {folder} has no such adapted rows; available: {available}")
    seed = seeds[0] if seed is None else seed
    stage = stages[str(adaptation), seed]
    record = read_json(stage / DONE)
    if record is None:
        raise InputError(f"the stage {stage.name} of {folder} is not complete; repeat the command that made it")
    if lost := lost_outputs(stage, record):
        raise InputError(f"{stage / lost[0]} is missing or was changed; repeat the command that made it")
    return arm, seed, stage


def _stages(folder: Path) -> dict[tuple[str, int], Path]:
    """Adaptation and seed -> folder of the synthesis, complete or not."""
    stages = {}
    for adaptation in ADAPTATIONS:
        pattern = re.compile(rf"{re.escape(adaptation_stage('synthesise', adaptation))}-s(\d+)")
        paths = {
            int(match[1]): path for path in (folder / "stages").glob("*") if (match := pattern.fullmatch(path.name))
        }
        stages |= {(adaptation, seed): paths[seed] for seed in sorted(paths)}
    return stages


def _output_problems(output: Path, layout: Layout) -> list[str]:
    """Why the output folder cannot be used: files of another export or of the user would lie beside the new ones."""
    if not output.exists():
        return []
    if not output.is_dir():
        return [f"--output {output} is a file; name a folder"]
    # Hidden files are drafts of an interrupted export.
    names = sorted(path.name for path in output.iterdir() if path.name not in layout.files and path.name[0] != ".")
    return [f"--output {output} holds other files ({', '.join(names[:3])}); choose a new folder"] if names else []
