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
_QUOTE = re.compile(r"(?<!\w)['’]|(?<=\w{2})['’](?!\w|\()")
_PUNCTUATION = str.maketrans(dict.fromkeys('.,;:!?…"“”„‟«»‹›‘‚`´¿¡。,、;:?!「」『』·', " "))
_HELD = {".": "\ue000", ",": "\ue001", ":": "\ue002", "!": "\ue003"}
"""Points of numbers, and factorials, while punctuation is taken out."""
_TOKEN = re.compile(rf"[\d\ue000-\ue003]+|{_WORD}+|[^\w\s]|_")


def question_key(text: str) -> str:
    """A text that equal questions share. Signs with a meaning stay: `2-3`, `2+3`, `2.5` and `5!` differ."""
    text = (text if text.isascii() else unicodedata.normalize("NFC", text)).casefold()
    if "'" in text or "’" in text:
        text = _QUOTE.sub(" ", _INSIDE_WORDS.sub("", text))
    if any(dash in text for dash in "-‐‑–—"):
        text = _HYPHEN.sub(" ", text)
    if "(" in text:
        text = _REMARK.sub(r" \1 ", text)
    text = _NUMBER_POINT.sub(lambda match: _HELD[match[0]], text)
    if "!" in text and not text.rstrip("\"”’' ").endswith("!"):
        text = _FACTORIAL.sub(_HELD["!"], text)
    return " ".join(_TOKEN.findall(text.translate(_PUNCTUATION)))


def answer_key(text: str) -> str:
    """A text that equal answers share: numbers by value, others but for case and spacing."""
    plain = re.sub(r"^\\boxed\{(.*)\}$", r"\1", text.strip().strip("$").strip())
    try:
        number = Decimal(plain.replace(",", ""))
    except InvalidOperation:
        return " ".join(plain.casefold().split()).rstrip(".")
    return str(number.normalize()) if number.is_finite() else plain.casefold()
