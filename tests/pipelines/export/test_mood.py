"""The form of the MOOD challenge: what is written for each scan, and the AP of a filled form."""

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from pipelines.detect.report import Report
from pipelines.detect.run import load_run
from pipelines.export.mood import (
    WRITTEN,
    ap_of_form,
    check_names,
    check_place,
    remove_form,
    write_form,
)
from preprocessing.scans import InputError, Scan


@pytest.fixture
def scans(brain_t1, tmp_path):
    """A folder as the challenge mounts it, with one scan that is none."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("00001.nii.gz", "00002.nii.gz"):
        (folder / name).write_bytes(brain_t1.read_bytes())
    (folder / "00003.nii.gz").write_bytes(b"nothing")
    return folder


def test_a_folder_becomes_scores_and_maps(scans, tiny_run, command, quick_prepare, tmp_path):
    work = ["-w", tmp_path / "work", "--run", tiny_run]
    done = command("mood", scans, tmp_path / "sample", *work, "--task", "sample")
    assert done.code == 1 and "2 scans in the form of MOOD, 1 not scored" in done.out
    written = {p.name for p in (tmp_path / "sample").iterdir() if not p.name.startswith(".")}
    assert written == {"00001.nii.gz.txt", "00002.nii.gz.txt"}
    scores = {n: float((tmp_path / "sample" / n).read_text()) for n in written}
    assert all(0 < score < 1 for score in scores.values())

    done = command("mood", scans, tmp_path / "pixel", *work, "--task", "pixel")
    assert done.code == 1
    run = load_run(tiny_run, "cpu")
    for name in ("00001.nii.gz", "00002.nii.gz"):
        scan = nib.load(scans / name)
        found = nib.load(tmp_path / "pixel" / name)
        assert found.shape == scan.shape and found.get_data_dtype() == np.float32
        np.testing.assert_allclose(found.affine, scan.affine, atol=1e-5)
        values = np.asarray(found.dataobj)
        own = np.asarray(nib.load(tmp_path / "work" / name.replace(".nii", "_map.nii")).dataobj)
        assert values.min() == 0 and 0 < values.max() < 1
        np.testing.assert_allclose(values, own / (own + run.threshold), rtol=1e-5)


def test_the_ap_of_a_form_is_that_of_its_files(tmp_path):
    rng = np.random.default_rng(0)
    for task in ("sample", "pixel"):
        (tmp_path / "out" / task).mkdir(parents=True)
        (tmp_path / "labels" / task).mkdir(parents=True)
    truth = [0, 1, 1, 0]
    found = [0.2, 0.9, None, 0.4]
    masks = []
    maps = []
    for n, (label, score) in enumerate(zip(truth, found, strict=True)):
        (tmp_path / "labels/sample" / f"toy_{n}.nii.gz.txt").write_text(f"{label}\n")
        mask = np.zeros((8, 9, 10), np.uint8)
        mask[1:3, 1:3, 1:3] = label
        values = (rng.random(mask.shape) * 0.6 + 0.3 * mask).astype(np.float16)
        nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / f"labels/pixel/toy_{n}.nii.gz")
        if score is not None:
            (tmp_path / "out/sample" / f"toy_{n}.nii.gz.txt").write_text(f"{score}\n")
            image = nib.Nifti1Image(values.astype(np.float32), np.eye(4))
            nib.save(image, tmp_path / f"out/pixel/toy_{n}.nii.gz")
        masks.append(mask.ravel())
        maps.append(values.ravel() * (score is not None))
    ap, count = ap_of_form(tmp_path / "out/sample", tmp_path / "labels/sample", "sample")
    assert count == 4
    assert ap == pytest.approx(average_precision_score(truth, [0.2, 0.9, 0, 0.4]))
    ap, count = ap_of_form(tmp_path / "out/pixel", tmp_path / "labels/pixel", "pixel")
    expected = average_precision_score(np.concatenate(masks), np.concatenate(maps))
    assert (ap, count) == (pytest.approx(expected, abs=1e-9), 4)

    (tmp_path / "out/sample/toy_0.nii.gz.txt").write_text("high\n")
    with pytest.raises(InputError, match="expected one number, got 'high'"):
        ap_of_form(tmp_path / "out/sample", tmp_path / "labels/sample", "sample")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8)), np.eye(4)), tmp_path / "out/pixel/toy_0.nii.gz")
    with pytest.raises(InputError, match=r"shape \(8, 8, 8\), but"):
        ap_of_form(tmp_path / "out/pixel", tmp_path / "labels/pixel", "pixel")
    with pytest.raises(InputError, match="no labels; expected files such as"):
        ap_of_form(tmp_path / "out/pixel", tmp_path / "out", "sample")


def test_two_scans_of_one_name_have_no_form(tmp_path):
    scans = [Scan(str(n), tmp_path / str(n) / "a.nii.gz", str(n)) for n in range(2)]
    with pytest.raises(InputError, match=r"a\.nii\.gz is there more than once"):
        check_names(scans, tmp_path)


def test_results_never_take_the_place_of_scans_or_labels(scans, tiny_run, command, tmp_path):
    before = {path.name: path.read_bytes() for path in scans.iterdir()}
    link = tmp_path / "link"
    link.symlink_to(scans)
    (tmp_path / "labels").mkdir()
    mask = nib.Nifti1Image(np.zeros((8, 9, 10), np.uint8), np.eye(4))
    nib.save(mask, tmp_path / "labels" / "00001.nii.gz")
    asked = ["--run", tiny_run, "--task", "pixel", "--labels", tmp_path / "labels"]
    for out, what in ((scans, "scans"), (link, "scans"), (tmp_path / "labels", "labels")):
        done = command("mood", scans, out, *asked)
        assert done.code == 2 and f"{out}: the folder of the {what}" in done.err
    assert {path.name: path.read_bytes() for path in scans.iterdir()} == before

    other = tmp_path / "other"
    other.mkdir()
    (other / "00003.nii.gz").write_bytes(b"mine")
    done = command("mood", scans, other, *asked[:4])
    assert done.code == 2 and "00003.nii.gz: a file that this command did not write" in done.err
    assert (other / "00003.nii.gz").read_bytes() == b"mine"
    assert not (other / "00001.nii.gz").exists()


def test_own_results_are_replaced_and_removed_and_others_are_not(tiny_run, tmp_path):
    run = load_run(tiny_run, "cpu")
    mine = Scan("a", tmp_path / "a.nii.gz", "a")
    other = Scan("b", tmp_path / "b.nii.gz", "b")
    out = tmp_path / "out"
    out.mkdir()
    for score in (0.1, 0.2):
        check_place([mine], out, "sample")
        write_form(Report(id="a", status="scored", score=score), mine, tmp_path, out, run, "sample")
    (out / "b.nii.gz.txt").write_text("of a reader")
    with pytest.raises(InputError, match=r"b\.nii\.gz\.txt: a file that this command did not"):
        check_place([mine, other], out, "sample")
    remove_form(other, out, "sample")
    assert (out / "b.nii.gz.txt").read_text() == "of a reader"
    remove_form(mine, out, "sample")
    assert not (out / "a.nii.gz.txt").exists() and (out / WRITTEN).read_text() == ""
    (out / "a.nii.gz.txt").write_text("of a reader")
    with pytest.raises(InputError, match=r"a\.nii\.gz\.txt: a file that this command did not"):
        check_place([mine], out, "sample")


def test_labels_are_looked_at_before_any_scan(scans, tiny_run, command, tmp_path):
    labels = tmp_path / "labels"
    asked = [scans, tmp_path / "out", "--run", tiny_run, "--labels", labels, "--task"]
    done = command("mood", *asked, "sample")
    assert done.code == 2 and f"{labels}: no labels; expected files" in done.err
    labels.mkdir()
    path = labels / "00001.nii.gz.txt"
    for content, sentence in (
        (b"nan\n", "expected one number, got 'nan'"),
        (b"inf\n", "expected one number, got 'inf'"),
        (b"\xff\xfe1\n", "expected one number, got '\\xff\\xfe1'"),
        (b"0.5\n", "expected 0 or 1, got 0.5"),
    ):
        path.write_bytes(content)
        done = command("mood", *asked, "sample")
        assert done.code == 2 and f"{path}: {sentence}" in done.err
    (labels / "00001.nii.gz").write_bytes(b"nothing")
    done = command("mood", *asked, "pixel")
    assert done.code == 2 and f"{labels / '00001.nii.gz'}: " in done.err
    assert not (tmp_path / "out").exists()
