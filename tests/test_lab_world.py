"""The lab's problems and step checker: questions, dialects and verdicts agree; wrong steps are detected."""

import itertools
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartune.config.load import load_config
from dartune.lab.build import MAPPER_PROMPT, TARGETS, mapper_problem, target_example
from dartune.lab.dialects import DIALECTS, EXPERTS
from dartune.lab.step_checker import check_solution, dialect_of
from dartune.lab.suites import SUITES, demonstration_problems, suite, suite_questions
from dartune.lab.tokenizer import vocabulary
from dartune.lab.world import (
    DEMONSTRATION_NAMES,
    NAMES,
    NEW_RELATIONS,
    Fact,
    Problem,
    ProblemSpec,
    parse_question,
    sample_problem,
    sample_problems,
    statement,
)

NAME = r"[A-Z][a-z]+"
SPEC = ProblemSpec(steps=(1, 6), new_steps=(0, 3), distractors=(0, 2))
seeds = st.integers(0, 10**9)


def problem_of(seed: int, spec: ProblemSpec = SPEC) -> Problem:
    return sample_problem(random.Random(seed), spec)


@given(seeds)
@settings(max_examples=200)
def test_parsing_inverts_the_question(seed):
    problem = problem_of(seed)
    assert parse_question(problem.question) == problem


@given(seeds)
@settings(max_examples=200)
def test_a_relation_to_two_persons_names_the_previous_person_first(seed):
    chain = problem_of(seed).chain
    for before, fact in itertools.pairwise(chain):
        assert fact.references[0] == before.name
        assert set(fact.references[1:]) <= {earlier.name for earlier in chain} - {before.name, fact.name}


def test_half_of_the_demonstrations_and_all_new_suites_use_new_relations():
    uses_new = [any(f.relation in NEW_RELATIONS for f in p.chain) for p in demonstration_problems(1000, 0, 128)]
    assert 0.45 < sum(uses_new) / len(uses_new) < 0.55
    for name in SUITES:
        expected = {"in_distribution": {True, False}, "retention_short": {False}, "retention_long": {False}}
        observed = {any(f.relation in NEW_RELATIONS for f in p.chain) for p in suite(name, 64)}
        assert observed == expected.get(name, {True})


@given(seeds, st.sampled_from(sorted(DIALECTS)))
@settings(max_examples=300)
def test_the_checker_accepts_every_dialect(seed, dialect):
    problem = problem_of(seed)
    verdict = check_solution(DIALECTS[dialect](problem), problem)
    assert verdict.dialect == dialect
    assert verdict.answer_correct and verdict.steps_correct
    assert verdict.names_correct is (None if dialect == "values" else True)


@given(seeds, st.sampled_from(["explicit", "equations", "verbose", "backward", "recall", "values"]))
@settings(max_examples=200)
def test_a_single_wrong_value_is_detected(seed, dialect):
    problem = problem_of(seed, ProblemSpec(steps=(2, 4), new_steps=(0, 2)))
    middle = problem.chain[1]
    wrong = middle.value % 24 + 1
    altered = Problem(
        tuple(Fact(f.name, wrong, f.relation, f.references, f.amount) if f is middle else f for f in problem.chain),
        problem.statements,
    )
    verdict = check_solution(DIALECTS[dialect](altered), problem)
    assert verdict.answer_correct and not verdict.steps_correct


@pytest.mark.parametrize("dialect", ["explicit", "equations", "verbose", "backward", "recall"])
def test_a_wrong_name_is_detected(dialect):
    problem = problem_of(7, ProblemSpec(steps=(3, 3)))
    first, second = problem.chain[0].name, problem.chain[1].name
    swapped = re.sub(
        rf"\b({first}|{second})\b", lambda m: second if m[1] == first else first, DIALECTS[dialect](problem)
    )
    verdict = check_solution(swapped, problem)
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
def test_a_text_that_no_grammar_accepts_has_no_dialect_and_no_correct_steps(text):
    verdict = check_solution(text, problem_of(1))
    assert verdict.dialect is None and not verdict.steps_correct


def test_a_step_must_not_use_an_underived_value():
    problem = parse_question(
        "Ben has 3 more than Ada . Cora has 2 more than Ben . Ada has 4 . How many does Cora have ?"
    )
    premature = "Ada has 4 . Cora has 7 + 2 = 9 . Ben has 4 + 3 = 7 . The answer is 9 ."
    assert dialect_of(premature) == "explicit"
    assert not check_solution(premature, problem).steps_correct
    assert check_solution(
        "Ada has 4 . Ben has 4 + 3 = 7 . Cora has 7 + 2 = 9 . The answer is 9 .", problem
    ).steps_correct


def test_statements_are_shuffled():
    problems = sample_problems(0, ProblemSpec(steps=(3, 3)), 300)
    in_order = sum(problem.statements == problem.chain for problem in problems)
    assert in_order < 300 * 0.12  # 1 in 24 by chance


def test_pretraining_of_a_target_has_no_new_relation_and_no_other_dialect():
    rng = random.Random(0)
    for _ in range(500):
        question, solution = target_example(rng, "backward")
        relations = [fact.relation for fact in parse_question(question).statements] if "How many" in question else []
        assert not set(relations) & set(NEW_RELATIONS)
        assert not re.search(rf"twice|less {NAME}|and {NAME} together", f"{question} {solution}")
        assert dialect_of(solution) == "backward" or "How many" not in question


def test_demonstrations_share_no_question_with_any_suite():
    tested = suite_questions(64)
    problems = demonstration_problems(300, 0, 64)
    assert not tested & {problem.question for problem in problems}
    assert len({problem.question for problem in problems}) == 300
    names = {fact.name for problem in problems for fact in problem.chain}
    assert names <= set(DEMONSTRATION_NAMES)


def test_suites_match_their_names():
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


def test_the_vocabulary_covers_all_questions_and_solutions():
    words = set(vocabulary())
    rng = random.Random(3)
    for _ in range(300):
        problem = mapper_problem(rng)
        for text in (problem.question, *(write(problem) for write in DIALECTS.values())):
            assert set(text.split()) <= words


def test_skipping_leaves_out_every_second_value():
    problem = problem_of(11, ProblemSpec(steps=(4, 4)))
    assert set(EXPERTS) <= set(DIALECTS)
    solution = DIALECTS["skipping"](problem)
    assert f"{problem.chain[1].name} has" not in solution and f"{problem.chain[2].name} has" in solution


def test_a_text_that_is_not_a_question_is_rejected():
    for text in (
        "",
        "Max has 3 .",
        "How many does Ned have ?",
        statement(Fact("Ada", 3)) + " How many does Ned have ?",
    ):
        with pytest.raises(ValueError):
            parse_question(text)
    assert len(NAMES) == len(set(NAMES))


def test_the_recipe_has_the_prompt_that_the_mapper_was_pretrained_with():
    recipe = load_config(Path(__file__).parents[1] / "recipes" / "lab.yaml")
    assert recipe.mapper.prompt == MAPPER_PROMPT
    assert recipe.target.path.removeprefix("lab:") in TARGETS
