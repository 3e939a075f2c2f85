"""Documentation: all pages are in the navigation, links resolve, named files exist, generated pages are current."""

import ast
import importlib.util
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)|(?:src|href)=\"([^\"]+)\"")
BLOCK = re.compile(r"^([*-] |\d+\. |\|)")


def name(path: Path) -> str:
    return path.name


def prose(path: Path) -> str:
    """The text without fenced code."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def links(path: Path) -> list[str]:
    """Link targets of a document, without web addresses."""
    targets = [first or second for first, second in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(path)))]
    return [link for link in targets if not re.match(r"[a-z]+:", link)]


def headings(path: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub generates them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def listed(entries) -> list[str]:
    """The files of a navigation, nested entries included."""
    if isinstance(entries, str):
        return [entries]
    inner = entries.values() if isinstance(entries, dict) else entries
    return [file for entry in inner for file in listed(entry)]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation_once():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(listed(site["nav"])) == [path.name for path in PAGES]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_resolve_to_files_and_headings(path):
    broken = []
    for link in links(path):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
        if path.parent == DOCS and not target.is_relative_to(DOCS):
            broken.append(f"{link} leaves docs/, which the site does not contain: name the file in backquotes")
    assert not broken


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_lists_and_tables_begin_after_an_empty_line(path):
    """The site's Markdown needs the empty line, GitHub does not."""
    lines = prose(path).splitlines()
    without_empty_line = [
        line
        for before, line in pairwise(lines)
        if BLOCK.match(line) and before.strip() and not BLOCK.match(before) and not before.startswith("  ")
    ]
    assert not without_empty_line


def test_the_reference_pages_match_the_code(reference):
    for path, text in reference.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: python docs/reference.py"


def test_the_reference_has_every_command_and_every_key(reference):
    from dartune.config.schema import Config, Section

    commands, settings = reference.commands(), reference.settings()
    for verb in ("run", "check", "check-reward", "demo", "status", "report", "compare", "show", "lab build"):
        assert re.search(rf"^##+ dartune {verb}$", commands, re.MULTILINE)
    for key, field in Config.model_fields.items():
        inner = field.annotation
        section = isinstance(inner, type) and issubclass(inner, Section)
        for full in [f"{key}.{part}" for part in inner.model_fields] if section else [key]:
            assert settings.count(f"| `{full}` |") == 1
    assert "| `mapper.steps` | `100` | whole number, at least 0 |" in settings
    assert '| `mapper.objective` | `"grpo"` | `grpo` `vargrad` |' in settings
    assert "above 0, at most 1" in settings and "lab:&lt;expert>" in settings


def string_constants() -> str:
    """All string constants of the package's source, without interpolated values, one per line."""
    pieces = []
    for path in (ROOT / "src" / "dartune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.append(node.value)
    return "\n".join(pieces)


def test_messages_in_troubleshooting_exist_in_the_code():
    """A code span at the beginning of a row is a message; `...` stands for variable or omitted parts."""
    text, messages = string_constants(), []
    for section in prose(DOCS / "troubleshooting.md").split("\n## ")[1:]:
        rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) if "| message |" in section else []
        messages += [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    pieces = [piece.strip() for message in messages for piece in message.split("...")]
    pieces = [piece for piece in pieces if len(piece) > 3]
    assert len(pieces) > 40
    assert not [piece for piece in pieces if piece not in text]


def test_lock_files_agree():
    """The lock files are installed into one environment."""
    pins: dict[str, set[str]] = {}
    for path in ROOT.glob("requirements*.lock"):
        for package, version in re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            pins.setdefault(re.sub(r"[-_.]+", "-", package).lower(), set()).add(version)
    assert len(pins) > 80 and "mkdocs" in pins
    assert not {package: versions for package, versions in pins.items() if len(versions) > 1}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_files_and_functions_named_in_backquotes_exist(path):
    """As in `stages/mapper_prompt.py: mapper_prompt`; paths start at the root, the package, or one of its folders."""
    missing = []
    for file, function in re.findall(r"`([\w./-]+\.(?:py|ipynb|yaml|lock|j2))(?:: (\w+))?`", prose(path)):
        folders = [ROOT, ROOT / "src" / "dartune", *(ROOT / "src" / "dartune").iterdir()]
        paths = [folder / file for folder in folders if (folder / file).is_file()]
        definition = re.compile(rf"^(def|class) {function}\b", re.MULTILINE)
        exists = any(definition.search(path.read_text("utf-8")) for path in paths) if function else paths
        if file != "config.resolved.yaml" and not exists:
            missing.append(f"{file}: {function}")
    assert not missing
