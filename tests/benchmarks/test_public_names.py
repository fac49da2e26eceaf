"""Benchmarks call what anyone may call: no private name of the project."""

import ast

import pytest

from pipelines.config import ROOT

FOLDERS = ("app", "benchmarks", "evaluation", "models", "norma", "pipelines", "preprocessing")
FILES = sorted((ROOT / "benchmarks").glob("*.py"))


def is_private(name):
    """Whether a name begins with one underscore; dunder names are Python's own."""
    return name.startswith("_") and not name.startswith("__")


def of_project(module):
    return (module or "").split(".")[0] in FOLDERS


def imports(tree):
    """Each import as (line, dotted name, name that it binds, whether it is of the project)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.split(".")[0]
                yield node.lineno, alias.name, bound, of_project(alias.name)
        if isinstance(node, ast.ImportFrom):
            ours = node.level > 0 or of_project(node.module)
            for alias in node.names:
                name = f"{node.module or ''}.{alias.name}"
                yield node.lineno, name, alias.asname or alias.name, ours


def root_of(node):
    """The name at the front of a chain of attributes, calls and subscripts, or an empty string."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def private_names(source):
    """Private names that a module imports from the project or reaches for, with their lines.

    An attribute counts on anything but `self` and what other packages gave: an object of unknown
    origin may be the project's.
    """
    tree = ast.parse(source)
    foreign = {"self", "cls"}
    found = []
    for line, name, bound, ours in imports(tree):
        if not ours:
            foreign.add(bound)
        elif any(is_private(part) for part in name.split(".")):
            found.append(f"{line}: {name}")
    for node in ast.walk(tree):
        private = isinstance(node, ast.Attribute) and is_private(node.attr)
        if private and root_of(node) not in foreign:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_a_benchmark_uses_no_private_name(path):
    assert private_names(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("from preprocessing import register\nregister._to_ants(a)", 1),
        ("from preprocessing.register import _to_ants", 1),
        ("from preprocessing.register import _to_ants as to_ants", 1),
        ("def f():\n    from pipelines._hidden import name", 1),
        ("from . import _private", 1),
        ("import pipelines.cohort.store as store\nstore._sidecar", 1),
        ("import pipelines.cohort.store\npipelines.cohort.store._sidecar(1).x", 1),
        ("from models import VaeCr\nVaeCr().encoder[0]._mean", 1),
        ("def f(run):\n    return run.detector._device", 1),
        ("import os\nos._exit(0)\nself._own = 1", 0),
        ("from preprocessing import register\nregister.to_ants(a).__class__", 0),
    ],
)
def test_a_private_name_is_found(source, count):
    assert len(private_names(source)) == count
