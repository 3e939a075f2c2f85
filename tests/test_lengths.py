"""What cannot end well is refused before the start, and leaves a finished run as it was."""

import json

import pytest

from dartune.cli import main
from dartune.config.load import load_config
from dartune.errors import InputError
from dartune.stages.prepare import examine, prepare_run
from fixtures_models import save_tiny

QUICK = {
    "sft.steps": "1",
    "sft.learning_rates": "[1e-3]",
    "sft.batch_size": "2",
    "evaluate.max_new_tokens": "4",
    "mapper.max_new_tokens": "8",
    "arms": "[base, sft]",
}


@pytest.fixture
def world(tmp_path):
    """A tiny target that reads 200 tokens, twelve sums, and settings for both."""
    save_tiny(tmp_path / "target", "llama", context=200)
    write(tmp_path / "sums.jsonl", [row(i) for i in range(12)])
    settings = QUICK | {"data.path": str(tmp_path / "sums.jsonl"), "target.path": str(tmp_path / "target")}
    return tmp_path, settings | {"output": str(tmp_path / "run")}


def row(i, question="", answer=True):
    solution = f"{i} + 1 = {i + 1}." + (f" The answer is {i + 1}." if answer else "")
    return {"id": f"row-{i}", "question": f"What is {i} + 1?{question}", "solution": solution}


def write(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


def flags(settings):
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def problems(settings):
    with pytest.raises(InputError) as caught:
        prepare_run(load_config(None, settings))
    return "\n".join(caught.value.problems)


def test_what_fits_is_accepted(world):
    prepare_run(load_config(None, world[1]))


def test_every_use_that_a_row_is_too_long_for_is_told_with_the_key_to_lower(world):
    folder, settings = world
    write(folder / "hard.jsonl", [row(99, " Think" * 30)])
    long = settings | {"evaluate.suites.hard": str(folder / "hard.jsonl"), "evaluate.max_new_tokens": "30"}
    lines = problems(long | {"arms": "[base, dart]", "mapper.max_new_tokens": "150"})
    assert (
        "a question of hard with evaluate.max_new_tokens (30): up to" in lines
        and "(hard.jsonl line 1 ('row-99'))" in lines
    )
    assert (
        "the mapper's prompt with mapper.max_new_tokens (150): up to" in lines
        and "lower mapper.max_new_tokens" in lines
    )
    write(folder / "sums.jsonl", [*(row(i) for i in range(12)), row(12, " Think" * 40)])
    assert "question and solution: up to" in problems(settings)


def test_every_row_that_is_too_long_is_named_on_request(world):
    folder, settings = world
    write(folder / "sums.jsonl", [row(i, " Think" * 40) for i in range(12)])
    config = load_config(None, settings)
    (few,) = [line for line in examine(config).problems if line.startswith("question and solution")]
    (every,) = [line for line in examine(config, every=True).problems if line.startswith("question and solution")]
    assert " and 5 more" in few and "more" not in every and every.count("'row-") == 10


def test_a_test_without_any_answer_is_refused_before_the_training(world):
    folder, settings = world
    write(folder / "sums.jsonl", [row(i, answer=False) for i in range(12)])
    assert "no test question has an answer" in problems(settings)


def test_a_refused_run_leaves_the_settings_of_the_finished_one(world, capsys):
    folder, settings = world
    assert main(["run", *flags(settings)]) == 0
    kept = (folder / "run" / "config.resolved.yaml").read_text()
    assert main(["run", *flags(settings | {"arms": "[base, gold]"})]) == 2
    assert (folder / "run" / "config.resolved.yaml").read_text() == kept
    assert main(["report", str(folder / "run")]) == 0
    write(folder / "sums.jsonl", [row(i) for i in range(10)])
    capsys.readouterr()
    assert main(["report", str(folder / "run")]) == 2
    assert "has changed since this run was made" in capsys.readouterr().err


def test_a_report_of_a_run_that_has_not_ended_says_so(world, capsys):
    folder, settings = world
    assert main(["run", *flags(settings)]) == 0
    (folder / "run" / "stages" / "evaluate-sft-s0" / "DONE").unlink()
    capsys.readouterr()
    assert main(["report", str(folder / "run")]) == 2
    assert "the stage evaluate-sft-s0 has not finished; run it to its end first" in capsys.readouterr().err


def test_a_matrix_with_a_missing_file_does_not_begin(world, capsys):
    folder, settings = world
    recipe = folder / "matrix.yaml"
    recipe.write_text(f"matrix: {{data.path: [{settings['data.path']}, nothing.jsonl]}}")
    assert main(["run", str(recipe), *flags(settings)]) == 2
    assert "nothing.jsonl" in capsys.readouterr().err and not (folder / "run").exists()
