"""The language of a row, and the way numbers are written in it.

The gates read English. In other languages numbers, signs and stated answers are read as well; the words of a step are
counted there, not understood.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache

from dartune.rewards.text import numbers

ENGLISH = "en"
COMMA_LANGUAGES = frozenset(
    """bg bs ca cs da de el es et eu fi fr gl hr hu id it lt lv mk nb nl nn no pl pt ro ru sk sl sq sr sv tr uk
    vi""".split()
)
"""Languages with a decimal comma (`3,50`); in some countries that speak them it is a point, see `writes_commas`."""
CAPITALISED_NOUNS = frozenset(("de", "lb"))
"""Languages in which a capital letter does not tell a name."""
WITHOUT_SPACES = frozenset(("ja", "zh"))
LIKELY = 0.1
"""A text with at least this probability of a language may be in it."""
FEWEST_LETTERS = 40
"""Shorter texts are taken for English: they are formulas mostly."""
READ = 2000
"""Letters by which a language is identified."""
REMEMBERED = 4096
CJK = "\u3040-\u30ff\u3400-\u9fff"
"""Kana and Chinese characters, as a range of a regular expression."""
_LETTERS = re.compile(r"[^\W\d_]+")
_LATEX_COMMAND = re.compile(r"\\[A-Za-z]+")
_COMMA_DECIMAL = re.compile(r"(?<![\w.,(])\d+(?:,|\{,\})\d{1,2}(?![\d,])")
_POINT_DECIMAL = re.compile(r"(?<![\w.,])\d+\.\d{1,2}(?![\d.])")
_GROUPED = re.compile(r"(?<![\w.,])\d{1,3}(?:(?:\.|\\?[ \u00a0\u2009\u202f'’]|\\,)\d{3})+(?![\w]|[.,]?\d)")
_DECIMAL = re.compile(r"(?<![\w.,])(\d+)(?:,|\{,\})(\d+)(?![\w,]|\.\d)")
_GROUPED_DECIMAL = re.compile(r"(?<![\w.,])(\d{1,3}(?:[. \u00a0\u2009\u202f]\d{3})+),(\d+)(?![\w,])")
_BESIDE_A_DIGIT = re.compile(rf"(?<=[{CJK}])(?=-?\d)|(?<=\d)(?=[{CJK}])")
_DIVISION = re.compile(r"(?<=[\d€)%])[ \u00a0]:[ \u00a0](?=[\d(])")


def prose(text: str) -> str:
    """The words of a text without numbers, marks and LaTeX commands."""
    return " ".join(_LETTERS.findall(_LATEX_COMMAND.sub(" ", text)))


@lru_cache(maxsize=REMEMBERED)
def language_of(text: str) -> str:
    """The likeliest of 97 languages (py3langid) by ISO 639-1 code; `en` where a text may be English or is too short."""
    told = prose(text)
    if len(told) < FEWEST_LETTERS or probability(told, ENGLISH) >= LIKELY:
        return ENGLISH
    return identify(told)


def identify(text: str) -> str:
    """The likeliest language of a text."""
    return _identifier().classify(text[:READ])[0]


def probability(text: str, language: str) -> float:
    """How likely a text is in a language (0..1); 1 for a language that is not known."""
    return dict(_identifier().rank(text[:READ])).get(language, 1.0)


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def writes_commas(text: str) -> bool:
    """Whether a text, a question with its solution, has decimal commas: by its language, unless it shows points."""
    if language_of(text) not in COMMA_LANGUAGES:
        return False
    return len(_COMMA_DECIMAL.findall(text)) >= len(_POINT_DECIMAL.findall(text))


def with_points(text: str) -> str:
    """A text that `writes_commas` with its numbers as English has them: `1.250,50` and `1 250` -> `1250.50`, `1250`.

    The colon of a division (`12 : 4`) becomes `÷`.
    """
    text = _GROUPED_DECIMAL.sub(lambda number: f"{_digits(number[1])}.{number[2]}", text)
    text = _DECIMAL.sub(r"\1.\2", _GROUPED.sub(lambda number: _digits(number[0]), text))
    return _DIVISION.sub(" ÷ ", text)


def with_spaces(text: str) -> str:
    """A text in a script without spaces, with a space between its characters and digits: `有280棵` -> `有 280 棵`."""
    return _BESIDE_A_DIGIT.sub(" ", text)


def reader(question: str, solution: str) -> Callable[[str], str]:
    """How the texts of a row are read: numbers `with_points` or `with_spaces` where its language asks for it."""
    text = f"{question}\n{solution}"
    if language_of(text) in WITHOUT_SPACES:
        return with_spaces
    return with_points if writes_commas(text) else str


def gold_with_points(answer: str, solution: str) -> str:
    """The gold answer of a row with commas: `9.120` is 9120 if the solution has that number, else as it is written."""
    plain, known = with_points(answer), numbers(with_points(solution))
    there = numbers(plain)
    return plain if "," in answer or (there and all(number in known for number in there)) else answer


def _digits(number: str) -> str:
    return re.sub(r"\D", "", number)
