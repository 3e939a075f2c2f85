"""Standard benchmarks: the harness evaluates the models of a run, and its scores are saved."""

import json

import pytest

from dartune.cli import main
from dartune.publish.lm_eval import benchmark, format_scores
from dartune.run.files import read_jsonl, write_jsonl
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
def test_scores_of_arms_and_limits_are_added_to_the_file(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    command = ["benchmark", str(run), "--tasks", "even_numbers", "--include", str(run.parent / "tasks")]
    assert main([*command, "--arms", "base"]) == 0
    assert main([*command, "--arms", "sft", "--limit", "10"]) == 0
    assert main([*command, "--arms", "base", "--limit", "5"]) == 0
    entries = json.loads((run / "benchmarks.json").read_text())["measured"]
    assert [(entry["arm"], entry["limit"], entry["seed"]) for entry in entries] == [
        ("base", None, 0),
        ("sft", 10, 0),
        ("base", 5, 0),
    ]
    assert all(0 <= entry["values"]["acc"] <= 1 for entry in entries) and entries[0]["values"]["acc_stderr"] > 0
    assert main([*command, "--arms", "base"]) == 0
    repeated = json.loads((run / "benchmarks.json").read_text())["measured"]
    assert sorted(repeated, key=str) == sorted(entries, key=str)
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
def test_answers_in_the_harness_equal_those_of_the_run(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    texts = {row["id"]: row["text"] for row in read_jsonl(run / "stages" / "evaluate-sft-s0" / "records.jsonl")}
    questions = read_jsonl(run / "stages" / "data" / "suite-in_distribution.jsonl")
    write_jsonl(
        tmp_path / "own.jsonl", [{"question": row["question"], "answer": texts[row["id"]]} for row in questions]
    )
    (tmp_path / "own.yaml").write_text(ANSWERS.format(data=tmp_path / "own.jsonl"))
    scores = benchmark(run, ["own_answers"], ["sft"], include=tmp_path)
    assert "own_answers  exact_match  1.000" in scores


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_an_unusable_task_is_reported_before_a_model_is_loaded(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    (tmp_path / "odd.yaml").write_text(TASK.format(name="no_data", data=tmp_path / "none.jsonl"))
    unsafe = TASK.format(name="writes_code", data=run.parent / "even.jsonl") + "unsafe_code: true\n"
    (tmp_path / "unsafe.yaml").write_text(unsafe)
    assert main(["benchmark", str(run), "--tasks", "no_data,writes_code", "--include", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "no_data cannot be loaded" in message and "writes_code would run model-generated code" in message


@pytest.mark.slow
def test_all_problems_are_reported_at_once(run, capsys):
    command = ["benchmark", str(run), "--tasks", "no_such_task_at_all", "--arms", "base,dart", "--seed", "4"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "arm dart was not run" in message and "seed 4 was not run" in message
    assert "no task 'no_such_task_at_all'" in message


@pytest.mark.slow
def test_a_missing_harness_is_reported_with_how_to_install_it(run, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    assert main(["benchmark", str(run), "--tasks", "gsm8k"]) == 3
    assert "pip install lm-eval" in capsys.readouterr().err


def test_scores_are_shown_with_their_standard_errors():
    scores = {
        arm: {"gsm8k": {"exact_match,strict": share, "exact_match_stderr,strict": 0.01}}
        for arm, share in (("base", 0.25), ("dart", 0.5))
    }
    assert format_scores(scores).splitlines()[1].split("  ") == [
        "gsm8k",
        "exact_match,strict",
        "0.250 ± 0.010",
        "0.500 ± 0.010",
    ]
