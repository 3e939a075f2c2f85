"""The benchmarks measure correctly, and the performance page shows their results."""

import sys
import threading
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
MODULES = ("pages", "memory", "loads", "floors", "measuring", "stock_trl", "performance_tables")


@pytest.fixture
def benchmarks(monkeypatch):
    for folder in ("benchmarks", "experiments"):
        monkeypatch.syspath_prepend(ROOT / folder)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def test_the_performance_page_shows_the_measured_results(benchmarks):
    from pages import filled
    from performance_tables import load, parts

    text = (ROOT / "docs" / "performance.md").read_text("utf-8")
    assert "<!-- measured: ratios-cpu -->" in text and filled(text, parts(load())) == text


def test_a_goal_is_reached_or_missed_according_to_its_figure(benchmarks):
    from performance_tables import parts

    def part(ratio, share):
        side = {"seconds": [1.0], "peak_bytes": 5_000_000}
        ratios = {"stock": dict.fromkeys(("median", "min", "max"), ratio)}
        ratios["bare forward"] = dict.fromkeys(("median", "min", "max"), share)
        return {"rounds": 1, "stock": side, "dartune": side, "ratios": ratios, "operations": 1.25e10}

    results = {"score-1M": part(2.5, 0.5), "step-1M-12x8": part(2.9, 0.9)}
    box = {"device": "a CPU", "threads": 1, "python": "3", "torch": "2", "transformers": "5", "trl": "1"}
    measurements = {
        "cpu": {"machine": box, "rates": {"flops": 5e10}, "parts": results, "failed": {"sft-1M": "no room"}}
    }
    tables = parts(measurements)
    score, step = tables["ratios-cpu"].splitlines()[2:]
    assert (
        "**2.50**" in score and "| 25% |" in score and "at least 2: reached" in score and "at least 3: missed" in step
    )
    assert "at least 0.8: missed" in tables["floors-cpu"].splitlines()[2]
    assert "50 GFLOP/s" in tables["machine-cpu"] and "`sft-1M` (no room)" in tables["machine-cpu"]
    assert tables["ratios-gpu"] == tables["scaling"] == "Not measured yet."


@pytest.mark.slow
def test_contenders_alternate_and_the_warm_up_is_not_counted(benchmarks):
    from measuring import by_turns, compared

    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in ("stock", "dartune")}
    turns = by_turns(contenders, "cpu", 3, 60.0)
    assert calls == ["stock", "dartune"] * 4
    comparison = compared(turns)
    assert comparison["rounds"] == 3 and set(comparison["ratios"]) == {"stock"}
    assert [len(rounds) for rounds in turns.values()] == [3, 3]
    assert len(by_turns(contenders, "cpu", 9, 0.0)["dartune"]) == 2, (
        "a second round is needed for a spread, even after the time limit"
    )


def test_memory_is_the_growth_during_a_round(benchmarks):
    from measuring import one_turn

    turn = one_turn(lambda: {"sum": float(torch.ones(2**24).sum())}, "cpu")
    assert turn.peak is None or 60e6 < turn.peak < 100e6
    assert turn.facts == {"sum": 2.0**24}


def test_a_training_pauses_between_its_steps_and_its_error_is_raised(benchmarks):
    from measuring import ByStep

    steps = []

    def training(pause):
        for step in range(1_000_000):
            steps.append(step)
            pause({"step": step})

    threads = threading.active_count()
    run_step = ByStep(training)
    assert not steps and run_step() == {"step": 0} and run_step() == {"step": 1} and steps == [0, 1]
    run_step.close()
    ByStep(training).close()
    assert threading.active_count() == threads and steps == [0, 1]

    def fails(pause):
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        ByStep(fails)()


@pytest.mark.slow
def test_texts_of_a_random_model_have_the_requested_length(benchmarks, tmp_path):
    from loads import end_after, frozen, random_load

    from dartune.engines.base import SampleSpec
    from dartune.engines.hf import HFEngine

    load = random_load("tiny", tmp_path, "cpu")
    model = frozen(load.policy, "cpu")

    def lengths():
        spec = SampleSpec(32, 60, 1.0, (load.renderer.end_id,), 0)
        return [len(sample.ids) for group in HFEngine(model).generate(load.prompts(8), spec) for sample in group]

    assert set(lengths()) == {60}
    end_after(model, load.renderer.end_id, 10)
    assert 7 < sum(lengths()) / 256 < 13
    assert load.renderer.decode(load.renderer.text_ids("w400 Ada")) == "w400 Ada"


def test_the_stock_reward_gives_the_scores_of_the_engine(benchmarks, tmp_path):
    from loads import frozen, random_load
    from stock_trl import score

    from dartune.engines.hf import HFEngine

    load = random_load("tiny", tmp_path, "cpu")
    model = frozen(load.target, "cpu")
    prompts = load.prompts(3)
    replies = [[40, 41, 42], [43], list(range(50, 70))]
    ours = [sum(row) for row in HFEngine(model).score(list(zip(prompts, replies, strict=True)))]
    assert score(model, load.tokenizer, prompts, replies) == pytest.approx(ours, abs=1e-3)


def test_flops_are_counted_as_in_dartune_without_those_that_no_token_needs(benchmarks, tmp_path):
    from floors import Work, flops, rl_flops
    from loads import frozen, random_load

    from dartune.models.flops import FORWARD, multiplied_weights

    model = frozen(random_load("tiny", tmp_path, "cpu").target, "cpu")
    total = flops(model, Work(10, 10))
    assert total == pytest.approx(10 * FORWARD * multiplied_weights(model), rel=0.01)  # norms have weights too
    assert flops(model, Work(10, 2)) == total - 8 * 2 * 512 * 64
    assert rl_flops(model, 0, 0, 10, lora=False) == 6 * total
