"""The gold probe and the rule to stop by: only a reward that rises while the target falls ends the training."""

import json
from functools import partial

import pytest

from dartune.cli import main
from dartune.data.records import Demonstration
from dartune.lab.suites import demonstration_problems, write_demonstrations
from dartune.run.cost import Cost
from dartune.stages.mapper import reason_to_stop


def probe(step, reward, solved, n=64):
    return {"step": step, "reward": reward, "solved": [i < solved for i in range(n)]}


@pytest.mark.parametrize(
    ("earlier", "now", "stops"),
    [
        ([], probe(10, 1.0, 0), False),
        ([probe(10, 1.0, 40)], probe(20, 2.0, 20), True),
        ([probe(10, 1.0, 40)], probe(20, 2.0, 38), False),  # within the noise
        ([probe(10, 1.0, 40)], probe(20, 0.5, 20), False),  # the reward fell as well
        ([probe(10, 1.0, 20)], probe(20, 2.0, 40), False),
        ([probe(10, 1.0, 40), probe(20, 2.0, 36)], probe(30, 3.0, 10), True),  # against the best, not the last
    ],
)
def test_more_reward_for_a_worse_target_stops(earlier, now, stops):
    reason = reason_to_stop(earlier, now)
    assert bool(reason) == stops
    if stops:
        assert "since step 10 the reward rose from 1.000" in reason and "fell from 62.5%" in reason


def test_questions_without_a_verdict_in_both_probes_say_nothing():
    """Thirty checks that failed are no fall, and those that hold still show one."""
    before = probe(10, 1.0, 40)
    unknown = {**probe(20, 2.0, 40), "solved": [None] * 30 + [True] * 10 + [False] * 24}
    assert reason_to_stop([before], unknown) is None
    fallen = {**probe(20, 2.0, 0), "solved": [None] * 20 + [False] * 44}
    assert "fell from 45.5% to 0.0%" in reason_to_stop([before], fallen)
    assert reason_to_stop([probe(10, 1.0, 40)], {**before, "step": 20, "reward": 2.0, "solved": [None] * 64}) is None


@pytest.mark.slow
def test_a_run_with_probes_records_them_and_a_stop_is_final(tmp_path, monkeypatch, capsys):
    """A probe that falls from all to nothing stops the mapper; the run goes on, says so and is done."""
    from dartune.stages import gold_probe

    scores = iter([True, False, False])
    spent = Cost(generated_tokens=1_000_000, scored_tokens=2_000_000, trained_tokens=3_000_000, flops=1e15)
    monkeypatch.setattr(
        gold_probe.GoldProbe, "__call__", lambda self, mapper: ([None, *[next(scores)] * (len(self.dev) - 1)], spent)
    )
    monkeypatch.setattr("dartune.stages.mapper.reason_to_stop", lambda earlier, now: "it was time" if earlier else None)
    words = [
        "run",
        "--data",
        "lab:values",
        "--target",
        "lab:backward",
        "--mapper.path",
        "lab:mapper",
        "--arms",
        "base,dart",
    ]
    words += ["--mapper.prompt", "{question} Solution : {solution} Rewrite :", "--data.limit", "24", "--data.dev", "4"]
    words += ["--mapper.steps", "6", "--mapper.probe_every", "2", "--mapper.questions_per_step", "2"]
    words += ["--mapper.max_new_tokens", "64", "--sft.steps", "2", "--sft.learning_rates", "[1e-3]"]
    words += ["--data.test", "2", "--evaluate.max_new_tokens", "32", "--output", str(tmp_path / "run")]
    assert main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/stages/mapper-s0/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row.get("probe_accuracy") for row in rows] == [None, 1.0, None, 0.0]
    assert rows[-1]["stop"] == "it was time"
    cost = json.loads((tmp_path / "run/stages/mapper-s0/DONE").read_text())["cost"]
    for name, millions in (("generated_tokens", 2), ("scored_tokens", 4), ("trained_tokens", 6)):
        assert [row[name] // 1_000_000 for row in rows] == [0, millions // 2, 0, millions // 2]
        assert sum(row[name] for row in rows) == cost[name] >= millions * 1_000_000
    assert cost["flops"] == pytest.approx(sum(row["flops"] for row in rows)) and cost["flops"] > 2e15
    capsys.readouterr()
    assert main(words) == 0
    assert "mapper-s0: starts" not in capsys.readouterr().out
    assert "it was time" in (tmp_path / "run/report/results.json").read_text()


def test_a_probe_fine_tunes_a_copy_on_what_the_mapper_writes_and_says_what_it_took(monkeypatch):
    from dartune.answers.checker import AnswerChecker
    from dartune.config.load import load_config
    from dartune.gates.gate_input import GateThresholds
    from dartune.models.flops import multiplied_weights
    from dartune.rewards.alignment import Reference
    from dartune.rewards.reward import GatedReward
    from dartune.stages.gold_probe import GoldProbe
    from dartune.stages.models import RunModels

    config = load_config(
        None,
        {
            "data.path": "lab:values",
            "target.path": "lab:backward",
            "mapper.path": "lab:mapper",
            "mapper.prompt": "{question} Solution : {solution} Rewrite :",
            "mapper.max_new_tokens": "64",
            "sft.learning_rates": "[1e-3]",
            "evaluate.max_new_tokens": "64",
        },
    )
    roster = RunModels(config)
    rows = write_demonstrations(demonstration_problems(16, 0, 8), "values")
    references = {row.id: Reference(10, -10.0, None, 40) for row in rows}
    with AnswerChecker() as checker:
        reward = GatedReward(roster.target_engine, roster.renderer, checker, GateThresholds(), references)
        copy = partial(roster.to_train, roster.target_path, config.sft)
        monkeypatch.setattr("dartune.stages.gold_probe.PROBE_ROWS", 8)
        probes = GoldProbe(config, copy, rows[:12], rows[12:], reward, roster.renderer, checker)
        assert isinstance(probes.demonstrations[0], Demonstration) and len(probes.demonstrations) == 8
        engines = roster.start_engine, roster.target_engine
        before = [engine.generated_tokens + engine.scored_tokens for engine in engines]
        (first, cost), second = probes(engines[0]), probes(engines[0])
        after = [engine.generated_tokens + engine.scored_tokens for engine in engines]
        monkeypatch.setattr("dartune.stages.gold_probe.evaluate", lambda *_: [{"correct": None}, {"correct": True}])
        assert probes(engines[0])[0] == [None, True]
    assert (first, cost) == second and len(first) == 4
    written, scored, answered = (after[0] - before[0]) // 2, (after[1] - before[1]) // 2, cost.generated_tokens
    assert 8 <= written < answered <= written + 4 * 64  # the rewrites, and the answers to the questions
    assert cost.scored_tokens == scored > 0 and cost.trained_tokens > 8
    assert cost.flops > 6 * multiplied_weights(roster.target_engine.model) * cost.trained_tokens
