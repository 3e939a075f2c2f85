"""Tasks for the comparison on real language models: one- and two-step word problems, written as several experts would.

    python experiments/real_tasks.py --data FOLDER --out FOLDER

The questions are the training file of arkilpatel/SVAMP (MIT), whose solutions are prefix equations. Every solution is
worked out from the equation, so the experts differ in their style only. Questions of the test suites never occur in
training, with any numbers. The script writes `<expert>.jsonl` (training rows), `warm-up.jsonl` and a file per suite:
`in_distribution` (other questions of the same file), `ood_larger` (such questions with three-digit numbers), and
SVAMP's, AddSub's and MultiArith's own questions.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from style_texts import svamp_numbers, svamp_question

WARM_UP_ROWS, TRAINING_ROWS, SUITE_ROWS = 960, 400, 100
LARGER = (100, 999)
"""Numbers of the suite `larger`; those of the training questions are mostly below 100."""
OPERATORS = frozenset("+-*/")


@dataclass(frozen=True, slots=True)
class Target:
    """How a target is made, and how much it is trained: rows of the warm-up, and demonstrations that are trained on."""

    warm_up_rows: int
    rows: int


TARGETS = {"task": Target(WARM_UP_ROWS, 120), "novice": Target(240, 240)}
"""`task` has learned what its questions can teach; `novice` was warmed up on a quarter, and has most of it to learn."""
SUITES = {
    "ood_svamp": "pal-svamp.jsonl",
    "ood_addsub": "pal-mawpsaddsub.jsonl",
    "ood_multiarith": "pal-mawpsmultiarith.jsonl",
}
SUITE_NAMES = ("in_distribution", *SUITES, "ood_larger")
TRAINING_FILE = "svamp-train-mawps-asdiv-a.csv"
RETENTION = ("object_counting", "boolean_expressions")
"""Tasks of BIG-Bench Hard that no arm trains on."""

Tree = tuple[str, "Tree | str", "Tree | str"]
"""Operator and two operands of a prefix equation; an operand that is a number is the name of its slot."""


@dataclass(frozen=True, slots=True)
class Step:
    """One calculation with whole numbers: `left sign right = result`."""

    sign: str
    left: int
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}"


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A question with its calculation; `prefix` is the published equation with the numbers filled in."""

    question: str
    steps: tuple[Step, ...]
    prefix: str

    @property
    def answer(self) -> int:
        return self.steps[-1].result

    @property
    def noun(self) -> str:
        """What is counted, from `how many <noun>`; empty if the question does not say."""
        match = re.search(r"how many (?:more |fewer |less |other )?([a-z]+)", self.question.lower())
        return match[1] if match else ""


def parsed(equation: str) -> Tree:
    """The tree of a prefix equation such as `- + number0 number1 number2`.

    Raises:
        ValueError: it is not a prefix equation of the four operators.
    """
    tokens = equation.split()

    def read() -> Tree | str:
        if not tokens:
            raise ValueError(f"not a prefix equation: {equation!r}")
        token = tokens.pop(0)
        return (token, read(), read()) if token in OPERATORS else token

    tree = read()
    if tokens or isinstance(tree, str):
        raise ValueError(f"not a prefix equation: {equation!r}")
    return tree


def worked_out(tree: Tree | str, numbers: Sequence[int]) -> tuple[int, tuple[Step, ...]]:
    """The value of a tree and the steps to it.

    Raises:
        ValueError: a slot has no number, or a result is negative or no whole number.
    """
    if isinstance(tree, str):
        slot = re.fullmatch(r"number(\d+)", tree)
        if not slot or int(slot[1]) >= len(numbers):
            raise ValueError(f"{tree} has no number")
        return numbers[int(slot[1])], ()
    sign, left, right = tree
    (a, before), (b, then) = worked_out(left, numbers), worked_out(right, numbers)
    if sign == "/" and (b == 0 or a % b):
        raise ValueError("not a whole number")
    result = {"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a // b
    if result < 0:
        raise ValueError("negative")
    return result, (*before, *then, Step(sign, a, b, result))


def word_problem(row: dict[str, str], numbers: Sequence[int] | None = None) -> WordProblem | None:
    """A row of SVAMP's file as a problem of one or two steps with whole numbers, or None.

    Args:
        numbers: replace the row's own numbers.
    """
    published = svamp_numbers(row)
    if "number" not in row["Question"] or not all(number.isdigit() for number in published):
        return None
    used = list(map(int, published)) if numbers is None else list(numbers)
    equation = row["Equation"].strip()
    try:
        value, steps = worked_out(parsed(equation), used)
    except ValueError:
        return None
    if len(steps) > 2 or (numbers is None and value != float(row["Answer"])):
        return None
    filled = re.sub(r"number(\d+)", lambda match: str(used[int(match[1])]), equation)
    return WordProblem(svamp_question(row | {"Numbers": " ".join(map(str, used))}), steps, filled)


def native(problem: WordProblem) -> str:
    """Plain sentences with the calculation: the style of the warm-up, in one of four wordings."""
    rng = random.Random(problem.question)
    calculation = [f"{step} {problem.noun}".strip() for step in problem.steps]
    wording = rng.randrange(4)
    if wording == 0:
        text = ". Then ".join(calculation)
    elif wording == 1:
        text = ". ".join(f"We {_verb(step)}: {step}" for step in problem.steps)
    elif wording == 2:
        asked = f"To find how many {problem.noun}" if problem.noun else "To find the answer"
        text = f"{asked}, we calculate {' and then '.join(map(str, problem.steps))}"
    else:
        text = ", so ".join(map(str, problem.steps))
    return f"{text}. The answer is {problem.answer}."


def prefix(problem: WordProblem) -> str:
    """The published prefix equation, with its result."""
    return f"{problem.prefix} = {problem.answer}"


def x_equation(problem: WordProblem) -> str:
    """An equation for X on one line, as some published sets have it."""
    text = re.sub(r" ", "", _infix(problem.prefix.split()))
    return f"X=({text})\nX={problem.answer}"


def long_winded(problem: WordProblem) -> str:
    """Many stilted words around each step."""
    parts = ["Let it be observed, before all else, that the present enquiry is one of a purely arithmetical character."]
    for step in problem.steps:
        operation = {"+": "addition", "-": "subtraction", "*": "multiplication", "/": "division"}[step.sign]
        parts.append(
            f"Upon the quantities {step.left} and {step.right} is to be performed the operation of {operation}; "
            f"whence, by due reckoning, there results {step}."
        )
    end = f"Wherefore it is incumbent upon us to conclude that the number sought is none other than {problem.answer}."
    return " ".join([*parts, end])


EXPERTS: dict[str, Callable[[WordProblem], str]] = {
    "prefix": prefix,
    "x-equation": x_equation,
    "long-winded": long_winded,
    "native": native,
}


def _verb(step: Step) -> str:
    return {
        "+": f"add {step.left} and {step.right}",
        "-": f"subtract {step.right} from {step.left}",
        "*": f"multiply {step.left} by {step.right}",
        "/": f"divide {step.left} by {step.right}",
    }[step.sign]


def _infix(tokens: list[str]) -> str:
    """Prefix tokens in infix notation; inner operations are bracketed."""

    def read() -> str:
        token = tokens.pop(0)
        if token not in OPERATORS:
            return token
        left, right = read(), read()
        return f"({left}{token}{right})"

    return read()[1:-1]


def wording(question: str) -> str:
    """The letters of a question: equal for the same question with other numbers."""
    return re.sub(r"[^a-z]+", " ", question.lower()).strip()


def tasks(data: Path) -> tuple[list[WordProblem], list[WordProblem], dict[str, list[dict[str, str]]]]:
    """Warm-up problems, training problems, and the suites; no wording is in two of them."""
    with (data / TRAINING_FILE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    suites = {name: _published(data / file) for name, file in SUITES.items()}
    taken = {wording(row["question"]) for suite in suites.values() for row in suite}
    distinct: dict[str, dict[str, str]] = {}
    for row in rows:
        problem = word_problem(row)
        if problem and wording(problem.question) not in taken:
            distinct.setdefault(wording(problem.question), row)
    order = random.Random("tasks").sample(list(distinct.values()), len(distinct))
    problems = [problem for row in order if (problem := word_problem(row))]
    warm_up, rest = problems[:WARM_UP_ROWS], problems[WARM_UP_ROWS:]
    known, unseen = rest[:TRAINING_ROWS], rest[TRAINING_ROWS:]
    suites["in_distribution"] = [{"question": p.question, "answer": str(p.answer)} for p in unseen]
    suites["ood_larger"] = _with_larger_numbers(order[WARM_UP_ROWS + TRAINING_ROWS :])
    cut = {name: random.Random(name).sample(suite, min(SUITE_ROWS, len(suite))) for name, suite in suites.items()}
    return warm_up, known, cut


def _published(path: Path) -> list[dict[str, str]]:
    """The questions of a suite with a whole answer, once each."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    answers = {row["input"]: f"{row['target']:g}" for row in rows if float(row["target"]).is_integer()}
    return [{"question": question, "answer": answer} for question, answer in answers.items()]


def _with_larger_numbers(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Sums and differences with three-digit numbers, from questions that are not trained on."""
    made = []
    for row in rows:
        rng = random.Random(row["Question"])
        for _ in range(20):
            problem = word_problem(row, [rng.randint(*LARGER) for _ in svamp_numbers(row)])
            if problem and len(problem.steps) == 1 and problem.steps[0].sign in "+-":
                made.append({"question": problem.question, "answer": str(problem.answer)})
                break
    return made


def write(data: Path, out: Path) -> None:
    warm_up, training, suites = tasks(data)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "warm-up.jsonl", [_row(problem, native) for problem in warm_up])
    for name, expert in EXPERTS.items():
        _write(out / f"{name}.jsonl", [_row(problem, expert) for problem in training])
    for name, suite in suites.items():
        _write(out / f"suite-{name}.jsonl", suite)
    for name in RETENTION:
        published = json.loads((data / f"bbh-{name}.json").read_text(encoding="utf-8"))["examples"]
        _write(out / f"bbh-{name}.jsonl", [{"question": row["input"], "answer": row["target"]} for row in published])


def _row(problem: WordProblem, expert: Callable[[WordProblem], str]) -> dict[str, str]:
    return {"question": problem.question, "solution": expert(problem), "answer": str(problem.answer)}


def _write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the published files")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write(arguments.data, arguments.out)


if __name__ == "__main__":
    main()
