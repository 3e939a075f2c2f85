"""The shape of the code: imports go one way, heavy libraries load late, files and functions stay short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "dartune"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Each may import those before it, and its own like. A folder stands for all its modules.
ORDER = (
    "__init__",
    "errors",
    "distributed",
    "run",
    "config",
    "text",
    "sandbox",
    "data",
    "models",
    "engines",
    "answers",
    "gates",
    "hacks",
    "rewards",
    "train",
    "lab",
    "stages",
    "trained_mapper",
    "report",
    "planning",
    "diagnosis",
    "red_team",
    "publish",
    "scoring",
    "check",
    "pipeline",
    "command_line",
    "cli",
    "__main__",
)
ONLY_USERS_OF_THE_LAB = ("lab", "stages", "red_team", "publish", "scoring", "check", "pipeline", "cli")
HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "scipy", "matplotlib", "math_verify"}
MAY_BE_HEAVY = ("models", "engines", "train", "rewards/alignment.py", "rewards/reward.py", "stages")
LONGEST_FILE, LONGEST_FUNCTION = 500, 70
MOST_TOP_MODULES = 8


def part(path: Path) -> str:
    """The entry of ORDER a module belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(node: ast.AST) -> list[str]:
    """Dotted names that an import statement brings in, `from a import b` as a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def our_parts(path: Path) -> Iterator[tuple[str, int]]:
    """Entries of ORDER that a module imports anywhere, with the line."""
    for node in ast.walk(tree(path)):
        for name in imported(node):
            words = name.split(".")
            if words[0] == "dartune" and len(words) > 1:
                yield (words[1] if words[1] in ORDER else "__init__"), node.lineno


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when a module is imported: not inside functions, nor for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import(child)


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_every_module_has_a_place_in_the_order():
    assert {part(path) for path in MODULES} <= set(ORDER)


def test_the_top_level_is_small_and_every_folder_states_what_belongs_there():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_TOP_MODULES
    folders = {path.parent for path in MODULES if path.parent != PACKAGE}
    assert all(ast.get_docstring(tree(folder / "__init__.py")) for folder in folders)


# dartune/__init__.py names the public functions for type checkers; at run time it imports them on first access.
@pytest.mark.parametrize("path", [path for path in MODULES if path != PACKAGE / "__init__.py"], ids=relative)
def test_imports_go_one_way(path):
    here = ORDER.index(part(path))
    late = [f"line {line}: {name}" for name, line in our_parts(path) if ORDER.index(name) > here]

    assert not late, f"{relative(path)} imports what comes after it: {late}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_the_lab_is_used_by_the_pipeline_only(path):
    if part(path) not in ONLY_USERS_OF_THE_LAB:
        assert "lab" not in [name for name, _ in our_parts(path)]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_heavy_libraries_load_when_they_are_needed(path):
    if relative(path).startswith(MAY_BE_HEAVY):
        return
    names = [name for node in at_import(tree(path)) for name in imported(node)]
    heavy = [name for name in names if name.split(".")[0] in HEAVY]
    assert not heavy, f"{relative(path)} imports {heavy} at its top; import inside the functions that need it"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_files_and_functions_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < LONGEST_FILE
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert not {name: lines for name, lines in lengths.items() if lines >= LONGEST_FUNCTION}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_says_its_idea(path):
    assert not tree(path).body or ast.get_docstring(tree(path))


def test_only_render_calls_chat_templates():
    callers = [
        relative(path)
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr == "apply_chat_template"
    ]
    assert set(callers) == {"data/chat_template.py"}


def test_every_config_key_is_read_somewhere():
    from dartune.config.schema import Config, Section

    read = {
        node.attr
        for path in MODULES
        if path != PACKAGE / "config" / "schema.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
    }

    def keys(section: type[Section]) -> Iterator[str]:
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from keys(inner)
            else:
                yield name

    assert set(keys(Config)) <= read
