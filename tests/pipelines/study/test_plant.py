"""The command that plants synthetic lesions, on a small cohort made by hand."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from evaluation import synthetic
from evaluation.synthetic import KINDS
from pipelines import synthesise
from pipelines.cohort.cases import read_cases
from pipelines.config import load_recipe, write_yaml
from pipelines.study import plant as planting
from pipelines.study.synthesise import as_stored
from preprocessing.files import read_table, write_table
from preprocessing.images import read_image
from preprocessing.splits import check_leaks
from preprocessing.tables import read_scans
from tests.conftest import case_of, oblique_affine
from tests.evaluation.volumes import ball, rng

AXES = (55.0, 68.0, 48.0)  # half axes of the brain in atlas mm, about the origin
ATLAS = np.diag([3.0, 3.0, 3.0, 1.0])
ATLAS[:3, 3] = (-66.0, -78.0, -57.0)
ATLAS_SHAPE = (45, 53, 39)


def world_of(number):
    """Atlas mm to scan mm: a turn about the third axis and a shift."""
    angle = np.deg2rad(6.0 * (number - 1))
    world = np.eye(4)
    world[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    world[:3, 3] = (9.0 * number - 5, 4.0, -7.0 * number)
    return world


def atlas_mm(shape, affine, world):
    grid = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    back = np.linalg.inv(world)
    return np.moveaxis(grid @ back[:3, :3].T + back[:3, 3], -1, 0)


def level(mm):
    """1 at the surface of the brain."""
    return np.sqrt(sum((mm[a] / AXES[a]) ** 2 for a in range(3)))


def anatomy(mm):
    """Smooth tissue in a bright skull, the same in every subject, left and right not alike."""
    tissue = (
        90
        + 35 * np.cos(mm[0] / 13 + 0.7) * np.cos(mm[1] / 17)
        + 25 * np.sin(mm[2] / 15 + mm[0] / 40)
    )
    return np.where(level(mm) < 1, tissue, np.where(level(mm) < 1.12, 220, 5))


def add_subject(data, number, zooms, shape, dtype):
    """A raw scan, its brain mask in the atlas, and its sidecar, by hand; its row."""
    world = world_of(number)
    name = f"sub-{number:02d}"
    centre = (world @ [0, 0, 0, 1])[:3]
    affine = oblique_affine(shape, zooms, centre, 8.0)
    if number == 2:  # axes in another order: posterior, inferior, right
        affine = affine @ np.array(
            [[0, 0, -1.0, shape[0] - 1], [1, 0, 0, 0], [0, -1, 0, shape[2] - 1], [0, 0, 0, 1]]
        )
        shape = (shape[1], shape[2], shape[0])
    values = anatomy(atlas_mm(shape, affine, world)) * (1 if number == 3 else number)
    values = values + rng(number).normal(size=shape)
    folder = data / name
    folder.mkdir(parents=True)
    raw = data / "raw" / f"{name}_T1w.nii.gz"
    raw.parent.mkdir(exist_ok=True)
    if np.dtype(dtype).kind in "iu":
        values = np.rint(np.clip(values, 0, 255 if dtype == np.uint8 else None))
    stored = values.astype(dtype)
    nib.save(nib.Nifti1Image(stored, affine), raw)
    in_atlas = level(atlas_mm(ATLAS_SHAPE, ATLAS, np.eye(4))) < 1
    nib.save(nib.Nifti1Image(in_atlas.astype(np.uint8), ATLAS), folder / f"{name}_brain.nii.gz")
    side = {
        "world": world.tolist(),
        "native_shape": list(shape),
        "native_affine": nib.load(raw).affine.tolist(),
        "brain_method": "deepbet",
    }
    (folder / f"{name}_preproc.json").write_text(json.dumps(side))
    return {
        "id": name,
        "image": raw,
        "subject": name,
        "split": "test",
        "label": "healthy",
        "pathology": "",
        "mask": "",
        "brain_mask": "",
        "slice_labels": "",
        "preproc": f"{name}/{name}_preproc.nii.gz",
        "brain": f"{name}/{name}_brain.nii.gz",
        "sidecar": f"{name}/{name}_preproc.json",
    }


GRIDS = [
    ((3.0, 3.5, 4.0), (52, 55, 40), np.int16),
    ((3.5, 3.0, 4.0), (46, 62, 38), np.float32),
    ((4.0, 3.0, 3.5), (41, 60, 44), np.uint8),
]


def add_cohort(data, grids=GRIDS):
    rows = [add_subject(data, i, *grid) for i, grid in enumerate(grids, start=1)]
    others = []
    for split, label in (("train", "healthy"), ("val", "healthy"), ("test", "abnormal")):
        name = f"x-{split}"
        columns = {"id": name, "subject": name, "image": "/no/such.nii.gz"}
        others.append(rows[0] | columns | {"split": split, "label": label})
    write_table(data / "scans.tsv", others + rows)
    (data / "recipe.yaml").write_text(write_yaml(load_recipe("t1")))
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return add_cohort(tmp_path_factory.mktemp("cohort"))


def run(*arguments):
    return synthesise.main(synthesise.build_parser().parse_args([str(a) for a in arguments]))


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    assert run("--data", data, "--out", out, "--per-scan", 7, "--volumes", "2,15") == 0
    return out


def test_every_healthy_scan_may_get_lesions(data, tmp_path):
    """Those of training and validation too; then no subject may stand in two splits."""
    shutil.copytree(data, tmp_path / "data")
    table = tmp_path / "data" / "scans.tsv"
    rows = [row for row in read_table(table) if row["split"] == "test"]
    for row, split in zip(rows, ("train", "val"), strict=False):
        row["split"] = split
    write_table(table, rows)

    out = tmp_path / "out"
    assert run("--data", tmp_path / "data", "--out", out, "--every", "--per-scan", 1) == 0
    scans = read_scans(out / "cohort.tsv", "t1")
    check_leaks(scans)
    healthy = [s.subject for s in scans if s.label == "healthy"]
    planted = [s.subject for s in scans if s.label == "abnormal"]
    assert healthy == planted == ["sub-01", "sub-02", "sub-03"]


def arrays(folder):
    return {
        p.relative_to(folder): np.asarray(nib.load(p).dataobj).tobytes()
        for p in sorted(folder.rglob("*.nii.gz"))
    }


def test_the_table_is_a_cohort(data, made, left_behind):
    scans = read_scans(made / "cohort.tsv", "t1")
    check_leaks(scans)
    healthy = [s for s in scans if s.label == "healthy"]
    planted = [s for s in scans if s.label == "abnormal"]
    assert [s.id for s in healthy] == ["sub-01", "sub-02", "sub-03"] and len(planted) == 21
    assert [s.image for s in healthy] == [data / "raw" / f"{s.id}_T1w.nii.gz" for s in healthy]
    assert not any(s.mask or s.pathology for s in healthy) and {s.split for s in scans} == {"test"}
    kinds = [s.pathology.removeprefix("synthetic ") for s in planted]
    assert kinds == list(KINDS) * 3
    for scan in planted:
        assert (
            scan.pathology.startswith("synthetic ")
            and "synthetic" in scan.image.name
            and "synthetic" in scan.id
        )
        assert b"synthetic" in nib.load(scan.image).header["descrip"].item()
        assert (
            scan.image.is_file() and scan.mask.is_file() and scan.subject == scan.image.parent.name
        )
    assert not read_table(made / "failures.tsv") and left_behind(made) == []
    assert not any(
        r["image"].startswith("/")
        for r in read_table(made / "cohort.tsv")
        if r["label"] == "abnormal"
    )


def test_lesions_lie_in_the_brain_on_the_scans_own_grid(data, made):
    originals = {
        r["id"]: read_image(data / "raw" / f"{r['id']}_T1w.nii.gz")
        for r in read_table(data / "scans.tsv")[3:]
    }
    record = json.loads((made / "synthetic.json").read_text())
    assert (
        record["synthetic"] is True
        and record["settings"]["seed"] == 0
        and "numpy" in record["versions"]
    )
    assert len(record["lesions"]) == 21
    for lesion in record["lesions"]:
        original = originals[lesion["original"]]
        mask = nib.load(made / lesion["mask"])
        image = read_image(made / lesion["image"])
        assert mask.shape == image.shape == original.shape and mask.get_data_dtype() == np.uint8
        assert (mask.affine == original.affine).all() and (image.affine == original.affine).all()
        inside = np.asarray(mask.dataobj) > 0
        where = level(atlas_mm(inside.shape, mask.affine, world_of(int(lesion["original"][4:]))))
        assert where[inside].max() < 1.06
        before = np.asarray(original.dataobj)
        after = np.asarray(image.dataobj)
        assert (before[~inside] == after[~inside]).all() and (before != after)[inside].mean() > 0.4
        volume = inside.sum() * abs(np.linalg.det(mask.affine[:3, :3])) / 1000
        assert lesion["volume_ml"] == pytest.approx(volume) and 2 <= lesion["wanted_ml"] <= 15
        assert 0.5 * lesion["wanted_ml"] < volume < 1.2 * lesion["wanted_ml"]
        centre = np.argwhere(inside).mean(0) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
        assert np.linalg.norm(centre - lesion["centre_mm"]) < 8
        assert (lesion["donor"] is not None) == (lesion["kind"] == "blend") and lesion[
            "donor"
        ] != lesion["original"]
    assert (
        len({tuple(x["centre_mm"]) for x in record["lesions"]})
        == len({x["wanted_ml"] for x in record["lesions"]})
        == 21
    )


def test_a_scan_keeps_its_type_unless_a_value_would_not_fit(made):
    found = {p.name[:6]: set() for p in made.rglob("*_synthetic-*")}
    for path in made.rglob("*_synthetic-*"):
        if "_mask" not in path.name:
            found[path.name[:6]].add(
                (nib.load(path).get_data_dtype().name, path.name.split("-")[-1][:-7])
            )
    assert {t for t, _ in found["sub-01"]} == {"int16"} and {t for t, _ in found["sub-02"]} == {
        "float32"
    }
    assert {t for t, kind in found["sub-03"] if kind in ("deform", "mirror", "swap")} == {"uint8"}


def test_what_does_not_fit_gets_a_wider_type():
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.eye(4))
    image.header.set_data_dtype(np.uint8)
    head = planting.Head(case_of("a", Path()), image, np.ones((3, 4, 5), bool), np.eye(4))
    for value, expected, dtype in (
        (200.6, 201, np.uint8),
        (300.2, 300, np.int16),
        (-3.7, -4, np.int16),
        (40000, 40000, np.int32),
    ):
        stored = as_stored(np.full((3, 4, 5), value, np.float32), head)
        assert stored.dtype == dtype and (stored == expected).all()


@pytest.mark.slow
def test_the_same_call_gives_the_same_arrays_and_another_seed_others(data, made, tmp_path):
    arguments = ("--data", data, "--per-scan", 7, "--volumes", "2,15")
    assert run(*arguments, "--out", tmp_path / "again") == 0 and arrays(
        tmp_path / "again"
    ) == arrays(made)
    assert run(*arguments, "--out", tmp_path / "other", "--seed", 1) == 0
    same = arrays(made)
    other = arrays(tmp_path / "other")
    assert same.keys() == other.keys() and not any(same[k] == other[k] for k in same)


def test_a_donor_comes_through_both_worlds(data):
    cases = {case.id: case for case in read_cases(data)}
    head, donor = (planting.load_head(cases[name]) for name in ("sub-01", "sub-02"))
    there, both = planting.donor_on(head, donor)
    assert (
        there.shape == head.data.shape
        and both.sum() > 0.9 * head.brain.sum()
        and not (both & ~head.brain).any()
    )
    deep = level(atlas_mm(head.data.shape, head.image.affine, head.scan_from_atlas)) < 0.85
    assert (
        np.abs(there - head.data)[deep].mean() < 5 < 0.3 * head.data[deep].std()
    )  # the same anatomy, twice as bright


def test_one_subject_has_no_donor(tmp_path, command):
    add_cohort(tmp_path / "data", GRIDS[:1])
    done = command(
        "synthesise",
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "out",
        "--kinds",
        "blend,dark",
    )
    assert done.code == 0 and any("'blend' is left out" in line for line in done.sentences)
    assert {r["pathology"] for r in read_table(tmp_path / "out" / "cohort.tsv")} == {
        "",
        "synthetic dark",
    }
    last = done.out.strip().splitlines()[-1]
    assert (
        str(tmp_path / "out" / "cohort.tsv") in last
        and "make preprocess IN=" in last
        and "MODALITY=t1" in last
    )
    assert "%|" in done.err
    done = command(
        "synthesise", "--data", tmp_path / "data", "--out", tmp_path / "out", "--kinds", "blend"
    )
    assert done.code == 2 and "needs a second one" in done.error


def test_shapes_from_masks_keep_volume_and_pose(data, tmp_path):
    bar = np.zeros((40, 30, 64), np.uint8)
    bar[18:23, 12:16, 10:52] = 1  # 42 x 2 mm along the third axis, which is the world's first
    bar[2, 2, 2] = 1  # a speck: not the largest piece
    affine = np.array([[0, 0, 1.0, 30], [2, 0, 0, -9], [0, -2.0, 0, 50], [0, 0, 0, 1]])
    (tmp_path / "masks" / "deep").mkdir(parents=True)
    nib.save(nib.Nifti1Image(bar, affine), tmp_path / "masks" / "deep" / "bar.nii.gz")
    out = tmp_path / "out"
    assert (
        run(
            "--data",
            data,
            "--out",
            out,
            "--masks",
            tmp_path / "masks",
            "--kinds",
            "bright",
            "--per-scan",
            2,
        )
        == 0
    )
    lesions = json.loads((out / "synthetic.json").read_text())["lesions"]
    assert len(lesions) == 6
    for lesion in lesions:
        mask = nib.load(out / lesion["mask"])
        mm = np.argwhere(np.asarray(mask.dataobj)) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
        assert lesion["shape"].endswith("bar.nii.gz") and lesion["wanted_ml"] == pytest.approx(
            42 * 20 * 4 / 1000
        )
        assert lesion["volume_ml"] == pytest.approx(3.36, rel=0.35)
        assert np.argmax(np.ptp(mm, axis=0)) == 0 and 30 < np.ptp(mm, axis=0)[0] < 50
        np.testing.assert_allclose(
            mm.mean(0), lesion["centre_mm"], atol=8
        )  # where the surface cuts it


def test_pictures_are_written_as_pictures(tmp_path):
    from skimage import io

    data = tmp_path / "data"
    data.mkdir()
    brain = ball((70, 60, 1), (1, 1, 1), (34, 30, 0), 25)
    nib.save(nib.Nifti1Image(brain.astype(np.uint8), np.eye(4)), data / "brain.nii.gz")
    (data / "side.json").write_text(
        json.dumps(
            {
                "world": np.eye(4).tolist(),
                "native_shape": [70, 60, 1],
                "native_affine": np.eye(4).tolist(),
                "brain_method": "none",
            }
        )
    )
    rows = []
    source = rng(3)
    for name in ("p1", "p2"):
        picture = np.where(
            brain[..., 0], 120 + 600 * gaussian_filter(source.random((70, 60)) - 0.5, 2), 0
        ).astype(np.uint8)
        io.imsave(data / f"{name}.png", picture[::-1, ::-1].T, check_contrast=False)
        row = {
            "id": name,
            "image": data / f"{name}.png",
            "subject": name,
            "split": "test",
            "label": "",
            "brain_mask": "",
        }
        rows.append(
            row | {"preproc": "pre.nii.gz", "brain": "brain.nii.gz", "sidecar": "side.json"}
        )
    write_table(data / "scans.tsv", rows)
    (data / "recipe.yaml").write_text(write_yaml(load_recipe("picture")))
    out = tmp_path / "out"
    assert run("--data", data, "--out", out, "--volumes", "0.1,0.4", "--per-scan", 7) == 0
    scans = read_scans(out / "cohort.tsv", "picture")
    assert len(scans) == 16 and sum(s.label == "abnormal" for s in scans) == 14
    for scan in scans:
        if scan.mask:
            before, after, mask = (
                np.asarray(read_image(p).dataobj)
                for p in (data / f"{scan.subject}.png", scan.image, scan.mask)
            )
            assert (
                mask.shape == after.shape == (70, 60, 1)
                and not (mask[~brain] > 0).any()
                and mask.sum() > 50
            )
            np.testing.assert_allclose(before[mask == 0], after[mask == 0], atol=1e-6)
            assert np.abs(before - after)[mask > 0].mean() > 0.01


def test_a_bad_scan_is_left_out_and_named(tmp_path, command):
    data = add_cohort(tmp_path / "data", GRIDS[:2])
    (data / "raw" / "sub-01_T1w.nii.gz").write_bytes(b"no scan")
    done = command(
        "synthesise", "--data", data, "--out", tmp_path / "out", "--kinds", "dark", "--per-scan", 1
    )
    assert done.code == 1 and [r["id"] for r in read_table(tmp_path / "out" / "cohort.tsv")] == [
        "sub-02",
        "sub-02_synthetic-01-dark",
    ]
    assert [r["id"] for r in read_table(tmp_path / "out" / "failures.tsv")] == ["sub-01"]
    assert any(line.startswith("left out: ") and "sub-01_T1w" in line for line in done.sentences)
    side = json.loads((data / "sub-02" / "sub-02_preproc.json").read_text())
    (data / "sub-02" / "sub-02_preproc.json").write_text(
        json.dumps(side | {"native_shape": [1, 2, 3]})
    )
    done = command("synthesise", "--data", data, "--out", tmp_path / "none")
    assert done.code == 3 and not (tmp_path / "none" / "cohort.tsv").exists()
    assert "run 'make preprocess' again" in (tmp_path / "none" / "failures.tsv").read_text()


def test_a_lesion_that_nobody_sees_is_drawn_again(data, monkeypatch):
    head = planting.load_head(read_cases(data)[3])
    plan = planting.Plan(["swap"], 1, (2.0, 2.0), [], 0)
    rated = iter([0.02, 0.05, 0.01, 0.3, 0.9])
    monkeypatch.setattr(synthetic, "visibility", lambda *_: next(rated))
    assert planting.plant_one(head, "swap", plan, rng(), None)[2]["change"] == 0.3
    rated = iter([0.02, 0.05, 0.01, 0.04, 0.03])
    image, mask, about = planting.plant_one(head, "swap", plan, rng(), None)
    assert (
        about["change"] == 0.05
        and mask[about["centre_voxel"]]
        and ((image != head.data) & ~mask).sum() == 0
    )


def test_a_lesion_larger_than_the_brain_is_refused(data, tmp_path):
    assert run("--data", data, "--out", tmp_path, "--volumes", "2000,2000") == 3
    assert "give smaller --volumes" in (tmp_path / "failures.tsv").read_text()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--kinds", "bright,drak"), ("'drak'", "did you mean 'dark'?", "swap")),
        (("--volumes", "0,5"), ("--volumes", "'0,5'", "positive")),
        (("--volumes", "9,5"), ("smallest and largest",)),
        (("--volumes", "many"), ("'many'",)),
        (("--volumes", "1,inf"), ("'1,inf'",)),
        (("--per-scan", "0"), ("--per-scan", "at least one")),
        (("--seed", "-1"), ("--seed",)),
        (("--masks", "EMPTY"), ("no .nii or .nii.gz",)),
        (("--masks", "EMPTY", "--volumes", "1,2"), ("give one of the two",)),
        (("--data", "EMPTY"), ("scans.tsv", "make preprocess")),
        (("--data", "ILL"), ("no healthy scans in split 'test'",)),
    ],
)
def test_what_cannot_be_used_is_one_sentence(arguments, words, data, tmp_path, command):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "ILL").mkdir()
    write_table(tmp_path / "ILL" / "scans.tsv", read_table(data / "scans.tsv")[:3])
    given = [str(tmp_path / a) if a in ("EMPTY", "ILL") else a for a in arguments]
    done = command("synthesise", "--data", data, "--out", tmp_path / "out", *given)
    assert (
        done.code == 2
        and all(word in done.error for word in words)
        and not (tmp_path / "out").exists()
    )
