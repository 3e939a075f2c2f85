"""Architectures with special attention are loaded, sampled and scored like all others."""

import pytest
import torch
import transformers

from dartune.engines.base import SampleSpec
from dartune.engines.decoding import Decoder
from dartune.engines.hf import HFEngine
from dartune.engines.logprobs import read_prompts
from dartune.models.loading import load_model
from fixtures_models import byte_tokenizer

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
WIDE = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
# Models without SDPA, with ALiBi, with sliding windows shorter than the texts, and with longer ones.
CONFIGS = {
    "Gemma2Config": {**WIDE, "sliding_window": 16},
    "GptOssConfig": {**WIDE, "sliding_window": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
    "GPTJConfig": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 256},
    "BloomConfig": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "FalconConfig": {**SIZES, "alibi": True},
    "MptConfig": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "MistralConfig": {**WIDE, "sliding_window": 8},
    "Gemma3TextConfig": {**WIDE, "sliding_window": 256},
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [7, 8, 9]]
NEW = 20


@pytest.fixture(params=CONFIGS)
def model(request, tmp_path):
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = getattr(transformers, request.param)(vocab_size=len(tokenizer), **CONFIGS[request.param], **ids)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return load_model(tmp_path)


def test_samples_have_the_log_probabilities_of_a_plain_forward(model):
    samples = HFEngine(model).generate(PROMPTS, SampleSpec(3, NEW, 1.0, (), 0))
    for prompt, group in zip(PROMPTS, samples, strict=True):
        for sample in group:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *sample.ids]])).logits[0].log_softmax(dim=-1)
            plain = logits[len(prompt) - 1 : -1].gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
            assert sample.logprobs == pytest.approx(plain.tolist(), abs=1e-4)
            assert HFEngine(model).score([(prompt, sample.ids)])[0] == pytest.approx(plain.tolist(), abs=1e-4)


def test_samples_share_a_row_where_every_token_attends_to_all_earlier_ones(model):
    with torch.no_grad():
        decoder = Decoder(model, read_prompts(model, PROMPTS), [0, 0, 0, 1, 1, 1], NEW)
    short_windows = "MistralConfig", "Gemma2Config", "GptOssConfig"
    alibi = "BloomConfig", "FalconConfig", "MptConfig"
    assert decoder.packed == (type(model.config).__name__ not in (*short_windows, *alibi))
