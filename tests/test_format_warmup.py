"""A start that cannot follow the prompt is shown what passes; all adaptations then start from it."""

import json

import pytest

from dartune.cli import main
from dartune.config.schema import MapperConfig
from dartune.rewards.alignment import Reference
from dartune.rewards.reward import GatedReward
from dartune.run.files import read_jsonl
from dartune.stages.warmup import examples
from fixtures_models import save_tiny
from test_pipeline import arguments, word_problems
from test_reward import GOOD, RENDERER, ROW, THRESHOLDS
from test_synthesise import WRONG, Scripted

CONFIG = MapperConfig(prompt="{question} {solution}", group_size=3, max_new_tokens=50)
PROMPT = f"{ROW.question} {ROW.solution}"


def found(texts, own, checker):
    start = Scripted(texts)
    reward = GatedReward(start, RENDERER, checker, THRESHOLDS, {ROW.id: Reference(20, -1.0, None, 20)})
    probed = [{"id": ROW.id, "own": [{"text": text} for text in own]}]
    return examples([ROW], probed, start, reward, RENDERER, CONFIG)


def test_own_solutions_and_rewrites_that_passed_are_shown_once_each(checker):
    pairs, kinds = found([GOOD, WRONG, GOOD], ["my own way"], checker)
    assert pairs == [(PROMPT, "my own way"), (PROMPT, GOOD)]
    assert kinds == {"own": 1, "passed": 2, "tried": 3, "demonstrations": 0}


def test_where_nothing_passes_the_demonstrations_show_the_form(checker):
    pairs, kinds = found([WRONG], [], checker)
    assert pairs == [(PROMPT, ROW.solution)] and kinds["demonstrations"] == 1


@pytest.mark.slow
def test_the_warmed_start_is_where_every_adaptation_starts(tmp_path, capsys):
    problems = word_problems(tmp_path / "problems.jsonl", 30)
    target = save_tiny(tmp_path / "target", "llama", context=2048)
    command = arguments(problems, target, tmp_path / "run", "--mapper.format_steps=2", "--mapper.kl=1")
    assert main([*command, "--arms=[dart, best_of_k]"]) == 0
    stages = tmp_path / "run" / "stages"
    assert json.loads((stages / "warmup" / "examples.json").read_text())["demonstrations"] > 0
    assert capsys.readouterr().err.count("warmup: starts") == 1
    # The KL is measured from the warmed start: nothing at the first step.
    first, *_ = (row["kl"] for row in read_jsonl(stages / "mapper-s0" / "metrics.jsonl"))
    assert abs(first) < 1e-6
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    assert results["costs"]["stages"]["warmup"]["trained_tokens"] > 0
    assert main([*command, "--arms=[dart, best_of_k]"]) == 0
    stderr = capsys.readouterr().err
    assert "starts" not in stderr
    changed = [word for word in command if "format_steps" not in word]
    assert main([*changed, "--mapper.format_steps=1", "--arms=[dart, best_of_k]"]) == 0
    stderr = capsys.readouterr().err
    assert "format_steps 2 -> 1" in stderr and "mapper-s0: run again" in stderr and "probe: nothing changed" in stderr
