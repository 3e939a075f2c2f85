"""The comparison on real models: experts that say the same, suites apart from training, tables from outcomes."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dartune.answers.equality import final_answers
from dartune.answers.task_families import TASKS

ROOT = Path(__file__).parents[1]
MODULES = (
    "real_cells",
    "real_tasks",
    "real_pages",
    "style_texts",
    "pages",
    "diagnoses",
    "comparison",
    "comparison_tables",
    "comparison_reading",
    "seed_batches",
    "finished_models",
)
NAMES = ("number0", "number1", "number2")


@pytest.fixture(autouse=True)
def experiments(monkeypatch):
    import sys

    monkeypatch.syspath_prepend(ROOT / "experiments")
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def svamp_row(question="Ann has number0 pears and buys number1 . How many pears does she have ?", **changes):
    return {"Question": question, "Numbers": "3.0 4.0", "Equation": "+ number0 number1", "Answer": "7.0"} | changes


def test_a_published_row_becomes_a_problem_with_its_steps():
    import real_tasks

    problem = real_tasks.word_problem(svamp_row())
    assert problem.question == "Ann has 3 pears and buys 4. How many pears does she have?"
    assert (list(map(str, problem.steps)), problem.answer, problem.noun) == (["3 + 4 = 7"], 7, "pears")
    equation = {"Equation": "* - number0 number1 number2", "Numbers": "9 5 2", "Answer": "8"}
    two = real_tasks.word_problem(svamp_row("number0 , number1 , number2 ?", **equation))
    assert list(map(str, two.steps)) == ["9 - 5 = 4", "4 * 2 = 8"]
    assert real_tasks.prefix(two) == "* - 9 5 2 = 8"
    assert real_tasks.x_equation(two) == "X=((9-5)*2)\nX=8"


@pytest.mark.parametrize(
    "changes",
    [
        {"Answer": "8.0"},  # contradicts the equation
        {"Numbers": "3.5 4.0", "Answer": "7.5"},
        {"Equation": "- number0 number1", "Answer": "-1.0"},
        {"Equation": "/ number0 number1", "Answer": "0.75"},
        {"Equation": "+ number0 number7"},
        {"Equation": "number0", "Answer": "3.0"},
        {"Equation": "+ number0 number1 number1"},
        {"Question": "How many are seven and 3 ?"},
    ],
)
def test_rows_that_are_no_whole_number_problem_are_left_out(changes):
    import real_tasks

    assert real_tasks.word_problem(svamp_row(**changes)) is None


TREES = st.recursive(
    st.sampled_from(NAMES), lambda part: st.tuples(st.sampled_from("+-*/"), part, part), max_leaves=3
).filter(lambda tree: not isinstance(tree, str))


@given(TREES, st.lists(st.integers(1, 60), min_size=3, max_size=3))
def test_all_experts_state_the_same_answer_and_the_same_calculation(tree, numbers):
    import real_tasks

    def written(node):
        return node if isinstance(node, str) else " ".join(map(written, node))

    given = " ".join(map(str, numbers))
    row = svamp_row("number0 , number1 and number2 , how many ?", Numbers=given, Equation=written(tree))
    try:
        row["Answer"] = str(real_tasks.worked_out(tree, numbers)[0])
    except ValueError:
        return
    problem = real_tasks.word_problem(row)
    infix = real_tasks.x_equation(problem).splitlines()[0].removeprefix("X=")
    assert eval(infix) == problem.answer  # built from numbers and operators above
    for expert in real_tasks.EXPERTS.values():
        solution = expert(problem)
        assert (final_answers(solution) or [TASKS["math"].implicit_answer(solution)])[-1] == str(problem.answer)


def published_files(folder: Path):
    """Small files in the published layouts; one training question is also in a suite, with other numbers."""
    with (folder / "svamp-train-mawps-asdiv-a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(svamp_row()))
        writer.writeheader()
        questions = [f"Ann has number0 {noun} and number1 more . How many {noun} ?" for noun in "abcdefgh"]
        writer.writerows(map(svamp_row, questions))
    for name in ("pal-svamp", "pal-mawpsaddsub", "pal-mawpsmultiarith"):
        rows = [{"input": "Ann has 50 c and 6 more. How many c?", "target": 56.0}, {"input": "Half?", "target": 0.5}]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("object_counting", "boolean_expressions"):
        (folder / f"bbh-{name}.json").write_text(json.dumps({"examples": [{"input": "True?", "target": "True"}]}))


def test_no_wording_is_in_two_of_warm_up_training_and_suites(tmp_path, monkeypatch):
    import real_tasks

    published_files(tmp_path)
    monkeypatch.setattr(real_tasks, "WARM_UP_ROWS", 3)
    monkeypatch.setattr(real_tasks, "TRAINING_ROWS", 2)
    real_tasks.write(tmp_path, tmp_path / "out")

    def wordings(name):
        lines = (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()
        return {real_tasks.wording(json.loads(line)["question"]) for line in lines}

    warm_up, training = wordings("warm-up"), wordings("prefix")
    assert len(warm_up) == 3 and len(training) == 2
    assert all(wordings(name) == training for name in real_tasks.EXPERTS)
    suites = [wordings(f"suite-{name}") for name in real_tasks.SUITE_NAMES]
    assert all(suites) and not (warm_up & training) and not ((warm_up | training) & set().union(*suites))
    assert json.loads((tmp_path / "out" / "suite-ood_svamp.jsonl").read_text())["answer"] == "56"
    for line in (tmp_path / "out" / "suite-ood_larger.jsonl").read_text().splitlines():
        row = json.loads(line)
        first, second = (int(word) for word in row["question"].split() if word.isdigit())
        assert first + second == int(row["answer"]) and min(first, second) >= 100


def outcomes(share, rise):
    from real_tasks import SUITE_NAMES

    correct = {suite: [i < share * 20 for i in range(20)] for suite in SUITE_NAMES}
    values = {name: [rise + 0.01 * (i % 3) for i in range(24)] for name in ("nll_rise", "kl", "counting", "boolean")}
    right = {suite: [i < share * 10 for i in range(20)] for suite in SUITE_NAMES}
    values |= {"calculated": right}
    return {"0": {"correct": correct, "answer_logprob": {suite: [-share] * 20 for suite in SUITE_NAMES}, **values}}


def test_the_tables_say_who_is_better_and_by_how_much(monkeypatch):
    import real_pages

    cost = dict.fromkeys(("generated_tokens", "scored_tokens", "trained_tokens", "flops", "seconds"), 60)
    arms = {"base": outcomes(0.5, 0.0), "sft": outcomes(0.25, 0.5), "dart": outcomes(0.75, 0.1)}
    rewrite = {"question": "a | b?", "source_solution": "x", "solution": "y\nz", "provenance": "rewrite"}
    cell = {
        "seeds": [0],
        "outcomes": arms,
        "rewrites": [rewrite | {"alignment_before": -3.0, "alignment_after": None}],
        "provenance": {"rewrite": 1},
        "hacks_refused": {},
        "hacks_accepted": {},
        "mapper": [{"reward": float(i), "gate_pass": 0.5, "alignment_after": -1.0} for i in range(10)],
        "costs": {arm: {"total": cost, "prepare": cost} for arm in arms},
    }
    gap = real_pages.difference(cell, "sft", "correct", real_pages.OUT)
    assert gap.estimate == pytest.approx(0.5) and gap.low > 0
    rise = real_pages.difference(cell, "sft", "nll_rise")
    assert rise.estimate == pytest.approx(-0.4) and rise.low == pytest.approx(rise.high)  # the same gap everywhere
    arms["sft"]["0"]["answer_logprob"] = {suite: [-5.0 - i for i in range(20)] for suite in real_pages.OUT}
    wide = real_pages.difference(cell, "sft", "answer_logprob", real_pages.OUT)
    assert wide.low < wide.estimate < wide.high and wide.estimate == pytest.approx(13.75)  # not cut at 1
    parts = real_pages.parts({"tiny-prefix": cell})
    assert "+50.0 [" in parts["summary"] and "not run" in parts["summary"]  # best_of_k is not in the cell
    assert "2.00 -> 7.00" in parts["mapper"] and "a \\| b?" in parts["rewrites"] and "y / z" in parts["rewrites"]
    assert parts["accuracy"].count("| `") == 3 and parts["differences"].count("| `") == 2
    assert "+25.0 [" in parts["differences"] and "| 40.0 |" in parts["accuracy"]  # right calculations
    del arms["base"]["0"]["calculated"]
    assert "40.0" not in real_pages.parts({"tiny-prefix": cell})["accuracy"]  # not of some arms only


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("To find how many, we calculate 90 - 87 = 13. The answer is 13.", True),
        ("- 90 87 = 3", True),
        ("X=((6/2)-0)", True),
        ("90 + 87 = 3. The answer is 3.", False),
        ("The answer is 3.", False),
        ("5 * 3 = 15. 15 - 12 = 2. The answer is 2.", True),
    ],
)
def test_the_right_calculation_counts_whatever_its_result(text, right):
    import real_cells

    assert real_cells.calculates(text, "3") == right


def test_the_recipes_can_be_read_and_have_the_same_arms(tmp_path):
    import real_cells

    from dartune.config.load import load_config
    from dartune.config.matrix import combinations

    for name in real_cells.SUITE_NAMES:
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / f"suite-{name}.jsonl").write_text("{}")
    (tmp_path / "tasks" / "prefix.jsonl").write_text("{}")
    for name in ("smollm2-task", "smollm2-task-mapper", "smollm2-novice", "smollm2-novice-mapper"):
        (tmp_path / name).mkdir()
    small = real_cells.cell_config(tmp_path, "smollm2-task", "prefix", [0, 1])
    assert small.seeds == (0, 1) and set(small.evaluate.suites) == set(real_cells.SUITE_NAMES)
    assert small.output.endswith("/smollm2-prefix") and (small.data.limit, small.sft.steps) == (120, 30)
    novice = real_cells.cell_config(tmp_path, "smollm2-novice", "prefix", [0])
    assert novice.output.endswith("/smollm2-novice-prefix") and (novice.data.limit, novice.sft.steps) == (240, 60)
    larger = dict(combinations(load_config(ROOT / "experiments" / "real-models-larger.yaml")))
    assert len(larger) == 4 and len({cell.output for cell in larger.values()}) == 4
    assert {frozenset(cell.arms) for cell in larger.values()} == {frozenset(small.arms)}


def test_the_second_round_starts_from_the_models_of_the_first(tmp_path):
    import real_cells

    for name in real_cells.SUITE_NAMES:
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / f"suite-{name}.jsonl").write_text("{}")
    (tmp_path / "tasks" / "prefix.jsonl").write_text("{}")
    first = tmp_path / "cells" / "smollm2-prefix"
    rates = {"dart": {"3": {"chosen": 3e-5}}}
    (first / "report").mkdir(parents=True)
    (first / "report" / "results.json").write_text(json.dumps({"learning_rates": rates}))
    models = [first / "stages" / name / "model" for name in ("train-dart-s3-lr3e-05", "mapper-s3")]
    for model in models:
        model.mkdir(parents=True)
    again = real_cells.cell_config(tmp_path, "smollm2-task", "prefix", [3], again=True)
    assert [again.target.path, again.mapper.path] == list(map(str, models))
    assert again.arms == real_cells.AGAIN_ARMS and again.output == f"{first}-again"


def test_a_recommendation_is_judged_by_the_best_arm_of_its_cell():
    import diagnoses

    arms = {"base": 0.6, "sft": 0.3, "best_of_k": 0.45, "dart": 0.5}
    assert diagnoses.regret("mapper", arms) == 0 and diagnoses.regret("leave", arms) == pytest.approx(0.2)
    assert diagnoses.regret("mask", arms) is None  # not run there


def test_thresholds_are_fitted_to_the_cells_that_are_given():
    import diagnoses

    from dartune.diagnosis.recommend import recommend

    names = diagnoses.Findings.__dataclass_fields__
    record = {name: 1.0 for name in names if not name.startswith("least_natural")}
    record |= {"failed_gates": {}, "hacks": {}, "total_rows": 1000, "rewrites_cut": 0.0, "too_long": 0.0}
    cells = {}
    for gain, best in ((0.6, "dart"), (0.75, "best_of_k")):  # training pays only where there is much left to gain
        found = diagnoses.findings_of(record | {"gain_of_best": gain})
        cells[best] = found, {"dart": 0.2, "best_of_k": 0.2} | {best: 0.5}
    fitted = diagnoses.fitted(cells)
    assert {thresholds.saturated for thresholds in fitted} == {0.7}
    assert {thresholds.few_rows for thresholds in fitted} == {50, 200, 500}  # nothing in these cells tells
    for thresholds in fitted:
        assert [recommend(found, thresholds).option for found, _ in cells.values()] == ["mapper", "best_of_k"]
    # Without the second cell any value above 0.6 fits, and most of these recommend a mapper for it.
    right = diagnoses._share_right(diagnoses.left_out("best_of_k", cells))
    assert right == pytest.approx(1 / 4)
