"""What the commands do with bad scans, bad settings, a full disk and Ctrl-C.

The exit code, one clear sentence, and what is on disk.
"""

import errno
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipelines import cli
from pipelines.cohort import store
from pipelines.config import ROOT
from pipelines.detect import batch
from preprocessing.files import read_table
from tests.conftest import QUICK, oblique_affine

SHAPE = (92, 80, 62)
ZOOMS = (2.0, 2.5, 3.0)
AFFINE = oblique_affine(SHAPE, ZOOMS, np.zeros(3))
NOTES = (
    "Splits by subject were made here",
    "Scans without a label",
    ": already skull-stripped, taken as it is",
    "as a skull-stripped scan failed; deepbet is tried",
)
MESSAGES = {  # what a user reads about each file; a box of noise is below
    "truncated.nii.gz": r"truncated or damaged \(.+\); copy or export it again\.",
    "text.nii.gz": r"(not a readable NIfTI file|truncated or damaged) \(.+\)",
    "flat.nii.gz": r"expected a 3-D scan, got 2-D of shape \(92, 80\); give one volume per file\.",
    "series.nii.gz": r"expected a 3-D scan, got 4-D of shape \(20, 22, 24, 3\); "
    r"give one volume per file\.",
    "zero.nii.gz": r"spread of values \(max - min\) is 0, expected at least 1e-12\.",
    "nan.nii.gz": r"share of voxels that are NaN or infinite is 2\.191e-06, expected at most 0\.",
    "no-size.nii": r"voxel size \[2\.0, 0\.0, 3\.0\] mm in the header; "
    r"expected three positive numbers\.",
    "negative-size.nii": r"voxel size \[2\.0, -2\.5, 3\.0\] mm in the header; "
    r"expected three positive numbers\.",
    "singular.nii": r"the affine is singular or not finite, so voxels have no place in space; "
    r"repair the header\.",
    "mouse.nii.gz": r"smallest extent of the field of view is 18\.\d+ mm, expected at least 60 mm; "
    r"largest .* expected 110 to 600 mm\.",
    "box.nii.gz": r"likeness to a brain \(mutual information with the atlas, affine\) is "
    r"0\.0[01]\d+ nats, "
    r"expected at least 0\.03 nats \(no brain, or one that lies otherwise than its header says, "
    r"such as back to front\)(; likeness as the scan lies, over that in another pose .*)?\.",
    "straight-box.nii.gz": r"brain volume is 2340 ml, expected 600 to 2300 ml; .*",
}


def box(shape=SHAPE):
    """A block of 1.4 litres in the middle of the field of view."""
    inside = np.zeros(shape, bool)
    inside[18:74, 16:64, 12:47] = True
    return inside


@pytest.fixture(scope="session")
def bad_scans(tmp_path_factory):
    """A folder with one file of each kind in MESSAGES."""
    folder = tmp_path_factory.mktemp("bad")
    noise = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)

    def save(name, data, affine=AFFINE):
        image = nib.Nifti1Image(data, affine)
        if data.ndim > 2:
            image.set_qform(affine, 1)
        nib.save(image, folder / name)

    def patch(name, *fields):
        save(name, noise)
        raw = bytearray((folder / name).read_bytes())
        for offset, kind, *values in fields:
            struct.pack_into(kind, raw, offset, *values)
        (folder / name).write_bytes(raw)

    save("truncated.nii.gz", noise)
    raw = (folder / "truncated.nii.gz").read_bytes()
    (folder / "truncated.nii.gz").write_bytes(raw[: len(raw) // 2])
    (folder / "text.nii.gz").write_text("This is no image.\n")
    save("flat.nii.gz", noise[:, :, 0])
    save("series.nii.gz", np.zeros((20, 22, 24, 3), np.int16))
    save("zero.nii.gz", np.zeros(SHAPE, np.int16))
    holes = noise.astype(np.float32)
    holes[40, 40, 30] = np.nan
    save("nan.nii.gz", holes)
    patch("no-size.nii", (84, "<f", 0.0))
    patch("negative-size.nii", (84, "<f", -2.5))
    patch("singular.nii", (252, "<hh", 0, 1), (280, "<ffff", 0, 0, 0, 0))
    save("mouse.nii.gz", noise, oblique_affine(SHAPE, (0.2, 0.25, 0.3), np.zeros(3)))
    save("box.nii.gz", np.where(box(), 100, 0).astype(np.int16))
    large = np.zeros((130, 150, 120), np.int16)
    large[10:120, 15:135, 10:110] = 100
    save("straight-box.nii.gz", large, np.diag([1.0, 1, 1, 1]))
    assert {p.name for p in folder.iterdir()} == set(MESSAGES)
    return folder


def stem(name):
    return name.split(".nii")[0]


def one_line(done, start):
    """The only line of stderr that begins so; only notes about splits may stand before it."""
    assert "Traceback" not in done.err, done.err
    found = [line for line in done.sentences if line.startswith(start)]
    assert len(found) == 1, done.err
    rest = [
        line
        for line in done.sentences
        if line not in found and not line.startswith(NOTES) and not line.endswith(NOTES)
    ]
    assert rest == [], done.err
    return found[0]


def results_in(out):
    """Names of what a command left in OUT, but for its log and its lock."""
    return sorted(p.name for p in out.iterdir() if p.name not in (cli.LOG, cli.LOCK))


# a scan that cannot be used


@pytest.mark.usefixtures("quick_prepare")
@pytest.mark.parametrize("name", MESSAGES)
def test_preprocess_refuses_a_bad_scan_in_one_sentence(
    command, bad_scans, tmp_path, left_behind, name
):
    path = bad_scans / name
    out = tmp_path / "out"
    done = command("preprocess", "--input", path, "--modality", "t1", "--out", out, *QUICK)
    assert done.code == cli.NOTHING_DONE
    assert re.fullmatch(
        rf"left out: {re.escape(str(path))}: {MESSAGES[name]}.*", one_line(done, "left out: ")
    ), done.err
    assert done.out == f"{out}: 0 scans preprocessed, 1 left out; look at {out / 'quality.html'}\n"
    (row,) = read_table(out / "failures.tsv")
    assert row["id"] == stem(name)
    assert re.match(rf"{re.escape(name)}: {MESSAGES[name]}", row["reason"])
    assert read_table(out / "scans.tsv") == [] and read_table(out / "slices/index.tsv") == []
    assert (
        not list(out.rglob("*.nii.gz")) and not list(out.rglob("*.npy")) and left_behind(out) == []
    )
    page = (out / "quality.html").read_text()
    assert stem(name) in page and "0 scans preprocessed, 1 left out" in page


@pytest.mark.usefixtures("quick_prepare")
@pytest.mark.parametrize("name", MESSAGES)
def test_infer_reports_why_and_removes_the_old_mask(
    command, bad_scans, tiny_run, tmp_path, left_behind, name
):
    path = bad_scans / name
    out = tmp_path / "out"
    out.mkdir()
    for kind in ("mask", "map"):
        (out / f"{stem(name)}_{kind}.nii.gz").write_bytes(b"of an earlier scan of this name")
    (out / "other_mask.nii.gz").write_bytes(b"of another scan")
    done = command(
        "infer", "--run", tiny_run, "--input", path, "--out", out, "--accelerator", "cpu"
    )
    assert done.code == cli.NOTHING_DONE
    assert re.fullmatch(
        rf"not scored: {re.escape(str(path))}: {MESSAGES[name]}.*", one_line(done, "not scored: ")
    ), done.err
    assert "0 scans scored, 1 not scored" in done.out and "not a medical device" in done.out
    assert results_in(out) == sorted(
        ["index.html", "other_mask.nii.gz", "scores.tsv", f"{stem(name)}_report.json"]
    )
    report = json.loads((out / f"{stem(name)}_report.json").read_text())
    assert report["status"] == "not scored" and report["id"] == stem(name) and "score" not in report
    assert re.match(rf"{re.escape(name)}: {MESSAGES[name]}", report["reason"])
    (row,) = read_table(out / "scores.tsv")
    assert (row["status"], row["score"], row["percentile"]) == ("not scored", "", "") and row[
        "reason"
    ] == report["reason"]
    assert left_behind(out) == []


@pytest.mark.slow
def test_a_noisy_box_of_brain_volume_is_refused(command, tmp_path):
    """With the modality's own limits: the checks after registration know that this is no brain."""
    noise = np.random.default_rng(1).normal(100, 20, SHAPE).clip(1)
    nib.save(
        nib.Nifti1Image(np.where(box(), noise, 0).astype(np.float32), AFFINE),
        tmp_path / "box.nii.gz",
    )
    done = command(
        "preprocess",
        "--input",
        tmp_path / "box.nii.gz",
        "--modality",
        "t1",
        "--out",
        tmp_path / "out",
        *QUICK,
    )
    assert done.code == cli.NOTHING_DONE
    sentence = one_line(done, "left out: ")
    assert (
        str(tmp_path / "box.nii.gz") in sentence
        and "with the atlas" in sentence
        and "expected at least" in sentence
    )
    assert read_table(tmp_path / "out/scans.tsv") == [] and not list(
        (tmp_path / "out").rglob("*.npy")
    )
    assert [p.name for p in (tmp_path / "out/quality").iterdir()] == [
        "box.png"
    ]  # what was seen, for the page
    assert "(left out)" in (tmp_path / "out/quality.html").read_text()


# batches


@pytest.fixture
def mixed(tmp_path, brain_t1, bad_scans):
    """A table of one good scan and three bad ones, one of which is not there."""
    lines = [
        "image,id",
        f"{bad_scans / 'nan.nii.gz'},nan",
        f"{brain_t1},good",
        f"{bad_scans / 'text.nii.gz'},text",
        "gone.nii.gz,gone",
    ]
    (tmp_path / "mixed.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "mixed.csv"


def test_a_batch_keeps_the_good_scan_and_names_the_bad(
    command, mixed, quick_prepare, tmp_path, left_behind
):
    out = tmp_path / "out"
    done = command("preprocess", "--input", mixed, "--modality", "t1", "--out", out, *QUICK)
    assert done.code == cli.SOME_FAILED and "Traceback" not in done.err
    assert done.out.startswith(f"{out}: 1 scans preprocessed, 3 left out")
    failures = read_table(out / "failures.tsv")
    assert [r["id"] for r in failures] == ["nan", "text", "gone"]
    assert re.search(MESSAGES["nan.nii.gz"], failures[0]["reason"]) and re.search(
        MESSAGES["text.nii.gz"], failures[1]["reason"]
    )
    assert failures[2]["reason"] == "gone.nii.gz: no such file."
    said = [s for s in done.sentences if s.startswith("left out: ")]
    for sentence, row in zip(said, failures, strict=True):
        assert sentence.startswith("left out: /") and sentence.endswith("/" + row["reason"])
    (row,) = read_table(out / "scans.tsv")
    assert (
        row["id"] == "good"
        and (out / row["preproc"]).is_file()
        and (out / row["sidecar"]).is_file()
    )
    index = read_table(out / "slices/index.tsv")
    images = np.load(out / "slices/good_image.npy")
    assert (
        {r["scan"] for r in index} == {"good"}
        and len(index) == len(images) > 50
        and 0.5 < images.max() <= 1
    )
    assert left_behind(out) == []


def test_infer_scores_the_good_and_reports_the_bad(
    command, mixed, tiny_run, brain_t1, quick_prepare, tmp_path, left_behind
):
    out = tmp_path / "out"
    common = ("--run", tiny_run, "--accelerator", "cpu")
    done = command("infer", *common, "--input", mixed, "--out", out)
    assert (
        done.code == cli.SOME_FAILED
        and "1 scans scored, 3 not scored" in done.out
        and "Traceback" not in done.err
    )
    rows = {r["id"]: r for r in read_table(out / "scores.tsv")}
    assert {k: r["status"] for k, r in rows.items()} == dict.fromkeys(
        ("nan", "text", "gone"), "not scored"
    ) | {"good": "scored"}
    assert sorted(p.name for p in out.glob("*_m*.nii.gz")) == [
        "good_map.nii.gz",
        "good_mask.nii.gz",
    ]
    report = json.loads((out / "good_report.json").read_text())
    assert (
        report["threshold"] == 0.2
        and report["score"] > 0
        and float(rows["good"]["score"]) == pytest.approx(report["score"], rel=1e-4)
    )
    native = nib.load(brain_t1)
    mask = nib.load(out / "good_mask.nii.gz")
    assert (
        mask.shape == native.shape
        and np.allclose(mask.affine, native.affine)
        and mask.get_data_dtype() == np.uint8
    )
    volume = np.asarray(mask.dataobj).sum() * np.prod(ZOOMS)
    assert report["anomalous_mm3"] == pytest.approx(volume) and volume > 0

    high = command(
        "infer", *common, "--input", brain_t1, "--out", tmp_path / "high", "--point", "fixed=0.35"
    )
    assert high.code == cli.OK and (tmp_path / "high/sub-01_report.json").is_file()
    other = json.loads((tmp_path / "high/sub-01_report.json").read_text())
    assert (
        other["threshold"] == 0.35 and other["score"] == report["score"]
    )  # the score is of the map, not of the mask
    fewer = np.asarray(nib.load(tmp_path / "high/sub-01_mask.nii.gz").dataobj).astype(bool)
    assert 0 < fewer.sum() < np.asarray(mask.dataobj).sum()
    values = np.asarray(nib.load(tmp_path / "high/sub-01_map.nii.gz").dataobj)
    assert values[fewer].mean() > 0.35 > values[~fewer].mean()
    assert left_behind(tmp_path) == []


def test_workers_give_the_same_failures(command, bad_scans, tmp_path):
    names = ["flat.nii.gz", "text.nii.gz"]
    (tmp_path / "t.csv").write_text("image\n" + "\n".join(str(bad_scans / n) for n in names) + "\n")
    done = command(
        "preprocess",
        "--input",
        tmp_path / "t.csv",
        "--modality",
        "t1",
        "--out",
        tmp_path / "out",
        "--workers",
        2,
    )
    assert done.code == cli.NOTHING_DONE
    assert [r["id"] for r in read_table(tmp_path / "out/failures.tsv")] == ["flat", "text"]


# an input that is none


@pytest.mark.parametrize("verb", ["preprocess", "infer"])
def test_a_missing_input_and_a_folder_without_scans(command, tiny_run, tmp_path, verb):
    first = ("--modality", "t1") if verb == "preprocess" else ("--run", tiny_run)
    done = command(verb, *first, "--input", tmp_path / "absent.nii.gz", "--out", tmp_path / "out")
    assert done.code == cli.USAGE and done.out == ""
    assert done.error.startswith(
        f"error: {tmp_path / 'absent.nii.gz'}: no such file or folder; give IN="
    )
    assert not (tmp_path / "out").exists()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("none here")
    done = command(verb, *first, "--input", tmp_path / "in", "--out", tmp_path / "out")
    assert done.code == cli.USAGE
    assert (
        done.error == f"error: {tmp_path / 'in'}: no scans found; "
        "expected .nii or .nii.gz files (BIDS suffix 'T1w') "
        "(passed over 1, other files (.txt 1): notes.txt)."
    )


def test_a_leak_stops_the_batch_before_any_work(command, brain_t1, tmp_path):
    (tmp_path / "t.csv").write_text(
        f"image,split,subject,id\n{brain_t1},train,p1,a\nother.nii,test,p1,b\n"
    )
    done = command(
        "preprocess", "--input", tmp_path / "t.csv", "--modality", "t1", "--out", tmp_path / "out"
    )
    assert (
        done.code == cli.USAGE
        and done.error
        == "error: subject 'p1' is in two splits, 'train' and 'test'; keep a subject in one."
    )
    assert results_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("preprocess", "--modality", "flare"),
            r"unknown MODALITY 'flare'; known: chest_ct, ct, flair, fundus, picture, "
            r"t1, t2; did you mean 'flair'\?",
        ),
        (
            ("preprocess", "--modality", "t1", "brian=none"),
            r".*t1\.yaml: unknown key 'brian'; known: .*; did you mean 'brain'\?",
        ),
        (
            ("preprocess", "--modality", "t1", "spacing=wide"),
            r".*t1\.yaml: 'spacing': input should be a valid number.*got 'wide'",
        ),
        (("preprocess", "--modality", "t1", "brain"), r"'brain': expected key=value"),
        (
            ("preprocess", "--modality", "t1", "--template", "{}/absent.nii"),
            r"TEMPLATE: .*absent\.nii: no such file\.",
        ),
        (
            ("train", "--model", "vae_rc"),
            r"unknown MODEL 'vae_rc'; known: .*; did you mean 'vae_cr'\?",
        ),
        (
            ("train", "--model", "vae_cr", "loop.sead=1"),
            r".*vae_cr\.yaml: unknown key 'loop\.sead'; .*; did you mean 'seed'\?",
        ),
        (
            ("train", "--model", "vae_cr", "loop.seed=x"),
            r".*vae_cr\.yaml: 'loop\.seed': input should be a valid integer.*got 'x'",
        ),
        (
            ("train", "--model", "vae_cr", "--preset", "tiny"),
            r"unknown PRESET 'tiny'; known: ct, ct_small, flair, fundus, gpu, picture, small, t1",
        ),
        (
            ("train", "--model", "vae_cr"),
            r".*scans\.tsv: no such file; run 'make preprocess' first and give its OUT as DATA\.",
        ),
    ],
)
def test_settings_that_do_not_exist(command, brain_t1, tmp_path, arguments, message):
    verb, *rest = [a.format(tmp_path) for a in arguments]
    what = ("--input", brain_t1) if verb == "preprocess" else ("--data", tmp_path)
    done = command(verb, *rest, *what, "--out", tmp_path / "out")
    assert done.code == cli.USAGE and done.out == ""
    assert re.fullmatch(f"error: {message}.*", done.error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("modality", ["ct", "t2", "flair", "picture", "t1+flair"])
def test_a_modality_without_virtual_scans_wants_input(command, tmp_path, modality):
    done = command("preprocess", "--modality", modality, "--out", tmp_path / "out")
    assert done.code == cli.USAGE and not (tmp_path / "out").exists()
    assert done.error == (
        f"error: {modality}: there is no virtual cohort of it, only of t1, chest_ct and fundus; "
        "give --input the scans."
    )


def test_arguments_that_argparse_refuses(command, capsys, tmp_path):
    for arguments, message in (
        (
            ("preprocess", "--input", "i", "--out", "o"),
            "error: --modality is missing: say ct, t1, t2, flair, picture, fundus or chest_ct.",
        ),
        (
            ("preprocess", "--input", "i", "--out", "o", "--modality", "t1", "--format", "png"),
            "invalid choice: 'png' (choose from ",
        ),
    ):
        done = command(*arguments)
        assert (
            done.code == cli.USAGE
            and message in done.err.splitlines()[-1]
            and "Traceback" not in done.err
        )


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1", "0", "high", "0.3,-1,2"])
def test_a_threshold_that_is_none_is_refused(command, tiny_run, bad_scans, tmp_path, value):
    done = command(
        "infer",
        "--run",
        tiny_run,
        "--input",
        bad_scans / "text.nii.gz",
        "--out",
        tmp_path / "out",
        f"--point=fixed={value}",
    )
    assert done.code == cli.USAGE and "Traceback" not in done.err
    assert f"'fixed={value}': expected" in done.err
    assert not list(tmp_path.rglob("*_mask.nii.gz"))


# a run that is none


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "weights.pt",
            None,
            r"{run}: no weights\.pt, so this is no finished run; finish it with 'make train'\.",
        ),
        ("threshold.json", None, r"{run}: no threshold\.json, so this is no finished run"),
        (
            "weights.pt",
            b"PK no weights",
            r"{run}/weights\.pt: not the weights of this config \(.+\)\.",
        ),
        ("threshold.json", b'{"value": 0.', r"{run}/threshold\.json: not a readable JSON file"),
        ("threshold.json", b'{"quantile": 0.99}', r"{run}/threshold\.json: .*points"),
        ("reference.json", b"[]", r"{run}/reference\.json: .+"),
        ("config.yaml", b"name: [", r"{run}/config\.yaml: not readable as YAML"),
        (
            "recipe.yaml",
            b"modality: pet\n",
            r"{run}/recipe\.yaml: .*'modality': "
            r"input should be 'ct', 't1', 't2', 'flair', 'picture' or 'chest_ct', got 'pet'",
        ),
    ],
)
def test_a_damaged_run_is_named(command, tiny_run, bad_scans, tmp_path, name, content, message):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "run.json").write_text("{}")  # it holds digests, by which other damage is seen first
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    done = command(
        "infer",
        "--run",
        run,
        "--input",
        bad_scans / "text.nii.gz",
        "--out",
        tmp_path / "out",
        "--accelerator",
        "cpu",
    )
    assert done.code == cli.USAGE and done.out == ""
    assert re.match(f"error: {message.replace('{run}', re.escape(str(run)))}", done.error)
    assert not (tmp_path / "out").exists() or results_in(tmp_path / "out") == []


@pytest.mark.parametrize("verb", ["infer", "evaluate"])
def test_a_run_that_is_not_there(command, brain_t1, tmp_path, verb):
    what = ("--input", brain_t1) if verb == "infer" else ("--data", tmp_path)
    done = command(verb, "--run", tmp_path / "nowhere", *what, "--out", tmp_path / "out")
    assert done.code == cli.USAGE
    assert (
        done.error
        == f"error: {tmp_path / 'nowhere'}: no such run folder; train one with 'make train'."
    )
    assert not (tmp_path / "out").exists()


def test_evaluate_on_a_folder_that_is_no_cohort(command, tiny_run, tmp_path):
    (tmp_path / "data").mkdir()
    done = command(
        "evaluate",
        "--run",
        tiny_run,
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "out",
        "--accelerator",
        "cpu",
    )
    assert done.code == cli.USAGE and re.match(
        rf"error: {re.escape(str(tmp_path))}/data/[a-z.]+: no such file", done.error
    )


# a folder that cannot be written


@pytest.mark.parametrize("verb", ["preprocess", "train", "infer", "evaluate"])
def test_an_output_below_a_file_is_refused_by_name(command, tiny_run, brain_t1, tmp_path, verb):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/scans.tsv").write_text("id\tsplit\tlabel\timage\n")
    arguments = {
        "preprocess": ("--input", brain_t1, "--modality", "t1"),
        "train": ("--model", "vae_cr", "--data", tmp_path / "data"),
        "infer": ("--run", tiny_run, "--input", brain_t1),
        "evaluate": ("--run", tiny_run, "--data", tmp_path / "data", "--accelerator", "cpu"),
    }[verb]
    done = command(verb, *arguments, "--out", tmp_path / "file/sub")
    assert done.code == cli.USAGE and done.out == ""
    assert re.fullmatch(
        rf"error: {re.escape(str(tmp_path))}/file(/sub)?: (Not a directory|File exists)\.",
        done.error,
    )
    assert (tmp_path / "file").read_text() == "kept"


# the disk fills


@pytest.fixture
def two(tmp_path, brain_t1):
    """A table of two scans of one content: the second one's preparation is remembered."""
    shutil.copy(brain_t1, tmp_path / "second.nii.gz")
    (tmp_path / "two.csv").write_text(
        f"image,id,subject,split\n{brain_t1},first,p1,train\nsecond.nii.gz,second,p2,val\n"
    )
    return tmp_path / "two.csv"


def fail_on(monkeypatch, where, word, written):
    """Let writing fail as a full disk does, half-way into the first file whose name holds `word`.

    All later writes fail too.
    """
    state = {"full": False}

    def check(name):
        state["full"] = state["full"] or word in Path(name).name
        written.append(Path(name).name)
        return state["full"]

    def guard(owner, attribute, name_of):
        real = getattr(owner, attribute)

        def write(*arguments, **named):
            if check(name_of(*arguments)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        monkeypatch.setattr(owner, attribute, write)

    if where == "to_filename":
        real = nib.Nifti1Image.to_filename

        def to_filename(self, name):
            if check(name):
                Path(name).write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(self, name)

        monkeypatch.setattr(nib.Nifti1Image, "to_filename", to_filename)
    elif where == "save":
        guard(np, "save", lambda handle, array: handle.name)
    elif where == "write_bytes":
        guard(Path, "write_bytes", lambda self, content: self.name)
    return state


@pytest.mark.parametrize(
    ("where", "word"),
    [
        ("to_filename", "second_space"),
        ("save", "second_mask"),
        ("write_bytes", "second_preproc.json"),
    ],
)
@pytest.mark.usefixtures("quick_prepare")
def test_a_full_disk_ends_the_batch_and_keeps_what_was_finished(
    command, two, monkeypatch, tmp_path, left_behind, where, word
):
    out = tmp_path / "out"
    written = []
    with monkeypatch.context() as patch:
        fail_on(patch, where, word, written)
        done = command("preprocess", "--input", two, "--modality", "t1", "--out", out, *QUICK)
    assert any(word in name for name in written)
    assert done.code == cli.USAGE
    assert re.fullmatch(
        r"error: (.*: )?No space left on device; free some space and run again\.", done.error
    )
    if where != "save":
        assert (
            f"{out}/" in done.error and ".tmp-" not in done.error
        )  # the file as the user knows it
    assert left_behind(out) == []
    for path in out.rglob("*.nii.gz"):
        assert np.isfinite(np.asarray(nib.load(path).dataobj)).all()  # whole files only
    assert not (out / "p2/second_preproc.json").exists()
    assert json.loads((out / "p1/first_preproc.json").read_text())["brain_method"] == "none"
    assert np.load(out / "slices/first_image.npy").shape[1:] == (1, 160, 200)
    if where != "write_bytes":  # there the tables could not be written either
        assert [r["id"] for r in read_table(out / "scans.tsv")] == ["first"]


def test_a_full_disk_ends_infer_without_a_half_written_mask(
    command, tiny_run, two, quick_prepare, monkeypatch, tmp_path, left_behind
):
    out = tmp_path / "out"
    written = []
    with monkeypatch.context() as patch:
        fail_on(patch, "to_filename", "second_mask", written)
        done = command(
            "infer", "--run", tiny_run, "--input", two, "--out", out, "--accelerator", "cpu"
        )
    assert any("second_mask" in name for name in written)
    assert done.code == cli.USAGE
    assert (
        done.error == f"error: {out}/second_mask.nii.gz: No space left on device; "
        "free some space and run again."
    )
    assert (
        left_behind(out) == []
        and not (out / "second_mask.nii.gz").exists()
        and not (out / "second_report.json").exists()
    )
    assert (out / "first_mask.nii.gz").is_file() and [
        r["id"] for r in read_table(out / "scores.tsv")
    ] == ["first"]


def test_a_full_disk_ends_training_in_one_sentence(command, monkeypatch, tmp_path, left_behind):
    (tmp_path / "data/slices").mkdir(parents=True)
    (tmp_path / "data/recipe.yaml").write_text(
        "modality: t1\nintensity: {kind: percentiles, low: 0.5, high: 99.5}\n"
    )
    (tmp_path / "data/scans.tsv").write_text(
        "id\tsubject\tsplit\tlabel\timage\tpreproc\tbrain\tsidecar\n"
        "a\tp1\ttrain\t\ta.nii\ta.nii\ta.nii\ta.json\n"
        "b\tp2\tval\t\tb.nii\tb.nii\tb.nii\tb.json\n"
    )
    index = (
        "scan\tsubject\tsplit\tlabel\trow\tz\tbrain_px\n"
        "a\tp1\ttrain\t\t0\t5\t99\n"
        "b\tp2\tval\t\t0\t5\t99\n"
    )
    (tmp_path / "data/slices/index.tsv").write_text(index)
    (tmp_path / "data/slices/index.json").write_text('{"slices": 2}')
    for scan in "ab":
        np.save(tmp_path / f"data/slices/{scan}_image.npy", np.zeros((1, 1, 64, 64), np.float16))
        np.save(tmp_path / f"data/slices/{scan}_mask.npy", np.ones((1, 1, 64, 64), np.uint8))
    with monkeypatch.context() as patch:
        fail_on(patch, "write_bytes", "config.yaml", [])
        done = command(
            "train",
            "--model",
            "vae_cr",
            "--data",
            tmp_path / "data",
            "--out",
            tmp_path / "run",
            "model.channels=[4,4,8]",
        )
    assert done.code == cli.USAGE
    found = [s for s in done.sentences if s.startswith("error: ")]
    assert found == [
        f"error: {tmp_path}/run/config.yaml: No space left on device; "
        "free some space and run again."
    ]
    assert (
        "Traceback" not in done.err
        and left_behind(tmp_path) == []
        and not (tmp_path / "run/config.yaml").exists()
    )


# Ctrl-C


def interrupt_second(monkeypatch, module, name):
    """Let `name` of a module work once and be interrupted by Ctrl-C at its second scan."""
    real = getattr(module, name)
    calls = []

    def once(*arguments, **named):
        calls.append(next(a.id for a in arguments if hasattr(a, "image") and hasattr(a, "subject")))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, once)
    return calls


def test_ctrl_c_keeps_what_was_finished_and_a_second_run_goes_on(
    command, two, quick_prepare, monkeypatch, tmp_path, left_behind
):
    out = tmp_path / "out"
    arguments = ("preprocess", "--input", two, "--modality", "t1", "--out", out, *QUICK)
    with monkeypatch.context() as patch:
        assert interrupt_second(patch, store, "prepare") is not None
        done = command(*arguments)
    assert done.code == cli.INTERRUPTED and "Traceback" not in done.err
    assert (
        done.sentences[-1]
        == "interrupted; what was finished is kept, run the same command again to go on."
    )
    assert [r["id"] for r in read_table(out / "scans.tsv")] == ["first"] and left_behind(out) == []
    assert {r["scan"] for r in read_table(out / "slices/index.tsv")} == {"first"}
    assert not list(out.rglob("*second*"))
    stamp = (out / "slices/first_image.npy").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        calls = interrupt_second(patch, store, "prepare")
        assert command(*arguments).code == cli.OK
    assert calls == ["second"]  # the first is not prepared again
    assert (out / "slices/first_image.npy").stat().st_mtime_ns == stamp
    assert [r["id"] for r in read_table(out / "scans.tsv")] == ["first", "second"]
    assert np.array_equal(
        np.load(out / "slices/first_image.npy"), np.load(out / "slices/second_image.npy")
    )  # one content, two names


def test_ctrl_c_in_infer_keeps_the_first_result(
    command, two, tiny_run, quick_prepare, monkeypatch, tmp_path, left_behind
):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_second(patch, batch, "prepare")
        done = command(
            "infer", "--run", tiny_run, "--input", two, "--out", out, "--accelerator", "cpu"
        )
    assert (
        done.code == cli.INTERRUPTED
        and "interrupted; what was finished is kept" in done.err
        and "Traceback" not in done.err
    )
    names = ["first_map.nii.gz", "first_mask.nii.gz", "first_picture.png", "first_report.json"]
    assert results_in(out) == [*names, "scores.tsv"] and left_behind(out) == []
    assert [(r["id"], r["status"]) for r in read_table(out / "scores.tsv")] == [("first", "scored")]


# real processes


def process(*arguments, **named):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **named,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_process_leaves_with_the_code_and_one_line(tiny_run, tmp_path):
    code, out, err = process(
        "-m",
        "pipelines.infer",
        "--run",
        tiny_run,
        "--input",
        tmp_path / "absent.nii",
        "--out",
        tmp_path / "o",
    )
    assert code == cli.USAGE and out == ""
    assert (
        err.startswith(f"error: {tmp_path / 'absent.nii'}: no such file or folder; give IN=")
        and err.count("\n") == 1
    )


def test_a_process_that_could_do_nothing(bad_scans, tmp_path):
    code, out, err = process(
        "-m",
        "pipelines.preprocess",
        "--input",
        bad_scans / "text.nii.gz",
        "--modality",
        "t1",
        "--out",
        tmp_path / "o",
    )
    assert (
        code == cli.NOTHING_DONE
        and "0 scans preprocessed, 1 left out" in out
        and "Traceback" not in err
    )
    assert f"left out: {bad_scans / 'text.nii.gz'}: " in err


@pytest.mark.slow
def test_sigint_in_a_process(tmp_path):
    """Ctrl-C before anything is finished, in a real process that sends the signal to itself.

    A shell that starts the tests in the background makes its children ignore the signal.
    A terminal does not.
    """
    code, _, err = process(
        "-",
        input="import os, signal, sys\nfrom pipelines import cli\nsys.argv = ['x']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def main(arguments):\n    os.kill(os.getpid(), signal.SIGINT)\n    signal.pause()\n"
        "cli.run(main, cli.parser('x', ''))\n",
    )
    assert (code, err) == (
        cli.INTERRUPTED,
        "\ninterrupted; what was finished is kept, run the same command again to go on.\n",
    )
