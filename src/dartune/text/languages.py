"""Identifies the language of a row and converts its numbers to English notation.

The gates interpret English words. In other languages they read numbers, signs and stated answers, and only count the
words of a step.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache

from dartune.text.features import numbers

ENGLISH = "en"
COMMA_LANGUAGES = frozenset(
    """bg bs ca cs da de el es et eu fi fr gl hr hu id it lt lv mk nb nl nn no pl pt ro ru sk sl sq sr sv tr uk
    vi""".split()
)
"""Languages with a decimal comma (`3,50`). Some of their countries write a decimal point, see `writes_commas`."""
CAPITALISED_NOUNS = frozenset(("de", "lb"))
"""Languages that capitalise all nouns, so that a capital letter does not identify a name."""
WITHOUT_SPACES = frozenset(("ja", "zh"))
"""Languages that write no spaces between words."""
LIKELY = 0.1
"""Threshold: a text may be in a language if its probability is at least this."""
FEWEST_LETTERS = 40
"""Texts with fewer letters count as English, because they are mostly formulas."""
READ = 2000
"""Characters from which a language is identified."""
CACHE_SIZE = 4096
"""Texts whose language is cached."""
CJK = "\u3040-\u30ff\u3400-\u9fff"
"""Kana and Chinese characters, as ranges for a character class of a regular expression."""
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
    """Return the words of a text without numbers, punctuation and LaTeX commands."""
    return " ".join(_LETTERS.findall(_LATEX_COMMAND.sub(" ", text)))


@lru_cache(maxsize=CACHE_SIZE)
def language_of(text: str) -> str:
    """Return the ISO 639-1 code of a text's language.

    It is `en` where the text may be English or is too short, else the most likely of 97 languages (py3langid).
    """
    letters = prose(text)
    if len(letters) < FEWEST_LETTERS or probability(letters, ENGLISH) >= LIKELY:
        return ENGLISH
    return identify(letters)


def identify(text: str) -> str:
    """Return the most likely language of a text."""
    return _identifier().classify(text[:READ])[0]


def probability(text: str, language: str) -> float:
    """Return the probability (0..1) that a text is in a language; 1 for a language that the model does not know."""
    return dict(_identifier().rank(text[:READ])).get(language, 1.0)


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def writes_commas(text: str) -> bool:
    """Return whether a question with its solution uses decimal commas.

    It does if its language does, unless it contains more decimal points than decimal commas.
    """
    if language_of(text) not in COMMA_LANGUAGES:
        return False
    return len(_COMMA_DECIMAL.findall(text)) >= len(_POINT_DECIMAL.findall(text))


def with_points(text: str) -> str:
    """Convert the numbers of a text that `writes_commas` to English notation: `1.250,50` -> `1250.50`.

    The colon of a division (`12 : 4`) becomes `÷`.
    """
    text = _GROUPED_DECIMAL.sub(lambda number: f"{_digits(number[1])}.{number[2]}", text)
    text = _DECIMAL.sub(r"\1.\2", _GROUPED.sub(lambda number: _digits(number[0]), text))
    return _DIVISION.sub(" ÷ ", text)


def with_spaces(text: str) -> str:
    """Insert spaces between Chinese or Japanese characters and digits: `有280棵` -> `有 280 棵`."""
    return _BESIDE_A_DIGIT.sub(" ", text)


def number_normaliser(question: str, solution: str) -> Callable[[str], str]:
    """Return the function that normalises a row's texts: `with_points`, `with_spaces` or, for English, `str`."""
    text = f"{question}\n{solution}"
    if language_of(text) in WITHOUT_SPACES:
        return with_spaces
    return with_points if writes_commas(text) else str


def gold_with_points(answer: str, solution: str) -> str:
    """Convert the gold answer of a row that `writes_commas` to English notation.

    A point is ambiguous: `9.120` becomes 9120 if the solution contains that number, and stays as written otherwise.
    """
    converted, solution_numbers = with_points(answer), numbers(with_points(solution))
    answer_numbers = numbers(converted)
    grouped = bool(answer_numbers) and all(number in solution_numbers for number in answer_numbers)
    return converted if "," in answer or grouped else answer


def _digits(number: str) -> str:
    return re.sub(r"\D", "", number)
