"""Hold the code to its size and its manners, by reading it; see CONTRIBUTING.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.sources import PACKAGES, REPOSITORY, Function, imports, module_level, module_name, over_files, read

MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS, MAX_EXPORTS = 300, 50, 6, 15
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
BANNED_IMPORTS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def functions(tree: ast.Module) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Return the lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameters(function: Function) -> int:
    """Return the number of parameters of a function, `self` and `cls` not counted."""
    a = function.args
    names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if p]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def is_command(function: Function) -> bool:
    """Tell whether click calls a function: it is decorated with `click.*` or as `GROUP.command()`."""
    decorators = [ast.unparse(d) for d in function.decorator_list]
    return any(d.startswith("click.") or ".command(" in d for d in decorators)


@over_files(*PACKAGES, "tools", "tests")
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE
    long = [f"line {f.lineno}: {f.name}, {length(f)} lines" for f in functions(read(path)) if length(f) > MAX_FUNCTION]
    assert long == []


@over_files(*PACKAGES, "tools")
def test_functions_take_few_parameters(path: Path) -> None:
    in_cli = module_name(path).startswith("detector.cli")
    checked = [f for f in functions(read(path)) if not (in_cli and is_command(f))]
    assert [f"line {f.lineno}: {f.name}" for f in checked if parameters(f) > MAX_PARAMETERS] == []


def test_functions_are_measured_as_meant() -> None:
    lines = ["def f(self, a, /, b, *c, d, **e):", '    """Do."""', *["    a += 1"] * 3]
    (function,) = functions(ast.parse("\n".join(lines)))
    assert (length(function), parameters(function)) == (3, 5)


@over_files(*PACKAGES, "tools")
def test_modules_have_names_that_say_something(path: Path) -> None:
    assert not BANNED_NAMES & {path.stem, *path.relative_to(REPOSITORY).parts[:-1]}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_export_few_names(package: str) -> None:
    tree = read(REPOSITORY / package / "__init__.py")
    names = [name for _, name, node in imports(tree, package) if node in module_level(tree)]
    assert len([n for n in names if n and n != "annotations" and not n.startswith("_")]) <= MAX_EXPORTS


def manner_faults(name: str, tree: ast.Module) -> list[str]:
    """List the calls that print, and what would run code from a file that somebody sent."""
    faults = []
    for module, _, node in imports(tree, name):
        if module.split(".")[0] in BANNED_IMPORTS:
            faults.append(f"line {getattr(node, 'lineno', 0)}: imports {module}")
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(call.func)
        options = {k.arg: ast.unparse(k.value) for k in call.keywords}
        # published ImageNet weights are .pth files of an installed package
        weights = name == "detector.backbones" and options.get("weights_only") == "True"
        if function == "torch.load" and not weights:
            faults.append(f"line {call.lineno}: torch.load")
        if options.get("allow_pickle", "False") != "False":
            faults.append(f"line {call.lineno}: allow_pickle")
        if function == "print" and not name.startswith("detector.cli"):
            faults.append(f"line {call.lineno}: print")
    return faults


@over_files(*PACKAGES)
def test_modules_are_silent_and_unpickle_nothing(path: Path) -> None:
    assert manner_faults(module_name(path), read(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "import pickle",
        "def f():\n    from joblib import load",
        "torch.load(p, weights_only=True)",
        "np.load(p, allow_pickle=True)",
    ],
)
def test_bad_manners_are_found(source: str) -> None:
    assert len(manner_faults("detector.features", ast.parse(source))) == 1
    assert manner_faults("detector.backbones", ast.parse("torch.load(p, weights_only=True)")) == []
    assert len(manner_faults("detector.backbones", ast.parse("torch.load(p)"))) == 1


def undocumented(body: list[ast.stmt]) -> list[str]:
    """List the public classes, functions and methods without a docstring; members of a Protocol may do without."""
    missing = []
    for node in body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None and not (isinstance(node, Function) and is_variant(node)):
            missing.append(f"line {node.lineno}: {node.name}")
        if isinstance(node, ast.ClassDef) and "Protocol" not in [ast.unparse(b).split("[")[0] for b in node.bases]:
            missing += undocumented(node.body)
    return missing


def is_variant(function: Function) -> bool:
    """Tell whether a function is an overload, a property's setter or torch's forward, described elsewhere."""
    decorators = [ast.unparse(d) for d in function.decorator_list]
    return function.name == "forward" or any(d.endswith(("overload", ".setter")) for d in decorators)


@over_files(*PACKAGES)
def test_public_names_have_docstrings(path: Path) -> None:
    tree = read(path)
    assert ast.get_docstring(tree) is not None, "the module has no docstring"
    assert undocumented(tree.body) == []


def test_a_missing_docstring_is_found() -> None:
    source = 'class A:\n    """Hold."""\n    def f(self): ...\n    def _g(self): ...\ndef h(): ...'
    assert undocumented(ast.parse(source).body) == ["line 3: f", "line 5: h"]
