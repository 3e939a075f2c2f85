"""The reward as verl calls it: the same numbers as dartune's own, on rows as the example writes them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dartune.engines.base import Sample
from dartune.lab.source import model_folder
from dartune.lab.suites import demonstration_problems, write_demonstrations

EXAMPLE = Path(__file__).parents[1] / "examples" / "verl_reward.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("verl_reward", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    problems = demonstration_problems(4, 0, 8)
    rows = write_demonstrations(problems, "values")
    path = tmp_path_factory.mktemp("verl") / "my.jsonl"
    with path.open("w") as stream:
        for row in rows:
            fields = {"id": row.id, "question": row.question, "solution": row.solution, "answer": row.answer}
            stream.write(json.dumps(fields) + "\n")
    return path, rows, write_demonstrations(problems, "backward")


def test_the_batch_function_pays_what_dartune_pays(example, data):
    path, rows, native = data
    target = str(model_folder("lab:backward"))
    texts = [row.solution for row in native[:3]] + ["nonsense"]
    infos = [row["extra_info"] for row in example.verl_rows(rows, "{question} {solution}")]
    words = {"target": target, "data": str(path), "max_response_length": 200}
    scores = example.compute_score(["dartune"] * 4, texts, ["1"] * 4, infos, **words)
    reward = example.reward_of(target, str(path))
    samples = [[Sample(tuple(reward.renderer.response_ids(text)), (), "stop")] for text in texts]
    assert [one["score"] for one in scores] == pytest.approx([one.reward for (one,) in reward(rows, samples)], abs=1e-4)
    assert [one["passes"] for one in scores] == [True, True, True, False]
    assert min(one["score"] for one in scores[:3]) > scores[3]["score"]
    words["max_response_length"] = 5
    cut = example.compute_score(["dartune"], texts[:1], ["1"], infos[:1], **words)
    assert not cut[0]["passes"]


@pytest.mark.slow
def test_the_example_writes_the_training_file(data, tmp_path):
    from datasets import load_dataset

    path, rows, _ = data
    out = tmp_path / "mapper.parquet"
    command = [sys.executable, str(EXAMPLE), "--data", str(path), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    written = load_dataset("parquet", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["extra_info"]["id"] for row in written] == [row.id for row in rows]
    assert rows[0].question in written[0]["prompt"][0]["content"]
