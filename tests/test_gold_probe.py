"""The gold probe and the rule to stop by: only a reward that rises while the target falls ends the training."""

import json
from functools import partial

import pytest

from dartune.cli import main
from dartune.data.records import Demonstration
from dartune.lab.suites import demonstrate, demonstration_problems
from dartune.train.mapper import reason_to_stop


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


def test_a_run_with_probes_records_them_and_a_stop_is_final(tmp_path, monkeypatch, capsys):
    """A probe that falls from all to nothing stops the mapper; the run goes on, says so and is done."""
    from dartune.stages import gold_probe

    scores = iter([True, False, False])
    monkeypatch.setattr(gold_probe.GoldProbe, "__call__", lambda self, mapper: [next(scores)] * len(self.dev))
    monkeypatch.setattr("dartune.train.mapper.reason_to_stop", lambda earlier, now: "it was time" if earlier else None)
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
    words += ["--evaluate.questions", "2", "--evaluate.max_new_tokens", "32", "--output", str(tmp_path / "run")]
    assert main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/stages/mapper-s0/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row.get("probe_accuracy") for row in rows] == [None, 1.0, None, 0.0]
    assert rows[-1]["stop"] == "it was time"
    capsys.readouterr()
    assert main(words) == 0
    assert "mapper-s0: starts" not in capsys.readouterr().out
    assert "it was time" in (tmp_path / "run/report/results.json").read_text()


def test_a_probe_fine_tunes_a_copy_on_what_the_mapper_writes(tmp_path):
    from dartune.config import load_config
    from dartune.rewards.alignment import Reference
    from dartune.rewards.checker import AnswerChecker
    from dartune.rewards.items import GateThresholds
    from dartune.rewards.reward import GatedReward
    from dartune.roster import Roster
    from dartune.stages.gold_probe import GoldProbe

    config = load_config(
        None,
        {
            "data.path": "lab:values",
            "target.path": "lab:backward",
            "mapper.path": "lab:mapper",
            "mapper.prompt": "{question} Solution : {solution} Rewrite :",
            "mapper.probe_rows": "8",
            "mapper.max_new_tokens": "64",
            "sft.learning_rates": "[1e-3]",
            "evaluate.max_new_tokens": "64",
        },
    )
    roster = Roster(config)
    rows = demonstrate(demonstration_problems(16, 0, 8), "values")
    references = {row.id: Reference(10, -10.0, None, 40) for row in rows}
    with AnswerChecker() as checker:
        reward = GatedReward(roster.target_engine, roster.renderer, checker, GateThresholds(), references)
        copy = partial(roster.to_train, roster.target_path, config.sft)
        made = GoldProbe(config, copy, rows[:12], rows[12:], reward, roster.renderer, checker)
        assert isinstance(made.demonstrations[0], Demonstration) and len(made.demonstrations) == 8
        first, second = made(roster.start_engine), made(roster.start_engine)
    assert first == second and len(first) == 4
