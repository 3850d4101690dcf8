"""Read the source files of the repository, for the tests of its architecture and style."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("detector", "proposals")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (REPOSITORY / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """Return the dotted name of a file: `detector.cli.detect`; a package has the name of its folder."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def over_files(*folders: str) -> pytest.MarkDecorator:
    files = sources(*folders)
    return pytest.mark.parametrize("path", files, ids=[str(p.relative_to(REPOSITORY)) for p in files])


def imports(tree: ast.Module, package: str) -> Iterator[tuple[str, str | None, ast.AST]]:
    """Yield (module, imported name or None, node) for every import, wherever it stands; relative ones made absolute.

    package: the package that the module's relative imports start from.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield module, alias.name, node
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value, None, node


def module_level(tree: ast.Module) -> set[ast.AST]:
    """Return the nodes of a module that are not inside a function."""
    inside = {n for f in ast.walk(tree) if isinstance(f, Function | ast.Lambda) for n in ast.walk(f)}
    return set(ast.walk(tree)) - inside
