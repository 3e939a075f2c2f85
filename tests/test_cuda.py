"""What a GPU does differently gives what it would give otherwise; skipped where there is none."""

from itertools import chain

import pytest
import torch

from dartune.engines import decoding
from dartune.engines.hf import HFEngine
from dartune.models.lora import add_lora
from fixtures_models import ARCHITECTURES
from test_engine import random_prompts, spec, tokens
from test_shared_prefix import make

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "gemma3"])  # has a sliding window
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_recorded_steps_sample_what_others_do(name, lora, monkeypatch):
    model, prompts = make(name).cuda(), random_prompts()
    model = add_lora(model, 4).eval() if lora else model
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph)))
    samples = HFEngine(model).generate(prompts, spec(n=6, max_new_tokens=40))
    assert len(replays) > 5 and model not in decoding.NOT_CAPTURABLE
    monkeypatch.setattr(decoding, "uses_cuda_graphs", lambda device: False)
    expected = HFEngine(model).generate(prompts, spec(n=6, max_new_tokens=40))
    pairs = zip(chain(*tokens(samples)), chain(*tokens(expected)), strict=True)
    same = sum(ours == theirs for ours, theirs in pairs)
    assert same >= 28  # of 30: rounding may tip a draw
    for group, prompt in zip(samples, prompts, strict=True):
        for sample, scores in zip(group, HFEngine(model).score([(prompt, s.ids) for s in group]), strict=True):
            assert sample.logprobs == pytest.approx(scores, abs=1e-3)
