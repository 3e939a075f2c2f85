"""The shipped lab models are what the lab promises of them: skilled in the old, new to the new, no preference."""

from collections import Counter
from functools import cache

import pytest

from dartune.data.render import Renderer
from dartune.lab.build import CHECKPOINTS, MAPPER_PROMPT, MODELS, TARGETS
from dartune.lab.checker import check
from dartune.lab.dialects import DIALECTS
from dartune.lab.measure import text_gates
from dartune.lab.source import model_folder
from dartune.lab.suites import DEMONSTRATIONS, demonstrate, suite
from dartune.lab.world import ProblemSpec, draw_many
from dartune.models.engine import SampleSpec
from dartune.models.hf_engine import HFEngine
from dartune.models.loading import load_model, load_tokenizer


@cache
def loaded(name):
    folder = model_folder(f"lab:{name}")
    return HFEngine(load_model(folder)), Renderer(load_tokenizer(folder))


def verdicts(name, problems):
    engine, renderer = loaded(name)
    spec = SampleSpec(1, 160, 0.0, (renderer.end_id,), 0)
    drawn = engine.generate([renderer.prompt_ids(problem.question) for problem in problems], spec)
    return [check(renderer.decode(group[0].ids), problem) for group, problem in zip(drawn, problems, strict=True)]


def test_models_are_small_and_nothing_but_safetensors_holds_weights():
    files = [path for name in MODELS for path in (CHECKPOINTS / name).iterdir()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja"}
    assert sum(path.stat().st_size for path in files) < 6e6


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["retention_short", "retention_long"])
def test_a_target_solves_the_old_by_right_steps_in_its_own_dialect(target, name):
    found = verdicts(target, suite(name, 64))
    assert sum(v.steps_correct for v in found) >= 0.95 * 64
    assert {v.dialect for v in found} == {target}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_has_not_learned_the_new(target):
    found = verdicts(target, draw_many("new", ProblemSpec(steps=(4, 4), new_steps=(1, 2)), 64))
    assert sum(v.steps_correct for v in found) <= 0.1 * 64


def test_the_mapper_start_writes_every_dialect_and_prefers_none():
    engine, renderer = loaded("mapper")
    problems = draw_many("start", DEMONSTRATIONS, 24)
    rows = demonstrate(problems, "values")
    prompts = [renderer.prompt_ids(MAPPER_PROMPT.format(question=r.question, solution=r.solution)) for r in rows]
    drawn = engine.generate(prompts, SampleSpec(8, 160, 1.0, (renderer.end_id,), 0))
    found = [check(renderer.decode(s.ids), p) for p, group in zip(problems, drawn, strict=True) for s in group]
    shares = {dialect: n / len(found) for dialect, n in Counter(v.dialect for v in found).items()}
    assert max(shares.values()) < 0.35
    assert sum(shares.get(dialect, 0) > 0.02 for dialect in DIALECTS) >= len(DIALECTS) - 1
    assert all(shares.get(target, 0) > 0.03 for target in TARGETS)


def test_the_gates_measured_for_the_mapper_start_tell_gold_rewrites_from_bare_answers():
    rows = demonstrate(draw_many("measured", DEMONSTRATIONS, 8), "values")
    gold = demonstrate(draw_many("measured", DEMONSTRATIONS, 8), "backward")
    assert text_gates(rows, [[own.solution, f"The answer is {own.answer} ."] for own in gold]) == [True, False] * 8
