"""Parts of the reward: alignment scores, penalties, forms, user-defined parts, and `dartune check-reward`."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dartune.cli import main
from dartune.config.schema import Config, RewardConfig
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import Sample, TokenStats
from dartune.engines.hf import HFEngine
from dartune.errors import InputError
from dartune.lab.suites import demonstration_problems, write_demonstrations
from dartune.red_team.fixtures import SHIPPED, Fixture, apply_hacks, compare_rewards, load_fixtures
from dartune.rewards.alignment import SCORES, Reference
from dartune.rewards.penalties import Rewritten, collapse, peeking, question_independence
from dartune.rewards.reward import GatedReward, Rewrite, reward_parts
from dartune.rewards.shape import FORMS
from dartune.stages.probe import load_probe, probe
from fixtures_models import byte_tokenizer, tiny_model

REFERENCE = Reference(10, -2.0, None, 10, own=(-0.9, -0.5, -0.4, -0.3))
RENDERER = Renderer(byte_tokenizer(chat=True))


def stats(logprob: float, n: int = 10, entropy: float = 1.0, rank: int = 1) -> TokenStats:
    return TokenStats((logprob,) * n, (entropy,) * n, (rank,) * n)


@pytest.mark.parametrize("name", ["sum_logprob", "mean_logprob", "capped_percentile"])
def test_likelier_text_scores_higher_up_to_the_cap(name):
    score = SCORES[name]
    values = [score(stats(p), REFERENCE) for p in (-2.0, -0.6, -0.45, -0.35)]
    assert values == sorted(values) and values[-1] > values[0]


def test_only_the_sum_charges_for_predictable_padding():
    short, padded = TokenStats((-1.0,) * 10), TokenStats((-1.0,) * 10 + (-0.01,) * 40)
    assert SCORES["sum_logprob"](padded, REFERENCE) < SCORES["sum_logprob"](short, REFERENCE)
    assert SCORES["mean_logprob"](padded, REFERENCE) > SCORES["mean_logprob"](short, REFERENCE)


def test_percentile_is_capped_at_the_median_and_needs_own_samples():
    score = SCORES["capped_percentile"]
    assert [score(stats(p), REFERENCE) for p in (-1.0, -0.9, -0.5, -0.1, 0.0)] == [0.0, 0.25, 0.5, 0.5, 0.5]
    assert score(stats(-0.1), Reference(10, -2.0, None, 10)) == 0.0


def test_centred_does_not_reward_less_surprise_than_the_target_expects():
    score = SCORES["centred"]
    assert score(stats(-1.0, entropy=1.0), REFERENCE) == 0.0
    assert score(stats(-0.1, entropy=1.0), REFERENCE) == 0.0
    assert score(stats(-3.0, entropy=1.0), REFERENCE) == -2.0


def test_rank_surprisal_prefers_informative_first_choices():
    score = SCORES["rank_surprisal"]
    informative, unlikely, certain = stats(-1.0, rank=1), stats(-1.0, rank=30), stats(-0.001, rank=1)
    assert score(informative, REFERENCE) > score(unlikely, REFERENCE)
    assert score(informative, REFERENCE) > score(certain, REFERENCE)


def test_statistics_of_tokens_agree_with_a_plain_forward():
    model = tiny_model("llama", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id)
    pairs = [(RENDERER.prompt_ids("1 + 1?"), RENDERER.response_ids(text)) for text in ("It is 2.", "2", "a longer one")]
    engine, positions = HFEngine(model), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: positions.append(output.shape[:-1].numel()))
    statistics = engine.token_stats([*pairs, (pairs[0][0], [])])
    replies = sum(len(reply) for _, reply in pairs)
    assert engine.scored_tokens == sum(positions) == replies and engine.flops > 0
    assert statistics.pop().logprobs == ()
    for scored, own in zip(HFEngine(model).score(pairs), statistics, strict=True):
        assert own.logprobs == pytest.approx(scored, abs=1e-4)
    prompt, reply = pairs[0]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1].double()
    p = logits.softmax(-1)
    assert statistics[0].entropies == pytest.approx((-(p * p.log()).sum(-1)).tolist(), abs=1e-4)
    ranks = [(row > row[token]).sum().item() + 1 for row, token in zip(logits, reply, strict=True)]
    assert list(statistics[0].ranks) == ranks


@given(st.floats(-9, 0), st.floats(-9, 0), st.sampled_from(sorted(FORMS)))
@settings(max_examples=100)
def test_every_form_increases_with_passing_and_with_alignment(first, second, name):
    form, low, high = FORMS[name], min(first, second), max(first, second)
    assert form(True, high, REFERENCE) >= form(True, low, REFERENCE)
    if name != "fixed_failure":
        assert form(True, low, REFERENCE) >= form(False, low, REFERENCE)


def rewritten(name: str, question: str, text: str, mapper: float = -0.1, target: float = -0.1) -> Rewritten:
    ids = tuple(RENDERER.response_ids(text))
    row = Demonstration(name, question, "Ann has 3.\n#### 3", "3")
    scores = (target,) * len(ids)
    return Rewritten(row, Sample(ids, (mapper,) * len(ids), "stop"), text, scores, scores)


def test_peeking_is_the_mappers_certainty_beyond_the_targets():
    rows = [rewritten("a", "q", "x", -0.1, -2.1), rewritten("a", "q", "x", -2.0, -0.5), rewritten("a", "q", "x")]
    assert peeking(rows, None, RENDERER) == pytest.approx([2.0 + 0.02, 0.0, 0.0])


def test_collapse_detects_a_text_that_fits_another_question_better():
    ann, bob = "Ann has 3 pens. How many has Ann?", "The cups of Bob are 7 and 8. How many has Bob?"
    good = [rewritten("a", ann, "Ann: 3"), rewritten("b", bob, "Bob: 7 + 8 = 15")]
    same = [rewritten("a", ann, "We take the numbers"), rewritten("b", bob, "We take the numbers")]
    crossed = [rewritten("a", ann, "Bob: 7 + 8"), rewritten("b", bob, "Bob: 7 + 8 = 15")]
    assert collapse(good, None, RENDERER) == [0.0, 0.0]
    assert collapse(same, None, RENDERER) == [1.0, 1.0]
    assert collapse(crossed, None, RENDERER) == [1.0, 0.0]
    assert collapse(good[:1], None, RENDERER) == [0.0]


def test_a_text_that_does_not_depend_on_its_question_is_penalised():
    empty = RENDERER.prompt_ids("")

    class Target:
        def score(self, pairs):
            """Make sources likelier given their question, and the rewrite as likely without."""
            return [[-1.0 if prompt == empty else -0.1] * len(ids) for prompt, ids in pairs]

    (penalised,) = question_independence([rewritten("a", "Ann?", "So it is.", target=-1.0)], Target(), RENDERER)
    (free,) = question_independence([rewritten("a", "Ann?", "So it is, clearly.", target=-0.1)], Target(), RENDERER)
    assert penalised == pytest.approx(0.9) and free == 0.0


def config(**reward) -> Config:
    return Config(data={"path": "x"}, target={"path": "y"}, reward=reward)


def test_user_defined_parts_are_imported_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_reward_parts.py").write_text(
        "def brevity(rows, target, renderer):\n    return [float(len(row.text)) for row in rows]\n"
        "def half(passed, score, reference):\n    return 0.5 * passed\n"
    )
    monkeypatch.chdir(tmp_path)
    parts = reward_parts(config(form="my_reward_parts:half", penalties={"my_reward_parts:brevity": 0.1}).reward)
    assert parts["form"](True, 0.0, REFERENCE) == 0.5
    [(name, weight, penalty)] = parts["penalties"]
    assert (name, weight) == ("my_reward_parts:brevity", 0.1)
    assert penalty([rewritten("a", "q", "xyz")], None, None) == [3.0]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"alignment": "sum_logprobs"}, "reward.alignment: there is no 'sum_logprobs'"),
        ({"form": "no_such_module_here:f"}, "reward.form: cannot import 'no_such_module_here'"),
        ({"penalties": {"math:nothing": 1.0}}, "reward.penalties: math has no 'nothing'"),
        ({"gates": ["entities", "nonsense"]}, "reward.gates: there is no 'nonsense'"),
    ],
)
def test_a_part_that_does_not_exist_is_an_input_error(reward, message):
    with pytest.raises(InputError, match=message):
        reward_parts(config(**reward).reward)


def test_a_user_defined_gate_is_named_after_its_function_and_applied(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_gates.py").write_text(
        "def no_commas(item, thresholds):\n    return ',' not in item.rewrite\n\n\n"
        "def finished(item, thresholds):\n    return True\n\n\n"
        "def broken(item, thresholds):\n    raise ValueError('oops')\n\n\n"
        "def chatty(item, thresholds):\n    return 'yes'\n"
    )
    monkeypatch.chdir(tmp_path)
    row = {"question": "Ann has 2 pens and buys 3. How many has she?", "solution": "2 + 3 = 5. The answer is 5."}
    texts = {
        "honest": "She has 2 + 3 = 5 pens. The answer is 5.",
        "commas": "She has 2, buys 3, so 2 + 3 = 5. The answer is 5.",
    }
    (tmp_path / "f.jsonl").write_text("\n".join(json.dumps(row | {"label": k, "rewrite": v}) for k, v in texts.items()))
    assert main(["check-reward", "f.jsonl", "--reward.gates", "[all, my_gates:no_commas]"]) == 0
    output = capsys.readouterr().out
    line = next(line for line in output.splitlines() if line.startswith("commas"))
    assert line.split()[-2:] == ["no_commas", "1"] and "1 of 1" in output
    for gates, reason in (
        ("[my_gates:finished]", "rename the function"),
        ("[all, nothing]", "'nothing'"),
        ("[all, my_gates:broken]", "broken fails with ValueError: oops"),
        ("[all, my_gates:chatty]", "must return True or False, not 'yes'"),
    ):
        assert main(["check-reward", "f.jsonl", "--reward.gates", gates]) == 2
        assert reason in capsys.readouterr().err


def test_every_hack_applies_to_some_shipped_fixture():
    fixtures = load_fixtures(SHIPPED)
    assert {fixture.label for fixture in apply_hacks(fixtures)} >= {f.label for f in fixtures if f.label != "honest"}


@pytest.mark.slow
def test_check_reward_reports_pairwise_accuracy_per_hack(capsys):
    assert main(["check-reward"]) == 0
    output = capsys.readouterr().out
    assert "honest rewrites that pass the gates: 20 of 20" in output
    rows = {line.split()[0]: float(line.split()[2]) for line in output.splitlines() if line[24:30].strip().isdigit()}
    assert len(rows) == 24 and min(rows.values()) >= 0.95, rows


def test_a_hack_that_earns_nothing_ties_with_an_honest_rewrite_and_is_not_preferred():
    row = Demonstration("r", "q", "s", "1")
    labels = ["honest", "absurd", "absurd", "absurd"]
    fixtures = [Fixture(row, label, "text") for label in labels]
    honest = Rewrite("text", (), (), -1.0, 0.0, 0.0, accepted=True)
    worse = Rewrite("text", (), (), -2.0, -1.0, 0.0, accepted=True)
    refused = Rewrite("text", (), (), 0.0, 1.0, 0.0, gates={"finished": False})
    paying = Rewrite("text", (), (), -0.5, 0.5, 0.5, accepted=True, surplus=0.5)
    (result,) = compare_rewards(fixtures, [honest, worse, refused, paying])
    assert (result.won, result.preferred, result.pairs) == (1.0, 2.0, 3)
    assert result.stopped == pytest.approx(1 / 3) == result.paid


@pytest.mark.slow
def test_check_reward_reports_the_weaknesses_of_a_reward_without_gates(capsys):
    assert main(["check-reward", "--reward.gates", "[finished]"]) == 0
    output = capsys.readouterr().out
    assert "pairwise accuracy below 0.95:" in output and "first_box (0.500)" in output


def test_all_bad_fixtures_are_reported_at_once(tmp_path):
    file = tmp_path / "mine.jsonl"
    good = {"question": "a", "solution": "b", "rewrite": "c", "label": "empty"}
    rows = [{key: good[key] for key in good if key != "label"}, good | {"question": 1, "solution": ""}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(InputError) as caught:
        load_fixtures(file)
    assert len(caught.value.problems) == 2
    file.write_text(json.dumps(good))
    with pytest.raises(InputError, match="cannot be used") as caught:
        load_fixtures(file)
    assert "honest" in caught.value.problems[0]


def test_the_stake_is_what_separates_the_best_from_failing():
    assert FORMS["fixed_failure"](True, 0.0, REFERENCE) - FORMS["fixed_failure"](False, 0.0, REFERENCE) == 4.0
    assert FORMS["correct_bonus"](True, -math.inf, REFERENCE) == 1.0


def test_with_a_target_an_answer_that_does_not_follow_fails(tmp_path, capsys):
    row = write_demonstrations(demonstration_problems(1, 0, 4), "backward")[0]
    columns = {"question": row.question, "solution": row.solution, "answer": row.answer}
    honest = columns | {"label": "honest", "rewrite": row.solution}
    answer = f"The answer is {row.answer} ."
    peeking = columns | {"label": "peeked", "rewrite": f"{row.question.split(' . ')[0]} . {answer}"}
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, (honest, peeking))))
    gates = ["--reward.gates", "[correct_answer, follows]"]
    assert main(["check-reward", str(file), "--target", "lab:backward", *gates]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("peeked"))
    assert line.split()[-2:] == ["follows", "1"], line


def test_a_hack_without_an_honest_rewrite_to_compare_with_is_reported(tmp_path, capsys):
    file = tmp_path / "mine.jsonl"
    row = {"question": "Ann has 2 pens and buys 3. How many has she?", "solution": "2 + 3 = 5. The answer is 5."}
    other = {"question": "Bo has 4 pens and buys 4. How many has he?", "solution": "4 + 4 = 8. The answer is 8."}
    honest = row | {"label": "honest", "rewrite": "She has 2 + 3 = 5 pens. The answer is 5."}
    own = other | {"label": "my_own", "rewrite": "8"}
    file.write_text("\n".join(map(json.dumps, (honest, own))))
    assert main(["check-reward", str(file)]) == 0
    output = capsys.readouterr().out
    assert "no honest rewrite of the same question to compare with: my_own" in output and "nan" not in output
    assert "pairwise accuracy of every hack" not in output


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"no_alignment"}))
def test_every_score_rewards_some_rewrite(name, checker, tmp_path):
    """`capped_percentile` once rewarded nothing, because sources and own samples were scored without own samples."""
    own = [f"Ann has {n} pens, so Bob has 2 * {n} = {2 * n} pens.\n#### {2 * n}" for n in range(3, 13)]
    rows = [
        Demonstration(
            str(n), f"Ann has {n} pens, Bob twice as many. How many has Bob?", f"2 * {n} = {2 * n}", str(2 * n)
        )
        for n in range(3, 13)
    ]
    target, config = Styled(own), RewardConfig(own_samples=1, alignment=name)
    probe(rows, target, RENDERER, checker, config, "{question}{solution}", 99, 0, tmp_path)
    _, references, thresholds = load_probe(tmp_path)
    reward = GatedReward(target, RENDERER, checker, thresholds, references, score=SCORES[name])
    assert reward.gainful_share == 1.0
    [[copy, native]] = reward(rows[:1], [[as_sample(rows[0].solution), as_sample(own[0])]])
    assert copy.reward == 0.0 and native.gain > 0


class Styled:
    """A target that generates one given text per row, and scores these texts as likely first choices."""

    def __init__(self, texts):
        self.texts = texts
        self.generated_tokens = self.scored_tokens = self.flops = 0

    def generate(self, prompts, spec):
        return [[as_sample(text)] for text in self.texts]

    def score(self, pairs, temperature=1.0):
        return [list(row.logprobs) for row in self.token_stats(pairs)]

    def token_stats(self, pairs):
        all_stats = []
        for _, ids in pairs:
            native = RENDERER.decode(ids) in self.texts
            n = len(ids)
            logprobs = tuple(-0.30 - 0.01 * (i % 3) for i in range(n)) if native else (-3.0,) * n
            all_stats.append(TokenStats(logprobs, (0.3,) * n, ((1,) if native else (40,)) * n))
        return all_stats


def as_sample(text: str) -> Sample:
    ids = tuple(RENDERER.response_ids(text))
    return Sample(ids, (0.0,) * len(ids), "stop")
