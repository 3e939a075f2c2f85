"""Converts text to token ids and back, and knows the tokens that end a sample (`Renderer.stop_ids`).

This is the only module that applies chat templates.

A row is trained as `prompt_ids + response_ids`, with the loss on `response_ids` only. Text from the data is always
encoded as plain text: a special token spelled out in it does not become that token, and Jinja in it is not evaluated.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise, takewhile
from typing import Any

from dartune.errors import InputError

# Some templates print today's date. A fixed date keeps prompts equal between a run and its resumption.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
# Stands for the answer when the template is probed. Private-use characters cannot be confused with template text.
ANSWER = "\ue000answer\ue000"
END_NAMES = re.compile(
    r"</s>|<(eos|end_of_turn|turn\|)>|<\|(endoftext|im_end|eot_id|eom_id|end_of_text|eot|return|eos|endofturn)\|>"
    r"|<｜end▁of▁sentence｜>|<\|END_OF_TURN_TOKEN\|>|\[EOS\]"
)
"""Names of special tokens that end a text or a turn in published tokenizers."""
OPENED_THOUGHT = re.compile(r"<think>\s*\Z")
# Private-use ranges from which the placeholder marks of `prompt_ids` are taken.
MARKS = (range(0xE001, 0xF900), range(0xF0000, 0xFFFFE))


class Renderer:
    """Renders questions and solutions for one tokenizer.

    The prompt ends exactly where the template puts the assistant's text. For most templates this equals
    `add_generation_prompt=True`. If a template writes more before the assistant's text (Qwen3 adds an empty `<think>`
    block), this is part of the prompt, so that prompt + response equals the template's rendering of the conversation.
    If a template drops the system prompt once there is an assistant message (Mistral), the generation prompt is used.

    In training, a response ends with `end_id`. A sample ends with any of `stop_ids`, because models also emit the
    other end tokens of their vocabulary.

    Args:
        tokenizer: a Hugging Face tokenizer, with or without a chat template.
        system_prompt: put before every question.
        thinking: the solutions contain their own `<think>` block. The prompt is then the generation prompt without a
            `<think>` that it opens (Qwen3-Thinking, DeepSeek-R1). Passed to the template as `enable_thinking`.
        end_ids: further tokens that end a sample, from the model's generation config.

    Raises:
        InputError: no token can end a response, or the template fails or omits text that it is given.
    """

    def __init__(
        self,
        tokenizer: Any,
        system_prompt: str | None = None,
        *,
        thinking: bool = False,
        end_ids: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.thinking = thinking
        special = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
        names = sorted({*special, *tokenizer.all_special_tokens}, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        # Special tokens as the tokenizer matches them in a template: some include the white space around them.
        self._control = re.compile("|".join(_control_pattern(name, special.get(name)) for name in names) or r"(?!)")
        self._special_ids = set(tokenizer.convert_tokens_to_ids(names)) - {tokenizer.unk_token_id}
        self.template: str | None = tokenizer.get_chat_template() if tokenizer.chat_template else None
        if self.template is not None and "strftime_now" in self.template:
            self.template = FIXED_DATE + self.template
        end_id = tokenizer.eos_token_id if self.template is None else self._probe_template()
        if end_id is None:
            raise InputError(
                f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, so no response can "
                'end; set one that the model knows (tokenizer.eos_token = "<|endoftext|>") and save it again'
            )
        self.end_id: int = end_id
        ends = [index for index, token in tokenizer.added_tokens_decoder.items() if END_NAMES.fullmatch(token.content)]
        candidates = [end_id, tokenizer.eos_token_id, *end_ids, *sorted(ends)]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(index for index in candidates if index is not None))

    def prompt_ids(self, user_text: str) -> list[int]:
        """Returns the ids before the response. The loss ignores them.

        Special tokens spelled out in the data are replaced by numbered placeholders before the template is applied,
        so that the special tokens in the rendered text are those of the template alone.
        """
        if self.template is None:
            return self._leading_ids + self.text_ids(plain_prompt(user_text, self.system_prompt))
        mark = _unused_character(user_text + (self.system_prompt or ""))
        hidden: list[str] = []

        def hide(match: re.Match[str]) -> str:
            hidden.append(match.group())
            return f"{mark}{len(hidden) - 1}{mark}"

        rendered = self._render_prompt(
            self._names.sub(hide, user_text),
            None if self.system_prompt is None else self._names.sub(hide, self.system_prompt),
        )
        if not hidden:
            ids = self.tokenizer.encode(rendered, add_special_tokens=False, verbose=False)
            # A normaliser can turn harmless text into a special token. The piecewise encoding below prevents this.
            if sum(index in self._special_ids for index in ids) == len(self._control.findall(rendered)):
                return ids
        return self._encode_between_controls(rendered, lambda text: _restore(text, mark, hidden))

    def response_ids(self, solution: str) -> list[int]:
        """Returns the trained tokens: the tokens of the solution, then `end_id`."""
        ids = self.text_ids(solution)
        alternative = None
        if solution.startswith(" ") and self.decode(ids) != solution:
            # The tokenizer took the blank for the one that it adds before every text, so the blank was lost.
            alternative = self.text_ids(f" {solution}")
        elif self.template is None and self._adds_blank:
            # Encoded as the continuation of the prompt, which ends with a line break.
            alternative = self.text_ids(f"\n{solution}")[len(self.text_ids("\n")) :]
        if alternative is not None and self.decode(alternative) == solution:
            ids = alternative
        return [*ids, self.end_id]

    def text_ids(self, text: str) -> list[int]:
        """Returns the ids of plain text. No special token is added, and none is parsed from the text."""
        ids = self._encode_plain(text)
        if self._special_ids.isdisjoint(ids):
            return ids
        # A word-level vocabulary contains special tokens as words. They are split after their first character.
        cuts = [0, *(match.start() + 1 for match in self._names.finditer(text)), len(text)]
        return [index for start, end in pairwise(cuts) for index in self._encode_plain(text[start:end])]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of a response up to its first stop token, without special tokens."""
        response = list(takewhile(lambda index: index not in self.stop_ids, map(int, ids)))
        return self.tokenizer.decode(response, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def marked(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[tuple[str, bool]]:
        """Returns the row as the model sees it, special tokens included, as (text, trained) pieces."""
        pieces = ((list(prompt_ids), False), (list(response_ids), True))
        return [
            (
                self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
                trained,
            )
            for ids, trained in pieces
            if ids
        ]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything that determines the ids: tokenizer, chat template, system prompt and options."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            vocabulary: Any = [self.tokenizer.get_vocab(), self.tokenizer.special_tokens_map]
        else:
            vocabulary = json.loads(backend.to_str())
            # Padding and truncation are left over from the latest call and do not affect these ids.
            vocabulary.update(padding=None, truncation=None)
        content = [vocabulary, self.template, self.system_prompt, self.thinking, self.end_id, self.stop_ids]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _adds_blank(self) -> bool:
        """Whether the tokenizer adds a blank before every text (SentencePiece)."""
        return self.text_ids("\na") != self.text_ids("\n") + self.text_ids("a")

    @cached_property
    def _leading_ids(self) -> list[int]:
        """[BOS] if the tokenizer starts every sequence with it, otherwise []."""
        first = self.tokenizer.encode("a")[:1]
        return first if first == [self.tokenizer.bos_token_id] else []

    def _probe_template(self) -> int | None:
        """Determines where the prompt ends; returns the token that ends an assistant turn."""
        before, answer, after = self._render("question", self.system_prompt, ANSWER).rpartition(ANSWER)
        if not answer:
            raise InputError("the tokenizer's chat template leaves out the assistant's text; change the template")
        generation = self._render("question", self.system_prompt)
        inputs = {"the question": "question", "target.system_prompt": (self.system_prompt or "").strip()}
        drops_input = any(text not in before for text in inputs.values())
        # If both differ in white space only, the generation prompt is used, since the model sees it when sampling.
        self._from_generation_prompt = self.thinking or drops_input or before.rstrip() == generation.rstrip()
        opened = OPENED_THOUGHT.search(generation) if self.thinking else None
        self._opened_thought = opened.group() if opened else ""
        for name, text in inputs.items():
            if text not in (generation if self._from_generation_prompt else before):
                raise InputError(f"the tokenizer's chat template leaves out {name}; change the template or the prompt")
        turn_end = after.lstrip()
        names = sorted(self.tokenizer.added_tokens_encoder, key=len, reverse=True)
        name = next((name for name in names if name.strip() and turn_end.startswith(name)), None)
        return self.tokenizer.eos_token_id if name is None else self.tokenizer.added_tokens_encoder[name]

    def _render_prompt(self, user_text: str, system_prompt: str | None) -> str:
        if self._from_generation_prompt:
            return self._render(user_text, system_prompt).removesuffix(self._opened_thought)
        return self._render(user_text, system_prompt, ANSWER).rpartition(ANSWER)[0]

    def _render(self, user_text: str, system_prompt: str | None, answer: str | None = None) -> str:
        messages = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        messages.append({"role": "user", "content": user_text})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=answer is None,
                enable_thinking=self.thinking,
            )
        except Exception as error:  # a template is untrusted code and may raise any exception
            roles = ", ".join(message["role"] for message in messages)
            hint = "; leave target.system_prompt out if the model takes none" if system_prompt is not None else ""
            raise InputError(f"the tokenizer's chat template refuses the roles {roles}: {error}{hint}") from error

    def _encode_between_controls(self, rendered: str, restore) -> list[int]:
        """Encodes the special tokens of the template as such, and the text between them as plain text.

        Args:
            rendered: the rendered template, with placeholders for special tokens spelled out in the data.
            restore: replaces the placeholders in a text by the original characters.
        """
        ids: list[int] = []
        position = 0
        for match in self._control.finditer(rendered):
            ids += self.text_ids(restore(rendered[position : match.start()]))
            name = self._names.search(match.group())
            assert name is not None  # the other pattern is made of the same names
            ids.append(self.tokenizer.convert_tokens_to_ids(name.group()))
            position = match.end()
        return ids + self.text_ids(restore(rendered[position:]))

    def _encode_plain(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)


def plain_prompt(user_text: str, system_prompt: str | None) -> str:
    """Returns the prompt for a model without a chat template."""
    return f"{user_text}\n" if system_prompt is None else f"{system_prompt}\n{user_text}\n"


def _control_pattern(name: str, token: Any) -> str:
    """Returns a pattern for a special token with the white space that it absorbs (`lstrip`, `rstrip`)."""
    left = r"\s*" if getattr(token, "lstrip", False) else ""
    right = r"\s*" if getattr(token, "rstrip", False) else ""
    return left + re.escape(name) + right


def _unused_character(text: str) -> str:
    used = set(text)
    return next(chr(code) for codes in MARKS for code in codes if chr(code) not in used)


def _restore(text: str, mark: str, hidden: Sequence[str]) -> str:
    return re.sub(f"{mark}(\\d+){mark}", lambda match: hidden[int(match.group(1))], text)
