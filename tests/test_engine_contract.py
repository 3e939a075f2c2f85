"""What every engine has to do alike, and what a server in particular may not get away with."""

import pytest

from dartune.errors import InputError, MachineError
from dartune.models import vllm_engine
from dartune.models.engine import SampleSpec
from dartune.models.hf_engine import HFEngine
from dartune.models.vllm_engine import VLLMEngine
from fixtures_vllm import Stub, serving
from test_shared_prefix import make, one_by_one

PROMPTS = [[5, 6, 7], [9], [5, 6, 7]]
STOPS = (1, 2, 3)


def spec(**changes):
    return SampleSpec(**({"n": 3, "max_new_tokens": 12, "temperature": 1.0, "stop_ids": STOPS, "seed": 0} | changes))


@pytest.fixture
def model():
    return make("llama")


@pytest.fixture
def stub(model, monkeypatch):
    monkeypatch.setattr(vllm_engine, "FIRST_WAIT", 0.001)
    return Stub(model)


@pytest.fixture
def server(stub):
    with serving(stub) as url:
        engine = VLLMEngine(url)
        yield engine
        engine.close()


@pytest.fixture(params=["hf", "vllm"])
def engine(request, model):
    return HFEngine(model) if request.param == "hf" else request.getfixturevalue("server")


# alike for all


def test_scores_are_those_of_the_plain_forward_in_input_order(engine, model):
    pairs = [([5, 6, 7], (8, 9)), ([5], (6, 7, 8, 9)), ([5, 6, 7], (8, 9)), ([4], ())]
    scores = engine.score(pairs)
    for row, expected in zip(scores, one_by_one(model, pairs), strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
    assert engine.scored_tokens == 6  # equal pairs once


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_samples_end_at_the_first_stop_or_at_the_limit_and_carry_their_logprobs(engine, model, temperature):
    groups = engine.generate(PROMPTS, spec(temperature=temperature, n=4))
    assert [len(group) for group in groups] == [4, 4, 4]
    samples = [sample for group in groups for sample in group]
    for sample in samples:
        stopped = [token in STOPS for token in sample.ids]
        assert len(sample.ids) == len(sample.logprobs) <= 12 and not any(stopped[:-1])
        assert sample.finish == ("stop" if stopped[-1] else "length")
        assert sample.finish == "stop" or len(sample.ids) == 12
    assert engine.generated_tokens == sum(len(sample.ids) for sample in samples)
    if temperature in (0.0, 1.0):
        pairs = [(p, s.ids) for p, group in zip(PROMPTS, groups, strict=True) for s in group]
        for sample, expected in zip(samples, one_by_one(model, pairs), strict=True):
            assert sample.logprobs == pytest.approx(expected, abs=1e-4)


def test_a_seed_decides_and_equal_prompts_are_sampled_independently(engine):
    again = [engine.generate(PROMPTS, spec(seed=seed)) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
    assert again[0][0] != again[0][2]
    assert engine.generate([], spec()) == [] and engine.score([]) == []


def test_everything_that_cannot_be_read_is_named_at_once(engine):
    with pytest.raises(InputError) as error:
        engine.generate([[], [5] * 10_000, [5]], spec())
    assert len(error.value.problems) == 2
    assert "prompt 0 is empty" in error.value.problems[0] and "row 1 takes 10012 tokens" in error.value.problems[1]


# a server in particular


@pytest.mark.parametrize("faults", [[503], [500, 429, 502]])
def test_passing_faults_of_the_server_are_outlasted(stub, server, faults):
    before = server.score([([5], (6, 7))])
    stub.faults = faults
    assert server.score([([5], (6, 7))]) == before


def test_a_dead_server_is_said_to_be_dead(stub):
    with serving(stub) as url:
        engine = VLLMEngine(url)
    with pytest.raises(MachineError, match=r"does not answer \(ConnectError"):
        engine.score([([5], (6,))])
    with pytest.raises(MachineError, match="does not answer"):
        VLLMEngine(url)


def test_a_refusal_is_passed_on_at_once(stub, server):
    asked = len(stub.requests)
    server.model = "gone"
    with pytest.raises(InputError, match="The model `gone` does not exist"):
        server.score([([5], (6,))])
    assert len(stub.requests) == asked + 1
    with pytest.raises(InputError, match="does not serve 'other': it serves tiny"):
        VLLMEngine(server.url, model="other")


def test_logprobs_from_before_temperature_are_refused(stub, server):
    stub.processed = False
    with pytest.raises(InputError, match="processed_logprobs"):
        server.generate(PROMPTS, spec(temperature=0.7))
    assert server.generate(PROMPTS, spec(temperature=1.0))


def test_answers_without_token_ids_are_refused(stub, server, monkeypatch):
    monkeypatch.setattr(stub, "answer", lambda path, body: (200, {"choices": [{"index": 0, "text": "hello"}]}))
    with pytest.raises(InputError, match="does not return token ids"):
        server.generate([[5]], spec(n=1))
    with pytest.raises(InputError, match="does not return prompt_logprobs"):
        server.score([([5], (6,))])


def test_an_adapter_takes_the_place_of_the_one_before(stub, server):
    stub.adapters = {"one": make("qwen3"), "two": make("gpt2")}
    pairs, found = [([5, 6], (7, 8))], []
    for version, folder in enumerate(("one", "two"), start=1):
        server.load_adapter(folder, version)
        found.append(server.score(pairs))
        assert server.version == version
    for folder, scores in zip(("one", "two"), found, strict=True):
        assert scores[0] == pytest.approx(one_by_one(stub.adapters[folder], pairs)[0], abs=1e-4)
    assert sorted(stub.names) == ["dartune-2", "tiny"]
    with pytest.raises(InputError, match="no adapter in three"):
        server.load_adapter("three", 3)
    with pytest.raises(InputError, match="adapter: lora"):
        server.sync({}, 4)
