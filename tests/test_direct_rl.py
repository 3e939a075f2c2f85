"""Direct RL of the target: it learns from right answers, spends its budget, and resumes as if nothing had happened."""

import pytest
import torch

from dartune.config.schema import DirectRLSettings, ExecutionConfig
from dartune.data.chat_template import Renderer
from dartune.engines.hf import HFEngine
from dartune.lab.source import model_folder
from dartune.lab.suites import demonstration_problems, write_demonstrations
from dartune.models.loading import load_model, load_tokenizer
from dartune.run.files import read_jsonl
from dartune.stages.direct_rl import Budget, train_directly

FOLDER = model_folder("lab:backward")
# A temperature at which it is sometimes wrong: a group that agrees teaches nothing.
CONFIG = DirectRLSettings(questions_per_step=4, group_size=4, max_new_tokens=96, temperature=2.5)
EXECUTION = ExecutionConfig(checkpoint_every=2)


@pytest.fixture(scope="module")
def rows():
    return write_demonstrations(demonstration_problems(24, 0, 0), "values")


def trained(rows, checker, folder, budget, on_step=None, rate=3e-4):
    renderer = Renderer(load_tokenizer(FOLDER))
    start = HFEngine(load_model(FOLDER))
    words = renderer, checker, CONFIG, rate, budget, 0, folder
    model, cost = train_directly(load_model(FOLDER), rows, start, *words, execution=EXECUTION, on_step=on_step)
    return model.state_dict(), cost, read_jsonl(folder / "metrics.jsonl")


@pytest.mark.slow
def test_it_ends_with_the_step_that_spends_the_budget(rows, checker, tmp_path):
    weights, cost, history = trained(rows, checker, tmp_path, Budget(generated_tokens=2000))
    assert history[-1]["spent_tokens"] >= 2000 > history[-2]["spent_tokens"]
    assert "the budget is spent" in history[-1]["stop"] and not any("stop" in row for row in history[:-1])
    assert cost.generated_tokens == history[-1]["spent_tokens"] and cost.flops > 0
    rewards = [row["reward"] for row in history]
    assert 0 < min(rewards) < 1 and min(row["zero_variance"] for row in history) < 1
    before = load_model(FOLDER).state_dict()
    assert any(not torch.equal(weights[name], before[name]) for name in before)
    shown = read_jsonl(tmp_path / "samples.jsonl")
    assert {row["step"] for row in shown} == {row["step"] for row in history}


def test_an_interrupted_training_ends_bit_for_bit_as_an_uninterrupted_one(rows, checker, tmp_path):
    budget = Budget(generated_tokens=2500)
    whole, _, history = trained(rows, checker, tmp_path / "whole", budget)

    def interrupt(step, row):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(rows, checker, tmp_path / "cut", budget, interrupt)
    resumed, _, again = trained(rows, checker, tmp_path / "cut", budget)
    assert [row["spent_tokens"] for row in again] == [row["spent_tokens"] for row in history]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    samples = [read_jsonl(tmp_path / name / "samples.jsonl") for name in ("whole", "cut")]
    assert samples[0] == samples[1]
