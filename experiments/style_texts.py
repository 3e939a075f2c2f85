"""One solution written in many styles, by rule: the material of the style benchmark (style_scores.py).

A `Problem` has its solution as sentences and as equations. Each style is a function of it. The final line is the same
in all styles of a problem, so styles differ in their reasoning only.
"""

from __future__ import annotations

import ast
import csv
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ANNOTATION = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its solution.

    Args:
        kind: "gsm8k", "one_step" or "chain".
        sentences: the solution's lines of reasoning, without calculator annotations.
        annotated: the same lines with GSM8K's annotations (`<<48/2=24>>`).
        equations: (expression, result) of every step, in order.
        ending: the final line, which states the answer.
    """

    kind: str
    question: str
    sentences: tuple[str, ...]
    annotated: tuple[str, ...]
    equations: tuple[tuple[str, str], ...]
    ending: str
    answer: str


def _lines(parts: Sequence[str], problem: Problem) -> str:
    return "\n".join([*parts, problem.ending])


def source(problem: Problem) -> str:
    return _lines(problem.sentences, problem)


def numbered(problem: Problem) -> str:
    return _lines([f"{i}. {line}" for i, line in enumerate(problem.sentences, 1)], problem)


def annotated(problem: Problem) -> str:
    return _lines(problem.annotated, problem)


def equations_only(problem: Problem) -> str:
    return _lines([f"{expression}={result}" for expression, result in problem.equations], problem)


def values_only(problem: Problem) -> str:
    return _lines([result for _, result in problem.equations], problem)


def prefix_notation(problem: Problem) -> str:
    return _lines([prefix(expression) for expression, _ in problem.equations], problem)


def x_form(problem: Problem) -> str:
    return _lines([f"X=({expression})" for expression, _ in problem.equations], problem)


def bare_answer(problem: Problem) -> str:
    return problem.ending


def filler(problem: Problem) -> str:
    return _padded(problem.sentences, problem)


def twice(problem: Problem) -> str:
    return _lines([*problem.sentences, *problem.sentences], problem)


def prefix_filler(problem: Problem) -> str:
    return _padded([prefix(expression) for expression, _ in problem.equations], problem)


def prefix_twice(problem: Problem) -> str:
    steps = [prefix(expression) for expression, _ in problem.equations]
    return _lines([*steps, *steps], problem)


def _padded(steps: Sequence[str], problem: Problem) -> str:
    before = "Let's think about this step by step. To solve this problem, we will look at it carefully."
    after = "I hope this helps! Let me know if you have any other questions."
    return _lines([before, *steps, after], problem)


def sentences_shuffled(problem: Problem) -> str:
    """The sentences in another order; a single sentence is cut into its halves, which change places."""
    units = list(problem.sentences)
    if len(units) == 1:
        words = units[0].split()
        units = [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]
    return _lines(_deranged(units, problem), problem)


def words_shuffled(problem: Problem) -> str:
    return _lines([" ".join(_deranged(" ".join(problem.sentences).split(), problem))], problem)


def wrong_step(problem: Problem) -> str:
    """The last number of the first step's sentence is replaced by a near one; all else stays."""
    first, *rest = problem.sentences
    match = list(NUMBER.finditer(first))[-1]
    wrong = f"{float(match.group()) + random.Random(problem.question).choice([-3, -2, 2, 3]):g}"
    return _lines([first[: match.start()] + wrong + first[match.end() :], *rest], problem)


def _deranged(units: Sequence[str], problem: Problem) -> list[str]:
    """The units in an order that is not their own, the same one in every call."""
    rng, mixed = random.Random(problem.question), list(units)
    for _ in range(100):
        rng.shuffle(mixed)
        if mixed != list(units):
            return mixed
    return mixed[::-1]


STYLES: dict[str, Callable[[Problem], str]] = {
    style.__name__: style
    for style in (
        source,
        numbered,
        annotated,
        equations_only,
        values_only,
        prefix_notation,
        x_form,
        bare_answer,
        filler,
        twice,
        prefix_filler,
        prefix_twice,
        sentences_shuffled,
        words_shuffled,
        wrong_step,
    )
}


def prefix(expression: str) -> str:
    """An arithmetic expression in prefix notation: `2*(3+4)` is `* 2 + 3 4`.

    Raises:
        ValueError: it is not made of numbers, brackets and the four operators.
    """

    def write(node: ast.AST) -> str:
        if isinstance(node, ast.Expression):
            return write(node.body)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return f"{OPERATORS[type(node.op)]} {write(node.left)} {write(node.right)}"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return f"-{write(node.operand)}"
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return f"{node.value:g}" if isinstance(node.value, float) else str(node.value)
        raise ValueError(f"not plain arithmetic: {expression}")

    try:
        return write(ast.parse(expression.strip(), mode="eval"))
    except SyntaxError as error:
        raise ValueError(f"not plain arithmetic: {expression}") from error


def gsm8k_problem(row: dict[str, str]) -> Problem | None:
    """A GSM8K row; None where a line has no annotation, or one that is not plain arithmetic."""
    text, _, answer = row["answer"].partition("\n#### ")
    lines = text.split("\n")
    steps = [(left.strip(), right.strip()) for left, right in ANNOTATION.findall(text)]
    if not 2 <= len(steps) <= 4 or not all(ANNOTATION.search(line) and NUMBER.search(line) for line in lines):
        return None
    try:
        for expression, _ in steps:
            prefix(expression)
    except ValueError:
        return None
    plain = tuple(ANNOTATION.sub("", line) for line in lines)
    return Problem("gsm8k", row["question"], plain, tuple(lines), tuple(steps), f"#### {answer}", answer)


def gsm8k_problems(path: Path, count: int, most_letters: int = 350) -> list[Problem]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines()[:4000])
    made = (gsm8k_problem(row) for row in rows if len(row["answer"]) <= most_letters)
    problems = [problem for problem in made if problem]
    return random.Random("gsm8k").sample(problems, count)


def one_step_problems(path: Path, count: int) -> list[Problem]:
    """One-step problems of SVAMP's training file, which has no sentences: a plain one is made from the equation."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    problems = [problem for row in rows if (problem := _one_step(row))]
    return random.Random("one_step").sample(problems, count)


def svamp_numbers(row: dict[str, str]) -> list[str]:
    return [f"{float(number):g}" for number in row["Numbers"].split()]


def svamp_question(row: dict[str, str]) -> str:
    """The question with its numbers, and without the file's blanks before punctuation."""
    text = row["Question"]
    for i, number in reversed(list(enumerate(svamp_numbers(row)))):
        text = text.replace(f"number{i}", number)
    text = re.sub(r"\s+([.,?!])", r"\1", text).strip()
    return text[0].upper() + text[1:]


def _one_step(row: dict[str, str]) -> Problem | None:
    equation = re.fullmatch(r"([-+*/]) number(\d) number(\d)", row["Equation"].strip())
    numbers = svamp_numbers(row)
    if not equation or "number" not in row["Question"]:
        return None
    operator, left, right = equation[1], numbers[int(equation[2])], numbers[int(equation[3])]
    answer = f"{float(row['Answer']):g}"
    if any("." in number for number in (left, right, answer)):
        return None
    expression, ending = f"{left}{operator}{right}", f"The answer is {answer}."
    verb = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}[operator]
    middle = {"+": f"{left} and {right}", "-": f"{right} from {left}"}.get(operator, f"{left} by {right}")
    begin = f"We {verb} {middle}: {left} {operator} {right} = "
    return Problem(
        "one_step",
        svamp_question(row),
        (f"{begin}{answer}.",),
        (f"{begin}<<{expression}={answer}>>{answer}.",),
        ((expression, answer),),
        ending,
        answer,
    )


def chain_problems(count: int) -> list[Problem]:
    """Sums and differences of three to five numbers, worked off from left to right."""
    rng, problems = random.Random("chain"), []
    while len(problems) < count:
        numbers = [rng.randint(2, 60) for _ in range(rng.randint(3, 5))]
        total, steps = numbers[0], []
        text = str(total)
        for number in numbers[1:]:
            operator = rng.choice("+-") if number < total else "+"
            result = total + number if operator == "+" else total - number
            steps.append((total, operator, number, result))
            text += f" {operator} {number}"
            total = result
        words = ["First", *["Then"] * (len(steps) - 1)]
        plain = tuple(f"{w}, {a} {operator} {b} = {c}." for w, (a, operator, b, c) in zip(words, steps, strict=True))
        noted = tuple(
            f"{w}, {a} {operator} {b} = <<{a}{operator}{b}={c}>>{c}."
            for w, (a, operator, b, c) in zip(words, steps, strict=True)
        )
        equations = tuple((f"{a}{operator}{b}", str(c)) for a, operator, b, c in steps)
        problems.append(
            Problem("chain", f"What is {text}?", plain, noted, equations, f"The answer is {total}.", str(total))
        )
    return problems


def all_problems(data: Path, count: int) -> list[Problem]:
    """`count` problems in all: 40% GSM8K, 30% one-step, 30% chain sums."""
    some, more = round(0.4 * count), round(0.3 * count)
    kinds = [
        gsm8k_problems(data / "gsm8k-train.jsonl", some),
        one_step_problems(data / "svamp-train-mawps-asdiv-a.csv", more),
        chain_problems(count - some - more),
    ]
    # The kinds take turns, so that a run that was cut short has all of them.
    return [problem for turn in zip_longest(*kinds) for problem in turn if problem]
