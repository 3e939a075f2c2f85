"""Matrices: every combination is named, checked before anything runs, run in its own folder, and compared."""

import pytest

from dartune.cli import main
from dartune.config.load import load_config
from dartune.config.matrix import combinations
from dartune.errors import InputError
from test_arms import RECIPE, SMALL

FULL = RECIPE.with_name("lab-full.yaml")


def test_every_combination_is_a_separate_run():
    runs = combinations(load_config(FULL))
    assert [name for name, _ in runs] == [
        f"{target}-{expert}" for target in ("backward", "recall") for expert in ("values", "skipping", "nested")
    ]
    assert len({cell.output for _, cell in runs}) == 6
    name, cell = runs[4]
    assert (cell.target.path, cell.data.path, cell.matrix) == ("lab:recall", "lab:skipping", {})
    assert cell.output == f"runs/lab-full/{name}" and cell.seeds == (0, 1, 2, 3, 4)


def test_problems_of_a_matrix_are_reported_at_once():
    overrides = {"matrix": "{mapper.step: [1], nowhere.key: [1], seeds: [[0], [zero]]}"}
    with pytest.raises(InputError) as caught:
        combinations(load_config(FULL, overrides))
    problems = "\n".join(caught.value.problems)
    assert "unknown key mapper.step, did you mean mapper.steps?" in problems
    assert "there is no key nowhere.key" in problems and "zero" in problems
    with pytest.raises(InputError, match="cannot be run") as caught:
        combinations(load_config(FULL, {"matrix": "{data.path: [a/x.jsonl, b/x.jsonl]}"}))
    assert "two combinations are called x.jsonl" in caught.value.problems[0]


@pytest.mark.parametrize("verb", ["check", "run"])
def test_the_problems_of_all_cells_are_reported_with_their_names_before_anything_runs(verb, tmp_path, capsys):
    bad = {name: tmp_path / f"{name}.jsonl" for name in ("empty", "broken")}
    bad["empty"].write_text("")
    bad["broken"].write_text("{x\n" + '{"question": "1 + 1", "solution": "2"}\n')
    matrix = f"{{data.path: [lab:values, {bad['empty']}, {bad['broken']}], seeds: [[0], [1]]}}"
    flags = ["--matrix", matrix, "--arms", "base", "--output", str(tmp_path / "runs")]
    assert main([verb, str(RECIPE), *flags]) == 2
    message = capsys.readouterr().err.partition("error: ")[2]
    assert message.startswith("the matrix cannot be run")
    assert "values-" not in message and not (tmp_path / "runs").exists()
    positions = [
        message.index(text)
        for text in (
            "empty.jsonl-_0_, empty.jsonl-_1_:",
            "empty.jsonl holds no rows",
            "broken.jsonl-_0_, broken.jsonl-_1_:",
            "broken.jsonl line 1: invalid JSON",
        )
    ]
    assert positions == sorted(positions)


@pytest.mark.slow
def test_a_matrix_runs_and_ends_with_a_comparison(tmp_path, capsys):
    settings = SMALL | {"mapper.max_new_tokens": "64"}
    flags = [argument for key, value in settings.items() for argument in (f"--{key}", value)]
    matrix = ["--matrix", "{data.path: [lab:values, lab:nested]}", "--arms", "[base, dart]"]
    assert main(["run", str(RECIPE), "--output", str(tmp_path / "runs"), *matrix, *flags]) == 0
    output = capsys.readouterr().out
    assert (tmp_path / "runs/values/report/index.html").exists() and (tmp_path / "runs/nested/report").exists()
    assert "nested: data.path lab:values -> lab:nested" in output and "dart - base, points" in output
    assert main(["compare", str(tmp_path / "runs/values"), str(tmp_path / "runs/nested")]) == 0
    assert capsys.readouterr().out.strip() in output
    assert main(["status", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    assert output.count(": finished") == 2 and output.count("mapper-s0") == 2
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.count("accuracy %") == 2
    assert main(["show", "data", str(tmp_path / "runs")]) == 2
    assert "holds several runs; give the folder of one of them: nested, values" in capsys.readouterr().err
