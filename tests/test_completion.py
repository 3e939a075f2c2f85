"""Shell completion: what the shell is answered for a command line, and that the answer loads no heavy library."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dartune.cli import main
from dartune.command_line.completion import SHELLS
from test_light_imports import HEAVY

ROOT = Path(__file__).parents[1]
PROGRAM = "import sys; from dartune.cli import main; sys.exit(main())"


@pytest.fixture
def folder(tmp_path):
    """A folder with a recipe, data, a run and other files."""
    for name in ("mine.yaml", "my.jsonl", "my.csv", "notes.txt", "more data.parquet"):
        (tmp_path / name).write_text("")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def asked(line: str, folder: Path, *python: str) -> tuple[list[str], str]:
    """The completions of a command line whose end is under the cursor, and what Python printed on stderr."""
    answer = folder / ".answer"
    asking = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'@><=;|&(:",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "PYTHONPATH": str(ROOT / "src"),
    }
    command = [sys.executable, *python, "-c", PROGRAM]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **asking}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return answer.read_text().split("\n"), done.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dartune ch", ["check", "check-reward"]),
        ("dartune run --mapper.st", ["--mapper.steps"]),
        ("dartune run --mapper.objective ", ["grpo", "vargrad"]),
        ("dartune run --mapper.objective=v", ["vargrad"]),
        ("dartune run --target.thinking ", ["true", "false"]),
        ("dartune check --data.task n", ["numeric"]),
        ("dartune run --trackers w", ["wandb"]),
        ("dartune run --arms base,sft,grpo_t", ["base,sft,grpo_tokens"]),
        ("dartune run --mapper.steps ", [""]),
        ("dartune run m", ["math-llama3-8b-lora", "mine.yaml"]),
        ("dartune run --data m", ["more\\ data.parquet", "my.csv", "my.jsonl"]),
        ("dartune run --target.path r", ["runs/"]),
        ("dartune show rewrites runs/", ["runs/first/"]),
        ("dartune status ru", ["runs/"]),
        ("dartune diagnose mine.yaml --ro", ["--rows"]),
        ("dartune push runs/first --what ", ["data", "model", "mapper"]),
        ("dartune completion f", ["fish"]),
        ('dartune run --data "m', ["more data.parquet", "my.csv", "my.jsonl"]),
        ("dartune run --help", ["--help", "--help-all"]),
    ],
)
def test_completions_of_a_line(line, expected, folder):
    assert sorted(asked(line, folder)[0]) == sorted(expected)


def test_all_commands_and_all_keys_are_offered(folder):
    from dartune.command_line.key_help import config_fields

    commands = asked("dartune ", folder)[0]
    assert {"run", "diagnose", "status", "completion", "lab", "--help"} <= set(commands)
    keys = asked("dartune run --", folder)[0]
    assert {f"--{key}" for key in config_fields()} | {"--data", "--target"} <= set(keys)


def test_an_answer_loads_no_heavy_library_and_for_commands_not_the_config(folder):
    _, log = asked("dartune run --mapper.", folder, "-X", "importtime")
    loaded = {line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time")}
    assert "dartune.config.schema" in loaded and loaded.isdisjoint(HEAVY)
    _, log = asked("dartune st", folder, "-X", "importtime")
    loaded = {line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time")}
    assert "argcomplete" in loaded and "dartune.config.schema" not in loaded


@pytest.mark.parametrize("shell", SHELLS)
def test_the_code_of_a_shell_is_valid(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "dartune" in code and "_ARGCOMPLETE" in code
    if shutil.which(shell):
        path = tmp_path / "code"
        path.write_text(code)
        subprocess.run([shell, "-n", str(path)], check=True, timeout=60)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_a_command(folder):
    stub = folder / "bin" / "dartune"
    stub.parent.mkdir()
    stub.write_text(f"#!{sys.executable}\n{PROGRAM}\n")
    stub.chmod(0o755)
    script = (
        'eval "$(dartune completion bash)"\n'
        "COMP_LINE='dartune run --mapper.objective v'; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9\n"
        "_python_argcomplete dartune\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["vargrad"], done.stderr


@pytest.mark.parametrize("shell", ["", "tcsh"])
def test_another_shell_is_an_error(shell, capsys):
    assert main(["completion", *filter(None, [shell])]) == 2
    assert "completion --help" in capsys.readouterr().err
