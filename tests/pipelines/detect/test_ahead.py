"""Scans prepared by a process of their own: the same results, its errors and its end."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest

from pipelines.config import ROOT, read_recipe
from pipelines.detect import ahead as module
from pipelines.detect.ahead import Ahead, preparing_ahead
from preprocessing.brain import FINDERS
from preprocessing.prepare import RefusedScan, prepare
from preprocessing.scans import InputError, Scan, ScanError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ahead():
    process = Ahead()
    yield process
    process.close()


@pytest.fixture(scope="module")
def recipe(tiny_run):
    return read_recipe(tiny_run)


def scan_of(path, name="one"):
    return Scan(id=name, image=Path(path), subject=name)


def test_another_process_prepares_to_the_bit_what_this_one_does(
    ahead, brain_t1, recipe, tmp_path, caplog
):
    scan = scan_of(brain_t1)
    ahead.begin(scan, recipe, tmp_path)
    with caplog.at_level(logging.INFO, "norma"):
        found, seconds = ahead.result(scan, recipe, tmp_path)
    said = [record.getMessage() for record in caplog.records]
    wanted = prepare(scan, recipe)
    for name in ("image", "brain", "scan_from_atlas", "outline"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert (found.header, found.checks) == (wanted.header, wanted.checks)
    assert (found.grid.shape, found.home.shape) == (wanted.grid.shape, wanted.home.shape)
    assert seconds > 0
    # what it says is said here, once
    assert said == ["one: already skull-stripped, taken as it is"]


def test_a_refusal_comes_with_its_checks(ahead, brain_t1, recipe, tmp_path):
    limits = recipe.limits.model_copy(update={"brain_ml": (1, 2)})
    small = recipe.model_copy(update={"limits": limits, "brain": "none"})
    with pytest.raises(RefusedScan, match=r"brain volume is .* expected 1 to 2 ml") as here:
        prepare(scan_of(brain_t1), small)
    with pytest.raises(RefusedScan) as there:
        ahead.result(scan_of(brain_t1, "small"), small, tmp_path)
    assert str(there.value) == str(here.value)
    assert there.value.checks == here.value.checks
    assert there.value.brain_method == here.value.brain_method == "none"
    np.testing.assert_array_equal(there.value.picture[1], here.value.picture[1])


def test_an_unforeseen_error_brings_its_traceback(ahead, brain_t1, recipe, tmp_path):
    odd = replace(scan_of(brain_t1, "odd"), image=None)
    with pytest.raises(AttributeError) as error:
        ahead.result(odd, recipe, tmp_path)
    assert "Traceback" in error.value.__notes__[0] and "prepare.py" in error.value.__notes__[0]


def test_an_error_that_cannot_be_sent_keeps_its_text():
    foreign = LookupError("this or that")
    foreign.held = threading.Lock()
    error = module._sendable(foreign)
    assert (type(error), str(error)) == (RuntimeError, "LookupError: this or that")


def test_the_scan_that_ends_the_process_is_given_up_and_the_next_is_prepared(
    ahead, brain_t1, recipe, tmp_path
):
    first = scan_of(brain_t1, "first")
    second = scan_of(brain_t1, "second")
    ended = ahead._process
    ahead.begin(first, recipe, tmp_path)
    ahead.begin(second, recipe, tmp_path)
    os.kill(ended.pid, signal.SIGKILL)
    with pytest.raises(ScanError, match=r"sub-01_T1w.nii.gz: the process that prepared it ended"):
        ahead.result(first, recipe, tmp_path)
    prepared, _ = ahead.result(second, recipe, tmp_path)
    assert prepared.brain.any()
    assert ahead._process.pid != ended.pid and not ended.is_alive()


def test_the_first_brain_is_found_here_and_later_ones_there(
    brain_t1, recipe, tmp_path, monkeypatch
):
    """The other process loads no torch before the first scan is done; what is found is the same."""
    asked = []

    def found(data, affine):
        asked.append(data)
        return data > 0

    monkeypatch.setattr("preprocessing.by_deepbet.deepbet", found)
    monkeypatch.setitem(FINDERS, "deepbet", found)
    unstripped = recipe.model_copy(update={"brain": "deepbet"})
    limits = recipe.limits.model_copy(update={"brain_ml": (1, 2)})
    small = unstripped.model_copy(update={"limits": limits})
    with closing(Ahead()) as ahead:
        ahead.begin(scan_of(brain_t1, "first"), unstripped, tmp_path)
        ahead.begin(scan_of(brain_t1, "second"), small, tmp_path)  # while the first asks
        ahead.find_first_brain()
        assert len(asked) == 1
        there, _ = ahead.result(scan_of(brain_t1, "first"), unstripped, tmp_path)
        with pytest.raises(ScanError):  # by the real deepbet
            ahead.result(scan_of(brain_t1, "second"), small, tmp_path)
    assert len(asked) == 1
    here = prepare(scan_of(brain_t1, "first"), unstripped)
    np.testing.assert_array_equal(asked[0], asked[1])
    np.testing.assert_array_equal(there.image, here.image)
    assert there.brain_method == here.brain_method == "deepbet" and there.checks == here.checks


def test_what_deepbet_raises_here_is_raised_there(brain_t1, recipe, tmp_path, monkeypatch):
    def fail(data, affine):
        raise ScanError("no brain in it.")

    monkeypatch.setattr("preprocessing.by_deepbet.deepbet", fail)
    unstripped = recipe.model_copy(update={"brain": "deepbet"})
    with closing(Ahead()) as ahead, pytest.raises(ScanError, match=r"T1w.nii.gz: no brain in it"):
        ahead.result(scan_of(brain_t1), unstripped, tmp_path)


def test_a_bad_template_is_said_and_the_next_scan_is_prepared(
    brain_t1, recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr("preprocessing.by_deepbet.deepbet", lambda data, affine: data > 0)
    bad = recipe.model_copy(update={"brain": "deepbet", "template": str(tmp_path / "no.nii.gz")})
    with closing(Ahead()) as ahead:
        with pytest.raises(InputError, match=r"TEMPLATE: .*no.nii.gz"):
            ahead.result(scan_of(brain_t1, "first"), bad, tmp_path)
        prepared, _ = ahead.result(scan_of(brain_t1, "second"), recipe, tmp_path)
    assert prepared.brain.any()


def test_answers_that_nobody_waited_for_are_thrown_away(recipe, tmp_path):
    """As where a fit fails while other poses are looked for; orders keep their turn."""
    here, there = Pipe()
    other = module._Other(there)
    orders = [(scan_of("any", name), recipe, tmp_path) for name in ("first", "second")]
    other._ask(max, 3, 5)
    other._ask(sorted, 3)
    asked = [here.recv(), here.recv()]
    here.send(orders[0])
    here.send(asked[0].answer())
    here.send(asked[1].answer())
    here.send(orders[1])
    assert other._answered() == 5
    assert [other.next_order()[0].id for _ in orders] == ["first", "second"]
    other._ask(sorted, 3)
    here.send(here.recv().answer())
    with pytest.raises(TypeError, match="not iterable"):
        other._answered()


@pytest.mark.parametrize(
    "settings", [{"brain": "none"}, {"brain": "bet"}, {"modality": "chest_ct"}]
)
def test_nobody_waits_for_a_question_that_will_not_come(recipe, tmp_path, settings):
    asked = Ahead.__new__(Ahead)
    asked._waiting = {"one": (scan_of("any"), recipe.model_copy(update=settings), tmp_path)}
    asked.find_first_brain()  # it has no connection to wait on


def test_it_prepares_where_that_saves_time_alone(monkeypatch):
    with preparing_ahead() as ahead:
        assert ahead is None  # torch is loaded here
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(module, "cores", lambda: 1)
    with preparing_ahead() as ahead:
        assert ahead is None
    monkeypatch.setattr(module, "cores", lambda: 2)
    with preparing_ahead(False) as ahead:
        assert ahead is None
    with pytest.raises(KeyboardInterrupt), preparing_ahead() as ahead:
        process = ahead._process
        raise KeyboardInterrupt
    assert not process.is_alive()


def test_a_command_of_its_own_scores_as_this_process_does(
    tiny_run, brain_t1, command, tmp_path, quick_prepare
):
    """Two scans and a bad one, by `python -m`, which prepares them in another process."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a", "c"):
        shutil.copy(brain_t1, scans / f"{name}.nii.gz")
    (scans / "b.nii.gz").write_bytes(b"no scan")
    line = ["--run", str(tiny_run), "--input", str(scans), "--out"]
    command("infer", *line, tmp_path / "here")
    begin = [sys.executable, "-m", "pipelines.infer", *line, str(tmp_path / "there")]
    done = subprocess.run(begin, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("already skull-stripped") == 2 and "Traceback" not in done.stderr
    assert "not scored: " in done.stderr and "b.nii.gz" in done.stderr
    for name in ("a_mask.nii.gz", "a_map.nii.gz", "c_map.nii.gz", "c_picture.png"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert "already skull-stripped" in (tmp_path / "there" / "norma.log").read_text()


class Begun:
    """What would prepare scans, and notes their names alone."""

    def __init__(self):
        self.names = []

    def begin(self, scan, recipe, out):
        self.names.append(scan.id)


def test_one_volume_is_begun_unless_its_report_stands(tiny_run, brain_t1, tmp_path):
    begun = Begun()
    module.begin_one_scan(begun, tiny_run, brain_t1, tmp_path, False)
    module.begin_one_scan(begun, tiny_run, brain_t1.parent, tmp_path, False)
    assert begun.names == ["sub-01"]  # not those of a folder
    (tmp_path / "sub-01_report.json").touch()
    module.begin_one_scan(begun, tiny_run, brain_t1, tmp_path, False)
    assert begun.names == ["sub-01"]
    module.begin_one_scan(begun, tiny_run, brain_t1, tmp_path, True)
    assert begun.names == ["sub-01", "sub-01"]


@pytest.mark.parametrize("door", ["bids_app", "mood"])
def test_the_other_doors_score_what_is_prepared_ahead_unless_workers_do(
    door, tiny_run, brain_t1, command, monkeypatch, tmp_path
):
    """What `preparing_ahead` gives reaches `detect_all`; with two workers none is wanted."""
    from pipelines.detect import batch

    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    shutil.copy(brain_t1, folder / "sub-01_T1w.nii.gz")
    given = []

    @contextmanager
    def stub(wanted=True):
        yield "ahead" if wanted else None

    def record(scans, lost, job, spread_over, ahead):
        given.append((spread_over, ahead, [scan.image.name for scan in scans]))
        return []

    monkeypatch.setattr(module, "preparing_ahead", stub)
    monkeypatch.setattr(batch, "detect_all", record)
    more = {
        "bids_app": ["participant", "--skip-bids-validation", "--run", tiny_run],
        "mood": ["--task", "pixel", "--run", tiny_run],
    }[door]
    for cpus in ("1", "2"):
        command(door, tmp_path, tmp_path / "out", *more, "--n-cpus", cpus)
    names = ["sub-01_T1w.nii.gz"]
    assert given == [(("", 1), "ahead", names), (("", 2), None, names)]
