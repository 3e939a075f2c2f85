"""The lab's problems: seeded random questions about how many things a person has, with all true values known.

A problem is a chain of facts. The first person's number is stated. The number of every further person follows from the
previous person by a relation; relations with two references also use an earlier person, which is named second. The
statements are shuffled, so that solving a question requires following the names. Distractors are persons that no
statement on the chain refers to.

The lab's models were pretrained on these texts and suites are sampled anew in every run, so the generated texts must
not change by a single character for a given seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence, Set
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
    """A person's number and how the question states it.

    `relation` is "is" (the number itself), one of OLD_RELATIONS (a reference and an `amount`) or one of NEW_RELATIONS
    (references only).
    """

    name: str
    value: int
    relation: str = "is"
    references: tuple[str, ...] = ()
    amount: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its solution: `chain` is in solution order, `statements` in the order of the question."""

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
        statements = " ".join(statement(fact) for fact in self.statements)
        query = f"How many does {self.chain[-1].name} have ?"
        return f"{query} {statements}" if self.question_first else f"{statements} {query}"


def phrase(fact: Fact) -> str:
    """The part of a person's statement after "has"."""
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
    """The sentence with which the question states a fact."""
    return f"{fact.name} has {phrase(fact)} ."


@dataclass(frozen=True, slots=True)
class ProblemSpec:
    """The distribution that the problems of a suite or a data set are sampled from.

    Args:
        steps: smallest and largest number of relations on the chain.
        new_steps: smallest and largest number of steps that use one of `new_relations`; the others use old relations.
        new_relations: the new relations to choose from.
        distinct_new: smallest number of different relations among the new steps.
        names: the names to choose from.
        distractors: smallest and largest number of distractors.
        question_first: whether the question precedes the statements.
    """

    steps: tuple[int, int] = (2, 3)
    new_steps: tuple[int, int] = (0, 0)
    new_relations: tuple[str, ...] = NEW_RELATIONS
    distinct_new: int = 0
    names: tuple[str, ...] = NAMES
    distractors: tuple[int, int] = (0, 0)
    question_first: bool = False


def _next_fact(rng: random.Random, chain: list[Fact], name: str, relation: str) -> Fact | None:
    """Sample a fact that refers to the chain's last person by `relation`.

    Returns None if the relation needs a longer chain, or if the value is out of range or already on the chain.
    """
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
        earlier = rng.choice(chain[:-1])
        value = last.value + earlier.value if relation == "together" else last.value - earlier.value
        fact = Fact(name, value, relation, (last.name, earlier.name))
    chain_values = {member.value for member in chain}
    return fact if 1 <= fact.value <= MAX_VALUE and fact.value not in chain_values else None


def _chain(rng: random.Random, names: Sequence[str], relations: Sequence[str]) -> list[Fact] | None:
    """Sample a chain with the given names and relations; None if some step found no valid value in 20 attempts."""
    chain = [Fact(names[0], rng.randint(1, MAX_VALUE))]
    for name, relation in zip(names[1:], relations, strict=True):
        fact = next(filter(None, (_next_fact(rng, chain, name, relation) for _ in range(20))), None)
        if fact is None:
            return None
        chain.append(fact)
    return chain


def _distractor(rng: random.Random, chain: Sequence[Fact], name: str) -> Fact:
    """Sample a person that the chain does not refer to: a stated number, or an old relation to someone on the chain."""
    if rng.random() < 0.5:
        base = rng.choice(chain)
        for _ in range(20):
            fact = _next_fact(rng, [base], name, rng.choice(OLD_RELATIONS))
            if fact:
                return fact
    return Fact(name, rng.randint(1, MAX_VALUE))


def sample_problem(rng: random.Random, spec: ProblemSpec) -> Problem:
    """Sample one problem by rejection: relations and values are resampled until all values are in 1..MAX_VALUE.

    The number of new steps is sampled once and kept: chains with new steps are rejected more often, so resampling it
    would make them rare.
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
        distractors = [_distractor(rng, chain, name) for name in names[steps + 1 :]]
        statements = [*chain, *distractors]
        rng.shuffle(statements)
        return Problem(tuple(chain), tuple(statements), spec.question_first)


def sample_problems(seed: int | str, spec: ProblemSpec, n: int, exclude: Set[str] = frozenset()) -> list[Problem]:
    """Sample `n` problems with distinct questions, none of them in `exclude`."""
    rng = random.Random(f"dartune-lab-{seed}")
    problems: list[Problem] = []
    seen = set(exclude)
    while len(problems) < n:
        problem = sample_problem(rng, spec)
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
_QUERY = re.compile(r"How many does (\w+) have \?")


def _parse_statement(sentence: str) -> tuple[str, str, tuple[str, ...], int]:
    """Name, relation, references and amount of a statement."""
    name, _, rest = sentence.partition(" has ")
    for relation, pattern in _STATEMENTS:
        if match := re.fullmatch(pattern, rest):
            parts = match.groupdict()
            references = tuple(parts[key] for key in ("first", "second") if parts.get(key))
            return name, relation, references, int(parts.get("amount") or 0)
    raise ValueError(f"not a statement of the lab: {sentence!r}")


def parse_question(question: str) -> Problem:
    """Parse and solve a question; the inverse of `Problem.question`.

    Raises:
        ValueError: the text is not a question of the lab.
    """
    query = _QUERY.search(question)
    if query is None:
        raise ValueError(f"not a question of the lab: {question!r}")
    sentences = [part.strip() for part in _QUERY.sub("", question).split(" .") if part.strip()]
    stated = {
        name: (relation, references, amount) for name, relation, references, amount in map(_parse_statement, sentences)
    }
    facts: dict[str, Fact] = {}

    def solve(name: str, depth: int = 0) -> Fact:
        # A cycle of references would recurse endlessly; no chain is longer than the number of statements.
        if name not in stated or depth > len(stated):
            raise ValueError(f"{name} cannot be solved from {question!r}")
        if name not in facts:
            relation, references, amount = stated[name]
            terms = [solve(reference, depth + 1).value for reference in references]
            value = {
                "is": lambda: amount,
                "more": lambda: terms[0] + amount,
                "fewer": lambda: terms[0] - amount,
                "plus": lambda: terms[0] + amount,
                "minus": lambda: terms[0] - amount,
                "twice": lambda: 2 * terms[0],
                "together": lambda: terms[0] + terms[1],
                "less": lambda: terms[0] - terms[1],
            }[relation]()
            facts[name] = Fact(name, value, relation, references, 0 if relation == "is" else amount)
        return facts[name]

    solve(query[1])
    chain = _solution_order(facts, query[1])
    statements = tuple(solve(name) for name in stated)
    return Problem(tuple(chain), statements, question.startswith("How many"))


def _solution_order(facts: dict[str, Fact], queried: str) -> list[Fact]:
    """The facts that the queried person depends on, each after the facts that it refers to."""
    ordered: dict[str, Fact] = {}

    def visit(name: str) -> None:
        for reference in facts[name].references:
            visit(reference)
        ordered.setdefault(name, facts[name])

    visit(queried)
    return list(ordered.values())
