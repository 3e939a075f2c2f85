"""Tests of columns: each is used, joined, rejected or reported; a column map names columns or templates."""

import json
from pathlib import Path

import pytest

from dartune.data.load import load_demonstrations, read_demonstrations
from dartune.errors import InputError


def jsonl(folder: Path, rows) -> Path:
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load_row(folder, row, **settings):
    (loaded,) = load_demonstrations(jsonl(folder, [row]), **settings)
    return loaded


def load_error(folder, rows, **settings):
    with pytest.raises(InputError) as caught:
        load_demonstrations(jsonl(folder, rows), **settings)
    return caught.value


QS = {"question": "How many?", "solution": "It is 4."}
LAYOUTS = {
    "question/solution": QS,
    "prompt/completion": {"prompt": "How many?", "completion": "It is 4."},
    "messages": {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "It is 4."}]},
    "NuminaMath": {"problem": "How many?", "solution": "It is 4."},
    "OpenThoughts": {"conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "It is 4."}]},
}
every_layout = pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS.keys())


@every_layout
@pytest.mark.parametrize("name", ["context", "Body", "passage", "article"])
def test_a_context_is_put_above_the_question(row, name, tmp_path):
    read = read_demonstrations(jsonl(tmp_path, [{**row, name: "Lena has 4 cards."}]))
    assert read.rows[0].question == "Lena has 4 cards.\n\nHow many?" and not read.warnings()
    assert f"joined with question and solution: column {name!r} (1 row)" in read.facts[0]
    assert (
        load_row(tmp_path, {**row, name: None}).question
        == load_row(tmp_path, {**row, name: " "}).question
        == "How many?"
    )


def test_a_context_is_not_repeated_and_may_be_a_list(tmp_path):
    assert load_row(tmp_path, {**QS, "context": "How many?"}).question == "How many?"
    assert load_row(tmp_path, {**QS, "context": ["One.", "Two."]}).question == "One.\n\nTwo.\n\nHow many?"
    assert "context: must be text" in load_error(tmp_path, [{**QS, "context": {"a": 1}}]).problems[0]


SHOWN = "How many?\nA) 3\nB) 4.5\nC) 2"
OPTIONS = {
    "list": {"choices": ["3", "4.5", "2"]},
    "numbers": {"options": [3, 4.5, 2]},
    "labelled": {"options": ["A) 3", "B) 4.5", "C) 2"]},
    "by label": {"options": {"A": "3", "B": "4.5", "C": "2", "D": None}},
    "labels and texts": {"choices": {"label": ["A", "B", "C"], "text": ["3", "4.5", "2"]}},
    "objects": {"choices": [{"label": "A", "text": "3"}, {"label": "B", "text": "4.5"}, {"label": "C", "text": "2"}]},
    "json": {"options": '["3", "4.5", "2"]'},
    "columns": {"A": "3", "B": "4.5", "C": "2"},
    "named columns": {"option_a": "3", "option_b": "4.5", "option_c": "2"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_are_put_below_the_question(options, tmp_path):
    assert load_row(tmp_path, {**QS, **options}).question == SHOWN
    assert load_row(tmp_path, {**QS, **options, "question": SHOWN}).question == SHOWN
    assert load_row(tmp_path, {**QS, **options, "answer": 1}, task="choice").answer == "B"
    assert load_row(tmp_path, {**QS, **options, "answer": "4.5"}, task="choice").answer == "B"
    assert load_row(tmp_path, {**QS, **options, "answer": "b"}, task="choice").answer == "b"
    assert load_row(tmp_path, {**QS, **options, "answer": 1}).answer == "4.5"
    assert load_row(tmp_path, {**QS, **options, "answer": "4.5"}).answer == "4.5"


def test_options_that_are_not_texts_are_rejected(tmp_path):
    assert "choices: must be a list of texts" in load_error(tmp_path, [{**QS, "choices": [["a"], ["b"]]}]).problems[0]


@every_layout
def test_a_system_column_is_kept_in_every_layout(row, tmp_path):
    assert load_row(tmp_path, {**row, "system": "Be brief."}).meta == {"system": "Be brief."}
    assert load_row(tmp_path, {**row, "system": ""}).meta == {}


@every_layout
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"history": [["Hi", "Hello"]]}, "history: holds earlier turns"),
        ({"tools": [{"name": "f"}]}, "tools: the row has tools"),
        ({"tools": '[{"name": "f"}]'}, "tools: the row has tools"),
        ({"images": ["a.png"]}, "images: only text is read"),
        ({"image": {"bytes": "x"}}, "image: only text is read"),
        ({"reasoning": "4, as 2 + 2."}, "the reasoning is in 'reasoning': set target.thinking: true"),
    ],
)
def test_columns_that_cannot_be_used_are_rejected(row, extra, message, tmp_path):
    assert message in load_error(tmp_path, [{**row, **extra}]).problems[0]
    empty = {name: [] for name in extra}
    assert load_row(tmp_path, {**row, **empty}).solution == "It is 4."


@every_layout
def test_reasoning_in_a_column_is_joined_for_a_thinking_target(row, tmp_path):
    loaded = load_row(tmp_path, {**row, "thinking": "2 + 2"}, thinking=True)
    assert loaded.solution == "<think>\n2 + 2\n</think>\n\nIt is 4."


def test_every_unused_column_is_reported_with_its_count(tmp_path, caplog):
    rows = [{**QS, "id": n, "source": "x", "level": n % 2 or None, "extra": {"a": None}} for n in range(4)]
    path = jsonl(tmp_path, rows)
    assert read_demonstrations(path).notes == [f"{path}: not used: columns 'source' (4 rows), 'level' (2 rows)"]
    load_demonstrations(path)
    assert "not used: columns 'source' (4 rows), 'level' (2 rows)" in caplog.text
    mapped = read_demonstrations(path, columns={"question": "source", "solution": "solution"})
    assert "not used: columns 'question' (4 rows), 'level' (2 rows)" in mapped.notes[0]


def test_a_template_joins_columns(tmp_path):
    row = {"Body": "Lena has 4.", "Question": "How many?", "Working": "Four.", "Answer": 4.0, "Tags": ["a", "b"]}
    loaded = load_row(
        tmp_path, row, columns={"question": "{Body} {Question}", "solution": "{Working} So {Answer} {{x}}"}
    )
    assert (loaded.question, loaded.solution) == ("Lena has 4. How many?", "Four. So 4 {x}")
    columns = {"question": "{Tags}:\n{Question}", "solution": "Working", "answer": "Answer"}
    loaded = load_row(tmp_path, row, columns=columns)
    assert (loaded.question, loaded.answer) == ("a\nb:\nHow many?", "4")


def test_a_template_with_missing_columns_is_an_error(tmp_path):
    row = {"Body": "b", "Question": "q", "Working": "w"}
    error = load_error(tmp_path, [row], columns={"question": "{Body} {Q}", "solution": "{Working"})
    assert "data.columns.question names the column 'Q', which does not exist" in error.problems[0]
    assert "data.columns.solution is not a valid template" in error.problems[1]
    columns = {"question": "{Body} {Question}", "solution": "Working"}
    rows = [row, {"Body": "b", "Working": "w"}, {**row, "Body": None}, {**row, "Body": {"a": 1}}]
    error = load_error(tmp_path, rows, columns=columns)
    assert error.problems == (
        "d.jsonl line 2: Question: the field is missing",
        "d.jsonl line 4: Body: must be text or a number, not dict",
    )


def test_columns_within_structs(tmp_path):
    row = {"extra_info": {"question": "q", "answer": "a b", "index": 3}, "data_source": "x"}
    columns = {"question": "extra_info.question", "solution": "{extra_info.answer}"}
    read = read_demonstrations(jsonl(tmp_path, [row]), columns=columns)
    assert (read.rows[0].question, read.rows[0].solution) == ("q", "a b")
    assert "not used: columns 'data_source' (1 row), 'extra_info.index' (1 row)" in read.notes[0]
    assert "extra_info.question" in load_error(tmp_path, [row]).message
    read = read_demonstrations(jsonl(tmp_path, [{"row": {**QS, "level": 1}, "source": "x"}] * 2))
    assert read.rows[0].question == "How many?"
    assert "are read from the column 'row'" in read.notes[0] and "'source' (2 rows), 'level' (2 rows)" in read.notes[1]


SVAMP = {
    "ID": "chal-1",
    "Body": "There are 87 oranges and 290 bananas in the collection.",
    "Question": "How big is each group of bananas?",
    "Equation": "( 290.0 / 2.0 )",
    "Answer": 145.0,
    "Type": "Common-Division",
}


def test_a_proposed_map_reports_every_unused_text_column(tmp_path):
    message = load_error(tmp_path, [SVAMP]).message
    assert 'data.columns: {question: "{Body}\\n\\n{Question}", solution: Equation, answer: Answer}' in message
    assert "Not used in this example: 'ID', 'Type'" in message
    rows = [{"frage": f"Wie viel ist das hier {n}?", "weg": f"Das sind genau {n} davon."} for n in range(5)]
    message = load_error(tmp_path, rows).message
    assert "{question: frage, solution: weg}" in message and "Not used in this example" not in message


def test_options_are_not_proposed_as_a_solution(tmp_path):
    rows = [{"question": "What is 1 + 1?", "choices": ["1", "2"], "answer": 1, "subject": "sums"}]
    message = load_error(tmp_path, rows).message
    assert "{question: question, solution: <their column>, answer: answer}" in message
    assert "No column looks like a worked solution" in message and "'subject'" in message


def test_other_solutions_are_not_proposed_for_the_question(tmp_path):
    texts = {f"r1_solution_{i}": f"Way {i}: we add two and three and get five apples" for i in (1, 2, 3)}
    rows = [{"question": f"How many apples has Ann got on day {n}?", "final_answer": "5", **texts} for n in range(3)]
    advice = str(load_error(tmp_path, [row | {key: f"{row[key]} {n}" for key in texts} for n, row in enumerate(rows)]))
    assert "{question: question, solution: r1_solution_1, answer: final_answer}" in advice
    assert "r1_solution_2" in advice.partition("Not used")[2]


@pytest.mark.parametrize("missing", ["nan", "N/A", "#N/A", "null", " "])
def test_placeholders_for_a_missing_answer_become_none(missing, tmp_path):
    assert load_row(tmp_path, {**QS, "answer": missing}).answer is None


def test_every_prose_column_is_in_the_proposed_map(tmp_path):
    row = {"Problem": "What is it {}?", "Setting": "There are {} cards here.", "Rationale": "It is {} as I count them."}
    row |= {"Response": "So {} it is.", "level": "easy"}
    rows = [{name: text.format(n) for name, text in row.items()} for n in range(4)]
    message = load_error(tmp_path, rows).message
    assert 'question: "{Problem}\\n\\n{Setting}", solution: "{Rationale}\\n\\n{Response}"' in message
    assert "Not used in this example: 'level'" in message
    columns = {"question": "{Problem}\n\n{Setting}", "solution": "{Rationale} {Response}"}
    assert load_row(tmp_path, rows[0], columns=columns).question == "What is it 0?\n\nThere are 0 cards here."
    message = load_error(tmp_path, [{"Instruction": "Add them.", "Input": "2, 3", "Response": "5"}]).message
    assert 'question: "{Instruction}\\n\\n{Input}", solution: Response' in message


def test_a_mapped_column_is_joined_with_related_columns_and_a_template_is_not(tmp_path):
    row = {"q": "How many?", "s": "It is 4.", "context": "Lena has 4.", "choices": ["3", "4"], "reasoning": "As I see."}
    loaded = load_row(tmp_path, row, columns={"question": "q", "solution": "s"}, thinking=True)
    assert loaded.question == "Lena has 4.\n\nHow many?\nA) 3\nB) 4"
    assert loaded.solution == "<think>\nAs I see.\n</think>\n\nIt is 4."
    read = read_demonstrations(jsonl(tmp_path, [row]), columns={"question": "{q}", "solution": "{s}"})
    assert (read.rows[0].question, read.rows[0].solution) == ("How many?", "It is 4.")
    assert "not used: columns 'context' (1 row), 'choices' (1 row), 'reasoning' (1 row)" in read.notes[0]
    assert "maps 'q' to several fields" in str(load_error(tmp_path, [row], columns={"question": "q", "solution": "q"}))


@pytest.mark.parametrize(
    ("options", "answer", "label", "text"),
    [
        (["1", "3", "4"], 1, "B", "3"),
        ([1, 3, 4], 1, "A", "1"),
        (["1", "3", "4"], "1", "A", "1"),
        (["x", "y"], "1", "B", "y"),
        (["10", "20"], 20, "B", "20"),
        (["x", "y"], 1.0, "B", "y"),
        (["x", "y"], "x", "A", "x"),
        (["x", "y"], "(B) y", "(B) y", "(B) y"),
        (["x", "None"], None, None, None),
        (["B) y", "A) x"], "A", "A", "A"),
        (["b. y", "a. x"], "x", "A", "x"),
        (["x", "y"], "²", "²", "²"),
    ],
)
def test_an_answer_among_options(options, answer, label, text, tmp_path):
    row = {**QS, "options": options, "answer": answer}
    assert load_row(tmp_path, row, task="choice").answer == label
    assert load_row(tmp_path, row).answer == text


def test_an_answer_that_is_not_an_option_is_an_error(tmp_path):
    error = load_error(tmp_path, [{**QS, "choices": ["x", "y"], "answer": 2}])
    assert error.problems[0].endswith("answer: 2 is not one of the 2 options (numbered from 0)")
    error = load_error(tmp_path, [{**QS, "choices": ["x", "y"], "answer": "C"}], task="choice")
    assert error.problems[0].endswith("answer: 'C' is not one of the 2 options (A, B)")


def test_columns_that_are_not_text_are_rejected_or_reported(tmp_path):
    assert "system: must be text, not list" in load_error(tmp_path, [{**QS, "system": ["a"]}]).problems[0]
    assert "'reasoning' (1 row)" in read_demonstrations(jsonl(tmp_path, [{**QS, "reasoning": True}])).notes[0]


@every_layout
def test_a_column_named_like_another_layouts_field_is_reported(row, tmp_path):
    extras = {name: "Answer in Roman numerals." for name in ("solution", "completion") if name not in row}
    extras = extras if "solution" in row or "messages" in row else {"completion2": "x"}
    notes = read_demonstrations(jsonl(tmp_path, [{**row, **extras}])).notes
    assert all(f"{name!r} (1 row)" in notes[0] for name in extras)


@pytest.mark.parametrize("value", [["a", "b"], {"a": "b"}])
def test_reasoning_in_a_column_must_be_text(value, tmp_path):
    assert "reasoning: the reasoning in" in load_error(tmp_path, [{**QS, "reasoning": value}]).problems[0]


def test_a_column_outside_a_struct_with_the_same_name_is_reported(tmp_path):
    row = {"answer": "5", "id": "a", "row": {**QS, "answer": "4", "id": "a"}}
    read = read_demonstrations(jsonl(tmp_path, [row]))
    assert read.rows[0].answer == "4" and read.notes[1].endswith("not used: column 'answer (beside row)' (1 row)")


@pytest.mark.parametrize(
    "texts", [["a.m.", "p.m."], ["Homo sapiens", "E. coli", "C. elegans"], ["I. Newton", "B. Pascal"]]
)
def test_labels_are_read_from_texts_only_if_all_have_one(texts, tmp_path):
    shown = "".join(f"\n{label}) {text}" for label, text in zip("ABC", texts, strict=False))
    loaded = load_row(tmp_path, {**QS, "choices": texts, "answer": 1})
    assert loaded.question == "How many?" + shown and loaded.answer == texts[1]
    assert load_row(tmp_path, {**QS, "choices": texts, "answer": 1}, task="choice").answer == "B"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": {"label": ["A", "B"], "text": ["5", "6", "7"]}}, "as many labels as texts"),
        ({"options": ["a", "b"], "choices": ["c", "d"]}, "options: differs from the options in 'choices'"),
        ({"A": "", "B": "b", "C": "c"}, "A: is an empty option before others"),
        ({"option_a": "a", "option_b": None, "option_c": "c"}, "option_b: is an empty option before others"),
        ({"options": {"A": None, "B": "b"}}, "options: must be a list of texts"),
        ({"options": "['5' '6'\n '7']"}, "options: is a list without commas between its texts, as numpy prints it"),
        ({"options": r"['\frac{1}{2}', 'x']"}, "options: has a backslash that Python would read as another"),
        ({"options": r"['\times 3', 'x']"}, "options: has a backslash that Python would read as another"),
        ({"options": r"['\(x\)', 'x']"}, "options: has a backslash that Python would read as another"),
        ({"options": "{'text': array(['a'], dtype=object)}"}, "options: is the printed form of numpy arrays"),
    ],
)
def test_options_that_would_be_lost_are_rejected(options, message, tmp_path):
    assert message in load_error(tmp_path, [{**QS, **options}]).problems[0]


@pytest.mark.parametrize(
    "text", [r"['a\nb\tc', 'd']", r"['\\frac{1}{2}', 'x']", "['a', \"it's\"]", '["\\\\frac 1", "x"]']
)
def test_options_printed_by_python_are_read(text, tmp_path):
    import ast

    first, second = ast.literal_eval(text)
    assert load_row(tmp_path, {**QS, "options": text}).question == f"How many?\nA) {first}\nB) {second}"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"solution": "{{solution}}"}, "data.columns.solution names no column"),
        ({"answer": "{question:.2f}"}, "data.columns.answer has the format ':.2f', which is not supported"),
        ({"question": "{question!r}"}, "data.columns.question has the format '!r', which is not supported"),
    ],
)
def test_a_template_without_columns_or_with_a_format_is_an_error(columns, message, tmp_path):
    assert message in load_error(tmp_path, [QS], columns=columns).problems[0]


def test_a_short_context_is_joined_even_if_the_question_contains_its_letters(tmp_path):
    for context, question in (("0", "Are there 10?"), ("pie", "Is there apple pie?")):
        read = read_demonstrations(jsonl(tmp_path, [{**QS, "question": question, "context": context}]))
        assert read.rows[0].question == f"{context}\n\n{question}" and "'context'" in read.facts[0]
    read = read_demonstrations(jsonl(tmp_path, [{**QS, "context": "How many?"}]))
    assert read.rows[0].question == "How many?" and not read.facts and not read.notes


def test_a_system_message_that_is_not_text_is_rejected_beside_a_system_column(tmp_path):
    row = {"messages": [{"role": "system", "content": ["a", 5]}, *LAYOUTS["messages"]["messages"]]}
    assert "system: must be text, not list" in load_error(tmp_path, [{**row, "system": "Be brief."}]).problems[0]


def test_a_table_with_a_repeated_column_is_rejected(tmp_path):
    import pyarrow
    from pyarrow import parquet

    lists, maps = (
        pyarrow.array([[{"a": 1}]]),
        pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    )
    text = pyarrow.array(["q"])
    good = pyarrow.table({"question": text, "solution": text, "lists": lists, "maps": maps})
    parquet.write_table(good, tmp_path / "d.parquet")
    assert len(load_demonstrations(tmp_path / "d.parquet")) == 1
    parquet.write_table(good.append_column("solution", text), tmp_path / "d.parquet")
    with pytest.raises(InputError, match="d.parquet: has several columns of these names: solution"):
        load_demonstrations(tmp_path / "d.parquet")


def test_a_proposed_map_has_one_wording_of_the_question_and_quotes_unusual_names(tmp_path):
    rows = [{"query": f"How many are {n} and 2?", "response": f"It is {n + 2} then.", "type": "x"} for n in range(4)]
    rows = [{**row, "original_question": row["query"]} for row in rows]
    message = load_error(tmp_path, rows).message
    assert "{question: query, solution: response}" in message and "'original_question'" in message
    message = load_error(tmp_path, [{"question": "How many?", " solution": "It is 4."}]).message
    assert '{question: question, solution: " solution"}' in message
