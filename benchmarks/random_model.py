"""A model folder of a real shape with random weights, and mathematics to go with it, where nothing can be downloaded.

The tokenizer is a byte-level BPE in Qwen's manner: digits one by one, and merges of letters, so that a random token is
a random piece of a word and English text takes a token for three or four letters.
"""

from __future__ import annotations

import itertools
import json
import random
import string
from pathlib import Path

import torch
from memory import SHAPES
from transformers import AutoModelForCausalLM, Qwen3Config

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
SPACE = "Ġ"  # the byte-level alphabet's space
TINY = Qwen3Config(
    vocab_size=2000,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    tie_word_embeddings=True,
)
MODELS = {"qwen3-0.6b": SHAPES["Qwen3-0.6B"], "tiny": TINY}


def merges(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """`n` merges of letters into pieces of two, three and four, each piece of the two before it."""
    letters = string.ascii_lowercase
    pairs = [(first, second) for first in (SPACE, *letters) for second in letters]
    triples = [(first + second, third) for (first, second), third in itertools.product(pairs, letters)]
    fours = [(left + right, last) for (left, right), last in itertools.product(triples, letters)]
    rng = random.Random(seed)
    rng.shuffle(fours)
    return [*pairs, *triples, *fours][:n]


def build_tokenizer(size: int):
    """A `PreTrainedTokenizerFast` of nearly `size` tokens with a ChatML template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = merges(size - len(alphabet) - 8)
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *(left + right for left, right in merged)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merged))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def save_random_model(shape: str, folder: Path, device: str) -> None:
    """Write one of MODELS, in bfloat16, with its tokenizer."""
    config = MODELS[shape]
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tokenizer = build_tokenizer(config.vocab_size)
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def solved_problem(rng: random.Random) -> dict[str, str]:
    """A row in GSM8K's layout: a question, and an answer with notes for a calculator and `#### N`."""
    name, friend = rng.sample("Weng Betty Julie James Mark Ken Alexis Tina Randy Jasper".split(), 2)
    thing = rng.choice("apples pencils marbles stickers cookies shells".split())
    first, times, given, price = rng.randint(3, 40), rng.randint(2, 5), rng.randint(1, 3), rng.randint(2, 9)
    more, total = first * times, first * times + first
    left, paid = total - given, (total - given) * price
    question = (
        f"{name} picked {first} {thing} on Monday and {times} times as many on Tuesday. {friend} was given {given} of "
        f"them. {name} then sold all the others at the market for ${price} each. How much money did {name} make?"
    )
    answer = (
        f"On Tuesday {name} picked {first} * {times} = <<{first}*{times}={more}>>{more} {thing}.\n"
        f"On both days together that is {more} + {first} = <<{more}+{first}={total}>>{total} {thing}.\n"
        f"After {friend} got some there were {total} - {given} = <<{total}-{given}={left}>>{left} left.\n"
        f"They were sold for {left} * {price} = $<<{left}*{price}={paid}>>{paid}.\n#### {paid}"
    )
    return {"question": question, "answer": answer}


def save_problems(n: int, path: Path) -> None:
    rng = random.Random(0)
    rows = {row["question"]: row for row in (solved_problem(rng) for _ in range(2 * n))}
    path.write_text("".join(json.dumps(row) + "\n" for row in list(rows.values())[:n]), encoding="utf-8")
