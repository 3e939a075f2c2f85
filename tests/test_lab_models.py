"""The shipped lab models: targets solve old relations and not new ones, the initial mapper prefers no dialect."""

from collections import Counter
from functools import cache

import pytest

from dartune.data.chat_template import Renderer
from dartune.engines.base import SampleSpec
from dartune.engines.hf import HFEngine
from dartune.lab.build import CHECKPOINTS, MAPPER_PROMPT, MODELS, TARGETS
from dartune.lab.dialects import DIALECTS
from dartune.lab.measure import text_gates
from dartune.lab.source import model_folder
from dartune.lab.step_checker import check_solution
from dartune.lab.suites import DEMONSTRATIONS, suite, write_demonstrations
from dartune.lab.world import ProblemSpec, sample_problems
from dartune.models.loading import load_model, load_tokenizer


@cache
def loaded(name):
    folder = model_folder(f"lab:{name}")
    return HFEngine(load_model(folder)), Renderer(load_tokenizer(folder))


def verdicts(name, problems):
    engine, renderer = loaded(name)
    spec = SampleSpec(1, 160, 0.0, (renderer.end_id,), 0)
    samples = engine.generate([renderer.prompt_ids(problem.question) for problem in problems], spec)
    return [
        check_solution(renderer.decode(group[0].ids), problem) for group, problem in zip(samples, problems, strict=True)
    ]


def test_models_are_small_and_their_weights_are_safetensors():
    files = [path for name in MODELS for path in (CHECKPOINTS / name).iterdir()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja"}
    assert sum(path.stat().st_size for path in files) < 6e6


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["retention_short", "retention_long"])
def test_a_target_solves_old_relations_with_correct_steps_in_its_native_dialect(target, name):
    results = verdicts(target, suite(name, 64))
    assert sum(v.steps_correct for v in results) >= 0.95 * 64
    assert {v.dialect for v in results} == {target}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_does_not_solve_new_relations(target):
    results = verdicts(target, sample_problems("new", ProblemSpec(steps=(4, 4), new_steps=(1, 2)), 64))
    assert sum(v.steps_correct for v in results) <= 0.1 * 64


def test_the_initial_mapper_writes_every_dialect_and_prefers_none():
    engine, renderer = loaded("mapper")
    problems = sample_problems("start", DEMONSTRATIONS, 24)
    rows = write_demonstrations(problems, "values")
    prompts = [renderer.prompt_ids(MAPPER_PROMPT.format(question=r.question, solution=r.solution)) for r in rows]
    samples = engine.generate(prompts, SampleSpec(8, 160, 1.0, (renderer.end_id,), 0))
    results = [
        check_solution(renderer.decode(s.ids), p) for p, group in zip(problems, samples, strict=True) for s in group
    ]
    shares = {dialect: n / len(results) for dialect, n in Counter(v.dialect for v in results).items()}
    assert max(shares.values()) < 0.35
    assert sum(shares.get(dialect, 0) > 0.02 for dialect in DIALECTS) >= len(DIALECTS) - 1
    assert all(shares.get(target, 0) > 0.03 for target in TARGETS)


def test_the_measured_gates_accept_gold_rewrites_and_reject_bare_answers():
    rows = write_demonstrations(sample_problems("measured", DEMONSTRATIONS, 8), "values")
    gold = write_demonstrations(sample_problems("measured", DEMONSTRATIONS, 8), "backward")
    assert text_gates(rows, [[row.solution, f"The answer is {row.answer} ."] for row in gold]) == [True, False] * 8
