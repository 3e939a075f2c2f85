"""The step checker: parses a solution in any dialect and checks every step against the problem.

It is used for measurement only, never for rewards. A step is correct if its person, operands, operator and value are
those of the problem and if every value that it uses was derived in an earlier step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dartune.lab.dialects import OPERATOR, operands
from dartune.lab.world import Fact, Problem, phrase

NAME = r"[A-Z][a-z]+"
TERM = rf"(?:{NAME}|\d+)"
SUM = rf"{TERM} [+-] {TERM}"
ENDING = re.compile(r"^(?P<body>.*?) ?The answer is (?P<answer>\d+) \.$", re.S)


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of a solution: a person's value and how it was derived.

    Args:
        name: the person; None in the dialect `values`.
        value: the claimed number.
        named_sum: the derivation over names and stated amounts, as in `Ada + 3`.
        number_sum: the derivation over numbers, as in `4 + 3`.
        quote: the statement of the question that the claim quotes.
    """

    name: str | None
    value: int
    named_sum: str | None = None
    number_sum: str | None = None
    quote: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of `check_solution`.

    `dialect` is None if no grammar accepts the text, `names_correct` is None if it contains no names.
    """

    dialect: str | None
    answer_correct: bool
    steps_correct: bool
    names_correct: bool | None


def _split(body: str, mark: str) -> list[str] | None:
    """The body's sentences, which end in ` mark`; None if the last one is unterminated."""
    parts = body.split(f" {mark}")
    return [part.strip() for part in parts[:-1]] if parts and not parts[-1].strip() else None


def _claims(body: str, mark: str, first: str, later: str) -> list[Claim] | None:
    """Parse sentences of which each matches `first` (a stated value) or `later` (a computed value)."""
    sentences = _split(body, mark)
    if not sentences:
        return None
    claims = []
    for sentence in sentences:
        match = re.fullmatch(later, sentence) or re.fullmatch(first, sentence)
        if match is None:
            return None
        parts = match.groupdict()
        claims.append(
            Claim(parts["name"], int(parts["value"]), parts.get("named"), parts.get("sum"), parts.get("quote"))
        )
    return claims


def _read_explicit(body: str) -> list[Claim] | None:
    claims = _claims(
        body,
        ".",
        rf"(?P<name>{NAME}) has (?P<value>\d+)",
        rf"(?P<name>{NAME}) has (?P<sum>{SUM}) = (?P<value>\d+)",
    )
    return claims if claims and any(claim.number_sum for claim in claims) else None


def _read_equations(body: str) -> list[Claim] | None:
    return _claims(
        body,
        ";",
        rf"(?P<name>{NAME}) = (?P<value>\d+)",
        rf"(?P<name>{NAME}) = (?P<named>{SUM}) = (?P<sum>{SUM}) = (?P<value>\d+)",
    )


def _read_verbose(body: str) -> list[Claim] | None:
    return _claims(
        body,
        ".",
        rf"First , we know that (?P<name>{NAME}) has (?P<value>\d+)",
        rf"Next , (?P<name>{NAME}) has (?P<quote>[^,]+) , so (?P=name) has (?P<sum>{SUM}) = (?P<value>\d+)",
    )


def _read_backward(body: str) -> list[Claim] | None:
    sentences = _split(body, ",")
    if not sentences:
        return None
    plan: dict[str, str] = {}
    pattern = rf"need (?P<name>{NAME}) : (?P<sign>[+-]) (?P<right>{TERM}) on (?P<left>{NAME})"
    while sentences and (match := re.fullmatch(pattern, sentences[0])):
        plan[match["name"]] = f"{match['left']} {match['sign']} {match['right']}"
        sentences = sentences[1:]
    claims = []
    for sentence in sentences:
        match = re.fullmatch(rf"(?P<name>{NAME}) is (?:(?P<sum>{SUM}) = )?(?P<value>\d+)", sentence)
        if match is None:
            return None
        named = plan.pop(match["name"], None)
        if (named is None) != (match["sum"] is None):
            return None
        claims.append(Claim(match["name"], int(match["value"]), named, match["sum"]))
    return claims if claims and not plan else None


def _read_recall(body: str) -> list[Claim] | None:
    sentences = _split(body, ".")
    if not sentences or " , " not in sentences[0]:
        return None
    *statements, root = sentences[0].split(" , ")
    quotes = {}
    for sentence in statements:
        match = re.fullmatch(rf"(?P<name>{NAME}) has (?P<quote>[^,]+)", sentence)
        if match is None:
            return None
        quotes[match["name"]] = match["quote"]
    claims = []
    for sentence in [root, *sentences[1:]]:
        match = re.fullmatch(rf"(?P<name>{NAME}) has (?:(?P<sum>{SUM}) = )?(?P<value>\d+)", sentence)
        if match is None:
            return None
        quote = quotes.pop(match["name"], None)
        if (quote is None) != (match["sum"] is None):
            return None
        claims.append(Claim(match["name"], int(match["value"]), number_sum=match["sum"], quote=quote))
    return claims if claims and not quotes else None


def _read_values(body: str) -> list[Claim] | None:
    if not re.fullmatch(r"\d+(?: , \d+)* \.", body):
        return None
    return [Claim(None, int(number)) for number in re.findall(r"\d+", body)]


def _read_skipping(body: str) -> list[Claim] | None:
    return _claims(body, ".", rf"(?P<name>{NAME}) has (?P<value>\d+)", r"(?!)")


def _read_nested(body: str) -> list[Claim] | None:
    match = re.fullmatch(rf"(?P<name>{NAME}) = (?P<sum>[\d ()+-]+?) = (?P<value>\d+) \.", body)
    return [Claim(match["name"], int(match["value"]), number_sum=match["sum"])] if match else None


READERS = {
    "values": _read_values,
    "skipping": _read_skipping,
    "nested": _read_nested,
    "explicit": _read_explicit,
    "equations": _read_equations,
    "verbose": _read_verbose,
    "backward": _read_backward,
    "recall": _read_recall,
}


def read(solution: str) -> tuple[str | None, list[Claim], int | None]:
    """Return the first dialect whose grammar accepts the solution, its claims, and the stated answer."""
    match = ENDING.match(solution.strip())
    if match is None:
        return None, [], None
    for dialect, reader in READERS.items():
        claims = reader(match["body"].strip())
        if claims:
            return dialect, claims, int(match["answer"])
    return None, [], int(match["answer"])


def dialect_of(solution: str) -> str | None:
    """Dialect of a solution; None if no grammar accepts it."""
    return read(solution)[0]


def _same_sum(text: str, left: str, sign: str, right: str) -> bool:
    """Whether `text` is the sum, in either order of the terms if it is an addition."""
    allowed = {f"{left} {sign} {right}"} | ({f"{right} {sign} {left}"} if sign == "+" else set())
    return text in allowed


def _is_step_correct(claim: Claim, fact: Fact, values: dict[str, int]) -> bool:
    """Whether a claim agrees with the problem's fact and uses only `values`, which earlier steps derived."""
    if claim.value != fact.value:
        return False
    if claim.quote is not None and claim.quote != phrase(fact):
        return False
    if fact.relation == "is":
        return claim.number_sum is None and claim.named_sum is None
    if claim.number_sum is None:
        return False
    if any(name not in values for name in fact.references):
        return False
    left, right = operands(fact)
    sign = OPERATOR[fact.relation]
    numbers = [str(values.get(term, term)) for term in (left, right)]
    if not _same_sum(claim.number_sum, numbers[0], sign, numbers[1]):
        return False
    return claim.named_sum is None or _same_sum(claim.named_sum, left, sign, right)


def _nested_value(expression: str) -> int | None:
    """Value of an expression of integers, `+`, `-` and parentheses.

    Returns None if the expression is malformed or a partial result is negative.
    """
    text = f"( {expression} )"
    while match := re.search(r"\( (\d+(?: [+-] \d+)*) \)", text):
        numbers = match[1].split()
        total = int(numbers[0])
        for sign, number in zip(numbers[1::2], numbers[2::2], strict=True):
            total += int(number) if sign == "+" else -int(number)
        if total < 0:
            return None
        text = text[: match.start()] + str(total) + text[match.end() :]
    return int(text) if text.isdigit() else None


def _are_steps_correct(dialect: str, claims: list[Claim], problem: Problem) -> bool:
    chain = problem.chain
    if dialect == "values":
        return [claim.value for claim in claims] == [fact.value for fact in chain]
    facts: dict[Any, Fact] = {fact.name: fact for fact in problem.statements}
    if any(claim.name not in facts for claim in claims):
        return False
    if dialect == "nested":
        return (
            claims[0].name == chain[-1].name
            and claims[0].value == chain[-1].value
            and _nested_value(claims[0].number_sum or "") == chain[-1].value
        )
    if dialect == "skipping":
        correct = all(claim.value == facts[claim.name].value for claim in claims)
        return correct and claims[-1].name == chain[-1].name
    values: dict[Any, int] = {}
    for claim in claims:
        if not _is_step_correct(claim, facts[claim.name], values):
            return False
        values[claim.name] = claim.value
    return all(fact.name in values for fact in chain)


def check_solution(solution: str, problem: Problem) -> Verdict:
    """Parse `solution` and compare it with `problem` step by step."""
    dialect, claims, answer = read(solution)
    answer_correct = answer == problem.answer
    if dialect is None:
        return Verdict(None, answer_correct, False, None)
    named = [claim for claim in claims if claim.name is not None]
    true_values: dict[Any, int] = problem.values
    names_correct = all(true_values.get(claim.name) == claim.value for claim in named) if named else None
    # `skipping` and `nested` leave persons out by design; the other dialects must name everyone on the chain.
    if names_correct and dialect not in ("skipping", "nested"):
        names_correct = {fact.name for fact in problem.chain} <= {claim.name for claim in named}
    steps_correct = answer_correct and _are_steps_correct(dialect, claims, problem)
    return Verdict(dialect, answer_correct, steps_correct, names_correct)
