"""The reward in a stock TRL trainer: the same numbers as dartune's own, and the example runs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from dartune.data.records import Demonstration
from dartune.engines.base import Sample
from dartune.rewards.reward import Rewrite
from dartune.rewards.trl import as_reward_func

EXAMPLE = Path(__file__).parents[1] / "examples" / "trl_grpo.py"


def test_a_reward_func_passes_rows_and_samples_on_and_a_failed_check_is_none():
    seen = []

    def reward(demonstrations, samples):
        seen.extend(zip(demonstrations, samples, strict=True))
        return [[Rewrite("", s.ids, (), 0.0, 0.0, len(s.ids), judged=len(s.ids) != 2)] for [s] in samples]

    call = as_reward_func(reward, end_id=9)
    columns = {"id": ["a", "b", "c"], "question": ["q"] * 3, "solution": ["s"] * 3, "answer": ["1", None, "2"]}
    rewards = call(completion_ids=[[1, 2, 9], [3, 9], [4]], prompts=["p"] * 3, trainer_state=None, **columns)
    assert rewards == [3, None, 1]
    assert seen[0][0] == Demonstration("a", "q", "s", "1")
    assert [sample for _, [sample] in seen] == [
        Sample((1, 2, 9), (), "stop"),
        Sample((3, 9), (), "stop"),
        Sample((4,), (), "length"),
    ]


@pytest.mark.slow
def test_the_example_trains(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--steps", "2"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rewards = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert len(rewards) == 2 and all(reward >= 0 for reward in rewards) and max(rewards) > 0
