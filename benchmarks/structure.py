"""Measures the structure of a source tree: size, configuration keys, untyped dicts, comments, names.

python benchmarks/structure.py src/dartune                      # one tree
python benchmarks/structure.py old/src/dartune src/dartune      # two trees side by side, as Markdown
python benchmarks/structure.py src/dartune --tree               # folders with their files and lines
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

UNTYPED = re.compile(r"\b(?:dict|Mapping)\[str, Any\]")
VAGUE = ("one", "found", "known", "told", "made", "taken", "said", "drawn")
"""Names that do not say what they hold."""


def measure(package: Path) -> dict[str, str]:
    """Figures of a package by name, as text."""
    files = sorted(package.rglob("*.py"))
    sources = {path: path.read_text(encoding="utf-8") for path in files}
    lines = sum(len(source.splitlines()) for source in sources.values())
    names = [name for source in sources.values() for name in _bound_names(ast.parse(source))]
    uses = Counter(node.id for s in sources.values() for node in ast.walk(ast.parse(s)) if isinstance(node, ast.Name))
    stages = [path for path in files if _holds_stage_data(path, package)]
    functions = [
        node.end_lineno - node.lineno + 1
        for source in sources.values()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {
        "modules at the top level": str(len(list(package.glob("*.py")))),
        "folders": str(len({path.parent for path in files}) - 1),
        "files": str(len(files)),
        "lines": f"{lines:,}",
        "longest file, lines": str(max(len(source.splitlines()) for source in sources.values())),
        "longest function, lines": str(max(functions)),
        "configuration keys": str(_config_keys(sources.values())),
        "arms": str(_entries(sources.values(), "ARMS") or _entries(sources.values(), "BUILT_IN")),
        "untyped dicts, stages and what reads their rows": str(sum(len(UNTYPED.findall(sources[p])) for p in stages)),
        "untyped dicts, all": str(sum(len(UNTYPED.findall(source)) for source in sources.values())),
        "comment lines per 100 lines": f"{100 * sum(map(_comments, sources.values())) / lines:.1f}",
        "mean length of bound names": f"{mean(map(len, names)):.1f}",
        "uses of " + ", ".join(VAGUE): f"{sum(uses[name] for name in VAGUE):,}",
    }


def _bound_names(tree: ast.Module) -> Iterator[str]:
    """Names of functions, parameters and variables, each time they are bound."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name.strip("_")
        elif isinstance(node, ast.arg) and node.arg not in ("self", "cls"):
            yield node.arg.strip("_")
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id != "_":
            yield node.id.strip("_")


def _comments(source: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def _config_keys(sources) -> int:
    """Keys that a user can set: the fields of `Config`, and of each section in it with those that it inherits."""
    classes = {
        node.name: node
        for source in sources
        if "class Section(BaseModel)" in source
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }

    def fields(name: str) -> dict[str, str]:
        """Field -> its type; constants of the class are not fields."""
        node = classes[name]
        inherited = [fields(base.id) for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
        own = {
            statement.target.id: ast.unparse(statement.annotation)
            for statement in node.body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        }
        merged = {name: kind for part in inherited for name, kind in part.items()} | own
        return {name: kind for name, kind in merged.items() if not kind.startswith("ClassVar")}

    return sum(len(fields(kind)) if kind in classes else 1 for kind in fields("Config").values())


def _entries(sources, name: str) -> int:
    """Entries of a module-level dict."""
    for source in sources:
        for node in ast.parse(source).body:
            target = node.target if isinstance(node, ast.AnnAssign) else None
            if isinstance(target, ast.Name) and target.id == name and isinstance(node.value, ast.Dict):
                return len(node.value.keys)
    return 0


def _holds_stage_data(path: Path, package: Path) -> bool:
    """Modules that make or read the rows of stages: the stages themselves, and what collects their results."""
    place = path.relative_to(package).as_posix()
    return place.startswith("stages/") or place in (
        "adapt.py",
        "train_arms.py",
        "measured.py",
        "pipeline.py",
        "train/mapper.py",
        "train/direct_rl.py",
        "report/gather.py",
        "report/collect.py",
        "report/rewrite_examples.py",
        "data/adapted.py",
        "data/adapted_dataset.py",
    )


def tree(package: Path) -> Iterator[str]:
    """Folders with their files and the lines of each."""
    for folder in [package, *sorted(path for path in package.iterdir() if path.is_dir())]:
        files = sorted(folder.glob("*.py"))
        if files:
            counts = [f"{path.stem} {len(path.read_text(encoding='utf-8').splitlines())}" for path in files]
            yield f"{folder.relative_to(package.parent)}/: {', '.join(counts)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--tree", action="store_true")
    options = parser.parse_args()
    if options.tree:
        for package in options.packages:
            print("\n".join(tree(package)))
        return
    figures = [measure(package) for package in options.packages]
    print("| |" + "".join(f" {package} |" for package in options.packages))
    print("|---|" + "---|" * len(figures))
    for name in figures[0]:
        print(f"| {name} |" + "".join(f" {figure[name]} |" for figure in figures))


if __name__ == "__main__":
    main()
