"""Benchmarks answer a mistake as every other command does: one sentence, and an exit code."""

import pytest

from pipelines import cli
from pipelines.config import ROOT
from preprocessing.scans import InputError

STARTED = [
    path
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if '\nif __name__ == "__main__":' in path.read_text() and path.name != "app_worker.py"
]


def ended_by(main):
    with pytest.raises(SystemExit) as ended:
        cli.leave(main)
    return ended.value.code


@pytest.mark.parametrize("path", STARTED, ids=lambda path: path.stem)
def test_each_leaves_by_the_one_way_that_turns_a_mistake_into_a_sentence(path):
    last = path.read_text().rstrip().splitlines()[-1].strip()
    assert last in ("cli.leave(main)", "cli.run(main, build_parser())")


def test_a_mistake_is_a_sentence_and_no_traceback(capsys):
    def main():
        raise InputError("x.nii.gz: no such file; give another.")

    assert ended_by(main) == cli.USAGE
    assert capsys.readouterr().err == "error: x.nii.gz: no such file; give another.\n"


@pytest.mark.parametrize(("found", "code"), [(None, cli.OK), (cli.SOME_FAILED, cli.SOME_FAILED)])
def test_what_it_returns_is_the_exit_code(found, code):
    assert ended_by(lambda: found) == code


def test_a_fault_of_norma_s_own_keeps_its_traceback():
    def main():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        cli.leave(main)
