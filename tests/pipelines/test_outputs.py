"""What commands leave in OUT: nothing stale, nothing of another's, no name, no absolute path."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipelines import cli
from pipelines.cohort import store
from pipelines.detect import batch
from preprocessing.files import atomic, read_table, remove_left_behind, write_json
from preprocessing.scans import InputError
from tests.conftest import QUICK

NAME = "Doe^Jane"


@pytest.fixture
def two(brain_t1, tmp_path):
    """Two scans with the same voxels in a folder."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a_T1w", "b_T1w"):
        (folder / f"{name}.nii.gz").write_bytes(brain_t1.read_bytes())
    return folder


@pytest.fixture
def infer(command, tiny_run, quick_prepare, tmp_path):
    """`infer(source)` into one OUT: what it left behind, and the rows of its table."""

    def call(source, *more):
        done = command(
            "infer", "--run", tiny_run, "--input", source, "--out", tmp_path / "out", *more
        )
        return done, read_table(tmp_path / "out" / "scores.tsv")

    return call


def test_a_second_command_loses_no_row_of_the_first(infer, two):
    _, first = infer(two / "a_T1w.nii.gz")
    assert [row["id"] for row in first] == ["a"]
    _, both = infer(two / "b_T1w.nii.gz")
    assert [row["id"] for row in both] == ["b", "a"]
    assert both[1] == first[0]


def test_an_out_that_another_command_holds_is_refused(infer, two, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom pipelines import cli\n"
        "cli.claim(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another command works in this folder"):
            cli.claim(out)
    finally:
        holder.kill()
        holder.wait()
    cli.claim(out)
    cli.release()


@pytest.mark.parametrize("content", ["[1]", '{"id": "a"', '"text"', '{"id": "a", "status": 3}'])
def test_a_damaged_report_is_made_again(infer, two, tmp_path, content):
    infer(two / "a_T1w.nii.gz")
    report = tmp_path / "out" / "a_report.json"
    good = report.read_text()
    report.write_text(content)
    done, rows = infer(two / "a_T1w.nii.gz")
    assert done.code == 0
    assert "Traceback" not in done.err
    assert report.read_text() == good
    assert rows[0]["status"] == "scored"


@pytest.mark.parametrize("name", ["map", "mask"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_map_or_mask_that_is_gone_or_cut_is_made_again(infer, two, tmp_path, name, how):
    infer(two / "a_T1w.nii.gz")
    path = tmp_path / "out" / f"a_{name}.nii.gz"
    whole = gzip.decompress(path.read_bytes())
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000])
    infer(two / "a_T1w.nii.gz")
    assert gzip.decompress(path.read_bytes()) == whole


def test_a_brain_mask_that_is_added_later_takes_effect(infer, two, brain_t1, tmp_path):
    scan = two / "a_T1w.nii.gz"
    image = nib.load(scan)
    half = np.asarray(image.dataobj) > 0
    half[: half.shape[0] // 2] = False
    nib.save(nib.Nifti1Image(half.astype(np.uint8), image.affine), tmp_path / "half.nii.gz")
    table = tmp_path / "table.csv"
    table.write_text(f"image,id\n{scan},a\n")
    infer(table)
    before = (tmp_path / "out" / "a_report.json").read_text()
    table.write_text(f"image,id,brain_mask\n{scan},a,{tmp_path / 'half.nii.gz'}\n")
    infer(table)
    assert (tmp_path / "out" / "a_report.json").read_text() != before


def test_no_free_text_of_a_header_and_no_absolute_path_comes_out(infer, two, tmp_path):
    scan = two / "a_T1w.nii.gz"
    image = nib.load(scan)
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = NAME
    for code in (4, 6):
        image.header.extensions.append(nib.nifti1.Nifti1Extension(code, NAME.encode()))
    nib.save(image, scan)
    (two / "b_T1w.nii.gz").write_bytes(b"nothing")
    done, rows = infer(two)
    assert done.code == 1
    out = tmp_path / "out"
    assert (out / "a_mask.nii.gz").is_file()
    for path in out.iterdir():
        if path.name in ("norma.log", cli.LOCK):
            continue
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        assert NAME.encode() not in content, path
        assert str(tmp_path).encode() not in content, path
    assert [row["image"] for row in rows] == ["a_T1w.nii.gz", "b_T1w.nii.gz"]
    assert rows[1]["reason"].startswith("b_T1w.nii.gz: ")
    mask = nib.load(out / "a_mask.nii.gz")
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert mask.header["qform_code"] == image.header["qform_code"]
    assert mask.header["sform_code"] == image.header["sform_code"]


def test_whatever_one_scan_raises_costs_that_scan_alone(infer, two, tmp_path, monkeypatch):
    real = batch.prepare

    def odd(scan, recipe):
        if scan.id == "a":
            raise RecursionError("too deep")
        return real(scan, recipe)

    monkeypatch.setattr(batch, "prepare", odd)
    done, rows = infer(two)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert [row["status"] for row in rows] == ["not scored", "scored"]
    assert rows[0]["reason"] == "a_T1w.nii.gz: unexpected RecursionError: too deep"
    assert "RecursionError: too deep" in (tmp_path / "out" / "norma.log").read_text()


def test_a_full_disk_and_a_locked_out_end_the_command_an_unreadable_scan_does_not(tmp_path):
    out = tmp_path / "out"
    assert cli.ends_the_command(OSError(28, "No space left on device"), out)
    assert cli.ends_the_command(PermissionError(13, "denied", str(out / "a_map.nii.gz")), out)
    unreadable = PermissionError(13, "denied", str(tmp_path / "in" / "a.nii.gz"))
    assert not cli.ends_the_command(unreadable, out)
    assert "may not be read" in cli.unexpected(unreadable, tmp_path / "in" / "a.nii.gz")


# preprocess


@pytest.fixture
def preprocess(command, quick_prepare, tmp_path):
    def call(source, *more):
        arguments = ("--input", source, "--modality", "t1", "--out", tmp_path / "data")
        done = command("preprocess", *arguments, *QUICK, *more)
        return done, read_table(tmp_path / "data" / "scans.tsv")

    return call


def test_two_cohorts_in_one_out_stand_beside_each_other(preprocess, two, tmp_path):
    table = tmp_path / "a.csv"
    table.write_text(f"image,id,split,label,sex\n{two / 'a_T1w.nii.gz'},a,train,healthy,f\n")
    preprocess(table)
    table.write_text(f"image,id,split,label\n{two / 'b_T1w.nii.gz'},b,test,healthy\n")
    _, rows = preprocess(table)
    assert {(r["id"], r["split"], r["sex"]) for r in rows} == {
        ("a", "train", "f"),
        ("b", "test", ""),
    }
    index = read_table(tmp_path / "data" / "slices" / "index.tsv")
    assert {row["scan"] for row in index} == {"a", "b"}
    summary = json.loads((tmp_path / "data" / "preprocess.json").read_text())
    assert summary["n_scans"] == 2
    assert summary["n_slices"] == len(index)
    table.write_text(f"image,id,subject,split\n{two / 'b_T1w.nii.gz'},c,a,test\n")
    done, _ = preprocess(table)
    assert done.code == 2
    assert "holds scans of subject 'a' in split 'train'" in done.error


def test_tables_hold_no_absolute_path_and_are_read_where_they_lie(preprocess, two, tmp_path):
    from pipelines.cohort.cases import read_cases

    (two / "b_T1w.nii.gz").unlink()  # one image under two names is refused when it is read
    _, rows = preprocess(two)
    data = tmp_path / "data"
    for name in ("scans.tsv", "failures.tsv", "quality.html", "preprocess.json"):
        assert str(tmp_path) not in (data / name).read_text(), name
    assert rows[0]["image"] == "../in/a_T1w.nii.gz"
    assert read_cases(data)[0].image.samefile(two / "a_T1w.nii.gz")


@pytest.mark.parametrize("what", ["slices/a_image.npy", "a/a_from-orig_to-ICBM_mode-image_xfm.mat"])
def test_a_missing_or_cut_part_is_made_again(preprocess, two, tmp_path, what):
    preprocess(two)
    data = tmp_path / "data"
    path = data / what
    if not path.is_file():
        path = next(data.glob("a/*.mat"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    preprocess(two)
    assert path.read_bytes() == whole


def test_a_kill_between_two_recipes_leaves_no_image_for_another_s(
    preprocess, two, tmp_path, monkeypatch
):
    """Recipe A, then B killed after its image was written, then A again: A's image must stand."""
    (two / "b_T1w.nii.gz").unlink()
    preprocess(two)
    data = tmp_path / "data"
    image = next(data.glob("a/*_desc-preproc_T1w.nii.gz"))
    first = gzip.decompress(image.read_bytes())

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.slices, "write_arrays", killed)
        done, _ = preprocess(two, "intensity.high=70")
        assert done.code == 130
    assert gzip.decompress(image.read_bytes()) != first
    preprocess(two)
    assert gzip.decompress(image.read_bytes()) == first


def test_rows_that_a_table_lost_are_seen(preprocess, two, tmp_path):
    from pipelines.cohort.cases import read_cases

    preprocess(two)
    table = tmp_path / "data" / "scans.tsv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="1 rows, and 2 were written"):
        read_cases(tmp_path / "data")


# temporary files, signals


def test_what_a_killed_command_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom preprocessing.files import atomic\n"
        "with atomic(Path(sys.argv[1])) as t:\n    t.write_text('half')\n    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "x.json")], check=False)
    assert len(list(tmp_path.glob(".tmp-*"))) == 1
    with atomic(tmp_path / "y.json") as own:
        own.write_text("half")
        remove_left_behind(tmp_path)
        assert list(tmp_path.glob(".tmp-*")) == [own]
    write_json(tmp_path / "x.json", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "y.json"]


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path):
    script = (
        "import sys, time, argparse\nfrom pipelines import cli\n"
        "def main(arguments):\n"
        "    try:\n        print('ready', flush=True)\n        time.sleep(60)\n"
        f"    finally:\n        open({str(tmp_path / 'table')!r}, 'w').write('written')\n"
        "sys.argv = ['x']\ncli.run(main, argparse.ArgumentParser())\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.2)
    os.kill(child.pid, signal.SIGTERM)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 143
    assert "terminated" in err
    assert "Traceback" not in err
    assert (tmp_path / "table").read_text() == "written"


def test_another_scan_of_one_name_is_refused_and_a_moved_one_is_not(infer, two, brain_t1, tmp_path):
    infer(two / "a_T1w.nii.gz")
    other = tmp_path / "other"
    other.mkdir()
    moved = other / "a_T1w.nii.gz"
    moved.write_bytes((two / "a_T1w.nii.gz").read_bytes())
    done, _ = infer(moved)
    assert done.code == 0
    image = nib.load(brain_t1)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 2, image.affine, image.header), moved)
    before = (tmp_path / "out" / "a_report.json").read_bytes()
    (two / "a_T1w.nii.gz").touch()
    done, _ = infer(two / "a_T1w.nii.gz")
    assert done.code == 0
    done, _ = infer(moved)
    assert done.code == 2
    assert "holds the result of another scan that is called 'a' too" in done.error
    assert (tmp_path / "out" / "a_report.json").read_bytes() == before
    done, _ = infer(moved, "--overwrite")
    assert done.code == 0
    assert (tmp_path / "out" / "a_report.json").read_bytes() != before


def test_a_row_per_scan_stands_on_stdout_and_overwrite_scores_again(infer, two, tmp_path):
    (two / "broken.nii.gz").write_bytes(b"x")
    done, rows = infer(two)
    assert done.code == 1
    heading, *printed = done.out.splitlines()[:4]
    assert heading.split()[:6] == ["scan", "score", "percentile", "findings", "flags", "seconds"]
    assert [line.split()[0] for line in printed] == ["a", "b", "broken"]
    of_a = next(row for row in rows if row["id"] == "a")
    cells = printed[0].split()
    assert float(cells[1]) == pytest.approx(float(of_a["score"]), rel=1e-3)
    assert cells[3] == of_a["components"] and float(cells[5]) > 0
    assert printed[2].split() == ["broken", "not", "scored"]
    assert not any(line.startswith("a ") for line in done.err.splitlines())

    mask = tmp_path / "out" / "a_mask.nii.gz"
    before = mask.stat().st_mtime_ns
    done, _ = infer(two)
    assert done.out.splitlines()[1].split()[5] == "stood" and mask.stat().st_mtime_ns == before
    done, again = infer(two, "--overwrite")
    assert float(done.out.splitlines()[1].split()[5]) > 0 and mask.stat().st_mtime_ns > before
    assert again == rows


def test_a_mask_of_the_user_s_own_is_not_written_over(command, two, tiny_run):
    own = two / "a_mask.nii.gz"
    own.write_bytes(b"drawn by hand")
    scan = two / "a_T1w.nii.gz"
    done = command("infer", "--run", tiny_run, "--input", scan, "--out", two)
    assert done.code == 2
    assert "a file that Norma did not write" in done.error
    assert own.read_bytes() == b"drawn by hand"


def test_what_libraries_print_goes_to_the_log_and_sentences_to_stderr(tmp_path):
    """A library in C++ writes on descriptor 2, past Python's stderr."""
    script = (
        "import argparse, os, sys\n"
        "from pathlib import Path\n"
        "from pipelines import cli\n"
        "def main(arguments):\n"
        f"    cli.log_to(Path({str(tmp_path)!r}))\n"
        "    os.write(2, b'a library speaks\\n')\n"
        "    cli.log.info('a sentence of our own')\n"
        "    print('and one past logging', file=sys.stderr)\n"
        "    cli.release()\n"
        "    os.write(2, b'back again\\n')\n"
        "    return 0\n"
        "sys.argv = ['x']\ncli.run(main, argparse.ArgumentParser())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    own = ["a sentence of our own", "and one past logging", "back again"]
    assert done.stderr.splitlines() == own
    assert (tmp_path / cli.LOG).read_text().startswith("a library speaks\n")


def test_no_scan_is_read_by_itk():
    """Volumes are read by nibabel behind checks of our own; ANTs reads its own transforms alone."""
    root = Path(cli.__file__).resolve().parent.parent
    for folder in ("preprocessing", "pipelines", "models", "evaluation"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text()
            assert "image_read" not in text, path
            assert "ReadImage" not in text, path
