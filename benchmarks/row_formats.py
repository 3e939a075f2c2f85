"""Compares the row files of a run (JSONL with an index) with `datasets.Dataset` on the same rows.

    python benchmarks/row_formats.py runs/lab/stages/synthesise-s0/rows.jsonl --rows 50000

Prints the time to open the file, the time to read all rows, extra disk space, and how many rows are read back equal.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dartune.data.row_store import open_rows, write_rows
from dartune.run.files import read_jsonl

T = TypeVar("T")


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """The result of `action` and its seconds."""
    start = time.perf_counter()
    return action(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="rows.jsonl of a synthesis stage")
    parser.add_argument("--rows", type=int, default=50_000)
    options = parser.parse_args()
    examples = read_jsonl(options.source)
    made: list[dict[str, Any]] = [examples[i % len(examples)] | {"id": f"row-{i}"} for i in range(options.rows)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, made)
        rows, opening = timed(lambda: open_rows(path))
        _, reading = timed(lambda: sum(1 for _ in rows))
        index = sum(file.stat().st_size for file in Path(folder).iterdir()) - path.stat().st_size
        print(f"JSONL with index: open {opening:.4f} s, read {reading:.1f} s, index {index / 1e6:.1f} MB")

        from datasets import Dataset

        cache = Path(folder) / "cache"
        table, opening = timed(lambda: Dataset.from_json(str(path), cache_dir=str(cache)))
        _, reading = timed(lambda: sum(1 for _ in table))
        size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
        print(f"datasets.Dataset: open {opening:.1f} s, read {reading:.1f} s, cache {size / 1e6:.1f} MB")
        sample = range(0, options.rows, max(1, options.rows // 1000))
        print(f"rows read back equal by datasets: {sum(table[i] == made[i] for i in sample)} of {len(sample)}")
        print(f"rows read back equal by JSONL: {sum(rows[i] == made[i] for i in sample)} of {len(sample)}")


if __name__ == "__main__":
    main()
