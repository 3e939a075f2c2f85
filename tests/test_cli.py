"""Command line: subcommands, fast start-up, and a message with an exit code for every failure."""

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from dartune import __version__
from dartune.cli import CONFIGURED, main, split_overrides
from dartune.command_line.key_help import config_fields
from dartune.config.load import load_config
from dartune.config.recipe import SHIPPED
from dartune.errors import SHOWN_PROBLEMS, InputError, MachineError
from dartune.run.folder import RunFolder

ROOT = Path(__file__).parents[1]
LAB = ["--data", "lab:values", "--target", "lab:equations"]
SHORT = ("--data", "--target", "--output", "--arms")


@pytest.fixture
def pipeline(monkeypatch):
    """A fake pipeline that records its calls."""
    fake = ModuleType("dartune.pipeline")
    fake.calls = []
    fake.run = lambda config: fake.calls.append(("run", config)) or Path("runs/x/report/index.html")
    parts = {
        "dartune.check": ("check", lambda config, every=False: fake.calls.append(("check", config)) or "all good"),
        "dartune.report.show": (
            "show",
            lambda subject, what: fake.calls.append(("show", subject, what)) or f"some {what}",
        ),
        "dartune.report.build": (
            "rebuild_report",
            lambda folder, sections=(): fake.calls.append(("report", folder)) or "made",
        ),
    }
    for module, (name, function) in parts.items():
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: function}))
    monkeypatch.setitem(sys.modules, "dartune.pipeline", fake)
    monkeypatch.setattr("dartune.pipeline", fake, raising=False)
    return fake


def failing(pipeline, error):
    def run(config):
        raise error

    pipeline.run = run


def test_run_takes_a_recipe_and_flags_in_any_order(pipeline, capsys):
    recipe = str(ROOT / "recipes/lab.yaml")
    assert main(["run", "--mapper.steps", "7", recipe, "--sft.steps=9", "--output", "runs/x"]) == 0
    (verb, config) = pipeline.calls[0]
    assert (verb, config.mapper.steps, config.sft.steps, config.output) == ("run", 7, 9, "runs/x")
    assert config.mapper.path == "lab:mapper"
    assert capsys.readouterr().out == "runs/x/report/index.html\n"


def test_without_a_recipe_the_defaults_for_own_data_apply(pipeline):
    assert main(["check", *LAB]) == 0
    assert pipeline.calls[0][1].mapper.path is None


def test_demo_runs_the_lab_recipe_of_the_package(pipeline):
    assert main(["demo", "--mapper.steps", "2"]) == 0
    assert (pipeline.calls[0][1].name, pipeline.calls[0][1].mapper.steps) == ("lab", 2)
    assert (SHIPPED / "lab.yaml").read_text() == (ROOT / "recipes/lab.yaml").read_text()


def test_a_shipped_recipe_is_addressed_by_name_unless_such_a_file_exists(pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "lab"]) == 0
    assert main(["check", "lba"]) == 2
    assert "there is no recipe lba, did you mean lab?" in capsys.readouterr().err
    assert main(["check", "nothing-like-it"]) == 2
    assert "shipped with dartune: code-qwen3-1.7b, gsm8k-qwen3-0.6b, lab, " in capsys.readouterr().err
    assert main(["check", "somewhere/lab"]) == 2
    Path("lab").write_text("output: runs/mine\ndata: {path: 'lab:values'}\ntarget: {path: 'lab:equations'}")
    assert main(["check", "lab"]) == 0
    assert [config.name for _, config in pipeline.calls] == ["lab", "mine"]


def test_show_and_report_accept_existing_runs(pipeline, tmp_path, capsys):
    from dartune.config.load import load_config

    config = load_config(None, {"data": "lab:values", "target": "lab:equations"})
    with RunFolder(tmp_path / "run", print) as run:
        run.note_config(config.resolved_yaml())
    folder = str(tmp_path / "run")
    assert main(["show", "config", folder]) == 0
    assert capsys.readouterr().out == config.resolved_yaml()
    record = tmp_path / "run" / "config.resolved.yaml"
    old = record.read_text().replace("sft:\n  lora_rank: null\n", "sft:\n  adapter: full\n  lora_rank: 16\n")
    record.write_text(f"name: x\n{old}")
    assert main(["show", "config", folder]) == 0 and "adapter" in record.read_text()
    assert yaml.safe_load(capsys.readouterr().out) == config.model_dump(mode="json")
    assert main(["show", "rewrites", folder]) == 0
    assert main(["show", "data", *LAB]) == 0
    assert main(["report", folder]) == 0
    assert main(["status", folder]) == 0
    assert [call[0] for call in pipeline.calls] == ["show", "show", "report"]
    assert pipeline.calls[0][1:] == (Path(folder), "rewrites")
    assert pipeline.calls[1][1:] == (config, "data")
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    for arguments in (["report"], ["status"], ["show", "data"]):
        assert main([*arguments, str(tmp_path / "empty")]) == 2
        assert "there is no run in" in capsys.readouterr().err
    assert main(["show", "rewrites", folder, "--mapper.steps", "3"]) == 2
    assert "flags change recipes only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no.yaml"], "there is no recipe no.yaml"),
        (["run", "."], ". is a folder, not a recipe"),
        (["run", "--data", "lab:values", "--target", "./no-model"], "there is no model folder './no-model'"),
        (["run", *LAB, "--mapper.step", "3"], "unknown flag --mapper.step, did you mean --mapper.steps?"),
        (["run", *LAB, "--mapper.steps"], "--mapper.steps needs a value"),
        (["run", *LAB, "--mapper.steps", "--mapper.kl", "0"], "--mapper.steps needs a value"),
        (["run", *LAB, "--name", "a", "--name=b"], "--name is given twice"),
        (["run", "a.yaml", "b.yaml"], "unrecognized arguments: b.yaml"),
        (["walk"], "invalid choice: 'walk'"),
        (["show", "everything", *LAB], "invalid choice: 'everything'"),
        (["status"], "required: run"),
        (["status", "x", "--verbose"], "unrecognized arguments: --verbose"),
        (["lab"], "required: {build,show}"),
    ],
)
def test_invalid_input_gives_a_message_and_exit_code_2(pipeline, arguments, message, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("error: ") and "Traceback" not in shown.err
    assert shown.out == "" and pipeline.calls == []


def test_a_negative_number_is_a_value(pipeline):
    assert main(["run", *LAB, "--reward.answer_logprob", "-1.5"]) == 0
    assert pipeline.calls[0][1].reward.answer_logprob == -1.5
    assert split_overrides(["--a", "-1", "b", "--c=--d"]) == (["b"], {"a": "-1", "c": "--d"})


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's exception."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("bad rows", ["row 3: empty", "row 9: empty"]), 2, "error: bad rows\n  - row 3: empty\n"),
        (MachineError("no GPU"), 3, "error: no GPU"),
        (OSError(errno.ENOSPC, "No space left on device"), 3, "the disk is full"),
        (MemoryError(), 3, "out of memory (MemoryError); lower execution.microbatch_tokens"),
        (OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore"), 3, "Tried 2 GiB.); lower"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 3, "out of memory"),
    ],
)
def test_expected_failures_print_a_message_without_traceback(pipeline, error, code, message, capsys):
    failing(pipeline, error)
    assert main(["run", *LAB]) == code
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


def test_other_exceptions_are_reported_as_bugs_with_a_traceback(pipeline, capsys):
    failing(pipeline, RuntimeError("shapes (3,) and (4,)"))
    assert main(["run", *LAB]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "shapes (3,) and (4,)" in shown
    assert f"this is a bug in dartune {__version__}" in shown


def test_an_interrupted_command_prints_how_to_continue(pipeline, capsys):
    failing(pipeline, KeyboardInterrupt())
    assert main(["run", *LAB]) == 130
    assert f"the same command continues: dartune run {' '.join(LAB)}" in capsys.readouterr().err


def test_long_problem_lists_are_truncated_and_counted():
    error = InputError("bad rows", [f"row {n}" for n in range(SHOWN_PROBLEMS + 5)])
    lines = str(error).splitlines()
    assert len(lines) == 1 + SHOWN_PROBLEMS + 1
    assert lines[-1].strip() == "... and 5 more"
    assert len(error.problems) == SHOWN_PROBLEMS + 5


def test_help_lists_verbs_keys_and_exit_codes(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    for word in ("run", "check", "demo", "status", "report", "show", "lab", "--mapper.steps", "Exit codes"):
        assert word in shown
    assert shown_help(["run", "--help-all"], capsys).count("--sft.learning_rates [[1e-06, 1e-05]]") == 1


def shown_help(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", CONFIGURED)
def test_help_shows_the_ten_most_important_keys_with_examples_that_are_valid(verb, capsys, tmp_path, monkeypatch):
    shown = shown_help([verb, "--help"], capsys)
    examples = [line.strip() for line in shown.splitlines() if line.startswith("  --") and "show this help" not in line]
    flags = [example for example in examples if "." in example.split()[0] or example.split()[0] in SHORT]
    assert len(flags) == 10 and len(shown.splitlines()) < 70
    arguments = [word for flag in flags for word in shlex.split(flag)]
    overrides = split_overrides(arguments)[1]
    assert len(overrides) == 10
    monkeypatch.chdir(tmp_path)
    Path("my.jsonl").touch()
    load_config(None, {"data": "lab:values"} | overrides)  # all values are valid
    lines = shown.partition("Examples:\n")[2].splitlines()
    assert lines and all(line.startswith(f"  dartune {verb}") for line in lines)
    everything = shown_help([verb, "--help-all"], capsys)
    assert all(f"--{key} [" in everything for key in config_fields()) and "grpo_tokens" in everything


def command(code, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, **options)


def test_a_closed_pipe_is_not_an_error(tmp_path):
    code = (
        "import sys\nfrom dartune.cli import main\n"
        "sys.exit(main(['show', 'config', '--data', 'lab:values', '--target', 'lab:equations', "
        "'--target.system_prompt', 'x' * 1_000_000]))"
    )
    process = command(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    stderr = process.stderr.read()
    assert (process.wait(timeout=60), stderr) == (0, "")
    process.stderr.close()


def test_ctrl_c_during_a_stage_exits_130_and_the_run_continues(tmp_path):
    code = f"""
import sys, time, types
from pathlib import Path
import dartune
from dartune.cli import main
from dartune.config.recipe import SHIPPED
from dartune.run.folder import RunFolder

def work(out):
    print("working", flush=True)
    time.sleep(60)

def run(config):
    with RunFolder(Path(config.output)) as folder:
        folder.stage("train", {{}}, work)

sys.modules["dartune.pipeline"] = dartune.pipeline = types.SimpleNamespace(run=run)
sys.exit(main([*{["run", *LAB]}, "--output", {str(tmp_path / "run")!r}]))
"""
    # A background job may inherit that SIGINT is ignored.
    default_sigint = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = command(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **default_sigint)
    assert process.stdout.readline() == "working\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in stderr and "Traceback" not in stderr
    run = RunFolder(tmp_path / "run", print)
    run.stage("train", {}, lambda out: None)
    assert run.cost("train").seconds >= 0.05  # the time of the interrupted attempt
    run.close()
