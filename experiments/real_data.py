"""Demonstrations that no model writes like: SVAMP's published prefix equations, as a data set for `dartune run`.

    python experiments/real_data.py SVAMP.csv OUT.jsonl [--rows 240]

SVAMP.csv is the training file of arkilpatel/SVAMP (MIT): one- and two-step word problems whose solution is a prefix
equation with number slots (`* number0 number1`). The slots are filled and the result is added: `* 56 9 = 504`.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from pathlib import Path

from style_texts import svamp_numbers, svamp_question


def prefix_rows(path: Path, count: int) -> list[dict[str, str]]:
    """Rows of `question, solution, answer` with whole numbers of one step, in a fixed random order."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    made: dict[str, dict[str, str]] = {}
    for row in rows:
        numbers = svamp_numbers(row)
        solution = re.sub(r"number(\d)", lambda match, numbers=numbers: numbers[int(match[1])], row["Equation"].strip())
        answer = f"{float(row['Answer']):g}"
        one_step = re.fullmatch(r"[-+*/] \d+ \d+", solution)
        if one_step and answer.isdigit() and "number" in row["Question"]:
            question = svamp_question(row)
            made[question] = {"question": question, "solution": f"{solution} = {answer}", "answer": answer}
    return random.Random("prefix").sample(list(made.values()), count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svamp", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=240)
    arguments = parser.parse_args()
    rows = prefix_rows(arguments.svamp, arguments.rows)
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows in {arguments.out}")


if __name__ == "__main__":
    main()
