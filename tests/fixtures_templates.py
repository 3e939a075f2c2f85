"""How the model families write a conversation: their special tokens, turns and quirks, in templates of our own.

The quirks are those of the published templates: who writes a system turn unasked, who refuses one, who forgets it once
an assistant has spoken, who trims, who writes a blank in front of an answer, who opens or closes a thought.
"""

from dataclasses import dataclass

from fixtures_models import CHATML, byte_tokenizer, sentencepiece_tokenizer

_CHATML_GENERATION = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_CHATML_OTHERS = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
# Without a system message there is one all the same.
QWEN25 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}" + _CHATML_OTHERS + "{% endfor %}" + _CHATML_GENERATION
)
# The last answer's thought stands in a block, an empty one where there is none; text loses the breaks in front of it.
_QWEN3_TURNS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}"
    "{% set text = m['content'] %}{% set thought = '' %}"
    "{% if '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + text.lstrip('\n') }}"
    "{{ '<|im_end|>\n' }}"
    "{% else %}" + _CHATML_OTHERS + "{% endif %}{% endfor %}"
)
QWEN3 = (
    _QWEN3_TURNS
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    + "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    + "{% endif %}"
)
# A model that always thinks: its thought is opened for it.
QWEN3_THINKING = _QWEN3_TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
# As above, and of an answer only what follows the thought is written.
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% else %}{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
_LLAMA3_TURNS = (
    "{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3 = "{{ bos_token }}" + _LLAMA3_TURNS
# Always a system turn, with today's date in it.
LLAMA31 = (
    "{{ bos_token }}{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}"
    "{% else %}{% set today = '26 Jul 2024' %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + today + '\n\n' + system + '<|eot_id|>' }}"
    + _LLAMA3_TURNS
)
_GEMMA_TURNS = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ (prefix if loop.first and prefix is defined else '') + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + _GEMMA_TURNS
)
# The system message becomes the beginning of the first user turn.
GEMMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set prefix = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}" + _GEMMA_TURNS
)


def mistral(user: str, answer: str) -> str:
    """A template without a generation prompt, whose system message stands before the last user turn *and only where
    that is the last turn of all*: as soon as an assistant has answered, it is gone."""
    return (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% endif %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '" + user + "' + (system + '\n\n' if loop.last and system is defined else '') }}"
        "{{ m['content'] + '[/INST]' }}"
        "{% else %}{{ " + answer + " + eos_token }}{% endif %}{% endfor %}"
    )


@dataclass(frozen=True)
class Family:
    """A template, its special tokens, the one that ends a turn, and what it does to text.

    `eos` is the tokenizer's end-of-text token, which need not end a turn. `plain` are added tokens that are not
    special. `pieces` is how its SentencePiece tokenizer marks the beginning of a text; None has a byte-level one.
    """

    template: str | None
    special: tuple[str, ...]
    end: str
    eos: str = "<|endoftext|>"
    bos: bool = False
    trims: bool = False
    system: bool = True
    plain: tuple[str, ...] = ()
    pieces: str | None = None


_CHATML = {"special": ("<|im_start|>", "<|im_end|>"), "end": "<|im_end|>", "eos": "<|im_end|>"}
_LLAMA = {
    "special": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "end": "<|eot_id|>",
    "eos": "<|eot_id|>",
    "bos": True,
    "trims": True,
}
_GEMMA = {
    "special": ("<start_of_turn>", "<end_of_turn>"),
    "end": "<end_of_turn>",
    "eos": "<eos>",
    "bos": True,
    "trims": True,
    "pieces": "never",
}
_MISTRAL = {"special": ("[INST]", "[/INST]"), "end": "</s>", "eos": "</s>", "bos": True}
_THOUGHTS = ("<think>", "</think>")
FAMILIES = {
    "chatml": Family(CHATML, **_CHATML),
    "qwen2.5": Family(QWEN25, **_CHATML),
    "qwen3": Family(QWEN3, **_CHATML, plain=_THOUGHTS),
    "qwen3-thinking": Family(QWEN3_THINKING, **_CHATML, plain=_THOUGHTS),
    "deepseek-r1": Family(DEEPSEEK_R1, ("<|User|>", "<|Assistant|>"), "<eos>", "<eos>", bos=True, plain=_THOUGHTS),
    "llama3": Family(LLAMA3, **_LLAMA),
    "llama3.1": Family(LLAMA31, **_LLAMA),
    "gemma2": Family(GEMMA2, **_GEMMA, system=False),
    "gemma3": Family(GEMMA3, **_GEMMA),
    "mistral": Family(mistral("[INST] ", "' ' + m['content'] | trim"), **_MISTRAL, pieces="first"),
    "mistral-legacy": Family(mistral("[INST] ", "' ' + m['content'] | trim"), **_MISTRAL, pieces="always"),
    "mistral-nemo": Family(mistral("[INST]", "m['content']"), **_MISTRAL),
    "none": Family(None, (), "<|endoftext|>"),
    "none-pieces": Family(None, (), "</s>", "</s>", bos=True, pieces="first"),
}


def family_tokenizer(name):
    from transformers import AddedToken

    family = FAMILIES[name]
    pieces = family.pieces
    tokenizer = sentencepiece_tokenizer(pieces) if pieces else byte_tokenizer(chat=False, bos=family.bos)
    tokenizer.add_special_tokens({"eos_token": family.eos, "additional_special_tokens": list(family.special)})
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in family.plain])
    tokenizer.chat_template = family.template
    return tokenizer
