"""The default reward: gain, fallback, cap, thresholds, and the same reward for one sample as in a batch."""

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import Sample, TokenStats
from dartune.gates.gate_input import ANSWER_LOGPROB, GateThresholds
from dartune.gates.registry import GATE_NAMES
from dartune.rewards.alignment import (
    Reference,
    gain_cap,
    sum_logprob,
    typical_alignment,
)
from dartune.rewards.content_tokens import answer_tokens
from dartune.rewards.references import source_answer
from dartune.rewards.reward import GatedReward
from dartune.rewards.thresholds import answer_threshold, lower_threshold
from dartune.stages.mapper import judged_rewards
from fixtures_models import byte_tokenizer

RENDERER = Renderer(byte_tokenizer(chat=True))
ROW = Demonstration(
    "r1",
    "Ann has 3 pens and Bob has twice as many as Ann. How many does Bob have?",
    "Ann has 3 pens.\nBob has 2 * 3 = 6 pens.\n#### 6",
    "6",
)
OTHER = Demonstration("r2", "Cleo has 5 cups and loses 1. How many has Cleo?", "Cleo keeps 5 - 1 = 4.\n#### 4", "4")
GOOD = "We know Ann has 3 pens, so Bob has 2 * 3 = 6 pens.\n#### 6"
THRESHOLDS = GateThresholds(
    quantity_coverage=0.95,
    entity_coverage=1.0,
    answer_logprob=math.log(0.5),
    length_low=0.2,
    length_high=4.0,
    max_repeats=5,
    leak_phrases=(),
)


class FakeTarget:
    """Gives every token the same log-probability, or the one in a table by text."""

    def __init__(self, each=-0.1, table=None):
        self.each, self.table = each, table or {}
        self.generated_tokens = self.scored_tokens = 0

    def score(self, pairs):
        return [[self.table.get(RENDERER.decode(ids), self.each)] * len(ids) for _, ids in pairs]


def sample(text, finish="stop"):
    ids = tuple(RENDERER.response_ids(text))
    return Sample(ids if finish == "stop" else ids[:-1], tuple([0.0] * len(ids)), finish)


def reward(target=None, cap=None, source=-1.0, checker=None):
    references = {
        row.id: Reference(
            len(RENDERER.response_ids(row.solution)), source, cap, len(RENDERER.response_ids(row.solution))
        )
        for row in (ROW, OTHER)
    }
    return GatedReward(target or FakeTarget(), RENDERER, checker, THRESHOLDS, references)


def test_an_accepted_rewrite_earns_its_gain_over_the_original(checker):
    [[scored]] = reward(checker=checker)([ROW], [[sample(GOOD)]])
    assert scored.accepted, scored.failed
    assert scored.alignment == pytest.approx(-0.1)
    assert scored.reward == pytest.approx(0.9)


def test_a_rewrite_less_natural_than_the_original_has_reward_zero(checker):
    [[scored]] = reward(FakeTarget(each=-0.3), source=-0.2, checker=checker)([ROW], [[sample(GOOD)]])
    assert scored.alignment < -0.2 and scored.reward == 0.0


def test_a_gain_above_the_cap_is_not_rewarded(checker):
    [[scored]] = reward(cap=0.25, checker=checker)([ROW], [[sample(GOOD)]])
    assert scored.reward == 0.25


@pytest.mark.parametrize(
    ("hack", "gate"),
    [
        ("#### 6", "quantities"),
        ("Blue pens swim under Ann and Bob quietly 3 2 * 3 = 6.\n#### 7", "correct_answer"),
        ("There are 3 pens, then 2 * 3 = 6 pens.\n#### 6", "entities"),
        ("Ann has 3 pens, as the given solution says, so Bob has 2 * 3 = 6.\n#### 6", "no_leak"),
    ],
)
def test_a_likely_hack_has_reward_zero(hack, gate, checker):
    [[scored]] = reward(FakeTarget(each=-1e-6), checker=checker)([ROW], [[sample(hack)]])
    assert gate in scored.failed and scored.reward == 0.0


def test_an_answer_that_does_not_follow_from_the_reasoning_earns_nothing(checker):
    table = {GOOD: math.log(0.3)}  # the target would not give this answer
    [[scored]] = reward(FakeTarget(table=table), source=-10.0, checker=checker)([ROW], [[sample(GOOD)]])
    assert scored.answer_logprob == pytest.approx(math.log(0.3))
    assert scored.failed == ["follows"] and scored.reward == 0.0


def test_a_truncated_rewrite_earns_nothing(checker):
    [[scored]] = reward(checker=checker)([ROW], [[sample(GOOD, finish="length")]])
    assert "finished" in scored.failed and scored.reward == 0.0


def test_a_reward_is_the_same_alone_and_in_a_batch_in_any_order(checker):
    texts = [GOOD, "#### 6", "Ann 3. Bob 2 * 3 = 6. #### 6", ""]
    together = reward(checker=checker)(
        [ROW, OTHER], [[sample(t) for t in texts], [sample("Cleo keeps 5 - 1 = 4.\n#### 4")]]
    )
    alone = [reward(checker=checker)([ROW], [[sample(t)]])[0][0] for t in texts]
    assert together[0] == alone
    swapped = reward(checker=checker)(
        [OTHER, ROW], [[sample("Cleo keeps 5 - 1 = 4.\n#### 4")], [sample(t) for t in texts[::-1]]]
    )
    assert swapped[1][::-1] == together[0]


def test_answer_tokens_are_exactly_the_tokens_of_the_answer():
    ids = RENDERER.response_ids(GOOD)
    positions = answer_tokens(ids, GOOD, RENDERER)
    assert RENDERER.decode([ids[i] for i in positions]).strip() == "6"
    twice = f"{GOOD}\n{GOOD.splitlines()[-1]}"
    assert answer_tokens(RENDERER.response_ids(twice), twice, RENDERER) == positions
    assert len(answer_tokens(RENDERER.response_ids("no answer"), "no answer", RENDERER)) == 0


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("5 + 1 = 6.\n**Answer: 24 bags**", "24"),
        (r"So it is \boxed{\frac{5}{4}}.", "5}{4"),
        ("The answer is -3 degrees.", "-3"),
        ("The answer is 6x + 13.", "6x + 13"),
        ("5 + 19 = 24, so they filled 24 bags in all.", "24"),
        ("The answer is yes.", "yes"),
    ],
)
def test_words_and_marks_around_the_digits_of_an_answer_do_not_count(text, digits):
    ids = RENDERER.response_ids(text)
    assert RENDERER.decode([ids[i] for i in answer_tokens(ids, text, RENDERER)]).strip() == digits


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("5 + 19 = 24\n#### 24", 0),
        ("5 + 19 = 24 bags. They filled 24 bags.\nThe answer is 24.", 0),
        ("He has 24 hours. 2 + 2 = 4. 4 * 6 = 24.\n#### 24", 1),
        ("3 * 8 = 24. 24 / 2 = 12. 12 * 2 = 24. So 24.", 2),
        ("2 * 5 = 10.0\nThe answer is 10.", 0),
        ("0.24 * 99 is what we need.\n#### 24", 0),
        (r"We get \frac{5}{4} and \boxed{\frac{5}{4}}.", 1),
    ],
)
def test_the_answer_tokens_are_where_it_is_first_worked_out(text, place):
    """A repeated answer is copied, so its probability shows nothing about the reasoning before it."""
    answer = "10" if "10" in text else "5}{4" if "frac" in text else "24"
    starts = [match.start() for match in re.finditer(rf"(?<![\d.]){re.escape(answer)}", text)]
    ids = RENDERER.response_ids(text)
    positions = answer_tokens(ids, text, RENDERER, worked_out=True)
    before = RENDERER.decode(ids[: positions.start])
    assert len(before) <= starts[place] < len(RENDERER.decode(ids[: positions.start + 1]))


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=50), st.integers(1, 40), st.floats(-5, 0))
@settings(max_examples=100)
def test_a_further_token_never_raises_the_alignment(logprobs, length, further):
    """The sum is divided by the source's length, so long predictable text is not rewarded."""
    reference = Reference(length, 0.0, None, length)
    longer = sum_logprob(TokenStats((*logprobs, further)), reference)
    assert longer <= sum_logprob(TokenStats(tuple(logprobs)), reference)


def test_the_cap_comes_from_own_samples_or_the_data_set_or_does_not_exist():
    typical = typical_alignment([-1.0, -0.5, -0.8], minimum=3)
    assert gain_cap(-3.0, [-1.0, -0.5, -0.8], typical) == pytest.approx(2.2)
    assert gain_cap(-2.0, [], typical) == pytest.approx(1.2)
    assert typical_alignment([-1.0], minimum=3) is None
    assert [gain_cap(-3.0, [-1.0], None), gain_cap(-2.0, [], None)] == [2.0, None]
    assert gain_cap(-0.1, [-1.0], -1.0) == 0.0


def test_a_threshold_from_percentiles_is_never_stricter_than_its_default():
    assert lower_threshold([-0.1] * 50, 1.0, -0.7) == -0.7
    assert lower_threshold([-2.0] * 50, 1.0, -0.7) == -2.0
    assert lower_threshold([-2.0] * 3, 1.0, -0.7) == -0.7


def test_the_threshold_of_a_weak_target_is_its_certainty_after_demonstrations():
    assert answer_threshold([-0.1] * 50, [-9.0] * 50) == ANSWER_LOGPROB
    assert answer_threshold([-2.0] * 50, [-9.0] * 50) == -2.0
    assert answer_threshold([-0.1] * 3, [-9.0] * 50) == -9.0
    assert answer_threshold([], [-9.0] * 3) == answer_threshold([], [-0.1] * 50) == ANSWER_LOGPROB


def test_a_demonstration_without_calculations_gives_no_answer_threshold():
    def answer(solution):
        row = Demonstration("r", "How many?", solution, "24")
        return source_answer(row, [-0.5] * 99, RENDERER)

    assert answer("8 * 3 = 24\n#### 24") == -1.0
    assert answer("8 , 24 . The answer is 24 .") is None


def test_a_failed_answer_check_is_a_missing_reward_and_not_zero(checker):
    class Failing:
        def check(self, pairs, task=None):
            return [None] * len(pairs)

    samples = [[sample(GOOD), sample(GOOD.replace("#### 6", r"#### \\frac{12}{2}"))]]
    [[good, unknown]] = reward(checker=Failing())([ROW], samples)
    assert not unknown.judged and not unknown.accepted
    [[good, _]] = reward(checker=checker)([ROW], samples)
    assert good.judged and judged_rewards([good, unknown]) == [good.reward, good.reward]
    assert judged_rewards([unknown]) == [0.0]


def scaled(caps, source=-1.0):
    references = {str(i): Reference(10, source, cap, 10) for i, cap in enumerate(caps)}
    return GatedReward(FakeTarget(), RENDERER, None, THRESHOLDS, references)


def test_the_advantage_scale_is_that_of_rows_that_can_gain():
    """The median over all rows, at least 0.001, gave advantages of 350 when half of the rows could gain nothing."""
    assert scaled([0.0, 0.0, 0.0, 0.4, 0.6, 0.5]).scale == 0.5
    assert scaled([0.0, 0.0, 0.0, 0.4, 0.6, 0.5]).gainful_share == 0.5
    assert scaled([0.01, 0.01]).scale == 0.05
    assert (scaled([0.0, 0.0]).scale, scaled([0.0, 0.0]).gainful_share) == (1.0, 0.0)


def test_a_reward_reports_its_limits():
    (few,) = scaled([0.0, 0.0, 0.5]).limits()
    assert "Only 33% of the rows can gain" in few
    references = {"0": Reference(10, -1.0, 0.5, 10)}

    def limits(answer_logprob, gates=GATE_NAMES):
        thresholds = replace(THRESHOLDS, answer_logprob=answer_logprob)
        return GatedReward(FakeTarget(), RENDERER, None, thresholds, references, gates=gates).limits()

    (lax,) = limits(-10.9)
    assert "'follows'" in lax and "2e-05" in lax and "reward.answer_logprob" in lax
    assert not limits(-0.7) and not limits(None) and not limits(-10.9, ("true_sums",))


def test_a_verbatim_copy_has_reward_zero_despite_rounding(checker):
    [[scored]] = reward(FakeTarget(each=-0.1), source=-0.1 - 5e-7, checker=checker)([ROW], [[sample(ROW.solution)]])
    assert scored.accepted and scored.reward == 0.0


def test_another_end_token_is_replaced_by_the_one_of_the_chat_template(checker):
    other_end = RENDERER.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = (*RENDERER.response_ids(GOOD)[:-1], other_end)
    assert other_end in RENDERER.stop_ids and other_end != RENDERER.end_id
    [[scored]] = reward(checker=checker)([ROW], [[Sample(ids, (0.0,) * len(ids), "stop")]])
    assert scored.accepted and scored.ids == tuple(RENDERER.response_ids(GOOD))
