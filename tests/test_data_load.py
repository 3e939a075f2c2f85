"""Tests of reading demonstrations: all formats and layouts give the same rows, and every bad row is reported."""

import csv
import json
import logging
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartune.data.chat_template import Renderer
from dartune.data.load import load_demonstrations
from dartune.data.quality import check_report, show_rows
from dartune.data.records import Demonstration
from dartune.errors import InputError, MachineError
from fixtures_models import byte_tokenizer

ROWS = [
    {"id": "a", "question": "2 + 2?", "solution": "It is 4.\nSo 4", "answer": "4"},
    {
        "id": "b",
        "question": "Wie heißt\r\ner?",
        "solution": 'Er heißt "Jürgen", glaube ich',
        "answer": "Jürgen",
    },
]


def jsonl(path, rows, end="\n", start=b""):
    path.write_bytes(start + "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode())
    return path


def as_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def saved_dataset(path, rows):
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(path))
    return path


def split_folder(path, rows):
    (path / "data").mkdir(parents=True)
    as_parquet(path / "data" / "train-00000-of-00002.parquet", rows[:1])
    as_parquet(path / "data" / "train-00001-of-00002.parquet", rows[1:])
    as_parquet(path / "data" / "test-00000-of-00001.parquet", [{"id": "t", "question": "q", "solution": "s"}])
    return path


def pretty_json(path, rows):
    path.write_text("\ufeff" + json.dumps(rows, indent=1))
    return path


FORMATS = {
    "jsonl": lambda folder: jsonl(folder / "d.jsonl", ROWS),
    "jsonl with a byte order mark and CRLF": lambda folder: jsonl(folder / "d.jsonl", ROWS, "\r\n", b"\xef\xbb\xbf"),
    "json": lambda folder: pretty_json(folder / "d.json", ROWS),
    "lines in .json": lambda folder: jsonl(folder / "d.json", ROWS),
    "csv": lambda folder: as_csv(folder / "d.csv", ROWS),
    "parquet": lambda folder: as_parquet(folder / "d.parquet", ROWS),
    "save_to_disk": lambda folder: saved_dataset(folder / "saved", ROWS),
    "folder of splits": lambda folder: split_folder(folder / "hub", ROWS),
    "folder of one file": lambda folder: jsonl(folder / "d.jsonl", ROWS).parent,
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
def test_every_format_gives_the_same_rows(write, tmp_path):
    assert load_demonstrations(write(tmp_path)) == [Demonstration(**row) for row in ROWS]


TURN = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "s"}]
LAYOUTS = {
    "prompt/completion": {"prompt": "q", "completion": "s"},
    "conversational": {"prompt": TURN[:1], "completion": TURN[1:]},
    "messages": {"messages": TURN},
}


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("write", [jsonl, as_parquet])
def test_every_layout_is_detected(row, write, tmp_path):
    (loaded,) = load_demonstrations(write(tmp_path / f"d.{'jsonl' if write is jsonl else 'parquet'}", [row]))
    assert (loaded.question, loaded.solution, loaded.answer, loaded.meta) == ("q", "s", None, {})


def test_a_mapped_column_may_hold_messages(tmp_path):
    row = {"prompt": TURN[:1], "steps": "s", "reward_model": {"ground_truth": "4"}}
    columns = {"question": "prompt", "solution": "steps", "answer": "reward_model.ground_truth"}
    (loaded,) = load_demonstrations(jsonl(tmp_path / "d.jsonl", [row]), columns=columns)
    assert (loaded.question, loaded.solution, loaded.answer) == ("q", "s", "4")


def test_a_system_message_is_kept_in_meta(tmp_path):
    row = {"messages": [{"role": "system", "content": "Be brief."}, *TURN]}
    (loaded,) = load_demonstrations(jsonl(tmp_path / "d.jsonl", [row]))
    assert loaded.meta == {"system": "Be brief."} and loaded.question == "q"


def test_a_column_map_renames_and_a_mapped_column_is_not_read_twice(tmp_path):
    rows = [{"question": "q", "answer": "steps #### 4", "label": 4.0, "uid": 7}]
    columns = {"solution": "answer", "id": "uid"}
    (loaded,) = load_demonstrations(jsonl(tmp_path / "d.jsonl", rows), columns=columns)
    assert loaded == Demonstration("7", "q", "steps #### 4", None)
    (loaded,) = load_demonstrations(jsonl(tmp_path / "d.jsonl", rows), columns={**columns, "answer": "label"})
    assert loaded.answer == "4"


@pytest.mark.parametrize(
    ("answer", "text"),
    [(4, "4"), (4.0, "4"), (0.5, "0.5"), (" x ", " x "), ("", None), (None, None), (-0.0, "0")],
)
def test_answers_become_text(answer, text, tmp_path):
    rows = [{"question": "q", "solution": "s"}, {"question": "q2", "solution": "s", "answer": answer}]
    assert load_demonstrations(jsonl(tmp_path / "d.jsonl", rows))[1].answer == text


def test_every_bad_row_is_reported_with_line_field_and_rule(tmp_path):
    lines = [
        b'{"question": "q", "solution": "good"}',
        b'{"question": "q", "solution": "  "}',
        b'{"question": 3, "solution": null}',
        b'{"question": "q" "solution": "s"}',
        b'{"question": "\xff", "solution": "s"}',
        b"",
        b"[1]",
        b'{"question": "a\\u0000b", "solution": "\\ud800"}',
        b'{"question": "q"}',
        b'{"question": "q", "solution": "s", "answer": ["4"], "id": true}',
        b'{"question": "q1", "solution": "s1", "id": "x"}',
        b'{"question": "q2", "solution": "s2", "id": "x"}',
    ]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError) as caught:
        load_demonstrations(path)
    assert caught.value.problems == (
        "bad.jsonl line 2: solution: is empty",
        "bad.jsonl line 3: question: must be text, not int",
        "bad.jsonl line 3: solution: is empty (null)",
        "bad.jsonl line 4: invalid JSON at column 18: Expecting ',' delimiter",
        "bad.jsonl line 5: invalid UTF-8 at byte 15; save the file as UTF-8",
        "bad.jsonl line 7: must be a JSON object, not a list",
        "bad.jsonl line 8: question: has a NUL character at position 1",
        "bad.jsonl line 8: solution: has an unpaired surrogate at position 0, which is invalid Unicode",
        "bad.jsonl line 9: solution: the field is missing",
        "bad.jsonl line 10: answer: must be text or a number, not list",
        "bad.jsonl line 10: id: must be text or a number, not bool",
    )
    assert "11 problems" in str(caught.value) and "3 others are good" in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "rule"),
    [
        ([*TURN, *TURN], "has 2 user turns; a row is one question and one answer"),
        (TURN[:1], "the roles must be .* not user$"),
        (
            [{"role": "user", "content": "q"}, {"role": "tool", "content": "s"}],
            "has the role 'tool'; only user, assistant and system are read",
        ),
        ([], "not none"),
        ("user: q", "must be a list of messages"),
        ([{"role": "user"}], "each with role and content"),
        ([{"from": "human", "value": "q"}], "the roles must be .* not user$"),
        (
            [TURN[0], {"role": "assistant", "content": [{"type": "text"}]}],
            r"messages\[assistant\]: must be text",
        ),
        ([TURN[0], {"role": "assistant", "content": ""}], r"messages\[assistant\]: is empty"),
        ([{"role": "system", "content": None}, *TURN], "system: is empty"),
        (None, "messages: must be a list"),
    ],
)
def test_bad_conversations(messages, rule, tmp_path):
    with pytest.raises(InputError, match=f"line 1: .*{rule}"):
        load_demonstrations(jsonl(tmp_path / "d.jsonl", [{"messages": messages}]))


def test_bad_csv_rows_are_reported_with_their_first_line(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes(b'question,solution\nq,"two\nlines"\nq,s,more\nq,\xff\nq,\n"open,s\n')
    with pytest.raises(InputError) as caught:
        load_demonstrations(path)
    assert caught.value.problems == (
        "d.csv line 4: has 3 fields, the header has 2; quote fields that contain commas",
        "d.csv line 5: solution: invalid UTF-8; save the file as UTF-8",
        "d.csv line 6: solution: is empty",
        "d.csv line 7: invalid CSV: unexpected end of data",
    )


def test_bad_rows_of_a_json_list_have_lines(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('[\n {"question": "q", "solution": "s"},\n 5,\n {"question": "q",\n  "solution": ""},\n {"q": }\n]')
    with pytest.raises(InputError) as caught:
        load_demonstrations(path)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "d.json line 3, row 2",
        "d.json line 4, row 3",
        "d.json line 6, row 4",
    ]


def test_parquet_rows_are_reported_by_number(tmp_path):
    rows = [{"question": "q", "solution": "s"}, {"question": None, "solution": "s"}]
    with pytest.raises(InputError, match=r"d.parquet row 2: question: is empty \(null\)"):
        load_demonstrations(as_parquet(tmp_path / "d.parquet", rows))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        load_demonstrations(tmp_path / "broken.parquet")


def test_layout_errors_list_the_columns_and_propose_a_map(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", [{"Problem": "q", "Answer": "s"}])
    with pytest.raises(InputError, match=r"found: 'Problem', 'Answer'.*\{question: Problem, solution: Answer\}"):
        load_demonstrations(path)
    with pytest.raises(InputError, match="'Text', which does not exist") as caught:
        load_demonstrations(path, columns={"question": "Problem", "solution": "Text", "Solution": "x"})
    assert len(caught.value.problems) == 2
    both = jsonl(tmp_path / "both.jsonl", [{"question": "q", "solution": "s", "messages": TURN, "prompt": "p"}])
    with pytest.raises(InputError, match="several layouts .question/solution, messages.; .*'messages'"):
        load_demonstrations(both)
    assert load_demonstrations(both, columns={"question": "question"})[0].solution == "s"


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_has_one_clear_message(name, content, tmp_path):
    (tmp_path / name).write_text(content if name != "d.csv" else "question,solution\n" * bool(content))
    with pytest.raises(InputError, match="holds no rows") as caught:
        load_demonstrations(tmp_path / name)
    assert caught.value.problems == ()


@pytest.mark.slow
def test_unreadable_paths_are_input_errors(tmp_path):
    (tmp_path / "d.txt").write_text("x")
    with pytest.raises(InputError, match="does not exist"):
        load_demonstrations(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="'.txt' is not read; use .jsonl, .json, .csv, .parquet"):
        load_demonstrations(tmp_path / "d.txt")
    with pytest.raises(InputError, match="holds no data files"):
        load_demonstrations(tmp_path)
    with pytest.raises(InputError, match="no split 'validation', only test, train"):
        load_demonstrations(split_folder(tmp_path / "hub", ROWS), split="validation")
    with pytest.raises(InputError, match="no split 'test', only train"):
        load_demonstrations(saved_dataset(tmp_path / "saved", ROWS), split="test")
    with pytest.raises(InputError, match="is not a Hub address"):
        load_demonstrations("hub:a/b/c")


def test_a_split_behind_the_path_of_a_folder(tmp_path):
    folder = split_folder(tmp_path / "parts", ROWS)
    assert len(load_demonstrations(f"{folder}#test")) == len(load_demonstrations(folder, split="test"))
    assert len(load_demonstrations(f"{folder}/#test")) == len(load_demonstrations(folder, split="test"))
    with pytest.raises(InputError, match=r"no split 'dev', only test, train; write .*parts#<split>"):
        load_demonstrations(f"{folder}#dev")
    with pytest.raises(InputError, match="no split 'test', only train; write .*saved#<split>"):
        load_demonstrations(f"{saved_dataset(tmp_path / 'saved', ROWS)}#test")
    for name in ("a#test", "a"):  # the path that exists as written takes precedence
        (tmp_path / name).mkdir()
        jsonl(tmp_path / name / "train.jsonl", ROWS if name == "a" else ROWS[:1])
    assert len(load_demonstrations(tmp_path / "a#test")) == 1
    jsonl(tmp_path / "b#1.jsonl", ROWS)
    assert len(load_demonstrations(tmp_path / "b#1.jsonl")) == len(ROWS)
    with pytest.raises(InputError, match="is a file, which has no splits; remove #test"):
        load_demonstrations(f"{tmp_path / 'b#1.jsonl'}#test")
    with pytest.raises(InputError, match="does not exist"):
        load_demonstrations(tmp_path / "none#test")


def test_a_mistyped_split_never_reads_all_rows(tmp_path):
    from datasets import Dataset

    folder = tmp_path / "folds"
    folder.mkdir()
    for number in (1, 2):
        jsonl(folder / f"fold{number}.jsonl", ROWS)
    assert len(load_demonstrations(f"{folder}#fold2")) == len(ROWS)
    assert len(load_demonstrations(f"{folder}#train")) == len(load_demonstrations(folder)) == 2 * len(ROWS)
    with pytest.raises(InputError, match=r"no split 'nope': its files are fold1.jsonl, fold2.jsonl; remove #nope"):
        load_demonstrations(f"{folder}#nope")
    with pytest.raises(InputError, match="no split 'tset', only test, train"):
        load_demonstrations(f"{split_folder(tmp_path / 'parts', ROWS)}#tset")
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(InputError, match="no split 'tset': it was saved without splits; remove #tset"):
        load_demonstrations(f"{tmp_path / 'saved'}#tset")
    assert len(load_demonstrations(f"{tmp_path / 'saved'}#train")) == len(ROWS)
    for path in (folder, folder / "fold1.jsonl"):
        with pytest.raises(InputError, match="the split after # is empty; write .*#<split>, or remove the #"):
            load_demonstrations(f"{path}#")


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv.gz", "d.parquet"])
def test_a_named_pipe_is_rejected_without_reading_it(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is neither a regular file nor a folder"):
        load_demonstrations(tmp_path / name)


def test_hub_addresses_and_their_errors(monkeypatch):
    import datasets

    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_demonstrations("hub:openai/gsm8k:main@v1", split="test")) == 2
    assert calls == [(("openai/gsm8k", "main"), {"revision": "v1", "split": "test"})]
    for address, (config, revision) in {
        "hub:openai/gsm8k#dev": (None, None),
        "hub:openai/gsm8k:main#dev": ("main", None),
        "hub:openai/gsm8k:main@v1#dev": ("main", "v1"),
    }.items():
        load_demonstrations(address, split="train")
        assert calls[-1] == (("openai/gsm8k", config), {"revision": revision, "split": "dev"})

    def fail(error):
        def load_dataset(*args, **kwargs):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    fail(ValueError("Unknown split"))
    with pytest.raises(InputError, match="Unknown split"):
        load_demonstrations("hub:openai/gsm8k")
    fail(ConnectionError("no route"))
    with pytest.raises(MachineError, match="cannot be reached"):
        load_demonstrations("hub:openai/gsm8k")


def test_repeated_rows_are_kept_with_a_warning_and_ids_follow_the_content(tmp_path, caplog):
    rows = [{"question": f"q{n}", "solution": "s"} for n in (1, 2, 1, 1)]
    with caplog.at_level(logging.WARNING):
        loaded = load_demonstrations(jsonl(tmp_path / "d.jsonl", rows))
    assert "2 rows repeat an earlier one" in caplog.text and "d.jsonl line 3 repeats d.jsonl line 1" in caplog.text
    assert [row.id for row in loaded[2:]] == [f"{loaded[0].id}-2", f"{loaded[0].id}-3"]
    other_order = load_demonstrations(jsonl(tmp_path / "e.jsonl", rows[1::-1]))
    assert [row.id for row in other_order] == [loaded[1].id, loaded[0].id]


def test_limit_stops_reading(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", ROWS)
    with path.open("a") as file:
        file.write("broken")
    assert [row.id for row in load_demonstrations(path, limit=2)] == ["a", "b"]
    with pytest.raises(InputError, match="line 3"):
        load_demonstrations(path, limit=3)


def test_a_broken_first_row_does_not_hide_the_layout(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('oops\n{"Q": "q", "A": "s"}\n')
    with pytest.raises(InputError, match="1 problem in the data; 1 other is good; correct or remove this row"):
        load_demonstrations(path, columns={"question": "Q", "solution": "A"})


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4, unique=True))
def test_any_text_survives_jsonl_json_and_csv_unchanged(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    rows = [{"question": question, "solution": solution} for question, solution in pairs]
    for path in (
        jsonl(folder / "d.jsonl", rows),
        pretty_json(folder / "d.json", rows),
        as_csv(folder / "d.csv", rows),
    ):
        assert [(row.question, row.solution) for row in load_demonstrations(path)] == pairs


def test_check_report_counts_repeated_and_unchecked_rows():
    rows = [Demonstration(str(n), f"question {n}", "a b c " * (n + 1), answer="4") for n in range(20)]
    rows += [Demonstration("x", "question 0", "42"), Demonstration("y", "question 1", rows[1].solution)]
    report = check_report(rows, Renderer(byte_tokenizer()), lambda row: row.answer is not None)
    repeated = report.findings.first("repeated rows"), report.findings.first("repeated questions")
    assert (report.rows, report.checkable, *repeated) == (22, 20, ("y",), ("x",))
    assert report.findings.first("near-empty") == ("x",)
    assert report.solution_tokens[100] == 6 * 20 + 1
    overhead = len(Renderer(byte_tokenizer()).prompt_ids("question 19"))
    assert report.tokens[100] == overhead + 121
    text = "\n".join(report.lines())
    assert "20 of 22 have a checkable answer" in text and "2 rows have no checkable answer" in text
    assert report.unknown_share == 0 and "unknown" not in text


def test_check_report_warns_of_unknown_tokens():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "one": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    report = check_report([Demonstration("a", "one", "one one zwei one")], Renderer(tokenizer))
    assert report.unknown_share == 0.25
    assert any("25.0% of the tokens are unknown" in warning for warning in report.warnings())


def test_check_report_warns_of_thinking_blocks_that_the_template_would_repeat():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rows = [Demonstration("a", "q", "<think>\nlong\n</think>\n\nfour"), Demonstration("b", "r", "five")]
    assert check_report(rows, Renderer(tokenizer)).findings.count("thinking") == 1
    assert check_report(rows, Renderer(tokenizer, thinking=True)).findings.count("thinking") == 0
    assert check_report(rows, Renderer(tokenizer)).findings.count("thoughtless") == 0
    report = check_report(rows, Renderer(tokenizer, thinking=True))
    assert report.findings.count("thoughtless") == len(rows) - 1
    assert any("set target.thinking: false" in warning for warning in report.warnings())


def test_shown_rows_mark_trained_tokens_and_escape_control_characters():
    renderer = Renderer(byte_tokenizer())
    rows = [Demonstration("a", "q", "so\n4 \x1b[2J"), Demonstration("b", "q", "s")]
    assert show_rows(rows, renderer, 1, colour=False) == (
        f"--- a: {len(renderer.prompt_ids('q'))} prompt tokens, 10 trained tokens\n"
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n⟦so\n4 \\x1b[2J<|im_end|>⟧"
    )
    assert "\x1b[32ms<|im_end|>\x1b[0m" in show_rows(rows, renderer, 2, colour=True)


def test_repeated_rows_get_distinct_ids_and_all_bad_rows_are_counted(tmp_path):
    rows = [{"question": f"q{n % 3}", "solution": "s"} for n in range(30)] + [{"question": "q", "solution": "s"}]
    loaded = load_demonstrations(jsonl(tmp_path / "d.jsonl", rows))
    assert len({row.id for row in loaded}) == 31
    assert [row.id for row in loaded if row.id.startswith(loaded[0].id)] == [
        loaded[0].id + (f"-{n}" if n > 1 else "") for n in range(1, 11)
    ]
    bad = [{"question": "q", "solution": ""}] * 12
    with pytest.raises(InputError, match="12 problems.*1 other is good") as caught:
        load_demonstrations(jsonl(tmp_path / "d.jsonl", [*rows[:1], *bad]))
    assert caught.value.problems == ("solution: is empty: 12 rows (d.jsonl line 2, 3, 4, 5, 6 and 7 more)",)
