"""Who may import whom: the files of the project are read, none is run.

doors -> export -> pages -> study -> training -> detect -> cohort -> the three folders of the base:
each level may import all that stand below it. No file imports a door, benchmarks and tests apart.
`norma` is for users and for the review app; the project takes its version alone from there.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

BASE = ("preprocessing", "models", "evaluation")
SHARED = ("cli", "config", "spread", "versions")  # files of pipelines
ROOMS = (
    "cohort",
    "detect",
    "training",
    "study",
    "pages",
    "export",
)  # each may import those before it

MAY_IMPORT: dict[str, set[str]] = {
    "preprocessing": {"preprocessing"},
    "models": {"models"},
    "evaluation": {"evaluation"},
    "shared": {"shared", "preprocessing"},
    "doors": {"shared", *BASE, *ROOMS},
    "norma": {"shared", *BASE, *ROOMS},
    "benchmarks": {"benchmarks", "app", "doors", "shared", *BASE, *ROOMS},
    "app": {"app", "norma"},
}
for number, room in enumerate(ROOMS, start=1):
    MAY_IMPORT[room] = {"shared", *BASE, *ROOMS[:number]}

# A model is torch, MONAI and numbers; files and training are the work of others.
NOT_IN_MODELS = {"lightning", "lightning_fabric", "nibabel", "ants", "SimpleITK"}

# What takes long to load: `--help` answers in under a second.
HEAVY = {
    *("numpy", "scipy", "sklearn", "skimage", "matplotlib", "pandas"),
    *("torch", "monai", "lightning_fabric", "torchvision"),
    *("nibabel", "ants", "SimpleITK", "nilearn", "deepbet"),
    *("dask", "distributed", "jinja2"),
}


def part_of(module: str) -> str | None:
    """The part of the project that a module belongs to; None for other packages."""
    top, _, rest = module.partition(".")
    if top != "pipelines":
        return top if top in MAY_IMPORT else None
    name = rest.partition(".")[0]
    if name in ("", "__init__", *SHARED):
        return "shared"
    return name if (ROOT / "pipelines" / name).is_dir() else "doors"


def project_files() -> Iterator[tuple[str, Path]]:
    """(part, path) of every file of the project but its tests."""
    tops = [*BASE, "pipelines", "benchmarks", "app"]
    paths = [ROOT / "norma.py"]
    for top in tops:
        paths += sorted((ROOT / top).rglob("*.py"))
    for path in paths:
        part = part_of(module_of(path))
        assert part is not None
        yield part, path


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def files_of(part: str) -> list[Path]:
    return [path for owner, path in project_files() if owner == part]


def imports(nodes: Iterator[ast.AST], path: Path) -> Iterator[tuple[int, str]]:
    """(line, module or name in a module) of every import among `nodes`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the whole module"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def all_imports(path: Path) -> list[tuple[int, str]]:
    """Every import of a file, those inside functions too."""
    return list(imports(ast.walk(ast.parse(path.read_text())), path))


def run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a file is imported: neither functions nor what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from run_on_import(child)


def loaded_files(module: str) -> Iterator[Path]:
    """The project's files that Python loads for an import: the packages on the way, and it."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        stem = ROOT.joinpath(*parts[:end])
        for path in (stem / "__init__.py", stem.with_suffix(".py")):
            if path.is_file():
                yield path


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_every_folder_of_pipelines_has_its_level():
    folders = {path.parent.name for path in (ROOT / "pipelines").glob("*/*.py")}
    assert folders == set(ROOMS), "say in ROOMS, lowest first, where a new folder stands"


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_down_alone(part):
    paths = files_of(part)
    assert paths, f"no file of {part} was found"

    wrong: list[str] = []
    for path in paths:
        for line, module in all_imports(path):
            target = part_of(module)
            version = module == "norma.__version__" and path.name == "versions.py"
            if target and target not in MAY_IMPORT[part] and not version:
                wrong.append(f"{place(path, line)} imports {module}, of {target}")
    allowed = ", ".join(sorted(MAY_IMPORT[part]))
    assert not wrong, "\n".join([f"{part} may import {allowed}:", *wrong])


def test_models_read_no_files_and_know_no_trainer():
    wrong: list[str] = []
    for path in files_of("models"):
        for line, module in all_imports(path):
            if module.partition(".")[0] in NOT_IN_MODELS:
                wrong.append(f"{place(path, line)} imports {module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", files_of("doors"), ids=lambda path: path.stem)
def test_the_help_of_a_command_loads_nothing_heavy(path):
    """Followed from file to file, as Python would load them."""
    wrong: list[str] = []
    waiting = [(path, place(path, 1))]
    known = {path}
    while waiting:
        current, by = waiting.pop()
        for line, module in imports(run_on_import(ast.parse(current.read_text())), current):
            here = place(current, line)
            if module.partition(".")[0] in HEAVY:
                wrong.append(f"{here} imports {module}, and is loaded by {by}")
            for new in set(loaded_files(module)) - known:
                known.add(new)
                waiting.append((new, here))
    advice = "import inside the function that needs it:"
    assert not wrong, "\n".join([f"python -m {module_of(path)} --help; {advice}", *wrong])
