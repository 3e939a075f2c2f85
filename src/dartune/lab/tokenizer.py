"""The lab's tokenizer: one token per word, with a chat template, in Hugging Face format."""

from __future__ import annotations

from dartune.lab.world import MAX_DIFFERENCE, MAX_VALUE, NAMES

PAD, UNKNOWN, BOS, EOS, USER, ASSISTANT = "<pad>", "<unk>", "<bos>", "<eos>", "<user>", "<assistant>"
WORDS = (
    ". , ; : ? + - = ( ) has have How many does more fewer than twice as and together less "
    "The answer is First we know that Next so need on Solution Rewrite"
).split()
CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<assistant>' + message['content'] + '<eos>' }}"
    "{% else %}{{ '<user>' + message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """All tokens in the order of their ids."""
    # An operand is at most the larger of the two limits, so no sum of two operands exceeds twice that.
    numbers = [str(number) for number in range(2 * max(MAX_VALUE, MAX_DIFFERENCE) + 1)]
    return [PAD, UNKNOWN, BOS, EOS, USER, ASSISTANT, *WORDS, *NAMES, *numbers]


def build_tokenizer():
    """Return a `PreTrainedTokenizerFast` over the lab's vocabulary; unknown words become `<unk>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(vocabulary())}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
