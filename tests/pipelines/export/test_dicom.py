"""Results as DICOM: places compared in LPS mm with those planted in the source slices."""

import shutil
import subprocess
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

import norma
from pipelines.detect.batch import not_scored
from pipelines.detect.report import DICOM_FILES, CheckRow, Component, Detection, Report
from pipelines.export import dicom as export
from pipelines.export.dicom import write_all, write_scan
from pipelines.export.dicom_objects import SHORT_NOTICE
from preprocessing import dicom
from preprocessing.scans import NOTICE, Scan, ScanError
from tests.preprocessing.made_dicom import (
    POSES,
    SECRETS,
    axial,
    in_order,
    steps,
    strip_preamble,
    write_enhanced,
    write_marked,
    write_series,
)

WEIGHTS = "ab" * 32
UPRIGHT = 0.01  # mm
TILTED = 0.5  # mm: marks are blurred between pixels of 1.5 mm there


def converted(tmp_path):
    (scan,), lost = dicom.convert(tmp_path / "in", tmp_path / "converted")
    assert lost == {}
    return scan, nib.load(scan.image)


def component(marked, peak, volume=100.0):
    where = {"centre_voxel": list(map(float, peak)), "centre_mm": [0.0] * 3, "peak_mm": [0.0] * 3}
    atlas = {"centre_atlas_mm": [0.0] * 3, "peak_atlas_mm": [0.0] * 3}
    return Component(
        volume_mm3=volume,
        n_voxels=int(marked.sum()),
        peak_voxel=list(map(int, peak)),
        peak=0.9,
        mean=0.5,
        p_value=0.1,
        place="left frontal",
        **where,
        **atlas,
    )


def report_of(scan, components, **fields):
    fields = {"score": 0.5, "percentile": 90.0, "percentile_of": "5 scans"} | fields
    return Report(
        id=scan.id,
        status="scored",
        threshold=0.2,
        promise="At most 1 healthy scan in 10.",
        anomalous_mm3=300.0,
        n_components=len(components) + 1,
        components=components,
        model="vae_cr",
        run="t1",
        flags=["noise is high"],
        **fields,
    )


def written(scan, image, tmp_path, marked=None, **fields):
    """The three files of a result that marks what is bright; the first mark is listed."""
    values = np.asarray(image.dataobj, np.float32)
    values = (values - values.min()) / np.ptp(values)
    marked = values > 0.6 if marked is None else marked
    listed = [component(marked, np.argwhere(marked)[0])] if marked.any() else []
    mask = nib.Nifti1Image(marked.astype(np.uint8), image.affine)
    anomaly_map = nib.Nifti1Image(values, image.affine)
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    detection = Detection(mask, anomaly_map, report_of(scan, listed, **fields))
    paths = write_scan(scan, detection, WEIGHTS, out)
    return {path.stem.rpartition("_")[2]: pydicom.dcmread(path) for path in paths}


def frames(instance):
    """(pixels, position, orientation, spacing, functional group) of each frame."""
    pixels = instance.pixel_array.reshape(-1, instance.Rows, instance.Columns)
    shared = instance.SharedFunctionalGroupsSequence[0]
    for plane, own in zip(pixels, instance.PerFrameFunctionalGroupsSequence, strict=True):

        def of(sequence, name, own=own):
            return np.array((own.get(sequence) or shared[sequence].value)[0][name].value, float)

        position = of("PlanePositionSequence", "ImagePositionPatient")
        orientation = of("PlaneOrientationSequence", "ImageOrientationPatient")
        yield plane, position, orientation, of("PixelMeasuresSequence", "PixelSpacing"), own


def places(instance):
    """Centre (N, 3), LPS mm, of what each frame shows, sorted."""
    found = []
    for plane, position, orientation, spacing, _ in frames(instance):
        rows, columns = np.indices(plane.shape)
        row = (plane * rows).sum() / plane.sum()
        column = (plane * columns).sum() / plane.sum()
        along_row = column * spacing[1] * orientation[:3]
        found.append(position + along_row + row * spacing[0] * orientation[3:])
    return in_order(found)


def faults(tmp_path):
    """Errors that dciodvfy finds in what was written."""
    if not shutil.which("dciodvfy"):
        pytest.skip("no dciodvfy: apt-get install dicom3tools")
    found = []
    for path in sorted((tmp_path / "out").glob("*.dcm")):
        done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True)
        lines = (done.stdout + done.stderr).splitlines()
        assert any(kind in lines for kind in ("Segmentation", "ParametricMap", "ComprehensiveSR"))
        found += [f"{path.name}: {line}" for line in lines if line.startswith("Error")]
    return found


@pytest.mark.parametrize("tilt", [0.0, 17.0])
@pytest.mark.parametrize("pose", POSES)
def test_a_mark_lies_where_it_was_planted(tmp_path, pose, tilt):
    marks = write_marked(tmp_path / "in/p", pose, tilt, backwards=tilt == 0)
    made = written(*converted(tmp_path), tmp_path)
    limit = TILTED if tilt else UPRIGHT
    for kind in ("mask", "map"):
        assert np.abs(places(made[kind]) - in_order(marks)).max() < limit, kind

    by_uid = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, (tmp_path / "in/p").iterdir())}
    for kind in ("mask", "map"):
        for _, position, orientation, spacing, own in frames(made[kind]):
            (item,) = own.DerivationImageSequence[0].SourceImageSequence
            source = by_uid[item.ReferencedSOPInstanceUID]
            assert np.allclose(position, source.ImagePositionPatient)
            assert np.allclose(orientation, source.ImageOrientationPatient)
            assert np.allclose(spacing, source.PixelSpacing)
    first = next(iter(by_uid.values()))
    for instance in made.values():
        assert instance.StudyInstanceUID == first.StudyInstanceUID
    for kind in ("mask", "map"):
        assert made[kind].FrameOfReferenceUID == first.FrameOfReferenceUID
    assert faults(tmp_path) == []


def test_pixels_of_the_map_are_those_of_the_slices(tmp_path):
    """No voxel is mixed where the grid of scan and series is one; files lie in any order."""
    order = np.random.default_rng(5).permutation(12)
    data = write_series(tmp_path / "in/p", [axial(*steps(12))[k] for k in order])
    made = written(*converted(tmp_path), tmp_path)
    expected = (data - data.min()) / np.ptp(data)
    at = {round(10 + 5.0 * order[k]): expected[k] for k in range(12)}
    for plane, position, *_ in frames(made["map"]):
        assert np.allclose(plane, at[round(position[2])], atol=1e-5)


def test_slices_that_the_converter_invents_are_not_written(tmp_path):
    marks = write_marked(tmp_path / "in/p", "axial")
    (tmp_path / "in/p/I005").unlink()
    scan, image = converted(tmp_path)
    assert image.shape[2] == 12
    made = written(scan, image, tmp_path, np.asarray(image.dataobj) > 900)
    real = [mark for k, mark in enumerate(marks) if k != 5]
    assert np.abs(places(made["mask"]) - in_order(real)).max() < UPRIGHT
    assert len(made["map"].PerFrameFunctionalGroupsSequence) == 11


def describe_each_frame(d):
    """Orientation and spacing in the group of each frame, as many scanners write them."""
    shared = d.SharedFunctionalGroupsSequence[0]
    for frame in d.PerFrameFunctionalGroupsSequence:
        frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
        frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
    del shared.PlaneOrientationSequence
    del shared.PixelMeasuresSequence


@pytest.mark.parametrize(("modality", "change"), [("CT", None), ("MR", describe_each_frame)])
def test_a_multiframe_source(tmp_path, modality, change):
    data = np.zeros((12, 40, 48), int)
    for k in range(12):
        data[k, 8 + k : 11 + k, 20 + k : 23 + k] = 1000
    order = np.random.default_rng(6).permutation(12)
    heights = np.array(steps(12))[order]
    write_enhanced(tmp_path / "in/p", axial(*heights), modality, data[order], change)
    made = written(*converted(tmp_path), tmp_path)
    marks = [(-30 + (21 + k) * 2.0, -40 + (9 + k) * 1.5, 10 + 5.0 * k) for k in range(12)]
    for kind in ("mask", "map"):
        assert np.abs(places(made[kind]) - in_order(marks)).max() < UPRIGHT
    source = pydicom.dcmread(tmp_path / "in/p/E001")
    for _, position, *_, own in frames(made["mask"]):
        (item,) = own.DerivationImageSequence[0].SourceImageSequence
        frame = source.PerFrameFunctionalGroupsSequence[int(item.ReferencedFrameNumber) - 1]
        assert np.allclose(position, frame.PlanePositionSequence[0].ImagePositionPatient)
    assert faults(tmp_path) == []


def jitter(d, k):
    """What scanners write: cosines that differ in the fifth digit, places in the third."""
    noise = np.random.default_rng(k).uniform(-1, 1, 9)
    d.ImageOrientationPatient = list(np.array(d.ImageOrientationPatient) + 1e-5 * noise[:6])
    d.ImagePositionPatient = list(np.array(d.ImagePositionPatient) + 1e-3 * noise[6:])


@pytest.mark.parametrize("how", ["jitter", "compressed", "no preamble"])
def test_sources_as_they_come(tmp_path, how):
    marks = write_marked(tmp_path / "in/p", "oblique")
    for k, path in enumerate(sorted((tmp_path / "in/p").iterdir())):
        d = pydicom.dcmread(path)
        if how == "jitter":
            jitter(d, k)
        elif how == "compressed":
            d.compress(RLELossless)
        d.save_as(path)
        if how == "no preamble":
            strip_preamble(path)
    made = written(*converted(tmp_path), tmp_path)
    for kind in ("mask", "map"):
        assert np.abs(places(made[kind]) - in_order(marks)).max() < 0.05
    assert faults(tmp_path) == []


def test_the_function_for_everybody(tmp_path):
    write_marked(tmp_path / "in/p", "axial")
    scan, image = converted(tmp_path)
    mask = nib.Nifti1Image((np.asarray(image.dataobj) > 900).astype(np.uint8), image.affine)
    run = SimpleNamespace(weights_digest=WEIGHTS)
    detection = Detection(mask, image, report_of(scan, []))
    paths = norma.write_dicom(scan, detection, run, tmp_path)
    assert [path.name.rpartition("_")[2] for path in paths] == list(DICOM_FILES)
    assert all(path.is_file() for path in paths)


def test_a_segment_per_component_and_one_for_the_rest(tmp_path):
    write_marked(tmp_path / "in/p", "axial")
    scan, image = converted(tmp_path)
    made = written(scan, image, tmp_path)
    first, rest = made["mask"].SegmentSequence
    assert (first.SegmentLabel, rest.SegmentLabel) == ("Finding 1", "Further findings")
    assert first.TrackingUID != rest.TrackingUID and first.TrackingID == "Finding 1"
    assert first.SegmentDescription == f"0.1 ml, left frontal. {NOTICE}"
    (algorithm,) = first.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmVersion and WEIGHTS in algorithm.AlgorithmParameters
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
    assert made["mask"].SegmentationType == "BINARY"
    assert made["map"].FloatPixelData and made["map"].ContentQualification == "RESEARCH"

    count = {1: 0, 2: 0}
    for plane, *_, own in frames(made["mask"]):
        count[own.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += int(plane.sum())
    assert count == {1: 9, 2: 11 * 9}
    assert faults(tmp_path) == []


def test_a_finding_in_a_chest_is_said_to_be_in_the_lung(tmp_path):
    """The codes are those of SNOMED CT, by hand: 39607008 lung, 12738006 brain."""
    write_marked(tmp_path / "in/p", "axial")
    scan, image = converted(tmp_path)
    told = {"value": 5000.0, "unit": "ml", "hard": True, "expected": "any", "passed": True}
    lungs = [CheckRow(name="lung volume", **told)]
    for checks, code, part in (([], "12738006", "BRAIN"), (lungs, "39607008", "CHEST")):
        made = written(scan, image, tmp_path, checks=checks)
        for segment in made["mask"].SegmentSequence:
            assert [item.CodeValue for item in segment.AnatomicRegionSequence] == [code]
        coded = [item for item in items(made["report"]) if "ConceptCodeSequence" in item]
        values = {item.ConceptCodeSequence[0].CodeValue for item in coded}
        found = values & {"12738006", "39607008"}
        assert found == {code} and made["map"].BodyPartExamined == part
        assert faults(tmp_path) == []


def items(content):
    """Every content item of a report."""
    for item in content.get("ContentSequence", []):
        yield item
        yield from items(item)


def test_the_report_says_what_it_is_and_refers_to_segments(tmp_path):
    write_marked(tmp_path / "in/p", "axial")
    made = written(*converted(tmp_path), tmp_path)
    comments = [item.TextValue for item in made["report"].ContentSequence if "TextValue" in item]
    assert comments[-1].startswith("run t1") and WEIGHTS in comments[-1]
    assert NOTICE in comments and "Finding 1: 0.1 ml, left frontal, p 0.1" in comments
    assert "Flag: noise is high" in comments and "At most 1 healthy scan in 10." in comments
    assert "Anomaly score 0.5, percentile 90 of 5 scans" in comments

    everything = list(items(made["report"]))
    total, volume = [item for item in everything if item.ValueType == "NUM"]
    assert float(total.MeasuredValueSequence[0].NumericValue) == 300.0
    assert float(volume.MeasuredValueSequence[0].NumericValue) == 100.0
    (unit,) = volume.MeasuredValueSequence[0].MeasurementUnitsCodeSequence
    assert unit.CodeValue == "mm3"
    referred = [i.ReferencedSOPSequence[0] for i in everything if i.ValueType == "IMAGE"]
    (segment,) = [item for item in referred if "ReferencedSegmentNumber" in item]
    assert segment.ReferencedSOPInstanceUID == made["mask"].SOPInstanceUID
    assert segment.ReferencedSegmentNumber == 1
    tracked = [item.UID for item in everything if item.ValueType == "UIDREF"]
    assert made["mask"].SegmentSequence[0].TrackingUID in tracked
    assert made["report"].VerificationFlag == "UNVERIFIED"
    for instance in made.values():
        assert SHORT_NOTICE in instance.SeriesDescription


def test_the_same_result_is_the_same_instance_and_another_is_not(tmp_path):
    write_marked(tmp_path / "in/p", "axial")
    scan, image = converted(tmp_path)
    first = written(scan, image, tmp_path)
    stamps = [path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()]
    again = written(scan, image, tmp_path)
    assert stamps == [path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()]
    other = written(scan, image, tmp_path, score=0.6)
    for kind, instance in first.items():
        assert instance.SOPInstanceUID == again[kind].SOPInstanceUID
        assert instance.SOPInstanceUID != other[kind].SOPInstanceUID
        assert instance.SeriesInstanceUID != other[kind].SeriesInstanceUID


def test_where_nothing_is_marked_there_is_no_segmentation(tmp_path):
    write_marked(tmp_path / "in/p", "axial")
    scan, image = converted(tmp_path)
    assert set(written(scan, image, tmp_path)) == {"mask", "map", "report"}
    made = written(scan, image, tmp_path, np.zeros(image.shape, bool))
    assert set(made) == {"map", "report"}
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert faults(tmp_path) == []


def test_identity_of_the_patient_is_kept_as_it_is_spelled(tmp_path, caplog, capfd):
    def named(d, k):
        d.SpecificCharacterSet = "ISO_IR 100"
        d.PatientName = "M\u00fcller^J\u00fcrgen"
        d.PatientSex = "U"  # no value of the standard
        d["PatientBirthDate"].value = "19.7.1970"
        del d.StudyTime

    positions = axial(*steps(12))
    write_series(tmp_path / "in/p", positions, change=named)
    caplog.clear()  # what pydicom says of the test itself
    capfd.readouterr()
    made = written(*converted(tmp_path), tmp_path)
    for instance in made.values():
        assert str(instance.PatientName) == "M\u00fcller^J\u00fcrgen"
        assert (instance.PatientID, instance.PatientSex) == ("ID-4711", "")
        assert not instance.PatientBirthDate
    said = caplog.text + "".join(capfd.readouterr())
    assert not [secret for secret in ("ller", "7.1970", *SECRETS) if secret in said]
    assert faults(tmp_path) == []


def test_an_error_says_nothing_of_a_person(tmp_path, monkeypatch):
    def fail(result):
        raise ValueError(f"{result.source.instances[0].PatientName} is no value")

    write_marked(tmp_path / "in/p", "axial")
    scan, image = converted(tmp_path)
    monkeypatch.setattr(export, "parametric_map", fail)
    with pytest.raises(ScanError) as error:
        written(scan, image, tmp_path)
    assert "cannot be carried over (ValueError in test_dicom.py, line" in str(error.value)
    assert not [secret for secret in SECRETS if secret in str(error.value)]
    assert error.value.__cause__ is None and not list((tmp_path / "out").iterdir())


def without(name):
    return lambda d, k: delattr(d, name)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("FrameOfReferenceUID"), "its files name no FrameOfReferenceUID, expected one"),
        (
            lambda d, k: setattr(d, "StudyInstanceUID", f"1.2.{k + 1}"),
            "its files name 12 StudyInstanceUID, expected one",
        ),
        (without("SOPInstanceUID"), "files without SOPInstanceUID"),
    ],
)
def test_files_that_nothing_can_refer_to_are_refused(tmp_path, change, sentence):
    write_marked(tmp_path / "in/p", "axial")
    for k, path in enumerate(sorted((tmp_path / "in/p").iterdir())):
        d = pydicom.dcmread(path)
        change(d, k)
        d.save_as(path, enforce_file_format=False)
    scan, image = converted(tmp_path)
    with pytest.raises(ScanError, match=sentence):
        written(scan, image, tmp_path)
    assert not list((tmp_path / "out").iterdir())


def test_several_multiframe_files_and_lost_files_are_refused(tmp_path):
    uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "FrameOfReferenceUID": "1.2"}

    def same(d):
        for name, value in uids.items():
            setattr(d, name, value)

    write_enhanced(tmp_path / "in/p", axial(*steps(8)), change=same)
    write_enhanced(tmp_path / "in/p", axial(*steps(8, 50.0)), change=same, name="E002")
    scan, image = converted(tmp_path)
    with pytest.raises(ScanError, match="2 multi-frame files, and a DICOM result refers to one"):
        written(scan, image, tmp_path)
    shutil.rmtree(tmp_path / "in")
    with pytest.raises(ScanError, match="is gone; its planes are needed"):
        written(scan, image, tmp_path)
    with pytest.raises(ScanError, match="came as a file and not as DICOM"):
        written(Scan("x", tmp_path / "x.nii.gz", "x"), image, tmp_path)


def test_what_was_written_is_no_input(tmp_path):
    write_marked(tmp_path / "in/p", "axial")
    written(*converted(tmp_path), tmp_path)
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert not dicom.has_dicom(tmp_path / "out")


def test_a_series_that_is_refused_keeps_its_mask(tmp_path, caplog):
    write_marked(tmp_path / "in/p", "axial")
    for path in (tmp_path / "in/p").iterdir():
        d = pydicom.dcmread(path)
        del d.FrameOfReferenceUID
        d.save_as(path)
    scan, image = converted(tmp_path)
    marked = nib.Nifti1Image((np.asarray(image.dataobj) > 900).astype(np.uint8), image.affine)
    Detection(marked, image, report_of(scan, [])).save(tmp_path)
    job = SimpleNamespace(out=tmp_path, run=SimpleNamespace(weights_digest=WEIGHTS))
    given = Scan("file", tmp_path / "file.nii.gz", "file")
    assert write_all([scan, given], job) == 1
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "file: no DICOM is written, as it came as a file and not as DICOM.",
        f"{scan.id}: no DICOM is written, the mask stays: its files name no FrameOfReferenceUID, "
        "expected one; a DICOM result could not be filed with them.",
    ]
    assert (tmp_path / f"{scan.id}_mask.nii.gz").is_file() and not list(tmp_path.glob("*.dcm"))


@pytest.mark.parametrize("scored", [True, False])
def test_a_new_result_leaves_no_older_one_in_dicom(tmp_path, scored):
    scan = Scan("a", tmp_path / "a.nii.gz", "a")
    for name in DICOM_FILES:
        (tmp_path / f"a_{name}").write_bytes(b"older")
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4))
    if scored:
        Detection(image, image, report_of(scan, [])).save(tmp_path)
    else:
        not_scored(scan, SimpleNamespace(out=tmp_path, root=None), "why not.")
    assert not list(tmp_path.glob("*.dcm"))
