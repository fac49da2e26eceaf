"""A DICOM series through `infer`: its report, what the mask lies on, and results as DICOM."""

import csv
import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.processing import resample_from_to

from pipelines.detect import batch
from pipelines.detect.report import Report
from pipelines.export import dicom as export
from tests.preprocessing.made_dicom import SECRETS, write_series

UID = "1.2.826.0.1.3680043.8.498.4711"
GONE = 30  # a slice that is missing


@pytest.fixture(scope="module")
def series(brain_t1, tmp_path_factory):
    """A folder with the T1 scan as a DICOM series without one of its slices, and 3 slices more."""
    image = nib.load(brain_t1)
    data = np.asarray(image.dataobj)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    lps = to_lps @ image.affine
    zooms = np.linalg.norm(lps[:3, :3], axis=0)
    kept = [k for k in range(data.shape[2]) if k != GONE]
    folder = tmp_path_factory.mktemp("dicom")
    write_series(
        folder / "p1/t1",
        [(lps @ [0, 0, k, 1])[:3] for k in kept],
        [data[:, :, k].T for k in kept],
        modality="MR",
        orientation=[*(lps[:3, 0] / zooms[0]), *(lps[:3, 1] / zooms[1])],
        PixelSpacing=[float(zooms[1]), float(zooms[0])],
        Rows=data.shape[1],
        Columns=data.shape[0],
        SliceThickness=float(zooms[2]),
        SeriesInstanceUID=UID,
        SeriesNumber=7,
    )
    write_series(folder / "p2", [(0, 0, 5.0 * k) for k in range(3)], modality="MR")
    return folder


def test_report_flags_and_kept_scan(series, brain_t1, tiny_run, tmp_path, command):
    given = ("infer", "--run", tiny_run, "--input", series, "--out", tmp_path)
    done = command(*given, "--keep-nifti", "--dicom")
    assert done.code == 1, done.err  # of p2
    lost = json.loads((tmp_path / "p2_series-2_report.json").read_text())
    assert lost["status"] == "not scored"
    assert lost["reason"].endswith("slices: 3, expected 8 or more; export the whole series.")

    report = json.loads((tmp_path / "p1_t1_series-7_report.json").read_text())
    assert report["image"] == "p1/t1, series 7"
    assert report["dicom"] == {"folder": "p1/t1", "series_uid": UID, "series_number": "7"}
    told = "missing slices (interpolated) is 1 slices, expected at most 0 slices"
    assert told in report["flags"]
    with open(tmp_path / "scores.tsv") as table:
        row, lost = csv.DictReader(table, delimiter="\t")
    assert told in row["flags"] and row["image"] == "p1/t1, series 7"
    assert lost["status"] == "not scored" and lost["reason"].startswith("p2, series 2 (1.2")

    original = nib.load(brain_t1)
    kept = nib.load(tmp_path / "p1_t1_series-7_scan.nii.gz")
    mask = nib.load(tmp_path / "p1_t1_series-7_mask.nii.gz")
    assert kept.shape == mask.shape and np.allclose(kept.affine, mask.affine, atol=1e-5)
    there = resample_from_to(original, kept, order=1).get_fdata()  # by the affines of both
    assert np.corrcoef(there.ravel(), kept.get_fdata().ravel())[0, 1] > 0.99

    dicom = {p.name.rpartition("_")[2]: p for p in tmp_path.glob("*.dcm")}
    assert set(dicom) == {"mask.dcm", "map.dcm", "report.dcm"}
    for path in dicom.values():  # the patient's identity is theirs alone
        assert SECRETS[0].encode() in path.read_bytes()
    shown = pydicom.dcmread(dicom["map.dcm"]).pixel_array
    assert len(shown) == original.shape[2] - 1  # a frame per slice that came, none for the gap
    assert 0 < pydicom.dcmread(dicom["mask.dcm"]).pixel_array.sum() < shown.size

    others = [p for p in tmp_path.iterdir() if p.suffix not in (".gz", ".dcm")]
    everything = b"".join(p.read_bytes() for p in others)
    everything += kept.header.binaryblock + mask.header.binaryblock
    assert not [secret for secret in SECRETS if secret.encode() in everything]

    again = command(*given)
    assert again.code == 1 and not (tmp_path / "p1_t1_series-7_scan.nii.gz").exists()
    assert all(path.is_file() for path in dicom.values())  # the result is the same


def test_a_scan_that_came_as_nifti_gets_a_note(brain_t1, tiny_run, tmp_path, command, monkeypatch):
    """It is no failure; a series that cannot be written is one. No scan is scored for this."""
    report = Report(id="sub-01", status="scored", score=0.1, anomalous_mm3=0.0)
    monkeypatch.setattr(batch, "detect_all", lambda *_, **__: [report])
    given = ("infer", "--run", tiny_run, "--input", brain_t1, "--out", tmp_path, "--dicom")
    done = command(*given)
    assert done.code == 0
    note = "sub-01: no DICOM is written, as it came as a file and not as DICOM."
    assert sum(note in line for line in done.sentences) == 1
    assert not list(tmp_path.glob("*.dcm"))
    monkeypatch.setattr(export, "write_all", lambda *_: 1)
    assert command(*given).code == 1
