"""The arms: what each needs, tries and costs; all of them run on the lab, on the same questions."""

import json
from pathlib import Path

import pytest

from dartune.cli import main
from dartune.config.arm_checks import arm_problems
from dartune.config.arm_config import adapted_config, learning_rates, problems, samples_per_row
from dartune.config.arms import ADAPTATIONS, ARMS, Arm, adaptations, with_dependencies
from dartune.config.load import load_config
from dartune.config.schema import Config
from dartune.planning.work import Lengths, Sizes, WorkOfStages
from dartune.stages.finetune import select_by_gain

RECIPE = Path(__file__).parents[1] / "recipes" / "lab.yaml"


def config(**changes) -> Config:
    return load_config(RECIPE, {key.replace("__", "."): value for key, value in changes.items()})


def test_an_arm_comes_after_what_it_needs():
    assert with_dependencies(["grpo_tokens", "sft"]) == ["dart", "grpo_tokens", "sft"]
    assert with_dependencies(["base", "sft_tokens", "dart"]) == ["base", "dart", "sft_tokens"]
    assert with_dependencies(["dart_then_grpo"]) == ["dart", "dart_then_grpo"]
    assert adaptations(["base", "sft"]) == []
    assert adaptations(["grpo_seconds", "best_of_k"]) == ["dart", "best_of_k"]


def test_every_arm_trains_on_something_known():
    row_kinds = {None, "demonstrations", "own", "greedy", "gold", *ADAPTATIONS}
    assert {arm.rows for arm in ARMS.values()} == row_kinds
    assert [name for name, arm in ARMS.items() if not arm.trained] == ["base"]
    assert all(set(arm.needs) <= set(ARMS) for arm in ARMS.values())


def test_best_of_k_draws_as_many_rewrites_as_dart_does_in_training_and_synthesis():
    lab = config()  # 40 steps of 12 x 8 for 1,000 rows, and 4 each at synthesis
    assert samples_per_row(lab, 1000) == 4 + 4
    assert adapted_config(lab, "best_of_k", 1000).synthesise.samples == 8
    assert adapted_config(lab, "prompt_rewriter", 1000).synthesise.samples == 4
    assert samples_per_row(lab, 2) == 4 + 320  # no more questions a step than there are


def test_an_adaptation_changes_what_it_says_and_nothing_else():
    lab = config(target__other="lab:recall")
    assert adapted_config(lab, "dart", 10) == lab
    loose = adapted_config(lab, "no_anticheating", 10)
    assert loose.reward.gates == ("finished", "one_answer", "correct_answer")
    assert loose.model_copy(update={"reward": lab.reward}) == lab
    assert adapted_config(lab, "wrong_target", 10).target.path == "lab:recall"


def test_every_arm_tries_as_many_learning_rates():
    lab = config()
    tried = {arm: learning_rates(lab, arm) for arm in ARMS if ARMS[arm].trained}
    assert {len(grid) for grid in tried.values()} == {3}
    assert tried["sft"] == tried["dart"] == (3e-4, 6e-4, 1e-3)
    assert tried["sft_low_lr"] == pytest.approx((3e-5, 6e-5, 1e-4))


def test_arms_that_cannot_run_are_told_before_anything_does():
    lab = config(arms="[gold, wrong_target]")
    assert len(problems(lab, in_lab=False)) == 2
    assert problems(config(arms="[gold, wrong_target]", target__other="lab:recall"), in_lab=True) == []


def test_selection_takes_the_most_gain_within_its_share_and_no_originals():
    def row(name, before, after, tokens, provenance="rewrite"):
        return {"id": name, "alignment_before": before, "alignment_after": after, "ids": [0] * tokens} | {
            "provenance": provenance
        }

    rows = [
        row("low", -2, -1.9, 10),
        row("long", -9, -1, 40),
        row("best", -9, -1, 10),
        row("kept", -1, -1, 10, "original"),
    ]
    assert [one["id"] for one in select_by_gain(rows, 0.8)] == ["long", "best"]
    assert [one["id"] for one in select_by_gain(rows, 0.3)] == ["low", "best"]
    assert select_by_gain(rows, 0.1) == []
    # Gain counts per token as it is: twice as much in a long row is more than in ten short ones.
    rows = [row("long", -3, -1, 100), *(row(f"short {i}", -2, -1, 10) for i in range(10))]
    assert [one["id"] for one in select_by_gain(rows, 0.5)] == ["long"]


def test_direct_rl_without_answers_is_refused_before_anything_runs(tmp_path, capsys):
    rows = [{"question": f"Why {i}?", "solution": f"Because of {i} things."} for i in range(12)]
    data = tmp_path / "open.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    words = ["check", "--data", str(data), "--target", "lab:backward", "--arms", "[base, grpo_tokens]"]
    assert main(words) == 2
    assert "no training row has an answer" in capsys.readouterr().err


SMALL = {
    "data.limit": "24",
    "data.dev": "4",
    "mapper.steps": "1",
    "mapper.questions_per_step": "4",
    "mapper.group_size": "4",
    "synthesise.samples": "2",
    "reward.own_samples": "2",
    "sft.steps": "2",
    "sft.learning_rates": "[3e-4]",
    "direct_rl.learning_rates": "[1e-4]",
    "data.test": "4",
    "evaluate.samples": "2",
}


@pytest.mark.slow
def test_a_target_without_right_solutions_of_its_own_stays_as_it_is(tmp_path):
    cut = SMALL | {"reward.own_samples": "0", "mapper.max_new_tokens": "2"}  # every sample is cut, so none is right
    words = [word for key, value in cut.items() for word in (f"--{key}", value)]
    assert main(["run", str(RECIPE), "--arms", "[base, rft]", "--output", str(tmp_path / "run"), *words]) == 0
    results = json.loads((tmp_path / "run/report/results.json").read_text())
    cells = {(cell["arm"], cell["suite"]): cell["accuracy"] for cell in results["cells"]}
    assert all(cells["rft", suite] == cells["base", suite] for suite in (one["name"] for one in results["suites"]))
    assert results["costs"]["arms"]["rft"]["prepare"]["seconds"] > 0


@pytest.mark.slow
def test_all_arms_run_on_the_same_questions_and_bear_their_costs(tmp_path):
    words = [word for key, value in SMALL.items() for word in (f"--{key}", value)]
    arms = f"[{', '.join(ARMS)}]"
    assert main(["run", str(RECIPE), "--arms", arms, "--output", str(tmp_path / "run"), *words]) == 0
    results = json.loads((tmp_path / "run/report/results.json").read_text())
    assert results["arms"] == list(ARMS)
    assert {cell["n"] for cell in results["cells"]} == {4} and len(results["cells"]) == len(ARMS) * 8
    assert all(cell["pass_at_k"] >= cell["avg_at_k"] >= 0 for cell in results["cells"])
    assert list(results["adapted"]) == list(ADAPTATIONS)
    made = results["adapted"]["prompt_rewriter"]["0"]["accounting"]
    assert made["input"] == 24 and made["unaccounted"] == 0
    costs = results["costs"]["arms"]
    assert costs["sft"]["prepare"]["seconds"] == 0 < costs["dart"]["prepare"]["seconds"]
    assert costs["dart"]["total"]["flops"] > costs["prompt_rewriter"]["total"]["flops"] > costs["sft"]["total"]["flops"]
    # Before a run, its stages are known.
    sizes, lengths = Sizes(24, 4, 32), Lengths(30, 50, 12, 40, 40)
    planned = WorkOfStages(load_config(tmp_path / "run/config.resolved.yaml"), sizes, lengths, lambda work: 1.0)()
    assert set(planned) == set(results["costs"]["stages"]) - {"data"}
    # Direct RL goes on until it has generated what dart had, to the step.
    budget = sum(
        results["costs"]["stages"][stage]["generated_tokens"]
        for stage in ("probe", "mapper-s0", "synthesise-s0", "train-dart-s0-lr0.0003")
    )
    rows = [
        json.loads(line)
        for line in (tmp_path / "run/stages/train-grpo_tokens-s0-lr0.0001/metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["spent_tokens"] >= budget > (rows[-2]["spent_tokens"] if len(rows) > 1 else 0)
    assert "stop" in rows[-1]
    # What follows dart pays for dart.
    assert costs["dart_then_grpo"]["total"]["flops"] > costs["dart"]["total"]["flops"]


def test_the_document_lists_the_arms_as_the_code_has_them():
    text = (Path(__file__).parents[1] / "docs" / "comparison.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    assert {row[0].strip("`"): row[1] for row in rows} == {name: arm.description for name, arm in ARMS.items()}


@pytest.mark.parametrize(
    ("arm", "problem"),
    [
        (Arm("x", rows="demonstrations", start="base"), "start is 'base', which is not trained"),
        (Arm("x", rows="demonstrations", gains_as_much_as="base"), "gains_as_much_as is 'base', which is not trained"),
        (Arm("x", rows="demonstrations", trains_as_much_as="grpo_tokens"), "which is not trained on rows"),
        (Arm("x", rows="demonstrations", trains_as_much_as="sdft"), "which is not trained on rows"),
        (Arm("x"), "rows, budget or teacher must be set"),
        (Arm("x", rows="dart", share="half"), "share is 'half'"),
        (Arm(None, rows="dart"), "description is None"),
        (Arm("x", rows="dart", teacher="target"), "rows and teacher are set"),
        (Arm("x", rows="dart", share=0.0), "share is 0.0"),
        (Arm("x", rows="dart", select=2.0), "select is 2.0"),
        (Arm("x", budget="tokens", times=0), "times is 0"),
        (Arm("x", rows="dart", renewed=True), "renewed has no effect without a start"),
        (Arm("x", rows="dart", teacher_update=0.1), "teacher_update has no effect without a teacher"),
        (Arm("x", rows="demonstrations", augment=True), "augment has no effect without the rows of an adaptation"),
        (Arm("x", teacher="target", gains_as_much_as="dart"), "gains_as_much_as has no effect without rows"),
        (Arm("x", teacher="target", loss="dft"), "loss has no effect without rows"),
        (Arm("x", budget="tokens", low_rates=True), "low_rates has no effect without rows or a teacher"),
    ],
)
def test_an_arm_that_contradicts_itself_is_refused(arm, problem):
    (line,) = arm_problems(arm)
    assert problem in line


def test_every_built_in_arm_but_base_passes_the_checks_of_user_defined_ones():
    assert {name: arm_problems(arm) for name, arm in ARMS.items() if name != "base" and arm_problems(arm)} == {}


def test_a_moving_teacher_is_refused_with_lora_before_anything_runs(monkeypatch):
    monkeypatch.setitem(ARMS, "mine:ema", Arm("x", teacher="target", teacher_update=0.01))
    assert problems(config(arms="[base, mine:ema]"), in_lab=True) == []
    (problem,) = problems(config(arms="[base, mine:ema]", sft__lora_rank="4"), in_lab=True)
    assert "teacher_update needs training of all weights" in problem
    monkeypatch.setitem(ARMS, "mine:follow", Arm("x", teacher="mapper", teacher_update=0.01))
    (problem,) = problems(config(arms="[base, mine:follow]", mapper__lora_rank="4"), in_lab=True)
    assert "an adapter as the teacher cannot follow" in problem
