"""The in-process engine samples from the model's distribution and scores exactly; optimisations change no results."""

import math
import random
from collections import Counter
from itertools import chain

import pytest
import torch

from dartune.engines import decoding, hf
from dartune.engines.base import SampleSpec
from dartune.engines.hf import HFEngine
from dartune.engines.logprobs import sequence_logprobs
from dartune.errors import InputError
from fixtures_models import ARCHITECTURES, tiny_model
from test_shared_prefix import VOCABULARY, make, one_by_one

STOPS = (1, 2, 3)
NAMES = [*ARCHITECTURES, "sliding"]


def spec(n=6, max_new_tokens=20, temperature=1.0, stop_ids=STOPS, seed=0):
    return SampleSpec(n, max_new_tokens, temperature, stop_ids, seed)


def random_prompts(count=5, seed=0, longest=25):
    rng = random.Random(seed)
    return [[rng.randrange(VOCABULARY) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def tokens(groups):
    return [[sample.ids for sample in group] for group in groups]


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_textbook_way_in_input_order(name):
    model, rng = make(name), random.Random(1)
    prompts = random_prompts(4)
    pairs = [(rng.choice(prompts), [rng.randrange(VOCABULARY) for _ in range(rng.randint(0, 12))]) for _ in range(20)]
    scores = HFEngine(model, max_batch_tokens=100).score(pairs)
    for row, expected in zip(scores, one_by_one(model, pairs), strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_equal_pairs_are_scored_once_and_empty_completions_score_nothing():
    model = make("llama")
    engine, rows = HFEngine(model), []
    model.register_forward_hook(lambda module, inputs, output: rows.append(output.logits.shape[0]))
    a, b = ([5, 6, 7], [8, 9]), ([5, 6], [8, 9, 10])
    scores = engine.score([a, b, a, ([5, 6, 7], []), b, a])
    assert scores[0] == scores[2] == scores[5] and scores[1] == scores[4] and scores[3] == []
    assert engine.scored_tokens == 5
    assert sum(rows) == 2 + 1 + 2  # two prompts, then the later tokens of each distinct completion
    assert engine.score([]) == [] and engine.score([([5], [])]) == [[]]


@pytest.mark.parametrize("name", NAMES)
def test_sampled_logprobs_are_the_scores_at_temperature_1(name):
    model, prompts = make(name), random_prompts()
    engine = HFEngine(model)
    groups = engine.generate(prompts, spec())
    pairs = [(prompt, sample.ids) for prompt, group in zip(prompts, groups, strict=True) for sample in group]
    samples = [sample for group in groups for sample in group]
    assert engine.generated_tokens == sum(len(sample.ids) for sample in samples)
    for sample, scores in zip(samples, engine.score(pairs), strict=True):
        assert sample.logprobs == pytest.approx(scores, abs=1e-5)


def test_temperature_sharpens_the_distribution_that_logprobs_describe():
    model, prompt = make("llama"), [4, 5, 6]
    [[*samples]] = HFEngine(model).generate([prompt], spec(n=3, max_new_tokens=1, temperature=0.5))
    expected = (model(torch.tensor([prompt])).logits[0, -1] / 0.5).log_softmax(dim=-1)
    for sample in samples:
        assert sample.logprobs[0] == pytest.approx(expected[sample.ids[0]].item(), abs=1e-5)


def test_sample_frequencies_follow_the_model():
    model, prompt, n = make("llama"), [7, 8, 9], 20_000
    [samples] = HFEngine(model).generate([prompt], spec(n=n, max_new_tokens=1))
    expected = model(torch.tensor([prompt])).logits[0, -1].softmax(dim=-1).tolist()
    counts = Counter(sample.ids[0] for sample in samples)
    chi2 = sum((counts[token] - n * p) ** 2 / (n * p) for token, p in enumerate(expected))
    assert chi2 < VOCABULARY + 4 * math.sqrt(2 * VOCABULARY)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_equals_transformers_generate(name):
    model, prompts = make(name), random_prompts(4)
    model.generation_config.eos_token_id = list(STOPS)
    groups = HFEngine(model).generate(prompts, spec(n=2, temperature=0.0, max_new_tokens=15))
    for prompt, group in zip(prompts, groups, strict=True):
        reference = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            max_new_tokens=15,
        )
        expected = tuple(reference[0, len(prompt) :].tolist())
        assert [sample.ids for sample in group] == [expected, expected]
        scores = one_by_one(model, [(prompt, expected)])[0]
        assert group[0].logprobs == pytest.approx(scores, abs=1e-5)


def test_a_sample_ends_with_its_first_stop_token_or_at_the_limit():
    groups = HFEngine(make("llama")).generate(random_prompts(), spec(n=8))
    finishes = Counter()
    for sample in (sample for group in groups for sample in group):
        finishes[sample.finish] += 1
        assert len(sample.logprobs) == len(sample.ids)
        assert not set(sample.ids[:-1]) & set(STOPS)
        assert (sample.ids[-1] in STOPS) == (sample.finish == "stop")
        assert sample.finish == "stop" or len(sample.ids) == 20
    assert finishes["stop"] > 5 and finishes["length"] > 5


def test_without_stop_tokens_every_sample_reaches_the_limit():
    [[sample]] = HFEngine(make("llama")).generate([[5]], spec(n=1, stop_ids=()))
    assert len(sample.ids) == 20 and sample.finish == "length"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threshold", [0.0, 1.01], ids=["never", "always"])
def test_dropping_finished_rows_changes_nothing(name, threshold, monkeypatch):
    model, prompts = make(name), random_prompts()
    expected = HFEngine(model).generate(prompts, spec(n=5))
    assert len({len(ids) for group in tokens(expected) for ids in group}) > 5
    monkeypatch.setattr(hf, "CPU_COMPACT_BELOW", threshold)
    compacted = HFEngine(model).generate(prompts, spec(n=5))
    assert tokens(compacted) == tokens(expected)
    for a, b in zip(chain(*compacted), chain(*expected), strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threshold", [0.0, 1.01], ids=["never", "always"])
def test_fixed_shapes_and_addresses_as_in_a_cuda_graph_change_nothing(name, threshold, monkeypatch):
    model, prompts = make(name), random_prompts()
    monkeypatch.setattr(hf, "CPU_COMPACT_BELOW", threshold)
    expected = HFEngine(model).generate(prompts, spec(n=5))
    monkeypatch.setattr(decoding, "uses_cuda_graphs", lambda device: True)
    fixed_shapes = HFEngine(model).generate(prompts, spec(n=5))
    assert tokens(fixed_shapes) == tokens(expected)
    for a, b in zip(chain(*fixed_shapes), chain(*expected), strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
def test_the_packing_of_samples_changes_nothing(columns, monkeypatch):
    model, prompts = make("qwen3"), random_prompts()
    expected = tokens(HFEngine(model).generate(prompts, spec(n=5)))
    calls = []
    monkeypatch.setattr(hf.Decoder, "_columns", lambda self: calls.append(columns) or columns)
    assert tokens(HFEngine(model).generate(prompts, spec(n=5))) == expected
    assert len(calls) > 1


@pytest.mark.parametrize("name", NAMES)
def test_batch_size_and_other_prompts_change_nothing(name):
    model, prompts = make(name), random_prompts()
    expected = tokens(HFEngine(model).generate(prompts, spec()))
    batches = []
    small = HFEngine(model, max_batch_tokens=100)
    sample = small._sample
    small._sample = lambda batch, *words: batches.append(len(batch)) or sample(batch, *words)
    assert tokens(small.generate(prompts, spec())) == expected
    assert len(batches) > 5 and sum(batches) == 30
    assert [tokens(HFEngine(model).generate([prompt], spec()))[0] for prompt in prompts] == expected


def test_samples_depend_on_the_seed_only():
    model, prompts = make("llama"), random_prompts()
    first = HFEngine(model).generate(prompts, spec())
    torch.manual_seed(123)
    assert HFEngine(model).generate(prompts, spec()) == first
    assert tokens(HFEngine(model).generate(prompts, spec(seed=1))) != tokens(first)
    more = tokens(HFEngine(model).generate(prompts, spec(n=9)))
    assert [group[:6] for group in more] == tokens(first)


def test_repeated_prompts_are_sampled_independently():
    [a, b] = tokens(HFEngine(make("llama")).generate([[5, 6], [5, 6]], spec(n=4, stop_ids=())))
    assert len({*a, *b}) == 8


def test_dropout_is_off_while_sampling_and_the_mode_is_restored():
    model = tiny_model("gpt2", VOCABULARY, pad=0, eos=1)
    model.train()
    engine, pairs = HFEngine(model), [([5, 6, 7], [8, 9, 10])]
    assert engine.score(pairs) == engine.score(pairs)
    assert model.training
    model.eval()
    assert engine.score(pairs)[0] == pytest.approx(sequence_logprobs(model, pairs)[0][0].tolist(), abs=1e-5)


def test_all_invalid_prompts_are_listed_before_any_work():
    engine = HFEngine(make("llama"))
    with pytest.raises(InputError) as caught:
        engine.generate([[5], [], [VOCABULARY], [5] * 500], spec())
    assert [problem.split()[1] for problem in caught.value.problems] == ["1", "2", "3"]
    with pytest.raises(InputError) as caught:
        engine.score([([5], [6]), ([], [6]), ([5], [-1]), ([5] * 500, [6] * 13), ([5] * 500, [6] * 12)])
    assert [problem.split()[1] for problem in caught.value.problems] == ["1", "2", "3"]
    assert engine.generated_tokens == engine.scored_tokens == 0
    assert engine.generate([], spec()) == []


def test_invalid_specs_are_rejected():
    with pytest.raises(InputError) as caught:
        spec(n=0, max_new_tokens=0, temperature=-1.0)
    assert len(caught.value.problems) == 3


def test_sync_loads_all_weights_or_none():
    source, model = tiny_model("qwen3", VOCABULARY, pad=0, eos=1, seed=1), make("qwen3")
    engine, pairs = HFEngine(model), [([5, 6], [7, 8])]
    before = engine.score(pairs)
    weights = dict(source.state_dict())
    with pytest.raises(InputError) as caught:
        engine.sync({"typo": weights["model.norm.weight"], **weights, "other": weights["lm_head.weight"]}, 1)
    assert len(caught.value.problems) == 2 and engine.version == 0
    with pytest.raises(InputError, match="missing weight model.norm.weight"):
        engine.sync({name: w for name, w in weights.items() if name != "model.norm.weight"}, 1)
    assert engine.score(pairs) == before
    del weights["lm_head.weight"]  # tied to the embedding
    engine.sync(weights, 7)
    assert engine.version == 7
    assert engine.score(pairs) == HFEngine(source.eval()).score(pairs) != before


BLOCK = decoding.CDF_BLOCK


@pytest.mark.parametrize("vocabulary", [5, BLOCK, BLOCK + 1, 3 * BLOCK + 77])
@pytest.mark.parametrize("share", [0.0, 0.9], ids=["dense", "sparse"])
def test_sampling_inverts_the_cumulative_distribution_of_any_vocabulary(vocabulary, share):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(40, vocabulary, generator=generator)
    logits[torch.rand(logits.shape, generator=generator) < share] = -torch.inf
    logits[:, vocabulary // 2] = 1.0
    uniform = torch.rand(40, generator=generator, dtype=torch.float64)
    uniform[0], uniform[1] = 0.0, 1 - 1e-12
    tokens, logprobs = decoding.sample_tokens(logits, 0.7, uniform)
    probabilities = (logits.double() / 0.7).softmax(dim=-1)
    after = probabilities.cumsum(dim=-1).gather(-1, tokens[:, None])[:, 0]
    chosen = probabilities.gather(-1, tokens[:, None])[:, 0]
    assert (chosen > 0).all() and (after > uniform - 1e-6).all() and (after - chosen < uniform + 1e-6).all()
    torch.testing.assert_close(logprobs, chosen.log().float(), atol=1e-5, rtol=1e-5)
