"""Regression tests for defects that occur in published code for similar methods."""

import random

import pytest

from dartune.config.schema import SynthesiseConfig
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import Sample
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.gates.registry import run_gates
from dartune.hacks.catalogue import HACKS
from dartune.rewards.alignment import Reference
from dartune.rewards.reward import GatedReward
from dartune.stages.synthesise import synthesise
from fixtures_hacks import THRESHOLDS, english
from fixtures_models import byte_tokenizer
from test_synthesise import PROMPT, Scripted, probe

RENDERER = Renderer(byte_tokenizer(chat=True))
ROW = Demonstration("r", "What is 1 + 2?", "1 + 2 = 3\n#### 3", "3")


class Recording:
    """A target that records the pairs it scores; the log-probability of a token depends on its id only."""

    def __init__(self):
        self.scored = []

    def score(self, pairs):
        self.scored += pairs
        return [[-0.1 * (1 + token % 3) for token in ids] for _, ids in pairs]


def reward_of(target, renderer, row, checker):
    length = len(renderer.response_ids(row.solution))
    references = {row.id: Reference(length, -10.0, None, 4 * length)}
    return GatedReward(target, renderer, checker, GateThresholds(), references)


def test_the_alignment_of_a_single_sample_is_not_constant(checker):
    """A group-relative alignment is constant in a group of one; this one does not depend on the group."""
    reward = reward_of(Recording(), RENDERER, ROW, checker)
    texts = ["1 + 2 = 3\n#### 3", "We add: 1 + 2 = 3.\n#### 3"]
    samples = [Sample(tuple(RENDERER.response_ids(text)), (), "stop") for text in texts]
    alone = [reward([ROW], [[sample]])[0][0].alignment for sample in samples]
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
def test_a_correct_first_box_does_not_pass(rewrite, checker):
    item = GateInput(ROW.question, ROW.solution, rewrite, ROW.answer)
    (gates,) = run_gates([item], THRESHOLDS, checker)
    assert not gates["correct_answer"] and not gates["one_answer"]


@pytest.mark.parametrize("hack", HACKS, ids=lambda hack: hack.name)
def test_synthesis_applies_the_same_gates_as_training(hack, checker, tmp_path):
    """Synthesis rejects every hack of the catalogue that training rejects."""
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
    output = tmp_path / "rows.jsonl"
    [adapted] = synthesise([row], [probe(row)], mapper, target, reward, RENDERER, config, PROMPT, 2000, 1.0, 0, output)
    assert adapted["provenance"] == "original" and adapted["solution"] == row.solution
    assert adapted["hacks_refused"] and adapted["hacks"] == []


def test_sampled_tokens_are_scored_without_tokenising_the_text_again(checker):
    """This holds even if the tokenizer would merge the tokens with each other or with the prompt."""
    renderer = Renderer(byte_tokenizer(chat=True, merges=(("1", "Ġ"), ("Ċ", "#"))))
    plain = Renderer(byte_tokenizer(chat=True))
    text = "1 + 2 = 3\n#### 3"
    pieces = tuple(token for char in text for token in renderer.response_ids(char)[:-1]) + (renderer.end_id,)
    target = Recording()
    [[scored]] = reward_of(target, renderer, ROW, checker)([ROW], [[Sample(pieces, (), "stop")]])
    assert scored.text == text and scored.ids == pieces
    assert [tuple(ids) for _, ids in target.scored] == [pieces]
    assert len(plain.response_ids(text)) == len(pieces) >= len(renderer.response_ids(text))
