"""Standard benchmarks: the harness measures the models that a run chose, and its figures are kept."""

import json

import pytest

from dartune.benchmarks import benchmark, table
from dartune.cli import main
from dartune.run import read_jsonl, write_jsonl
from fixtures_models import save_tiny
from test_pipeline import arguments, word_problems

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: ["yes", "no"]
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    parts = word_problems(folder / "problems.jsonl", 30), save_tiny(folder / "target", "llama", context=2048)
    assert main(arguments(*parts, folder / "run", "--arms=[base, sft]")) == 0
    rows = [{"question": f"Is {n} even?", "label": n % 2} for n in range(20)]
    (folder / "even.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "even.yaml").write_text(TASK.format(name="even_numbers", data=folder / "even.jsonl"))
    return folder / "run"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_the_harness_measures_every_arm_and_adds_to_what_is_known(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    command = ["benchmark", str(run), "--tasks", "even_numbers", "--include", str(run.parent / "tasks")]
    assert main([*command, "--arms", "base"]) == 0
    assert main([*command, "--arms", "sft", "--limit", "10"]) == 0
    assert main([*command, "--arms", "base", "--limit", "5"]) == 0
    kept = json.loads((run / "benchmarks.json").read_text())["measured"]
    assert [(one["arm"], one["limit"], one["seed"]) for one in kept] == [
        ("base", None, 0),
        ("sft", 10, 0),
        ("base", 5, 0),
    ]
    assert all(0 <= one["values"]["acc"] <= 1 for one in kept) and kept[0]["values"]["acc_stderr"] > 0
    assert main([*command, "--arms", "base"]) == 0
    again = json.loads((run / "benchmarks.json").read_text())["measured"]
    assert sorted(again, key=str) == sorted(kept, key=str)
    assert "even_numbers  acc     " in capsys.readouterr().out


ANSWERS = """
task: own_answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], max_gen_toks: 16}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_a_model_answers_the_harness_as_it_answered_in_the_run(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    said = {row["id"]: row["text"] for row in read_jsonl(run / "stages" / "evaluate-sft-s0" / "records.jsonl")}
    asked = read_jsonl(run / "stages" / "data" / "suite-in_distribution.jsonl")
    write_jsonl(tmp_path / "own.jsonl", [{"question": row["question"], "answer": said[row["id"]]} for row in asked])
    (tmp_path / "own.yaml").write_text(ANSWERS.format(data=tmp_path / "own.jsonl"))
    found = benchmark(run, ["own_answers"], ["sft"], include=tmp_path)
    assert "own_answers  exact_match  1.000" in found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_a_task_that_cannot_be_used_is_told_before_any_model_is_loaded(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    (tmp_path / "odd.yaml").write_text(TASK.format(name="no_data", data=tmp_path / "none.jsonl"))
    unsafe = TASK.format(name="writes_code", data=run.parent / "even.jsonl") + "unsafe_code: true\n"
    (tmp_path / "unsafe.yaml").write_text(unsafe)
    assert main(["benchmark", str(run), "--tasks", "no_data,writes_code", "--include", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "no_data cannot be loaded" in said and "writes_code would run code that a model wrote" in said


@pytest.mark.slow
def test_everything_that_is_wrong_is_told_at_once(run, capsys):
    command = ["benchmark", str(run), "--tasks", "no_such_task_at_all", "--arms", "base,dart", "--seed", "4"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "arm dart was not run" in said and "seed 4 was not run" in said and "no task 'no_such_task_at_all'" in said


@pytest.mark.slow
def test_without_the_harness_the_way_to_get_it_is_told(run, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    assert main(["benchmark", str(run), "--tasks", "gsm8k"]) == 3
    assert "pip install lm-eval" in capsys.readouterr().err


def test_figures_stand_with_their_standard_errors():
    scores = {
        arm: {"gsm8k": {"exact_match,strict": share, "exact_match_stderr,strict": 0.01}}
        for arm, share in (("base", 0.25), ("dart", 0.5))
    }
    assert table(scores).splitlines()[1].split("  ") == [
        "gsm8k",
        "exact_match,strict",
        "0.250 ± 0.010",
        "0.500 ± 0.010",
    ]
