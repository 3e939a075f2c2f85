"""The main job, end to end, on a user's own data and model folder: tiny models, real English text."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dartune.cli import main
from dartune.data.adapted_dataset import read_adapted
from dartune.run.files import read_jsonl
from dartune.run.progress import Progress
from fixtures_models import ARCHITECTURES, save_tiny

TINY = [
    "--mapper.steps=2",
    "--mapper.questions_per_step=2",
    "--mapper.group_size=2",
    "--mapper.max_new_tokens=24",
    "--reward.own_samples=1",
    "--synthesise.samples=1",
    "--sft.steps=3",
    "--sft.batch_size=4",
    "--sft.learning_rates=[1e-4, 1e-3]",
    "--evaluate.max_new_tokens=16",
    "--execution.checkpoint_every=1",
]


def word_problems(path: Path, n: int) -> Path:
    """`n` English word problems with full solutions, as JSONL."""
    import reasoning_gym

    rows = reasoning_gym.create_dataset("gsm_symbolic", size=n, seed=42)
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            solution = row["metadata"]["answer_cot"]
            stream.write(
                json.dumps({"question": row["question"], "solution": solution, "answer": row["answer"]}) + "\n"
            )
    return path


def arguments(data: Path, target: Path, output: Path, *more: str) -> list[str]:
    return ["run", "--data", str(data), "--target", str(target), "--output", str(output), *TINY, *more]


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return word_problems(tmp_path_factory.mktemp("data") / "problems.jsonl", 40)


@pytest.mark.parametrize(("architecture", "chat"), list(zip(ARCHITECTURES, [True, True, False, False], strict=True)))
def test_any_model_folder_runs_to_the_report(architecture, chat, problems, tmp_path):
    target = save_tiny(tmp_path / "target", architecture, chat=chat, context=2048)
    assert main(arguments(problems, target, tmp_path / "run", "--target.system_prompt=Be brief.")) == 0
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    assert results["arms"] == ["base", "sft", "dart"]
    rows = read_jsonl(tmp_path / "run" / "stages" / "synthesise-s0" / "rows.jsonl")
    trained = read_jsonl(tmp_path / "run" / "stages" / "data" / "train.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in trained]
    adapted = read_adapted(tmp_path / "run" / "stages" / "synthesise-s0" / "adapted")
    assert all(row["messages"][0] == {"role": "system", "content": "Be brief."} for row in adapted)
    assert all(row["provenance"] in ("rewrite", "own", "original", "dropped") and row["reason"] for row in rows)
    learnt = any(row["provenance"] in ("rewrite", "own", "natural") for row in rows)
    assert any("dart, seed 0: no row was adapted" in note for note in results["notes"]) == (not learnt)
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "<html" in page and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_all_rows_of_an_english_data_set_are_accounted_for(tmp_path, capsys):
    data = word_problems(tmp_path / "gsm.jsonl", 200)
    target = save_tiny(tmp_path / "target", "llama", context=2048)
    assert main(arguments(data, target, tmp_path / "run")) == 0
    adapted = read_adapted(tmp_path / "run" / "stages" / "synthesise-s0" / "adapted")
    held_out = sum(
        len(read_jsonl(tmp_path / "run" / "stages" / "data" / f"{part}.jsonl"))
        for part in ("dev", "suite-in_distribution")
    )
    assert len(adapted) + held_out == 200
    summary = capsys.readouterr().out
    assert "dart" in summary and "index.html" in summary


@pytest.mark.slow
def test_the_check_of_a_thousand_rows_holds_out_a_tenth_of_the_questions(tmp_path, capsys):
    data = word_problems(tmp_path / "gsm.jsonl", 1000)
    target = save_tiny(tmp_path / "target", "llama", context=2048)
    assert main(["check", "--data", str(data), "--target", str(target)]) == 0
    # One row repeats another, so a tenth of the questions is 99.
    stdout = capsys.readouterr().out
    assert "837 rows to adapt and train on, 64 to choose the learning rate, 99 to test." in stdout
    assert "1000 of 1000 have a checkable answer" in stdout


def test_a_mapper_that_starts_out_stuck_is_told_once_with_its_reasons(tmp_path):
    from dartune.stages.mapper import watch_first_steps

    messages = []
    row = {"reward": 0.0, "alignment_after": -3.0, "gates": {"finished": 0.2, "no_loop": 1.0}}

    def steps(*values):
        step_done = watch_first_steps(messages.append, Progress(9, "mapper-s0"), tmp_path)
        for step, (share, alike) in enumerate(values, start=1):
            step_done(step, row | {"gate_pass": share, "zero_variance": alike})

    steps(*[(0.0, 1.0)] * 4)
    assert len(messages) == 1 and "finished (80%)" in messages[0] and "mapper.format_steps" in messages[0]
    assert str(tmp_path / "samples.jsonl") in messages[0]
    steps(*[(0.3, 1.0)] * 6)
    assert len(messages) == 2 and "none is more natural to the target than its demonstration" in messages[1]
    steps((0.0, 1.0), (0.0, 1.0), (0.1, 0.9), *[(0.0, 1.0)] * 3)
    assert len(messages) == 2


@pytest.mark.slow
def test_the_second_run_skips_everything_and_a_changed_setting_says_why(problems, tmp_path, capsys):
    target = save_tiny(tmp_path / "target", "llama", context=2048)
    assert main(arguments(problems, target, tmp_path / "run")) == 0
    first = (tmp_path / "run" / "report" / "results.json").read_bytes()
    capsys.readouterr()
    assert main(arguments(problems, target, tmp_path / "run")) == 0
    stderr = capsys.readouterr().err
    assert "starts" not in stderr and stderr.count("skipped") >= 8
    assert (tmp_path / "run" / "report" / "results.json").read_bytes() == first
    again = arguments(problems, target, tmp_path / "run", "--synthesise.samples=2")
    again.remove("--synthesise.samples=1")
    assert main(again) == 0
    stderr = capsys.readouterr().err
    assert "synthesise.samples 1 -> 2" in stderr
    assert "mapper-s0: nothing changed" in stderr and "train-sft-s0-lr0.001: nothing changed" in stderr


@pytest.mark.slow
def test_with_lora_the_mapper_is_an_adapter_and_the_target_a_plain_model(problems, tmp_path):
    target = save_tiny(tmp_path / "target", "llama", context=2048)
    lora = ["--mapper.lora_rank=2", "--sft.lora_rank=2"]
    assert main(arguments(problems, target, tmp_path / "run", *lora)) == 0
    for stage, weights in (("mapper-s0", "adapter_model"), ("train-sft-s0-lr0.001", "model")):
        files = (tmp_path / "run" / "stages" / stage / "model").glob("*.safetensors")
        assert [path.stem for path in files] == [weights]


STAGES = ["mapper-s0", "train-sft-s0-lr0.001"]  # as the shell runs them; tests/crash has all


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_in_the_middle_of_a_stage_ends_the_same(stage, problems, tmp_path_factory, whole_run, tmp_path):
    target, whole = whole_run
    code = (
        "import os, signal, sys\n"
        "from dartune.run import progress\n"
        f"stage, marks = {stage!r}, [0]\n"
        "original = progress.Progress.update\n"
        "def update(self, n=1, **metrics):\n"
        "    original(self, n, **metrics)\n"
        "    if os.path.exists(os.path.join(sys.argv[1], 'stages', stage, 'STARTED')):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "progress.Progress.update = update\n"
        "from dartune.cli import main\n"
        "main(sys.argv[2:])\n"
    )
    output = tmp_path / "run"
    command = arguments(problems, target, output)
    died = subprocess.run(
        [sys.executable, "-c", code, str(output), *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert not (output / "stages" / stage / "DONE").exists()
    assert main(command) == 0
    for name in ("rows.jsonl", "records.jsonl", "model.safetensors", "probe.jsonl", "samples.jsonl"):
        for path in sorted(whole.glob(f"stages/**/{name}")):
            other = output / path.relative_to(whole)
            assert other.read_bytes() == path.read_bytes(), path.relative_to(whole)


@pytest.fixture(scope="module")
def whole_run(problems, tmp_path_factory):
    """A target and an uninterrupted run of it."""
    folder = tmp_path_factory.mktemp("whole")
    target = save_tiny(folder / "target", "llama", context=2048)
    assert main(arguments(problems, target, folder / "run")) == 0
    return target, folder / "run"


def run_cli(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dartune", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_bad_input_gives_one_clear_message_and_exit_code_2(problems, tmp_path):
    target = save_tiny(tmp_path / "target", "llama", context=2048)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"Problem": "1+1?", "Reasoning": "2"}\n')
    invalid = tmp_path / "invalid.jsonl"
    invalid.write_text('{"question": "a?", "solution": "b"}\n{"question": 3, "solution": ""}\nnot json\n')
    good = ["--data", str(problems), "--target", str(target)]
    cases = {
        "empty": (["--data", str(empty), "--target", str(target)], ["empty.jsonl"]),
        "column": (["--data", str(odd), "--target", str(target)], ["Problem", "data.columns"]),
        "rows": (
            ["--data", str(invalid), "--target", str(target)],
            ["invalid.jsonl line 2: solution", "line 3: invalid JSON"],
        ),
        "model": (["--data", str(problems), "--target", str(tmp_path / "none")], ["none", "model folder"]),
        "key": ([*good, "--mapper.step", "3"], ["mapper.step", "mapper.steps"]),
    }
    for name, (words, said) in cases.items():
        done = run_cli("run", *words, "--output", str(tmp_path / "run"))
        assert done.returncode == 2, (name, done.stderr)
        assert "Traceback" not in done.stderr
        for text in said:
            assert text in done.stderr, (name, text, done.stderr)
