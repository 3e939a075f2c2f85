"""Tests of file formats: all formats give the same rows, and input that is not read is reported."""

import gzip
import io
import json
from pathlib import Path

import pytest

from dartune.config.recipe import read_recipe
from dartune.data import json_files
from dartune.data.load import load_demonstrations, read_demonstrations
from dartune.data.records import Demonstration
from dartune.errors import InputError

ROWS = [
    {"id": "a", "question": "2 + 2, or 3?", "solution": "It is 4.\nSo 4", "answer": "4"},
    {"id": "b", "question": "Wie heißt\ter?", "solution": 'Er "heißt" Jürgen; gut', "answer": "Jürgen"},
    {"id": "c", "question": "{[x]}", "solution": "a, b: [c] {d}", "answer": "e"},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
HEADER = list(ROWS[0])


def table(delimiter):
    lines = [HEADER, *(list(row.values()) for row in ROWS)]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in line] for line in lines]
    return "".join(delimiter.join(line) + "\n" for line in quoted)


CONTENTS = {
    "d.ndjson": LINES,
    "d.JSONL": LINES,
    "list.jsonl": json.dumps(ROWS),
    "pretty.jsonl": json.dumps(ROWS, indent=2),
    "framed.json": json.dumps({"data": ROWS}),
    "framed pretty.json": json.dumps({"examples": ROWS}, indent=4),
    "framed.jsonl": json.dumps({"version": 1, "rows": ROWS, "empty": []}),
    "one a paragraph.json": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "commas.jsonl": LINES.replace("\n", ",\n"),
    "comma.json": json.dumps(ROWS)[:-1] + ",\n]",
    "d.tsv": table("\t"),
    "semicolon.csv": table(";"),
    "bar.csv": table("|"),
    "excel.csv": "\ufeffsep=;\r\n" + table(";").replace("\n", "\r\n").replace("4.\r\n", "4.\n"),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_every_kind_of_file_gives_the_same_rows(name, packed, tmp_path):
    content = CONTENTS[name].encode()
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert load_demonstrations(path) == [Demonstration(**row) for row in ROWS]


@pytest.mark.parametrize("head", [1, 7, 64, 200])
@pytest.mark.parametrize("name", [name for name in CONTENTS if "json" in name.lower()])
def test_json_is_parsed_incrementally(name, head, monkeypatch):
    monkeypatch.setattr(json_files, "HEAD", head)
    content = json.dumps(json.loads(CONTENTS[name]), ensure_ascii=False) if name[0] in "lpf" else CONTENTS[name]
    stream = json_files._Stream(io.BytesIO(content.encode()))
    assert [row.content for row in json_files._values(stream, name, [])] == ROWS


def test_a_long_list_is_not_loaded_into_memory(tmp_path):
    import tracemalloc

    rows = [{"question": f"q{n}", "solution": "s" * 1000} for n in range(20_000)]
    (tmp_path / "d.json").write_text(json.dumps({"data": rows}))
    del rows
    tracemalloc.start()
    assert sum(1 for _ in json_files.json_rows(tmp_path / "d.json", [])) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6  # of 20 MB


def test_keys_beside_the_list_of_rows_are_reported(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps({"licence": "mit", "data": ROWS, "test": [{"name": "x"}], "n": None}))
    read = read_demonstrations(tmp_path / "d.json")
    assert read.rows == [Demonstration(**row) for row in ROWS]
    assert read.notes == ["d.json: the rows are the list 'data'; not read beside it: 'licence', 'test'"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (json.dumps(ROWS) + "\n" + json.dumps(ROWS), "d.jsonl line 1: must be a JSON object, not a list"),
        (json.dumps(ROWS, indent=1) + "{}", "d.jsonl line 20: invalid JSON: more text follows the list of rows"),
        (
            '{"data": [\n{"question": "q", "solution": "s"},\n{"question" 3}]}',
            "line 3, row 2: invalid JSON at column 13",
        ),
        ('{"data": [\n{"question": "q", "solution": "s"}\n', "line 3, row 1: invalid JSON: a comma or ] must follow"),
        ('{\n"a": 1,\n"a": 2}', "d.jsonl line 1: names 'a' twice"),
    ],
)
def test_invalid_json_is_reported_with_its_line(content, problem, tmp_path):
    (tmp_path / "d.jsonl").write_text(content)
    with pytest.raises(InputError) as caught:
        load_demonstrations(tmp_path / "d.jsonl")
    assert problem in str(caught.value)


def test_a_single_object_is_a_row(tmp_path):
    for row in (ROWS[0], {**ROWS[0], "tests": [{"in": 1}]}):
        for indent in (None, 1):
            (tmp_path / "d.json").write_text(json.dumps(row, indent=indent))
            assert load_demonstrations(tmp_path / "d.json") == [Demonstration(**ROWS[0])]


def test_blank_rows_and_columns_of_spreadsheets_are_skipped(tmp_path):
    (tmp_path / "d.csv").write_text("question,solution,,\nHow many?,It is 4.,,\n,,,\n,,,\nWhy?,So.,note,\n")
    read = read_demonstrations(tmp_path / "d.csv")
    assert [row.question for row in read.rows] == ["How many?", "Why?"]
    assert any("2 blank rows were skipped" in note for note in read.notes)
    assert any("'(column 3)' (1 row)" in note for note in read.notes)


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.tsv"])
@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-32", "UTF-32")],
)
def test_unsupported_encodings_are_reported_once(name, encoding, expected, tmp_path):
    (tmp_path / name).write_bytes((LINES if "json" in name else table(",")).encode(encoding))
    with pytest.raises(InputError) as caught:
        load_demonstrations(tmp_path / name)
    (problem,) = caught.value.problems
    assert expected in problem and f"`iconv -f {expected} -t UTF-8 {name}`" in problem


def test_invalid_utf8_in_many_rows_is_one_message(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(
        (LINES.replace("\\u00e4", "") * 20 + '{"question": "ä", "solution": "ü"}\n' * 30).encode("latin-1")
    )
    with pytest.raises(InputError) as caught:
        load_demonstrations(tmp_path / "d.jsonl")
    (problem,) = caught.value.problems
    assert "invalid UTF-8" in problem and ": 30 rows (d.jsonl line 61, 62" in problem


def test_several_lists_of_rows_are_an_error(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps({"test": ROWS[:1], "train": ROWS[1:]}))
    with pytest.raises(
        InputError, match="holds several lists of rows .'test', 'train'.; put each into a separate file"
    ):
        load_demonstrations(tmp_path / "d.json")


@pytest.mark.parametrize(("start", "expected"), [(b"PAR1", "a Parquet file"), (b"PK\x03\x04", "an Excel file")])
def test_a_file_of_another_kind_is_reported(start, expected, tmp_path):
    (tmp_path / "d.csv").write_bytes(start + bytes(range(256)))
    with pytest.raises(InputError, match=expected):
        load_demonstrations(tmp_path / "d.csv")


def test_a_compressed_file_without_the_gz_suffix_is_read(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(gzip.compress(LINES.encode()))
    assert len(load_demonstrations(tmp_path / "d.jsonl")) == 3


def test_a_damaged_gzip_file_is_reported(tmp_path):
    packed = gzip.compress(LINES.encode() * 1000)
    for content in (packed[:-20], b"no gzip at all"):
        (tmp_path / "d.jsonl.gz").write_bytes(content)
        with pytest.raises(InputError, match="damaged gzip file"):
            load_demonstrations(tmp_path / "d.jsonl.gz")


def test_a_layout_error_is_one_message(tmp_path):
    rows = [{"messages": [{"role": "user", "content": str(n)}] * 2} for n in range(500)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as caught:
        load_demonstrations(tmp_path / "d.jsonl")
    (problem,) = caught.value.problems
    assert problem.endswith(": 500 rows (d.jsonl line 1, 2, 3, 4, 5 and 495 more)")


def files(folder: Path, contents: dict) -> Path:
    for name, rows in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def row(n):
    return {"question": f"q{n}", "solution": f"s{n}"}


def test_every_shard_is_read_or_reported(tmp_path):
    folder = files(
        tmp_path / "a", {"part1.jsonl": [row(1)], "b/part2.json": [row(2)], "part3.csv": "question,solution\nq3,s3\n"}
    )
    assert sorted(demonstration.question for demonstration in load_demonstrations(folder)) == ["q1", "q2", "q3"]
    folder = files(tmp_path / "c", {"train-questions.jsonl": [row(1)], "part2.jsonl": [row(2)], "Test.jsonl": [row(3)]})
    read = read_demonstrations(folder)
    assert [demonstration.question for demonstration in read.rows] == ["q1"]
    assert len(read.notes) == 2
    assert "the file Test.jsonl is not read: the split is 'train', and its name contains 'test'" in read.notes[0]
    assert "the file part2.jsonl is not read: names of other files contain 'train'" in read.notes[1]
    assert [demonstration.question for demonstration in load_demonstrations(folder, split="test")] == ["q3"]


def test_a_description_file_beside_the_rows_is_skipped(tmp_path):
    folder = files(
        tmp_path, {"meta.json": '{"name": "x",\n "size": 2}', "part1.jsonl": [row(1)], "part2.jsonl": [row(2)]}
    )
    read = read_demonstrations(folder)
    assert len(read.rows) == 2 and len(read.notes) == 1 and "the file meta.json is not read" in read.notes[0]


def test_a_folder_with_one_object_per_file_is_read(tmp_path):
    folder = files(tmp_path, {f"{n}.json": json.dumps(row(n), indent=1) for n in range(4)} | {"meta.json": '{"a": 1}'})
    read = read_demonstrations(folder)
    assert len(read.rows) == 4 and len(read.notes) == 1


def test_a_repeated_id_is_replaced_with_a_warning(tmp_path):
    rows = [{**row(n), "id": "x"} for n in range(3)]
    read = read_demonstrations(files(tmp_path, {"d.jsonl": rows}) / "d.jsonl")
    assert [demonstration.id for demonstration in read.rows] == ["x", "x-2", "x-3"] and not read.problems.count
    (warning,) = read.warnings()
    assert "2 rows have the id of an earlier row" in warning
    assert warning.endswith(": d.jsonl line 2 ('x' as in d.jsonl line 1), 3 ('x' as in d.jsonl line 1)")


@pytest.mark.parametrize("name", ["my.jsonl", "my.json", "my.csv.gz", "my.parquet", "hub:a/b"])
def test_a_data_file_given_as_a_recipe_suggests_the_flag(name):
    with pytest.raises(InputError, match=f"is data, not a recipe: give it as --data {name}"):
        read_recipe(Path(name))


def messages_of(path) -> str:
    try:
        read = read_demonstrations(path)
    except InputError as error:
        return str(error)
    return "\n".join([*read.problems.lines(), *read.warnings()])


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.json.gz", "d.parquet"])
def test_a_file_without_permission_is_reported(name, tmp_path, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied")

    folder = files(tmp_path, {name: LINES, "more.jsonl": [row(1)]})
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", denied)
    monkeypatch.setattr(Path, "open", denied)
    for path in (folder, folder / name):
        assert f"{name}: cannot be read: Permission denied; give yourself the right to read it" in messages_of(path)


def test_a_path_without_permission_is_reported(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", denied)
    assert "cannot be read: Permission denied" in messages_of(tmp_path / "d.jsonl")
    monkeypatch.undo()
    assert "File name too long" in messages_of("a" * 5000 + ".jsonl")


def test_a_damaged_file_of_one_object_in_a_folder_is_reported(tmp_path):
    files(tmp_path, {"a.jsonl": [row(1)]})
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(row(2)).encode())[:-10])
    assert "b.json.gz: is a damaged gzip file" in messages_of(tmp_path)


@pytest.mark.parametrize("name", [b"donn\xe9es.jsonl", b"a\nerror: forged\x1b.jsonl"])
def test_a_file_name_is_printed_on_one_line(name, tmp_path):
    import os

    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_text(json.dumps({**row(1), "x": 1}) + "\n{bad\n" + json.dumps(row(2)))
    for source in (path, tmp_path):
        assert len(messages_of(source).encode().splitlines()) == 2


def test_a_row_nested_too_deeply_is_reported(tmp_path):
    for depth in (200, 480, 900):
        nested = json.dumps(row(1))[:-1] + ', "meta": ' + "[" * depth + "]" * depth + "}"
        files(tmp_path, {"d.jsonl": json.dumps(row(2)) + "\n" + nested})
        assert messages_of(tmp_path / "d.jsonl") == "d.jsonl line 2: is nested too deeply"


@pytest.mark.parametrize(("name", "content"), [("dataset_dict.json", "{}"), ("state.json", "[]")])
def test_a_folder_that_only_looks_like_a_saved_dataset_is_reported(name, content, tmp_path):
    files(tmp_path, {name: content, "a.jsonl": [row(1)], "dataset_info.json": content})
    assert "cannot be read as a saved `datasets` folder" in messages_of(tmp_path)


def test_a_long_id_is_shortened(tmp_path):
    files(tmp_path, {"d.jsonl": [{**row(n), "id": "x" * 10_000} for n in range(2)]})
    assert len(messages_of(tmp_path / "d.jsonl")) < 600


def test_unread_files_of_a_folder_are_reported(tmp_path):
    import os

    names = ["b.jsonl.zst", "c.xlsx", "d.jsonl.bz2", "e.txt", "_extra.jsonl", ".hidden.jsonl", ".git/a.jsonl"]
    files(tmp_path / "out", {"x.jsonl": [row(5)]})
    folder = files(tmp_path / "in", {"a.jsonl": [row(1)], "README.md": "x", "dataset_info.json": "{}"})
    files(folder, {name: [row(2)] for name in names})
    (folder / "linkdir").symlink_to(tmp_path / "out")
    read = read_demonstrations(folder)
    assert len(read.rows) == 1 and len(read.notes) == 1
    for name in (*names[:4], "linkdir/ (a link)", "_extra.jsonl (hidden)", ".hidden.jsonl", ".git/ (hidden)"):
        assert name in read.notes[0]
    assert "README" not in read.notes[0] and "dataset_info" not in read.notes[0]
    os.remove(folder / "a.jsonl")
    assert "holds no data files" in messages_of(folder) and "c.xlsx (format)" in messages_of(folder)
    (folder / "gone.jsonl").symlink_to("nowhere")
    assert "gone.jsonl is a link to a file that does not exist" in messages_of(folder)


def test_a_subfolder_without_permission_is_reported(tmp_path, monkeypatch):
    import os

    folder, scandir = files(tmp_path, {"a.jsonl": [row(1)], "sub/b.jsonl": [row(2)]}), os.scandir

    def denied(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "sub cannot be read: Permission denied" in messages_of(folder)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_before_the_question_is_not_a_list_of_rows(indent, tmp_path):
    rows = [{"tests": [{"label": "A", "text": "five"}, {"label": "B", "text": "six"}], **row(n)} for n in range(3)]
    files(tmp_path, {"d.json": "\n".join(json.dumps(row, indent=indent) for row in rows)})
    read = read_demonstrations(tmp_path / "d.json")
    assert [demonstration.question for demonstration in read.rows] == ["q0", "q1", "q2"]


def test_a_layout_error_does_not_hide_invalid_lines(tmp_path):
    files(tmp_path, {"d.jsonl": '{"q": "a"}\n{bad\n[1]\n', "e.txt": "x"})
    with pytest.raises(InputError) as caught:
        read_demonstrations(tmp_path)
    first, second = caught.value.problems
    assert "fits no layout" in caught.value.message and "e.txt (format)" in caught.value.__notes__[0]
    assert first.startswith("d.jsonl line 2: invalid JSON") and second.startswith("d.jsonl line 3: must be")


def test_a_message_with_a_repeated_key_is_reported(tmp_path):
    files(tmp_path, {"d.jsonl": '{"messages": [{"role": "user", "role": "user", "content": "a"}]}\n'})
    assert "names 'role' twice" in messages_of(tmp_path / "d.jsonl")


def test_a_compressed_file_without_a_format_in_its_name_is_reported(tmp_path):
    (tmp_path / "data.gz").write_bytes(gzip.compress(LINES.encode()))
    assert "put the format into the name, such as data.jsonl.gz" in messages_of(tmp_path / "data.gz")


def test_an_unknown_time_zone_is_reported(tmp_path):
    import pyarrow
    from pyarrow import parquet

    when = pyarrow.array([0], pyarrow.timestamp("us", "Mars/Phobos"))
    parquet.write_table(pyarrow.table({"question": ["q"], "solution": ["s"], "when": when}), tmp_path / "d.parquet")
    assert "d.parquet row 1: has a value that Python cannot represent" in messages_of(tmp_path / "d.parquet")
