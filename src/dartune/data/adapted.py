"""The adapted data set on disk: every input row in `data.jsonl`, two Parquet views to train on, a card."""

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

from dartune import processes
from dartune.data.render import plain_prompt
from dartune.errors import DartuneError, InputError, Problems
from dartune.files import sync

ADAPTED = ("rewrite", "own", "guided")
"""Provenances of rows whose solution is no longer the demonstration's."""
PROVENANCES = (*ADAPTED, "natural", "original", "dropped")
FIELDS = (
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


STRUCTS = {"reward": "reward", "gates": "answer"}
"""Columns that are structs, and a field for where no row has any: Parquet has no struct without fields."""


class View(NamedTuple):
    """Rows to train on: what they are, in words, and by provenance."""

    says: str
    provenances: tuple[str, ...]


VIEWS = {
    "success_only": View(
        "the questions with an adapted or a natural solution; what dartune itself trains on", (*ADAPTED, "natural")
    ),
    "keep_original": View(
        "every question once; where no adapted solution was found, the original one",
        (*ADAPTED, "natural", "original"),
    ),
}

HERE = "path/to/this/folder"
"""What the card calls the place that the data set is loaded from."""
CARD = """\
# Adapted data set

Demonstrations rewritten so that their solutions are natural to the model that will be trained on them.

| provenance | rows | share |
|---|---|---|
{shares}
| all input rows | {n_input} | |

Median alignment (log-probability under the target, higher is more natural): {before} for the original
solutions, {after} for these.

## Views

{views}

{loading}

They train as they are with any trainer that reads prompt/completion rows, such as `trl.SFTTrainer`;
{columns}.
`data.jsonl` lists every input row, dropped ones included, with its reason.

## Columns

`solution` is what to train on and `source_solution` what the demonstration said. `provenance` is one of
{provenances} (natural and original: the demonstration as it was, in data that mostly suited the model and
in data that did not); `reward` holds the parts of the reward, `gates` which checks the solution passed,
`hacks` the ways in which the solution games the reward, `hacks_refused` those in which the row's other candidates
tried to, `reason` why the row is what it is.

## Source

{source}

The rows inherit the licence and the limits of the data and models named above. The solutions were checked by
programs, not read by people.
"""


ROWS_AT_ONCE = 1000
"""Rows of a Parquet row group: what is in memory while a view is written."""


def accounting(rows: Sequence[Mapping[str, Any]], n_input: int) -> dict[str, int]:
    """Counts rows by provenance: input = adapted + natural + original + dropped.

    Raises:
        DartuneError: a row is lost, doubled, or of unknown provenance.
    """
    counts: Counter[str] = Counter()
    hashes = array("q")
    for row in rows:
        counts[row["provenance"]] += 1
        hashes.append(hash(row["id"]))
    twice = _repeated(rows, np.asarray(hashes))
    unknown = sorted(set(counts) - set(PROVENANCES))
    if twice or unknown or len(hashes) != n_input:
        raise DartuneError(
            f"the adapted data set does not account for its input: {n_input} rows in, {len(hashes)} out, "
            f"repeated ids {twice[:5] or 'none'}, unknown provenance {unknown or 'none'}"
        )
    adapted = sum(counts[name] for name in ADAPTED)
    return {"input": n_input, "adapted": adapted} | {name: counts[name] for name in PROVENANCES}


def _repeated(rows: Sequence[Mapping[str, Any]], hashes: np.ndarray) -> list[str]:
    """Ids that several rows have, of those whose hashes are alike."""
    values, times = np.unique(hashes, return_counts=True)
    alike = np.flatnonzero(np.isin(hashes, values[times > 1]))
    return [name for name, count in Counter(rows[i]["id"] for i in alike).items() if count > 1]


@processes.first_only
def write_adapted(
    folder: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    provenance_note: Mapping[str, Any],
    chat: bool = True,
    system_prompt: str | None = None,
) -> Path:
    """Writes `data.jsonl`, `success_only.parquet`, `keep_original.parquet` and the card `README.md`.

    The folder appears whole or not at all; an older one of that name is replaced. A view without rows has no
    file, since `datasets` cannot load one.

    Args:
        rows: one per input row, dropped ones included, with the keys of `FIELDS`.
        provenance_note: where the rows come from (target, mapper, seed, ...); goes into the card.
        chat: True: the views hold conversations (`messages`, `prompt`, `completion`). False, for a model
            without a chat template: plain text in `prompt` and `completion`, no `messages`.
        system_prompt: stands before every question, as it does where the target is trained and asked.

    Raises:
        DartuneError: a row lacks a field, repeats an id, or has nothing to train on.
    """
    folder = Path(folder)
    names, medians = _survey(rows)
    counts = accounting(rows, len(rows))
    fresh, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
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
    """All rows of a folder of `write_adapted`, dropped ones included, as they were written.

    Raises:
        InputError: the folder is no adapted data set.
    """
    path = Path(folder) / "data.jsonl"
    if not path.is_file():
        raise InputError(f"{folder} is no adapted data set: it has no data.jsonl")
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; synthesise it again") from error


def plain(value: Any) -> Any:
    """The value in JSON's own types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "item"):  # a number of numpy or torch
        return plain(value.item())
    return value if isinstance(value, int) or math.isfinite(value) else None


def _survey(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The names that any row has in `reward` and in `gates`, and the median alignment `before` and `after`.

    Raises:
        DartuneError: a row lacks a field, or has nothing to train on.
    """
    problems, names = Problems(), {column: set() for column in STRUCTS}
    alignment = {when: array("d") for when in ("before", "after")}
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in FIELDS if name not in row]:
            problems.add(f"row {number}: lacks {', '.join(missing)}")
            continue
        if row["provenance"] != "dropped" and not row["solution"].strip():
            problems.add(f"row {number} ({row['id']}): has an empty solution and is not dropped")
        for column, known in names.items():
            known.update(map(str, row[column]))
        for when, values in alignment.items():
            value = plain(row[f"alignment_{when}"])
            if value is not None and row["provenance"] != "dropped":
                values.append(value)
    if problems.count:
        shown = "; ".join(problems.first[:20])
        raise DartuneError(f"{problems.count} rows cannot be written to the adapted data set: {shown}")
    medians = {when: f"{np.median(values):.3f}" if values else "unknown" for when, values in alignment.items()}
    return {column: sorted(known) for column, known in names.items()}, medians


def _write_rows(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    views: Sequence[str],
    schema: Any,
    chat: bool,
    system_prompt: str | None,
) -> None:
    """`data.jsonl` and the views, in one pass."""
    from pyarrow import Table
    from pyarrow.parquet import ParquetWriter

    rows = iter(rows)
    with ExitStack() as open_files:
        everything = open_files.enter_context((folder / "data.jsonl").open("w", encoding="utf-8"))
        tables = {name: open_files.enter_context(ParquetWriter(folder / f"{name}.parquet", schema)) for name in views}
        while chunk := [_published(row, system_prompt) for row in islice(rows, ROWS_AT_ONCE)]:
            everything.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in chunk)
            for name, table in tables.items():
                kept = [
                    _view_row(row, chat, system_prompt) for row in chunk if row["provenance"] in VIEWS[name].provenances
                ]
                if kept:
                    table.write_table(Table.from_pylist(kept, schema=schema))


def _published(row: Mapping[str, Any], system_prompt: str | None) -> dict[str, Any]:
    known = {name: plain(row[name]) for name in FIELDS}
    if system_prompt is not None:
        known["messages"] = [{"role": "system", "content": system_prompt}, *known["messages"]]
    return known


def _view_row(row: dict[str, Any], chat: bool, system_prompt: str | None) -> dict[str, Any]:
    if chat:
        return {**row, "prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
    return {**row, "prompt": plain_prompt(row["question"], system_prompt), "completion": row["solution"]}


def _schema(names: Mapping[str, Sequence[str]], chat: bool) -> Any:
    """Equal for both views; a struct has one field per name that any row uses, None where a row lacks it."""
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
    columns = [(name, kinds.get(name, text)) for name in FIELDS if chat or name != "messages"]
    return pyarrow.schema([*columns, ("prompt", turn), ("completion", turn)])


def card(
    counts: Mapping[str, int],
    medians: Mapping[str, str],
    filled: Sequence[str],
    note: Mapping[str, Any],
    chat: bool = True,
    system_prompt: str | None = None,
) -> str:
    """The data card: YAML front matter that `datasets` reads, then what the rows are and their source.

    Args:
        counts: rows by provenance, and of all.
        medians: of the alignment, `before` and `after`.
        filled: the views that have rows.
        chat, system_prompt: as in `write_adapted`.
    """
    if system_prompt is not None:
        note = {**note, "system prompt": system_prompt}
    configs = []
    for view in filled:
        configs += [f"- config_name: {view}", *([] if configs else ["  default: true"]), "  data_files:"]
        configs += ["  - split: train", f"    path: {view}.parquet"]
    shares = "\n".join(
        f"| {name} | {counts[name]} | {_percent(counts[name], counts['input'])} |" for name in PROVENANCES
    )
    views = "\n".join(
        f"* `{name}`: {view.says}{'' if name in filled else ' (no rows here, so no file)'}"
        for name, view in VIEWS.items()
    )
    source = "\n".join(f"* {key}: {_one_line(value)}" for key, value in note.items()) or "* not recorded"
    columns = (
        "`messages`, `prompt` and `completion` hold conversations"
        if chat
        else "`prompt` and `completion` hold plain text, for a model without a chat template"
    )
    if system_prompt is not None:
        columns += f"; {'a conversation' if chat else 'a prompt'} begins with the system prompt that is named below"
    loads = [f'rows = load_dataset("{HERE}", "{name}", split="train")' for name in VIEWS if name in filled]
    loading = "\n".join(["```python", "from datasets import load_dataset", *loads, "```"])
    front_matter = "\n".join(["---", "configs:" if configs else "configs: []", *configs, "---", ""])
    return front_matter + CARD.format(
        loading=loading if loads else "Neither has rows.",
        shares=shares,
        n_input=counts["input"],
        **medians,
        views=views,
        columns=columns,
        provenances=", ".join(PROVENANCES),
        source=source,
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _one_line(value: Any) -> str:
    return " ".join(str(plain(value)).split())
