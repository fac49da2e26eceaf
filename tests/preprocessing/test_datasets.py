"""Adapters of public sets, each on a made-up tiny copy of the set's layout."""

from importlib import import_module

import pytest

from preprocessing.datasets import (
    ADAPTERS,
    ct_ich,
    ds002748,
    ds011,
    lgg_flair,
    open_ms,
    soop_flair_axial,
)
from preprocessing.files import read_table
from preprocessing.scans import Scan
from preprocessing.splits import check_leaks


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


@pytest.mark.parametrize("name", ADAPTERS)
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

    scans = ct_ich.scans(data, tmp_path / "out")
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
    scans = ds002748.scans(tmp_path, tmp_path / "out")
    check_leaks(scans)
    assert count(scans, label="healthy") == len(scans) == 10
    assert [count(scans, split=s) for s in ("train", "val", "test")] == [6, 2, 2]
    assert all(s.image.name == f"{s.subject}_T1w.nii.gz" for s in scans)


def test_ds011_is_tested_alone(tmp_path):
    bids(tmp_path, ["sub-01", "sub-02"])
    image = tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    scans = ds011.scans(tmp_path, tmp_path / "out")
    assert scans[0] == Scan("sub-01", image, "sub-01", "test", "healthy")
    assert count(scans, split="test", label="healthy") == len(scans) == 2


def test_open_ms_is_one_patient_with_a_lesion_mask(tmp_path):
    (scan,) = open_ms.scans(tmp_path, tmp_path / "out")
    assert (scan.split, scan.label, scan.pathology) == ("test", "abnormal", "multiple sclerosis")
    assert scan.image == tmp_path / "sub-19" / "sub-19_space-MNI_T1.nii.gz"
    assert scan.mask == tmp_path / "sub-19" / "sub-19_space-MNI_lesion.nii.gz"


def test_lgg_patients_give_their_slices_without_tumour(tmp_path):
    names = [f"sub-cs{i}" for i in range(10)]
    (tmp_path / "subjects.csv").write_text("subject,slices\n" + "".join(f"{n},20\n" for n in names))
    scans = lgg_flair.scans(tmp_path, tmp_path / "out")
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

    scans = soop_flair_axial.scans(tmp_path, tmp_path / "out")
    check_leaks(scans)
    abnormal = [s for s in scans if s.label == "abnormal"]
    assert [(s.subject, s.split, s.pathology) for s in abnormal] == [
        ("sub-22", "test", "acute stroke"),
        ("sub-23", "test", "acute stroke"),
    ]
    assert abnormal[0].mask == tmp_path / "masks" / "sub-22.png"
    assert [count(scans, label="healthy", split=s) for s in ("train", "val", "test")] == [6, 2, 2]
    assert not any(s.extra for s in scans)
