"""Dialects: styles in which the same solution is written. Each is a function from a problem to its solution text.

* `explicit`, `equations`: one computation per step.
* `verbose`: like `explicit`, and repeats the wording of the question.
* `backward`: first a plan from the person in question back to the stated value, then the computation.
* `recall`: first the statements needed, quoted from the question, then the computation.
* `values`: the values without computations; `skipping`: every second value; `nested`: a single expression.
* `bare`: the answer only. It is not a dialect: no lab model was trained on it.

The lab's models were pretrained on these texts, so a function's output must not change by a single character.
"""

from __future__ import annotations

from collections.abc import Callable

from dartune.lab.world import Fact, Problem, phrase

OPERATOR = {"more": "+", "fewer": "-", "plus": "+", "minus": "-", "twice": "+", "together": "+", "less": "-"}


def operands(fact: Fact) -> tuple[str, str]:
    """The two terms of a fact's sum: names, or a name and the stated amount."""
    if fact.relation == "twice":
        return fact.references[0], fact.references[0]
    if fact.references[1:]:
        return fact.references[0], fact.references[1]
    return fact.references[0], str(fact.amount)


def _sum(fact: Fact, substitutions: dict[str, str]) -> str:
    """The fact's sum as `a + b`, each name replaced by its entry in `substitutions`, if it has one."""
    left, right = (substitutions.get(term, term) for term in operands(fact))
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
    """The operation in the word order of the question: `- 8 on Ada`."""
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
    statements = [f"{fact.name} has {phrase(fact)} ," for fact in reversed(rest)]
    steps = [f"{fact.name} has {_sum(fact, values)} = {fact.value} ." for fact in rest]
    return " ".join([*statements, f"{first.name} has {first.value} .", *steps, _ending(problem)])


def values(problem: Problem) -> str:
    return " , ".join(str(fact.value) for fact in problem.chain) + f" . {_ending(problem)}"


def skipping(problem: Problem) -> str:
    chain = problem.chain
    shown = [fact for i, fact in enumerate(chain) if i % 2 == 0 or i == len(chain) - 1]
    return " ".join([*(f"{fact.name} has {fact.value} ." for fact in shown), _ending(problem)])


def nested(problem: Problem) -> str:
    first, *rest = problem.chain
    expressions = {first.name: str(first.value)}
    for fact in rest:
        expressions[fact.name] = f"( {_sum(fact, expressions)} )"
    last = problem.chain[-1]
    return f"{last.name} = {expressions[last.name]} = {last.value} . {_ending(problem)}"


def bare(problem: Problem) -> str:
    return _ending(problem)


DIALECTS: dict[str, Callable[[Problem], str]] = {
    function.__name__: function
    for function in (explicit, equations, verbose, backward, recall, values, skipping, nested)
}
EXPERTS = ("values", "skipping", "nested")
"""Dialects that omit steps, as terse expert demonstrations do."""
WRITERS = DIALECTS | {"bare": bare}
"""All styles in which demonstrations can be written."""
