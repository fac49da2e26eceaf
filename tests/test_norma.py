"""The Python API does all that `make infer` does, without a process or a printed line."""

import csv
import doctest
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

import norma
from preprocessing.scans import InputError, ScanError


def content(path):
    return gzip.decompress(path.read_bytes())


def test_detect_equals_the_command(command, tiny_run, brain_t1, quick_prepare, tmp_path, capsys):
    assert (
        command("infer", "--run", tiny_run, "--input", brain_t1, "--out", tmp_path / "a").code == 0
    )
    run = norma.load_run(tiny_run, "cpu")
    capsys.readouterr()
    (scan,) = norma.read_scans(brain_t1, run.recipe.name)
    detection = run.detect(scan)
    (tmp_path / "b").mkdir()
    detection.save(tmp_path / "b")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    for name in ("sub-01_mask.nii.gz", "sub-01_map.nii.gz"):
        assert content(tmp_path / "a" / name) == content(tmp_path / "b" / name)
    by_command = json.loads((tmp_path / "a" / "sub-01_report.json").read_text())
    by_api = json.loads((tmp_path / "b" / "sub-01_report.json").read_text())
    for key in ("fingerprint", "source", "digest"):  # by which a second command knows it
        assert by_command.pop(key)
    assert by_api == by_command
    marked = np.asarray(detection.mask.dataobj).sum() * np.prod(detection.mask.header.get_zooms())
    assert detection.report.anomalous_mm3 == pytest.approx(marked, rel=1e-4)


def test_a_folder_is_scored_silently_and_a_bad_scan_is_a_report(
    tiny_run, brain_t1, quick_prepare, tmp_path, capsys
):
    source = tmp_path / "in"
    source.mkdir()
    (source / "good_T1w.nii.gz").write_bytes(brain_t1.read_bytes())
    (source / "bad_T1w.nii.gz").write_bytes(b"nothing")
    capsys.readouterr()
    reports = norma.detect_all(source, tiny_run, tmp_path / "out")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    assert {report.id: report.status for report in reports} == {
        "good": "scored",
        "bad": "not scored",
    }
    with open(tmp_path / "out" / "scores.tsv", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert [row["status"] for row in rows] == [report.status for report in reports]


def test_errors_are_raised(tiny_run, tmp_path):
    with pytest.raises(InputError, match="no such run folder"):
        norma.load_run(tmp_path / "absent")
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    with pytest.raises(ScanError, match=r"bad\.nii\.gz"):
        norma.detect(tmp_path / "bad.nii.gz", tiny_run)


def test_the_example_of_the_docstring_runs(tiny_run, brain_t1, quick_prepare, tmp_path):
    """The lines of the module's own example, with a run and a scan that are there."""
    text = norma.__doc__
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    example = "\n".join(lines).replace("runs/ct/ensemble", str(tiny_run))
    example = example.replace("new_scans", str(brain_t1))
    assert re.search(r"run\.detect\(scan\)", example)
    exec(compile(example, "example", "exec"), {"out": tmp_path})
    assert (tmp_path / "sub-01_mask.nii.gz").is_file()
    assert doctest.testmod(norma).failed == 0


def test_it_is_short():
    assert len(Path(norma.__file__).read_text().splitlines()) <= 170
