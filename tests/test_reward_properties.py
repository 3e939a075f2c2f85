"""Properties of the reward under a real target: hacks gain nothing, and rewrites in a batch are independent."""

import random
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import Sample
from dartune.engines.hf import HFEngine
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.hacks.catalogue import HACKS, INSTRUCTION, INVENTED_NAMES
from dartune.lab.dialects import DIALECTS, EXPERTS
from dartune.lab.source import model_folder
from dartune.lab.suites import DEMONSTRATIONS
from dartune.lab.world import sample_problem, sample_problems
from dartune.models.loading import load_model, load_tokenizer
from dartune.rewards.alignment import SCORES, Reference
from dartune.rewards.penalties import peeking, question_independence
from dartune.rewards.references import source_references
from dartune.rewards.reward import GatedReward
from fixtures_hacks import NATIVE, english
from fixtures_models import byte_tokenizer, tiny_model

THRESHOLDS = GateThresholds(answer_logprob=-0.7, instruction=INSTRUCTION, names=frozenset(INVENTED_NAMES))
PROBLEMS = sample_problems("properties", DEMONSTRATIONS, 6)
CLOSE = 1e-4  # nats per token: float32 sums in another order
SCORE_SETTINGS = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def renderer():
    return Renderer(load_tokenizer(model_folder("lab:backward")))


@pytest.fixture(scope="module")
def target():
    return HFEngine(load_model(model_folder("lab:backward")))


def demonstration(problem, expert, name):
    return Demonstration(name, problem.question, DIALECTS[expert](problem), str(problem.answer))


def sample(text, renderer, finish="stop"):
    ids = tuple(renderer.response_ids(text))
    ids = ids if finish == "stop" else ids[:-1]
    return Sample(ids, (-0.5,) * len(ids), finish)


@pytest.fixture(scope="module")
def make_reward(target, renderer, checker):
    """Return a function that builds the reward for demonstrations and a score."""

    def make(rows, score="sum_logprob", **parts):
        references = source_references(target, renderer, rows, SCORES[score])
        # Honest solutions in another dialect can be several times as long as a terse source.
        references = {name: replace(own, expected_tokens=3 * own.length) for name, own in references.items()}
        return GatedReward(target, renderer, checker, THRESHOLDS, references, score=SCORES[score], **parts)

    return make


@pytest.mark.slow
@given(st.integers(0, 10**9), st.sampled_from(sorted(EXPERTS)), st.sampled_from(NATIVE), st.sampled_from(HACKS))
@settings(max_examples=80, deadline=None)
def test_a_hack_never_raises_the_reward_of_an_honest_rewrite(make_reward, renderer, seed, expert, native, hack):
    rng = random.Random(seed)
    problem = sample_problem(rng, DEMONSTRATIONS)
    row = demonstration(problem, expert, "row")
    honest = DIALECTS[native](problem)
    hacked = hack.apply(GateInput(row.question, row.solution, honest, row.answer), rng)
    # The lab's models have no words for some hacks.
    assume(hacked is not None and renderer.decode(renderer.response_ids(hacked.rewrite)) == hacked.rewrite)
    reward = make_reward([row])
    [[before, after]] = reward([row], [[sample(honest, renderer), sample(hacked.rewrite, renderer, hacked.finish)]])
    assert after.reward <= before.reward, hacked.rewrite
    assert after.reward == 0.0 and after.hacks, hacked.rewrite


@pytest.fixture(scope="module")
def english_reward(checker):
    """Return a reward that scores any text, with a byte tokenizer and an untrained target."""
    tokenizer = byte_tokenizer(chat=True)
    renderer = Renderer(tokenizer)
    model = tiny_model("qwen3", len(tokenizer), pad=tokenizer.pad_token_id, eos=renderer.end_id, context=8192)
    thresholds = replace(THRESHOLDS, answer_logprob=None)

    def make(row):
        length = len(renderer.response_ids(row.solution))
        references = {row.id: Reference(length, -100.0, None, length)}
        return GatedReward(HFEngine(model), renderer, checker, thresholds, references)

    return make, renderer


@given(st.integers(0, 10**9), st.sampled_from(english("honest")), st.sampled_from(HACKS))
@settings(max_examples=60, deadline=None)
def test_a_hack_never_raises_the_reward_of_honest_english(english_reward, seed, item, hack):
    hacked = hack.apply(item, random.Random(seed))
    assume(hacked is not None)
    make, renderer = english_reward
    row = Demonstration("row", item.question, item.solution, item.answer)
    pair = [sample(item.rewrite, renderer), sample(hacked.rewrite, renderer, hacked.finish)]
    [[before, after]] = make(row)([row], [pair])
    assert before.reward > 0 and after.reward == 0.0 and after.hacks, hacked.rewrite


TEXTS = [(i, dialect) for i in range(len(PROBLEMS)) for dialect in (*NATIVE, "values", "nested")]


@pytest.mark.slow
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12, unique=True), st.randoms(use_true_random=False))
@SCORE_SETTINGS
def test_a_reward_does_not_depend_on_the_rest_of_the_batch(make_reward, renderer, chosen, rng):
    """The result is the same alone, in any order, in groups of any size and with any padding."""
    rows = [demonstration(problem, "values", str(i)) for i, problem in enumerate(PROBLEMS)]
    penalties = [("peeking", 0.1, peeking), ("question_independence", 0.1, question_independence)]
    reward = make_reward(rows, penalties=penalties)
    texts = {key: DIALECTS[key[1]](PROBLEMS[key[0]]) for key in chosen}
    alone = {key: reward([rows[key[0]]], [[sample(texts[key], renderer)]])[0][0] for key in chosen}
    rng.shuffle(chosen)
    groups = {i: [key for key in chosen if key[0] == i] for i in dict.fromkeys(key[0] for key in chosen)}
    together = reward([rows[i] for i in groups], [[sample(texts[key], renderer) for key in g] for g in groups.values()])
    for group, scored in zip(groups.values(), together, strict=True):
        for key, item in zip(group, scored, strict=True):
            assert item.reward == pytest.approx(alone[key].reward, abs=CLOSE)
            assert (item.gates, item.hacks, item.ids) == (alone[key].gates, alone[key].hacks, alone[key].ids)
            assert item.logprobs == pytest.approx(alone[key].logprobs, abs=CLOSE)


@pytest.mark.parametrize("score", sorted(SCORES))
def test_every_score_is_the_same_alone_and_in_a_batch(make_reward, renderer, score):
    rows = [demonstration(problem, "values", str(i)) for i, problem in enumerate(PROBLEMS)]
    reward = make_reward(rows, score)
    groups = [[sample(DIALECTS[dialect](problem), renderer) for dialect in NATIVE] for problem in PROBLEMS]
    together = reward(rows, groups)
    for row, group, scored in zip(rows, groups, together, strict=True):
        for alone, item in zip(group, scored, strict=True):
            assert item.alignment == pytest.approx(reward([row], [[alone]])[0][0].alignment, abs=CLOSE)


def test_scores_do_not_depend_on_the_batch_size(target, renderer):
    pairs = [
        (renderer.prompt_ids(problem.question), renderer.response_ids(DIALECTS[dialect](problem)))
        for problem in PROBLEMS
        for dialect in sorted(DIALECTS)
    ]
    one_batch = target.score(pairs)
    for size in (1, 7):
        parts = [row for low in range(0, len(pairs), size) for row in target.score(pairs[low : low + size])]
        assert all(a == pytest.approx(b, abs=CLOSE) for a, b in zip(one_batch, parts, strict=True))
        # Differences are rounding errors without a bias.
        residuals = [x - y for a, b in zip(one_batch, parts, strict=True) for x, y in zip(a, b, strict=True)]
        assert abs(sum(residuals) / len(residuals)) < 1e-6
