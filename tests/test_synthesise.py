"""Synthesis: what every row becomes, rung by rung, and why; the same rows whether interrupted or not."""

import math
from dataclasses import replace

import pytest

from dartune.config.schema import SynthesiseConfig
from dartune.data.row_store import RowWriter
from dartune.engines.base import Sample
from dartune.rewards.alignment import Reference
from dartune.rewards.reward import GatedReward
from dartune.rewards.shape import FORMS
from dartune.run.cost import Cost
from dartune.run.files import read_jsonl, write_jsonl
from dartune.stages import synthesise as module
from dartune.stages.synthesise import synthesis_cost, synthesise
from test_reward import GOOD, OTHER, RENDERER, ROW, THRESHOLDS

BETTER = "Ann has 3, and Bob has 2 * 3 = 6 pens.\n#### 6"
WRONG = "Ann has 3 pens, so Bob has 2 * 3 = 6 pens.\n#### 7"
PROMPT = "{question} {solution}"


class Scripted:
    """An engine that writes given texts, in turn, and finds some texts likelier than others."""

    def __init__(self, texts=(), natural=()):
        self.texts, self.natural, self.prompts = texts, natural, []
        self.generated_tokens = self.scored_tokens = 0

    def generate(self, prompts, spec):
        self.prompts += prompts
        texts = [self.texts[i % len(self.texts)] for i in range(spec.n)]
        rows = [tuple(RENDERER.response_ids(text)) for text in texts]
        return [[Sample(ids, (0.0,) * len(ids), "stop") for ids in rows] for _ in prompts]

    def score(self, pairs):
        return [[-0.01 if RENDERER.decode(ids) in self.natural else -0.1] * len(ids) for _, ids in pairs]


def probe(row, own=(), source=-1.0):
    ids = RENDERER.response_ids(row.solution)
    return {
        "id": row.id,
        "source_alignment": source,
        "source_logprobs": [source] * len(ids),
        "own": [
            {"text": text, "alignment": value, "gates": {"answer": True}, "logprobs": [-0.1], "ids": [1]}
            for text, value in own
        ],
    }


@pytest.fixture
def adapt(checker, tmp_path):
    def run(
        written,
        ladder,
        *,
        solved=(WRONG,),
        natural=(),
        rows=(ROW,),
        own=(),
        samples=2,
        form="gain_over_fallback",
        sources=None,
        spent=Cost,
    ):
        target = Scripted(solved, natural)
        lengths = {row.id: len(RENDERER.response_ids(row.solution)) for row in rows}
        references = {id: Reference(length, -1.0, None, length) for id, length in lengths.items()}
        reward = GatedReward(target, RENDERER, checker, THRESHOLDS, references, form=FORMS[form])
        config = SynthesiseConfig(samples=samples, ladder=list(ladder))
        return synthesise(
            rows,
            [
                probe(row, own.get(row.id, ()) if isinstance(own, dict) else own, (sources or {}).get(row.id, -1.0))
                for row in rows
            ],
            Scripted(written),
            target,
            reward,
            RENDERER,
            config,
            PROMPT,
            200,
            1.0,
            0,
            tmp_path / "rows.jsonl",
            spent=spent,
        ), target

    return run


def test_the_most_natural_accepted_rewrite_is_kept(adapt):
    [row], _ = adapt((WRONG, GOOD, BETTER), ("rewrite", "original"), natural=(BETTER, WRONG), samples=3)
    assert (row["provenance"], row["solution"]) == ("rewrite", BETTER)
    assert row["alignment_after"] > row["alignment_before"] == -1.0
    assert row["alternatives"] == [GOOD] and row["rejected"] == []
    assert row["hacks"] == [] and "wrong_answer" in row["hacks_refused"]
    assert row["messages"][1]["content"] == BETTER


def test_a_row_without_an_accepted_rewrite_keeps_the_nearest_to_acceptance(adapt):
    [row], _ = adapt((WRONG, WRONG, "nonsense", ""), ("rewrite", "original"), natural=(WRONG,), samples=4)
    assert row["provenance"] == "original" and row["rejected"][0]["text"] == WRONG
    assert len(row["rejected"]) == 2 and row["rejected"][0]["failed"] == ["correct_answer"]
    assert len(row["rejected"][0]["ids"]) == len(row["rejected"][0]["logprobs"])


@pytest.mark.parametrize("form", sorted(FORMS))
def test_under_every_form_an_accepted_rewrite_is_worth_more_than_a_failure(adapt, form):
    [row], _ = adapt((WRONG, GOOD), ("rewrite", "original"), natural=(GOOD,), form=form)
    assert (row["provenance"], row["solution"]) == ("rewrite", GOOD)


def test_a_row_without_an_accepted_rewrite_takes_the_next_rung_and_says_why(adapt):
    [row], _ = adapt((WRONG,), ("rewrite", "own", "original"), own=((GOOD, -0.3), (BETTER, -0.2)))
    assert (row["provenance"], row["solution"], row["alignment_after"]) == ("own", BETTER, -0.2)
    assert "rewrite: none of 2 passed the gate" in row["reason"] and "correct_answer 2x" in row["reason"]


def test_the_guided_rung_asks_the_target_with_the_solution_in_view_and_gates_it(adapt):
    [row], target = adapt((WRONG,), ("rewrite", "guided", "original"), solved=(WRONG, GOOD))
    assert (row["provenance"], row["solution"]) == ("guided", GOOD)
    assert ROW.solution in RENDERER.decode(target.prompts[0])
    [row], _ = adapt((WRONG,), ("guided", "original"), solved=(WRONG,), rows=(OTHER,))
    assert row["provenance"] == "original" and "guided: none of 2 passed the gate" in row["reason"]


def test_a_rung_less_natural_than_the_original_is_not_taken(adapt):
    [row], _ = adapt((WRONG,), ("own", "original"), own=((GOOD, -1.5),))
    assert (row["provenance"], row["solution"]) == ("natural", ROW.solution)
    assert "none is worth more than the original" in row["reason"]


@pytest.mark.parametrize(
    ("own", "rows"),
    [(-1.5, ("natural", "natural")), (-0.5, ("own", "original"))],
    ids=["most originals win", "most lose"],
)
def test_originals_are_natural_only_where_most_demonstrations_are(adapt, own, rows):
    """The second row has no accepted solution: it is judged by how the others fared."""
    found, _ = adapt((WRONG,), ("own", "original"), rows=(ROW, OTHER), own={ROW.id: ((GOOD, own),)})
    assert tuple(row["provenance"] for row in found) == rows


@pytest.mark.parametrize(
    ("wins", "strangest", "kept"),
    [(2, -3.0, "own"), (1, -3.0, "natural"), (2, -1.0, "original")],
    ids=["most originals lose", "most win", "stranger than any demonstration"],
)
def test_where_originals_are_not_trained_on_an_accepted_solution_is_taken_though_they_are_likelier(
    adapt, wins, strangest, kept
):
    """The last row's accepted solutions are worth less than its original."""
    rows = [replace(ROW, id=str(index)) for index in range(3)]
    own = {row.id: ((GOOD, -0.5 if index < wins else -3.5),) for index, row in enumerate(rows)}
    own["2"] = ((GOOD, -1.9), (BETTER, -1.5))
    found, _ = adapt((WRONG,), ("own", "original"), rows=rows, own=own, sources={"0": strangest})
    assert found[2]["provenance"] == kept
    assert found[2]["solution"] == (BETTER if kept == "own" else ROW.solution)
    assert "none is worth more than the original" in found[2]["reason"]


def test_an_exhausted_ladder_drops_the_row_but_keeps_its_record(adapt):
    [row], _ = adapt((WRONG,), ("rewrite", "own"))
    assert (row["provenance"], row["solution"], row["alignment_after"]) == ("dropped", "", None)
    assert row["question"] == ROW.question and "own: the target has no verified sample" in row["reason"]


def test_rows_already_written_are_kept_and_the_rest_is_added(adapt, tmp_path):
    first, _ = adapt((GOOD,), ("rewrite", "original"), rows=(ROW, OTHER))
    write_jsonl(tmp_path / "rows.jsonl", [first[0] | {"reason": "written before"}])
    again, _ = adapt((GOOD,), ("rewrite", "original"), rows=(ROW, OTHER))
    assert again[0]["reason"] == "written before"
    assert again[1] == first[1]
    assert read_jsonl(tmp_path / "rows.jsonl") == again


def test_rows_of_other_data_are_not_mistaken_for_done(adapt):
    adapt((GOOD,), ("rewrite", "original"), rows=(OTHER,))
    rows, _ = adapt((GOOD,), ("rewrite", "original"), rows=(ROW, OTHER))
    assert [row["id"] for row in rows] == [ROW.id, OTHER.id]
    assert math.isfinite(rows[0]["alignment_after"])


class Reached(Exception):
    """Sampling began."""


def test_a_resumed_synthesis_goes_on_without_reading_the_rows_that_are_done(adapt, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1)
    rows = [replace(ROW, id=str(index)) for index in range(5)]
    whole, _ = adapt((GOOD,), ("rewrite", "original"), rows=rows)
    path = tmp_path / "rows.jsonl"
    before = path.read_bytes()
    with RowWriter(path) as spool:
        spool.cut(4)
    path.write_bytes(b"#" + path.read_bytes()[1:])

    def reached(*_):
        raise Reached

    with monkeypatch.context() as patched, pytest.raises(Reached):
        patched.setattr(Scripted, "generate", reached)
        adapt((GOOD,), ("rewrite", "original"), rows=rows)
    path.write_bytes(before[:1] + path.read_bytes()[1:])
    assert adapt((GOOD,), ("rewrite", "original"), rows=rows)[0] == whole and path.read_bytes() == before


def test_what_all_attempts_spent_is_in_the_rows(adapt, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    rows = [replace(ROW, id=str(index)) for index in range(5)]
    spent = iter(range(0, 1000, 10))
    counted = {"spent": lambda: Cost(generated_tokens=next(spent))}
    adapt((GOOD,), ("rewrite", "original"), rows=rows, **counted)
    with RowWriter(tmp_path / "rows.jsonl") as spool:
        spool.cut(2)
    found, _ = adapt((GOOD,), ("rewrite", "original"), rows=rows, **counted)
    assert synthesis_cost(found).generated_tokens == 30


def test_where_all_rows_are_there_nothing_is_sampled_again(adapt, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    rows = [replace(ROW, id=str(index)) for index in range(5)]  # the last chunk is short
    whole, _ = adapt((GOOD,), ("rewrite", "original"), rows=rows)
    before = (tmp_path / "rows.jsonl").read_bytes()

    def reached(*_):
        raise Reached

    monkeypatch.setattr(Scripted, "generate", reached)
    assert adapt((GOOD,), ("rewrite", "original"), rows=rows)[0] == whole
    assert (tmp_path / "rows.jsonl").read_bytes() == before
