"""reasoning-gym tasks: rows without overlap between datasets, and scoring inside the sandbox."""

import json

import pytest
from reasoning_gym.factory import DATASETS

from dartune.answers import reasoning_gym
from dartune.answers.task_families import TASKS
from dartune.cli import main
from dartune.errors import InputError
from dartune.run.files import read_jsonl
from fixtures_models import save_tiny
from test_pipeline import arguments

GYM = TASKS["reasoning_gym"]
MADE_OF_OTHERS = {"composite"}
WITHOUT_ANSWERS = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
TAKES_ANYTHING = {"game_of_life_halting"}
"""Its scoring function reads every text that is not `True` as `False`."""


@pytest.mark.slow
def test_every_task_generates_and_scores_rows(checker):
    pairs, expected = [], []
    for name in sorted(set(DATASETS) - MADE_OF_OTHERS):
        (row,) = reasoning_gym.rows(f"gym:{name}:1", 3, to_learn=False)
        (stated,) = GYM.stated(row.solution)
        assert row.task == "reasoning_gym" and reasoning_gym.INSTRUCTION in row.question
        pairs += [(stated.text, row.answer), ("certainly not this", row.answer)]
        expected += [name not in WITHOUT_ANSWERS, name in TAKES_ANYTHING]
    verdicts = checker.check(pairs, GYM)
    scored = zip(pairs, verdicts, expected, strict=True)
    wrong = [json.loads(gold)[0] for (_, gold), verdict, due in scored if verdict != due]
    assert set(wrong) <= TAKES_ANYTHING, "this task also accepts a wrong text, if the answer is False"


def test_datasets_of_a_run_share_no_item():
    parts = [reasoning_gym.rows("gym:number_sorting:300", part, to_learn=True) for part in (0, 1, 2)]
    questions = [{row.question for row in rows} for rows in parts]
    assert not questions[0] & questions[1] and not questions[0] & questions[2] and not questions[1] & questions[2]
    assert len({row.id for rows in parts for row in rows}) == 900
    assert [row.question for row in reasoning_gym.rows("gym:number_sorting:5", 1, to_learn=True)] == [
        row.question for row in parts[1][:5]
    ]


def test_settings_reach_the_task():
    rows = reasoning_gym.rows("gym:chain_sum:20:min_terms=2,max_terms=2", 0, to_learn=True)
    assert all(row.question.count("+") + row.question.count("-") <= 3 for row in rows)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gym:", "must be gym:<task>"),
        ("gym:chain_sum:many", "must be gym:<task>"),
        ("gym:chain_sum:0", "must be gym:<task>"),
        ("gym:chain_sum:9999999", "at most 1,000,000 rows"),
        ("gym:chain_sum:5:max_terms", "settings are written"),
        ("gym:no_such_task", "has no task 'no_such_task'"),
        ("gym:chain_sum:5:no_such=1", "does not take the settings"),
        ("gym:chain_sum:5:max_terms=-4", "does not take the settings"),
        ("gym:rubiks_cube:2", "cannot be learned from"),
    ],
)
def test_invalid_address_is_explained(address, message):
    with pytest.raises(InputError, match=message):
        reasoning_gym.rows(address, 0, to_learn=True)


@pytest.mark.slow
def test_hostile_answers_are_contained(checker, tmp_path):
    """Some scoring functions evaluate their input as Python."""
    (row,) = reasoning_gym.rows("gym:polynomial_multiplication:1", 0, to_learn=True)
    victim = tmp_path / "written"
    hostile = f"__import__('pathlib').Path({str(victim)!r}).write_text('x')"
    endless = "9**9**9**9"
    assert checker.check([(hostile, row.answer), (endless, row.answer)], GYM) == [False, False]
    assert not victim.exists()


@pytest.mark.slow
def test_run_on_gym_tasks(tmp_path):
    target = save_tiny(tmp_path / "target", "llama", context=2048)
    suite = "--evaluate.suites={sums: 'gym:chain_sum:6'}"
    assert main(arguments("gym:leg_counting:30", target, tmp_path / "run", suite)) == 0
    stages = tmp_path / "run" / "stages"
    tested = read_jsonl(stages / "evaluate-base" / "records.jsonl")
    assert {row["suite"] for row in tested} == {"in_distribution", "sums"}
    assert all(row["correct"] is False for row in tested), "an untrained model has no right answer"
    assert len(read_jsonl(stages / "synthesise-s0" / "rows.jsonl")) == len(read_jsonl(stages / "data" / "train.jsonl"))
