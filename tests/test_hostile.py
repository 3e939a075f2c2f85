"""Hostile input: loaders, answer checkers and config either read it or report what is wrong with it.

`DARTUNE_FUZZ=20000` sets the number of examples per fuzz test; the default is small.
"""

import itertools
import json
import os
import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dartune.answers import checker as checking
from dartune.answers.checker import AnswerChecker
from dartune.answers.equality import final_answers
from dartune.answers.task_families import TASKS
from dartune.config.load import load_config
from dartune.config.schema import Config
from dartune.data.chat_template import Renderer
from dartune.data.load import load_demonstrations
from dartune.errors import InputError, MachineError
from fixtures_models import byte_tokenizer

EXAMPLES = int(os.environ.get("DARTUNE_FUZZ", "150"))
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

ROWS = [
    {"id": "a", "question": "2 + 2?", "solution": "It is 4.\nSo 4", "answer": "4"},
    {"id": "b", "question": "q", "messages": [{"role": "user", "content": "x"}], "solution": "s", "n": [1, None, 2.5]},
]
FILES = {
    "d.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "d.json": json.dumps(ROWS, indent=1).encode(),
    "d.csv": b'question,solution,answer\n"a, b",s,1\n"x\ny",t,2\n',
}
PIECES = (
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b'"', b"{", b"[", b"]", b"}", b",", b"NaN", b"Infinity"),
    *(b"1e999", b"9" * 5000, b"\\ud800", b"[" * 3000, b'"question":', b"\xe2\x80\xa8", b"null", b"\\u0000", b"\x1a"),
)


def parquet_file() -> bytes:
    import io

    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist([{"id": name, "question": "q", "solution": "s"} for name in "abc"])
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def mangled(content: bytes, rng: random.Random) -> bytes:
    text = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        if rng.random() < 0.5:
            text[at:at] = rng.choice(PIECES)
        elif rng.random() < 0.6:
            text[at : at + 1] = bytes([rng.randrange(256)])
        else:
            del text[at : at + rng.randint(1, 20)]
    return bytes(text)


@pytest.mark.parametrize("name", [*FILES, "d.parquet"])
def test_mangled_files_are_read_or_reported(name, tmp_path):
    content = FILES.get(name) or parquet_file()
    rng = random.Random(name)
    for _ in range(EXAMPLES):
        (tmp_path / name).write_bytes(mangled(content, rng))
        try:
            rows = load_demonstrations(tmp_path / name)
        except InputError as error:
            assert name in str(error)
        else:
            assert rows and all(row.id and row.question.strip() and row.solution.strip() for row in rows)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = st.sampled_from(
    "question solution answer id prompt completion messages conversations role x context choices A B system history "
    "reasoning tools option_a option_b".split()
)


@fuzzed
@given(st.lists(st.dictionaries(COLUMNS, VALUES, max_size=5), min_size=1, max_size=4))
def test_arbitrary_rows_are_read_or_reported(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        loaded = load_demonstrations(path)
    except InputError as error:
        assert "d.jsonl" in str(error)
    else:
        assert len(loaded) == len(rows)


TURNS = st.lists(
    st.dictionaries(
        st.sampled_from("role from content value reasoning weight tool_calls name text".split()),
        st.sampled_from(["user", "assistant", "system", "human", "gpt"]) | VALUES,
        max_size=4,
    ),
    max_size=3,
)


@fuzzed
@given(st.lists(TURNS | VALUES, min_size=1, max_size=4), st.booleans())
def test_arbitrary_conversations_are_read_or_reported(tmp_path_factory, conversations, thinking):
    path = tmp_path_factory.mktemp("any") / "d.jsonl"
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in conversations))
    try:
        loaded = load_demonstrations(path, thinking=thinking)
    except InputError as error:
        assert "d.jsonl" in str(error)
    else:
        assert len(loaded) == len(conversations) and all(row.question.strip() for row in loaded)


@pytest.mark.parametrize("path", ["9" * 5000 + ".jsonl", "~nobody-has-this-home/x.jsonl", "a\0b.jsonl", "\udcff.jsonl"])
def test_invalid_paths_are_reported(path):
    with pytest.raises(InputError):
        load_config(None, {"data": path, "target": "lab:backward"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "q", "solution": "s", "answer": ' + b"9" * 5000 + b"}", "invalid JSON: Exceeds the limit"),
        (b'{"question": "q", "question": "r", "solution": "s"}', "names 'question' twice"),
        (b"{}", "fits no layout"),
        ("question,solution\na,b\n".encode("utf-16"), "fits no layout|UTF-8|NUL"),
        (b'{"question": "q", "solution": "s"}\n' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_invalid_json_is_reported(content, message, tmp_path):
    for name in ("d.jsonl", "d.csv") if b"\xff\xfe" in content else ("d.jsonl",):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_demonstrations(tmp_path / name)


def test_bad_rows_are_counted_and_the_first_are_listed(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"question": "q", "solution": ""}\n' * 5000)
    with pytest.raises(InputError) as caught:
        load_demonstrations(tmp_path / "d.jsonl")
    message = str(caught.value)
    assert "5000 problems in the data" in message and message.count("\n") == 1
    assert "solution: is empty: 5000 rows (d.jsonl line 1, 2, 3, 4, 5 and 4995 more)" in message


def test_a_row_of_many_megabytes_is_read(tmp_path):
    text = "ab cd " * 500_000
    for name, content in {
        "d.jsonl": json.dumps({"question": "q", "solution": text}),
        "d.csv": f'question,solution\nq,"{text}"\n',
    }.items():
        (tmp_path / name).write_text(content)
        assert load_demonstrations(tmp_path / name)[0].solution == text


@pytest.mark.parametrize("name", ["../../escape", "/etc/passwd", "a/b", "..", "{{ 7*7 }}", "<script>x</script>"])
def test_ids_are_names_not_paths(name, tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"id": name, "question": "q", "solution": "s"}))
    assert load_demonstrations(tmp_path / "d.jsonl")[0].id == name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl"]


@pytest.mark.parametrize("text", ["{{ 7*7 }}", "{% for x in y %}", "<|im_end|>", "<|endoftext|>{{ raise }}", "{#"])
def test_jinja_and_special_tokens_in_text_stay_text(text):
    renderer = Renderer(byte_tokenizer())
    prompt, response = renderer.marked(renderer.prompt_ids(text), renderer.response_ids(text))
    assert prompt[0].startswith(f"<|im_start|>user\n{text}<|im_end|>") and response[0] == f"{text}<|im_end|>"
    for ids in (renderer.prompt_ids(text), renderer.response_ids(text)):
        assert ids.count(renderer.end_id) == 1


YAML = st.sampled_from(
    [
        *("data", "target", "mapper", "sft", "seeds", "arms", "name", "steps", "path", "x", "lab:values", "3", "2e-5"),
        *(": ", "\n", "  ", "- ", "[", "]", "{", "}", ", ", "&a ", "*a", "<<", "? ", "| ", "!!int ", "!!bool "),
        *("!!python/object:os.system ", "!!binary ", "!!timestamp ", "!!set ", "!x ", "'", '"', "#", "---\n", "\t"),
        *("2026-99-99", "0x", "1_", ".nan", "~", "\\", "\u2028", "\x85", "9" * 5000, "[" * 200),
    ]
)


@fuzzed
@given(st.lists(YAML, max_size=25).map("".join))
def test_any_text_is_a_recipe_or_reported(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "r.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        load_config(path)
    except InputError as error:
        assert len(str(error)) < 20_000


KEYS = [
    f"{section}.{key}" if section else key
    for section, field in [("", None), *Config.model_fields.items()]
    for key in (Config.model_fields if not section else getattr(field.annotation, "model_fields", ()))
]


@fuzzed
@given(st.sampled_from(KEYS), st.lists(YAML, max_size=5).map("".join) | st.text(max_size=20))
def test_any_flag_is_accepted_or_reported(key, text):
    try:
        load_config(None, {"data": "lab:values", "target": "lab:backward", key: text})
    except InputError as error:
        assert len(str(error)) < 20_000


DOUBLINGS = "".join(f"{b}: &{b} {{x: *{a}, y: *{a}}}\n" for a, b in itertools.pairwise("abcdefghijklmnopqrstuvwxyz"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a: &a {{x: 1}}\n{DOUBLINGS}", "alias"),
        ("mapper: &a {prompt: x, steps: *a}\n", "alias"),
        (f"name: {'[' * 5000}{']' * 5000}\n", "nested too deeply"),
        ("sft: {steps: !!int ''}\n", "cannot be read"),
        ("sft: {steps: !!bool perhaps}\n", "cannot be read"),
        ("name: !!timestamp x\n", "cannot be read"),
        ("name: !!python/name:os.system\n", "not YAML"),
    ],
    ids=["bomb", "circle", "depth", "int", "bool", "timestamp", "python"],
)  # fmt: skip
def test_yaml_bombs_and_tags_are_reported(text, message, tmp_path):
    (tmp_path / "r.yaml").write_text(f"data: {{path: lab:values}}\ntarget: {{path: lab:backward}}\n{text}")
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "r.yaml")


def test_long_values_are_shortened_in_messages(tmp_path):
    with pytest.raises(InputError) as caught:
        load_config(None, {"data": "lab:values", "target": "lab:backward", "sft.steps": f"'{'x' * 100_000}'"})
    assert len(str(caught.value)) < 500


HOSTILE = [
    *("9^{9^{9^{9}}}", "99999999!", "(((10!)!)!)", "2^" * 100 + "2", r"\sum_{n=1}^{10^{12}} \frac{1}{n}"),
    *(r"\int_0^1 x^{x^{x^x}} dx", r"\binom{10^{9}}{5\cdot 10^{8}}", "(" * 120 + "1" + ")" * 120),
    *("x_{" * 50 + "1" + "}" * 50, r"\frac{" * 60 + "1" + "}{2}" * 60),
    *(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{10^{9}}", r"\gcd(10^{100},3)"),
    *("__import__('os').system('touch TRACE')", r"\text{__import__('os').system('touch TRACE')}", "lambda: 0"),
    *("().__class__.__bases__[0].__subclasses__()", r"\input{/etc/passwd}", "{{7*7}}", "1/0", r"\frac{1}{0}"),
    *("NaN", "inf", "\ud800", "\x0042", "\u202e42", "\\" * 200, "'" * 50, "\n" * 200 + "5", "1," * 127 + "1"),
    "[0,1)\\cup" * 20 + "(2,3)",
]  # fmt: skip


def test_hostile_answers_end_in_time_and_are_never_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answers = HOSTILE if EXAMPLES > 1000 else [*HOSTILE[:2], *HOSTILE[12:]]
    monkeypatch.setattr(checking, "MIN_FAILURES", 1000)
    with AnswerChecker(timeout_s=1.0) as checker:
        started = time.monotonic()
        verdicts = checker.check([(answer, r"7\sqrt{3}") for answer in answers])
        assert time.monotonic() - started < 60 + 10 * len(answers)
        assert True not in verdicts and checker.check([(r"\sqrt{8}", r"2\sqrt{2}")]) == [True]
    assert verdicts[0] is None, "a timeout is a failed check, not a wrong answer"
    assert not list(tmp_path.iterdir())


ANSWERS = st.text(st.sampled_from("0123456789+-*/^_{}()[]\\,.$%= xyπ√∞\n\x00\ud800frac")) | st.text(max_size=30)


@fuzzed
@given(ANSWERS, ANSWERS)
def test_any_two_answers_can_be_compared_without_a_process(predicted, gold):
    for task in TASKS.values():
        assert task.same(predicted, gold) in (True, False, None)
        task.stated(predicted), task.implicit_answer(predicted), task.worth_asking(predicted, gold)
    final_answers(predicted)


def test_a_checker_that_mostly_fails_stops_the_run(monkeypatch):
    with AnswerChecker() as checker:
        monkeypatch.setattr(checker._maths, "ask", lambda pairs, timeout_s: [None] * len(pairs))
        few = checking.MIN_FAILURES - 1
        assert checker.check([(f"2^{{{n}}}", "x+1") for n in range(few)]) == [None] * few
        with pytest.raises(MachineError, match=f"failed on {few + 1} of {few + 1} answers .*x\\+1"):
            checker.check([("2^{77}", "x+1")])
    with AnswerChecker() as checker:
        monkeypatch.setattr(checker._maths, "ask", lambda pairs, timeout_s: [None, *["unreadable"] * (len(pairs) - 1)])
        for n in range(checking.MIN_FAILURES + 5):  # many failures, but a small share of all checks
            checker.check([(f"2^{{{n}}}", f"x+{m}") for m in range(3)])
