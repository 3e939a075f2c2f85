"""Public names, and the alignment score without a run: it equals the number that the reward computes."""

import pytest

import dartune
from dartune.engines.base import Sample
from dartune.errors import InputError
from dartune.gates.gate_input import GateThresholds
from dartune.lab.suites import demonstration_problems, write_demonstrations
from dartune.rewards.references import source_references
from dartune.rewards.reward import GatedReward

TARGET = "lab:backward"
PROBLEMS = demonstration_problems(8, 0, 16)
SOURCES, REWRITES = write_demonstrations(PROBLEMS, "values"), write_demonstrations(PROBLEMS, "backward")


@pytest.fixture(scope="module")
def target():
    return dartune.load_target(TARGET)


def test_scores_equal_those_of_the_reward(target, checker):
    references = source_references(target.engine, target.renderer, SOURCES)
    reward = GatedReward(target.engine, target.renderer, checker, GateThresholds(), references)
    samples = [[Sample(tuple(target.renderer.response_ids(row.solution)), (), "stop")] for row in REWRITES]
    for source, rewrite, [scored] in zip(SOURCES, REWRITES, reward(SOURCES, samples), strict=True):
        before = dartune.score(source.question, source.solution, target)
        after = dartune.score(source.question, rewrite.solution, target)
        assert before == pytest.approx(references[source.id].source_alignment, abs=1e-4)
        assert after == pytest.approx(scored.alignment, abs=1e-4)
        assert before < after <= 0


def test_a_target_may_be_an_address(target):
    row = SOURCES[0]
    assert dartune.score(row.question, row.solution, TARGET) == pytest.approx(
        dartune.score(row.question, row.solution, target)
    )


def test_a_system_prompt_changes_the_score(target):
    row = REWRITES[0]
    other = dartune.load_target(TARGET, system_prompt="Kim has 3 .")
    assert dartune.score(row.question, row.solution, other) < dartune.score(row.question, row.solution, target)


def test_a_missing_target(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        dartune.score("q", "s", tmp_path / "nowhere")
    with pytest.raises(InputError, match="the lab has no model"):
        dartune.score("q", "s", "lab:nobody")


def test_public_names_are_listed_and_others_raise():
    assert set(dartune.__all__) <= set(dir(dartune))
    assert all(getattr(dartune, name) for name in dartune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dartune.nothing
