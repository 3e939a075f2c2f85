"""Two processes train, sample and score as one does, with a copy of the model in each or spread over both."""

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
from dartune import processes
from dartune.cli import main
from dartune.errors import InputError
from dartune.files import read_jsonl

TESTS = Path(__file__).parent


def launch(*command: str) -> subprocess.CompletedProcess:
    """`command` in two processes, as torchrun starts them."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)


def found(folder: Path, sharding: str) -> Any:
    done = launch(str(TESTS / "fixtures_processes.py"), sharding, str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    fixtures_processes.main("ddp", folder)
    return folder, json.loads((folder / "found.json").read_text())


def assert_same(one: dict, other: dict) -> None:
    for how, weights in one["weights"].items():
        for name, values in weights.items():
            torch.testing.assert_close(
                torch.tensor(other["weights"][how][name]), torch.tensor(values), atol=2e-4, rtol=1e-3
            )
    assert other["samples"] == one["samples"] and other["ranks"] == one["ranks"]
    for row, expected in zip(other["scores"], one["scores"], strict=True):
        assert row == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_processes_do_what_one_does(sharding, alone, tmp_path):
    folder, expected = alone
    result = found(tmp_path, sharding)
    assert_same(expected, result)
    assert result["spent"] == expected["spent"]
    for part in ("learn_by_demonstration", "learn_by_reward"):
        rows, own = (read_jsonl(place / part / "metrics.jsonl") for place in (tmp_path, folder))
        assert len(rows) == fixtures_processes.STEPS
        for row, one in zip(rows, own, strict=True):
            assert dict(row.items()) == pytest.approx(one, rel=2e-3, abs=1e-5)
    # Continued from the checkpoint in the middle, they end with the same weights.
    for part in ("learn_by_demonstration", "learn_by_reward"):
        checkpoints = tmp_path / part / "checkpoints"
        assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000002", "step-000004"]
        shutil.rmtree(checkpoints / "step-000004")
    assert_same(result, found(tmp_path, sharding))


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as its launcher sets it
        return found(tmp_path_factory.mktemp("looks"), "looks")


@pytest.mark.slow
def test_processes_can_join_as_often_as_there_are_runs(looks):
    assert all(seen["joined"] == [[0, 1], 1, [0, 1]] for seen in looks)


def test_gradients_go_round_once_a_step_and_the_models_stay_alike(looks):
    assert all(seen["rounds"] == [[False, False, False, True]] * 2 for seen in looks)
    assert looks[0]["ends"] == looks[1]["ends"]


def test_models_are_trained_in_the_dtype_of_the_config(looks):
    assert not any(seen["cast"] for seen in looks)


def test_a_spread_model_is_gathered_as_it_was(looks):
    assert all(seen["far"] < 1e-5 and seen["tied"] and seen["trained"] for seen in looks)


def test_only_the_first_process_keeps_what_is_written(looks):
    assert looks[0]["kept"] > looks[1]["kept"] == 0


def test_a_process_of_its_own_takes_no_share(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert processes.share([1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5] and processes.is_first()


LAB = """
data: {path: lab:values, limit: 24, dev: 4}
target: {path: lab:backward}
mapper: {path: lab:mapper, prompt: "{question} Solution : {solution} Rewrite :", steps: 2, questions_per_step: 4,
         group_size: 4, learning_rate: 3e-4, max_new_tokens: 96, warmup_steps: 0}
reward: {own_samples: 1}
sft: {steps: 4, learning_rates: [1e-3]}
direct_rl: {questions_per_step: 4, group_size: 2, learning_rates: [1e-4], max_new_tokens: 64}
evaluate: {questions: 3, max_new_tokens: 96}
arms: [dart, grpo_tokens]
"""


@pytest.mark.slow
def test_a_run_of_two_processes_ends_as_that_of_one(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(LAB)
    command = ("-m", "dartune", "run", str(recipe), "--output")
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*command[2:], str(one)]) == 0
    done = launch(*command, str(two))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("index.html") == 1 and done.stderr.count("mapper-s0: starts") == 1
    rows, own = (read_jsonl(folder / "stages" / "synthesise-s0" / "rows.jsonl") for folder in (two, one))
    assert [row["id"] for row in rows] == [row["id"] for row in own]
    same = [row["solution"] == other["solution"] for row, other in zip(rows, own, strict=True)]
    assert sum(row["provenance"] == "rewrite" for row in own) > 5 and sum(same) >= 0.9 * len(same)
    results, expected = (json.loads((folder / "report" / "results.json").read_text()) for folder in (two, one))
    for part, other in zip(results["summaries"], expected["summaries"], strict=True):
        assert part["arm"] == other["arm"] and part["n"] == other["n"]
    spent, alone = (folder["costs"]["stages"]["probe"]["generated_tokens"] for folder in (results, expected))
    assert spent == alone
    assert {path.name for path in (two / "stages").iterdir()} == {path.name for path in (one / "stages").iterdir()}
    again = launch(*command, str(two))
    assert again.returncode == 0 and "starts" not in again.stderr and again.stderr.count("skipped") >= 7


@pytest.mark.parametrize("name", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_a_launcher_that_spreads_models_itself_is_refused(name, monkeypatch):
    monkeypatch.setenv(name, "true")
    with pytest.raises(InputError, match="execution.sharding: ddp or fsdp2"), processes.joined():
        pass
    monkeypatch.setenv(name, "false")
    with processes.joined():
        assert processes.count() == 1


@pytest.mark.slow
def test_more_processes_than_rows_are_refused_with_the_reason(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(LAB.replace("questions_per_step: 4", "questions_per_step: 1"))
    done = launch("-m", "dartune", "run", str(recipe), "--output", str(tmp_path / "run"), "--arms", "[dart]")
    assert done.returncode != 0 and "fewer rows than there are processes (2)" in done.stderr
