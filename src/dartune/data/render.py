"""Text to token ids and back: the only place where a chat template is applied.

A row is trained as `prompt_ids + response_ids`, and the loss is on `response_ids` alone. Text from the data
is always plain text: a special token spelled out in it does not become that token, and Jinja in it is not
evaluated.
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

# Some templates print today's date; a fixed one keeps prompts equal between a run and its resumption.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
# Private-use characters: what the answer is in a trial rendering, and the range markers are taken from.
ANSWER = "\ue000answer\ue000"
END_NAMES = re.compile(
    r"</s>|<(eos|end_of_turn|turn\|)>|<\|(endoftext|im_end|eot_id|eom_id|end_of_text|eot|return|eos|endofturn)\|>"
    r"|<｜end▁of▁sentence｜>|<\|END_OF_TURN_TOKEN\|>|\[EOS\]"
)
"""Special tokens that end a text or a turn, by the names that published tokenizers use."""
OPENED_THOUGHT = re.compile(r"<think>\s*\Z")
MARKS = (range(0xE001, 0xF900), range(0xF0000, 0xFFFFE))


class Renderer:
    """Renders questions and solutions for one tokenizer.

    The prompt ends exactly where the template puts the assistant's text. For most templates that is what
    `add_generation_prompt=True` gives. Where a template writes more in front of the text (Qwen3 adds an
    empty `<think>` block), that is part of the prompt, so that prompt + response is how the template writes
    the whole conversation. Where it forgets the system prompt once an assistant has spoken (Mistral), the prompt is
    the one that generation uses.

    A response ends with `end_id` in training. A sample ends with any of `stop_ids`, whichever comes first: models
    also end with the other end tokens that they know.

    Args:
        tokenizer: a Hugging Face tokenizer, with or without a chat template.
        system_prompt: put before every question.
        thinking: the solutions carry their own `<think>` block; the prompt is the plain generation prompt, up to a
            `<think>` that it opens (Qwen3-Thinking, DeepSeek-R1). The template is given it as `enable_thinking`.
        end_ids: more tokens that end a sample: those of the model's generation config.

    Raises:
        InputError: no token can end a response, or the template fails or leaves out the text it is given.
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
        # As the tokenizer sees them in a template: some special tokens swallow the white space around them.
        self._control = re.compile("|".join(_with_spaces(name, special.get(name)) for name in names) or r"(?!)")
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
        known = [end_id, tokenizer.eos_token_id, *end_ids, *sorted(ends)]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(index for index in known if index is not None))

    def prompt_ids(self, user_text: str) -> list[int]:
        """Ids of everything before the response; none of them is trained."""
        if self.template is None:
            return self._leading_ids + self.text_ids(plain_prompt(user_text, self.system_prompt))
        mark = _unused_character(user_text + (self.system_prompt or ""))
        found: list[str] = []

        def hide(match: re.Match[str]) -> str:
            found.append(match.group())
            return f"{mark}{len(found) - 1}{mark}"

        rendered = self._render_prompt(
            self._names.sub(hide, user_text),
            None if self.system_prompt is None else self._names.sub(hide, self.system_prompt),
        )
        if not found:
            ids = self.tokenizer.encode(rendered, add_special_tokens=False, verbose=False)
            # A normaliser can turn harmless text into a special token: then take the careful way below.
            if sum(index in self._special_ids for index in ids) == len(self._control.findall(rendered)):
                return ids
        return self._encode_between_controls(rendered, lambda text: _restore(text, mark, found))

    def response_ids(self, solution: str) -> list[int]:
        """The trained tokens: the solution's own, then `end_id`."""
        ids = self.text_ids(solution)
        other = None
        if solution.startswith(" ") and self.decode(ids) != solution:
            other = self.text_ids(f" {solution}")  # the blank was taken for the one that is put in front of every text
        elif self.template is None and self._blank_first:
            # As it reads on after the prompt's line break.
            other = self.text_ids(f"\n{solution}")[len(self.text_ids("\n")) :]
        if other is not None and self.decode(other) == solution:
            ids = other
        return [*ids, self.end_id]

    def text_ids(self, text: str) -> list[int]:
        """Ids of plain text: no special token is added, and none is read from the text."""
        ids = self._encode_plain(text)
        if self._special_ids.isdisjoint(ids):
            return ids
        # A word-level vocabulary lists special tokens among its words: cut them after their first character.
        cuts = [0, *(match.start() + 1 for match in self._names.finditer(text)), len(text)]
        return [index for start, end in pairwise(cuts) for index in self._encode_plain(text[start:end])]

    def decode(self, ids: Sequence[int]) -> str:
        """Response ids to text, up to the first token that ends a sample, without special tokens."""
        kept = list(takewhile(lambda index: index not in self.stop_ids, map(int, ids)))
        return self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def marked(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[tuple[str, bool]]:
        """The row as the model sees it, special tokens included, in pieces of (text, trained)."""
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
        """SHA-256 of all that decides the ids: tokenizer, chat template, system prompt."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            vocabulary: Any = [self.tokenizer.get_vocab(), self.tokenizer.special_tokens_map]
        else:
            vocabulary = json.loads(backend.to_str())
            # Padding and truncation are left over from the latest call and do not concern these ids.
            vocabulary.update(padding=None, truncation=None)
        content = [vocabulary, self.template, self.system_prompt, self.thinking, self.end_id, self.stop_ids]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _blank_first(self) -> bool:
        """Whether the tokenizer puts a blank in front of every text (SentencePiece)."""
        return self.text_ids("\na") != self.text_ids("\n") + self.text_ids("a")

    @cached_property
    def _leading_ids(self) -> list[int]:
        """[BOS] where the tokenizer itself starts every sequence with it."""
        first = self.tokenizer.encode("a")[:1]
        return first if first == [self.tokenizer.bos_token_id] else []

    def _probe_template(self) -> int | None:
        """Decides where the prompt ends and returns the token that ends an assistant turn."""
        before, found, after = self._render("question", self.system_prompt, ANSWER).rpartition(ANSWER)
        if not found:
            raise InputError("the tokenizer's chat template leaves out the assistant's text; change the template")
        generation = self._render("question", self.system_prompt)
        given = {"the question": "question", "target.system_prompt": (self.system_prompt or "").strip()}
        forgets = any(text not in before for text in given.values())
        # White space alone is no reason to leave the prompt that generation uses.
        self._from_generation_prompt = self.thinking or forgets or before.rstrip() == generation.rstrip()
        opened = OPENED_THOUGHT.search(generation) if self.thinking else None
        self._opened = opened.group() if opened else ""
        for what, text in given.items():
            if text not in (generation if self._from_generation_prompt else before):
                raise InputError(f"the tokenizer's chat template leaves out {what}; change the template or the prompt")
        turn_end = after.lstrip()
        names = sorted(self.tokenizer.added_tokens_encoder, key=len, reverse=True)
        name = next((name for name in names if name.strip() and turn_end.startswith(name)), None)
        return self.tokenizer.eos_token_id if name is None else self.tokenizer.added_tokens_encoder[name]

    def _render_prompt(self, user_text: str, system_prompt: str | None) -> str:
        if self._from_generation_prompt:
            return self._render(user_text, system_prompt).removesuffix(self._opened)
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
        except Exception as error:  # a template is somebody's program: it may raise anything
            roles = ", ".join(message["role"] for message in messages)
            hint = "; leave target.system_prompt out if the model takes none" if system_prompt is not None else ""
            raise InputError(f"the tokenizer's chat template refuses the roles {roles}: {error}{hint}") from error

    def _encode_between_controls(self, rendered: str, restore) -> list[int]:
        """Encodes the template's own special tokens as such and all text between them as plain text."""
        ids: list[int] = []
        position = 0
        for match in self._control.finditer(rendered):
            ids += self.text_ids(restore(rendered[position : match.start()]))
            ids.append(self.tokenizer.convert_tokens_to_ids(self._names.search(match.group()).group()))
            position = match.end()
        return ids + self.text_ids(restore(rendered[position:]))

    def _encode_plain(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)


def plain_prompt(user_text: str, system_prompt: str | None) -> str:
    """The prompt of a model without a chat template."""
    return f"{user_text}\n" if system_prompt is None else f"{system_prompt}\n{user_text}\n"


def _with_spaces(name: str, token: Any) -> str:
    left = r"\s*" if getattr(token, "lstrip", False) else ""
    right = r"\s*" if getattr(token, "rstrip", False) else ""
    return left + re.escape(name) + right


def _unused_character(text: str) -> str:
    used = set(text)
    return next(chr(code) for codes in MARKS for code in codes if chr(code) not in used)


def _restore(text: str, mark: str, found: Sequence[str]) -> str:
    return re.sub(f"{mark}(\\d+){mark}", lambda match: found[int(match.group(1))], text)
