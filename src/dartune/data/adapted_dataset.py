"""The adapted data set on disk: every input row in `data.jsonl`, two Parquet views for training, and a data card."""

from __future__ import annotations

import json
import math
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dartune import distributed
from dartune.data.chat_template import plain_prompt
from dartune.errors import DartuneError, InputError, Problems
from dartune.run.files import sync
from dartune.run.number_format import decimals, percent_of

ADAPTED = ("rewrite", "own", "guided")
"""Provenances of rows whose solution is not the one of the demonstration."""
PROVENANCES = (*ADAPTED, "natural", "original", "dropped")
ROW_FIELDS = (
    "id",
    "question",
    "solution",
    "messages",
    "source_solution",
    "answer",
    "provenance",
    "alignment_before",
    "alignment_after",
    "reward",
    "gates",
    "hacks",
    "hacks_refused",
    "reason",
)
"""Keys of a row in `data.jsonl`."""
STRUCTS = {"reward": "reward", "gates": "answer"}
"""Struct columns -> a field for data sets in which no row has any, because Parquet has no struct without fields."""


class View(NamedTuple):
    """A selection of rows for training: its description, and the provenances of its rows."""

    description: str
    provenances: tuple[str, ...]


VIEWS = {
    "success_only": View(
        "the questions with an adapted or a natural solution; dartune trains on this view", (*ADAPTED, "natural")
    ),
    "keep_original": View(
        "every question once; without an adapted solution, the original one",
        (*ADAPTED, "natural", "original"),
    ),
}

CARD_PATH_PLACEHOLDER = "path/to/this/folder"
"""Placeholder in the card for the location of the data set."""
CARD = """\
# Adapted data set

Demonstrations rewritten so that their solutions are natural to the model that will be trained on them.

| provenance | rows | share |
|---|---|---|
{shares}
| all input rows | {n_input} | |

Median alignment (log-probability under the target; higher is more natural): {before} for the original
solutions, {after} for these.

## Views

{views}

{loading}

They can be used without changes with any trainer that reads prompt/completion rows, such as `trl.SFTTrainer`;
{columns}.
`data.jsonl` lists every input row with its reason, including dropped rows.

## Columns

`solution` is the text for training, and `source_solution` is the demonstration's solution. `provenance` is one of
{provenances} (natural and original: the unchanged demonstration, in data that mostly suited the model and
in data that did not). `reward` holds the parts of the reward, `gates` the checks that the solution passed,
`hacks` the reward hacks in the solution, `hacks_refused` the reward hacks in the row's other candidates, and `reason`
the reason for the provenance.

## Source

{source}

The rows inherit the licence and the limits of the data and models named above. The solutions were checked by
programs, not by people.
"""
ROWS_AT_ONCE = 1000
"""Rows of a Parquet row group. This many rows are in memory while a view is written."""


def accounting(rows: Sequence[Mapping[str, Any]], n_input: int) -> dict[str, int]:
    """Returns the number of rows by provenance, with input = adapted + natural + original + dropped.

    Raises:
        DartuneError: a row is missing, repeated, or of unknown provenance.
    """
    counts: Counter[str] = Counter()
    hashes = array("q")
    for row in rows:
        counts[row["provenance"]] += 1
        hashes.append(hash(row["id"]))
    repeated = _repeated_ids(rows, np.asarray(hashes))
    unknown = sorted(set(counts) - set(PROVENANCES))
    if repeated or unknown or len(hashes) != n_input:
        raise DartuneError(
            f"the adapted data set does not account for its input: {n_input} rows in, {len(hashes)} out, "
            f"repeated ids {repeated[:5] or 'none'}, unknown provenance {unknown or 'none'}"
        )
    adapted = sum(counts[name] for name in ADAPTED)
    return {"input": n_input, "adapted": adapted} | {name: counts[name] for name in PROVENANCES}


def _repeated_ids(rows: Sequence[Mapping[str, Any]], hashes: np.ndarray) -> list[str]:
    """Returns the ids of several rows. Only rows with equal hashes are read, so that ids are not held in memory."""
    values, counts = np.unique(hashes, return_counts=True)
    candidates = np.flatnonzero(np.isin(hashes, values[counts > 1]))
    return [row_id for row_id, count in Counter(rows[i]["id"] for i in candidates.tolist()).items() if count > 1]


@distributed.main_only
def write_adapted(
    folder: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    provenance_note: Mapping[str, Any],
    chat: bool = True,
    system_prompt: str | None = None,
) -> Path:
    """Writes `data.jsonl`, `success_only.parquet`, `keep_original.parquet` and the card `README.md`.

    The folder is written atomically and replaces an existing one. A view without rows has no file, because `datasets`
    cannot load an empty one.

    Args:
        rows: one per input row, dropped rows included, with the keys of `ROW_FIELDS`.
        provenance_note: the source of the rows (target, mapper, seed, ...), for the card.
        chat: True: the views contain conversations (`messages`, `prompt`, `completion`). False, for a model without a
            chat template: `prompt` and `completion` are plain text, and there is no `messages`.
        system_prompt: put before every question, as in training and evaluation of the target.

    Raises:
        DartuneError: a row lacks a field, repeats an id, or has an empty solution.
    """
    folder = Path(folder)
    names, medians = _survey(rows)
    counts = accounting(rows, len(rows))
    fresh, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    views = [name for name in VIEWS if any(counts[provenance] for provenance in VIEWS[name].provenances)]
    _write_rows(fresh, rows, views, _schema(names, chat), chat, system_prompt)
    text = card(counts, medians, views, provenance_note, chat, system_prompt)
    (fresh / "README.md").write_text(text, encoding="utf-8")
    for file in fresh.iterdir():
        sync(file)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def read_adapted(folder: str | Path) -> list[dict[str, Any]]:
    """Returns all rows of a folder written by `write_adapted`, dropped rows included.

    Raises:
        InputError: the folder is not an adapted data set.
    """
    path = Path(folder) / "data.jsonl"
    if not path.is_file():
        raise InputError(
            f"{folder} is not an adapted data set: it has no data.jsonl; give the folder `adapted` of a run"
        )
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; synthesise it again") from error


def plain(value: Any) -> Any:
    """Returns a value in JSON's types. Infinite numbers and NaN become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(element) for key, element in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(element) for element in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "item"):  # a scalar of numpy or torch
        return plain(value.item())
    return value if isinstance(value, int) or math.isfinite(value) else None


def _survey(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Returns the field names in `reward` and `gates` over all rows, and the median alignment `before` and `after`.

    Raises:
        DartuneError: a row lacks a field, or has an empty solution.
    """
    problems, names = Problems(), {column: set() for column in STRUCTS}
    alignment = {when: array("d") for when in ("before", "after")}
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in ROW_FIELDS if name not in row]:
            problems.add(f"row {number}: lacks {', '.join(missing)}")
            continue
        if row["provenance"] != "dropped" and not row["solution"].strip():
            problems.add(f"row {number} ({row['id']}): has an empty solution and is not dropped")
        for column, column_names in names.items():
            column_names.update(map(str, row[column]))
        for when, values in alignment.items():
            value = plain(row[f"alignment_{when}"])
            if value is not None and row["provenance"] != "dropped":
                values.append(value)
    if problems.count:
        listing = "; ".join(problems.first[:20])
        raise DartuneError(f"{problems.count} rows cannot be written to the adapted data set: {listing}")
    medians = {when: decimals(float(np.median(values))) if values else "unknown" for when, values in alignment.items()}
    return {column: sorted(column_names) for column, column_names in names.items()}, medians


def _write_rows(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    views: Sequence[str],
    schema: Any,
    chat: bool,
    system_prompt: str | None,
) -> None:
    """Writes `data.jsonl` and the views in one pass over the rows."""
    from pyarrow import Table
    from pyarrow.parquet import ParquetWriter

    rows = iter(rows)
    with ExitStack() as open_files:
        everything = open_files.enter_context((folder / "data.jsonl").open("w", encoding="utf-8"))
        tables = {name: open_files.enter_context(ParquetWriter(folder / f"{name}.parquet", schema)) for name in views}
        while chunk := [_output_row(row, system_prompt) for row in islice(rows, ROWS_AT_ONCE)]:
            everything.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in chunk)
            for name, table in tables.items():
                view_rows = [
                    _view_row(row, chat, system_prompt) for row in chunk if row["provenance"] in VIEWS[name].provenances
                ]
                if view_rows:
                    table.write_table(Table.from_pylist(view_rows, schema=schema))


def _output_row(row: Mapping[str, Any], system_prompt: str | None) -> dict[str, Any]:
    output = {name: plain(row[name]) for name in ROW_FIELDS}
    if system_prompt is not None:
        output["messages"] = [{"role": "system", "content": system_prompt}, *output["messages"]]
    return output


def _view_row(row: dict[str, Any], chat: bool, system_prompt: str | None) -> dict[str, Any]:
    if chat:
        return {**row, "prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
    return {**row, "prompt": plain_prompt(row["question"], system_prompt), "completion": row["solution"]}


def _schema(names: Mapping[str, Sequence[str]], chat: bool) -> Any:
    """Returns the Arrow schema of both views. A struct has one field per name in any row; missing values are null."""
    import pyarrow

    def struct(column: str, kind: Any) -> Any:
        return pyarrow.struct([(name, kind) for name in names[column] or [STRUCTS[column]]])

    text, number = pyarrow.string(), pyarrow.float64()
    conversation = pyarrow.list_(pyarrow.struct([("role", text), ("content", text)]))
    turn = conversation if chat else text
    kinds = {
        "messages": conversation,
        "alignment_before": number,
        "alignment_after": number,
        "reward": struct("reward", number),
        "gates": struct("gates", pyarrow.bool_()),
        "hacks": pyarrow.list_(text),
        "hacks_refused": pyarrow.list_(text),
    }
    columns = [(name, kinds.get(name, text)) for name in ROW_FIELDS if chat or name != "messages"]
    return pyarrow.schema([*columns, ("prompt", turn), ("completion", turn)])


def card(
    counts: Mapping[str, int],
    medians: Mapping[str, str],
    filled: Sequence[str],
    note: Mapping[str, Any],
    chat: bool = True,
    system_prompt: str | None = None,
) -> str:
    """Returns the data card: YAML front matter for `datasets`, then a description of the rows and their source.

    Args:
        counts: number of rows by provenance, and of all input rows, as returned by `accounting`.
        medians: median alignment `before` and `after`.
        filled: names of the views that have rows.
        note: the source of the rows.
        chat, system_prompt: as in `write_adapted`.
    """
    if system_prompt is not None:
        note = {**note, "system prompt": system_prompt}
    configs = []
    for view in filled:
        configs += [f"- config_name: {view}", *([] if configs else ["  default: true"]), "  data_files:"]
        configs += ["  - split: train", f"    path: {view}.parquet"]
    shares = "\n".join(
        f"| {name} | {counts[name]} | {percent_of(counts[name], counts['input'])} |" for name in PROVENANCES
    )
    views = "\n".join(
        f"* `{name}`: {view.description}{'' if name in filled else ' (no rows here, so there is no file)'}"
        for name, view in VIEWS.items()
    )
    source = "\n".join(f"* {key}: {_one_line(value)}" for key, value in note.items()) or "* not recorded"
    columns = (
        "`messages`, `prompt` and `completion` hold conversations"
        if chat
        else "`prompt` and `completion` hold plain text, for a model without a chat template"
    )
    if system_prompt is not None:
        columns += f"; {'a conversation' if chat else 'a prompt'} begins with the system prompt that is given below"
    load_calls = [
        f'rows = load_dataset("{CARD_PATH_PLACEHOLDER}", "{name}", split="train")' for name in VIEWS if name in filled
    ]
    loading = "\n".join(["```python", "from datasets import load_dataset", *load_calls, "```"])
    front_matter = "\n".join(["---", "configs:" if configs else "configs: []", *configs, "---", ""])
    return front_matter + CARD.format(
        loading=loading if load_calls else "No view has rows.",
        shares=shares,
        n_input=counts["input"],
        **medians,
        views=views,
        columns=columns,
        provenances=", ".join(PROVENANCES),
        source=source,
    )


def _one_line(value: Any) -> str:
    return " ".join(str(plain(value)).split())
