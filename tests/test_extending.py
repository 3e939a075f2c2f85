"""The examples of docs/extending.md, each put to use."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from dartune.answers.checker import AnswerChecker
from dartune.answers.task_families import TASKS
from dartune.cli import main
from dartune.config.arm_config import problems
from dartune.config.arms import ARMS
from dartune.config.load import load_config
from dartune.data.load import load_demonstrations
from dartune.data.public_datasets import PUBLIC
from dartune.engines.hf import HFEngine
from dartune.errors import InputError
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.report.build import _section_maker, rebuild_report
from dartune.report.page import write_report
from dartune.rewards.reward import reward_parts
from dartune.run.files import write_jsonl
from dartune.stages.data import load
from dartune.stages.names import evaluation_stage, train_stage
from dartune.train.trackers import tracking
from fixtures_models import save_tiny, tiny_model
from fixtures_report import full
from test_pipeline import arguments, word_problems

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
BASE = {"data.path": "lab:values", "target.path": "lab:backward"}


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The page's examples as the module `my_parts`."""
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    (tmp_path / "my_parts.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("my_parts")
    yield module
    del PUBLIC["worked examples"]
    sys.modules.pop("my_parts")
    for registry in (ARMS, TASKS):
        for name in [name for name in registry if ":" in name]:
            del registry[name]


def test_every_extension_point_has_an_example():
    sections = re.findall(r"^## (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(sections) == 10
    assert re.findall(r"^\| \[(.*?)\]", PAGE.read_text("utf-8"), re.MULTILINE) == [name.lower() for name in sections]


def test_gate_score_and_penalty(parts):
    changes = {
        "reward.gates": "[all, my_parts:no_html]",
        "reward.alignment": "my_parts:careful",
        "reward.penalties": "{my_parts:exclamations: 0.1}",
    }
    used = reward_parts(load_config(None, BASE | changes).reward)
    assert used["score"] is parts.careful and used["gates"][-1] == "no_html"
    assert used["penalties"] == [("my_parts:exclamations", 0.1, parts.exclamations)]
    for rewrite, passes in (("a <b>1</b>", False), ("a = 1", True)):
        item = GateInput("How many?", "1 + 1 = 2", rewrite, "2")
        assert used["own_gates"]["no_html"](item, GateThresholds()) is passes


def test_arm(parts):
    config = load_config(None, BASE | {"arms": "[base, dart, my_parts:dart_quarter]"})
    assert problems(config, in_lab=True) == []
    assert ARMS["my_parts:dart_quarter"].select == 0.25
    assert train_stage("my_parts:dart_quarter", 0, 1e-5) == "train-dart_quarter-s0-lr1e-05"
    assert evaluation_stage("my_parts:dart_quarter", 0) == "evaluate-dart_quarter-s0"


def test_unusable_arms_are_reported(parts):
    for name, reason in (
        ("my_parts:missing", "has no 'missing'"),
        ("no_module_of_this_name:arm", "cannot import"),
        ("my_parts:careful", "is of type function, not Arm"),
    ):
        (problem,) = problems(load_config(None, BASE | {"arms": f"[base, {name}]"}), in_lab=True)
        assert reason in problem
    with pytest.raises(InputError, match="should be 'base'"):
        load_config(None, BASE | {"arms": "[base, dert]"})


def test_data_layout(parts, tmp_path):
    rows = [{"problem_text": f"What is {i}+1?", "worked_solution": f"{i}+1 = {i + 1}\n#### {i + 1}"} for i in range(3)]
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, rows)
    for columns in ({}, {"question": "problem_text", "solution": "worked_solution"}):
        read = load_demonstrations(path, columns=columns)
        assert [row.question for row in read] == [row["problem_text"] for row in rows]
        assert [row.solution for row in read] == [row["worked_solution"] for row in rows]


def test_answer_family(parts, tmp_path):
    rows = [
        {"question": f"Name {i}?", "solution": f"It is so.\nThe answer is Ab c{i}.", "answer": f"abC{i}"}
        for i in range(30)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    changes = {"data.path": str(tmp_path / "rows.jsonl"), "data.task": "my_parts:letters", "data.test": "2"}
    data = load(load_config(None, BASE | changes))
    family = TASKS["my_parts:letters"]
    assert family is parts.letters and {row.task for row in data.train} == {"my_parts:letters"}
    (stated, *_) = family.stated(data.train[0].solution)
    assert family.same(stated.text, data.train[0].answer)
    assert not family.same(stated.text, data.train[1].answer)


def test_engine(parts):
    engine = parts.LoggedEngine(HFEngine(tiny_model("llama", 32, pad=0, eos=1)))
    pairs = [((1, 2, 3), (4, 5))]
    assert engine.score(pairs) == engine.engine.score(pairs)
    assert engine.calls == 1 and engine.scored_tokens == 4


def test_tracker(parts, tmp_path):
    with tracking(["my_parts:PrintTracker"], "a run", {"sft": {"steps": 1}}, tmp_path, print) as trackers:
        (tracker,) = trackers.trackers
        write_jsonl(tmp_path / "metrics.jsonl", [])
        trackers.follow("train", tmp_path, lambda step, row: None)(1, {"step": 1, "loss": 0.5})
    assert tracker.run_name == "a run"
    assert tracker.logged == [(1, {"train/step": 1.0, "train/loss": 0.5})]


def test_suite(parts, tmp_path):
    rows = [{"question": f"What is {i}+1?", "solution": f"{i}+1 = {i + 1}\n#### {i + 1}"} for i in range(40)]
    write_jsonl(tmp_path / "train.jsonl", rows[:30])
    write_jsonl(tmp_path / "test.jsonl", rows[30:])
    changes = {"data.path": str(tmp_path / "train.jsonl"), "data.test": "0"}
    data = load(load_config(None, BASE | changes | {"evaluate.suites": f"{{held_out: {tmp_path / 'test.jsonl'}}}"}))
    assert [row.answer for row in data.suites["held_out"]] == [str(i + 1) for i in range(30, 40)]


def test_report_section(parts, tmp_path):
    results = full()
    page = write_report(tmp_path, results, sections=[parts.shortest]).read_text("utf-8")
    assert "<h2>Suites</h2>" in page and "Questions per suite." in page
    assert all(f'<td data-label="suite">{suite["name"]}</td>' in page for suite in results["suites"])


@pytest.mark.slow
def test_a_run_with_parts_of_its_own(parts, tmp_path, capsys):
    data = word_problems(tmp_path / "problems.jsonl", 30)
    target = save_tiny(tmp_path / "target", "llama", context=2048)
    own = [
        "--reward.gates=[all, my_parts:no_html]",
        "--reward.alignment=my_parts:careful",
        "--reward.penalties={my_parts:exclamations: 0.1}",
        "--arms=[base, sft, dart, my_parts:dart_quarter]",
        "--trackers=[my_parts:PrintTracker]",
    ]
    assert main(arguments(data, target, tmp_path / "run", *own)) == 0
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    assert results["arms"] == ["base", "sft", "dart", "my_parts:dart_quarter"]
    assert main(["report", str(tmp_path / "run"), "--section", "my_parts:shortest"]) == 0
    assert "<h2>Suites</h2>" in (tmp_path / "run" / "report" / "index.html").read_text()


def test_broken_parts_are_input_errors(parts, tmp_path, capsys):
    (tmp_path / "bad_parts.py").write_text(
        "from dartune.answers.task_families import Task\n"
        "from dartune.config.arms import Arm\n"
        "arm = Arm('a typo', rows='darts', loss='mse')\n"
        "def gate(item): return True\n"
        "def section(results): return results['missing']\n"
        "class NoMethods: pass\n"
        "class TwoArguments:\n"
        "    def __init__(self, name, address): pass\n"
        "    start = store_init_configuration = log = finish = lambda *arguments, **keywords: None\n"
        "class Family(Task):\n"
        "    def same(self, predicted, gold): return 1 / 0\n"
        "family = Family()\n"
    )
    rows = [{"question": f"What is {i}+1?", "solution": f"{i}+1 = {i + 1}\n#### {i + 1}"} for i in range(40)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    words = ["check", "--data", str(tmp_path / "rows.jsonl"), "--target", "lab:backward"]
    assert main([*words, "--arms=[base, bad_parts:arm]", "--reward.gates=[all, bad_parts:gate]"]) == 2
    errors = capsys.readouterr().err
    assert "bad_parts:arm: rows is 'darts' but should be one of None, 'demonstrations'" in errors
    assert "bad_parts:arm: loss is 'mse' but should be one of" in errors
    assert "reward.gates: gate fails with TypeError" in errors
    assert main([*words, "--arms=[base, no_such_module:arm]", "--reward.form=foo"]) == 2
    errors = capsys.readouterr().err
    assert "cannot import 'no_such_module'" in errors and "reward.form: there is no 'foo'" in errors
    parts_that_fail = ("--reward.penalties={bad_parts:fine: 0.1}", "--reward.alignment=bad_parts:score")
    trackers = "--trackers=[bad_parts:TwoArguments, bad_parts:NoMethods, bad_parts:gate]"
    assert (
        main([*words, "--reward.gates=[all, bad_parts:one, bad_parts:gate, bad_parts:two]", *parts_that_fail, trackers])
        == 2
    )
    errors = capsys.readouterr().err
    for name in ("one", "two", "fine", "score"):
        assert f"bad_parts has no '{name}'" in errors
    assert "reward.gates: gate fails with TypeError" in errors
    assert "trackers: bad_parts:TwoArguments cannot be called with one argument, the name of the project" in errors
    assert "trackers: bad_parts:NoMethods has no method start, store_init_configuration, log, finish" in errors
    assert "trackers: bad_parts:gate is a function, not a class" in errors
    assert main([*words, "--data.task=bad_parts:family"]) == 2
    errors = capsys.readouterr().err
    assert (
        "data.task: bad_parts:family: same('1', '1') fails with ZeroDivisionError" in errors and "a bug" not in errors
    )
    with AnswerChecker() as checker, pytest.raises(InputError, match=r"bad_parts:family: same\('7', '8'\) fails"):
        checker.check([("7", "8")], TASKS["bad_parts:family"])
    with pytest.raises(InputError, match="must be module:function"):
        rebuild_report(tmp_path, ["section"])
    with pytest.raises(InputError, match="bad_parts:section fails with KeyError"):
        _section_maker("bad_parts:section")({})
