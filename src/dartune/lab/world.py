"""The world: questions "who has how many", drawn from a seed, with every true value known.

A problem is a chain. The first person's number is stated; every further person's follows from
the person before (and, for relations with two references, from one earlier person, told second).
Statements are shuffled, so a reader must follow the names; distractors are persons nobody refers to.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_VALUE = 24
MAX_DIFFERENCE = 20

NAMES = tuple(
    "Ada Ben Cora Dan Eve Finn Gus Hana Ida Jon Kim Leo Mia Ned Ola Pia Quin Ray Sue Tom "
    "Uma Vic Wes Yan Zoe Abe Bea Cal Dot Eli Fay Gil Hal Ivy Jay Kay Lou Max Noa Otis".split()
)
DEMONSTRATION_NAMES = NAMES[:28]
HELD_OUT_NAMES = NAMES[28:]

OLD_RELATIONS = ("more", "fewer", "plus", "minus")
NEW_RELATIONS = ("twice", "together", "less")


@dataclass(frozen=True, slots=True)
class Fact:
    """One person's number and how the question states it.

    `relation` is "is" (stated outright), one of OLD_RELATIONS (a person and an `amount`) or of
    NEW_RELATIONS (persons only).
    """

    name: str
    value: int
    relation: str = "is"
    references: tuple[str, ...] = ()
    amount: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """`chain` in solution order; `statements` in the order the question tells them."""

    chain: tuple[Fact, ...]
    statements: tuple[Fact, ...]
    question_first: bool = False

    @property
    def steps(self) -> int:
        """Number of relations to apply."""
        return len(self.chain) - 1

    @property
    def answer(self) -> int:
        return self.chain[-1].value

    @property
    def values(self) -> dict[str, int]:
        """True value of every person, distractors included."""
        return {fact.name: fact.value for fact in self.statements}

    @property
    def question(self) -> str:
        told = " ".join(statement(fact) for fact in self.statements)
        ask = f"How many does {self.chain[-1].name} have ?"
        return f"{ask} {told}" if self.question_first else f"{told} {ask}"


def phrase(fact: Fact) -> str:
    """What the question says a person has: the words after "has"."""
    first = fact.references[0] if fact.references else ""
    second = fact.references[-1] if fact.references else ""
    return {
        "is": f"{fact.value}",
        "more": f"{fact.amount} more than {first}",
        "fewer": f"{fact.amount} fewer than {first}",
        "plus": f"as many as {first} and {fact.amount} together",
        "minus": f"as many as {first} less {fact.amount}",
        "twice": f"twice as many as {first}",
        "together": f"as many as {first} and {second} together",
        "less": f"as many as {first} less {second}",
    }[fact.relation]


def statement(fact: Fact) -> str:
    return f"{fact.name} has {phrase(fact)} ."


@dataclass(frozen=True, slots=True)
class ProblemSpec:
    """The dials of difficulty: which problems a suite or a data set is drawn from.

    `new_steps` bounds how many steps use one of `new_relations` (the others are old);
    `distinct_new` asks that the new steps use at least that many different relations.
    """

    steps: tuple[int, int] = (2, 3)
    new_steps: tuple[int, int] = (0, 0)
    new_relations: tuple[str, ...] = NEW_RELATIONS
    distinct_new: int = 0
    names: tuple[str, ...] = NAMES
    distractors: tuple[int, int] = (0, 0)
    question_first: bool = False


def _next_fact(rng: random.Random, chain: list[Fact], name: str, relation: str) -> Fact | None:
    """A fact that follows the chain's last person by `relation`, or None where no value fits."""
    last = chain[-1]
    if relation in OLD_RELATIONS:
        amount = rng.randint(1, MAX_DIFFERENCE)
        value = last.value + (amount if relation in ("more", "plus") else -amount)
        fact = Fact(name, value, relation, (last.name,), amount)
    elif relation == "twice":
        fact = Fact(name, 2 * last.value, relation, (last.name,))
    else:
        if len(chain) < 2:
            return None
        other = rng.choice(chain[:-1])
        value = last.value + other.value if relation == "together" else last.value - other.value
        fact = Fact(name, value, relation, (last.name, other.name))
    taken = {earlier.value for earlier in chain}
    return fact if 1 <= fact.value <= MAX_VALUE and fact.value not in taken else None


def _chain(rng: random.Random, names: Sequence[str], relations: Sequence[str]) -> list[Fact] | None:
    chain = [Fact(names[0], rng.randint(1, MAX_VALUE))]
    for name, relation in zip(names[1:], relations, strict=True):
        fact = next(filter(None, (_next_fact(rng, chain, name, relation) for _ in range(20))), None)
        if fact is None:
            return None
        chain.append(fact)
    return chain


def _distractor(rng: random.Random, chain: Sequence[Fact], name: str) -> Fact:
    """A person nobody refers to: stated outright or hung on the chain by an old relation."""
    if rng.random() < 0.5:
        base = rng.choice(chain)
        for _ in range(20):
            fact = _next_fact(rng, [base], name, rng.choice(OLD_RELATIONS))
            if fact:
                return fact
    return Fact(name, rng.randint(1, MAX_VALUE))


def draw(rng: random.Random, spec: ProblemSpec) -> Problem:
    """Draw one problem; relations and values are rejected until they fit 1..MAX_VALUE.

    The number of new steps is never redrawn: they fit less often, and would become rare.
    """
    n_new = rng.randint(*spec.new_steps)
    while True:
        steps = rng.randint(max(n_new, spec.steps[0]), spec.steps[1])
        new = [rng.choice(spec.new_relations) for _ in range(n_new)]
        if len(set(new)) < spec.distinct_new:
            continue
        relations = new + [rng.choice(OLD_RELATIONS) for _ in range(steps - n_new)]
        rng.shuffle(relations)
        n_distractors = rng.randint(*spec.distractors)
        names = rng.sample(spec.names, steps + 1 + n_distractors)
        chain = _chain(rng, names[: steps + 1], relations)
        if chain is None:
            continue
        extra = [_distractor(rng, chain, name) for name in names[steps + 1 :]]
        told = [*chain, *extra]
        rng.shuffle(told)
        return Problem(tuple(chain), tuple(told), spec.question_first)


def draw_many(seed: int | str, spec: ProblemSpec, n: int, exclude: set[str] = frozenset()) -> list[Problem]:
    """`n` problems with distinct questions, none of them in `exclude`."""
    rng = random.Random(f"dartune-lab-{seed}")
    problems: list[Problem] = []
    seen = set(exclude)
    while len(problems) < n:
        problem = draw(rng, spec)
        if problem.question not in seen:
            seen.add(problem.question)
            problems.append(problem)
    return problems


_STATEMENTS: tuple[tuple[str, str], ...] = (
    ("twice", r"twice as many as (?P<first>\w+)"),
    ("plus", r"as many as (?P<first>\w+) and (?P<amount>\d+) together"),
    ("minus", r"as many as (?P<first>\w+) less (?P<amount>\d+)"),
    ("together", r"as many as (?P<first>\w+) and (?P<second>\w+) together"),
    ("less", r"as many as (?P<first>\w+) less (?P<second>\w+)"),
    ("more", r"(?P<amount>\d+) more than (?P<first>\w+)"),
    ("fewer", r"(?P<amount>\d+) fewer than (?P<first>\w+)"),
    ("is", r"(?P<amount>\d+)"),
)
_ASK = re.compile(r"How many does (\w+) have \?")


def _told(sentence: str) -> tuple[str, str, tuple[str, ...], int]:
    name, _, rest = sentence.partition(" has ")
    for relation, pattern in _STATEMENTS:
        if match := re.fullmatch(pattern, rest):
            found = match.groupdict()
            references = tuple(found[key] for key in ("first", "second") if found.get(key))
            return name, relation, references, int(found.get("amount") or 0)
    raise ValueError(f"not a statement of the lab: {sentence!r}")


def parse_question(question: str) -> Problem:
    """The problem a question states, solved: the inverse of `Problem.question`.

    Raises:
        ValueError: the text is not a question of the lab.
    """
    ask = _ASK.search(question)
    if ask is None:
        raise ValueError(f"not a question of the lab: {question!r}")
    sentences = [part.strip() for part in _ASK.sub("", question).split(" .") if part.strip()]
    told = {name: (relation, references, amount) for name, relation, references, amount in map(_told, sentences)}
    facts: dict[str, Fact] = {}

    def solve(name: str, depth: int = 0) -> Fact:
        if name not in told or depth > len(told):
            raise ValueError(f"{name} cannot be solved from {question!r}")
        if name not in facts:
            relation, references, amount = told[name]
            known = [solve(reference, depth + 1).value for reference in references]
            value = {
                "is": lambda: amount,
                "more": lambda: known[0] + amount,
                "fewer": lambda: known[0] - amount,
                "plus": lambda: known[0] + amount,
                "minus": lambda: known[0] - amount,
                "twice": lambda: 2 * known[0],
                "together": lambda: known[0] + known[1],
                "less": lambda: known[0] - known[1],
            }[relation]()
            facts[name] = Fact(name, value, relation, references, 0 if relation == "is" else amount)
        return facts[name]

    solve(ask[1])
    needed = _needed(facts, ask[1])
    statements = tuple(solve(name) for name in told)
    return Problem(tuple(needed), statements, question.startswith("How many"))


def _needed(facts: dict[str, Fact], asked: str) -> list[Fact]:
    """The persons the asked one depends on, each after those it uses."""
    ordered: dict[str, Fact] = {}

    def visit(name: str) -> None:
        for reference in facts[name].references:
            visit(reference)
        ordered.setdefault(name, facts[name])

    visit(asked)
    return list(ordered.values())
