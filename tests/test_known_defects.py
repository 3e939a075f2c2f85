"""Defects found in published code of this kind, each with the test that keeps it out of here."""

import random

import pytest

from dartune.config import SynthesiseConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Sample
from dartune.rewards.alignment import Reference
from dartune.rewards.gates import run_gates
from dartune.rewards.hacks import HACKS
from dartune.rewards.items import GateInput, GateThresholds
from dartune.rewards.reward import GatedReward
from dartune.stages.synthesise import synthesise
from fixtures_hacks import THRESHOLDS, english
from fixtures_models import byte_tokenizer
from test_synthesise import PROMPT, Scripted, probe

RENDERER = Renderer(byte_tokenizer(chat=True))
ROW = Demonstration("r", "What is 1 + 2?", "1 + 2 = 3\n#### 3", "3")


class Recording:
    """A target that remembers what it was asked to score; a token costs a tenth of a nat for each in its text."""

    def __init__(self):
        self.asked = []

    def score(self, pairs):
        self.asked += pairs
        return [[-0.1 * (1 + token % 3) for token in ids] for _, ids in pairs]


def reward_of(target, renderer, row, checker):
    length = len(renderer.response_ids(row.solution))
    references = {row.id: Reference(length, -10.0, None, 4 * length)}
    return GatedReward(target, renderer, checker, GateThresholds(), references)


def test_a_sample_scored_alone_is_not_given_a_constant_alignment(checker):
    """A group-relative alignment has nothing to say of a group of one; ours does not depend on the group."""
    reward = reward_of(Recording(), RENDERER, ROW, checker)
    texts = ["1 + 2 = 3\n#### 3", "We add: 1 + 2 = 3.\n#### 3"]
    samples = [Sample(tuple(RENDERER.response_ids(text)), (), "stop") for text in texts]
    alone = [reward([ROW], [[one]])[0][0].alignment for one in samples]
    assert alone[0] != alone[1]
    assert alone == [item.alignment for item in reward([ROW], [samples])[0]]


@pytest.mark.parametrize(
    "rewrite",
    [
        r"1 + 2 = 3, so \boxed{3}. Or rather \boxed{4}",
        r"1 + 2 = 3, so \boxed{3} and then \boxed{\frac{8}{2}}",
        "1 + 2 = 3\n#### 3\n#### 4",
    ],
)
def test_the_first_box_does_not_win(rewrite, checker):
    item = GateInput(ROW.question, ROW.solution, rewrite, ROW.answer)
    (gates,) = run_gates([item], THRESHOLDS, checker)
    assert not gates["correct_answer"] and not gates["one_answer"]


@pytest.mark.parametrize("hack", HACKS, ids=lambda hack: hack.name)
def test_the_gate_at_synthesis_is_no_weaker_than_in_training(hack, checker, tmp_path):
    """What training refuses, synthesis refuses, for every hack of the catalogue."""
    honest = next(item for item in english("honest") if hack.apply(item, random.Random(0)))
    hacked = hack.apply(honest, random.Random(0))
    row = Demonstration("r", honest.question, honest.solution, honest.answer)
    target, mapper = Scripted(), Scripted((hacked.rewrite,))
    if hack.finish != "stop":
        cut = Sample(tuple(RENDERER.response_ids(hacked.rewrite)[:-1]), (), hack.finish)
        mapper.generate = lambda prompts, spec: [[cut] * spec.n for _ in prompts]
    length = len(RENDERER.response_ids(row.solution))
    reward = GatedReward(target, RENDERER, checker, THRESHOLDS, {"r": Reference(length, -10.0, None, length)})
    config = SynthesiseConfig(samples=2, ladder=["rewrite", "original"])
    words = ([row], [probe(row)], mapper, target, reward, RENDERER, config, PROMPT, 2000, 0, tmp_path / "rows.jsonl")
    [adapted] = synthesise(*words)
    assert adapted["provenance"] == "original" and adapted["solution"] == row.solution
    assert adapted["hacks_refused"] and adapted["hacks"] == []


def test_text_is_never_tokenised_again_between_sampling_and_scoring(checker):
    """The sampled tokens are scored, also where the tokenizer would have merged them, with each other or the prompt."""
    renderer = Renderer(byte_tokenizer(chat=True, merges=(("1", "Ġ"), ("Ċ", "#"))))
    plain = Renderer(byte_tokenizer(chat=True))
    text = "1 + 2 = 3\n#### 3"
    pieces = tuple(token for char in text for token in renderer.response_ids(char)[:-1]) + (renderer.end_id,)
    target = Recording()
    [[scored]] = reward_of(target, renderer, ROW, checker)([ROW], [[Sample(pieces, (), "stop")]])
    assert scored.text == text and scored.ids == pieces
    assert [tuple(ids) for _, ids in target.asked] == [pieces]
    assert len(plain.response_ids(text)) == len(pieces) >= len(renderer.response_ids(text))
