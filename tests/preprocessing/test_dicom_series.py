"""Which DICOM files make a scan, where it lies, and why others are left out."""

import itertools
import os
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from preprocessing import dicom, dicom_headers
from preprocessing.dicom_geometry import Stack
from preprocessing.images import read_image
from preprocessing.quality import flags
from preprocessing.scans import InputError
from tests.preprocessing import made_dicom
from tests.preprocessing.made_dicom import (
    COLUMNS,
    CORNER,
    CORONAL,
    POSES,
    ROWS,
    SECRETS,
    SPACING,
    STEP,
    affine_by_hand,
    axial,
    found_marks,
    in_array_order,
    in_order,
    steps,
    strip_preamble,
    voxels,
    write_enhanced,
    write_marked,
    write_series,
)

N = 12
PLACES = axial(*steps(N))


def convert(tmp_path):
    return dicom.convert(tmp_path / "in", tmp_path / "out")


def the_scan(tmp_path):
    (scan,), lost = convert(tmp_path)
    assert lost == {}
    return scan


def the_reason(tmp_path):
    """Why the one series of the input is left out."""
    with pytest.raises(InputError) as error:
        convert(tmp_path)
    return str(error.value)


def assert_volume(scan, data, affine=None):
    """The image of a scan has these slices (N, rows, columns), from low to high, at this place."""
    image = read_image(scan.image)
    assert image.shape == (COLUMNS, ROWS, len(data))
    assert np.allclose(image.affine, affine_by_hand() if affine is None else affine, atol=1e-3)
    assert np.array_equal(np.asarray(image.dataobj), in_array_order(data))


# one series, one scan


def test_two_visits_with_one_series_number_are_two_scans(tmp_path):
    first = write_series(tmp_path / "in/p", PLACES, voxels(N, 1), name="a")
    second = write_series(tmp_path / "in/p", PLACES, voxels(N, 2), name="b")
    scans, lost = convert(tmp_path)
    assert lost == {} and [s.subject for s in scans] == ["p", "p"]
    assert len({s.id for s in scans}) == len({s.image for s in scans}) == 2
    found = {tuple(np.asarray(read_image(s.image).dataobj)[:2, 0, 0]) for s in scans}
    assert found == {tuple(in_array_order(data)[:2, 0, 0]) for data in (first, second)}
    assert all(s.id.startswith("p_series-2-") for s in scans)


def test_two_reconstructions_in_folders_of_one_name_are_two_scans(tmp_path):
    for patient, seed in (("\u7532", 1), ("\u4e59", 2)):
        write_series(tmp_path / "in" / patient / "ct", PLACES, voxels(N, seed))
    scans, lost = convert(tmp_path)
    assert lost == {} and {s.subject for s in scans} == {"\u7532", "\u4e59"}
    assert {s.id for s in scans} == {"\u7532_ct_series-2", "\u4e59_ct_series-2"}


def test_one_series_in_several_folders_is_one_scan(tmp_path):
    uids = {part: generate_uid() for part in ("StudyInstanceUID", "SeriesInstanceUID")}
    uids["FrameOfReferenceUID"] = generate_uid()
    data = voxels(N)
    write_series(tmp_path / "in/p/DIR1", PLACES[:7], data[:7], **uids)
    write_series(tmp_path / "in/p/DIR2", PLACES[7:], data[7:], **uids)
    scan = the_scan(tmp_path)
    assert_volume(scan, data)
    assert scan.origin["folder"] == "p" and scan.id == "p_series-2"


def test_two_people_under_one_uid_are_two_scans(tmp_path):
    """Bad anonymisation: slices would be laid between each other, 2.3 mm apart."""
    uids = {part: generate_uid() for part in ("StudyInstanceUID", "SeriesInstanceUID")}
    uids["FrameOfReferenceUID"] = generate_uid()
    one = write_series(tmp_path / "in/one", PLACES, voxels(N, 1), **uids)
    two = write_series(tmp_path / "in/two", axial(*steps(N, 12.3)), voxels(N, 2), **uids)
    scans, lost = convert(tmp_path)
    assert lost == {} and [s.subject for s in scans] == ["one", "two"]
    assert_volume(scans[0], one)
    assert_volume(scans[1], two, affine_by_hand(12.3))


def test_every_series_of_a_folder_is_a_scan_or_lost_with_its_reason(tmp_path):
    study = generate_uid()
    folder = tmp_path / "in/p"
    kinds = {
        "good": {},
        "more": {},
        "mpr": {"ImageType": ["DERIVED", "SECONDARY", "MPR"]},
        "scout": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "pet": {"Modality": "PT"},
        "colour": {"PhotometricInterpretation": "RGB"},
    }
    for number, (name, elements) in enumerate(kinds.items(), start=1):
        elements |= {"SeriesNumber": number, "StudyInstanceUID": study}
        write_series(folder, PLACES, voxels(N, number), name=name, **elements)
    write_series(folder, PLACES[:3], name="few", SeriesNumber=7, StudyInstanceUID=study)
    scans, lost = convert(tmp_path)
    assert [s.id for s in scans] == ["p_series-1", "p_series-2"]
    expected = {
        "p_series-3": "derived from other images of its study, which are taken instead.",
        "p_series-4": "a localiser, which plans other series.",
        "p_series-5": "modality 'PT', expected CT or MR.",
        "p_series-6": "pixels are RGB, expected MONOCHROME2.",
        "p_series-7": "slices: 3, expected 8 or more; export the whole series.",
    }
    assert {name: reason.split("): ")[1] for name, reason in lost.items()} == expected
    assert all(reason.startswith(f"{folder}, series ") for reason in lost.values())


def test_a_series_is_named_by_uid_number_and_folder(tmp_path):
    uid = generate_uid()
    write_series(tmp_path / "in/p/ct", PLACES, SeriesInstanceUID=uid, SeriesNumber=17)
    assert the_scan(tmp_path).origin == {
        "folder": "p/ct",
        "series_uid": uid,
        "series_number": "17",
    }


@pytest.mark.parametrize("text", [b"\xff\xfe\xe4", "M\u00fcller".encode("latin-1")])
def test_text_that_is_no_utf8_costs_nothing_and_goes_nowhere(tmp_path, text):
    write_series(tmp_path / "in/p", PLACES, SpecificCharacterSet="ISO_IR 192")
    for path in (tmp_path / "in/p").iterdir():
        path.write_bytes(path.read_bytes().replace(b"SECRET", text + b"SECRET"[len(text) :]))
    assert_volume(the_scan(tmp_path), voxels(N))


def test_file_names_that_are_no_utf8(tmp_path):
    write_series(tmp_path / "in/p", PLACES)
    odd = os.fsencode(tmp_path / "in") + b"/pat\xe9"
    os.rename(tmp_path / "in/p", odd)
    for name in os.listdir(odd):
        os.rename(odd + b"/" + name, odd + b"/\xff" + name)
    scan = the_scan(tmp_path)
    assert_volume(scan, voxels(N))
    assert scan.origin["folder"] == "pat\\xe9"
    f"{scan.id} {scan.subject} {scan.image.name} {scan.origin}".encode()  # all of it is text


@pytest.mark.parametrize("name", ["FrameOfReferenceUID", "StudyInstanceUID", "PatientID"])
def test_a_uid_that_differs_in_every_file_tells_nothing_apart(tmp_path, name):
    data = write_series(tmp_path / "in/p", PLACES, change=lambda d, k: setattr(d, name, f"1.{k}"))
    assert_volume(the_scan(tmp_path), data)


# what is a DICOM file


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_preamble_are_read(tmp_path, implicit):
    data = write_series(tmp_path / "in/p", PLACES)
    for path in (tmp_path / "in/p").iterdir():
        strip_preamble(path, implicit)
    assert dicom.has_dicom(tmp_path / "in")
    assert_volume(the_scan(tmp_path), data)


def test_other_files_are_not_taken_for_dicom(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(300):
        (tmp_path / f"noise{k}").write_bytes(rng.integers(0, 256, 600, np.uint8).tobytes())
        (tmp_path / f"low{k}").write_bytes(rng.integers(0, 9, 600, np.uint8).tobytes())
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "zeros").write_bytes(bytes(4000))
    (tmp_path / "text.txt").write_text("DICM " * 100)
    (tmp_path / "eights").write_bytes(b"\x08\0\0\0" * 100)
    nib.save(nib.Nifti1Image(np.zeros((8, 9, 10)), np.eye(4)), tmp_path / "x.img")
    assert not dicom.has_dicom(tmp_path)


def test_a_directory_of_files_is_no_series(tmp_path):
    write_series(tmp_path / "in/p", PLACES)
    d = pydicom.dcmread(tmp_path / "in/p/I000")
    d.SOPClassUID = "1.2.840.10008.1.3.10"
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID
    d.SeriesInstanceUID = generate_uid()
    d.save_as(tmp_path / "in/DICOMDIR", enforce_file_format=True)
    assert_volume(the_scan(tmp_path), voxels(N))


def test_linked_folders_are_followed_once(tmp_path):
    write_series(tmp_path / "elsewhere", PLACES)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/p").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "in")
    assert_volume(the_scan(tmp_path), voxels(N))


# order and place


@pytest.mark.parametrize("how", ["absent", "all one", "random", "by time"])
def test_slices_are_sorted_by_their_place(tmp_path, how):
    order = np.random.default_rng(3).permutation(N)
    numbers = {"absent": [None] * N, "all one": [1] * N, "random": order.tolist()}

    def change(d, k):
        if how != "by time":
            d.InstanceNumber = numbers[how][k]
        if how == "absent":
            del d.InstanceNumber

    places = [PLACES[i] for i in order] if how == "by time" else PLACES
    data = write_series(tmp_path / "in/p", places, change=change)
    low_to_high = data[np.argsort(order)] if how == "by time" else data
    assert_volume(the_scan(tmp_path), low_to_high)


def test_missing_slices_are_counted_and_flagged(tmp_path):
    keep = [k for k in range(20) if k not in (5, 6, 13)]
    places = [axial(*steps(20))[k] for k in keep]
    data = write_series(tmp_path / "in/p", places, modality="MR")
    scan = the_scan(tmp_path)
    assert flags(scan.checks) == [
        "missing slices (interpolated) is 3 slices, expected at most 0 slices"
    ]
    image = read_image(scan.image)
    assert image.shape == (COLUMNS, ROWS, 20)
    assert np.allclose(image.affine, affine_by_hand(), atol=1e-3)
    assert np.array_equal(np.asarray(image.dataobj)[..., keep], in_array_order(data))


def test_unequal_distances_are_flagged(tmp_path):
    z = [*range(0, 20, 2), *range(20, 60, 4)]
    data = write_series(tmp_path / "in/p", axial(*z))
    scan = the_scan(tmp_path)
    assert flags(scan.checks) == [
        "distance between slices (largest / smallest) is 2, expected at most 1.05"
    ]
    image = read_image(scan.image)
    assert np.allclose(image.affine, affine_by_hand(0, 2.0), atol=1e-3)
    assert np.array_equal(np.asarray(image.dataobj)[..., z[-1] // 2], in_array_order(data)[..., -1])


def test_tilt_is_flagged(tmp_path):
    places = [(CORNER[0], CORNER[1] + STEP * k * np.tan(0.3), STEP * k) for k in range(N)]
    write_series(tmp_path / "in/p", places, GantryDetectorTilt=np.rad2deg(0.3))
    scan = the_scan(tmp_path)
    assert flags(scan.checks) == [
        "gantry tilt (corrected) is 17.19 degrees, expected at most 0.5 degrees"
    ]


@pytest.mark.parametrize("tilt", [0.0, 17.0, -17.0])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("pose", POSES)
def test_every_voxel_lies_where_its_slice_says(tmp_path, pose, backwards, tilt):
    """Marks in slices, by millimetres: dcm2niix slides tilted slices of some poses the wrong way.

    Its corrected volumes lie up to 18 mm off, here and where files run from the top.
    """
    marks = write_marked(tmp_path / "in/p", pose, tilt, backwards)
    image = read_image(the_scan(tmp_path).image)
    assert np.allclose(found_marks(image), in_order(marks), atol=0.02)


@pytest.mark.parametrize(("modality", "axis"), [("MR", 1), ("CT", 0)])
def test_a_shear_of_any_direction_and_modality_is_corrected(tmp_path, modality, axis):
    """The converter lays such slices straight over each other, at the distance along the shear."""
    marks = write_marked(tmp_path / "in/p", "axial", 19.8, modality=modality, along=axis)
    image = read_image(the_scan(tmp_path).image)
    assert np.allclose(found_marks(image), in_order(marks), atol=0.02)


def test_a_tilted_series_with_a_gap_is_straight(tmp_path):
    marks = write_marked(tmp_path / "in/p", "axial", 17.0)
    (tmp_path / "in/p/I005").unlink()
    scan = the_scan(tmp_path)
    found = found_marks(read_image(scan.image))
    assert len(found) == len(marks) and len(flags(scan.checks)) == 2
    kept = [k for k in range(len(marks)) if k not in (4, 5, 6)]  # beside a gap they are blurred
    assert np.allclose(found[kept], in_order(marks)[kept], atol=0.02)


def test_a_shear_that_is_none_of_a_gantry_is_refused(tmp_path):
    write_marked(tmp_path / "in/p", "axial", 50.0)
    assert "slices sheared by 50.0 degrees, expected at most 45; export" in the_reason(tmp_path)


def test_a_tilted_multiframe_file_is_straight(tmp_path):
    places = [(CORNER[0], CORNER[1] + STEP * k * np.tan(0.3), STEP * k) for k in range(N)]
    data = np.zeros((N, ROWS, COLUMNS), int)
    data[:, 15:18, 20:23] = 1000
    write_enhanced(tmp_path / "in/p", places, data=data)
    marks = [(p[0] + 21 * SPACING[1], p[1] + 16 * SPACING[0], p[2]) for p in places]
    image = read_image(the_scan(tmp_path).image)
    assert np.allclose(found_marks(image), in_order(marks), atol=0.02)


def test_a_tilted_compressed_multiframe_file_is_refused(tmp_path):
    places = [(CORNER[0], CORNER[1] + STEP * k * np.tan(0.3), STEP * k) for k in range(N)]
    write_enhanced(tmp_path / "in/p", places, change=lambda d: d.compress(RLELossless))
    assert "in a compressed multi-frame file, which is not corrected" in the_reason(tmp_path)


def test_the_stack_by_hand():
    """Three oblique slices, one missing before the last; the normal is (0, -0.6, 0.8)."""
    orientation = np.array([1, 0, 0, 0, 0.8, 0.6])
    normal = np.array([0, -0.6, 0.8])
    positions = np.array([[5, 6, 7] + d * normal for d in (0, 9, 3, 6, 15)])
    stack = Stack.of(positions, orientation)
    assert stack.order.tolist() == [0, 2, 3, 1, 4]
    assert np.allclose(stack.gaps, [3, 3, 3, 6]) and stack.step == pytest.approx(3)
    assert stack.missing == (1, pytest.approx(1)) and stack.even_slices == 6
    assert stack.tilt == pytest.approx(0, abs=1e-4) and stack.off_line == pytest.approx(0, abs=1e-9)


def test_slices_of_several_orientations_are_refused(tmp_path):
    uids = {part: generate_uid() for part in ("StudyInstanceUID", "SeriesInstanceUID")}
    uids["FrameOfReferenceUID"] = generate_uid()
    write_series(tmp_path / "in/p", PLACES, **uids)
    upright = [(-30, 5.0 * k, 60) for k in range(5)]
    write_series(tmp_path / "in/p", upright, name="c", orientation=CORONAL, **uids)
    assert "slices of 2 orientations (12, 5), expected one." in the_reason(tmp_path)


def test_a_localiser_under_the_uid_of_a_series_costs_it_nothing(tmp_path):
    uids = {part: generate_uid() for part in ("StudyInstanceUID", "SeriesInstanceUID")}
    uids["FrameOfReferenceUID"] = generate_uid()
    data = write_series(tmp_path / "in/p", PLACES, **uids)
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    upright = {"orientation": CORONAL, "ImageType": kind}
    write_series(tmp_path / "in/p", [(-30, 0, 60)], name="scout", **upright, **uids)
    (scan,), lost = convert(tmp_path)
    assert_volume(scan, data)
    assert [reason.split("): ")[1] for reason in lost.values()] == [
        "a localiser, which plans other series."
    ]


def test_slices_without_a_place_are_refused(tmp_path):
    def change(d, k):
        del d.ImagePositionPatient

    write_series(tmp_path / "in/p", PLACES, change=change)
    assert "slices without position, orientation or pixel spacing" in the_reason(tmp_path)


def test_slices_of_several_sizes_are_refused(tmp_path):
    def change(d, k):
        d.PixelSpacing = [1.5, 2.0 if k else 1.0]

    write_series(tmp_path / "in/p", PLACES, change=change)
    assert "slices of 2 pixel sizes or shapes, expected one." in the_reason(tmp_path)


# what comes twice


def twice(folder, second=None, change=None):
    uids = {part: generate_uid() for part in ("StudyInstanceUID", "SeriesInstanceUID")}
    uids["FrameOfReferenceUID"] = generate_uid()
    data = write_series(folder, PLACES, **uids)
    write_series(folder, PLACES, second, change=change, name="again", **uids)
    return data


def test_slices_that_come_again_under_new_uids_are_one_volume_and_flagged(tmp_path):
    data = twice(tmp_path / "in/p")
    scan = the_scan(tmp_path)
    assert_volume(scan, data)
    assert flags(scan.checks) == [
        f"slices that came twice is {N} slices, expected at most 0 slices"
    ]


def test_several_volumes_in_one_series_are_refused(tmp_path):
    twice(tmp_path / "in/p", voxels(N, 5))
    reason = the_reason(tmp_path)
    assert f"{2 * N} slices at {N} places, which differ: several volumes in one series" in reason


def test_the_same_pixels_on_another_scale_are_another_volume(tmp_path):
    twice(tmp_path / "in/p", change=lambda d, k: setattr(d, "RescaleSlope", 2))
    assert "which differ: several volumes in one series" in the_reason(tmp_path)


def test_copied_files_are_left_out_with_a_word(tmp_path, caplog):
    data = write_series(tmp_path / "in/p", PLACES)
    for path in sorted((tmp_path / "in/p").iterdir()):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    shutil.copytree(tmp_path / "in/p", tmp_path / "in/q")
    (scan,), lost = convert(tmp_path)
    assert_volume(scan, data)
    assert flags(scan.checks) == [] and scan.subject == "p"
    word = (
        "{0}/in/{1}: {2} files are copies, byte by byte, of files in {0}/in/{3}; they are left out."
    )
    within = [word.format(tmp_path, folder, N, folder) for folder in "pq"]
    assert [r.getMessage() for r in caplog.records] == within
    assert lost == {"q_series-2": word.format(tmp_path, "q", N, "p")}


def test_a_copied_file_that_fills_a_gap_stays(tmp_path):
    """Two series of one UID, of which some slices are the same: an empty slice, or a bad export."""
    one = write_series(tmp_path / "in/one", PLACES)
    shutil.copytree(tmp_path / "in/one", tmp_path / "in/two")
    for path in sorted((tmp_path / "in/two").iterdir())[4:]:
        d = pydicom.dcmread(path)
        d.PixelData = bytes(len(d.PixelData))
        d.save_as(path)
    scans, lost = convert(tmp_path)
    assert lost == {} and [s.subject for s in scans] == ["one", "two"]
    assert_volume(scans[0], one)
    assert_volume(scans[1], np.where(np.arange(N)[:, None, None] < 4, one, 0))


def test_a_series_copied_under_new_uids_is_flagged_in_both(tmp_path):
    write_series(tmp_path / "in/p", PLACES, voxels(N))
    write_series(tmp_path / "in/q", PLACES, voxels(N))
    scans, _ = convert(tmp_path)
    assert [flags(s.checks) for s in scans] == [
        ["other series with the same voxels is 1, expected at most 0"]
    ] * 2


# multi-frame files


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("order", ["up", "down", "by time"])
def test_multiframe_files_are_read(tmp_path, modality, order):
    chosen = {"up": np.arange(N), "down": np.arange(N)[::-1]}
    order = chosen.get(order, np.random.default_rng(4).permutation(N))
    data = write_enhanced(tmp_path / "in/p", [PLACES[i] for i in order], modality)
    image = read_image(the_scan(tmp_path).image)
    found = nib.as_closest_canonical(image)
    low_to_high = in_array_order(data[np.argsort(order)]).astype(np.int16)
    expected = nib.as_closest_canonical(nib.Nifti1Image(low_to_high, affine_by_hand()))
    assert np.allclose(found.affine, expected.affine, atol=1e-3)
    assert np.array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))


def test_a_gap_in_a_multiframe_file_is_flagged_and_lies_right(tmp_path):
    """The converter alone gives 11 slices of 5.5 mm, without a word."""
    keep = [k for k in range(N) if k != 4]
    data = write_enhanced(tmp_path / "in/p", [PLACES[k] for k in keep])
    scan = the_scan(tmp_path)
    assert flags(scan.checks) == [
        "missing slices (interpolated) is 1 slices, expected at most 0 slices"
    ]
    image = read_image(scan.image)
    assert np.allclose(image.affine, affine_by_hand(), atol=1e-3)
    assert np.array_equal(np.asarray(image.dataobj)[..., keep], in_array_order(data))


def test_time_points_in_a_multiframe_file_are_refused(tmp_path):
    write_enhanced(tmp_path / "in/p", PLACES * 3)
    assert f"{3 * N} slices at {N} places, which differ: several" in the_reason(tmp_path)


def test_frames_that_are_not_described_are_refused(tmp_path):
    def change(d):
        del d.PerFrameFunctionalGroupsSequence

    write_enhanced(tmp_path / "in/p", PLACES, change=change)
    assert "slices without position, orientation or pixel spacing" in the_reason(tmp_path)


# how pixels are stored


def test_compressed_and_implicit_files_are_read(tmp_path):
    data = write_series(tmp_path / "in/rle", PLACES, change=lambda d, k: d.compress(RLELossless))

    def implicit(d, k):
        d.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian

    write_series(tmp_path / "in/implicit", PLACES, data, change=implicit)
    scans, lost = convert(tmp_path)
    assert lost == {} and len(scans) == 2
    for scan in scans:
        assert_volume(scan, data)


def test_a_slope_of_each_slice_counts(tmp_path):
    def change(d, k):
        d.RescaleSlope = 1 + k % 3
        d.RescaleIntercept = -k

    data = write_series(tmp_path / "in/p", PLACES, change=change)
    k = np.arange(N)[:, None, None]
    assert_volume(the_scan(tmp_path), data * (1 + k % 3) - k)


def test_deflated_files_are_refused_before_they_are_inflated(tmp_path):
    def change(d, k):
        d.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    write_series(tmp_path / "in/p", PLACES, change=change)
    assert f"{N} of its DICOM files cannot be used: it is deflated" in the_reason(tmp_path)


def test_a_claim_beyond_the_limit_is_refused_before_pixels_are_read(tmp_path, monkeypatch):
    def claim(d, k):
        d.compress(RLELossless)  # a file that is not compressed must have its pixels
        d.Rows = 65000
        d.Columns = 65000

    write_series(tmp_path / "in/p", PLACES, change=claim)
    monkeypatch.setattr(dicom, "_run", lambda *_: pytest.fail("pixels were read"))
    assert "65000 x 65000 x 12 voxels take 202.8 GB as float32, expected less than 4 GB" in (
        the_reason(tmp_path)
    )


def test_the_limit_of_memory_is_a_setting_that_the_reason_names(tmp_path):
    write_series(tmp_path / "in/p", PLACES)
    (scan,), _ = convert(tmp_path)
    gigabytes = 4 * np.prod(read_image(scan.image).shape) / 1e9
    with pytest.raises(InputError, match=r"GB \(limits\.max_gb of the recipe\); export fewer"):
        dicom.convert(tmp_path / "in", tmp_path / "out", gigabytes)
    assert dicom.convert(tmp_path / "in", tmp_path / "out", gigabytes * 1.001)[0]


def test_a_claim_beyond_the_file_is_damage(tmp_path):
    def claim(d, k):
        d.Rows = 65000

    write_series(tmp_path / "in/p", PLACES, change=claim)
    reason = the_reason(tmp_path)
    assert "none of 12 files can be used: it claims 48 x 65000 x 1 pixels in 6240000" in reason


def test_frames_by_the_billion_are_not_listed(tmp_path):
    def claim(d):
        del d.PerFrameFunctionalGroupsSequence
        d.NumberOfFrames = 2_000_000_000

    write_enhanced(tmp_path / "in/p", PLACES, change=claim)
    assert "it claims 48 x 40 x 2000000000 pixels" in the_reason(tmp_path)


def test_slices_a_hair_apart_do_not_fill_the_memory(tmp_path):
    """Evened out at the smallest distance, 0.02 mm, they would be millions of slices."""
    z = [*steps(N), 10.02, 100_000.0]
    write_series(tmp_path / "in/p", axial(*z))
    assert "voxels take 38.4 GB as float32" in the_reason(tmp_path)


# damage


def test_random_damage_costs_one_series_and_no_more(tmp_path, monkeypatch):
    """Flipped bytes, cut files: the good series is converted, and every other one is named.

    Each series has UIDs of its own. Damaged copies of one series could meet under one damaged UID,
    and would rightly be told as one series in two folders.
    """
    numbers = itertools.count(10**30)
    monkeypatch.setattr(made_dicom, "generate_uid", lambda: UID(f"1.2.826.0.1.{next(numbers)}"))
    good = write_series(tmp_path / "in/good", PLACES)
    rng = np.random.default_rng(7)
    for n in range(6):
        write_series(tmp_path / f"in/bad{n}", PLACES)
        for path in sorted((tmp_path / f"in/bad{n}").iterdir()):
            content = bytearray(path.read_bytes())
            for place in rng.integers(132, 900, 6):
                content[place] = rng.integers(256)
            path.write_bytes(content[: rng.integers(133, len(content) * 2)])
    scans, lost = convert(tmp_path)
    (scan,) = [s for s in scans if s.subject == "good"]
    assert_volume(scan, good)
    told = {name.split("_")[0] for name in lost} | {s.subject for s in scans}
    assert told == {"good", *(f"bad{n}" for n in range(6))}
    assert all("Traceback" not in reason and len(reason) < 500 for reason in lost.values())


def test_what_a_killed_command_left_is_removed(tmp_path):
    write_series(tmp_path / "in/p", PLACES)
    left = tmp_path / "out/p_series-2/.tmp-dicom-x"
    left.mkdir(parents=True)
    (left / "00000.dcm").symlink_to(tmp_path / "in/p/I000")
    assert_volume(the_scan(tmp_path), voxels(N))
    assert not left.exists() and (tmp_path / "in/p/I000").exists()


def test_what_the_converter_prints_need_not_be_text(tmp_path, monkeypatch):
    write_series(tmp_path / "in/p", PLACES)
    program = tmp_path / "converter"
    program.write_text("#!/bin/sh\nprintf 'no \\377\\376 luck'\n")
    program.chmod(0o755)
    monkeypatch.setattr("dcm2niix.bin", str(program))
    assert "dcm2niix made no volume of this series (no ? luck)." in the_reason(tmp_path)


def test_a_volume_elsewhere_than_the_headers_say_is_refused(tmp_path, monkeypatch):
    write_series(tmp_path / "in/p", PLACES)
    real = dicom._run

    def shifted(folder, target, number):
        output = real(folder, target, number)
        (path,) = target.glob("*.nii.gz")
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine_by_hand(12.0)), path)
        return output

    monkeypatch.setattr(dicom, "_run", shifted)
    assert "reaches from 12.0 to 67.0 mm along its slices, the headers from 10.0 to 65.0" in (
        the_reason(tmp_path)
    )


def test_a_secondary_capture_is_no_scan(tmp_path):
    def capture(d, k):
        d.SOPClassUID = SecondaryCaptureImageStorage
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            delattr(d, name)

    write_series(tmp_path / "in/p", PLACES, change=capture)
    assert "nobody knows where they lie" in the_reason(tmp_path)


# the copy that is kept


def test_the_kept_copy_has_the_same_voxels_and_no_words(tmp_path):
    write_series(tmp_path / "in/p", PLACES)
    scan = the_scan(tmp_path)
    image = nib.load(scan.image)
    stored = np.array(image.dataobj)
    image = nib.Nifti1Image(stored, image.affine, image.header)
    image.header["aux_file"] = b"SECRET"
    image.header["db_name"] = b"SECRET"
    image.header["intent_name"] = b"SECRET"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SECRET NAME"))
    nib.save(image, scan.image)
    dicom.save_copy(scan.image, tmp_path / "copy.nii.gz")
    copy = nib.load(tmp_path / "copy.nii.gz")
    assert np.array_equal(np.asarray(copy.dataobj), stored)
    assert np.array_equal(copy.affine, image.affine) and copy.get_data_dtype() == np.int16
    assert int(copy.header["qform_code"]) == int(image.header["qform_code"]) > 0
    written = copy.header.binaryblock + b"".join(e.get_content() for e in copy.header.extensions)
    assert b"SECRET" not in written and b"Norma" in written


def test_headers_are_read_without_names_and_pixels(tmp_path):
    write_series(tmp_path / "in/p", PLACES)
    header = dicom_headers.read_header(tmp_path / "in/p/I003")
    shown = repr([v for k, v in vars(header).items() if k != "key"])  # the key is never written
    assert not [secret for secret in SECRETS if secret in shown]
    assert np.allclose(header.positions, [PLACES[3]]) and np.allclose(header.spacing, [SPACING])
