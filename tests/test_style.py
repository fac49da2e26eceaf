"""Norma's style where ruff does not check it: one step a line, and functions that can be read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("norma.py", "preprocessing", "models", "evaluation", "pipelines", "benchmarks", "app")
PLACES += ("tests",)

MOST_PARAMETERS = 7  # of a function; the constructor of a model may take more
MOST_LINES = 95  # of a door: arguments, one call, what is printed, the exit code

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) of every place that breaks a rule."""
    for node in ast.walk(tree):
        fault = ""
        if isinstance(node, ast.Assign):
            fault = fault_of_assignment(node)
        elif isinstance(node, COMPREHENSIONS):
            if len(node.generators) > 1 or any(inside(node, COMPREHENSIONS)):
                fault = "nested comprehension; write a loop or name a function"
        elif isinstance(node, ast.IfExp):
            if any(inside(node, ast.IfExp)):
                fault = "chained conditional expression"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = parameters(node)
            if count > MOST_PARAMETERS and node.name != "__init__":
                fault = f"{node.name} takes {count} parameters, at most {MOST_PARAMETERS}"
        if fault:
            yield node.lineno, fault


def fault_of_assignment(node: ast.Assign) -> str:
    """One assignment per line, but for values that change places."""
    if len(node.targets) > 1:
        return "two names get one value; write an assignment for each"
    if several(node) and not swap(node):
        return "several assignments on a line"
    return ""


def inside(node: ast.AST, kinds: type | tuple[type, ...]) -> Iterator[bool]:
    """For every node below `node`, whether it is of `kinds`."""
    return (isinstance(child, kinds) for child in ast.walk(node) if child is not node)


def several(node: ast.Assign) -> bool:
    """Whether names get values one by one: `a, b = x, y`."""
    return isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)


def swap(node: ast.Assign) -> bool:
    """Whether values change places: `a, b = b, a`."""
    targets = node.targets[0].elts  # type: ignore[attr-defined]
    values = node.value.elts  # type: ignore[attr-defined]
    return {ast.unparse(t) for t in targets} == {ast.unparse(v) for v in values}


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The number of parameters that have a name; the object of a method is none."""
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


@pytest.mark.parametrize("name", PLACES)
def test_style(name):
    place = ROOT / name
    paths = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert paths

    found: list[str] = []
    for path in paths:
        for line, fault in sorted(set(faults(ast.parse(path.read_text())))):
            found.append(f"{path.relative_to(ROOT)}:{line}: {fault}")
    assert not found, "\n".join(found)


def test_doors_are_short():
    lengths: dict[str, int] = {}
    for path in (ROOT / "pipelines").glob("*.py"):
        text = path.read_text()
        if "def build_parser" in text:
            lengths[path.name] = len(text.splitlines())
    assert lengths
    long = {name: count for name, count in lengths.items() if count > MOST_LINES}
    assert not long, f"{long}: a door has at most {MOST_LINES} lines; move its work into a room"


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("a = 1\nb = 2", False),
        ("a, b = 1, 2", True),
        ("a, b = b, a", False),
        ("a, b = f()", False),
        ("a = b = 1", True),
        ("[x for x in y]", False),
        ("[x for y in z for x in y]", True),
        ("[[x for x in y] for y in z]", True),
        ("[x for x in [y for y in z]]", True),
        ("1 if a else 2", False),
        ("1 if a else 2 if b else 3", True),
        ("(1 if a else 2) if b else 3", True),
        ("def f(a, b, c, d, e, f, g): ...", False),
        ("def f(a, b, c, d, e, f, *, g, h): ...", True),
        ("class A:\n    def f(self, a, b, c, d, e, f, g): ...", False),
        ("class A:\n    def __init__(self, a, b, c, d, e, f, g, h): ...", False),
    ],
)
def test_the_rules_find_what_they_should(code, wrong):
    assert bool(list(faults(ast.parse(code)))) == wrong
