"""Dialects: ways to write the same solution. Each is one function from a problem to text.

`explicit` and `equations` compute step by step, `verbose` repeats the question's words,
`backward` plans from the asked person and then computes, `recall` first retells what is told of
each person on the way; `values` gives values but no steps,
`skipping` every second value, `nested` one expression. `bare`, only the answer, is no dialect:
no model of the lab has seen it.
"""

from __future__ import annotations

from collections.abc import Callable

from dartune.lab.world import Fact, Problem, phrase

OPERATOR = {"more": "+", "fewer": "-", "plus": "+", "minus": "-", "twice": "+", "together": "+", "less": "-"}


def operands(fact: Fact) -> tuple[str, str]:
    """The two terms of a fact's sum, as names or the stated amount."""
    if fact.relation == "twice":
        return fact.references[0], fact.references[0]
    if fact.references[1:]:
        return fact.references[0], fact.references[1]
    return fact.references[0], str(fact.amount)


def _sum(fact: Fact, written: dict[str, str]) -> str:
    """`a + b` with each name replaced by what `written` says of it."""
    left, right = (written.get(term, term) for term in operands(fact))
    return f"{left} {OPERATOR[fact.relation]} {right}"


def _values(problem: Problem) -> dict[str, str]:
    return {fact.name: str(fact.value) for fact in problem.chain}


def _ending(problem: Problem) -> str:
    return f"The answer is {problem.answer} ."


def explicit(problem: Problem) -> str:
    first, *rest = problem.chain
    values = _values(problem)
    steps = [f"{fact.name} has {_sum(fact, values)} = {fact.value} ." for fact in rest]
    return " ".join([f"{first.name} has {first.value} .", *steps, _ending(problem)])


def equations(problem: Problem) -> str:
    first, *rest = problem.chain
    values = _values(problem)
    steps = [f"{fact.name} = {_sum(fact, {})} = {_sum(fact, values)} = {fact.value} ;" for fact in rest]
    return " ".join([f"{first.name} = {first.value} ;", *steps, _ending(problem)])


def verbose(problem: Problem) -> str:
    first, *rest = problem.chain
    values = _values(problem)
    steps = [
        f"Next , {fact.name} has {phrase(fact)} , so {fact.name} has {_sum(fact, values)} = {fact.value} ."
        for fact in rest
    ]
    return " ".join([f"First , we know that {first.name} has {first.value} .", *steps, _ending(problem)])


def _plan(fact: Fact) -> str:
    """What to do to whom, in the order in which the question says it: `- 8 on Ada`."""
    left, right = operands(fact)
    return f"{OPERATOR[fact.relation]} {right} on {left}"


def backward(problem: Problem) -> str:
    first, *rest = problem.chain
    values = _values(problem)
    plan = [f"need {fact.name} : {_plan(fact)} ," for fact in reversed(rest)]
    steps = [f"{fact.name} is {_sum(fact, values)} = {fact.value} ," for fact in rest]
    return " ".join([*plan, f"{first.name} is {first.value} ,", *steps, _ending(problem)])


def recall(problem: Problem) -> str:
    first, *rest = problem.chain
    values = _values(problem)
    told = [f"{fact.name} has {phrase(fact)} ," for fact in reversed(rest)]
    steps = [f"{fact.name} has {_sum(fact, values)} = {fact.value} ." for fact in rest]
    return " ".join([*told, f"{first.name} has {first.value} .", *steps, _ending(problem)])


def values(problem: Problem) -> str:
    return " , ".join(str(fact.value) for fact in problem.chain) + f" . {_ending(problem)}"


def skipping(problem: Problem) -> str:
    chain = problem.chain
    kept = [fact for i, fact in enumerate(chain) if i % 2 == 0 or i == len(chain) - 1]
    return " ".join([*(f"{fact.name} has {fact.value} ." for fact in kept), _ending(problem)])


def nested(problem: Problem) -> str:
    first, *rest = problem.chain
    written = {first.name: str(first.value)}
    for fact in rest:
        written[fact.name] = f"( {_sum(fact, written)} )"
    last = problem.chain[-1]
    return f"{last.name} = {written[last.name]} = {last.value} . {_ending(problem)}"


def bare(problem: Problem) -> str:
    return _ending(problem)


DIALECTS: dict[str, Callable[[Problem], str]] = {
    function.__name__: function
    for function in (explicit, equations, verbose, backward, recall, values, skipping, nested)
}
EXPERTS = ("values", "skipping", "nested")
WRITERS = DIALECTS | {"bare": bare}
"""Every way of demonstrating."""
