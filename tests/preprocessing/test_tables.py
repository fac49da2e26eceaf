"""Scan tables: every kind of input, and what is refused by name."""

import json
from pathlib import Path

import pytest

from preprocessing.files import write_table
from preprocessing.scans import InputError, Scan, scan_row
from preprocessing.splits import assign_splits
from preprocessing.tables import read_scans


def touch(path):
    """An empty file: read_scans lists names and reads no image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_bids_folder_takes_the_modality_and_joins_participants(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}")
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tlabel\tsplit\tpathology\n"
        "sub-01\t40\tcontrol\ttraining\t\n"
        "sub-02\t50\tlesion\ttest\tglioma\n"
    )
    first = touch(tmp_path / "sub-01/anat/sub-01_T1w.nii.gz")
    second = touch(tmp_path / "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii")
    third = touch(tmp_path / "sub-03/anat/sub-03_T1w.nii.gz")
    for other in (
        "sub-01/anat/sub-01_FLAIR.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "derivatives/x/sub-01/sub-01_T1w.nii.gz",
    ):
        touch(tmp_path / other)
    assert read_scans(tmp_path, "t1") == [
        Scan("sub-01", first, "sub-01", "train", "healthy"),
        Scan("sub-02_ses-1", second, "sub-02", "test", "abnormal", "glioma"),
        Scan("sub-03", third, "sub-03"),
    ]
    assert [s.image.name for s in read_scans(tmp_path, "flair")] == ["sub-01_FLAIR.nii.gz"]
    with pytest.raises(
        InputError, match=r"a BIDS folder without any sub-\*_ct\.nii\[\.gz\] file for MODALITY=ct"
    ):
        read_scans(tmp_path, "ct")
    with pytest.raises(InputError, match=r"unknown MODALITY 'pet'; known: ct, t1, t2, flair"):
        read_scans(tmp_path, "pet")


def test_a_folder_of_subjects_is_bids_without_its_description(tmp_path):
    touch(tmp_path / "sub-A/anat/sub-A_FLAIR.nii")
    touch(tmp_path / "sub-A/anat/sub-A_T1w.nii")
    assert [s.id for s in read_scans(tmp_path, "flair")] == ["sub-A"]


def test_plain_folder_keeps_one_name_in_two_folders_apart(tmp_path):
    names = [
        "a/head.nii.gz",
        "b/head.nii.gz",
        "b/other.nii",
        "sub-7_x.nii.gz",
        "b/NOTES.txt",
        ".hidden.nii",
        "x_mask.nii.gz",
        "x_map.nii.gz",
    ]
    for name in names:
        touch(tmp_path / name)
    found = {
        str(s.image.relative_to(tmp_path)): (s.id, s.subject) for s in read_scans(tmp_path, "ct")
    }
    assert found == {
        "a/head.nii.gz": ("a_head", "a_head"),
        "b/head.nii.gz": ("b_head", "b_head"),
        "b/other.nii": ("other", "other"),
        "sub-7_x.nii.gz": ("sub-7_x", "sub-7"),
    }


def test_one_name_two_folders_deep_is_told_apart_by_the_whole_way(tmp_path):
    for name in ("1/scan/head.nii", "2/scan/head.nii", "2/scan-b/head.nii"):
        touch(tmp_path / name)
    found = {(s.id, s.subject) for s in read_scans(tmp_path, "ct")}
    assert found == {("1_scan_head", "1"), ("2_scan_head", "2"), ("2_scan-b_head", "2")}


def test_one_file(tmp_path):
    path = touch(tmp_path / "Jane's head (2).NII.GZ")
    assert read_scans(path, "ct") == [Scan("Jane-s-head-2", path, "Jane-s-head-2")]


@pytest.mark.parametrize(("name", "comma"), [("cohort.csv", ","), ("cohort.tsv", "\t")])
def test_table_with_every_column(tmp_path, name, comma):
    rows = [
        (
            "image",
            "id",
            "subject",
            "split",
            "label",
            "pathology",
            "mask",
            "brain_mask",
            "slice_labels",
            "site",
        ),
        ("ct/1.nii.gz", "one", "p1", "training", "0", "", "", "bm/1.nii.gz", "", "x"),
        (
            "ct/2.nii.gz",
            " two ",
            "p 2",
            "Test",
            "Abnormal",
            "bleed",
            "m/2.nii.gz",
            "",
            "s/2.csv",
            "y",
        ),
    ]
    (tmp_path / name).write_text(
        "\ufeff" + "\n".join(comma.join(r) for r in rows) + "\n", encoding="utf-8"
    )
    one, two = read_scans(tmp_path / name, "ct")
    assert one == Scan(
        "one",
        tmp_path / "ct/1.nii.gz",
        "p1",
        "train",
        "healthy",
        "",
        None,
        tmp_path / "bm/1.nii.gz",
        None,
        {"site": "x"},
    )
    assert two == Scan(
        "two",
        tmp_path / "ct/2.nii.gz",
        "p-2",
        "test",
        "abnormal",
        "bleed",
        tmp_path / "m/2.nii.gz",
        None,
        tmp_path / "s/2.csv",
        {"site": "y"},
    )


def test_table_of_images_alone_and_a_mask_that_means_abnormal(tmp_path):
    (tmp_path / "t.csv").write_text("image,mask\nsub-1_T1w.nii,\n/data/sub-2_ct.nii.gz,m.nii\n")
    assert read_scans(tmp_path / "t.csv", "t1") == [
        Scan("sub-1", tmp_path / "sub-1_T1w.nii", "sub-1"),
        Scan(
            "sub-2",
            Path("/data/sub-2_ct.nii.gz"),
            "sub-2",
            label="abnormal",
            mask=tmp_path / "m.nii",
        ),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"t\.csv: the table has no rows"),
        ("path,split\na.nii,train\n", r"t\.csv: no column 'image'; columns found: path, split"),
        ("image,split\na.nii,train\n,val\n", r"t\.csv, line 3: empty 'image'"),
        (
            "image,split\na.nii,trian\n",
            r"t\.csv, line 2: split 'trian'; expected one of train, val, tune, test; "
            r"did you mean 'train'\?",
        ),
        (
            "image,label\na.nii,helthy\n",
            r"t\.csv, line 2: label 'helthy'; expected one of healthy, abnormal; "
            r"did you mean 'healthy'\?",
        ),
        ("image,id\na.nii,x\nb/c.nii,x\nb/d.nii,x\n", r"two scans are named 'b_x'"),
    ],
)
def test_malformed_tables_are_refused_by_line(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_scans(tmp_path / "t.csv", "ct")


def test_a_table_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00image\x80")
    with pytest.raises(InputError, match=r"t\.csv: not a readable \.csv table"):
        read_scans(tmp_path / "t.csv", "ct")


def test_decathlon_strings_and_dictionaries(tmp_path):
    content = {
        "name": "heads",
        "training": ["a.nii.gz", {"image": "b.nii.gz"}],
        "validation": [{"image": "c.nii.gz", "subject": "p3", "label": 0}],
        "test": [
            {"image": "d.nii.gz", "label": "masks/d.nii.gz"},
            {"image": "e.nii.gz", "label": 1},
            "f.nii.gz",
        ],
    }
    (tmp_path / "d.json").write_text(json.dumps(content))
    assert read_scans(tmp_path / "d.json", "ct") == [
        Scan("a", tmp_path / "a.nii.gz", "a", "train"),
        Scan("b", tmp_path / "b.nii.gz", "b", "train"),
        Scan("c", tmp_path / "c.nii.gz", "p3", "val", "healthy"),
        Scan("d", tmp_path / "d.nii.gz", "d", "test", "abnormal", mask=tmp_path / "masks/d.nii.gz"),
        Scan("e", tmp_path / "e.nii.gz", "e", "test", "abnormal"),
        Scan("f", tmp_path / "f.nii.gz", "f", "test"),
    ]


def test_decathlon_of_training_alone_is_split_later(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps({"training": [f"{i}.nii" for i in range(5)]}))
    found = read_scans(tmp_path / "d.json", "ct")
    assert {s.split for s in found} == {""}
    assert sorted(s.split for s in assign_splits(found)) == [
        "test",
        "train",
        "train",
        "train",
        "val",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'training': []}", r"d\.json: not a JSON file"),
        ("[]", r"d\.json: no list named 'training', 'validation' or 'test'"),
        ('{"training": "a.nii"}', r"d\.json: no list named 'training', 'validation' or 'test'"),
        (
            '{"training": [{"img": "a.nii"}]}',
            r"every entry of 'training' needs one file name under 'image', got \{'img': 'a\.nii'\}",
        ),
        (
            '{"test": [{"image": ["a.nii", "b.nii"]}]}',
            r"every entry of 'test' needs one file name under 'image'",
        ),
        (
            '{"test": [{"image": "a.nii", "label": ["m1.nii"]}]}',
            r"label \['m1\.nii'\]; expected one mask file name, 0 \(healthy\) or 1",
        ),
        ('{"training": []}', r"d\.json: no scans found"),
    ],
)
def test_malformed_datalists_are_refused(tmp_path, text, message):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_scans(tmp_path / "d.json", "ct")


def test_a_source_of_no_known_kind_names_what_is_expected(tmp_path):
    with pytest.raises(InputError, match=r"absent: no such file or folder; give IN="):
        read_scans(tmp_path / "absent", "ct")
    with pytest.raises(
        InputError,
        match=r"scan\.mha: expected \.nii, \.nii\.gz, \.csv, \.tsv, \.json or a folder, "
        r"got a '\.mha' file",
    ):
        read_scans(touch(tmp_path / "scan.mha"), "ct")
    with pytest.raises(InputError, match=r"no scans found; expected \.nii or \.nii\.gz files"):
        read_scans(tmp_path, "ct")


def test_a_scan_row_names_files_so_that_any_folder_can_read_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scan = Scan("s", Path("in/s.nii"), "p", "test", "abnormal", "bleed", mask=Path("in/m.nii"))
    row = scan_row(scan)
    assert (
        row["image"] == tmp_path / "in/s.nii"
        and row["mask"] == tmp_path / "in/m.nii"
        and row["brain_mask"] is None
    )
    (tmp_path / "elsewhere").mkdir()
    write_table(tmp_path / "elsewhere/scans.tsv", [row])
    back = read_scans(tmp_path / "elsewhere/scans.tsv", "ct")
    assert back == [
        Scan(
            "s", tmp_path / "in/s.nii", "p", "test", "abnormal", "bleed", mask=tmp_path / "in/m.nii"
        )
    ]
