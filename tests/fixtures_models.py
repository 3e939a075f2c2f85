"""Tiny randomly initialised models and tokenizers in Hugging Face format, built in code."""

from __future__ import annotations

from pathlib import Path

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Pre-tokenisation of Qwen and Llama 3: line breaks belong to the preceding characters.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ARCHITECTURES = ("qwen3", "llama", "gemma3", "gpt2")


def byte_tokenizer(chat: bool = True, *, bos: bool = False, eos: bool = True, merges: tuple[tuple[str, str], ...] = ()):
    """Builds a byte-level BPE tokenizer: 256 byte tokens, then merged tokens, then special tokens.

    Args:
        chat: add a ChatML-like template and its two turn tokens.
        bos: add `<s>` at the start of every sequence, as Llama tokenizers do.
        eos: define an end-of-text token.
        merges: BPE merges in the byte-level alphabet, such as ("Ċ", "Ċ") for two line breaks.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    names = {"pad_token": "<|pad|>"}
    if eos:
        names["eos_token"] = "<|endoftext|>"
    if bos:
        names["bos_token"] = "<s>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"] if chat else None,
        model_max_length=1_000_000,
        **names,
    )
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    if chat:
        tokenizer.chat_template = CHATML
    return tokenizer


def sentencepiece_tokenizer(prefix: str):
    """Builds a tokenizer as converted from SentencePiece: `▁` for spaces, byte fallback, and `<s>` at the start.

    Args:
        prefix: where a `▁` that is not in the text is added: "first" (at the start of the text only), "always" (also
            after special tokens, as in older conversions) or "never".
    """
    from string import ascii_letters, digits, punctuation

    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    byte_tokens = [f"<0x{index:02X}>" for index in range(256)]
    tokens = [
        "<unk>",
        "<pad>",
        "<s>",
        *byte_tokens,
        "▁",
        *ascii_letters,
        *digits,
        *punctuation,
        "▁t",
        "he",
        "▁the",
        "▁▁",
    ]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁")]
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    backend = Tokenizer(model)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if prefix == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        prepended = [normalizers.Prepend("▁")] if prefix == "always" else []
        backend.normalizer = normalizers.Sequence([*prepended, normalizers.Replace(" ", "▁")])
    if prefix != "never":
        stripped = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(stripped)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        bos_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=1_000_000,
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def tiny_model(
    architecture: str,
    vocab_size: int,
    *,
    pad: int,
    eos: int,
    bos: int | None = None,
    seed: int = 0,
    context: int = 512,
):
    """Builds a causal LM in float32 with two layers and hidden size 32, of one of `ARCHITECTURES`."""
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen3Config

    shared = {"vocab_size": vocab_size, "pad_token_id": pad, "eos_token_id": eos, "bos_token_id": bos}
    wide = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
    }
    if architecture == "qwen3":
        config = Qwen3Config(**shared, **wide, head_dim=8, tie_word_embeddings=True)
    elif architecture == "llama":
        config = LlamaConfig(**shared, **wide)
    elif architecture == "gemma3":  # one layer attends to the last 64 tokens only, the other to all
        layer_types = ["sliding_attention", "full_attention"]
        config = Gemma3TextConfig(**shared, **wide, head_dim=8, sliding_window=64, layer_types=layer_types)
    elif architecture == "gpt2":
        config = GPT2Config(**shared, n_embd=32, n_layer=2, n_head=4, n_positions=context)
    else:
        raise ValueError(f"unknown architecture {architecture!r}; known: {ARCHITECTURES}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def save_tiny(
    folder: Path,
    architecture: str = "qwen3",
    *,
    chat: bool = True,
    bos: bool = False,
    seed: int = 0,
    context: int = 512,
) -> Path:
    """Writes config, safetensors weights and tokenizer to `folder` and returns it."""
    tokenizer = byte_tokenizer(chat, bos=bos)
    eos = tokenizer.convert_tokens_to_ids("<|im_end|>") if chat else tokenizer.eos_token_id
    model = tiny_model(
        architecture,
        len(tokenizer),
        pad=tokenizer.pad_token_id,
        eos=eos,
        bos=tokenizer.bos_token_id,
        seed=seed,
        context=context,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def without_dropout(model):
    """Disables dropout, so that training mode is as deterministic as evaluation mode, and returns the model."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model
