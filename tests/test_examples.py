"""The examples run, and their printed values match the files of the run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dartune.run.files import read_jsonl

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "inspect_a_run.ipynb"


def run_example(name: str, folder: Path) -> tuple[str, Path]:
    """Run an example with two steps of mapper training; returns its output and its run folder."""
    output = folder / "run"
    process = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--steps", "2", "--output", str(output)],
        cwd=folder,
        env=os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout, output


@pytest.mark.slow
def test_a_user_defined_reward_is_used_for_the_mapper(tmp_path):
    printed, output = run_example("own_reward.py", tmp_path)
    assert len(re.findall(r"^step \d: reward ", printed, re.MULTILINE)) == 2
    rows = read_jsonl(output / "stages" / "synthesise-s0" / "rows.jsonl")
    parts = [row["reward"] for row in rows if row["provenance"] == "rewrite"]
    assert parts and all(part["own_reward:wordy"] >= 0 for part in parts)
    assert any(part["own_reward:wordy"] > 0 for part in parts)
    charged = [part for part in parts if part["own_reward:wordy"] > 0]
    assert all(part["reward"] == pytest.approx(part["gain"] - part["own_reward:wordy"]) for part in charged)


@pytest.mark.slow
def test_the_score_from_python_equals_that_of_the_data_set(tmp_path):
    printed, output = run_example("as_a_library.py", tmp_path)
    scores = re.findall(r"^alignment (\S+) -> (\S+), in the data set (\S+):", printed, re.MULTILINE)
    assert len(scores) == 3
    assert all(after == published for _, after, published in scores)
    assert len(re.findall(r"^dart - sft, .*: [+-]", printed, re.MULTILINE)) == 4
    assert (output / "report" / "index.html").exists()


def code_cells() -> list[dict]:
    """The code cells of the notebook, in the order of the file."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_was_run_in_order_and_shows_no_local_path():
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    printed = "".join(line for output in outputs for line in output.get("text", ()))
    assert "dart - sft, retention" in printed and not re.search(r"(?<![\w.])/\w+/\w+|Traceback|Warning", printed)
    assert NOTEBOOK.stat().st_size < 100_000


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for cell in code_cells():
        source = "".join(cell["source"])
        if cell["id"] == "run":
            assert source.count("steps = 10\n") == 1
            source = source.replace("steps = 10\n", "steps = 2\n")
        exec(compile(source, cell["id"], "exec"), scope)
    matplotlib.pyplot.close("all")
    printed = capsys.readouterr().out
    assert len(scope["curve"]) == 2 and scope["curve"][0]["gate_pass"] > 0
    assert sum(scope["adapted"]["provenance"].values()) == 120
    assert scope["example"]["alignment_after"] > scope["example"]["alignment_before"]
    assert len(re.findall(r"^dart - sft, ", printed, re.MULTILINE)) == 4
