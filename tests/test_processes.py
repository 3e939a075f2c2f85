"""Two processes train, sample and score like one, with a replicated or a sharded model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fixtures_processes
from dartune import distributed
from dartune.cli import main
from dartune.errors import InputError
from dartune.run.files import read_jsonl

TESTS = Path(__file__).parent
METHODS = [method.__name__ for method in fixtures_processes.METHODS]


def launch(*command: str) -> subprocess.CompletedProcess:
    """Run `command` in two processes with torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(torchrun, capture_output=True, text=True, env=environment, timeout=300, check=False)


def results_of_two(folder: Path, sharding: str) -> Any:
    """Run fixtures_processes.py in two processes, and return what it wrote."""
    completed = launch(str(TESTS / "fixtures_processes.py"), sharding, str(folder))
    assert completed.returncode == 0, completed.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_process")
    fixtures_processes.main("ddp", folder)
    return folder, json.loads((folder / "results.json").read_text())


def assert_same(expected: dict, actual: dict) -> None:
    for method, weights in expected["weights"].items():
        for name, values in weights.items():
            torch.testing.assert_close(
                torch.tensor(actual["weights"][method][name]), torch.tensor(values), atol=2e-4, rtol=1e-3
            )
    assert actual["samples"] == expected["samples"] and actual["ranks"] == expected["ranks"]
    for actual_scores, expected_scores in zip(actual["scores"], expected["scores"], strict=True):
        assert actual_scores == pytest.approx(expected_scores, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_processes_give_the_results_of_one(sharding, one_process, tmp_path):
    folder, expected = one_process
    result = results_of_two(tmp_path, sharding)
    assert_same(expected, result)
    assert result["spent"] == expected["spent"]
    for part in METHODS:
        rows, expected_rows = (read_jsonl(path / part / "metrics.jsonl") for path in (tmp_path, folder))
        assert len(rows) == fixtures_processes.STEPS
        for row, expected_row in zip(rows, expected_rows, strict=True):
            assert dict(row.items()) == pytest.approx(expected_row, rel=2e-3, abs=1e-5)
    # A run that continues from the checkpoint at step 2 ends with the same weights.
    for part in METHODS:
        checkpoints = tmp_path / part / "checkpoints"
        assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000002", "step-000004"]
        shutil.rmtree(checkpoints / "step-000004")
    assert_same(result, results_of_two(tmp_path, sharding))


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """What each of two processes observes of its own state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as accelerate's launcher does
        return results_of_two(tmp_path_factory.mktemp("inspect"), "inspect")


@pytest.mark.slow
def test_a_process_group_can_be_entered_several_times(views):
    assert all(view["groups"] == [[0, 1], 1, [0, 1]] for view in views)


def test_gradients_are_reduced_once_per_step_and_the_models_stay_identical(views):
    assert all(view["reductions"] == [[False, False, False, True]] * 2 for view in views)
    assert views[0]["sums"] == views[1]["sums"]


def test_models_are_trained_in_the_dtype_of_the_config(views):
    assert not any(view["cast"] for view in views)


def test_a_sharded_model_is_gathered_unchanged(views):
    assert all(view["difference"] < 1e-5 and view["tied"] and view["trained"] for view in views)


def test_only_rank_0_holds_a_gathered_checkpoint(views):
    assert views[0]["held"] > views[1]["held"] == 0


def test_a_process_outside_a_group_does_not_shard(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert distributed.shard([1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5] and distributed.is_main()


LAB = """
data: {path: lab:values, limit: 24, dev: 4, test: 3}
target: {path: lab:backward}
mapper: {path: lab:mapper, prompt: "{question} Solution : {solution} Rewrite :", steps: 2, questions_per_step: 4,
         group_size: 4, learning_rate: 3e-4, max_new_tokens: 96}
reward: {own_samples: 1}
sft: {steps: 4, learning_rates: [1e-3]}
direct_rl: {learning_rates: [1e-4]}
evaluate: {max_new_tokens: 96}
arms: [dart, grpo_tokens]
"""


@pytest.mark.slow
def test_a_run_of_two_processes_has_the_results_of_a_run_of_one(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(LAB)
    command = ("-m", "dartune", "run", str(recipe), "--output")
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*command[2:], str(one)]) == 0
    completed = launch(*command, str(two))
    assert completed.returncode == 0, completed.stderr[-3000:]
    assert completed.stdout.count("index.html") == 1 and completed.stderr.count("mapper-s0: starts") == 1
    rows, expected_rows = (read_jsonl(folder / "stages" / "synthesise-s0" / "rows.jsonl") for folder in (two, one))
    assert [row["id"] for row in rows] == [row["id"] for row in expected_rows]
    same = [row["solution"] == other["solution"] for row, other in zip(rows, expected_rows, strict=True)]
    assert sum(row["provenance"] == "rewrite" for row in expected_rows) > 5 and sum(same) >= 0.9 * len(same)
    results, expected = (json.loads((folder / "report" / "results.json").read_text()) for folder in (two, one))
    for summary, other in zip(results["summaries"], expected["summaries"], strict=True):
        assert summary["arm"] == other["arm"] and summary["n"] == other["n"]
    tokens, expected_tokens = (report["costs"]["stages"]["probe"]["generated_tokens"] for report in (results, expected))
    assert tokens == expected_tokens
    assert {path.name for path in (two / "stages").iterdir()} == {path.name for path in (one / "stages").iterdir()}
    again = launch(*command, str(two))
    assert again.returncode == 0 and "starts" not in again.stderr and again.stderr.count("skipped") >= 7


@pytest.mark.parametrize("name", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_a_launcher_that_shards_models_itself_is_rejected(name, monkeypatch):
    monkeypatch.setenv(name, "true")
    with pytest.raises(InputError, match="execution.sharding: ddp or fsdp2"), distributed.process_group():
        pass
    monkeypatch.setenv(name, "false")
    with distributed.process_group():
        assert distributed.world_size() == 1


@pytest.mark.slow
def test_more_processes_than_rows_are_rejected_with_the_reason(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(LAB.replace("questions_per_step: 4", "questions_per_step: 1"))
    completed = launch("-m", "dartune", "run", str(recipe), "--output", str(tmp_path / "run"), "--arms", "[dart]")
    assert completed.returncode != 0 and "fewer rows than there are processes (2)" in completed.stderr
