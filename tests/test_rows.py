"""Tests of rows on disk: they behave like a list, survive truncated files, and are not read to append to them."""

import json
import tracemalloc

import numpy as np
import pytest

from dartune.data import row_store
from dartune.data.load import load_demonstrations
from dartune.data.quality import check_report
from dartune.data.row_store import RowWriter, index_path, open_rows, select_rows, write_rows
from dartune.errors import DartuneError

ROWS = [{"n": n, "text": "é\u2028\n" * n} for n in range(40)]


@pytest.fixture(params=[8, 1 << 16], ids=["blocks shorter than a row", "blocks of many rows"])
def block(request, monkeypatch):
    monkeypatch.setattr(row_store, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
def test_rows_behave_like_a_list(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS)
    rows = open_rows(path)
    assert len(rows) == 40 and list(rows) == ROWS and rows == ROWS and rows != ROWS[1:]
    assert [rows[i] for i in (39, 0, -1, 7, 6)] == [ROWS[i] for i in (39, 0, -1, 7, 6)]
    assert rows[5:30:3] == ROWS[5:30:3] and list(reversed(rows)) == ROWS[::-1]
    for sequence in (rows, ROWS):
        assert select_rows(sequence, np.array([3, 1, 39])) == [ROWS[3], ROWS[1], ROWS[39]]
    assert [(a["n"], b["n"]) for a, b in zip(rows, rows[20:], strict=False)] == [(n, n + 20) for n in range(20)]
    with pytest.raises(IndexError):
        rows[40]


def test_rows_of_a_temporary_spool_outlive_it():
    with RowWriter() as spool:
        for row in ROWS:
            spool.add(row)
        rows = spool.rows(lambda row: row["n"])
    assert rows[10:20] == list(range(10, 20))


def test_a_spool_continues_after_the_last_keep(tmp_path):
    path = tmp_path / "rows.jsonl"
    with RowWriter(path) as spool:
        for row in ROWS[:3]:
            spool.add(row)
        spool.keep()
        spool.add(ROWS[3])
    with path.open("ab") as file:
        file.write(b'{"n": 4, "te')  # cut by a crash
    with RowWriter(path) as spool:
        assert len(spool) == 3 and spool.rows() == ROWS[:3]
        for row in ROWS[3:]:
            spool.add(row)
        spool.keep()
    assert open_rows(path) == ROWS and path.read_text() == "".join(
        json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS
    )


@pytest.mark.parametrize("cut", [0, 7, 8, 12, -3])
def test_a_missing_or_truncated_index_loses_only_the_rows_behind_it(cut, tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS)
    index = index_path(path).read_bytes()
    index_path(path).write_bytes(index[:cut])
    with RowWriter(path) as spool:
        # Without an index the complete file is read; otherwise the rows in the index.
        assert spool.rows() == ROWS[: len(index[:cut]) // 8 or 40]


def test_a_stale_index_is_ignored(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS)
    path.write_text('{"n": 1}\n{"n": 2}\n{"n": 3')
    assert open_rows(path) == [{"n": 1}, {"n": 2}]
    with RowWriter(path) as spool:
        spool.add({"n": 3})
        spool.keep()
    assert open_rows(path) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_a_spool_opens_without_reading_its_rows(tmp_path):
    """A damaged row is reported on access and not when the file is opened."""
    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS)
    content = bytearray(path.read_bytes())
    content[:5] = b"#####"
    path.write_bytes(content)
    with RowWriter(path) as spool:
        rows = spool.rows()
        assert len(rows) == 40 and rows[39] == ROWS[39]
        with pytest.raises(DartuneError, match=r"rows\.jsonl row 1 is not JSON .*was it edited"):
            rows[0]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_rows(tmp_path):
    def peak(n):
        rows = [{"question": f"q{i}" + "?" * 500, "solution": "s " * 500} for i in range(n)]
        path = tmp_path / f"{n}.jsonl"
        write_rows(path, rows)
        tracemalloc.start()
        rows = load_demonstrations(path)
        assert check_report(rows).rows == n
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    peak(10)  # imports and caches are not counted
    assert (peak(3000) - peak(1000)) / 2000 < 150
