"""Tests of conversations: all forms are read, unsupported content is rejected, and unused keys are reported."""

import json
from pathlib import Path

import pytest

from dartune.data.load import load_demonstrations, read_demonstrations
from dartune.errors import InputError

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "s"}


def written(folder: Path, rows, name="d.jsonl") -> Path:
    path = folder / name
    if name.endswith("parquet"):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load_row(folder, messages, **settings):
    (loaded,) = load_demonstrations(written(folder, [{"messages": messages}]), **settings)
    return loaded


def load_problem(folder, *messages, **settings):
    with pytest.raises(InputError) as caught:
        load_demonstrations(written(folder, [{"messages": list(messages)}]), **settings)
    (message,) = caught.value.problems
    return message


def test_an_empty_system_message_is_ignored(tmp_path):
    assert "system" not in load_row(tmp_path, [{"role": "system", "content": ""}, USER, ASSISTANT]).meta


FORMS = {
    "text parts": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in (USER, ASSISTANT)],
    "responses parts": [
        {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "s"}]},
    ],
    "from and value": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "s"}],
    "capitals": [{"role": "User", "content": "q"}, {"role": "Assistant", "content": "s"}],
    "JSON text": json.dumps([USER, ASSISTANT]),
    "Python text": str([USER, ASSISTANT]),
    "lists by key": {"role": ["user", "assistant"], "content": ["q", "s"]},
    "one part": [USER, {"role": "model", "content": {"type": "text", "text": "s"}}],
}


@pytest.mark.parametrize("messages", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_a_conversation_of_any_form_is_read(messages, column, name, tmp_path):
    if name == "d.parquet" and messages is FORMS["one part"]:
        messages = [{**turn, "content": {"type": "text", "text": turn["content"]}} for turn in (USER, ASSISTANT)]
    if column == "conversations" and name == "d.parquet" and isinstance(messages, list):
        messages = [{"name": None, **turn} for turn in messages]
    read = read_demonstrations(written(tmp_path, [{column: messages}], name))
    assert (read.rows[0].question, read.rows[0].solution) == ("q", "s") and read.warnings() == []


def test_a_line_may_be_a_conversation(tmp_path):
    (tmp_path / "d.jsonl").write_text(f"{json.dumps([USER, ASSISTANT])}\n{json.dumps([USER, ASSISTANT])}\n")
    assert [row.solution for row in load_demonstrations(tmp_path / "d.jsonl")] == ["s", "s"]


def test_text_parts_become_lines(tmp_path):
    parts = [{"type": "text", "text": "a"}, "b"]
    assert load_row(tmp_path, [{"role": "user", "content": parts}, ASSISTANT]).question == "a\nb"


def test_the_developer_role_is_read_as_system(tmp_path):
    loaded = load_row(tmp_path, [{"role": "developer", "content": "Be brief."}, USER, ASSISTANT])
    assert loaded.meta == {"system": "Be brief."}
    both = [{"role": "system", "content": "Be kind."}, {"role": "developer", "content": "Be brief."}]
    assert load_row(tmp_path, [*both, USER, ASSISTANT]).meta == {"system": "Be kind.\n\nBe brief."}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_joined_or_rejected(key, tmp_path):
    turn = {**ASSISTANT, key: "two and two"}
    assert load_row(tmp_path, [USER, turn], thinking=True).solution == "<think>\ntwo and two\n</think>\n\ns"
    assert f"the reasoning is in {key!r}: set target.thinking: true" in load_problem(tmp_path, USER, turn)
    assert load_row(tmp_path, [USER, {**ASSISTANT, key: None}]).solution == "s"
    both = {**turn, "content": "<think>other</think> s"}
    assert "has a <think> block and" in load_problem(tmp_path, USER, both, thinking=True)
    same = {**turn, "content": "<think>two and two</think> s"}
    assert load_row(tmp_path, [USER, same]).solution == "<think>two and two</think> s"
    parts = [{"type": "thinking", "thinking": "two and two"}, {"type": "text", "text": "s"}]
    loaded = load_row(tmp_path, [USER, {"role": "assistant", "content": parts}], thinking=True)
    assert loaded.solution == "<think>\ntwo and two\n</think>\n\ns"


CALL = [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]
IMAGE = [{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": "x"}}]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER, ASSISTANT, USER, ASSISTANT], "has 2 user turns; a row is one question and one answer"),
        (
            [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}],
            "has 2 user turns and 1 message of weight 0",
        ),
        ([USER, {**ASSISTANT, "weight": 0}], "the answer has weight 0, so there is nothing to train"),
        ([USER, {**ASSISTANT, "content": None, "tool_calls": CALL}], "a message has 'tool_calls', and only text"),
        ([USER, {**ASSISTANT, "function_call": CALL[0]}], "a message has 'function_call'"),
        ([{**USER, "content": IMAGE}, ASSISTANT], "a part of type 'image_url', and only text is read"),
        ([{**USER, "images": ["x"]}, ASSISTANT], "a message has 'images'"),
        ([USER, {"role": "tool", "content": "4"}, ASSISTANT], "has the role 'tool'"),
        ([ASSISTANT, USER], "the roles must be user, assistant"),
    ],
)
def test_unsupported_conversations_are_rejected(messages, expected, tmp_path):
    assert expected in load_problem(tmp_path, *messages)


def test_unused_keys_are_reported(tmp_path):
    turns = [{**USER, "name": "Ann", "weight": 1}, {**ASSISTANT, "weight": 0.5, "tool_calls": [], "audio": None}]
    path = written(tmp_path, [{"messages": turns, "source": "x"}] * 3)
    assert read_demonstrations(path).notes == [
        f"{path}: not used: message keys 'name' (3 messages), 'weight' (3 messages); column 'source' (3 rows)"
    ]


def test_a_prompt_may_be_messages_and_its_completion_text(tmp_path):
    (loaded,) = load_demonstrations(written(tmp_path, [{"prompt": [USER], "completion": "s"}]))
    assert (loaded.question, loaded.solution) == ("q", "s")


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(
    "changed",
    [
        {"reasoning_content": ["a", "b"]},
        {"reasoning": {"text": "a"}},
        {"content": [{"type": "reasoning", "summary": [{"text": "a"}]}, {"type": "text", "text": "s"}]},
    ],
)
def test_reasoning_that_is_not_text_is_rejected(changed, thinking, tmp_path):
    assert "the reasoning" in (
        message := load_problem(tmp_path, USER, {**ASSISTANT, **changed}, thinking=thinking)
    ) or ("'reasoning', whose text cannot be read" in message)


def test_reasoning_of_a_user_is_rejected(tmp_path):
    parts = [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "q"}]
    assert "only an assistant has one" in load_problem(tmp_path, {**USER, "content": parts}, ASSISTANT, thinking=True)


def test_several_reasoning_parts_are_joined(tmp_path):
    parts = [{"type": "thinking", "thinking": text} for text in "ab"] + [{"type": "text", "text": "s"}]
    loaded = load_row(tmp_path, [USER, {**ASSISTANT, "content": parts}], thinking=True)
    assert loaded.solution == "<think>\na\n\nb\n</think>\n\ns"


@pytest.mark.parametrize("text", ["{{1, 2}, {3, 4}}", "[" * 5000, "[" * 300 + "1" + "]" * 300, r"['\d', 1](3)"])
def test_a_text_that_only_looks_like_a_list_is_read_as_text(text, tmp_path):
    (loaded,) = load_demonstrations(written(tmp_path, [{"prompt": "q", "completion": text}]))
    assert loaded.solution == text
