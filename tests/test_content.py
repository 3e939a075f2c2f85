"""Statements that count in the alignment score. Filler, repetition and the closing answer do not count."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartune.engines.base import TokenStats
from dartune.rewards.alignment import Reference, content_logprob
from dartune.rewards.content_tokens import content_mask, content_spans
from test_reward import RENDERER

STEPS = "Ann has 3 * 4 = 12 pens.\nBob has 12 + 5 = 17 pens."
CLOSING = "\nThe answer is 17."


def counted(text):
    return [text[start:end].strip() for start, end in content_spans(text)]


def test_statements_with_new_numbers_count():
    assert counted(STEPS + CLOSING) == STEPS.split("\n")


@pytest.mark.parametrize(
    "text",
    [
        f"Let's think about this step by step.\n{STEPS}\nI hope this helps!{CLOSING}",
        f"{STEPS}\n{STEPS}{CLOSING}",
        f"{STEPS} As we saw, Bob has 17 pens.{CLOSING}",
        f"{STEPS}\n#### 17",
    ],
)
def test_filler_repetition_and_the_closing_answer_do_not_count(text):
    assert counted(text) == STEPS.split("\n")


def test_single_statement_counts_in_full():
    for text in ("17", "So it is clear.", "We add 3, 4 and get 7, the answer is 7."):
        assert counted(text) == [text]


@pytest.mark.parametrize("text", ["#### 17", "The answer is 17.", "Let me see.\nSo the answer is 17.\n#### 17"])
def test_text_without_reasoning_gains_nothing(text):
    ids = RENDERER.response_ids(text)
    mask = content_mask(ids, text, RENDERER.decode)
    assert not any(mask)
    certain = TokenStats((-0.01,) * len(ids), content=mask)
    assert content_logprob(certain, Reference(10, -2.0, None, 10)) == -2.0  # as a rewrite: no better than the source
    assert content_logprob(certain, Reference(10, 0.0, None, 10)) == pytest.approx(-0.01)  # as a source itself


def test_decimals_do_not_end_a_statement():
    assert counted("It costs 3.50 in all. Twice that is 2 * 3.50 = 7.00.") == [
        "It costs 3.50 in all.",
        "Twice that is 2 * 3.50 = 7.00.",
    ]


def test_tokens_belong_to_their_statement():
    text = f"Well now.\n{STEPS}\nThat is it.{CLOSING}"
    ids = RENDERER.response_ids(text)
    mask = content_mask(ids, text, RENDERER.decode)
    written = RENDERER.decode([index for index, counts in zip(ids, mask, strict=True) if counts])
    assert written.strip() == STEPS and len(mask) == len(ids) and not mask[-1]


def test_first_token_counts_only_if_it_is_the_only_one():
    ids = RENDERER.response_ids("So it is.")
    assert content_mask(ids, "So it is.", RENDERER.decode) == (False,) + (True,) * (len(ids) - 1)
    assert content_mask(ids[:1], RENDERER.decode(ids[:1]), RENDERER.decode) == (True,)


LINES = st.lists(
    st.sampled_from(["So.", "3 + 4 = 7.", "Yes!", "7 + 1 = 8.", "Ünïcode 9 – ok.", "The answer is 8.", "日本 5。", ""]),
    max_size=7,
)


@given(LINES, st.sampled_from(["\n", " ", "\n\n"]))
@settings(max_examples=150, deadline=None)
def test_mask_covers_exactly_the_counted_statements(lines, separator):
    text = separator.join(lines)
    ids = RENDERER.response_ids(text)
    mask = content_mask(ids, text, RENDERER.decode)
    assert len(mask) == len(ids)
    spans = content_spans(text)
    expected = "".join(text[start:end] for start, end in spans)
    counted_ids = [index for index, counts in zip(ids, mask, strict=True) if counts]
    if spans and spans[0][0] == 0 and not mask[0]:
        counted_ids.insert(0, ids[0])
    assert RENDERER.decode(counted_ids).split() == expected.split()


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=30), st.lists(st.floats(-20, 0), max_size=30))
@settings(max_examples=100)
def test_masked_tokens_do_not_change_the_score(content, other):
    reference = Reference(10, 0.0, None, 10)
    alone = content_logprob(TokenStats(tuple(content), content=(True,) * len(content)), reference)
    mask = (True,) * len(content) + (False,) * len(other)
    padded = content_logprob(TokenStats((*content, *other), content=mask), reference)
    assert padded == pytest.approx(alone)


def test_without_a_mask_every_token_counts():
    assert content_logprob(TokenStats((-1.0, -3.0)), Reference(2, 0.0, None, 2)) == -2.0
    assert content_logprob(TokenStats(()), Reference(2, 0.0, None, 2)) == 0.0
