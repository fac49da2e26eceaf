"""DICOM series that are made here.

Values, geometry, gantry tilt, damaged files, and patient names that go nowhere.
"""

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from preprocessing import dicom
from preprocessing.images import read_image
from preprocessing.quality import flags
from preprocessing.scans import InputError
from preprocessing.tables import list_scans

SECRET = ("SECRET", "NAME", "ID-4711", "19700101", "St. Elsewhere")
N = 16  # slices
SIZE = 64  # pixels along a side
SPACING = (1.5, 2.0)  # mm between rows and between columns
STEP = 5.0  # mm between slices
TILT = 20.0  # degrees of the gantry
ROD = (24.0, -12.0)  # x, y (RAS+ mm) of a rod along z, 1000 HU
CORNER = (-60.0, -40.0, 100.0)  # LPS mm of the first pixel of the first slice


def slice_hu(i, shear):
    """HU of slice i: air, a block of tissue of 40 HU, and the rod where the pixels meet it."""
    hu = np.full((SIZE, SIZE), -1000)
    hu[10:50, 10:50] = 40
    row = (-ROD[1] - (CORNER[1] + shear * i)) / SPACING[0]
    column = (-ROD[0] - CORNER[0]) / SPACING[1]
    rows, columns = np.indices(hu.shape)
    hu[(abs(rows - row) <= 2) & (abs(columns - column) <= 2)] = 1000
    return hu


def write_series(
    folder, number=3, tilt=0.0, kind=("ORIGINAL", "PRIMARY", "AXIAL"), offset=-1024, signed=0
):
    """A CT series of N slices, of which a tilted gantry moves each one along y."""
    folder.mkdir(parents=True, exist_ok=True)
    shear = STEP * np.tan(np.deg2rad(tilt))
    for i in range(N):
        d = new_file(folder, number, i)
        add_patient(d)
        add_series(d, folder, number, kind, i)
        add_geometry(d, tilt, shear, i)
        d.SamplesPerPixel = 1
        d.PhotometricInterpretation = "MONOCHROME2"
        d.PixelRepresentation = signed
        d.BitsAllocated = 16
        d.BitsStored = 16
        d.HighBit = 15
        d.RescaleSlope = 2
        d.RescaleIntercept = offset
        d.RescaleType = "HU"
        d.PixelData = ((slice_hu(i, shear) - offset) // 2).astype("<u2").tobytes()
        pydicom.dcmwrite(folder / f"{number}_{i:03d}.dcm", d, enforce_file_format=True)
    return folder


def new_file(folder, number, i):
    """An empty CT image, with its identifiers."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[f"{folder}{number}-{i}"])
    d = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    d.SOPClassUID = CTImageStorage
    d.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    return d


def add_patient(d):
    d.PatientName = "SECRET^NAME"
    d.PatientID = "ID-4711"
    d.PatientBirthDate = "19700101"
    d.InstitutionName = "St. Elsewhere"


def add_series(d, folder, number, kind, i):
    study = generate_uid(entropy_srcs=[str(folder)])
    d.SeriesInstanceUID = generate_uid(entropy_srcs=[f"{folder}{number}"])
    d.StudyInstanceUID = study
    d.FrameOfReferenceUID = study
    d.Modality = "CT"
    d.Manufacturer = "GE MEDICAL SYSTEMS"
    d.ImageType = list(kind)
    d.SeriesDescription = "SECRET head"
    d.StudyDate = "20200101"
    d.StudyTime = "120000"
    d.SeriesNumber = number
    d.AcquisitionNumber = 1
    d.InstanceNumber = i + 1


def add_geometry(d, tilt, shear, i):
    d.PatientPosition = "HFS"
    d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    d.ImagePositionPatient = [CORNER[0], CORNER[1] + shear * i, CORNER[2] + STEP * i]
    d.PixelSpacing = list(SPACING)
    d.SliceThickness = STEP
    d.GantryDetectorTilt = tilt
    d.Rows = SIZE
    d.Columns = SIZE


def rod(image):
    """Where the rod's centre lies in each axial slice of a RAS+ image: x, y in mm."""
    data = np.asarray(image.dataobj)
    places = []
    for k in range(data.shape[2]):
        bright = np.argwhere(data[:, :, k] > 600)
        if len(bright):
            places.append((image.affine @ [*bright.mean(0), k, 1])[:2])
    return np.array(places)


def is_straight(affine):
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)


def test_a_straight_series_keeps_its_values_and_its_place(tmp_path):
    write_series(tmp_path / "in/p1/head")
    (scan,), failures = dicom.convert(tmp_path / "in", tmp_path / "out")
    assert failures == {} and (scan.id, scan.subject) == ("p1_head_series-3", "p1")
    image = nib.as_closest_canonical(read_image(scan.image))
    data = np.asarray(image.dataobj)
    assert image.shape == (SIZE, SIZE, N)
    sizes = nib.affines.voxel_sizes(image.affine)
    assert np.allclose(sizes, (SPACING[1], SPACING[0], STEP), atol=1e-4)
    # the first pixel in LPS is the last voxel along x and y in RAS+
    corner = [-CORNER[0], -CORNER[1], CORNER[2], 1]
    assert np.allclose(image.affine @ [SIZE - 1, SIZE - 1, 0, 1], corner, atol=1e-3)
    expected = np.stack([slice_hu(i, 0).T[::-1, ::-1] for i in range(N)], axis=-1)
    assert np.array_equal(data, expected) and set(np.unique(data)) == {-1000, 40, 1000}
    assert np.allclose(rod(image), ROD, atol=1.1)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("tilt", [TILT, -TILT])
def test_gantry_tilt_is_corrected(tmp_path, tilt, signed):
    write_series(tmp_path / "in/p1", tilt=tilt, signed=signed)
    (scan,), failures = dicom.convert(tmp_path / "in", tmp_path / "out")
    assert failures == {} and scan.subject == "p1"
    image = nib.as_closest_canonical(read_image(scan.image))
    assert is_straight(image.affine)
    places = rod(image)
    assert len(places) == N
    # one pixel; uncorrected, the rod would run over N * STEP * tan(20) = 29 mm
    assert np.ptp(places[:, 1]) < 1.6
    assert np.allclose(places, ROD, atol=1.6)
    data = np.asarray(image.dataobj)
    assert 900 < data.max() <= 1001 and data.min() == pytest.approx(-1000, abs=25)
    middle = data[28:36, :, N // 2]
    assert np.median(middle[middle > -500]) == pytest.approx(40, abs=1)


def test_a_tilt_is_corrected_whatever_the_numbers(tmp_path):
    """Unsigned values beyond int16: dcm2niix corrects no tilt of such."""
    write_series(tmp_path / "in/tilted", tilt=TILT, offset=-2 * 40000)
    (scan,), failures = dicom.convert(tmp_path / "in", tmp_path / "out")
    image = nib.as_closest_canonical(read_image(scan.image))
    assert failures == {} and is_straight(image.affine)
    assert np.allclose(rod(image), ROD, atol=1.6)


def test_a_second_run_forgets_series_that_are_gone(tmp_path):
    write_series(tmp_path / "in/p", 3)
    dicom.convert(tmp_path / "in", tmp_path / "out")
    for path in (tmp_path / "in/p").iterdir():
        path.unlink()
    write_series(tmp_path / "in/p", 4)
    scans, _ = dicom.convert(tmp_path / "in", tmp_path / "out")
    assert [s.id for s in scans] == ["p_series-4"]


def test_of_twin_volumes_the_evened_one_is_taken(tmp_path):
    names = [
        "series-1.nii.gz",
        "series-1_Tilt_1.nii.gz",
        "series-1_Tilt_Eq_1.nii.gz",
        "series-2.nii.gz",
        "series-3_Eq_1.nii.gz",
        "series-3.nii.gz",
    ]
    taken = dicom._preferred([tmp_path / n for n in names])
    assert [p.name for p in taken] == [
        "series-1.nii.gz",
        "series-2.nii.gz",
        "series-3_Eq_1.nii.gz",
    ]


def test_two_patients_are_two_subjects_and_two_series_two_scans(tmp_path):
    for patient, number in (("A", 2), ("A", 5), ("B", 2)):
        write_series(tmp_path / "in" / patient / "ct", number)
    scans, failures = list_scans(tmp_path / "in", "ct", tmp_path / "out")
    assert failures == {}
    assert [(s.id, s.subject) for s in scans] == [
        ("A_ct_series-2", "A"),
        ("A_ct_series-5", "A"),
        ("B_ct_series-2", "B"),
    ]
    assert all(s.image.is_file() and s.image.is_relative_to(tmp_path / "out/dicom") for s in scans)


def test_a_series_in_the_folder_itself(tmp_path):
    write_series(tmp_path / "patient 7")
    (scan,), _ = dicom.convert(tmp_path / "patient 7", tmp_path / "out")
    assert (scan.id, scan.subject) == ("patient-7_series-3", "patient-7")


def test_a_broken_series_fails_by_name_and_the_others_are_converted(tmp_path):
    write_series(tmp_path / "in/good")
    (tmp_path / "in/bad").mkdir()
    (tmp_path / "in/bad/x.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x07" * 500)
    (tmp_path / "in/bad/notes.txt").write_text("no image")
    scans, failures = dicom.convert(tmp_path / "in", tmp_path / "out")
    assert [s.subject for s in scans] == ["good"]
    assert failures == {
        "bad_damaged": f"{tmp_path / 'in/bad'}: 1 of its DICOM files cannot be used: "
        "its header names no series and describes no pixels."
    }


def test_a_truncated_slice_costs_its_series_not_its_neighbours(tmp_path):
    write_series(tmp_path / "in/good")
    bad = write_series(tmp_path / "in/bad")
    for path in bad.iterdir():
        path.write_bytes(path.read_bytes()[:600])
    scans, failures = dicom.convert(tmp_path / "in", tmp_path / "out")
    assert [s.subject for s in scans] == ["good"]
    assert (
        list(failures) == ["bad_damaged"] and f"{N} of its DICOM files" in failures["bad_damaged"]
    )


@pytest.mark.parametrize("how", ["absent", "header cut", "pixels cut"])
def test_a_gap_in_a_series_is_flagged_and_keeps_the_other_slices_in_place(tmp_path, how):
    lost = write_series(tmp_path / "in/p") / "3_007.dcm"
    length = {"absent": 0, "header cut": 600, "pixels cut": 4000}[how]
    lost.write_bytes(lost.read_bytes()[:length])
    (scan,), failures = dicom.convert(tmp_path / "in", tmp_path / "out")
    assert list(failures) == (["p_damaged"] if how == "header cut" else [])
    assert "_Eq" in scan.image.name
    flagged = ["missing slices (interpolated) is 1 slices, expected at most 0 slices"]
    if how == "pixels cut":
        flagged.append("damaged slices left out is 1 slices, expected at most 0 slices")
    assert flags(scan.checks) == flagged
    image = nib.as_closest_canonical(read_image(scan.image))
    assert image.shape == (SIZE, SIZE, N)
    places = rod(image)
    assert len(places) == N and np.allclose(places, ROD, atol=1.6)
    assert np.allclose(nib.affines.voxel_sizes(image.affine)[2], STEP, atol=1e-3)


def test_nothing_but_broken_series_is_an_input_error(tmp_path):
    (tmp_path / "in/bad").mkdir(parents=True)
    (tmp_path / "in/bad/x.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x07" * 500)
    with pytest.raises(InputError, match=r"in/bad: 1 of its DICOM files cannot be used: "):
        dicom.convert(tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match=r"empty: no DICOM series found"):
        (tmp_path / "empty").mkdir()
        dicom.convert(tmp_path / "empty", tmp_path / "out")


def test_dicom_is_known_by_its_preamble_not_its_name(tmp_path):
    write_series(tmp_path / "deep/er")
    (tmp_path / "deep/er/3_000.dcm").rename(tmp_path / "IM0001")
    (tmp_path / "text.dcm").write_text("DICM")
    assert dicom.is_dicom(tmp_path / "IM0001")
    assert not dicom.is_dicom(tmp_path / "text.dcm")
    assert not dicom.is_dicom(tmp_path / "absent")
    assert dicom.has_dicom(tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/x.dcm").write_text("text")
    assert not dicom.has_dicom(tmp_path / "plain")


def test_derived_series_are_used_only_where_there_is_nothing_else(tmp_path):
    write_series(tmp_path / "in/both", 2)
    write_series(tmp_path / "in/both", 9, kind=("DERIVED", "SECONDARY", "MPR"))
    write_series(tmp_path / "in/alone", 9, kind=("DERIVED", "SECONDARY", "MPR"))
    scans, failures = dicom.convert(tmp_path / "in", tmp_path / "out")
    assert [s.id for s in scans] == ["alone_series-9", "both_series-2"]
    assert list(failures) == ["both_series-9"]
    assert failures["both_series-9"].endswith(
        "derived from other images of its study, which are taken instead."
    )


def secrets_in(text):
    """What belongs to the patient and stands in a text, in any case."""
    return [s for s in SECRET if s.lower() in text.lower()]


def header_text(path):
    """All text in the header of a NIfTI."""
    image = nib.load(path)
    names = ("descrip", "aux_file", "db_name", "intent_name")
    texts = [image.header[name].tobytes().rstrip(b"\0").decode("latin-1") for name in names]
    return "\n".join([*texts, *(str(e.get_content()) for e in image.header.extensions)])


def test_what_belongs_to_the_patient_goes_nowhere(tmp_path, capfd):
    write_series(tmp_path / "in/p1", tilt=TILT)
    write_series(tmp_path / "in/p2")
    scans, _ = dicom.convert(tmp_path / "in", tmp_path / "out")
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(written) >= len(scans) == 2
    assert not [p for p in written if p.suffix == ".json"]
    for path in written:
        assert not secrets_in(str(path.relative_to(tmp_path))) and not secrets_in(header_text(path))
    streams = capfd.readouterr()
    assert not secrets_in(streams.out + streams.err)
    for scan in scans:
        assert not secrets_in(f"{scan.id} {scan.subject} {scan.image.name}")
