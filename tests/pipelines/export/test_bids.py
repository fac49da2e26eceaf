"""Norma as a BIDS App: which scans it takes, and what the BIDS validator says of what it writes."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from norma import __version__
from pipelines.export.bids import entities
from preprocessing.files import read_table

VALIDATOR = Path(sys.executable).parent / "bids-validator-deno"


@pytest.fixture
def dataset(brain_t1, tmp_path):
    """Two people, one with two sessions of which one is no image."""
    folder = tmp_path / "raw"
    for name in ("sub-01/anat/sub-01", "sub-02/ses-a/anat/sub-02_ses-a"):
        path = folder / f"{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(brain_t1.read_bytes())
    broken = folder / "sub-02" / "ses-b" / "anat" / "sub-02_ses-b_T1w.nii.gz"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"nothing")
    description = {"Name": "test", "BIDSVersion": "1.10.0"}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    return folder


def found_errors(folder):
    """Codes of the errors that the BIDS validator finds."""
    command = [str(VALIDATOR), "--format", "json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [(i["code"], i.get("location")) for i in issues if i["severity"] == "error"]


def test_a_dataset_becomes_derivatives(dataset, tiny_run, command, quick_prepare):
    """Below the dataset itself, as BIDS Apps are used; a broken scan costs itself alone."""
    out = dataset / "derivatives" / "norma"
    options = ["--run", tiny_run, "--skip-bids-validation"]
    done = command("bids_app", dataset, out, "participant", *options)
    assert done.code == 1
    assert "sub-02_ses-b_T1w.nii.gz" in done.err

    base = out / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_desc-anomalyT1w"
    mask = nib.load(f"{base}_mask.nii.gz")
    scan = nib.load(dataset / "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz")
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert mask.shape == scan.shape
    sidecar = json.loads(Path(f"{base}_mask.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz"]
    assert (sidecar["ModelName"], sidecar["Threshold"]) == ("vae_cr", 0.2)
    written = {p.name for p in out.glob("sub-*/**/*.nii.gz")}
    assert {name.split("_desc")[0] for name in written} == {"sub-01", "sub-02_ses-a"}
    text = (out / "dataset_description.json").read_text()
    assert json.loads(text)["DatasetLinks"] == {"raw": "../.."}
    assert str(dataset) not in text

    if VALIDATOR.is_file():
        assert found_errors(out) == []

    again = command("bids_app", dataset, out, "participant", *options)
    assert again.code == 1
    assert {p.name for p in out.glob("sub-*/**/*.nii.gz")} == written

    assert command("bids_app", dataset, out, "group").code == 0
    rows = read_table(out / "scores.tsv")
    assert [row["id"] for row in rows] == ["sub-01", "sub-02_ses-a"]

    Path(f"{base}_report.json").write_text("[1]")
    done = command("bids_app", dataset, out, "group")
    assert done.code == 1
    assert "a damaged report; it is left out" in done.err
    assert [row["id"] for row in read_table(out / "scores.tsv")] == ["sub-01"]

    scan_file = dataset / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    scan_file.write_bytes(b"nothing")  # what was made of it before must not pass for its mask
    assert command("bids_app", dataset, out, "participant", *options).code == 1
    assert not list((out / "sub-01").rglob("*.*"))


@pytest.mark.parametrize(
    ("options", "scored"),
    [
        (["--participant-label", "02", "--session-label", "a"], ["sub-02_ses-a"]),
        (["--participant_label", "sub-01"], ["sub-01"]),
    ],
)
def test_people_and_sessions_are_chosen(
    dataset, tiny_run, command, quick_prepare, tmp_path, options, scored
):
    work = tmp_path / "scratch"
    common = ["--run", tiny_run, "--skip-bids-validation", "-w", work]
    done = command("bids_app", dataset, tmp_path / "out", "participant", *common, *options)
    assert done.code == 0, done.err
    assert [row["id"] for row in read_table(work / "t1" / "scores.tsv")] == scored


def test_what_is_refused(dataset, tiny_run, command, tmp_path):
    common = [dataset, tmp_path / "out", "participant", "--run", tiny_run]
    asked = ["--skip-bids-validation", "--participant-label", "07"]
    done = command("bids_app", *common, *asked)
    assert (done.code, "sub-07" in done.error, "sub-01, sub-02" in done.error) == (2, True, True)
    if VALIDATOR.is_file():
        (dataset / "dataset_description.json").unlink()
        done = command("bids_app", *common)
        assert done.code == 2
        assert "--skip-bids-validation" in done.err
    assert command("bids_app", dataset, tmp_path / "out", "group").code == 3
    shown = command("bids_app", "--version")
    assert (shown.code, __version__ in shown.out) == (0, True)


def test_entities_of_a_name():
    path = Path("sub-01/sub-01_ses-a_acq-mp2rage_run-2_T1w.nii.gz")
    assert entities(path) == {"sub": "01", "ses": "a", "acq": "mp2rage", "run": "2"}
