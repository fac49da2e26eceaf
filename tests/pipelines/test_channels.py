"""Several sequences of one head, or planes of one picture, as channels.

From the table to the mask on the grid of the first one.
"""

import json
import re
from hashlib import sha256

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation

from pipelines.cohort.store import STEPS_VERSION, fingerprint
from pipelines.config import ConfigError, load_recipe, read_config, read_yaml, validate, write_yaml
from pipelines.detect.build import build_model
from pipelines.detect.config import load_run_config
from pipelines.detect.run import load_run
from preprocessing import register, slices
from preprocessing.datasets import virtual
from preprocessing.files import file_digest, read_table
from preprocessing.images import Grid, read_picture
from preprocessing.prepare import channel_files, prepare
from preprocessing.recipe import Recipe
from preprocessing.resample import resample
from preprocessing.scans import InputError, Scan, ScanError
from preprocessing.splits import check_leaks
from preprocessing.tables import read_scans
from tests.conftest import QUICK
from tests.shared import TINY, run, twice_as_coarse

pytestmark = pytest.mark.usefixtures("no_figures")

PLAN = [
    ("train", "healthy", 1),
    ("val", "healthy", 201),
    ("test", "healthy", 301),
    ("test", "abnormal", 401),
]
RECIPE = ["brain=none", *QUICK]
PLAIN = ["postprocess.median=0"]  # the median of a map takes half the time of a scan
ALIGNED = "sub-301"  # its FLAIR lies on the T1's own grid


def displacement(index, centre):
    """A rigid motion of the head between two sequences, drawn: 3 to 8 degrees, 4 to 12 mm.

    It maps mm of the first to mm of the second.
    """
    rng = np.random.default_rng(index)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(
        np.deg2rad(rng.uniform(3, 8)) * np.array([0.6, -0.48, 0.64])
    ).as_matrix()
    motion[:3, 3] = centre - motion[:3, :3] @ centre + rng.uniform(2.5, 7, 3) * [1, -1, 1]
    return motion


def other_contrast(t1, inside):
    """The same anatomy as FLAIR shows it, in other units.

    Fluid is dark, grey matter is brighter than white.
    """
    value = t1 / np.percentile(t1[inside], 95)
    return np.where(
        inside, 3000 * np.interp(value, [0, 0.35, 0.7, 1, 1.5], [0.1, 0.15, 1, 0.7, 0.6]), 0
    ).astype(np.float32)


def save(data, affine, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(virtual.as_nifti(data, affine), path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Folder with a table of four virtual heads, T1 and FLAIR, and the known motions by subject.

    One FLAIR alone has a lesion.
    """
    root = tmp_path_factory.mktemp("pairs")
    motions = {}
    rows = ["image,image_flair,subject,split,label,mask,site"]
    for split, label, index in PLAN:
        with pytest.MonkeyPatch.context() as patch:  # coarser voxels: an eighth of the work
            patch.setattr(virtual, "VOXELS", twice_as_coarse())
            subject = virtual.draw(0, index, split, "healthy")
        t1, _, affine = virtual.render(subject, 0)
        inside = t1 > 0
        flair = other_contrast(t1, inside)
        centre = register.centre(inside, affine)
        mask = ""
        if label == "abnormal":
            grid = np.moveaxis(np.indices(t1.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
            lesion = (np.linalg.norm(grid - centre - [25, 10, 25], axis=-1) < 9) & inside
            flair[lesion] = 4200
            mask = f"{subject.id}/lesion.nii.gz"
            save(lesion.astype(np.uint8), affine, root / mask)
        save(t1, affine, root / subject.id / f"{subject.id}_T1w.nii.gz")
        motions[subject.id] = np.eye(4) if subject.id == ALIGNED else displacement(index, centre)
        grid = np.diag([-2.0, 1.8, 3.0, 1])
        shape = (100, 115, 66)
        grid[:3, 3] = (motions[subject.id] @ [*centre, 1])[:3] - grid[:3, :3] @ (
            np.array(shape) / 2
        )
        if subject.id == ALIGNED:
            save(flair, affine, root / subject.id / f"{subject.id}_FLAIR.nii.gz")
        else:
            t1_from_flair = np.linalg.inv(motions[subject.id])
            there = resample(flair, Grid(t1.shape, affine), Grid(shape, grid), t1_from_flair)
            save(there, grid, root / subject.id / f"{subject.id}_FLAIR.nii.gz")
        name = f"{subject.id}/{subject.id}"
        rows.append(f"{name}_T1w.nii.gz,{name}_FLAIR.nii.gz,{subject.id},{split},{label},{mask},a")
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return root, motions


@pytest.fixture(scope="module")
def data(pairs):
    out = pairs[0] / "data"
    settings = ["--format", "nifti", *RECIPE, "flair.intensity.top=0.9"]
    assert (
        run(
            "preprocess",
            "--input",
            pairs[0] / "table.csv",
            "--modality",
            "t1+flair",
            "--out",
            out,
            *settings,
        )
        == 0
    )
    return out


@pytest.fixture(scope="module")
def trained(data, pairs):
    folder = pairs[0] / "run"
    assert run("train", "--model", "vae_cr", "--data", data, "--out", folder, *TINY, *PLAIN) == 0
    return folder


# registration, grid and intensity


def test_the_known_motion_between_the_sequences_is_undone_within_1_mm(pairs, data):
    for row in read_table(data / "scans.tsv"):
        side = json.loads((data / row["sidecar"]).read_text())
        world = np.array(side["world"])
        other = np.array(side["further"][0]["world"])
        mask = nib.load(data / row["brain"])
        points = np.argwhere(mask.get_fdata() > 0)[::997]
        points = np.c_[points, np.ones(len(points))] @ mask.affine.T
        motion = pairs[1][row["subject"]]
        want, got = (points @ (m @ world).T for m in (motion, np.eye(4)))
        error = np.linalg.norm(points @ other.T - want, axis=1)
        if row["subject"] == ALIGNED:
            np.testing.assert_array_equal(other, world)
            continue
        assert error.max() < 1.0, f"{row['id']}: {error.max():.2f} mm"
        assert np.linalg.norm(got - want, axis=1).mean() > 4  # what no registration would have left
        np.testing.assert_allclose(np.linalg.det(other[:3, :3]), 1, atol=1e-6)
        file = (
            data
            / row["subject"]
            / f"{row['id']}_from-FLAIR_to-MNI152NLin2009aSym_mode-image_xfm.mat"
        )
        flip = np.diag([-1.0, -1, 1, 1])
        np.testing.assert_allclose(flip @ register.read_matrix(file) @ flip, other, atol=1e-4)


def test_channels_are_the_sequences_in_order_each_scaled_by_its_own_recipe(data):
    """Sampled from the raw files by scipy, point by point.

    Scaled by numpy's percentiles inside the one mask.
    """
    store = slices.SliceStore(data / "slices")
    for row in read_table(data / "scans.tsv"):
        side = json.loads((data / row["sidecar"]).read_text())
        mask = nib.load(data / row["brain"])
        inside = mask.get_fdata() > 0
        stored = np.load(data / "slices" / f"{row['id']}_image.npy")
        z = np.array(side["z"])
        assert stored.shape == (len(z), 2, *inside.shape[:2])
        points = np.c_[np.argwhere(inside), np.ones(inside.sum())] @ mask.affine.T
        scaled = {"image": (side["world"], 0.75), "image_flair": (side["further"][0]["world"], 0.9)}
        for channel, (column, (world, top)) in enumerate(scaled.items()):
            raw = nib.load(data / row[column])
            at = points @ np.array(world).T @ np.linalg.inv(raw.affine).T
            values = ndimage.map_coordinates(
                raw.get_fdata(dtype=np.float32), at[:, :3].T, order=1, mode="nearest"
            )
            low, high = np.percentile(values, (1, 95))
            want = np.zeros(inside.shape)
            want[inside] = np.clip(top * (values - low) / (high - low), 0, 1)
            np.testing.assert_allclose(
                stored[:, channel], want[:, :, z].transpose(2, 0, 1), atol=2e-3
            )
            name = row["preproc"] if channel == 0 else side["further"][0]["image"]
            assert name.endswith(f"_desc-preproc_{('T1w', 'FLAIR')[channel]}.nii.gz")
            np.testing.assert_allclose(nib.load(data / name).get_fdata(), want, atol=2e-3)
            cut = nib.load(
                data / "slices" / "nifti" / row["id"] / f"{row['id']}_slice-{z[20]:03d}.nii.gz"
            )
            np.testing.assert_allclose(
                cut.get_fdata()[:, :, 0, channel], want[:, :, z[20]], atol=2e-3
            )
        fluid = store[20]["image"]
        assert fluid.shape == (2, *inside.shape[:2])
    page = (data / "quality.html").read_text()
    assert (
        page.count("data:image/png") == 8
        and "Modality t1+flair" in page
        and "flair: likeness to the t1 sequence" in page
    )


def test_the_store_gives_channels_to_the_network_as_training_and_inference_see_them(data):
    from pipelines.detect.inputs import resize_volume
    from pipelines.training.data import SliceDataset

    row = read_table(data / "scans.tsv")[0]
    volume = np.stack(
        [
            nib.load(data / f).get_fdata(dtype=np.float32)
            for f in (row["preproc"], row["preproc"].replace("T1w", "FLAIR"))
        ],
        -1,
    )
    brain = nib.load(data / row["brain"]).get_fdata() > 0
    dataset = SliceDataset(data / "slices", [row["id"]], (64, 48))
    sample = dataset[(20, 0)]
    assert sample["image"].shape == (2, 64, 48) and sample["mask"].shape == (1, 64, 48)
    image, mask = resize_volume(volume[:, :, [sample["z"]]], brain[:, :, [sample["z"]]], (64, 48))
    assert image.shape == (1, 2, 64, 48) and mask.shape == (1, 1, 64, 48)
    torch.testing.assert_close(image[0], sample["image"], atol=1e-3, rtol=0)
    alone, _ = resize_volume(volume[:, :, [sample["z"]], 1], brain[:, :, [sample["z"]]], (64, 48))
    assert torch.equal(alone[:, 0], image[:, 1])


# training and inference


def test_a_run_knows_its_channels_and_marks_raw_scans_on_the_first_one_s_grid(
    trained, pairs, data, tmp_path
):
    loaded = load_run(trained, "cpu")
    assert loaded.recipe.name == "t1+flair" and loaded.recipe.sequences[0].intensity.top == 0.9
    assert (
        next(loaded.model.parameters()).shape[1] == 2 and "in_channels" not in loaded.config.model
    )
    rows = read_table(pairs[0] / "table.csv")
    (pairs[0] / "new.csv").write_text(
        "id,image,image_flair\n"
        f"whole,{rows[3]['image']},{rows[3]['image_flair']}\n"
        f"half,{rows[2]['image']},\n"
        f"lost,{rows[1]['image']},nowhere.nii.gz\n"
    )
    assert (
        run("infer", "--run", trained, "--input", pairs[0] / "new.csv", "--out", tmp_path) == 1
    )  # the batch goes on
    scores = {r["id"]: r for r in read_table(tmp_path / "scores.tsv")}
    assert [scores[k]["status"] for k in ("whole", "half", "lost")] == [
        "scored",
        "not scored",
        "not scored",
    ]
    assert (
        "no flair sequence of this scan" in scores["half"]["reason"]
        and "nowhere.nii.gz: no such file" in scores["lost"]["reason"]
    )
    assert not (tmp_path / "half_mask.nii.gz").exists()
    raw = nib.load(pairs[0] / rows[3]["image"])
    mask = nib.load(tmp_path / "whole_mask.nii.gz")
    found = nib.load(tmp_path / "whole_map.nii.gz")
    assert mask.shape == found.shape == raw.shape and mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, raw.affine)
    report = json.loads((tmp_path / "whole_report.json").read_text())
    assert report["sequences"]["flair"].endswith("_FLAIR.nii.gz")
    assert run("evaluate", "--run", trained, "--data", data, "--out", tmp_path / "evaluation") == 0
    kept = nib.load(tmp_path / "evaluation" / "maps" / "sub-401_map.nii.gz")
    np.testing.assert_allclose(
        found.get_fdata(), kept.get_fdata(), atol=1e-5
    )  # raw and prepared are one way
    assert "t1+flair" in (tmp_path / "evaluation" / "index.html").read_text()


def test_another_second_file_is_another_input(trained, pairs, tmp_path):
    """Inference that is done is skipped only while every sequence is the same."""
    row = read_table(pairs[0] / "table.csv")[2]
    flair = nib.load(pairs[0] / row["image_flair"])
    save(flair.get_fdata(dtype=np.float32), flair.affine, tmp_path / "flair.nii.gz")
    (tmp_path / "t.csv").write_text(
        f"id,image,image_flair\na,{pairs[0] / row['image']},flair.nii.gz\n"
    )
    prints = []
    for factor in (1, 2):
        save(factor * flair.get_fdata(dtype=np.float32), flair.affine, tmp_path / "flair.nii.gz")
        assert (
            run("infer", "--run", trained, "--input", tmp_path / "t.csv", "--out", tmp_path / "out")
            == 0
        )
        prints.append(json.loads((tmp_path / "out" / "a_report.json").read_text())["fingerprint"])
    assert prints[0] != prints[1]
    scan = read_scans(tmp_path / "t.csv", "t1+flair")[0]
    recipe = load_recipe("t1+flair")
    before = fingerprint(scan, recipe)
    assert before == fingerprint(scan, recipe) != fingerprint(scan, load_recipe("t1"))
    save(flair.get_fdata(dtype=np.float32), flair.affine, tmp_path / "flair.nii.gz")
    assert fingerprint(scan, recipe) != before


def test_a_lesion_that_one_sequence_alone_shows_is_found(data, pairs, tmp_path):
    assert (
        run(
            "train",
            "--model",
            "intensity",
            "--data",
            data,
            "--out",
            tmp_path / "run",
            "model.tail=bright",
            *PLAIN,
        )
        == 0
    )
    (pairs[0] / "ill.csv").write_text(
        "\n".join((pairs[0] / "table.csv").read_text().splitlines()[i] for i in (0, 4)) + "\n"
    )
    assert (
        run(
            "infer",
            "--run",
            tmp_path / "run",
            "--input",
            pairs[0] / "ill.csv",
            "--out",
            tmp_path / "out",
        )
        == 0
    )
    found = nib.load(tmp_path / "out" / "sub-401_map.nii.gz").get_fdata()
    lesion = nib.load(pairs[0] / "sub-401" / "lesion.nii.gz").get_fdata() > 0
    assert found[lesion].mean() > 3 * found[(found > 0) & ~lesion].mean()


# one channel is as it was


def test_a_fingerprint_is_of_recipe_steps_and_bytes(brain_t1):
    recipe = load_recipe("t1")
    parts = [STEPS_VERSION, recipe.model_dump(mode="json"), [file_digest(brain_t1)]]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    assert fingerprint(Scan("a", brain_t1, "a"), recipe) == sha256(text.encode()).hexdigest()


def test_a_recipe_of_version_0_1_reads(tmp_path):
    """It named no sequences and no channels where there was one of each."""
    recipe = load_recipe("t1")
    stored = recipe.model_dump(mode="json", exclude={"sequences", "channels"})
    (tmp_path / "recipe.yaml").write_text(json.dumps(stored))
    assert read_config(Recipe, tmp_path / "recipe.yaml") == recipe


def test_a_recipe_of_several_channels_reads_back(tmp_path):
    recipe = load_recipe("t1+t2+flair", ["t2.intensity.high=90", "n4=true"])
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
    again = validate(Recipe, read_yaml(tmp_path / "recipe.yaml"), "recipe")
    assert (
        again == recipe
        and again.name == "t1+t2+flair"
        and again.suffixes == ["T1w", "T2w", "FLAIR"]
    )
    assert (
        [s.intensity.high for s in again.sequences] == [90, 95]
        and again.n4
        and again.intensity.high == 95
    )
    assert again != load_recipe(
        "t1+flair+t2", ["t2.intensity.high=90", "n4=true"]
    )  # the order counts
    assert load_recipe("picture", ["channels=3"]).suffixes == ["picture", "picture-2", "picture-3"]


# what comes in


def test_a_table_names_the_further_sequences_and_keeps_the_column_otherwise(tmp_path):
    (tmp_path / "t.csv").write_text("image,image_flair,image_t2\na.nii,f.nii,t.nii\nb.nii,,\n")
    one, two = read_scans(tmp_path / "t.csv", "t1+t2")
    assert (
        one.sequences == {"t2": tmp_path / "t.nii"}
        and one.extra == {"image_flair": "f.nii"}
        and two.sequences == {}
    )
    assert list(read_scans(tmp_path / "t.csv", "t1+flair+t2")[0].sequences) == ["flair", "t2"]
    plain = read_scans(tmp_path / "t.csv", "t1")[0]
    assert plain.sequences == {} and plain.extra == {"image_flair": "f.nii", "image_t2": "t.nii"}


def test_bids_pairs_by_name_then_by_subject_and_session(tmp_path):
    names = [
        "sub-01/anat/sub-01_T1w",
        "sub-01/anat/sub-01_FLAIR",
        "sub-02/ses-1/anat/sub-02_ses-1_T1w",
        "sub-02/ses-2/anat/sub-02_ses-2_FLAIR",
        "sub-03/anat/sub-03_acq-a_T1w",
        "sub-03/anat/sub-03_acq-b_FLAIR",
        "sub-04/anat/sub-04_T1w",
        "sub-04/anat/sub-04_run-1_FLAIR",
        "sub-04/anat/sub-04_run-2_FLAIR",
        "sub-05/anat/sub-05_run-1_T1w",
        "sub-05/anat/sub-05_run-2_T1w",
        "sub-05/anat/sub-05_run-1_FLAIR",
        "sub-05/anat/sub-05_run-2_FLAIR",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    found = {
        s.id: s.sequences["flair"].name[:-7] if s.sequences else ""
        for s in read_scans(tmp_path, "t1+flair")
    }
    assert found == {
        "sub-01": "sub-01_FLAIR",
        "sub-02_ses-1": "",
        "sub-03_acq-a": "sub-03_acq-b_FLAIR",
        "sub-04": "",  # two that nothing tells apart
        "sub-05_run-1": "sub-05_run-1_FLAIR",
        "sub-05_run-2": "sub-05_run-2_FLAIR",
    }
    with pytest.raises(
        ScanError,
        match=r"sub-04_T1w\.nii\.gz: no flair sequence of this scan, or more than one\. "
        r"2 sequences of each scan",
    ):
        channel_files(
            next(s for s in read_scans(tmp_path, "t1+flair") if s.id == "sub-04"),
            load_recipe("t1+flair"),
        )


def test_one_file_in_two_places_is_refused(tmp_path):
    a, b, c = (tmp_path / f"{x}.nii" for x in "abc")
    check_leaks(
        [Scan("a", a, "s", sequences={"flair": c}), Scan("b", b, "s", sequences={"flair": c})]
    )  # one head, scanned twice
    with pytest.raises(
        InputError, match=r"c\.nii: listed twice, as 'a' and as a further sequence of 'b'"
    ):
        check_leaks(
            [Scan("a", a, "s", sequences={"flair": c}), Scan("b", b, "t", sequences={"flair": c})]
        )
    with pytest.raises(
        InputError, match=r"a\.nii: listed twice, as 'a' and as a further sequence of 'a'"
    ):
        check_leaks([Scan("a", a, "s", sequences={"flair": a})])


GIVE = (
    r"2 sequences of each scan are expected, t1\+flair: "
    r"give a table with the columns 'image' \(T1w\), 'image_flair' \(FLAIR\), or a BIDS"
)


def test_what_does_not_tell_the_sequences_apart_is_refused_with_the_way_to_give_them(
    command, trained, brain_t1, tmp_path
):
    done = command("infer", "--run", trained, "--input", brain_t1, "--out", tmp_path / "out")
    assert done.code == 2
    assert re.search(GIVE, done.error)
    (tmp_path / "t.csv").write_text(f"image\n{brain_t1}\n")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "scan.nii").touch()
    (tmp_path / "d.json").write_text("{}")
    for source, what in (
        ("t.csv", r"no column 'image_flair'; columns found: image\."),
        ("plain", "not told here"),
        ("d.json", "not told here"),
    ):
        with pytest.raises(InputError, match=f"{what}.*{GIVE}"):
            read_scans(tmp_path / source, "t1+flair")
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "1").write_bytes(bytes(128) + b"DICM")
    done = command(
        "preprocess",
        "--input",
        tmp_path / "dicom",
        "--modality",
        "t1+flair",
        "--out",
        tmp_path / "out",
    )
    assert done.code == 2 and "DICOM series do not say which sequence they are" in done.error


@pytest.mark.parametrize(
    ("modality", "override", "message"),
    [
        ("t1+flare", "n4=true", r"unknown MODALITY 'flare'; known: .*; did you mean 'flair'\?"),
        ("t1+t1", "n4=true", "'t1\\+t1': each modality once, and no picture among them"),
        ("picture+t1", "n4=true", "'picture\\+t1': each modality once"),
        (
            "t1",
            "channels=2",
            r"channels=2 is for pictures; name the sequences of a scan as MODALITY=t1\+flair",
        ),
        (
            "t1+flair",
            "flair.intensity.tp=1",
            r"unknown key 'sequences\.0\.intensity\.tp'; .*did you mean 'top'\?",
        ),
        ("t1+flair", "t2.intensity.top=1", r"unknown key 't2'"),
    ],
)
def test_recipes_that_cannot_be_are_refused(modality, override, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(modality, [override])


def test_channels_that_do_not_fit_are_refused(command, trained, data, tmp_path):
    done = command(
        "train", "--model", "vae", "--data", data, "--out", tmp_path / "run", "model.in_channels=3"
    )
    assert (
        done.code == 2
        and "in_channels=3, but the scans have 2 (T1w, FLAIR); leave model.in_channels out"
        in done.error
    )
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "recipe.yaml").write_text(write_yaml(load_recipe("t1", RECIPE)))
    done = command("evaluate", "--run", trained, "--data", tmp_path / "single")
    assert done.code == 2 and "preprocessed with another sequences than the scans of" in done.error
    done = command("choose", "--data", data, "--runs", trained)
    assert done.code == 2 and "its scans have several channels" in done.error
    done = command(
        "synthesise", "--data", data, "--out", tmp_path / "synthetic", "--kinds", "bright"
    )
    assert done.code == 2 and "its scans have several channels" in done.error


def test_a_second_sequence_of_something_else_is_refused_by_name(pairs):
    scan = read_scans(pairs[0] / "table.csv", "t1+flair")[2]
    flair = nib.load(scan.sequences["flair"])
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=flair.shape), 2) * (
        flair.get_fdata() > 0
    )
    save((1000 + 2000 * noise).astype(np.float32), flair.affine, pairs[0] / "other.nii.gz")
    with pytest.raises(
        ScanError,
        match=r"other\.nii\.gz: flair: likeness to the t1 sequence .* is 0\.0\d+ nats, "
        r"expected at least 0\.1",
    ):
        prepare(
            Scan("a", scan.image, "a", sequences={"flair": pairs[0] / "other.nii.gz"}),
            load_recipe("t1+flair", RECIPE),
        )
    save(
        flair.get_fdata(dtype=np.float32)[:, :, : flair.shape[2] // 2],
        flair.affine,
        pairs[0] / "half.nii.gz",
    )
    with pytest.raises(
        ScanError, match=r"half\.nii\.gz: flair: (brain outside the field of view|smallest extent)"
    ):
        prepare(
            Scan("a", scan.image, "a", sequences={"flair": pairs[0] / "half.nii.gz"}),
            load_recipe("t1+flair", RECIPE),
        )


# models


def test_the_atlas_scores_each_channel_by_its_own_healthy_spread():
    from models.atlas import Atlas

    rng = np.random.default_rng(0)
    mask = np.zeros((3, 1, 8, 8), np.float32)
    mask[:, :, 1:7, 2:7] = 1
    image = rng.random((3, 2, 8, 8)).astype(np.float32) * mask
    model = Atlas(smooth=0, prior=2, mirror=False)
    batch = {"image": torch.tensor(image), "mask": torch.tensor(mask), "z": torch.tensor([0, 0, 1])}
    model.fit_reference([batch])
    found = model.anomaly_map(batch["image"], batch["mask"], batch["z"]).numpy()
    inside = mask[:, 0] > 0
    want = np.zeros((3, 8, 8))
    for c in range(2):
        values = image[:, c]
        whole = image[:, c][inside]
        for place in (0, 1):
            own = values[[0, 1] if place == 0 else [2]].astype(float)
            mean = (own.sum(0) + 2 * whole.mean()) / (len(own) + 2)
            var = (((own - mean) ** 2).sum(0) + 2 * whole.var()) / (len(own) + 2)
            for i in [0, 1] if place == 0 else [2]:
                want[i] += np.abs(values[i] - mean) / np.sqrt(var) / 2
    np.testing.assert_allclose(found[:, 0][inside], want[inside], rtol=1e-4)


def test_intensity_is_the_mean_of_the_channels_distances():
    from models.intensity import Intensity

    rng = np.random.default_rng(1)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 1:7, 1:6] = 1
    x = torch.tensor(rng.random((2, 3, 8, 8)), dtype=torch.float32) * mask
    model = Intensity(mode="z", tail="bright")
    one_by_one = torch.stack([model.anomaly_map(x[:, [c]], mask) for c in range(3)])
    torch.testing.assert_close(model.anomaly_map(x, mask), one_by_one.mean(0))


def test_a_residual_is_compared_channel_by_channel_so_that_opposite_signs_do_not_cancel():
    """A lesion that one sequence shows bright and the other as dark by as much."""
    from models.base import AnomalyModel
    from models.parts.healthy_map import Referenced

    class Flat(AnomalyModel):
        stages = ()

        def anomaly_map(self, x, mask, z=None):
            return x.mean(1, keepdim=True) * mask

        def reconstruct(self, x):
            return torch.full_like(x, 0.5)

    rng = np.random.default_rng(2)
    mask = torch.zeros(12, 1, 16, 16)
    mask[:, :, 2:14, 3:13] = 1
    image = torch.tensor(0.5 + 0.02 * rng.normal(size=(12, 2, 16, 16)), dtype=torch.float32) * mask
    model = Referenced(Flat(), "z", of="residual", tail="both", smooth=0, mirror=False)
    model.fit_reference([{"image": image, "mask": mask, "z": torch.arange(12) % 2}])
    ill = image.clone()
    ill[:, 0, 6:9, 6:9] += 0.3
    ill[:, 1, 6:9, 6:9] -= 0.3
    found = model.anomaly_map(ill, mask, torch.arange(12) % 2)
    assert (
        found.shape == (12, 1, 16, 16)
        and found[:, :, 6:9, 6:9].min() > 3 > found[:, :, 10:13, 4:12].mean()
    )
    place = 1
    values = (image - 0.5)[1::2].numpy().astype(float)
    whole = (image - 0.5).permute(1, 0, 2, 3)[:, mask[:, 0] > 0].numpy().astype(float)
    mean = (values.sum(0) + 2 * whole.mean(1)[:, None, None]) / 8
    var = (((values - mean) ** 2).sum(0) + 2 * whole.var(1)[:, None, None]) / 8
    want = np.abs(((ill - 0.5)[1].numpy() - mean) / np.sqrt(var)).mean(0)
    np.testing.assert_allclose(found[place, 0, 4:12, 4:12], want[4:12, 4:12], rtol=1e-3)


# pictures


def test_planes_of_a_picture_become_channels(tmp_path):
    import tifffile

    rgba = np.random.default_rng(0).integers(0, 255, (10, 14, 4), dtype=np.uint8)
    Image.fromarray(rgba[:, :, :3]).save(tmp_path / "rgb.png")
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    tifffile.imwrite(tmp_path / "two.tif", rgba[:, :, :2])
    tifffile.imwrite(tmp_path / "pages.tif", np.moveaxis(rgba[:, :, :2], 2, 0))
    for name in ("rgb.png", "rgba.png", "two.tif", "pages.tif"):
        data = np.asarray(read_picture(tmp_path / name, 2).dataobj)
        assert data.shape == (14, 10, 1, 2) and data.dtype == np.float32
        for plane in range(2):  # the same way up as a grey picture
            np.testing.assert_allclose(
                data[::-1, ::-1, 0, plane].T, rgba[:, :, plane] / 255, atol=1e-6
            )
    Image.fromarray(rgba[:, :, 0]).save(tmp_path / "grey.png")
    Image.fromarray(rgba[:, :, :2], mode="LA").save(tmp_path / "alpha.png")
    for name in ("grey.png", "alpha.png"):
        with pytest.raises(
            ScanError,
            match=rf"{name}: expected a picture of at least 8 x 8 pixels "
            r"with 2 colour planes, got 1",
        ):
            read_picture(tmp_path / name, 2)


@pytest.mark.slow
def test_two_channel_pictures_of_the_fundus_train_the_preset_from_end_to_end(tmp_path):
    """Discs with a vessel in red and green; one has a spot that only green shows."""
    rng = np.random.default_rng(0)
    rows = ["image,split,label,mask"]
    y, x = np.mgrid[:60, :70]
    disc = ((y - 30) / 27) ** 2 + ((x - 35) / 30) ** 2 < 1
    for i, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2):
        red = 0.6 + 0.02 * rng.normal(size=disc.shape)
        green = 0.35 + 0.02 * rng.normal(size=disc.shape)
        green[np.abs(y - 30 - 0.3 * (x - 35) - rng.integers(-8, 8)) < 2] = 0.15
        spot = ((y - 20) ** 2 + (x - 45) ** 2 < 20) & (i == 7)
        green[spot] = 0.95
        picture = np.stack([red, green, 0 * red], 2) * disc[..., None]
        Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{split},{int(i == 7)},")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    data = tmp_path / "data"
    folder = tmp_path / "run"
    assert (
        run(
            "preprocess",
            "--input",
            tmp_path / "t.csv",
            "--modality",
            "picture",
            "--out",
            data,
            "channels=2",
        )
        == 0
    )
    stored = np.load(data / "slices" / "7_image.npy")
    assert stored.shape == (1, 2, 256, 256) and stored[0, 1].max() > 0.9 > stored[0, 0].max()
    assert (data / "7" / "7_space-picture_desc-preproc_picture-2.nii.gz").is_file()
    settings = [
        "loop.batch_size=2",
        "loop.loader_workers=0",
        "stages.gan.max_epochs=1",
        "stages.encoder.max_epochs=1",
    ]
    assert (
        run(
            "train",
            "--model",
            "f_anogan",
            "--preset",
            "fundus",
            "--data",
            data,
            "--out",
            folder,
            *settings,
        )
        == 0
    )
    loaded = load_run(folder, "cpu")
    assert loaded.config.image_size == (256, 256) and loaded.model.draw(1).shape == (1, 2, 256, 256)
    assert (
        run("infer", "--run", folder, "--input", tmp_path / "7.png", "--out", tmp_path / "out") == 0
    )
    found = nib.load(tmp_path / "out" / "7_map.nii.gz")
    assert (
        found.shape == nib.load(tmp_path / "out" / "7_mask.nii.gz").shape == (70, 60, 1)
        and found.get_fdata().max() > 0
    )
    assert run("infer", "--run", folder, "--input", _grey(tmp_path), "--out", tmp_path / "out") == 3
    with pytest.raises(ConfigError, match=r"in_channels=2, but the scans have 1 \(picture\)"):
        build_model(load_run_config("f_anogan", preset="fundus"), load_recipe("picture"))


def _grey(folder):
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(folder / "grey.png")
    return folder / "grey.png"
