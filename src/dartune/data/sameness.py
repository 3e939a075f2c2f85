"""When two questions are the same to a reader: but for case, spacing and punctuation."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation

_WORD = r"[^\W\d_]"
_INSIDE_WORDS = re.compile(rf"(?<={_WORD}{{2}})['’](?={_WORD})")
_HYPHEN = re.compile(rf"(?<={_WORD}{{2}})[-‐‑–—](?={_WORD}{{2}})|\s[-–—]{{1,2}}\s(?={_WORD}{{2}})")
_REMARK = re.compile(rf"(?<!\S)\(((?:{_WORD}|[\s,'’-])*)\)")
_NUMBER_POINT = re.compile(r"(?<=\d)[.,:](?=\d)|[.](?=\d)")
_FACTORIAL = re.compile(r"(?<=[\d)])!")
_PUNCTUATION = re.compile(r"[.,;:!?…\"“”„‟«»‹›‘‚`´¿¡。,、;:?!「」『』·]|(?<!\w)['’]|(?<=\w{2})['’](?!\w|\()")
_SIGN = re.compile(rf"(?:(?<=\d)(?={_WORD})|(?<={_WORD})(?=\d)|\s*([^\w\s\ue000-\ue002])\s*)")
_KEPT = {"\ue000": ".", "\ue001": ",", "\ue002": ":", "\ue003": "!"}
"""Points of numbers, and factorials, while punctuation is taken out."""


def question_key(text: str) -> str:
    """A text that equal questions share. Signs with a meaning stay: `2-3`, `2+3`, `2.5` and `5!` differ."""
    text = unicodedata.normalize("NFC", text).casefold()
    text = _INSIDE_WORDS.sub("", text)
    text = _REMARK.sub(r" \1 ", _HYPHEN.sub(" ", text))
    held = {value: key for key, value in _KEPT.items()}
    text = _NUMBER_POINT.sub(lambda match: held[match[0]], text)
    text = _FACTORIAL.sub(held["!"], text) if not text.rstrip("\"”’'").endswith("!") else text
    text = _PUNCTUATION.sub(" ", text)
    text = _SIGN.sub(lambda match: f" {match[1] or ''} ", text)
    for key, value in _KEPT.items():
        text = text.replace(key, value)
    return " ".join(text.split())


def answer_key(text: str) -> str:
    """A text that equal answers share: numbers by value, others but for case and spacing."""
    plain = re.sub(r"^\\boxed\{(.*)\}$", r"\1", text.strip().strip("$").strip())
    try:
        number = Decimal(plain.replace(",", ""))
    except InvalidOperation:
        return " ".join(plain.casefold().split()).rstrip(".")
    return str(number.normalize()) if number.is_finite() else plain.casefold()
