"""What is measured on: models of several shapes, and questions with demonstrations for them.

`lab` are the shipped models and their data as they are. The others have random weights and read texts of the lab's
world; how long their texts get is set by `end_after`, so that contenders generate alike.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from memory import SHAPES as REAL_SHAPES
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.lab.build import MAPPER_PROMPT
from dartune.lab.source import model_folder
from dartune.lab.suites import DEMONSTRATIONS, write_demonstrations
from dartune.lab.tokenizer import build_tokenizer
from dartune.lab.world import ProblemSpec, sample_problems
from dartune.models.device import device_of
from dartune.models.loading import load_model, load_tokenizer

LONG = ProblemSpec(steps=(4, 5))
LAB_ROWS, LONG_ROWS = 256, 64
STEADY = 0  # the place in the residual stream that `end_after` steers by
STEADY_VALUE = 0.1
NEVER = -1000.0


def llama(hidden: int, layers: int, intermediate: int, vocabulary: int = 131) -> LlamaConfig:
    heads = hidden // 32
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )


SHAPES = {
    "1M": llama(128, 5, 344),
    "5M": llama(256, 6, 768),
    "150k": llama(512, 4, 1536, 151936),
    "tiny": Qwen3Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        tie_word_embeddings=True,
    ),
    "0.6B": REAL_SHAPES["Qwen3-0.6B"],
}


@dataclass(frozen=True)
class Load:
    """Models and data of one shape; `policy` and `target` are folders."""

    name: str
    policy: Path
    target: Path
    renderer: Renderer
    rows: list[Demonstration]
    request: str
    learning_rate: float

    def prompts(self, n: int) -> list[list[int]]:
        """The first `n` requests for a rewrite."""
        return [self.renderer.prompt_ids(self.asked(row)) for row in self.rows[:n]]

    def asked(self, row: Demonstration) -> str:
        return self.request.replace("{question}", row.question).replace("{solution}", row.solution)

    @property
    def tokenizer(self) -> Any:
        return self.renderer.tokenizer


def lab_load() -> Load:
    """The shipped initial mapper and target: texts end where the models end them."""
    policy = model_folder("lab:mapper")
    rows = write_demonstrations(sample_problems("speed", DEMONSTRATIONS, LAB_ROWS), "values")
    renderer = Renderer(load_tokenizer(policy))
    return Load("lab", policy, model_folder("lab:backward"), renderer, rows, MAPPER_PROMPT, 3e-4)


def random_load(name: str, folder: Path, device: str, shape: Any = None) -> Load:
    """A model with random weights that never ends a text, mapper and target alike, about 100 tokens a prompt."""
    shape = shape or SHAPES[name]
    place = folder / name
    tokenizer = wide_tokenizer(shape.vocab_size)
    if not place.exists():
        _random_model(shape, tokenizer, device).save_pretrained(place)
        tokenizer.save_pretrained(place)
    rows = write_demonstrations(sample_problems("speed", LONG, LONG_ROWS), "explicit")
    return Load(name, place, place, Renderer(load_tokenizer(place)), rows, MAPPER_PROMPT, 1e-5)


def _random_model(shape: Any, tokenizer: Any, device: str) -> nn.Module:
    torch.manual_seed(0)
    shape.bos_token_id, shape.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    shape.pad_token_id = tokenizer.pad_token_id
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weights[STEADY] = 0.0
            elif "embed" in name:
                weights[:, STEADY] = STEADY_VALUE
    end_after(model, tokenizer.eos_token_id, None)
    return model


@torch.no_grad()
def end_after(model: nn.Module, end_id: int, tokens: int | None) -> nn.Module:
    """Let a model of `random_load` end its texts after so many tokens on average (geometric), None for never.

    One place of its residual stream is the same for every text, since no layer writes to it, so that the output weights
    at that place set the end's probability. They are plain weights: saved, loaded and trained like any other.
    """
    row = model.get_output_embeddings().weight[end_id]
    row.zero_()
    row[STEADY] = NEVER
    if tokens is not None:
        ids = torch.arange(64, device=device_of(model)).view(4, 16) + 32
        output = model(input_ids=ids, output_hidden_states=True)
        others = output.logits.float().logsumexp(dim=-1).mean()  # the end itself weighs nothing yet
        steady = output.hidden_states[-1][..., STEADY].float().mean()
        row[STEADY] = (others - math.log(tokens - 1)) / steady
    return model


def wide_tokenizer(vocabulary: int):
    """The lab's tokenizer with meaningless words up to a size."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    plain = build_tokenizer()
    content = json.loads(plain.backend_tokenizer.to_str())
    words = content["model"]["vocab"]
    words.update({f"w{index}": index for index in range(len(words), vocabulary)})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        **plain.special_tokens_map,
    )
    tokenizer.chat_template = plain.chat_template
    return tokenizer


def frozen(folder: Path, device: str) -> nn.Module:
    """A model as dartune reads it: bfloat16 on a GPU, float32 on a CPU.

    Its weights are copied out of the file, whose mapped pages come and go with what else the machine does, and would
    count as memory that a round took.
    """
    model = load_model(folder, device=device)
    for weights in model.parameters():
        weights.data = weights.data.clone()
    return model
