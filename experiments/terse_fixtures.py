"""The English fixtures with terse demonstrations in the place of natural ones: prefix equations (`* 36 2 = 72`).

    python experiments/terse_fixtures.py > runs/terse.jsonl
    dartune check-reward runs/terse.jsonl                            # gates alone
    dartune check-reward runs/terse.jsonl --target.path MODEL        # with a target

A rewrite of good English prose can gain little: the demonstration is natural already. Terse demonstrations are what the
method is for, and rewrites of them can gain.
"""

from __future__ import annotations

import json
from pathlib import Path

DATA = Path(__file__).parents[1] / "tests" / "data"


def terse_fixtures() -> list[dict[str, str]]:
    """The rows of english.jsonl whose solution can be written in prefix equations, with that as their solution."""
    solutions = {row["id"]: row["solution"] for row in _read("terse_demonstrations.jsonl")}
    return [row | {"solution": solutions[row["id"]]} for row in _read("english.jsonl") if row["id"] in solutions]


def _read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


if __name__ == "__main__":
    for row in terse_fixtures():
        print(json.dumps(row, ensure_ascii=False))
