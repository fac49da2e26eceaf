"""Adapters of public sets, each on a made-up tiny copy of the set's layout."""

from importlib import import_module

import h5py
import imageio.v3 as iio
import nibabel as nib
import numpy as np
import pytest

from preprocessing.datasets import (
    READERS,
    adni,
    cq500,
    ct_ich,
    ds002748,
    ds011,
    fastmri_plus,
    lgg_flair,
    open_ms,
    soop_flair_axial,
)
from preprocessing.files import read_table, write_table
from preprocessing.scans import InputError, Scan
from preprocessing.splits import check_leaks
from tests.preprocessing import made_dicom


def touch(path):
    """An empty file: adapters list names and read no image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def count(scans, **wanted):
    """How many scans have these values."""
    return sum(vars(s) | wanted == vars(s) for s in scans)


def bids(folder, subjects):
    """A BIDS folder of T1 scans, with a FLAIR that no adapter takes."""
    (folder / "dataset_description.json").write_text("{}")
    (folder / "participants.tsv").write_text(
        "participant_id\tgroup\n" + "".join(f"{s}\tdepr\n" for s in subjects)
    )
    for subject in subjects:
        touch(folder / subject / "anat" / f"{subject}_T1w.nii.gz")
        touch(folder / subject / "anat" / f"{subject}_FLAIR.nii.gz")


@pytest.mark.parametrize("name", READERS)
def test_every_adapter_says_its_licence_and_what_it_assumes(name):
    text = import_module(f"preprocessing.datasets.{name}").__doc__
    licences = ("CC BY", "CC0", "PDDL", "evaluation only")
    assert any(licence in text for licence in licences)
    assert "Assumed:" in text


def test_ct_ich_has_a_label_per_slice(tmp_path):
    data = tmp_path / "ct_ich"
    data.mkdir()
    healthy = [f"sub-{i:03d}" for i in range(10, 20)]
    ill = {"sub-001": "1,0", "sub-002": "0,1", "sub-003": "1,1"}
    (data / "subjects.csv").write_text(
        "subject,hemorrhage,fracture\n"
        + "".join(f"{s},{kinds}\n" for s, kinds in ill.items())
        + "".join(f"{s},0,0\n" for s in healthy)
    )
    slices = ["subject,slice," + ",".join(ct_ich.KINDS)]
    slices += ["sub-001,0,0,0,0,0,0,0", "sub-001,1,1,0,0,0,1,0", "sub-001,2,0,1,0,0,0,0"]
    slices += ["sub-002,0,0,0,0,0,0,1", "sub-002,1,0,0,0,0,0,0"]
    slices += ["sub-003,0,0,0,0,1,0,1"]
    slices += [f"{s},0,0,0,0,0,0,0" for s in healthy]
    (data / "slices.csv").write_text("\n".join(slices) + "\n")

    scans, _ = ct_ich.scans(data, tmp_path / "out")
    check_leaks(scans)
    assert len(scans) == 13
    assert count(scans, label="abnormal", split="test") == 3
    assert [count(scans, label="healthy", split=s) for s in ("train", "val", "test")] == [6, 2, 2]
    assert [s.pathology for s in scans[:4]] == [
        "intraventricular+intraparenchymal+subdural",
        "fracture",
        "epidural",
        "",
    ]
    assert scans[0].image == data / "sub-001" / "sub-001_ct.nii.gz"
    assert read_table(scans[0].slice_labels) == [
        {"slice": "0", "label": "0", "pathology": ""},
        {"slice": "1", "label": "1", "pathology": "intraventricular+subdural"},
        {"slice": "2", "label": "1", "pathology": "intraparenchymal"},
    ]
    assert [r["label"] for r in read_table(scans[1].slice_labels)] == ["1", "0"]
    assert read_table(scans[2].slice_labels)[0]["pathology"] == "epidural+fracture"
    assert all(s.slice_labels.is_relative_to(tmp_path / "out") for s in scans)


def test_ds002748_is_healthy_and_split(tmp_path):
    bids(tmp_path, [f"sub-{i:02d}" for i in range(10)])
    scans, _ = ds002748.scans(tmp_path, tmp_path / "out")
    check_leaks(scans)
    assert count(scans, label="healthy") == len(scans) == 10
    assert [count(scans, split=s) for s in ("train", "val", "test")] == [6, 2, 2]
    assert all(s.image.name == f"{s.subject}_T1w.nii.gz" for s in scans)


def test_ds011_is_tested_alone(tmp_path):
    bids(tmp_path, ["sub-01", "sub-02"])
    image = tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    scans, _ = ds011.scans(tmp_path, tmp_path / "out")
    assert scans[0] == Scan("sub-01", image, "sub-01", "test", "healthy")
    assert count(scans, split="test", label="healthy") == len(scans) == 2


def test_open_ms_is_one_patient_with_a_lesion_mask(tmp_path):
    (tmp_path / "sub-19").mkdir()
    (scan,), _ = open_ms.scans(tmp_path, tmp_path / "out")
    assert (scan.split, scan.label, scan.pathology) == ("test", "abnormal", "multiple sclerosis")
    assert scan.image == tmp_path / "sub-19" / "sub-19_space-MNI_T1.nii.gz"
    assert scan.mask == tmp_path / "sub-19" / "sub-19_space-MNI_lesion.nii.gz"
    (flair,), _ = open_ms.scans(tmp_path, tmp_path / "out", "flair")
    assert flair.image == tmp_path / "sub-19" / "sub-19_space-MNI_FLAIR.nii.gz"
    assert flair.mask == scan.mask
    with pytest.raises(InputError, match="t1, t2 and flair, not with 'ct'"):
        open_ms.scans(tmp_path, tmp_path / "out", "ct")


def test_lgg_patients_give_their_slices_without_tumour(tmp_path):
    names = [f"sub-cs{i}" for i in range(10)]
    (tmp_path / "subjects.csv").write_text("subject,slices\n" + "".join(f"{n},20\n" for n in names))
    scans, _ = lgg_flair.scans(tmp_path, tmp_path / "out")
    check_leaks(scans)
    assert all(s.label == "abnormal" and s.gives_slices and s.margin_mm == 10 for s in scans)
    assert [count(scans, split=s) for s in ("train", "val", "test")] == [6, 2, 2]
    assert scans[3].mask == tmp_path / "sub-cs3" / "sub-cs3_lesion.nii.gz"


def test_soop_leaves_small_lesions_out(tmp_path):
    lines = ["subject,image,mask,label,lesion_px,lesion_volume_mm3"]
    for i in range(10):
        lines.append(f"sub-{i},images/sub-{i}.png,masks/sub-{i}.png,0,0,1150")
    for i, pixels in enumerate((26, 99, 100, 4000), start=20):
        lines.append(f"sub-{i},images/sub-{i}.png,masks/sub-{i}.png,1,{pixels},9000")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")

    scans, _ = soop_flair_axial.scans(tmp_path, tmp_path / "out")
    check_leaks(scans)
    abnormal = [s for s in scans if s.label == "abnormal"]
    assert [(s.subject, s.split, s.pathology) for s in abnormal] == [
        ("sub-22", "test", "acute stroke"),
        ("sub-23", "test", "acute stroke"),
    ]
    assert abnormal[0].mask == tmp_path / "masks" / "sub-22.png"
    assert [count(scans, label="healthy", split=s) for s in ("train", "val", "test")] == [6, 2, 2]
    assert not any(s.extra for s in scans)


def test_ct_ich_is_read_as_it_is_published(tmp_path):
    head = "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,"
    rows = [head + "Subdural,No_Hemorrhage,Fracture_Yes_No"]
    rows += ["49,1,0,0,0,0,0,1,0", "49,2,0,1,0,0,1,0,0", "50,1,0,0,0,0,0,1,1"]
    rows += ["51,1,0,0,0,1,0,0,0", "52,1,0,0,0,0,0,1,0"]
    rows += [f"{n},1,0,0,0,0,0,1,0" for n in range(60, 70)]
    (tmp_path / "hemorrhage_diagnosis_raw_ct.csv").write_text("\n".join(rows) + "\n")
    for n in (49, 50, 51, 90, *range(60, 70)):
        touch(tmp_path / "ct_scans" / f"{n:03d}.nii")
    for n in (49, 50):
        touch(tmp_path / "masks" / f"{n:03d}.nii")

    scans, lost = ct_ich.scans(tmp_path, tmp_path / "out")
    check_leaks(scans)
    assert [(s.id, s.label, s.pathology) for s in scans[:2]] == [
        ("049", "abnormal", "intraparenchymal+subdural"),
        ("050", "abnormal", "fracture"),
    ]
    assert scans[0].mask == tmp_path / "masks" / "049.nii"
    assert scans[1].mask is None, "a mask without a bleed is empty"
    assert [row["label"] for row in read_table(scans[0].slice_labels)] == ["0", "1"]
    assert [row["slice"] for row in read_table(scans[0].slice_labels)] == ["0", "1"]
    assert count(scans, label="healthy") == 10
    assert "051.nii: missing, the mask of a hemorrhage" in lost["051"]
    assert "052.nii: missing; left out" in lost["052"]
    assert "hemorrhage_diagnosis_raw_ct.csv does not name it" in lost["090"]
    with pytest.raises(InputError, match="no scan of CT-ICH"):
        ct_ich.scans(tmp_path / "out", tmp_path)


def lgg_patient(folder, slices, masks):
    """Slices of 6 rows and 5 columns; FLAIR holds the slice's number and marks one corner."""
    for n in slices:
        picture = np.full((6, 5, 3), 200, np.uint8)
        picture[..., 1] = 100 + n
        picture[0, 0, 1] = 255  # in front, to the patient's right
        folder.mkdir(parents=True, exist_ok=True)
        iio.imwrite(folder / f"{folder.name}_{n}.tif", picture)
    for n in masks:
        mask = np.zeros((6, 5), np.uint8)
        mask[1, 2] = 255 * (n == 2)
        iio.imwrite(folder / f"{folder.name}_{n}_mask.tif", mask)


def test_lgg_pictures_become_volumes(tmp_path):
    root = tmp_path / "in" / "kaggle_3m"
    for n in range(4):
        lgg_patient(root / f"TCGA_CS_494{n}_19960909", range(1, 31), range(1, 31))
    lgg_patient(root / "TCGA_DU_6000_19960909", [1, 3, 4], [1, 3, 4])
    lgg_patient(root / "TCGA_DU_6001_19960909", [1, 2], [1])
    (root / "TCGA_DU_6002_19960909").mkdir()
    double = tmp_path / "in" / "lgg-mri-segmentation" / "kaggle_3m"
    lgg_patient(double / "TCGA_CS_4941_19960909", [1], [1])

    scans, lost = lgg_flair.scans(tmp_path / "in", tmp_path / "out")
    assert [s.id for s in scans] == [f"sub-cs494{n}" for n in range(4)]
    assert all(s.gives_slices and s.split for s in scans)
    image = nib.load(scans[1].image)
    flair = np.asarray(image.dataobj)
    assert flair.shape == (5, 6, 30)
    assert flair[2, 3, 7] == 108 and flair[0, 0, 7] == 255
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header.get_zooms() == pytest.approx((0.9, 0.9, 5.0))  # 150 mm in 30 slices
    lesion = np.asarray(nib.load(scans[1].mask).dataobj)
    assert np.argwhere(lesion).tolist() == [[2, 1, 1]]
    assert "1 slices are missing, the first is 2" in lost["sub-du6000"]
    assert "1 slices have no mask, the first is 2" in lost["sub-du6001"]
    assert "no pictures" in lost["sub-du6002"]
    with pytest.raises(InputError, match="no scan of LGG"):
        lgg_flair.scans(tmp_path / "out" / "lgg_flair", tmp_path)


def cq500_row(number, **seen):
    """A row of reads.csv; `seen`: by finding, which readers saw it."""
    keys = ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "Fracture", "MassEffect", "MidlineShift")
    row = {"name": f"CQ500-CT-{number}", "Category": "B1"}
    for reader in cq500.READERS:
        row |= {f"{reader}:{key}": str(int(reader[1] in seen.get(key, ""))) for key in keys}
    return row


def test_cq500_has_what_two_of_three_radiologists_saw(tmp_path):
    rows = [cq500_row(0), cq500_row(7, ICH="123", IPH="13", SDH="2", Fracture="12")]
    write_table(tmp_path / "reads.tsv", rows)
    text = (tmp_path / "reads.tsv").read_text().replace("\t", ",")
    (tmp_path / "reads.csv").write_text(text)
    places = made_dicom.axial(*made_dicom.steps(9))
    for number, study in enumerate((0, 7, 8), start=1):
        folder = tmp_path / f"CQ500-CT-{study}" / f"CQ500CT{study} CQ500CT{study}" / "Unknown Study"
        plain = made_dicom.voxels(9, number)
        made_dicom.write_series(folder / "CT Plain", places, plain, SeriesNumber=number)
    contrast = made_dicom.voxels(9, 9)
    folder = tmp_path / "CQ500-CT-7" / "CQ500CT7 CQ500CT7" / "Unknown Study" / "CT POST CONTRAST"
    made_dicom.write_series(folder, places, contrast, SeriesNumber=5)

    scans, lost = cq500.scans(tmp_path, tmp_path / "out")
    assert [(s.subject, s.label, s.pathology) for s in scans] == [
        ("CQ500-CT-0", "healthy", ""),
        ("CQ500-CT-7", "abnormal", "intraparenchymal"),
    ]
    assert all(s.image.is_relative_to(tmp_path / "out") and s.image.is_file() for s in scans)
    reasons = sorted(lost.values())
    assert "no plain series by its name" in reasons[0]
    assert "reads.csv does not name its study" in reasons[1] and len(reasons) == 2

    disagreed = cq500.labelled(scans[0], cq500_row(0, ICH="12", IPH="1", SDH="2"), "0")
    assert (disagreed.label, disagreed.pathology) == ("abnormal", "hemorrhage")
    broken = cq500.labelled(scans[0], cq500_row(0, Fracture="23", MidlineShift="123"), "0")
    assert broken.pathology == "fracture+midline shift"
    with pytest.raises(InputError, match=r"reads\.csv: missing"):
        cq500.scans(tmp_path / "out", tmp_path)


HEADER = (
    '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><reconSpace>'
    "<matrixSize><x>8</x><y>6</y><z>1</z></matrixSize>"
    "<fieldOfView_mm><x>160</x><y>60</y><z>7.5</z></fieldOfView_mm>"
    "</reconSpace></encoding></ismrmrdHeader>"
)


def test_fastmri_plus_has_boxes_where_they_were_drawn(tmp_path):
    names = [f"file_brain_AXFLAIR_200_600000{n}" for n in range(5)]
    tables = tmp_path / "Annotations"
    tables.mkdir()
    looked_at = [*names[:4], "file_brain_AXT2_200_1"]
    (tables / "brain_file_list.csv").write_text("\n".join(looked_at) + "\n")
    (tables / "brain.csv").write_text(
        "file,slice,study_level,x,y,width,height,label\n"
        f"{names[0]},1,No,2,5,3,2,Nonspecific white matter lesion\n"
        f"{names[1]},0,Yes,,,,,Normal for age\n"
        f"{names[3]},0,Yes,,,,,Craniotomy\n"
    )
    volume = np.arange(3 * 8 * 6, dtype=np.float32).reshape(3, 8, 6)
    for name in (names[0], names[1], names[4]):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["reconstruction_rss"] = volume
            file["ismrmrd_header"] = HEADER
    touch(tmp_path / f"{names[3]}.h5")

    scans, lost = fastmri_plus.scans(tmp_path, tmp_path / "out")
    assert [(s.id, s.label) for s in scans] == [(names[0], "abnormal"), (names[1], "healthy")]
    assert scans[0].pathology == "nonspecific white matter lesion"
    assert scans[1].mask is None
    image = nib.load(scans[0].image)
    assert image.header.get_zooms() == pytest.approx((10, 20, 7.5))
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
    assert np.array_equal(image.get_fdata(), volume.transpose(2, 1, 0))
    # seen upside down, the box has columns 2 to 4 and rows 5 and 6, of the 8 rows from 0
    boxes = np.asarray(nib.load(scans[0].mask).dataobj).transpose(2, 1, 0)
    expected = np.zeros((3, 8, 6))
    expected[1, ::-1][5:7, 2:5] = 1
    assert np.array_equal(boxes, expected)
    assert f"{names[2]}.h5: missing" in lost[names[2]] and "cannot be read" in lost[names[3]]
    with pytest.raises(InputError, match="no modality 'pd'"):
        fastmri_plus.scans(tmp_path, tmp_path / "out", "pd")


def test_adni_has_the_diagnosis_of_the_session(tmp_path):
    people = {"sub-ADNI002S0295": "CN", "sub-ADNI002S0413": "MCI", "sub-ADNI002S0559": "SMC"}
    rows = "".join(f"{person}\t{first}\n" for person, first in people.items())
    (tmp_path / "participants.tsv").write_text("participant_id\tdiagnosis_sc\n" + rows)
    for person in people:
        for session in ("ses-M000", "ses-M012"):
            name = f"{person}_{session}_T1w.nii.gz"
            touch(tmp_path / person / session / "anat" / name)
    sessions = tmp_path / "sub-ADNI002S0295" / "sub-ADNI002S0295_sessions.tsv"
    sessions.write_text("session_id\tdiagnosis\nses-M000\tn/a\nses-M012\tMCI\n")
    other = tmp_path / "sub-ADNI002S0413" / "sub-ADNI002S0413_sessions.tsv"
    other.write_text("session_id\tdiagnosis\nses-M000\tMCI\nses-M012\tAD\n")

    scans, lost = adni.scans(tmp_path, tmp_path / "out")
    assert [(s.id, s.label, s.pathology) for s in scans] == [
        ("sub-ADNI002S0295_ses-M000", "healthy", ""),
        ("sub-ADNI002S0295_ses-M012", "abnormal", "MCI"),
        ("sub-ADNI002S0413_ses-M000", "abnormal", "MCI"),
        ("sub-ADNI002S0413_ses-M012", "abnormal", "AD"),
    ]
    assert "diagnosis 'SMC' at ses-M000" in lost["sub-ADNI002S0559_ses-M000"]
    assert "diagnosis 'none' at ses-M012" in lost["sub-ADNI002S0559_ses-M012"]
