"""Weak initial mappers: worked examples, warm-up or copier, and an early stop with advice where no rewrite passes."""

import pytest

from dartune.data.records import Demonstration
from dartune.engines.base import Sample
from dartune.errors import InputError
from dartune.run.cost import Cost
from dartune.run.files import read_jsonl
from dartune.stages.mapper import EMPTY_STEPS, watch_first_steps
from dartune.stages.mapper_prompt import mapper_prompt, with_examples, worked_examples
from dartune.stages.own_samples import is_verified, sample_own
from dartune.stages.warmup import describe_warmup
from test_reward import RENDERER, THRESHOLDS

ROWS = [Demonstration(f"r{n}", f"What is {n} + 1?", f"+ {n} 1 = {n + 1}", str(n + 1)) for n in range(5)]
REQUEST = "{question}\nHint: {solution}\nAnswer:"


def probed(*texts):
    return [{"own": [{"text": text} for text in own]} for own in texts]


def test_worked_examples_are_the_shortest_rows_that_the_target_solved():
    probe_rows = probed([], ["It is 2, as 1 + 1 = 2."], ["A long way round to 2 + 1 = 3.", "3"], [], ["5"])
    shown = worked_examples(ROWS, probe_rows, 2)
    assert [(row.id, text) for row, text in shown] == [("r2", "3"), ("r4", "5")]
    assert worked_examples(ROWS, probed(*[[]] * 5), 3) == []


def test_examples_stand_in_front_of_the_request_and_the_row_behind_them():
    template = with_examples(REQUEST, [(ROWS[2], "So 3.")])
    prompt = mapper_prompt(template, ROWS[4])
    first, second = prompt.split("\n\n")
    assert first == "What is 2 + 1?\nHint: + 2 1 = 3\nAnswer:\nSo 3."
    assert second == "What is 4 + 1?\nHint: + 4 1 = 5\nAnswer:"
    assert with_examples(REQUEST, []) == REQUEST


def test_a_row_that_spells_a_field_is_no_example():
    row = Demonstration("x", "What does {question} mean?", "A field. 1", "1")
    assert worked_examples([row], probed(["1"]), 1) == []


class Steps:
    def update(self, *_, **__): ...

    def advance_to(self, *_, **__): ...


def step(gate_pass):
    row = {"reward": 0.0, "gate_pass": gate_pass, "alignment_after": -1.0, "zero_variance": 1.0}
    return row | {"gates": {"finished": 0.2, "quantities": gate_pass, "entities": 1.0}}


def test_a_run_in_which_no_rewrite_passes_stops_with_advice(tmp_path):
    messages = []
    done = watch_first_steps(messages.append, Steps(), tmp_path)
    for number in range(EMPTY_STEPS - 1):
        done(number, step(0.0))
    assert len(messages) == 1 and "No rewrite passes the gates" in messages[0]
    with pytest.raises(InputError) as stop:
        done(EMPTY_STEPS - 1, step(0.0))
    advice = "\n".join(stop.value.problems)
    assert "quantities (100%), finished (80%)" in advice
    assert all(
        key in advice for key in ("mapper.temperature", "mapper.format_steps", "mapper.examples", "samples.jsonl")
    )


def test_one_rewrite_that_passes_is_enough_to_go_on(tmp_path):
    done = watch_first_steps(lambda _: None, Steps(), tmp_path)
    for number in range(3 * EMPTY_STEPS):
        done(number, step(0.01 if number == 2 else 0.0))


def test_the_initialisation_is_said_in_words():
    kinds = {"own": 3, "passed": 2, "tried": 40, "demonstrations": 0}
    assert "warm-up on 3 right solutions of the target, 2 of 40" in describe_warmup(kinds)
    assert "copier" in describe_warmup(kinds | {"demonstrations": 12})


class Solver:
    """Solves by another method than the demonstrations, which gates on rewrites refuse; wrong every other time."""

    flops = generated_tokens = scored_tokens = 0

    def generate(self, prompts, spec):
        assert spec.temperature == 0.7
        groups = []
        for prompt in prompts:
            n = int(RENDERER.tokenizer.decode(prompt).split("What is ")[1].split()[0])
            texts = [f"Counting on from {n} we reach {n + 1 + i % 2}." for i in range(spec.n)]
            groups.append([self._sample(text, cut=i == 2) for i, text in enumerate(texts)])
        return groups

    def _sample(self, text, cut):
        ids = tuple(RENDERER.response_ids(text))
        return Sample(ids[:-1] if cut else ids, (0.0,) * (len(ids) - cut), "length" if cut else "stop")


def test_own_solutions_are_verified_by_answer_and_end_alone(checker, tmp_path, monkeypatch):
    monkeypatch.setattr("dartune.stages.own_samples.CHUNK", 2)
    rows = [*ROWS, Demonstration("open", "What is 9 + 1?", "Who knows.", None)]
    path = tmp_path / "rows.jsonl"
    spent = iter(range(0, 100, 10))

    def spent_so_far():
        return Cost(generated_tokens=next(spent))

    def run():
        return sample_own(rows, Solver(), RENDERER, checker, THRESHOLDS, 5, 0.7, 64, 0, path, None, spent_so_far)

    assert run().generated_tokens == 30
    found = read_jsonl(path)
    assert [row["solutions"] for row in found[:-1]] == [[f"Counting on from {n} we reach {n + 1}."] for n in range(5)]
    assert found[-1]["solutions"] == [] and {row["drawn"] for row in found} == {5}
    assert run().generated_tokens == 30  # finished: nothing is drawn again


def test_a_right_answer_over_a_false_sum_is_not_verified():
    right = {"finished": True, "no_loop": True, "correct_answer": True}
    assert is_verified(ROWS[0], right | {"true_sums": True, "quantities": False})
    assert not is_verified(ROWS[0], right | {"true_sums": False})
    assert is_verified(ROWS[0], right)  # a task without sums has no such gate
