"""The step checker: reads a solution in any dialect and says whether each step is right.

It measures; it never rewards. A step is right when its person, its operands, its operator and
its value are those of the problem and everything it uses was established before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dartune.lab.dialects import OPERATOR, operands
from dartune.lab.world import Fact, Problem, phrase

NAME = r"[A-Z][a-z]+"
TERM = rf"(?:{NAME}|\d+)"
SUM = rf"{TERM} [+-] {TERM}"
ENDING = re.compile(r"^(?P<body>.*?) ?The answer is (?P<answer>\d+) \.$", re.S)


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of a solution: who has what, and the sums it was written with."""

    name: str | None
    value: int
    named_sum: str | None = None
    number_sum: str | None = None
    words: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`dialect` is None where no grammar reads the text; `names_correct` is None where it has no names."""

    dialect: str | None
    answer_correct: bool
    steps_correct: bool
    names_correct: bool | None


def _split(body: str, mark: str) -> list[str] | None:
    """The body's sentences, each ended by ` mark`; None where the last is not ended."""
    parts = body.split(f" {mark}")
    return [part.strip() for part in parts[:-1]] if parts and not parts[-1].strip() else None


def _claims(body: str, mark: str, first: str, later: str) -> list[Claim] | None:
    """Sentences that each match `first` (a stated value) or `later` (a computed one)."""
    sentences = _split(body, mark)
    if not sentences:
        return None
    claims = []
    for sentence in sentences:
        match = re.fullmatch(later, sentence) or re.fullmatch(first, sentence)
        if match is None:
            return None
        found = match.groupdict()
        claims.append(
            Claim(found["name"], int(found["value"]), found.get("named"), found.get("sum"), found.get("words"))
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
        rf"Next , (?P<name>{NAME}) has (?P<words>[^,]+) , so (?P=name) has (?P<sum>{SUM}) = (?P<value>\d+)",
    )


def _read_backward(body: str) -> list[Claim] | None:
    sentences = _split(body, ",")
    if not sentences:
        return None
    plan: dict[str, str] = {}
    planned = rf"need (?P<name>{NAME}) : (?P<sign>[+-]) (?P<right>{TERM}) on (?P<left>{NAME})"
    while sentences and (match := re.fullmatch(planned, sentences[0])):
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
    *told, root = sentences[0].split(" , ")
    words = {}
    for sentence in told:
        match = re.fullmatch(rf"(?P<name>{NAME}) has (?P<words>[^,]+)", sentence)
        if match is None:
            return None
        words[match["name"]] = match["words"]
    claims = []
    for sentence in [root, *sentences[1:]]:
        match = re.fullmatch(rf"(?P<name>{NAME}) has (?:(?P<sum>{SUM}) = )?(?P<value>\d+)", sentence)
        if match is None:
            return None
        said = words.pop(match["name"], None)
        if (said is None) != (match["sum"] is None):
            return None
        claims.append(Claim(match["name"], int(match["value"]), number_sum=match["sum"], words=said))
    return claims if claims and not words else None


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
    """The dialect whose grammar reads the solution, its claims, and the stated answer."""
    match = ENDING.match(solution.strip())
    if match is None:
        return None, [], None
    for dialect, reader in READERS.items():
        claims = reader(match["body"].strip())
        if claims:
            return dialect, claims, int(match["answer"])
    return None, [], int(match["answer"])


def dialect_of(solution: str) -> str | None:
    return read(solution)[0]


def _same_sum(written: str, left: str, sign: str, right: str) -> bool:
    allowed = {f"{left} {sign} {right}"} | ({f"{right} {sign} {left}"} if sign == "+" else set())
    return written in allowed


def _step_right(claim: Claim, fact: Fact, known: dict[str, int]) -> bool:
    """Whether a claim about a person of the problem is right and uses only what is `known`."""
    if claim.value != fact.value:
        return False
    if claim.words is not None and claim.words != phrase(fact):
        return False
    if fact.relation == "is":
        return claim.number_sum is None and claim.named_sum is None
    if claim.number_sum is None:
        return False
    if any(name not in known for name in fact.references):
        return False
    left, right = operands(fact)
    sign = OPERATOR[fact.relation]
    numbers = [str(known.get(term, term)) for term in (left, right)]
    if not _same_sum(claim.number_sum, numbers[0], sign, numbers[1]):
        return False
    return claim.named_sum is None or _same_sum(claim.named_sum, left, sign, right)


def _nested_value(expression: str) -> int | None:
    """Value of an expression of integers, + and -, and parentheses; None where it is malformed."""
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


def _steps_right(dialect: str, claims: list[Claim], problem: Problem) -> bool:
    chain = problem.chain
    if dialect == "values":
        return [claim.value for claim in claims] == [fact.value for fact in chain]
    facts = {fact.name: fact for fact in problem.statements}
    if any(claim.name not in facts for claim in claims):
        return False
    if dialect == "nested":
        return (
            claims[0].name == chain[-1].name
            and claims[0].value == chain[-1].value
            and _nested_value(claims[0].number_sum or "") == chain[-1].value
        )
    if dialect == "skipping":
        right = all(claim.value == facts[claim.name].value for claim in claims)
        return right and claims[-1].name == chain[-1].name
    known: dict[str, int] = {}
    for claim in claims:
        if not _step_right(claim, facts[claim.name], known):
            return False
        known[claim.name] = claim.value
    return all(fact.name in known for fact in chain)


def check(solution: str, problem: Problem) -> Verdict:
    """Read `solution` and compare it with `problem`, step by step."""
    dialect, claims, answer = read(solution)
    answer_correct = answer == problem.answer
    if dialect is None:
        return Verdict(None, answer_correct, False, None)
    named = [claim for claim in claims if claim.name is not None]
    truth = problem.values
    names_correct = all(truth.get(claim.name) == claim.value for claim in named) if named else None
    if names_correct and dialect not in ("skipping", "nested"):
        names_correct = {fact.name for fact in problem.chain} <= {claim.name for claim in named}
    steps_correct = answer_correct and _steps_right(dialect, claims, problem)
    return Verdict(dialect, answer_correct, steps_correct, names_correct)
