"""The public names, and the alignment score on its own: the reward's own numbers."""

import subprocess
import sys

import pytest

import dartune
from dartune.errors import InputError
from dartune.lab.suites import demonstrate, demonstration_problems
from dartune.models.engine import Sample
from dartune.rewards.items import GateThresholds
from dartune.rewards.references import source_references
from dartune.rewards.reward import GatedReward

TARGET = "lab:backward"
PROBLEMS = demonstration_problems(8, 0, 16)
SOURCES, REWRITES = demonstrate(PROBLEMS, "values"), demonstrate(PROBLEMS, "backward")


@pytest.fixture(scope="module")
def target():
    return dartune.load_target(TARGET)


def test_scores_are_those_of_the_reward(target, checker):
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


def test_a_system_prompt_counts(target):
    row = REWRITES[0]
    other = dartune.load_target(TARGET, system_prompt="Kim has 3 .")
    assert dartune.score(row.question, row.solution, other) < dartune.score(row.question, row.solution, target)


def test_a_target_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        dartune.score("q", "s", tmp_path / "nowhere")
    with pytest.raises(InputError, match="the lab has no model"):
        dartune.score("q", "s", "lab:nobody")


@pytest.mark.slow
def test_importing_dartune_loads_no_model_library():
    """Nor does naming a recipe; in a process of its own, for here everything is loaded."""
    program = (
        "import sys, dartune; from dartune import load_config; heavy = {'torch', 'transformers', 'datasets'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "from dartune import pipeline, score; assert callable(pipeline.run) and callable(score)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_listed_and_others_are_refused():
    assert set(dartune.__all__) <= set(dir(dartune))
    assert all(getattr(dartune, name) for name in dartune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dartune.nothing
