"""Memory of training real model shapes, for docs/scale.md: model states counted, activations measured layer by layer.

    python benchmarks/memory.py

No weights are needed: a model of each shape is built with one and with two layers at full width, in bfloat16 with
random weights; what a layer keeps for the backward is the difference, and the whole follows from the number of layers.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from dartune.models.fused_rmsnorm import fuse_norms
from dartune.models.lora import add_lora, remove_lora
from dartune.train.memory import (
    BYTES_PER_CAST_WEIGHT,
    BYTES_PER_TRAINED_WEIGHT,
    MEASURED_TOKENS,
    activation_bytes,
    as_float32,
)

SHAPES = {
    "Qwen3-0.6B": Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "Qwen3-1.7B": Qwen3Config(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "Llama-3.1-8B": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
    ),
    "Llama-3.1-70B": LlamaConfig(
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
    ),
}
COMPUTED = 2  # bytes of a weight in bfloat16
LORA_RANK = 16


def measured(config, layers: int) -> dict[str, float]:
    """Weights, and bytes per token kept for the backward: plain, with LoRA, and with activation checkpointing."""
    shape = type(config)(**{**config.to_dict(), "num_hidden_layers": layers, "layer_types": None})
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16, attn_implementation="sdpa")
    model = fuse_norms(model)
    found = {"weights": sum(p.numel() for p in model.parameters())}
    with as_float32(model):
        found["full"] = activation_bytes(model) / MEASURED_TOKENS
        model.activation_checkpointing_enable({"use_reentrant": False})
        found["checkpointed"] = activation_bytes(model) / MEASURED_TOKENS
        model.activation_checkpointing_disable()
    model = add_lora(model, LORA_RANK)
    found["lora_weights"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found["lora"] = activation_bytes(model) / MEASURED_TOKENS
    remove_lora(model)
    return found


def whole(config) -> dict[str, float]:
    one, two = measured(config, 1), measured(config, 2)
    layers = config.num_hidden_layers
    found = {key: one[key] + (layers - 1) * (two[key] - one[key]) for key in one}
    keys_and_values = 2 * config.num_key_value_heads * config.head_dim * COMPUTED * layers
    return found | {"cache": keys_and_values}


def main() -> None:
    torch.set_num_threads(1)
    columns = (
        "weights",
        "states, full",
        "states, LoRA",
        "kept per token, full",
        "LoRA",
        "checkpointed",
        "cache per token",
    )
    print(f"| shape | {' | '.join(columns)} |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, config in SHAPES.items():
        found = whole(config)
        cells = [
            f"{found['weights'] / 1e9:.2f} B, {COMPUTED * found['weights'] / 1e9:.1f} GB",
            f"{(BYTES_PER_TRAINED_WEIGHT + BYTES_PER_CAST_WEIGHT) * found['weights'] / 1e9:.0f} GB",
            f"{BYTES_PER_TRAINED_WEIGHT * found['lora_weights'] / 1e9:.2f} GB",
            *(f"{found[key] / 1e6:.2f} MB" for key in ("full", "lora", "checkpointed")),
            f"{found['cache'] / 1e3:.0f} kB",
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
