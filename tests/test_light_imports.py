"""Commands that need no model answer at once: they load no heavy library, not by way of other modules either."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "scipy", "matplotlib", "math_verify")
COMMAND = """
import sys
from dartune.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stopped:
    code = stopped.code
print("ended", code, *sys.modules)
"""
PYTHON_API = """
import sys, dartune
from dartune import load_config
loaded = list(sys.modules)
from dartune import load_mapper, pipeline, score
assert callable(pipeline.run) and callable(score) and callable(load_mapper)
print("ended", 0, *loaded)
"""


def importers(log: str, module: str) -> str:
    """Who imported a module, by the log of `-X importtime`: what is imported stands above what imports it."""
    chain: list[str] = []
    depth = None
    for line in log.splitlines():
        match = re.fullmatch(r"import time:.*\|.*\| ( *)(\S+)", line)
        if match is None or (depth is None and match[2] != module):
            continue
        if depth is None or len(match[1]) < depth:
            depth = len(match[1])
            chain.append(match[2])
        if depth == 0:
            break
    return " <- ".join(chain)


def ended(program: str, *words: str) -> tuple[int, str, dict[str, str]]:
    """The exit code, what is said on stderr, and the heavy libraries that were loaded, with who imported them."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    mark, code, *modules = done.stdout.splitlines()[-1].split()
    assert mark == "ended", done.stderr
    said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time:"))
    return int(code), said, {name: importers(done.stderr, name) for name in HEAVY if name in modules}


@pytest.fixture
def broken(tmp_path) -> dict[str, str]:
    """Things that do not work, by name."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {path: [\n", encoding="utf-8")
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("data: {path: lab:values}\ntarget: {path: lab:equations}\nmaper: {steps: 3}\n", encoding="utf-8")
    rows = [{"question": f"What is {n} + 1?", "solution": f"{n} + 1 = {n + 1}."} for n in range(12)]
    data = {
        "BROKEN-ROW": [*map(json.dumps, rows), '{"question": '],
        "UNKNOWN-COLUMN": [json.dumps({"frage": row["question"], "antwort": row["solution"]}) for row in rows],
        "EMPTY-FILE": [],
        "NO-USABLE-ROW": [json.dumps(row | {"solution": ""}) for row in rows],
    }
    for name, lines in data.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {
        "NOT-YAML": str(recipe),
        "UNKNOWN-KEY": str(unknown),
        "NOTHING": str(tmp_path / "nothing"),
        **{name: str(tmp_path / f"{name}.jsonl") for name in data},
    }


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("", 0),
        ("--help", 0),
        ("run --help", 0),
        ("run --help-all", 0),
        ("completion bash", 0),
        ("show config --data lab:values --target lab:equations", 0),
        ("check NOT-YAML", 2),
        ("check UNKNOWN-KEY", 2),
        ("check --data NOTHING --target lab:equations", 2),
        ("check --data BROKEN-ROW --target lab:backward", 2),
        ("check --data UNKNOWN-COLUMN --target lab:backward", 2),
        ("check --data EMPTY-FILE --target lab:backward", 2),
        ("check --data NO-USABLE-ROW --target lab:backward", 2),
        ("run UNKNOWN-KEY", 2),
        ("score --data BROKEN-ROW --target lab:backward --output NOTHING.parquet", 2),
        ("run --data BROKEN-ROW --target lab:backward --output NOTHING", 2),
        ("status NOTHING", 2),
        ("compare NOTHING NOTHING", 2),
        ("push NOTHING --to owner/name --dry-run", 2),
        ("export NOTHING --layout trl --output OUT", 2),
        ("adapt NOTHING --data BROKEN-ROW --output NOTHING", 2),
    ],
)
def test_what_needs_no_model_loads_no_heavy_library(words, code, broken):
    got, stderr, loaded = ended(COMMAND, *(broken.get(word, word) for word in words.split()))
    assert (got, loaded) == (code, {}), stderr


def test_data_that_cannot_be_used_hide_no_problem_of_the_config_or_of_the_model_files(broken, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{", encoding="utf-8")
    command = ("check", "--data", broken["BROKEN-ROW"], "--target", str(tmp_path / "model"), "--arms", "[base, gold]")
    code, stderr, loaded = ended(COMMAND, *command)
    assert (code, loaded) == (2, {}), stderr
    for problem in ("line 13: invalid JSON", "config.json is not JSON", "no weights", "gold needs the lab's worlds"):
        assert problem in stderr
    assert "The models were not loaded, because the data cannot be used" in stderr


@pytest.mark.slow
def test_importing_dartune_and_naming_a_recipe_loads_none():
    assert ended(PYTHON_API)[2] == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["status RUN", "push RUN --to owner/name --dry-run", "push RUN --to owner/name --dry-run --what mapper"]
)
def test_looking_at_a_finished_run_loads_none(words, finished_run):
    code, stderr, loaded = ended(COMMAND, *(str(finished_run) if word == "RUN" else word for word in words.split()))
    assert (code, loaded) == (0, {}), stderr


@pytest.mark.slow
def test_comparing_runs_loads_scipy_alone(finished_run, tmp_path):
    """For the intervals of what the runs agree on."""
    code, said, loaded = ended(COMMAND, "compare", str(finished_run), str(finished_run))
    assert code == 0 and loaded.keys() <= {"scipy"}, (loaded, said)


def test_a_chain_of_imports_is_told():
    names = ("    torch", "    os", "  a.b", "c")
    log = "\n".join(f"import time: 1 | 2 | {name}" for name in names)
    assert importers(log, "torch") == "torch <- a.b <- c"
