"""Every stage of a run with a slow model reports at least every 30 seconds: throughput, time left and a figure."""

import itertools
import re
import time
import types
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from dartune.cli import main
from dartune.run import progress
from dartune.run.folder import RunFolder
from fixtures_models import save_tiny
from test_pipeline import arguments, word_problems

FORWARD_SECONDS = 4.0
LONGEST_SILENCE = 30.0
FIGURES = {
    "probe": "own_correct",
    "warmup": "gate_pass",
    "mapper": "reward",
    "synthesise": "rewritten",
    "train": "loss|reward",
    "evaluate": "accuracy",
    "own-samples": "solved",
    "greedy-rewrites": "complete",
    "renew": "rewritten",
    "diagnosis": "accepted",
}
"""Kind of stage -> a figure of its lines. A stage that trains on no row shows the accuracy on the dev questions."""
ARMS = "base,sft,dart,rft,grpo_tokens,sft_matched,sft_stm,sdft,dart_refreshed,sft_on_mapper_start"


@pytest.fixture
def slow_models(monkeypatch):
    """Every forward of a model takes some seconds of a clock that otherwise stands still."""
    clock = types.SimpleNamespace(now=0.0, lines=[])
    forward = LlamaForCausalLM.forward

    def slow_forward(self, *words, **options):
        clock.now += FORWARD_SECONDS
        return forward(self, *words, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", slow_forward)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: clock.now, time=time.time))
    monkeypatch.setattr(progress, "append_log", lambda path, line: clock.lines.append((clock.now, line)))
    attempt = RunFolder._attempt

    def noted_attempt(self, name, *words):
        clock.lines.append((clock.now, f"{name}: starts"))
        attempt(self, name, *words)
        clock.lines.append((clock.now, f"{name}: ends"))

    monkeypatch.setattr(RunFolder, "_attempt", noted_attempt)
    return clock


def assert_reported(lines: list[tuple[float, str]], stages: set[str]) -> None:
    """Each stage but the copy of the data reports in time, with all that a line has."""
    silences, inside = [], False
    for (earlier, line), (later, _) in itertools.pairwise(lines):
        inside = line.endswith(": starts") or (inside and not line.endswith(": ends"))
        silences.append((later - earlier if inside else 0.0, line))
    assert max(silences)[0] <= LONGEST_SILENCE, max(silences)
    for stage in stages - {"data"}:
        of_stage = [line for _, line in lines if line.startswith((f"{stage}:", f"{stage}, dev"))]
        kind = next(kind for kind in FIGURES if stage.startswith(kind))
        assert any(re.search(r" \d[\d,.]* tokens/s (sampled|scored|trained)", line) for line in of_stage), stage
        assert any(" left" in line for line in of_stage), stage
        assert any(re.search(rf", ({FIGURES[kind]}|accuracy) -?\d", line) for line in of_stage), (stage, of_stage)
        assert any(re.search(r": \d+/\d+ \(\d+%\)", line) for line in of_stage), stage


@pytest.mark.slow
def test_every_stage_of_a_run_reports(slow_models, tmp_path):
    problems = word_problems(tmp_path / "problems.jsonl", 30)
    target, output = save_tiny(tmp_path / "target", "llama", context=2048), tmp_path / "run"
    more = [
        f"--arms=[{ARMS}]",
        "--mapper.format_steps=2",
        "--mapper.probe_every=2",
        "--direct_rl.learning_rates=[1e-3]",
        "--evaluate.samples=2",
    ]
    assert main(["diagnose", *arguments(problems, target, output, *more)[1:], "--rows=10"]) == 0
    assert main(arguments(problems, target, output, *more)) == 0
    stages = {path.name for path in Path(output / "stages").iterdir()}
    assert {name for name in FIGURES if not any(stage.startswith(name) for stage in stages)} == set()
    assert_reported(slow_models.lines, stages)
