"""The contract of every engine, tested with the in-process engine and a vLLM server.

The server is a stub, or a real one that the environment names: docs/engines.md has the command.
"""

import copy
import os
import random

import httpx2
import pytest
import torch
from scipy.stats import chisquare

from dartune.data.chat_template import Renderer
from dartune.engines.base import SampleSpec
from dartune.engines.hf import HFEngine
from dartune.engines.vllm import VLLMEngine
from dartune.errors import InputError
from dartune.models.lora import add_lora
from fixtures_models import byte_tokenizer, tiny_model
from fixtures_vllm import Stub, serving

URL, FOLDER = os.environ.get("DARTUNE_VLLM_URL"), os.environ.get("DARTUNE_VLLM_MODEL")
TOLERANCE = float(os.environ.get("DARTUNE_VLLM_TOLERANCE", "1e-4"))  # nats
PROMPTS = [[5, 6, 7], [9], [5, 6, 7]]
STOPS = (1, 2, 3)


def spec(**changes):
    return SampleSpec(**({"n": 3, "max_new_tokens": 12, "temperature": 1.0, "stop_ids": STOPS, "seed": 0} | changes))


@pytest.fixture(scope="module")
def renderer():
    """The chat template and tokenizer of the model."""
    if not URL:
        return Renderer(byte_tokenizer())
    from transformers import AutoTokenizer

    return Renderer(AutoTokenizer.from_pretrained(FOLDER))


@pytest.fixture(scope="module")
def model(renderer):
    """The model that the server serves, in float32."""
    if not URL:
        return tiny_model("llama", len(renderer.tokenizer), pad=0, eos=1).eval()
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture
def server(model):
    if URL:
        engine = VLLMEngine(URL)
        yield engine
        engine.close()
        return
    with serving(Stub(model)) as url:
        engine = VLLMEngine(url)
        yield engine
        engine.close()


@pytest.fixture(params=["hf", "vllm"])
def engine(request, model):
    return HFEngine(model) if request.param == "hf" else request.getfixturevalue("server")


@torch.no_grad()
def logprobs(model, prompt, completion, temperature=1.0):
    """Log-probabilities without batch, padding or cache. Those of a greedy sample are taken at temperature 1."""
    rows = (model(torch.tensor([[*prompt, *completion]])).logits[0] / (temperature or 1.0)).log_softmax(dim=-1)
    return [rows[len(prompt) + t - 1, token].item() for t, token in enumerate(completion)]


def test_scores_are_those_of_the_plain_forward_in_input_order(engine, model):
    pairs = [([5, 6, 7], (8, 9)), ([5], (6, 7, 8, 9)), ([5, 6, 7], (8, 9)), ([4], ())]
    for row, pair in zip(engine.score(pairs), pairs, strict=True):
        assert row == pytest.approx(logprobs(model, *pair), abs=TOLERANCE)
    assert engine.scored_tokens == 6  # equal pairs once


def test_long_rows_are_scored_like_short_ones(engine, model):
    rng = random.Random(0)
    pairs = [([rng.randrange(60) for _ in range(40)], tuple(rng.randrange(60) for _ in range(80))) for _ in range(8)]
    for row, pair in zip(engine.score(pairs), pairs, strict=True):
        assert row == pytest.approx(logprobs(model, *pair), abs=TOLERANCE)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_samples_end_at_the_first_stop_or_at_the_limit_and_carry_their_logprobs(engine, model, temperature):
    groups = engine.generate(PROMPTS, spec(temperature=temperature, n=4))
    assert [len(group) for group in groups] == [4, 4, 4]
    samples = [(prompt, sample) for prompt, group in zip(PROMPTS, groups, strict=True) for sample in group]
    for prompt, sample in samples:
        stopped = [token in STOPS for token in sample.ids]
        assert len(sample.ids) == len(sample.logprobs) <= 12 and not any(stopped[:-1])
        assert sample.finish == ("stop" if stopped[-1] else "length")
        assert sample.finish == "stop" or len(sample.ids) == 12
        assert sample.logprobs == pytest.approx(logprobs(model, prompt, sample.ids, temperature), abs=TOLERANCE)
    assert engine.generated_tokens == sum(len(sample.ids) for _, sample in samples)


def test_every_stop_token_ends_a_sample(engine):
    (plain,) = engine.generate([[5, 6]], spec(n=8, stop_ids=()))
    assert all(len(sample.ids) == 12 for sample in plain)  # the model's own end-of-text token ends no sample
    last = plain[0].ids[-1]
    (cut,) = engine.generate([[5, 6]], spec(n=8, stop_ids=(last,)))
    assert cut[0].finish == "stop" and cut[0].ids == plain[0].ids[: plain[0].ids.index(last) + 1]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_tokens_are_sampled_from_the_full_distribution(engine, model, temperature):
    n, prompt = 2000, [5, 6, 7]
    (group,) = engine.generate([prompt], spec(n=n, max_new_tokens=1, stop_ids=(), temperature=temperature))
    with torch.no_grad():
        expected = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(dim=-1) * n
    counts = torch.bincount(torch.tensor([sample.ids[0] for sample in group]), minlength=len(expected))
    order = expected.argsort(descending=True)
    common = int((expected >= 5).sum()) - 1  # all rarer tokens together are one cell
    cells = [[*row[order][:common].tolist(), row[order][common:].sum().item()] for row in (counts, expected)]
    assert chisquare(*cells, sum_check=False).pvalue > 1e-6


def test_samples_depend_on_the_seed_and_repeated_prompts_are_independent(engine):
    runs = [
        [[sample.ids for sample in group] for group in engine.generate(PROMPTS, spec(seed=seed, n=8))]
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][2]
    assert engine.generate([], spec()) == [] and engine.score([]) == []


def test_a_prompt_with_a_seed_of_its_own_has_the_samples_of_a_call_with_that_seed(engine):
    repeated = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]
    [mixed] = [engine.generate(repeated, spec(seed=(5, 6, 6, 5), n=2))]
    alone = [
        engine.generate(prompts, spec(seed=seed, n=2)) for prompts, seed in ((repeated[::3], 5), (repeated[1:3], 6))
    ]
    ids = [[[sample.ids for sample in group] for group in groups] for groups in (mixed, *alone)]
    assert [ids[0][0], ids[0][3]] == ids[1] and ids[0][1:3] == ids[2]


@pytest.mark.parametrize("text", ["naïve Größe: 3\u202f½", "日本語で 7 個", "👩‍🔬🙂", "a\x00b\u200b", ""])
def test_any_script_and_empty_text_can_be_scored_and_cut_anywhere(engine, model, renderer, text):
    prompt, response = renderer.prompt_ids(f"Say: {text}"), renderer.response_ids(text)
    (row,) = engine.score([(prompt, response)])
    assert row == pytest.approx(logprobs(model, prompt, response), abs=TOLERANCE)
    (greedy,) = engine.generate([prompt], spec(temperature=0.0, n=1, stop_ids=()))
    stop = greedy[0].ids[0]
    (empty,) = engine.generate([prompt], spec(temperature=0.0, n=1, stop_ids=(stop,)))
    assert (empty[0].ids, empty[0].finish) == ((stop,), "stop")  # a sample that is only its stop token
    for length in range(1, len(response) + 1):  # also within a character
        (cut,) = engine.score([(prompt, response[:length])])
        assert cut == pytest.approx(row[:length], abs=TOLERANCE)
        assert isinstance(renderer.decode(response[:length]), str)


def test_all_invalid_prompts_are_listed_in_one_error(engine):
    length = engine.context
    with pytest.raises(InputError) as error:
        engine.generate([[], [5] * length, [5]], spec())
    assert len(error.value.problems) == 2
    assert "prompt 0 is empty" in error.value.problems[0] and f"row 1 takes {length + 12}" in error.value.problems[1]
    with pytest.raises(InputError, match=r"vocabulary"):
        engine.score([([5], (10**7,))])


def test_an_adapter_replaces_the_previous_one(model, server, tmp_path):
    pairs = [([5, 6], (7, 8)), ([9], (5, 6, 7))]
    plain = server.score(pairs)
    for version in (1, 2):
        expected = [logprobs(adapted(model, tmp_path / str(version), seed=version), *pair) for pair in pairs]
        server.load_adapter(tmp_path / str(version), version)
        for row, tuned, untuned in zip(server.score(pairs), expected, plain, strict=True):
            assert row == pytest.approx(tuned, abs=TOLERANCE) and row != pytest.approx(untuned, abs=TOLERANCE)
        assert server.version == version
    names = [card["id"] for card in httpx2.get(f"{server.url}/v1/models").json()["data"]]
    assert server.model in names and not any(name.startswith("dartune-1-") for name in names)


def adapted(model, folder, seed):
    """A copy of the model with a random LoRA adapter, which is saved to `folder`."""
    tuned = add_lora(copy.deepcopy(model), rank=8).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.1, generator=generator)
    tuned.save_pretrained(folder)
    return tuned
