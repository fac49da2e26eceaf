"""Scan tables: every kind of input, splits by subject, leaks refused by name, and what read_image makes of a file."""

import errno
import json
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from preprocessing.files import read_table, write_atomic, write_table
from preprocessing.images import read_image, save_nifti
from preprocessing.scans import InputError, Scan, ScanError, scan_row
from preprocessing.splits import assign_splits, check_leaks
from preprocessing.tables import read_scans


def touch(path):
    """An empty file: read_scans lists names and reads no image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def healthy(*subjects):
    return [Scan(f"{s}_scan", Path(f"/data/{s}.nii.gz"), s) for s in subjects]


# what comes in


def test_bids_folder_takes_the_modality_and_joins_participants(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}")
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tlabel\tsplit\tpathology\nsub-01\t40\tcontrol\ttraining\t\nsub-02\t50\tlesion\ttest\tglioma\n"
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
            r"t\.csv, line 2: split 'trian'; expected one of train, val, tune, test; did you mean 'train'\?",
        ),
        (
            "image,label\na.nii,helthy\n",
            r"t\.csv, line 2: label 'helthy'; expected one of healthy, abnormal; did you mean 'healthy'\?",
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
        match=r"scan\.mha: expected \.nii, \.nii\.gz, \.csv, \.tsv, \.json or a folder, got a '\.mha' file",
    ):
        read_scans(touch(tmp_path / "scan.mha"), "ct")
    with pytest.raises(InputError, match=r"no scans found; expected \.nii or \.nii\.gz files"):
        read_scans(tmp_path, "ct")


# splits and leaks


def test_splits_are_by_subject_and_abnormal_subjects_are_tested():
    cohort = healthy(*"abcdefghij")
    cohort += [
        Scan(f"{s.subject}_second", Path(f"/data/{s.subject}2.nii"), s.subject) for s in cohort[:4]
    ]
    cohort += [Scan("a_lesion", Path("/data/a3.nii"), "a", label="abnormal")]
    given = assign_splits(cohort)
    by_subject = {}
    for scan in given:
        by_subject.setdefault(scan.subject, set()).add(scan.split)
    assert all(len(splits) == 1 for splits in by_subject.values())
    assert by_subject["a"] == {"test"}
    assert [s.id for s in given] == [s.id for s in cohort]
    counts = [
        sum(splits == {name} for splits in by_subject.values()) for name in ("train", "val", "test")
    ]
    assert counts == [
        5,
        2,
        3,
    ]  # 9 healthy subjects: 2 for val, 2 for test, the rest to train; and the abnormal one
    check_leaks(given)


def test_splits_depend_on_seed_and_names_and_not_on_order():
    cohort = healthy(*(f"sub-{i:02d}" for i in range(20)))
    first = {s.subject: s.split for s in assign_splits(cohort, seed=0)}
    assert first == {s.subject: s.split for s in assign_splits(cohort[::-1], seed=0)}
    assert first != {s.subject: s.split for s in assign_splits(cohort, seed=1)}
    assert first == {s.subject: s.split for s in assign_splits(cohort, seed=0)}


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, "test"), (2, "train val"), (3, "test train val"), (4, "test train train val")],
)
def test_small_cohorts_still_validate(n, expected):
    assert " ".join(sorted(s.split for s in assign_splits(healthy(*"abcdefg"[:n])))) == expected


def test_one_subject_validates_however_small_its_share():
    given = [s.split for s in assign_splits(healthy(*"abcde"), fractions=(0.98, 0.02, 0))]
    assert sorted(given) == ["train"] * 4 + ["val"]


def test_given_splits_stay_and_partial_ones_are_refused():
    full = [Scan("1", Path("1.nii"), "1", "val"), Scan("2", Path("2.nii"), "2", "train")]
    assert assign_splits(full, seed=9) == full
    with pytest.raises(
        InputError,
        match=r"3\.nii: no split, while other rows have one; give every row a split or none",
    ):
        assign_splits([*full, Scan("3", Path("3.nii"), "3")])


def test_leaks_are_refused_by_name(tmp_path):
    image = touch(tmp_path / "x.nii")
    fine = [
        Scan("s1", tmp_path / "a.nii", "p1", "train"),
        Scan("s2", tmp_path / "b.nii", "p1", "train", "healthy"),
    ]
    fine += [
        Scan("s3", tmp_path / "c.nii", "p2", "test", "abnormal"),
        Scan("s4", image, "p3", "val"),
    ]
    check_leaks(fine)
    with pytest.raises(
        InputError,
        match=r"subject 'p1' is in two splits, 'train' and 'test'; keep a subject in one",
    ):
        check_leaks([*fine, Scan("s5", tmp_path / "e.nii", "p1", "test")])
    (tmp_path / "link.nii").symlink_to(image)
    with pytest.raises(
        InputError, match=r"link\.nii: listed twice, as 's4' and 's6'; list a scan once"
    ):
        check_leaks([*fine, Scan("s6", tmp_path / "link.nii", "p9", "val")])
    for split in ("train", "val"):
        with pytest.raises(
            InputError, match=rf"z\.nii: abnormal scan 's7' in split '{split}'.*move it to 'test'"
        ):
            check_leaks([*fine, Scan("s7", tmp_path / "z.nii", "p7", split, "abnormal")])


# tables and files


def test_a_table_comes_back_as_it_was_written(tmp_path):
    rows = [
        {"id": "a", "note": 'an "unclosed quote', "n": 3},
        {"id": "b", "note": '"', "n": None},
        {"id": "ç", "note": "two\tcells\nand, lines", "n": 0.5},
    ]
    write_table(tmp_path / "t.tsv", rows)
    assert read_table(tmp_path / "t.tsv") == [
        {"id": "a", "note": 'an "unclosed quote', "n": "3"},
        {"id": "b", "note": '"', "n": ""},
        {"id": "ç", "note": "two cells and, lines", "n": "0.5"},
    ]
    write_table(tmp_path / "t.tsv", rows, ("n", "id"))
    assert (tmp_path / "t.tsv").read_text(encoding="utf-8") == "n\tid\n3\ta\n\tb\n0.5\tç\n"
    write_table(tmp_path / "empty.tsv", [], ("n", "id"))
    assert (tmp_path / "empty.tsv").read_text() == "n\tid\n"
    assert read_table(tmp_path / "empty.tsv") == []


def test_rows_that_are_too_long_or_too_short_lose_nothing_else(tmp_path):
    (tmp_path / "t.csv").write_text("image,id\na.nii\nb.nii,two,extra\n")
    assert read_table(tmp_path / "t.csv") == [
        {"image": "a.nii", "id": ""},
        {"image": "b.nii", "id": "two"},
    ]


@pytest.mark.parametrize("where", ["write_bytes", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where):
    path = tmp_path / "scores.tsv"
    write_atomic(path, "old")
    real = Path.write_bytes

    def full(self, *rest):
        if where == "write_bytes":
            real(self, b"hal")  # the disk fills in the middle of the file
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, where, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new content")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.tsv"]


def test_a_failed_image_write_leaves_the_old_image_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x_mask.nii.gz"
    save_nifti(nib.Nifti1Image(np.full((8, 9, 10), 5, np.uint8), np.eye(4)), path)

    def full(self, name):
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", full)
    with pytest.raises(OSError, match="No space left"):
        save_nifti(nib.Nifti1Image(np.zeros((8, 9, 10), np.uint8), np.eye(4)), path)
    monkeypatch.undo()
    assert (np.asarray(nib.load(path).dataobj) == 5).all()
    assert [p.name for p in tmp_path.iterdir()] == ["x_mask.nii.gz"]


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


# read_image


def patched(path, *fields):
    """Rewrite (offset, struct format, values) in the first bytes of an uncompressed NIfTI."""
    raw = bytearray(path.read_bytes())
    for offset, kind, *values in fields:
        struct.pack_into(kind, raw, offset, *values)
    path.write_bytes(raw)
    return path


@pytest.fixture
def stored(tmp_path):
    """An int16 NIfTI of 9 x 10 x 11 voxels that count up, and its affine: oblique, flipped, anisotropic."""
    affine = np.array(
        [[-2.0, 0, 0, 5], [0, -2.475671, -0.417519, -7], [0, -0.347933, 2.970805, 3], [0, 0, 0, 1]]
    )
    image = nib.Nifti1Image(np.arange(990, dtype=np.int16).reshape(9, 10, 11), affine)
    image.set_qform(affine, 1)
    path = tmp_path / "x.nii"
    nib.save(image, path)
    return path, affine


def test_slope_and_intercept_of_the_file_are_applied(stored):
    path, affine = stored
    image = read_image(patched(path, (112, "<ff", 0.5, -1024.0)))
    data = np.asarray(image.dataobj)
    assert data.dtype == np.float32 and data.shape == (9, 10, 11)
    assert (data[0, 0, 0], data[0, 0, 1], data[8, 9, 10]) == (-1024.0, -1023.5, 0.5 * 989 - 1024)
    assert np.allclose(image.affine, affine, atol=1e-5)


def test_a_trailing_axis_of_one_is_dropped_and_a_longer_one_refused(tmp_path):
    data = np.arange(9 * 10 * 11, dtype=np.float32).reshape(9, 10, 11, 1, 1)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "one.nii.gz")
    image = read_image(tmp_path / "one.nii.gz")
    assert image.shape == (9, 10, 11) and np.array_equal(image.dataobj, data[..., 0, 0])
    nib.save(nib.Nifti1Image(np.zeros((9, 10, 11, 2)), np.eye(4)), tmp_path / "two.nii.gz")
    with pytest.raises(
        ScanError,
        match=r"two\.nii\.gz: expected a 3-D scan, got 4-D of shape \(9, 10, 11, 2\); give one volume per file",
    ):
        read_image(tmp_path / "two.nii.gz")


def test_without_qform_and_sform_the_voxel_size_places_the_image(stored):
    """NIfTI method 1: spacing alone. nibabel takes x from right to left and the origin in the middle."""
    path, _ = stored
    image = read_image(patched(path, (252, "<hh", 0, 0), (80, "<fff", 2.0, 2.5, 3.0)))
    assert image.affine.tolist() == [
        [-2, 0, 0, 8],
        [0, 2.5, 0, -11.25],
        [0, 0, 3, -15],
        [0, 0, 0, 1],
    ]
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (0, 0)


def test_nifti_2_is_read(tmp_path):
    data = np.arange(990, dtype=np.int16).reshape(9, 10, 11)
    nib.save(nib.Nifti2Image(data, np.diag([2, 2.5, 3, 1])), tmp_path / "x.nii.gz")
    image = read_image(tmp_path / "x.nii.gz")
    assert (
        np.array_equal(image.dataobj, data)
        and image.affine.tolist() == np.diag([2, 2.5, 3, 1]).tolist()
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            [(84, "<f", 0.0)],
            r"voxel size \[2\.0, 0\.0, 3\.0\] mm in the header; expected three positive numbers",
        ),
        (
            [(88, "<f", -3.0)],
            r"voxel size \[2\.0, 2\.5, -3\.0\] mm in the header; expected three positive numbers",
        ),
        (
            [(80, "<f", float("nan"))],
            r"voxel size \[nan, 2\.5, 3\.0\] mm in the header; expected three positive numbers",
        ),
        ([(254, "<h", 1), (280, "<ffff", 0, 0, 0, 0)], "the affine is singular or not finite"),
        (
            [(254, "<h", 1), (280, "<ffff", 0, -2.475671, -0.417519, 0)],
            "the affine is singular or not finite",
        ),
        (
            [(254, "<h", 1), (280, "<ffff", float("inf"), 0, 0, 0)],
            "the affine is singular or not finite",
        ),
        ([(0, "<i", 7), (84, "<f", 0.0)], r"voxel size \[2\.0, 0\.0, 3\.0\]"),
        ([(344, "4s", b"abc")], "not a readable NIfTI file"),
        ([(70, "<h", 999)], "not a readable NIfTI file"),
    ],
)
def test_damaged_headers_are_refused_by_file(stored, fields, message):
    path, _ = stored
    patched(path, (80, "<fff", 2.0, 2.5, 3.0))
    with pytest.raises(ScanError, match=message) as refused:
        read_image(patched(path, *fields))
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)


def test_big_endian_headers_are_checked_too(stored, tmp_path):
    _, affine = stored
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(np.ones((9, 10, 11), ">i2"), affine, header), tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    assert np.allclose(read_image(tmp_path / "big.nii").affine, affine, atol=1e-5)
    with pytest.raises(ScanError, match=r"voxel size \[0\.0, "):
        read_image(patched(tmp_path / "big.nii", (80, ">f", 0.0)))


@pytest.mark.parametrize("kind", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_colour_and_complex_images_are_refused(tmp_path, kind):
    nib.save(nib.Nifti1Image(np.ones((9, 10, 11), kind), np.eye(4)), tmp_path / "x.nii.gz")
    with pytest.raises(
        ScanError,
        match=r"x\.nii\.gz: expected one number per voxel, got data of type .* \(colour or complex\)",
    ):
        read_image(tmp_path / "x.nii.gz")


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_truncated_files_are_refused(tmp_path, name, keep):
    data = np.random.default_rng(0).normal(size=(19, 20, 21)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(
        ScanError, match=r"x\.nii(\.gz)?: (truncated or damaged|not a readable NIfTI file) \(.+\)"
    ):
        read_image(tmp_path / name)


def test_absent_flat_and_tiny_images_are_refused(tmp_path):
    with pytest.raises(ScanError, match=r"absent\.nii: no such file"):
        read_image(tmp_path / "absent.nii")
    nib.save(nib.Nifti1Image(np.zeros((30, 40)), np.eye(4)), tmp_path / "flat.nii")
    with pytest.raises(
        ScanError, match=r"flat\.nii: expected a 3-D scan, got 2-D of shape \(30, 40\)"
    ):
        read_image(tmp_path / "flat.nii")
    nib.save(nib.Nifti1Image(np.zeros((30, 40, 7)), np.eye(4)), tmp_path / "thin.nii")
    with pytest.raises(
        ScanError,
        match=r"thin\.nii: expected at least 8 voxels along each axis, got shape \(30, 40, 7\)",
    ):
        read_image(tmp_path / "thin.nii")
