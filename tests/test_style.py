"""The writing rules of docs/style.md that can be checked as text: its banned phrases occur nowhere."""

import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STYLE = ROOT / "docs" / "style.md"
# Records of past experiments keep their wording. The style page quotes the phrases.
UNCHECKED_PAGES = {"experiments.md", "results.md", "style.md"}
# Word lists that the program matches against texts: data, not prose.
WORDS_AS_DATA = {("src/dartune/text/features.py", "nobody")}
TEXT_TOKENS = {"COMMENT", "STRING", "FSTRING_MIDDLE"}
LINE_BREAK = r"\s+(?:[#>*-]+\s+)?"
"""White space between two words; a comment or list sign may begin the next line."""


def banned_phrases() -> list[str]:
    section = STYLE.read_text(encoding="utf-8").split("\n## Banned phrases\n")[1]
    block = re.search(r"^```text\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [line.strip() for line in block[1].splitlines() if line.strip()]


def pattern(phrases: list[str]) -> re.Pattern[str]:
    """Matches any of the phrases as entire words, across line breaks too."""
    alternatives = (LINE_BREAK.join(map(re.escape, phrase.split())) for phrase in phrases)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(alternatives)})(?![\w-])", re.IGNORECASE)


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Comments and strings with their first line; consecutive comment lines are one text."""
    comments: list[str] = []
    first = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "COMMENT" and comments and token.start[0] == first + len(comments):
            comments.append(token.string)
            continue
        if kind in TEXT_TOKENS:
            if comments:
                yield first, "\n".join(comments)
                comments = []
            if kind == "COMMENT":
                comments, first = [token.string], token.start[0]
            else:
                yield token.start[0], token.string
    if comments:
        yield first, "\n".join(comments)


def notebook_texts(source: str) -> Iterator[tuple[int, str]]:
    """The cells of a notebook; the number is that of the cell."""
    for number, cell in enumerate(json.loads(source)["cells"], start=1):
        yield number, "".join(cell["source"])


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a file, each with the line it starts at."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from python_texts(source)
    elif path.suffix == ".ipynb":
        yield from notebook_texts(source)
    else:
        yield 1, source


def hits(path: Path, banned: re.Pattern[str]) -> list[str]:
    """`file:line: phrase` for every banned phrase in a file."""
    place = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    lines = []
    for first, text in texts(path):
        for match in banned.finditer(text):
            phrase = re.sub(LINE_BREAK, " ", match[0]).lower()
            if (place, phrase) not in WORDS_AS_DATA:
                lines.append(f"{place}:{first + text.count(chr(10), 0, match.start())}: {phrase!r}")
    return lines


def checked_files() -> dict[str, list[Path]]:
    """Files by the group that is tested together."""
    return {
        "src": sorted((ROOT / "src").rglob("*.py")),
        "docs": [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in UNCHECKED_PAGES],
        "README": [ROOT / "README.md"],
        "CONTRIBUTING": [ROOT / "CONTRIBUTING.md"],
        "recipes": sorted((ROOT / "recipes").glob("*.yaml")),
        "examples": sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb", ".sh")),
    }


@pytest.mark.parametrize("group", checked_files())
def test_banned_phrases_do_not_occur(group):
    files = checked_files()[group]
    banned = pattern(banned_phrases())
    assert files
    lines = [hit for path in files for hit in hits(path, banned)]
    assert not lines, "\n".join(["phrases that docs/style.md bans:", *lines])


def test_banned_phrases_are_distinct_and_in_lower_case():
    phrases = banned_phrases()
    assert len(phrases) > 30 and len(set(phrases)) == len(phrases)
    assert all(phrase == phrase.lower() for phrase in phrases)


def test_a_hit_names_file_line_and_phrase(tmp_path):
    banned = pattern(["has no say", "nobody"])
    module = tmp_path / "module.py"
    module.write_text('"""First line.\n\nNobody knows."""\n\nnobody = "nobody-like"  # nobodys\n')
    assert hits(module, banned) == ["module.py:3: 'nobody'"]
    module.write_text("# The sample has\n# no say here.\n")
    assert hits(module, banned) == ["module.py:1: 'has no say'"]
    page = tmp_path / "page.md"
    page.write_text("A row\n\n* has\n  no say, and nobodys\n")
    assert hits(page, banned) == ["page.md:3: 'has no say'"]
