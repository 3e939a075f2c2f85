"""`dartune score`: a data set with its own columns unchanged and the alignment of every row beside them."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

import dartune
from dartune.cli import main
from dartune.config.load import load_config
from dartune.errors import InputError
from dartune.lab.suites import demonstration_problems, write_demonstrations
from dartune.scoring import data_set

TARGET = "lab:backward"
FAST = ("--reward.own_samples=2", "--mapper.max_new_tokens=96")
ADDED = ["alignment", "mean_logprob", "tokens", "alignment_percentile"]


def write_rows(path: Path, count: int = 12) -> list[dict]:
    """Solutions in the target's dialect and in another one, by turns, with columns that dartune does not read."""
    problems = demonstration_problems(count, 0, 16)
    styles = [write_demonstrations(problems, dialect) for dialect in ("backward", "values")]
    rows = [styles[number % 2][number] for number in range(count)]
    contents = [
        {"question": row.question, "solution": row.solution, "level": number, "source": {"page": number}}
        for number, row in enumerate(rows)
    ]
    contents[3]["remark"] = "ümlaut"
    path.write_text("".join(json.dumps(content) + "\n" for content in contents), encoding="utf-8")
    return contents


def score(data: Path, output: Path, *flags: str, code: int = 0) -> None:
    assert main(["score", "--data", str(data), "--target", TARGET, "--output", str(output), *FAST, *flags]) == code


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_columns_stay_and_scores_are_those_of_the_python_function(tmp_path, capsys):
    contents = write_rows(tmp_path / "data.jsonl")
    score(tmp_path / "data.jsonl", tmp_path / "scored.jsonl")
    scored, target = read_jsonl(tmp_path / "scored.jsonl"), dartune.load_target(TARGET)
    assert [{name: value for name, value in row.items() if name not in ADDED} for row in scored] == contents
    for row in scored:
        assert row["alignment"] == pytest.approx(dartune.score(row["question"], row["solution"], target), abs=1e-4)
        assert row["tokens"] == len(target.renderer.response_ids(row["solution"]))
        assert row["mean_logprob"] <= 0
    percentiles = [row["alignment_percentile"] for row in sorted(scored, key=lambda row: row["alignment"])]
    assert percentiles == sorted(percentiles) and all(0 <= value <= 1 for value in percentiles)
    native, foreign = ([row["alignment_percentile"] for row in scored[first::2]] for first in (0, 1))
    assert max(foreign) == 0 and sum(value > 0.1 for value in native) == 4  # two native ones use unknown relations
    summary = capsys.readouterr().out
    assert "12 rows" in summary and "24 of 24 samples of 12 questions finished" in summary
    assert "8 rows (66.7%) are below the 10th percentile" in summary
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", "scored.jsonl"}


def test_the_formats_hold_the_same_values(tmp_path):
    contents = write_rows(tmp_path / "data.jsonl")
    score(tmp_path / "data.jsonl", tmp_path / "scored.jsonl")
    score(tmp_path / "data.jsonl", tmp_path / "scored.parquet")
    table = parquet.read_table(tmp_path / "scored.parquet")
    assert table.column_names == ["question", "solution", "level", "source", "remark", *ADDED]
    expected = read_jsonl(tmp_path / "scored.jsonl")
    assert table.to_pylist() == [{"remark": None, **row} for row in expected]
    flat = [{name: value for name, value in row.items() if name != "source"} for row in contents]
    (tmp_path / "flat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flat), encoding="utf-8")
    score(tmp_path / "flat.jsonl", tmp_path / "scored.csv")
    with (tmp_path / "scored.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["alignment"]) for row in rows] == [row["alignment"] for row in expected]
    assert [row["solution"] for row in rows] == [row["solution"] for row in contents]


def test_the_types_of_a_parquet_file_stay(tmp_path):
    import pyarrow

    rows = write_rows(tmp_path / "data.jsonl")
    texts = {
        name: pyarrow.array([row[name] for row in rows], pyarrow.large_string()) for name in ("question", "solution")
    }
    table = pyarrow.table({**texts, "level": pyarrow.array(range(len(rows)), pyarrow.int8())})
    parquet.write_table(table, tmp_path / "data.parquet")
    score(tmp_path / "data.parquet", tmp_path / "scored.parquet", "--data.limit=5")
    scored = parquet.read_table(tmp_path / "scored.parquet")
    assert scored.schema.field("level").type == pyarrow.int8() and scored.num_rows == 5
    levels = scored["level"].to_pylist()
    assert levels == sorted(levels)
    assert scored["question"].to_pylist() == [rows[level]["question"] for level in levels]


def test_without_own_samples_there_is_no_percentile(tmp_path, capsys):
    write_rows(tmp_path / "data.jsonl")
    score(tmp_path / "data.jsonl", tmp_path / "scored.jsonl", "--data.limit=2")  # 4 samples are too few
    assert "too few (4 of 4 samples of 2 questions finished)" in capsys.readouterr().out
    config = load_config(None, {"data": str(tmp_path / "data.jsonl"), "target": TARGET, "reward.own_samples": "0"})
    assert "reward.own_samples is 0" in dartune.score_data(config, tmp_path / "python.jsonl")
    rows = read_jsonl(tmp_path / "scored.jsonl") + read_jsonl(tmp_path / "python.jsonl")
    assert len(rows) == 14 and {row["alignment_percentile"] for row in rows} == {None}


def test_the_score_is_that_of_the_config(tmp_path, capsys):
    write_rows(tmp_path / "data.jsonl")
    score(tmp_path / "data.jsonl", tmp_path / "scored.jsonl", "--reward.alignment=mean_logprob")
    assert all(row["alignment"] == row["mean_logprob"] for row in read_jsonl(tmp_path / "scored.jsonl"))
    assert "alignment (mean_logprob)" in capsys.readouterr().out


def test_all_problems_are_reported_before_anything_is_computed(tmp_path, capsys):
    contents = write_rows(tmp_path / "data.jsonl")
    mixed = [{**contents[0], "alignment": 1, "level": "hard"}, contents[1]]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed), encoding="utf-8")
    score(tmp_path / "mixed.jsonl", tmp_path / "scored.csv", code=2)
    message = capsys.readouterr().err
    assert "column 'level' has no single type" in message
    assert "column 'source' of type struct<page: int64> cannot be written as .csv" in message
    assert "columns of the names that are added: 'alignment'" in message
    (tmp_path / "bad.jsonl").write_text(
        '{"question": "What is 1 + 1?", "solution": ""}\n{"question"\n', encoding="utf-8"
    )
    assert main(["score", "--data", str(tmp_path / "bad.jsonl"), "--target", "lab:nobody", "--output", "x.txt"]) == 2
    message = capsys.readouterr().err
    for problem in (
        "line 1: solution: is empty",
        "line 2: invalid JSON",
        "the lab has no model",
        "must end with .parq",
    ):
        assert problem in message
    assert main(["score", "--data", str(tmp_path / "data.jsonl"), "--target", TARGET]) == 2
    assert "add --output" in capsys.readouterr().err
    score(tmp_path / "data.jsonl", tmp_path / "data.jsonl", code=2)
    assert "is the data itself" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", "mixed.jsonl", "bad.jsonl"}


def test_an_interrupted_command_continues(tmp_path, monkeypatch, capsys):
    write_rows(tmp_path / "data.jsonl")
    monkeypatch.setattr(data_set, "BLOCK", 4)
    score(tmp_path / "data.jsonl", tmp_path / "whole.jsonl")
    scored_blocks, source_stats = [], data_set.source_stats

    def interrupted(target, renderer, rows, alignment):
        scored_blocks.append([row.question for row in rows])
        if len(scored_blocks) == 3:
            raise KeyboardInterrupt
        return source_stats(target, renderer, rows, alignment)

    monkeypatch.setattr(data_set, "source_stats", interrupted)
    score(tmp_path / "data.jsonl", tmp_path / "scored.jsonl", code=130)
    assert not (tmp_path / "scored.jsonl").exists()
    capsys.readouterr()
    score(tmp_path / "data.jsonl", tmp_path / "scored.jsonl")
    assert "own samples" not in capsys.readouterr().err
    assert len(scored_blocks) == 4 and scored_blocks[2] == scored_blocks[3]
    assert (tmp_path / "scored.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_scores_of_other_settings_are_not_continued(tmp_path, monkeypatch):
    write_rows(tmp_path / "data.jsonl")
    monkeypatch.setattr(data_set, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    score(tmp_path / "data.jsonl", tmp_path / "scored.jsonl", code=130)
    monkeypatch.undo()
    score(tmp_path / "data.jsonl", tmp_path / "scored.jsonl", "--reward.alignment=mean_logprob")
    assert all(row["alignment"] == row["mean_logprob"] for row in read_jsonl(tmp_path / "scored.jsonl"))


def test_data_that_change_meanwhile_are_an_error(tmp_path, monkeypatch):
    contents = write_rows(tmp_path / "data.jsonl")
    draw = data_set._draw

    def shortened(*arguments):
        (tmp_path / "data.jsonl").write_text(json.dumps(contents[0]) + "\n", encoding="utf-8")
        return draw(*arguments)

    monkeypatch.setattr(data_set, "_draw", shortened)
    config = load_config(None, {"data": str(tmp_path / "data.jsonl"), "target": TARGET, "reward.own_samples": "0"})
    with pytest.raises(InputError, match="changed while it was scored"):
        dartune.score_data(config, tmp_path / "scored.jsonl")
    assert not (tmp_path / "scored.jsonl").exists()


@pytest.mark.slow
def test_a_killed_command_continues_and_processes_share_the_work(tmp_path):
    write_rows(tmp_path / "data.jsonl", 40)
    command = [*("score", "--data", str(tmp_path / "data.jsonl"), "--target", TARGET), *FAST, "--output"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert main([*command, str(tmp_path / "alone.jsonl")]) == 0
    command_line = [sys.executable, "-m", "dartune", *command, str(tmp_path / "killed.jsonl")]
    with subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True, env=environment) as process:
        next(line for line in process.stderr if "own samples: 40/40" in line)
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert process.returncode in (0, 143)
    assert main([*command, str(tmp_path / "killed.jsonl")]) == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dartune"]
    subprocess.run(
        [sys.executable, *launcher, *command, str(tmp_path / "shared.jsonl")], check=True, env=environment, timeout=300
    )
    alone = read_jsonl(tmp_path / "alone.jsonl")
    assert read_jsonl(tmp_path / "killed.jsonl") == alone
    for one, other in zip(alone, read_jsonl(tmp_path / "shared.jsonl"), strict=True):
        assert other["alignment"] == pytest.approx(one["alignment"], abs=1e-4)
