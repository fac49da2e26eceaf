"""What a user's folders and tables hold: read, or named; nothing is passed over without a word."""

import json
import logging
import os

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.bids import check_people
from preprocessing.files import read_table, walk, write_atomic, write_table
from preprocessing.scans import InputError, Scan
from preprocessing.splits import assign_splits, check_batch, check_leaks
from preprocessing.tables import list_scans, read_scans

ROWS = [{"image": "a.nii", "subject": "s1", "age": "40,5"}, {"image": "b.nii", "subject": "é"}]
ROWS[1]["age"] = ""


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def bids(folder, *subjects, table=""):
    """A BIDS folder with a T1 of each subject, and its participants.tsv."""
    touch(folder, *(f"{name}/anat/{name}_T1w.nii.gz" for name in subjects))
    (folder / "dataset_description.json").write_text("{}")
    if table:
        (folder / "participants.tsv").write_text(table)
    return folder


def said(caplog, source, modality="t1"):
    """The scans of a source by their files, and what the log says of the rest."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="norma"):
        scans = read_scans(source, modality)
    return sorted(str(s.image.relative_to(source)) for s in scans), caplog.text


# tables: what spreadsheets write


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_every_separator_and_encoding_of_a_spreadsheet_is_read(tmp_path, mark, ending, encoding):
    cells = [["image", "subject", "age"], ["a.nii", "s1", '"40,5"'], ["", "", ""]]
    cells += [["b.nii", "é", ""], [" ", "", ""]]
    text = "\r\n".join(mark.join(row) for row in cells) + "\r\n\r\n"
    (tmp_path / f"t.{ending}").write_bytes(text.encode(encoding))
    assert read_table(tmp_path / f"t.{ending}") == ROWS


def test_decimal_commas_and_the_separator_line_of_excel(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("sep=;\nimage;age\na.nii;40,5\n")
    assert read_table(table) == [{"image": "a.nii", "age": "40,5"}]
    table.write_text("image,age,label\na.nii,40,5,healthy\n")
    with pytest.raises(InputError, match=r"t\.csv, line 2: 4 cells for 3 columns; .* in quotes"):
        read_scans(table, "t1")
    table.write_text('image,age,label\na.nii,"40,5",healthy,,\n')
    (scan,) = read_scans(table, "t1")
    assert (scan.extra, scan.label) == ({"age": "40,5"}, "healthy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,subject\na\0b.nii,s1\n", r"t\.csv, line 2: holds a NUL byte"),
        (b"image,subject\nx\xe9.nii,s1\n", r"t\.csv: not a readable \.csv table .* as UTF-8 text"),
        (b'image,subject\na.nii,"s1\nb.nii,s2\n', r"t\.csv: not a readable \.csv table"),
        (b"image,label,label\na.nii,healthy,abnormal\n", r"two columns are named 'label'"),
        (b"image,subject\n,\n , \n", r"t\.csv: the table has no rows"),
        (b"image|subject\na.nii|s1\n", r"no column 'image'; columns found: image\|subject"),
        (b"image,split\na.nii,train\n\n,\n,val\n", r"t\.csv, line 5: empty 'image'"),
        (b"image,split\na.nii,train\n\n,\nb.nii,trian\n", r"t\.csv, line 5: split 'trian'"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_scans(tmp_path / "t.csv", "t1")


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=60), st.sampled_from([b"", b"image,subject\n", b"image;id;label\n"]))
def test_any_bytes_are_a_table_or_a_sentence(tmp_path_factory, content, header):
    table = tmp_path_factory.getbasetemp() / "fuzzed.csv"
    table.write_bytes(header + content)
    try:
        assert read_scans(table, "t1")
    except InputError as error:
        assert str(error).startswith(f"{table}") or "listed twice" in str(error)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.text(), st.text(min_size=1)), min_size=1, max_size=8))
def test_a_table_that_norma_writes_comes_back(tmp_path_factory, cells):
    table = tmp_path_factory.getbasetemp() / "written.tsv"
    rows = [{"id": "x", "one": one, "two": two} for one, two in cells]
    write_table(table, [row for row in rows if "\0" not in row["one"] + row["two"]])
    for row in read_table(table):
        assert row["id"] == "x"


def test_columns_in_capitals_are_norma_s_own(tmp_path):
    (tmp_path / "t.csv").write_text("Image,Subject,Label,Split,Site\na.nii,p,abnormal,test,X\n")
    (scan,) = read_scans(tmp_path / "t.csv", "t1")
    assert (scan.subject, scan.label, scan.split) == ("p", "abnormal", "test")
    assert scan.extra == {"Site": "X"}


def test_not_available_is_nothing(tmp_path):
    (tmp_path / "t.csv").write_text(
        "image,id,subject,split,label,mask,group,age\na.nii,n/a,N/A,n/a,n/a,n/a,n/a,n/a\n"
    )
    (scan,) = read_scans(tmp_path / "t.csv", "t1")
    assert scan == Scan("a", tmp_path / "a.nii", "a", extra={"age": ""})


def test_a_way_as_windows_writes_it_is_found(tmp_path):
    touch(tmp_path, "in/a.nii", "in/b\\c.nii")
    (tmp_path / "t.csv").write_text("image\n.\\in\\a.nii\nin/b\\c.nii\nin\\absent.nii\n")
    found = [scan.image for scan in read_scans(tmp_path / "t.csv", "t1")]
    assert found[:2] == [tmp_path / "in/a.nii", tmp_path / "in/b\\c.nii"]
    assert found[2] == tmp_path / "in\\absent.nii"


@pytest.mark.parametrize("name", ["a\0.nii", "a\ud800.nii"])
def test_a_name_that_no_file_can_have_is_named(tmp_path, name):
    (tmp_path / "d.json").write_text(json.dumps({"test": [name]}))
    with pytest.raises(InputError, match=r"d\.json: 'a.*' holds a"):
        read_scans(tmp_path / "d.json", "ct")


# tables of people


@pytest.mark.parametrize("name", ["sub-02", "02"])
def test_participants_are_matched_with_and_without_prefix(tmp_path, name):
    table = f"participant_id\tage\tlabel\nsub-01\tn/a\tn/a\n{name}\t40\tabnormal\n\t\t\n"
    scans = read_scans(bids(tmp_path, "sub-01", "sub-02", table=table), "t1")
    assert [(s.subject, s.label) for s in scans] == [("sub-01", ""), ("sub-02", "abnormal")]
    check_people(tmp_path, scans)
    assert assign_splits(scans)[1].split == "test"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("sub-01\thealthy\n2\tabnormal\n", r"no folder sub-\* for participant 2"),
        ("sub-01\thealthy\n", r"no row for sub-02, while it gives others a label or a split"),
    ],
)
def test_people_that_nothing_matches_are_refused_where_labels_are_given(tmp_path, table, message):
    scans = read_scans(
        bids(tmp_path, "sub-01", "sub-02", table=f"participant_id\tlabel\n{table}"), "t1"
    )
    with pytest.raises(InputError, match=rf"participants\.tsv: {message}"):
        check_people(tmp_path, scans)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\n2\t40\n")
    check_people(tmp_path, read_scans(tmp_path, "t1"))


def test_a_participant_without_this_sequence_is_no_mistake(tmp_path):
    table = "participant_id\tlabel\nsub-01\thealthy\nsub-02\tabnormal\n"
    touch(tmp_path, "sub-02/anat/sub-02_FLAIR.nii.gz")
    scans = read_scans(bids(tmp_path, "sub-01", table=table), "t1")
    check_people(tmp_path, scans)
    assert [s.subject for s in scans] == ["sub-01"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "participant_id\tlabel\nsub-01\thealthy\n01\tabnormal\n",
            "line 3: participant '01' has another row",
        ),
        ("subject\tlabel\nsub-01\thealthy\n", "line 2: no 'participant_id'"),
    ],
)
def test_participants_that_contradict_or_have_no_name_are_refused(tmp_path, table, message):
    with pytest.raises(InputError, match=rf"participants\.tsv, {message}"):
        read_scans(bids(tmp_path, "sub-01", table=table), "t1")


def test_preprocess_refuses_what_infer_may_take(tmp_path, command):
    source = bids(tmp_path / "in", "sub-01", "sub-02", table="participant_id\tlabel\n1\tabnormal\n")
    done = command("preprocess", "--input", source, "--modality", "t1", "--out", tmp_path / "out")
    assert done.code == 2 and "for participant 1; did you mean '01'?" in done.error


def grouped(folder, *groups, label=True):
    """A table of six images with the column `group`; the last is abnormal."""
    lines = ["image,group" + (",label" if label else "")]
    for i, group in enumerate(groups):
        last = "abnormal" if i == len(groups) - 1 else "healthy"
        lines.append(f"s{i}.nii,{group}" + (f",{last}" if label else ""))
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return read_scans(folder / "t.csv", "t1")


@pytest.mark.parametrize("words", [("control", "patient"), ("HC", "Patient"), ("control",) * 2])
def test_kinds_of_people_tie_no_scans(tmp_path, caplog, words):
    with caplog.at_level(logging.INFO, logger="norma"):
        scans = grouped(tmp_path, *[words[0]] * 5, words[1])
    assert "kinds of people, not images that belong together" in caplog.text
    assert {s.split for s in assign_splits(scans)} == {"train", "val", "test"}
    assert scans[5].extra == {"group": words[1]} and len({s.subject for s in scans}) == 6


def test_groups_of_images_tie_them(tmp_path):
    scans = assign_splits(grouped(tmp_path, "a", "a", "b", "b", "c", "d"))
    assert [s.subject for s in scans] == ["a", "a", "b", "b", "c", "d"]
    assert scans[0].split == scans[1].split and scans[2].split == scans[3].split
    (tmp_path / "t.csv").write_text("image,group,split\na.nii,g,train\nb.nii,g,val\n")
    with pytest.raises(InputError, match=r"group 'g' is in two splits, 'train' and 'val'"):
        check_leaks(read_scans(tmp_path / "t.csv", "t1"))


def test_groups_that_leave_no_training_are_refused_with_the_reason(tmp_path):
    scans = grouped(tmp_path, *["Kontrolle"] * 5, "Patientin")
    with pytest.raises(
        InputError,
        match=r"the column 'group' ties all 5 scans .* one group, 'Kontrolle', .* would be empty",
    ):
        assign_splits(scans)


def test_a_patient_without_a_label_is_not_trained_on(tmp_path):
    scans = grouped(tmp_path, "control", "control", "patient", label=False)
    with pytest.raises(InputError, match=r"s2\.nii: 'group' says 'patient' and no 'label' says"):
        assign_splits(scans)


def test_an_image_listed_twice_and_ids_that_meet_are_refused(tmp_path):
    touch(tmp_path, "a.nii")
    (tmp_path / "b.nii").symlink_to("a.nii")
    (tmp_path / "t.csv").write_text("image\na.nii\nb.nii\n")
    with pytest.raises(InputError, match=r"b\.nii: listed twice, as 'a' and 'b'"):
        list_scans(tmp_path / "t.csv", "t1", tmp_path)
    scans = [Scan(name, tmp_path / f"{i}.nii", name) for i, name in enumerate(("x", "X"))]
    with pytest.raises(InputError, match=r"1\.nii: its id 'X' is that of .*0\.nii"):
        check_batch(scans)


# folders


def test_linked_folders_are_read_once_and_loops_cost_a_word(tmp_path, caplog):
    source = tmp_path / "in"
    store = tmp_path / "store"
    touch(source, "p1/one.nii.gz")
    touch(store, "two.nii.gz", "deep/three.NII.GZ")
    (source / "p2").symlink_to(store)
    (source / "p3").symlink_to(store)
    (store / "round").symlink_to(store)
    (store / "up").symlink_to(source)
    (source / "top").symlink_to(tmp_path)
    (source / "loop.nii.gz").symlink_to("loop.nii.gz")
    (source / "absent.nii.gz").symlink_to("nowhere")
    found, text = said(caplog, source)
    # a link to nothing stays a scan: reading it says what is missing
    assert found == ["absent.nii.gz", "p1/one.nii.gz", "p2/deep/three.NII.GZ", "p2/two.nii.gz"]
    assert "passed over 4, links to a folder that is read already: " in text
    assert "passed over 1, links to themselves: loop.nii.gz" in text


def test_all_kinds_of_volumes_are_read_and_the_rest_is_counted(tmp_path, caplog):
    touch(tmp_path, "a.NII.GZ", "b.nii", "c.hdr", "c.img", "d.mgz", "E.HDR", "E.IMG")
    touch(tmp_path, "alone.img", "headless.hdr", "x_mask.nii.gz", "y_map.NII", "notes.txt")
    touch(tmp_path, "scan.nrrd", "scan2.nrrd", ".git/annex/z.nii", "._a.nii.gz", "README")
    found, text = said(caplog, tmp_path)
    assert found == ["E.IMG", "a.NII.GZ", "b.nii", "c.img", "d.mgz"]
    assert "passed over 2, one file of a pair .hdr and .img: alone.img, headless.hdr" in text
    assert "passed over 2, _mask and _map files: x_mask.nii.gz, y_map.NII" in text
    assert "passed over 4, other files (.nrrd 2, .txt 1, no ending 1): README, notes.txt" in text
    assert "passed over 2, hidden: .git, ._a.nii.gz" in text
    assert len(text.strip().splitlines()) == 4


def test_a_bids_folder_counts_what_it_does_not_take(tmp_path, caplog):
    touch(tmp_path, "sub-01/anat/sub-01_FLAIR.nii.gz", "derivatives/sub-01/sub-01_T1w.nii.gz")
    touch(tmp_path, "sub-02/anat/sub-02_T1w.NII.GZ")
    found, text = said(caplog, bids(tmp_path, "sub-01", table="participant_id\nsub-01\n"))
    assert found == ["sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.NII.GZ"]
    assert "passed over 2, other files (.gz 2): derivatives" in text


def test_nothing_to_read_says_what_was_passed_over(tmp_path):
    touch(tmp_path, "scan.nrrd", "x_mask.nii.gz")
    with pytest.raises(InputError, match=r"no scans found; .*other files \(\.nrrd 1\): scan\.nrrd"):
        read_scans(tmp_path, "t1")


def test_dicom_and_volumes_in_one_tree_are_both_taken(tmp_path, monkeypatch, caplog):
    from preprocessing import dicom

    touch(tmp_path, "in/p2.nii.gz", "in/p1/1.dcm", "in/notes.txt", "p 1.nii.gz")
    series = [Scan("p1_series-2", tmp_path / "p 1.nii.gz", "p1")]
    monkeypatch.setattr(dicom, "has_dicom", lambda folder: True)
    monkeypatch.setattr(dicom, "is_dicom", lambda file: file.suffix == ".dcm")
    monkeypatch.setattr(
        dicom, "convert", lambda folder, out, max_gb: (series, {"p1_series-3": "why"})
    )
    with caplog.at_level(logging.INFO, logger="norma"):
        scans, lost = list_scans(tmp_path / "in", "ct", tmp_path / "out")
    assert [s.id for s in scans] == ["p2", "p1_series-2"] and lost == {"p1_series-3": "why"}
    assert "other files (.txt 1): notes.txt" in caplog.text

    def nothing(folder, out, max_gb):
        raise InputError("all are damaged.")

    monkeypatch.setattr(dicom, "convert", nothing)
    scans, lost = list_scans(tmp_path / "in", "ct", tmp_path / "out")
    assert [s.id for s in scans] == ["p2"] and lost == {"DICOM in in": "all are damaged."}
    (tmp_path / "in/p2.nii.gz").unlink()
    with pytest.raises(InputError, match="all are damaged"):
        list_scans(tmp_path / "in", "ct", tmp_path / "out")


# what Norma wrote


PREPROC = "_space-MNI_desc-preproc_T1w.nii.gz"


def written(out, *ids):
    """Files as preprocess writes them for scans, and pictures and slices."""
    for name in ids:
        touch(out, f"{name}/{name}{PREPROC}", f"{name}/{name}_space-MNI_desc-brain_mask.nii.gz")
        touch(out, f"{name}/{name}_preproc.json", f"slices/{name}_image.npy", f"quality/{name}.png")
        touch(out, f"slices/nifti/{name}/{name}_slice-000.nii.gz", f"dicom/{name}/series-1.nii.gz")
    touch(out, ".norma.lock", "norma.log", "preprocess.json")
    write_table(out / "scans.tsv", [{"id": "x", "sidecar": "x"}])
    write_table(out / "failures.tsv", [], ("id", "reason"))


@pytest.mark.parametrize("out", [".", "work", "sub-work", "p1"])
@pytest.mark.parametrize("modality", ["t1", "picture"])
def test_a_second_run_sees_the_scans_of_the_first(tmp_path, caplog, out, modality):
    ending = "png" if modality == "picture" else "nii.gz"
    touch(tmp_path, f"one.{ending}", f"p1/two.{ending}", f"quality/three.x.{ending}")
    if modality == "picture" and out == ".":
        (tmp_path / f"quality/three.x.{ending}").unlink()  # beside those of Norma
    before, _ = said(caplog, tmp_path, modality)
    written(tmp_path / out, "one", "sub-two")
    after, text = said(caplog, tmp_path, modality)
    assert before == after and len(after) >= 2
    assert ", written by Norma: " in text


def test_a_run_that_was_killed_leaves_no_scan(tmp_path, caplog):
    image = nib.Nifti1Image(np.zeros((8, 9, 10), np.uint8), np.eye(4))
    image.header["descrip"] = "Norma 0.1.0"
    touch(tmp_path, "one.nii.gz", f"other/x{PREPROC}")
    (tmp_path / "half").mkdir()
    nib.save(image, tmp_path / f"half/one{PREPROC}")
    found, text = said(caplog, tmp_path)
    # another tool names its files so too
    assert found == ["one.nii.gz", f"other/x{PREPROC}"]
    assert f"passed over 1, written by Norma: half/one{PREPROC}" in text


def test_nothing_but_norma_s_own_files_is_refused(tmp_path):
    written(tmp_path, "one")
    with pytest.raises(InputError, match=r"no scans but \d+ files that Norma wrote; give the fol"):
        read_scans(tmp_path, "t1")


def test_a_user_s_table_of_norma_s_name_is_read(tmp_path):
    written(tmp_path, "one")
    (tmp_path / "scans.tsv").write_text("image\nx.png\n")
    assert [s.id for s in read_scans(tmp_path, "picture")] == ["x"]


# names that are no UTF-8


def test_a_name_that_is_no_utf_8_is_listed_written_and_read_again(tmp_path):
    names = [b"caf\xe9.nii", b"\xff.nii", b"caf\xe8.nii"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    scans = read_scans(tmp_path, "t1")
    assert len({s.id for s in scans}) == 3 and all(s.id.isascii() for s in scans)
    check_leaks(assign_splits(scans))
    write_table(tmp_path / "t.tsv", [{"id": s.id, "image": s.image} for s in scans])
    assert "\\udce9" in (tmp_path / "t.tsv").read_text(encoding="utf-8")
    again = read_scans(tmp_path / "t.tsv", "t1")
    assert [s.image for s in again] == [s.image for s in scans]
    assert sorted(os.fsencode(s.image.name) for s in again) == sorted(names)
    write_atomic(tmp_path / "page.html", f"<p>{scans[0].image}</p>")
    files, _ = walk(tmp_path)
    assert {"page.html", "t.tsv"} <= {file.name for file in files}


def test_infer_scores_files_of_any_name(command, tiny_run, brain_t1, quick_prepare, tmp_path):
    names = [b"caf\xe9.nii.gz", "\u7532.NII.GZ".encode()]
    (tmp_path / "in").mkdir()
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path / "in"), name), "wb") as handle:
            handle.write(brain_t1.read_bytes())
    out = tmp_path / "out"
    done = command("infer", "--run", tiny_run, "--input", tmp_path / "in", "--out", out)
    assert done.code == 0
    rows = read_table(out / "scores.tsv")
    assert len(rows) == 2 and all(row["status"] == "scored" for row in rows)
    masks = {path.name for path in out.glob("*_mask.nii.gz")}
    assert masks == {f"{row['id']}_mask.nii.gz" for row in rows}
    assert "\u7532_mask.nii.gz" in masks
