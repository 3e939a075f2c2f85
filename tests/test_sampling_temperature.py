"""Log-probabilities at the sampling temperature agree between samples, scores, training and penalties."""

import pytest
import torch

from dartune.engines.base import SampleSpec
from dartune.engines.hf import HFEngine
from dartune.engines.logprobs import group_logprobs
from dartune.engines.vllm import VLLMEngine
from dartune.errors import InputError
from dartune.rewards.alignment import Reference
from dartune.rewards.penalties import Rewritten, peeking
from dartune.rewards.reward import GatedReward
from fixtures_models import byte_tokenizer, tiny_model
from test_reward import RENDERER, ROW, THRESHOLDS

PROMPT = tuple(RENDERER.prompt_ids("How many?"))
TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3", len(TOKENIZER), pad=TOKENIZER.pad_token_id, eos=TOKENIZER.eos_token_id)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_scores_at_a_temperature_equal_the_logprobs_of_samples(model, temperature):
    engine = HFEngine(model)
    [samples] = engine.generate([PROMPT], SampleSpec(4, 12, temperature, (), 0))
    pairs = [(PROMPT, sample.ids) for sample in samples]
    for sample, scores in zip(samples, engine.score(pairs, temperature), strict=True):
        assert sample.temperature == temperature
        assert scores == pytest.approx(sample.logprobs, abs=1e-4)
    trained, _, _ = group_logprobs(model, [(PROMPT, [s.ids for s in samples])], temperature=temperature)
    assert trained.tolist() == pytest.approx([pytest.approx(s.logprobs, abs=1e-4) for s in samples])


@pytest.mark.parametrize("slices", [False, True])
def test_gradients_at_a_temperature_equal_those_of_divided_logits(model, slices, monkeypatch):
    if slices:
        monkeypatch.setattr("dartune.engines.sliced_head.CPU_LOGITS", 64)
    ids = tuple(range(5, 25))

    def gradient(loss):
        model.zero_grad()
        loss.backward()
        return model.model.layers[0].mlp.up_proj.weight.grad.clone()

    actual = gradient(group_logprobs(model, [(PROMPT, [ids])], with_entropy=True, temperature=0.5)[0].sum())
    logits = model(torch.tensor([[*PROMPT, *ids]])).logits[0, len(PROMPT) - 1 : -1] / 0.5
    expected = gradient(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())
    assert torch.allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_the_target_scores_samples_at_their_temperature(model, checker):
    engine = HFEngine(model)
    length = len(RENDERER.response_ids(ROW.solution))
    reward = GatedReward(engine, RENDERER, checker, THRESHOLDS, {ROW.id: Reference(length, -1.0, None, length)})
    prompt = RENDERER.prompt_ids(ROW.question)
    [samples] = engine.generate([prompt], SampleSpec(3, 10, 0.5, (), 0))
    [scored] = reward([ROW], [samples])
    for sample, item in zip(samples, scored, strict=True):
        assert item.sampled_logprobs == pytest.approx(engine.score([(prompt, sample.ids)], 0.5)[0], abs=1e-4)
        assert item.logprobs == pytest.approx(engine.score([(prompt, sample.ids)])[0], abs=1e-4)
        # The mapper is the target with the same prompt, so it cannot peek.
        row = Rewritten(ROW, sample, item.text, item.logprobs, item.sampled_logprobs)
        assert peeking([row], engine, RENDERER) == pytest.approx([0.0], abs=1e-3)


def test_a_server_that_scores_at_temperature_1_only_raises():
    server = VLLMEngine.__new__(VLLMEngine)
    server.url = "http://localhost:8000"
    with pytest.raises(InputError, match="temperature 1 only, not at 0.5"):
        server.score([(PROMPT, (5, 6))], 0.5)
