"""Evaluation: greedy and sampled solutions, and what nobody can check."""

from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Sample
from dartune.rewards.solved import solved
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
        made = [Sample(tuple(RENDERER.response_ids(text)), (), "stop") for text in texts]
        return [made for _ in prompts]


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


def test_text_that_was_cut_is_not_right_whatever_it_says(checker):
    ids = tuple(RENDERER.response_ids("#### 6"))
    whole, cut = Sample(ids, (), "stop"), Sample(ids[:-1], (), "length")
    [[(_, right), (text, after_all)]] = solved([SIX], [[whole, cut]], RENDERER, checker)
    assert right and after_all is False and text == "#### 6"
