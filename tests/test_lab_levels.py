"""Levels of the lab: the level of the shipped models is unchanged, the harder one has its own address."""

import hashlib
import random

import pytest

from dartune.config.load import load_config
from dartune.errors import InputError
from dartune.lab import source
from dartune.lab.build import mapper_example, target_example
from dartune.lab.suites import DEEP, LEVELS, PLAIN, SUITES, demonstration_problems, suite
from dartune.lab.world import NEW_RELATIONS
from dartune.stages.data import read

SHIPPED_EXAMPLES = "1a3fcfd3e53d7d9e4d4f9b4d797d5f21d6cab12c351d832095b0cf414916372e"
SHIPPED_QUESTIONS = "10341dc2c0a1ed65ed6edd8396761c3a74edd58b531cf3f12d0bf59457248f74"


def digest(value) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def test_the_texts_of_the_shipped_models_are_unchanged():
    rng = random.Random("recipe")
    examples = [[target_example(rng, "backward"), mapper_example(rng, "mapper")] for _ in range(200)]
    assert digest(examples) == SHIPPED_EXAMPLES
    questions = [[problem.question for problem in suite(name, 20)] for name in SUITES]
    questions.append([problem.question for problem in demonstration_problems(50, 0, 20)])
    assert digest(questions) == SHIPPED_QUESTIONS


def test_the_levels_have_the_same_suites_and_deep_has_longer_chains():
    assert set(DEEP.suites) == set(PLAIN.suites)
    for name in SUITES:
        plain, deep = ([problem.steps for problem in suite(name, 64, level)] for level in (PLAIN, DEEP))
        assert sum(deep) > sum(plain) and max(deep) <= DEEP.taught.steps[1]
    for name in ("retention_short", "retention_long"):
        assert not any(fact.relation in NEW_RELATIONS for problem in suite(name, 64, DEEP) for fact in problem.chain)


def test_the_address_selects_the_level():
    train, dev, suites = source.data("lab:deep/values", 40, 8, 16)
    assert len(train) == 40 and len(dev) == 8
    suite_questions = {row.question for rows in suites.values() for row in rows}
    assert not suite_questions & {row.question for row in (*train, *dev)}
    assert [row.question for row in suites["ood_length"]] == [p.question for p in suite("ood_length", 16, DEEP)]
    assert source.data("lab:plain/values", 4, 1, 2) == source.data("lab:values", 4, 1, 2)


def test_an_unknown_level_is_reported():
    with pytest.raises(InputError, match=f"no level 'steep'; available: {', '.join(LEVELS)}"):
        source.data("lab:steep/values", 4, 1, 2)


def test_the_number_of_questions_per_suite_is_data_test():
    settings = {"data": "lab:values", "target": "lab:backward", "data.limit": "4", "data.dev": "2"}
    suites = read(load_config(None, settings | {"data.test": "3"})).suites
    assert suites and {len(rows) for rows in suites.values()} == {3}
    with pytest.raises(InputError, match="data.test is 0, but it is the number of questions per suite"):
        read(load_config(None, settings | {"data.test": "0"}))
