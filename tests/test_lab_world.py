"""The lab's world and checker: questions, dialects and verdicts agree; wrong steps are seen."""

import itertools
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartune.config import load_config
from dartune.lab.build import MAPPER_PROMPT, TARGETS, mapper_problem, target_example
from dartune.lab.checker import check, dialect_of
from dartune.lab.dialects import DIALECTS, EXPERTS
from dartune.lab.suites import SUITES, demonstration_problems, suite, suite_questions
from dartune.lab.tokenizer import vocabulary
from dartune.lab.world import (
    DEMONSTRATION_NAMES,
    NAMES,
    NEW_RELATIONS,
    Fact,
    Problem,
    ProblemSpec,
    draw,
    draw_many,
    parse_question,
    statement,
)

NAME = r"[A-Z][a-z]+"
SPEC = ProblemSpec(steps=(1, 6), new_steps=(0, 3), distractors=(0, 2))
seeds = st.integers(0, 10**9)


def problem_of(seed: int, spec: ProblemSpec = SPEC) -> Problem:
    return draw(random.Random(seed), spec)


@given(seeds)
@settings(max_examples=200)
def test_a_question_can_be_read_back(seed):
    problem = problem_of(seed)
    assert parse_question(problem.question) == problem


@given(seeds)
@settings(max_examples=200)
def test_a_relation_to_two_persons_names_the_one_before_first(seed):
    chain = problem_of(seed).chain
    for before, fact in itertools.pairwise(chain):
        assert fact.references[0] == before.name
        assert set(fact.references[1:]) <= {earlier.name for earlier in chain} - {before.name, fact.name}


def test_half_of_the_demonstrations_ask_for_something_new_and_every_new_suite_does():
    asks = [any(f.relation in NEW_RELATIONS for f in p.chain) for p in demonstration_problems(1000, 0, 128)]
    assert 0.45 < sum(asks) / len(asks) < 0.55
    for name in SUITES:
        expected = {"in_distribution": {True, False}, "retention_short": {False}, "retention_long": {False}}
        found = {any(f.relation in NEW_RELATIONS for f in p.chain) for p in suite(name, 64)}
        assert found == expected.get(name, {True})


@given(seeds, st.sampled_from(sorted(DIALECTS)))
@settings(max_examples=300)
def test_the_checker_reads_every_dialect_and_finds_it_right(seed, dialect):
    problem = problem_of(seed)
    verdict = check(DIALECTS[dialect](problem), problem)
    assert verdict.dialect == dialect
    assert verdict.answer_correct and verdict.steps_correct
    assert verdict.names_correct is (None if dialect == "values" else True)


@given(seeds, st.sampled_from(["explicit", "equations", "verbose", "backward", "recall", "values"]))
@settings(max_examples=200)
def test_one_silent_wrong_value_is_seen(seed, dialect):
    problem = problem_of(seed, ProblemSpec(steps=(2, 4), new_steps=(0, 2)))
    middle = problem.chain[1]
    wrong = middle.value % 24 + 1
    altered = Problem(
        tuple(Fact(f.name, wrong, f.relation, f.references, f.amount) if f is middle else f for f in problem.chain),
        problem.statements,
    )
    verdict = check(DIALECTS[dialect](altered), problem)
    assert verdict.answer_correct and not verdict.steps_correct


@pytest.mark.parametrize("dialect", ["explicit", "equations", "verbose", "backward", "recall"])
def test_a_wrong_name_is_seen(dialect):
    problem = problem_of(7, ProblemSpec(steps=(3, 3)))
    first, second = problem.chain[0].name, problem.chain[1].name
    swapped = re.sub(
        rf"\b({first}|{second})\b", lambda m: second if m[1] == first else first, DIALECTS[dialect](problem)
    )
    verdict = check(swapped, problem)
    assert verdict.answer_correct and verdict.names_correct is False and not verdict.steps_correct


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is",
        "garbage",
        "The answer is 5 .",
        "Max has",
        "12 , . The answer is 3 .",
        "( ) = 3 . The answer is 3 .",
    ],
)
def test_what_no_grammar_reads_has_no_dialect_and_no_right_steps(text):
    verdict = check(text, problem_of(1))
    assert verdict.dialect is None and not verdict.steps_correct


def test_a_step_may_not_use_what_is_not_established():
    problem = parse_question(
        "Ben has 3 more than Ada . Cora has 2 more than Ben . Ada has 4 . How many does Cora have ?"
    )
    early = "Ada has 4 . Cora has 7 + 2 = 9 . Ben has 4 + 3 = 7 . The answer is 9 ."
    assert dialect_of(early) == "explicit"
    assert not check(early, problem).steps_correct
    assert check("Ada has 4 . Ben has 4 + 3 = 7 . Cora has 7 + 2 = 9 . The answer is 9 .", problem).steps_correct


def test_statements_are_shuffled_so_that_position_does_not_solve_a_question():
    problems = draw_many(0, ProblemSpec(steps=(3, 3)), 300)
    in_order = sum(problem.statements == problem.chain for problem in problems)
    assert in_order < 300 * 0.12  # 1 in 24 by chance


def test_a_targets_pretraining_never_shows_a_new_relation_or_another_dialect():
    rng = random.Random(0)
    for _ in range(500):
        question, solution = target_example(rng, "backward")
        told = [fact.relation for fact in parse_question(question).statements] if "How many" in question else []
        assert not set(told) & set(NEW_RELATIONS)
        assert not re.search(rf"twice|less {NAME}|and {NAME} together", f"{question} {solution}")
        assert dialect_of(solution) == "backward" or "How many" not in question


def test_demonstrations_share_no_question_with_any_suite():
    tested = suite_questions(64)
    problems = demonstration_problems(300, 0, 64)
    assert not tested & {problem.question for problem in problems}
    assert len({problem.question for problem in problems}) == 300
    used = {fact.name for problem in problems for fact in problem.chain}
    assert used <= set(DEMONSTRATION_NAMES)


def test_suites_are_what_their_names_say():
    for name in SUITES:
        for problem in suite(name, 40):
            new = {fact.relation for fact in problem.chain} & set(NEW_RELATIONS)
            names = {fact.name for fact in problem.statements}
            if name.startswith("retention"):
                assert not new
            if name == "ood_length":
                assert problem.steps >= 4 and new
            if name == "ood_composition":
                assert len(new) >= 2
            if name == "ood_names":
                assert not names & set(DEMONSTRATION_NAMES)
            if name == "ood_distractors":
                assert len(problem.statements) > len(problem.chain)
            if name == "format_shift":
                assert problem.question.startswith("How many")


def test_the_vocabulary_covers_everything_the_world_can_say():
    words = set(vocabulary())
    rng = random.Random(3)
    for _ in range(300):
        problem = mapper_problem(rng)
        for text in (problem.question, *(write(problem) for write in DIALECTS.values())):
            assert set(text.split()) <= words


def test_experts_that_skip_are_read_and_leave_out_a_value():
    problem = problem_of(11, ProblemSpec(steps=(4, 4)))
    assert set(EXPERTS) <= set(DIALECTS)
    told = DIALECTS["skipping"](problem)
    assert f"{problem.chain[1].name} has" not in told and f"{problem.chain[2].name} has" in told


def test_a_text_that_is_no_question_is_refused():
    for text in (
        "",
        "Max has 3 .",
        "How many does Ned have ?",
        statement(Fact("Ada", 3)) + " How many does Ned have ?",
    ):
        with pytest.raises(ValueError):
            parse_question(text)
    assert len(NAMES) == len(set(NAMES))


def test_the_recipe_asks_the_mapper_in_the_words_it_was_pretrained_with():
    recipe = load_config(Path(__file__).parents[1] / "recipes" / "lab.yaml")
    assert recipe.mapper.prompt == MAPPER_PROMPT
    assert recipe.target.path.removeprefix("lab:") in TARGETS
