"""Estimates of a run's cost: the work of every stage by name, seconds from the speed, and what run and diagnose say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dartune.cli import main
from dartune.config.load import load_config
from dartune.planning.estimate import Speed, estimate
from dartune.planning.work import Lengths, Sizes, Work, WorkOfStages, sampling, scoring, training
from dartune.run.files import read_jsonl

RECIPE = Path(__file__).parents[1] / "recipes" / "lab.yaml"
LENGTHS = Lengths(question=30, request=50, solution=12, own=40, rewrite=40)
SIZES = Sizes(train=1000, dev=64, test=1024)
SPEED = Speed(sampled=2e-4, forward=1e-4, weights=1000, mapper_weights=1000)


def config(arms="[base, sft, dart]", **changes):
    return load_config(RECIPE, {"arms": arms} | {key.replace("__", "."): value for key, value in changes.items()})


def work(arms="[base, sft, dart]", sizes=SIZES, mapper_size=1.0, **changes):
    return WorkOfStages(config(arms, **changes), sizes, LENGTHS, SPEED.seconds, mapper_size)()


def test_the_work_of_a_stage_follows_from_the_config():
    stages = work(mapper__steps="10", mapper__questions_per_step="6", mapper__group_size="8", synthesise__samples="3")
    assert stages["mapper-s0"].generated == stages["mapper-s0"].trained == 10 * 6 * 8 * 40
    assert stages["mapper-s0"].scored == 2 * stages["mapper-s0"].generated  # by the target and by the initial mapper
    assert stages["synthesise-s0"].generated == 1000 * 3 * 40
    assert stages["evaluate-base"].generated == 1024 * 40
    twice = work(mapper__steps="20", mapper__questions_per_step="6", mapper__group_size="8")
    assert twice["mapper-s0"].generated == 2 * stages["mapper-s0"].generated


def test_a_prompt_is_read_once_for_all_its_samples():
    assert sampling(2, 30, 8, 10).forward == 60
    assert scoring(2, 30, 8, 10).forward == 60 + 160
    assert training(2, 30, 8, 10).backward == 60 + 160


def test_a_larger_mapper_takes_longer_and_writes_as_much():
    small, large = work(), work(mapper_size=4.0)
    assert large["mapper-s0"].generated == small["mapper-s0"].generated
    assert SPEED.seconds(large["mapper-s0"]) > 3 * SPEED.seconds(small["mapper-s0"])
    assert large["evaluate-base"] == small["evaluate-base"]


def test_direct_rl_spends_what_dart_spends():
    stages = work("[base, dart, grpo_tokens, grpo_3x_tokens, grpo_seconds]", direct_rl__learning_rates="[1e-4]")
    spent = [stages[name] for name in ("probe", "mapper-s0", "synthesise-s0")]
    tokens, thrice, seconds = (
        stages[f"train-{arm}-s0-lr0.0001"] for arm in ("grpo_tokens", "grpo_3x_tokens", "grpo_seconds")
    )
    dev = 64 * 40
    assert tokens.generated - dev == pytest.approx(sum(stage.generated for stage in spent))
    assert thrice.generated - dev == pytest.approx(3 * (tokens.generated - dev))
    dart_seconds = sum(map(SPEED.seconds, spent)) + SPEED.seconds(training(250 * 16, 30, 1, 40))
    assert SPEED.seconds(seconds) - SPEED.seconds(sampling(64, 30, 1, 40)) == pytest.approx(dart_seconds)


def test_finished_stages_cost_nothing_more():
    whole = estimate(config(), SIZES, LENGTHS, SPEED)
    left = estimate(config(), SIZES, LENGTHS, SPEED, finished=["probe", "mapper-s0"])
    assert "mapper training" in whole.phases and "mapper training" not in left.phases
    spent = whole.phases["probe"]["seconds"] + whole.phases["mapper training"]["seconds"]
    assert left.total["seconds"] == pytest.approx(whole.total["seconds"] - spent)


def test_the_total_is_the_sum_of_the_lines_and_times_are_for_people():
    whole = estimate(config("[base, sft, best_of_k, dart, rft, sdft]"), SIZES, LENGTHS, SPEED, memory=2.5e9)
    for name, value in whole.total.items():
        assert value == pytest.approx(sum(phase[name] for phase in whole.phases.values()))
    text = "\n".join(whole.lines())
    assert "mapper training" in text and "2.5 GB" in text and "about" in text


def test_a_backward_takes_twice_as_long_as_a_forward():
    assert SPEED.seconds(Work(backward=10)) == pytest.approx(3 * SPEED.seconds(Work(forward=10)))
    assert Work(backward=10).flops_per_weight() == 3 * Work(forward=10).flops_per_weight()


def mean_tokens(run: Path) -> Lengths:
    """Lengths of a finished run's texts; only those of completions matter here."""
    samples = read_jsonl(run / "stages/probe/probe.jsonl")
    own = json.loads((run / "stages/probe/DONE").read_text())["cost"]["generated_tokens"]
    drawn = sum(row["drawn"] for row in samples)
    metrics = read_jsonl(run / "stages/mapper-s0/metrics.jsonl")
    rewrite = sum(row["length"] for row in metrics) / len(metrics)
    solution = sum(row["length"] for row in samples) / len(samples)
    return replace(LENGTHS, solution=solution, own=own / drawn, rewrite=rewrite)


def test_the_estimate_has_the_stages_and_the_tokens_of_a_real_run(finished_run):
    settings = load_config(finished_run / "config.resolved.yaml")
    rows = {path.stem: len(read_jsonl(path)) for path in (finished_run / "stages/data").glob("*.jsonl")}
    sizes = Sizes(rows["train"], rows["dev"], sum(count for name, count in rows.items() if name.startswith("suite-")))
    planned = WorkOfStages(settings, sizes, mean_tokens(finished_run), SPEED.seconds)()
    done = {path.parent.name: json.loads(path.read_text())["cost"] for path in (finished_run / "stages").glob("*/DONE")}
    assert set(planned) == set(done) - {"data"}
    for name in ("probe", "mapper-s0", "synthesise-s0"):
        assert planned[name].generated == pytest.approx(done[name]["generated_tokens"], rel=0.25)
    assert planned["mapper-s0"].trained == pytest.approx(done["mapper-s0"]["trained_tokens"], rel=0.25)
    assert planned["mapper-s0"].scored == pytest.approx(done["mapper-s0"]["scored_tokens"], rel=0.25)
    for name in done:
        if name.startswith("train-sft-"):
            assert planned[name].trained == pytest.approx(done[name]["trained_tokens"], rel=0.25)


def test_run_says_what_it_will_cost_and_nothing_once_it_is_finished(finished_run, capsys):
    log = (finished_run / "logs/run.log").read_text("utf-8")
    assert "Estimated cost of what is left" in log.split("probe: starts")[0]
    assert "mapper training" in log and "total" in log
    assert main(["run", str(finished_run / "config.resolved.yaml")]) == 0
    assert "Estimated cost" not in capsys.readouterr().err
