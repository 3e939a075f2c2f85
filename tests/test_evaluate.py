"""Evaluation: greedy and sampled solutions, and what nobody can check."""

import json
from pathlib import Path

import pytest

from dartune.answers.grading import grade_samples
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import Sample
from dartune.stages.evaluate import accuracy, evaluate
from fixtures_models import byte_tokenizer

RENDERER = Renderer(byte_tokenizer(chat=True))
SIX = Demonstration("six", "What is 2 * 3?", "2 * 3 = 6\n#### 6", "6")
FOUR = Demonstration("four", "What is 2 + 2?", "2 + 2 = 4\n#### 4", "4")
OPEN = Demonstration("open", "Why?", "Because.", None)


class Solver:
    """Greedy: 6 for everything; sampled: 4, then 5, in turn."""

    def generate(self, prompts, spec):
        texts = ["#### 6"] if spec.temperature == 0 else [f"#### {4 + i % 2}" for i in range(spec.n)]
        samples = [Sample(tuple(RENDERER.response_ids(text)), (), "stop") for text in texts]
        return [samples for _ in prompts]

    def prompts_at_once(self, prompts, max_new_tokens):
        return len(prompts)


def test_sampled_solutions_are_counted_beside_the_greedy_one(checker):
    records = evaluate({"all": [SIX, FOUR, OPEN]}, Solver(), RENDERER, checker, 16, samples=4)
    six, four, unknown = records
    assert (six["correct"], six["avg_at_k"], six["pass_at_k"]) == (True, 0.0, False)
    assert (four["correct"], four["avg_at_k"], four["pass_at_k"]) == (False, 0.5, True)
    assert (unknown["correct"], unknown["avg_at_k"], unknown["pass_at_k"]) == (None, None, None)
    assert accuracy(records) == 0.5 and six["text"] == "#### 6"


def test_without_samples_nothing_is_said_of_them(checker):
    (record,) = evaluate({"all": [SIX]}, Solver(), RENDERER, checker, 16)
    assert record["correct"] and record["avg_at_k"] is None and record["pass_at_k"] is None


ANSWERS = [
    json.loads(line) for line in (Path(__file__).parent / "data" / "answers.jsonl").read_text("utf-8").splitlines()
]


def test_ordinary_endings_are_read_as_a_person_reads_them(checker):
    rows = [
        Demonstration(str(i), "How many?", row.get("source") or f"#### {row['answer']}", row["answer"])
        for i, row in enumerate(ANSWERS)
    ]
    samples = [[Sample(tuple(RENDERER.response_ids(row["text"])), (), "stop")] for row in ANSWERS]
    verdicts = [group[0][1] for group in grade_samples(rows, samples, RENDERER, checker)]
    wrong = [row["text"] for row, verdict in zip(ANSWERS, verdicts, strict=True) if bool(row["right"]) is not verdict]
    assert len(ANSWERS) == 42 and wrong == []


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("6 * 2 = 12 pens in all, bought over 3 days.", "12", True),
        ("She has 4 + 5 = 9 left.\n\n**So she has 9 apples after 2 days.**", "9", True),
        ("Total: **$1,250.50** (tax included)", "1250.5", True),
        ("答案是23。", "23", True),
        ("La réponse est 4,5.", "4.5", True),
        ("La respuesta es: **12**", "12", True),
        ("Die Antwort ist 1.234,50 Euro.", "1234.5", True),
        ("Die Antwort ist 1.200 Euro.", "3", False),
        ("#### 7\n\n### Question: 3 + 3?\n#### 6", "7", True),
        ("Question: is it 3?\nIt is 4.", "4", True),
        ("It is 5, not 6.", "5", False),
        ("150 ÷ 40 = 3.75, so they need 4 buses.", "4", True),
        ("150 ÷ 40 = 3.75. Rounding 3.75 up, the school needs 4 buses.", "4", True),
        ("The total is 5 × 9 = 45.\nA third of 45 is 15, so each child gets 15 sweets.", "15", True),
        ("Cost = 3 × 4 = $12.\n\nChange: $20 − $12 leaves $8.", "8", True),
        ("r = 10/2 = 5. Circumference: 2 × 3.14 × 5 ≈ 31.4 cm.", "31.4", True),
        ("12 cartons hold 12 × 12 = 144 eggs, so six are left over.", "6", True),
        (r"It takes \(1\frac{3}{4}\) hours.", "1.75", True),
        ("It takes 2½ hours.", "2", False),
        ("It takes two and a half hours.", "2.5", True),
        ("The area is 27 m^2.", "27", True),
        ("So it was -7°C at 6 am.", "-7", True),
        ("60 / 12 = 5, so it needs 5 dozen eggs.", "5", True),
        ("They have 5 dozen eggs.", "60", True),
        (r"The tank holds $27\,\text{cm}^3$", "27", True),
        ("The film ends at 9:35 PM.", "9:35 pm", True),
        ("The train arrives at 5:45.", "45", False),
        ("The ratio is 9:2.", "2", False),
        ("10/50 = 0.2 = 20%", "20", True),
        ("Therefore the solutions are x = 4 and x = -4.", "-4", False),
        ("The solutions are $4$ and $-4$.", "4, -4", True),
        ("Ann is 8 years older than Ben, who is 14.", "8", True),
        ("There are 18 girls in a class of 30.", "18", True),
        ("She needs 12 more stamps to reach 40.", "12", True),
        ("She got 15 more for a total of 72.", "72", True),
        ("It is 3 × 10^5 km.", "300000", True),
        ("The answer is about 36.", "36", True),
        ("Answer: -7°C", "-7", True),
        (r"\boxed{-7^\circ\text{C}}", "-7", True),
        ("Answer: 12 m/s²", "12", True),
        ("Answer: Rs. 36", "36", True),
        (r"$\text{Answer: } 36$", "36", True),
        ("Answer: 2 hours 30 minutes", "2 hours and 30 minutes", True),
        ("#### 2160\n\nHuman: What is 2 + 2?", "2160", True),
        ("#### 49\n<|endoftext|>assistant\n#### 50", "49", True),
        ("( 7.0 - 2.0 )", "2", False),
        ("- 18 10", "10", False),
        ("- 18 clips in all", "18", True),
        ("She pays 48 / 2 + 48", "48", False),
        ("((27.0+35.0)/9)", "9", False),
        ("It is 3/4.", "0.75", True),
        (r"So x is \boxed{5} or \boxed{6}.", "6", False),
        (r"So x is \boxed{5} or \boxed{6}.", "5 or 6", True),
        (r"The roots are $\boxed{2}$ and $\boxed{3}$.", "2, 3", True),
        (r"She has \boxed{12} at first. In the end it is \boxed{24}.", "24", True),
        (r"\boxed{10}", "10!", False),
        (r"\boxed{3628800}", "10!", True),
        ("The answer is 42. Wait, no, it is 43.", "43", True),
        ("The answer is 42. Wait, no, it is 43.", "42", False),
        ("The answer is as follows:\n5", "5", True),
        ("So she earned $1.2 million.", "1200000", True),
        ("Also kostet es 12,50 Euro.", "12.5", True),
        ("答えは24です。", "24", True),
        ("小明有20张卡片。", "20", True),
        ("Answer: She needs to pay $24.", "24", True),
        ("The answer is over 24.", "24", False),
        ("The answer is minus 5.", "-5", True),
        ("The answer is 3½.", "3.5", True),
        ("#### US$500", "500", True),
        ("Thus the area is $4\\pi$.", "4", False),
        ("So she has 5 or 6 apples.", "6", False),
        ("Thus $x=\\sqrt{2}$.", "2", False),
        ("It isn't 5.", "5", False),
        ("3, 4 and 5", "4", False),
    ],
)
def test_more_endings_of_the_same_kinds(text, answer, right, checker):
    row = Demonstration("a", "How many?", f"#### {answer}", answer)
    sample = Sample(tuple(RENDERER.response_ids(text)), (), "stop")
    assert grade_samples([row], [[sample]], RENDERER, checker)[0][0][1] is right


def test_whether_an_answer_is_announced_is_recorded(checker):
    (record,) = evaluate({"all": [SIX]}, Solver(), RENDERER, checker, 16)
    assert record["announced"] is True
    Plain = type("Plain", (Solver,), {"generate": lambda self, prompts, spec: [[plain]]})
    plain = Sample(tuple(RENDERER.response_ids("2 * 3 = 6")), (), "stop")
    (record,) = evaluate({"all": [SIX]}, Plain(), RENDERER, checker, 16)
    assert record["announced"] is False and record["correct"]


def test_text_that_was_cut_is_not_right_whatever_it_says(checker):
    ids = tuple(RENDERER.response_ids("#### 6"))
    whole, cut = Sample(ids, (), "stop"), Sample(ids[:-1], (), "length")
    [[(_, right), (text, after_all)]] = grade_samples([SIX], [[whole, cut]], RENDERER, checker)
    assert right and after_all is False and text == "#### 6"
