"""Normalised keys of questions and answers: texts that differ only in form have the same key.

Form is case, spacing, punctuation and emphasis. The split uses the keys to keep near-duplicates of test questions out
of the training rows. Signs that may change the meaning are preserved.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation

_WORD = r"[^\W\d_]"
_INSIDE_WORDS = re.compile(rf"(?<={_WORD}{{2}})['’](?={_WORD})")
_FUNCTIONS = "a?(?:sin|cos|tan|cot|sec|csc)h?|arc[a-z]+|log|exp|max|min|sqrt|lim|det|gcd|lcm|abs|mod|ceil|floor"
_HYPHEN = re.compile(
    rf"(?<={_WORD}{{2}})[-‐‑–—](?={_WORD}{{2}})|\s[-–—]{{1,2}}\s(?={_WORD}{{2}})"
    rf"|(?<=\d)[-‐‑](?!(?:{_FUNCTIONS})(?!{_WORD}))(?={_WORD}{{3}})"
)
"""Hyphens inside words: `well-known`, `5-year-old`, but not the minus sign in `5-sin x`."""
_REMARK = re.compile(rf"(?<!\S)\(((?:{_WORD}|[\s,'’-])*)\)|(?<!\S)\[((?:{_WORD}|[\s,'’-])*)\]")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)")
_NUMBER_POINT = re.compile(r"(?<=\d)[.,:](?=\d)|[.](?=\d)")
_DOTTED = re.compile(rf"(?<!{_WORD})(?:{_WORD}\.){{2,}}{_WORD}?(?!\w)")
"""Abbreviations with a point after each letter: `p.m.`, `U.S.A.`."""
_FACTORIAL = re.compile(r"(?<=[\d)])!")
_QUOTE = re.compile(r"(?<!\w)['’]|(?<=\w{2})['’](?!\w|\()")
_EMPHASIS = re.compile(rf"(?<![\w*])(\*{{1,3}})(?={_WORD})([^*\n]*\w)\1(?![\w*])|(?<!\w)(_{{1,3}})({_WORD}+)\3(?!\w)")
"""Markdown emphasis: `*b*`, `**b**` and `_b_`, but not `2 * b * c` and `a_b`."""
_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$(?=\S)([^$\n]*?)(?<=\S)\$(?!\d)|\\([()\[\]])")
"""Delimiters of a formula. `$5 and $6` are amounts and not a formula."""
_SCRIPTS = re.compile(r"[\u00b2\u00b3\u00b9\u2070-\u209c]+")
"""Superscript and subscript digits and letters."""
# Punctuation outside ASCII is written as escapes, so that no editor replaces it by ASCII characters.
_PUNCTUATION = str.maketrans(
    dict.fromkeys(
        '.,;:!?"`\u2026\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u2018\u201a\u00b4\u00bf\u00a1\u00b7'
        "\u3001\u3002\uff0c\uff0e\uff1a\uff1b\uff01\uff1f\u300c\u300d\u300e\u300f\u300a\u300b\u3008\u3009"
        "\u060c\u061b\u061f\u0964\u0965",
        " ",
    )
)
_VARIANTS = str.maketrans({"\u2212": "-", "\u2010": "-", "\u2011": "-", "\u00b4": " ", "\ufe0f": None})
"""The minus sign and other hyphens become a hyphen. A separate acute accent is used as a quotation mark."""
_PLACEHOLDERS = {".": "\ue000", ",": "\ue001", ":": "\ue002", "!": "\ue003"}
"""Placeholders for signs inside numbers and for factorials while punctuation is removed."""
_TOKEN = re.compile(rf"[\d\ue000-\ue003]+|[\u3040-\u30ff\u3400-\u9fff]|{_WORD}+|[^\w\s]|_")


def question_key(text: str) -> str:
    """Returns the key of a question. Signs with a meaning are preserved: `2-3`, `2+3`, `2.5` and `5!` differ."""
    text = (text if text.isascii() else _to_ascii(text)).casefold()
    if any(mark in text for mark in "$\\"):
        text = _FORMULA.sub(lambda match: f" {match[1] or match[2] or ''} ", text)
    if any(mark in text for mark in "*_"):
        text = _EMPHASIS.sub(lambda match: match[2] or match[4], text)
    if "'" in text or "’" in text:
        text = _QUOTE.sub(" ", _INSIDE_WORDS.sub("", text))
    if any(dash in text for dash in "-‐‑–—"):
        text = _HYPHEN.sub(" ", text)
    if "(" in text or "[" in text:
        text = _REMARK.sub(lambda match: f" {match[1] or match[2] or ''} ", text)
    if "." in text:
        text = _DOTTED.sub(lambda match: match[0].replace(".", "") + " ", text)
    if "," in text:
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _NUMBER_POINT.sub(lambda match: _PLACEHOLDERS[match[0]], text)
    if "!" in text and not text.rstrip("\"”’' ").endswith("!"):
        text = _FACTORIAL.sub(_PLACEHOLDERS["!"], text)
    return " ".join(_TOKEN.findall(text.translate(_PUNCTUATION)))


def _to_ascii(text: str) -> str:
    """Returns the text with full-width characters as ASCII and without invisible characters."""
    text = "".join(char for char in text.translate(_VARIANTS) if unicodedata.category(char) != "Cf")
    # Superscripts are marked first, because NFKC would turn x squared into `x2`.
    text = _SCRIPTS.sub(lambda match: ("_" if "\u2080" <= match[0][0] <= "\u209c" else "^") + match[0], text)
    return unicodedata.normalize("NFKC", text)


def answer_key(text: str) -> str:
    """Returns the key of an answer: the value of a number, or other text without case and extra spacing."""
    plain = re.sub(r"^\\boxed\{(.*)\}$", r"\1", text.strip().strip("$").strip())
    try:
        number = Decimal(plain.replace(",", ""))
    except InvalidOperation:
        return " ".join(plain.casefold().split()).rstrip(".")
    return str(number.normalize()) if number.is_finite() else plain.casefold()
