"""Readers of public sets whose files are called by a rule, on made copies of their layouts.

Each copy has two good scans, one that lacks its image, one that lacks its mask (where the set has
masks), one with two files for an image, and files that belong to nothing.
"""

from importlib import import_module
from pathlib import Path

import pytest

from pipelines import table as door
from preprocessing.datasets import READERS
from preprocessing.datasets.layout import Layout, listed
from preprocessing.files import read_table
from preprocessing.scans import InputError
from preprocessing.tables import read_scans

BRATS20 = "MICCAI_BraTS2020_TrainingData/BraTS20_Training_{n:03d}/BraTS20_Training_{n:03d}"
BRATS23 = "BraTS2023/BraTS-GLI-{n:05d}-000/BraTS-GLI-{n:05d}-000"
ATLAS = "Training/R001/sub-r001s{n:03d}/ses-1/anat/sub-r001s{n:03d}_ses-1_space-MNI152NLin2009aSym"
ISLES = "sub-strokecase{n:04d}/ses-0001/dwi/sub-strokecase{n:04d}_ses-0001"

# by reader: image, mask or None, a further sequence, what is known and passed over; ids
SETS = {
    "brats2020": (
        BRATS20 + "_flair.nii",
        BRATS20 + "_seg.nii",
        ("t1", BRATS20 + "_t1.nii"),
        ["MICCAI_BraTS2020_TrainingData/survival_info.csv", BRATS20 + "_t1ce.nii"],
        "BraTS20_Training_{n:03d}",
    ),
    "brats2021": (
        "BraTS2021_{n:05d}/BraTS2021_{n:05d}_flair.nii.gz",
        "BraTS2021_{n:05d}/BraTS2021_{n:05d}_seg.nii.gz",
        ("t2", "BraTS2021_{n:05d}/BraTS2021_{n:05d}_t2.nii.gz"),
        ["BraTS2021_{n:05d}/BraTS2021_{n:05d}_t1ce.nii.gz"],
        "BraTS2021_{n:05d}",
    ),
    "brats2023": (
        BRATS23 + "-t2f.nii.gz",
        BRATS23 + "-seg.nii.gz",
        ("t1", BRATS23 + "-t1n.nii.gz"),
        [BRATS23 + "-t1c.nii.gz"],
        "BraTS-GLI-{n:05d}-000",
    ),
    "atlas_v2": (
        ATLAS + "_T1w.nii.gz",
        ATLAS + "_label-L_desc-T1lesion_mask.nii.gz",
        None,
        ["Training/dataset_description.json", "20220425_ATLAS_2.0_MetaData.csv"],
        "sub-r001s{n:03d}_ses-1",
    ),
    "mslub": (
        "patient{n:02d}/patient{n:02d}_FLAIR.nii.gz",
        "patient{n:02d}/patient{n:02d}_consensus_gt.nii.gz",
        ("t1", "patient{n:02d}/patient{n:02d}_T1W.nii.gz"),
        ["patient{n:02d}/raw/patient{n:02d}_FLAIR.nii.gz"],
        "patient{n:02d}",
    ),
    "wmh2017": (
        "training/Amsterdam/GE3T/{n}/pre/FLAIR.nii.gz",
        "training/Amsterdam/GE3T/{n}/wmh.nii.gz",
        ("t1", "training/Amsterdam/GE3T/{n}/pre/T1.nii.gz"),
        [
            "training/Amsterdam/GE3T/{n}/orig/FLAIR.nii.gz",
            "additional_annotations/observer_o3/training/Amsterdam/GE3T/{n}/wmh.nii.gz",
        ],
        "Amsterdam_GE3T_{n}",
    ),
    "isles2022": (
        ISLES + "_dwi.nii.gz",
        "derivatives/sub-strokecase{n:04d}/ses-0001/sub-strokecase{n:04d}_ses-0001_msk.nii.gz",
        ("adc", ISLES + "_adc.nii.gz"),
        ["dataset_description.json", "participants.tsv"],
        "sub-strokecase{n:04d}_ses-0001",
    ),
    "ixi": (
        "IXI-T1/IXI{n:03d}-Guys-0828-T1.nii.gz",
        None,
        ("t2", "IXI-T2/IXI{n:03d}-Guys-0828-T2.nii.gz"),
        ["IXI.xls", "fetched.json"],
        "IXI{n:03d}-Guys-0828",
    ),
}


def touch(root, way, n=1):
    """An empty file: readers list names and read no image."""
    path = root / way.format(n=n)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def made(name, root):
    """A copy of a set's layout."""
    image, mask, further, known, _ = SETS[name]
    for n in (1, 2, 4, 5):
        touch(root, image, n)
    touch(root, image, 4).with_name(Path(image.format(n=4)).name)
    if mask:
        for n in (1, 2, 3, 5):
            touch(root, mask, n)
    if further:
        for n in (1, 2, 3, 4, 5):
            touch(root, further[1], n)
    for way in known:
        touch(root, way, 1)
    touch(root, "copy/" + image, 5)  # a scan that is there twice
    touch(root, "notes/todo.docx")
    touch(root, "notes/other.nii.gz")


def ids(name, *numbers):
    return [SETS[name][-1].format(n=n) for n in numbers]


@pytest.mark.parametrize("name", SETS)
def test_a_layout_becomes_a_table_and_what_is_wrong_is_named(name, tmp_path, caplog):
    made(name, tmp_path)
    image, mask, further, _, _ = SETS[name]
    reader = import_module(f"preprocessing.datasets.{name}")
    caplog.set_level("INFO", logger="norma")
    scans, lost = reader.scans(tmp_path, tmp_path / "out", "")
    assert [scan.id for scan in scans] == ids(name, 1, 2, 4)
    assert scans[1].image == tmp_path / image.format(n=2)
    if mask:
        assert scans[1].mask == tmp_path / mask.format(n=2) and scans[1].label == "abnormal"
        assert scans[2].mask is None
        assert f"1 scans have no lesion mask: {ids(name, 4)[0]}" in caplog.text
    else:
        assert {scan.label for scan in scans} == {"healthy"}
    assert "passed over 2 other files: notes/other.nii.gz, notes/todo.docx" in caplog.text

    (three, five) = ids(name, 3, 5)
    wanted = reader.LAYOUT.modalities[0]
    if mask or further:
        assert f"{three}: no file of {wanted} (found: " in lost[three]
    assert f"2 files are its {wanted}" in lost[five]
    assert set(lost) <= {three, five}


@pytest.mark.parametrize("name", [name for name in SETS if SETS[name][2]])
def test_several_sequences_are_columns(name, tmp_path):
    made(name, tmp_path)
    image, _, (further, way), _, _ = SETS[name]
    reader = import_module(f"preprocessing.datasets.{name}")
    first = reader.LAYOUT.modalities[0]
    scans, _ = reader.scans(tmp_path, tmp_path / "out", f"{first}+{further}")
    assert scans[0].sequences == {further: tmp_path / way.format(n=1)}
    scans, lost = reader.scans(tmp_path, tmp_path / "out", f"{further}+{first}")
    assert scans[0].image == tmp_path / way.format(n=1)
    assert scans[0].sequences == {first: tmp_path / image.format(n=1)}
    assert ids(name, 3)[0] in lost
    with pytest.raises(InputError, match=r"no modality 'pet'; it has "):
        reader.scans(tmp_path, tmp_path / "out", "pet")


@pytest.mark.parametrize("name", [*SETS, "mood", "oasis1"])
def test_a_folder_of_something_else_and_no_folder_are_one_sentence(name, tmp_path):
    reader = import_module(f"preprocessing.datasets.{name}")
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    with pytest.raises(InputError, match=r"no scan of .*; expected files such as"):
        reader.scans(tmp_path, tmp_path / "out", "")
    with pytest.raises(InputError, match="no such folder"):
        reader.scans(tmp_path / "none", tmp_path / "out", "")


def test_the_example_of_every_layout_fits_its_pattern():
    for name in READERS:
        layout = getattr(import_module(f"preprocessing.datasets.{name}"), "LAYOUT", None)
        if layout:
            import re

            pattern = layout.files[layout.modalities[0]]
            assert re.fullmatch(pattern, layout.example), name


def test_the_mask_of_a_brats_patient_has_a_name_of_its_own(tmp_path):
    reader = import_module("preprocessing.datasets.brats2020")
    touch(tmp_path, BRATS20 + "_flair.nii", 355)
    mask = touch(
        tmp_path, "MICCAI_BraTS2020_TrainingData/BraTS20_Training_355/W39_1998.09.19_Segm.nii"
    )
    (scan,), lost = reader.scans(tmp_path, tmp_path / "out", "")
    assert scan.mask == mask and lost == {}


def test_two_times_of_a_patient_are_one_subject(tmp_path):
    reader = import_module("preprocessing.datasets.brats2023")
    for time in ("000", "001"):
        touch(tmp_path, f"BraTS-GLI-00005-{time}/BraTS-GLI-00005-{time}-t2f.nii.gz")
    scans, _ = reader.scans(tmp_path, tmp_path / "out", "flair")
    assert [scan.subject for scan in scans] == ["BraTS-GLI-00005"] * 2
    assert scans[0].extra == {"tumour": "GLI"}


def test_open_ms_is_read_as_it_is_fetched(tmp_path):
    for file in ("FLAIR", "T1W", "T2W", "brainmask", "consensus_gt"):
        touch(tmp_path, f"patient07/{file}.nii.gz")
    reader = import_module("preprocessing.datasets.open_ms")
    (scan,), lost = reader.scans(tmp_path, tmp_path / "out", "flair+t1+t2")
    assert scan.brain_mask == tmp_path / "patient07" / "brainmask.nii.gz"
    assert list(scan.sequences) == ["t1", "t2"] and lost == {}


def test_flair_of_isles_has_no_mask_on_its_grid(tmp_path, caplog):
    made("isles2022", tmp_path)
    way = "sub-strokecase0001/ses-0001/anat/sub-strokecase0001_ses-0001_FLAIR.nii.gz"
    touch(tmp_path, way)
    reader = import_module("preprocessing.datasets.isles2022")
    (scan,), lost = reader.scans(tmp_path, tmp_path / "out", "flair")
    assert scan.image == tmp_path / way and scan.mask is None and scan.label == "abnormal"
    assert "grid of DWI" in caplog.text and len(lost) == 4


def oasis(root, session, text):
    place = f"disc1/{session}"
    for ending in ("hdr", "img"):
        name = f"{session}_mpr_n4_anon_111_t88_masked_gfc.{ending}"
        touch(root, f"{place}/PROCESSED/MPRAGE/T88_111/{name}")
    touch(root, f"{place}/RAW/{session}_mpr-1_anon.img")
    if text is not None:
        (root / place / f"{session}.txt").write_text(f"SESSION ID:   {session}\n\n{text}\n")


def test_oasis_tells_the_demented_from_the_healthy(tmp_path):
    oasis(tmp_path, "OAS1_0001_MR1", "AGE:          74\nM/F:          Female\nCDR:          0")
    oasis(tmp_path, "OAS1_0003_MR1", "AGE:          73\nCDR:          0.5")
    oasis(tmp_path, "OAS1_0002_MR1", "AGE:          25\nCDR:          ")
    oasis(tmp_path, "OAS1_0004_MR1", "AGE:          80\nCDR:          ")
    oasis(tmp_path, "OAS1_0005_MR1", None)
    reader = import_module("preprocessing.datasets.oasis1")
    scans, lost = reader.scans(tmp_path, tmp_path / "out", "")
    assert [(s.subject, s.label, s.pathology) for s in scans] == [
        ("OAS1_0001", "healthy", ""),
        ("OAS1_0002", "healthy", ""),
        ("OAS1_0003", "abnormal", "dementia"),
    ]
    assert scans[2].extra == {"age": "73", "cdr": "0.5"}
    assert "no CDR of a person of 80 years" in lost["OAS1_0004_MR1"]
    assert "OAS1_0005_MR1.txt: missing" in lost["OAS1_0005_MR1"]


def test_mood_has_labels_of_toy_scans(tmp_path):
    for n in range(10):
        touch(tmp_path, f"brain_train/{n:05d}.nii.gz")
    labels = ["0", "1", "1", "maybe", None]
    for n, label in enumerate(labels):
        touch(tmp_path, f"toy/toy_{n}.nii.gz")
        if label:
            touch(tmp_path, f"toy_label/sample/toy_{n}.nii.gz.txt").write_text(f"{label}\n")
    mask = touch(tmp_path, "toy_label/pixel/toy_1.nii.gz")
    reader = import_module("preprocessing.datasets.mood")
    scans, lost = reader.scans(tmp_path, tmp_path / "out", "")
    toys = [(s.id, s.split, s.label, s.mask) for s in scans if s.id.startswith("toy")]
    assert toys == [("toy_0", "test", "healthy", None), ("toy_1", "test", "abnormal", mask)]
    training = [s for s in scans if not s.id.startswith("toy")]
    assert len(training) == 10 and {s.label for s in training} == {"healthy"}
    assert all(s.split for s in training)
    assert "toy_2.nii.gz: missing, the mask" in lost["toy_2"]
    assert "expected 0 or 1" in lost["toy_3"] and "nobody knows" in lost["toy_4"]


def test_the_command_writes_a_table_that_preprocess_reads(tmp_path, capsys):
    made("brats2021", tmp_path / "in")
    out = tmp_path / "tables" / "brats.tsv"
    words = ["--dataset", "brats2021", "--input", str(tmp_path / "in"), "--out", str(out)]
    assert door.main(door.build_parser().parse_args([*words, "--modality", "flair+t2"])) == 1
    said = "3 scans (0 healthy, 3 abnormal, 2 with a lesion mask), 2 left out"
    assert said in capsys.readouterr().out
    scans = read_scans(out, "flair+t2")
    assert [scan.id for scan in scans] == ids("brats2021", 1, 2, 4)
    assert scans[0].mask.name == "BraTS2021_00001_seg.nii.gz"
    assert scans[0].sequences["t2"].name == "BraTS2021_00001_t2.nii.gz"
    assert [scan.label for scan in scans] == ["abnormal"] * 3
    assert read_table(out)[0]["pathology"] == "glioma"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--dataset", "brats21", "--out", "a.tsv"], "did you mean 'brats2021'"),
        (["--dataset", "brats2021", "--out", "a.xlsx"], r"give OUT=<table>\.tsv"),
        (["--dataset", "brats2021", "--out", "a.tsv"], "no such folder"),
        (["--dataset", "ct_ich", "--out", "a.tsv", "--modality", "t1"], "'t1'; it has ct"),
    ],
)
def test_wrong_words_are_one_sentence(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = door.build_parser().parse_args([*words, "--input", "nothing"])
    with pytest.raises(InputError, match=sentence):
        door.main(arguments)


def test_nothing_that_can_be_listed_has_its_exit_code(tmp_path):
    layout = Layout("X", "a_t1.nii", {"t1": r"(?P<id>\w)_t1\.nii", "mask": r"(?P<id>\w)_m\.nii"})
    touch(tmp_path, "a_m.nii")
    with pytest.raises(InputError, match="no scan of X"):
        listed(tmp_path, layout)
    touch(tmp_path / "in", ISLES + "_adc.nii.gz")
    words = ["--dataset", "isles2022", "--input", str(tmp_path / "in")]
    arguments = door.build_parser().parse_args([*words, "--out", str(tmp_path / "t.tsv")])
    assert door.main(arguments) == 3 and not (tmp_path / "t.tsv").exists()


def test_capitals_and_links_are_read_or_named(tmp_path, caplog):
    caplog.set_level("INFO", logger="norma")
    folder = tmp_path / "set/BraTS2021_00001"
    folder.mkdir(parents=True)
    for kind in ("flair", "seg"):
        (folder / f"BraTS2021_00001_{kind.upper()}.NII.GZ").touch()
    elsewhere = tmp_path / "elsewhere/BraTS2021_00002"
    elsewhere.mkdir(parents=True)
    (elsewhere / "BraTS2021_00002_flair.nii.gz").touch()
    (tmp_path / "set/BraTS2021_00002").symlink_to(elsewhere)
    (tmp_path / "set/again").symlink_to(folder)
    reader = import_module("preprocessing.datasets.brats2021")
    scans, lost = reader.scans(tmp_path / "set", tmp_path / "out")
    assert [scan.id for scan in scans] == ["BraTS2021_00001", "BraTS2021_00002"] and not lost
    assert scans[0].mask and not scans[1].mask
    assert "passed over 1 links to a folder that is read already: again" in caplog.text
