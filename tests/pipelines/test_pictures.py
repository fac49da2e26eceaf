"""2-D pictures go through the chain of scans.

Table, groups, frame, slice store, folds, comparison.
"""

import json
from functools import partial

import numpy as np
import pytest
from monai.networks.nets import DenseNet121
from PIL import Image

from evaluation.shifts import shifts_of
from pipelines.cohort.cases import load, read_cases
from pipelines.config import read_recipe
from pipelines.study import stress
from pipelines.study.results_file import Results
from preprocessing import register
from preprocessing.files import read_table
from preprocessing.images import Grid, read_image, write_picture
from preprocessing.resample import resample
from preprocessing.scans import ScanError
from preprocessing.tables import read_scans
from tests.shared import N_PICTURES as N
from tests.shared import run

pytestmark = pytest.mark.usefixtures("no_figures")


def cases_of(results, model):
    """The test scans of all runs of a model."""
    cases = []
    for own in results.runs(model):
        cases += results.cases_of(own)
    return cases


def scores_of(results, model):
    """The scores of those scans."""
    return [case["score"] for case in cases_of(results, model)]


@pytest.fixture(scope="module")
def folder(pictures):
    return pictures / "raw"


@pytest.fixture(scope="module")
def data(pictures):
    return pictures / "heads"


def test_a_folder_s_own_table_lists_its_pictures_and_ties_groups(folder):
    scans = read_scans(folder, "picture")
    assert len(scans) == N and scans[0].id == "00" and scans[0].subject == scans[2].subject == "a"
    assert (
        scans[1].label == "abnormal"
        and scans[1].extra == {"kind": "square"}
        and scans[0].label == "healthy"
    )


def test_pictures_without_a_table_and_two_tables(tmp_path):
    from preprocessing.scans import InputError

    for name in ("x.png", "sub/y.JPG", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert {s.id for s in read_scans(tmp_path, "picture")} == {"x", "y"}
    for name in ("a.csv", "b.tsv"):
        (tmp_path / name).write_text("image\nx.png\n")
    with pytest.raises(InputError, match=r"2 tables \(a\.csv, b\.tsv\); give the one to use"):
        read_scans(tmp_path, "picture")


def test_a_picture_reads_as_a_radiological_slice(tmp_path):
    """Top left of the picture is front right of the patient.

    It is the last row and column of the RAS+ array.
    """
    grey = np.arange(10 * 14, dtype=np.uint8).reshape(10, 14)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    data = np.asarray(read_image(tmp_path / "grey.png").dataobj)
    assert data.shape == (14, 10, 1) and data.dtype == np.float32
    np.testing.assert_allclose(data[::-1, ::-1, 0].T, grey / 255, atol=1e-7)
    Image.fromarray(np.stack([grey] * 3, 2)).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "rgb.png").dataobj), data)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.tif")
    np.testing.assert_allclose(
        np.asarray(read_image(tmp_path / "deep.tif").dataobj), data, atol=1e-6
    )


def test_a_picture_that_is_written_reads_the_same_but_for_sixteen_bit(tmp_path):
    data = np.random.default_rng(0).random((14, 10, 1), np.float32)
    data[0, 0] = 1.5  # brighter than a picture can be
    write_picture(data, tmp_path / "x.png")
    again = np.asarray(read_image(tmp_path / "x.png").dataobj)
    np.testing.assert_allclose(again, data.clip(0, 1), atol=0.5 / 65535 + 1e-7)


def test_a_shifted_picture_is_prepared_as_a_picture(data):
    """Every shift that pictures have; a contrast of 0.4 has 0.4 of the spread."""
    case = next(case for case in read_cases(data) if case.label == "healthy")
    recipe = read_recipe(data)
    plain = load(case)
    for name in shifts_of(recipe.modality):
        _, prepared = stress.shifted(case, name, 3, 0, recipe)
        assert prepared.image.shape == plain.image.shape
        assert np.abs(prepared.image - plain.image).max() > 1e-3, name
    before, after = (
        np.asarray(read_image(path).dataobj)
        for path in (
            case.image,
            stress.write_shifted(case, "contrast", 3, 0, "picture", data.parent),
        )
    )
    head = stress.head_of(case, "picture")
    brain = head.brain
    assert not head.is_ct
    assert after[brain].std() == pytest.approx(0.4 * before[brain].std(), rel=0.01)


@pytest.mark.parametrize("content", [b"not a picture", b""])
def test_what_is_no_picture_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ScanError, match=r"x\.png: not a readable picture"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("shape", [(40, 30, 1), (41, 31, 1), (100, 60, 1), (64, 130, 1)])
def test_a_picture_lies_in_the_middle_of_its_frame_and_comes_back(shape):
    rng = np.random.default_rng(0)
    from scipy.ndimage import gaussian_filter

    image = gaussian_filter(rng.random(shape), (4, 4, 0))
    mask = np.zeros(shape, bool)
    mask[8:-8, 6:-6] = True
    framed, there, world = register.fit_picture(image, mask, (64, 64))
    assert framed.shape == there.shape == (64, 64, 1)
    scale = max(1, max(shape) / 64)
    assert world[0, 0] == world[1, 1] == pytest.approx(scale)
    if scale == 1:  # not interpolated: a plain copy
        x, y = (np.array([-world[0, 3], -world[1, 3]])).astype(int)
        np.testing.assert_array_equal(framed[x : x + shape[0], y : y + shape[1]], image)
    np.testing.assert_allclose(np.argwhere(there).mean(0)[:2], 31.5, atol=0.51)
    grids = Grid(framed.shape, np.eye(4)), Grid(shape, np.eye(4))
    back = resample(framed, *grids, np.linalg.inv(world))
    inside = mask.copy()
    inside[:10] = False
    inside[-10:] = False
    assert np.abs(back - image)[inside].max() < 0.1 * np.ptp(image)


@pytest.mark.parametrize("background", [0.0, 0.2, 0.02])
def test_the_foreground_of_a_picture_stands_off_its_background(background):
    from preprocessing.brain import picture_foreground

    x, y = np.mgrid[:50, :61]
    head_shape = ((x - 25) / 18) ** 2 + ((y - 30) / 24) ** 2 < 1
    hole = ((x - 25) / 6) ** 2 + ((y - 30) / 6) ** 2 < 1  # a ventricle as dark as the background
    picture = np.where(head_shape & ~hole, 0.6, background) + 0.005 * np.random.default_rng(
        0
    ).random(x.shape)
    picture[2:6, 2:6] = 1  # a letter
    np.testing.assert_array_equal(
        picture_foreground(picture[..., None].astype(np.float32))[..., 0], head_shape
    )
    everywhere = picture_foreground(np.full((20, 30, 1), 0.9, np.float32))
    assert everywhere.all()
    assert not picture_foreground(np.zeros((20, 30, 1), np.float32)).any()


def test_pictures_fill_the_same_store_as_scans(data):
    rows = read_table(data / "scans.tsv")
    assert len(rows) == N and rows[1]["kind"] == "square" and rows[1]["label"] == "abnormal"
    index = read_table(data / "slices" / "index.tsv")
    assert len(index) == N and {r["z"] for r in index} == {"0"}
    stored = np.load(data / "slices" / "01_image.npy", mmap_mode="r")
    assert stored.shape == (1, 1, 48, 48)
    side = json.loads((data / rows[1]["sidecar"]).read_text())
    assert side["native_shape"] == [36, 44, 1] and side["brain_method"] == "foreground"


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    arguments = [
        "--data",
        data,
        "--models",
        "zero intensity pca",
        "--protocol",
        "kfold",
        "--folds",
        3,
        "--repeats",
        2,
        "--out",
        out,
    ]
    settings = [
        "all.image_size=[32,32]",
        "pca.model.n_components=4",
        "all.postprocess.rim_mm=1",
        "all.postprocess.median=3",
    ]
    settings += ["all.postprocess.min_volume_mm3=0", "all.loop.loader_workers=0"]
    arguments += ["--baseline", "zero", *settings]
    assert run("compare", *arguments) == 0
    return out, arguments


def test_folds_keep_groups_together_and_test_every_picture_once(compared, data):
    out, _ = compared
    rows = {r["id"]: r for r in read_table(data / "scans.tsv")}
    for repeat in range(2):
        tested = []
        for fold in range(3):
            splits = {
                r["id"]: r["split"]
                for r in read_table(out / "folds" / f"repeat-{repeat}_fold-{fold}.tsv")
            }
            tested += [i for i, s in splits.items() if s == "test"]
            for i, split in splits.items():
                assert rows[i]["label"] == "healthy" or split in ("tune", "test")
                assert all(
                    splits.get(j, split) == split
                    for j in rows
                    if rows[j]["subject"] == rows[i]["subject"]
                )
            assert {"train", "val", "tune", "test"} == set(splits.values())
        assert sorted(tested) == sorted(rows)
    one, two = ((out / "folds" / f"repeat-{r}_fold-0.tsv").read_text() for r in range(2))
    assert one != two


def test_the_comparison_says_what_its_files_hold(compared):
    """Recomputed with scikit-learn from the per-case scores of the results files."""
    from sklearn.metrics import roc_auc_score

    out, _ = compared
    comparison = json.loads((out / "heads_comparison.json").read_text())
    assert [m["model"] for m in comparison["models"]] == [
        "zero",
        "intensity",
        "pca",
    ] and comparison["baseline"] == "zero"
    results = Results.read(out / "heads_results")
    assert results.summary.protocol.name == "kfold"
    for m in comparison["models"]:
        assert len(results.runs(m["model"])) == 6
        assert len(cases_of(results, m["model"])) == 2 * N
        per_run = []
        for fold in results.runs(m["model"]):
            own = results.cases_of(fold)
            per_run.append(
                roc_auc_score([s["label"] == "abnormal" for s in own], [s["score"] for s in own])
            )
            assert fold.summary["scan_auroc"] == pytest.approx(per_run[-1])
        figure = m["figures"]["scan_auroc"]
        assert figure["mean"] == pytest.approx(np.mean(per_run)) and figure["sd"] == pytest.approx(
            np.std(per_run, ddof=1)
        )
        assert figure["interval"][0] <= figure["mean"] <= figure["interval"][1]
    zero, intensity, _ = comparison["models"]
    assert (
        zero["figures"]["scan_auroc"]["mean"] == 0.5
        and intensity["figures"]["scan_auroc"]["mean"] > 0.95
    )
    apart = next(
        d
        for d in comparison["differences"]
        if d["model"] == "intensity" and d["figure"] == "scan_auroc"
    )
    assert apart["difference"] > 0.4 and apart["p_holm"] < 0.05 and apart["p_holm"] >= apart["p"]
    table = read_table(out / "heads_comparison.tsv")
    assert any(
        r["model"] == "intensity" and r["figure"] == "dice_mean" and float(r["mean"]) > 0.3
        for r in table
    )
    page = (out / "heads_comparison.html").read_text()
    assert (
        "Differences from zero" in page
        and "CLAIM" in page
        and "chosen with the test labels" in page
        and "By pathology" not in page
    )


def test_a_supervised_model_learns_from_labels_and_says_so(data, tmp_path, capsys, monkeypatch):
    """Its folds have abnormal scans in train and val; without them it refuses.

    Its test folds are those of all others. The network is as deep as need be for that.
    """
    shallow = partial(DenseNet121, block_config=(1, 1, 1, 1))
    monkeypatch.setattr("models.densenet_supervised.DenseNet121", shallow)
    settings = [
        "all.image_size=[32,32]",
        "all.loop.loader_workers=0",
        "densenet_supervised.stages.train.max_epochs=1",
    ]
    models = ["--models", "zero densenet_supervised"]
    assert (
        run(
            "compare",
            "--data",
            data,
            *models,
            "--protocol",
            "kfold",
            "--folds",
            3,
            "--repeats",
            1,
            "--out",
            tmp_path,
            *settings,
        )
        == 0
    )
    results = Results.read(tmp_path / "heads_results")
    runs = results.runs("densenet_supervised")
    tested = [s["id"] for s in cases_of(results, "densenet_supervised")]
    assert len(runs) == 3 and sorted(tested) == [f"{i:02d}" for i in range(N)]
    for fold, run_ in enumerate(runs):
        setup = results.setup(run_)
        learned = setup.train_scans + setup.val_scans
        assert any(int(i) % 2 for i in setup.train_scans)
        assert any(int(i) % 2 == 0 for i in learned)
        plain = {
            r["id"]: r["split"]
            for r in read_table(tmp_path / "folds" / f"repeat-0_fold-{fold}.tsv")
        }
        here = {s["id"] for s in results.cases_of(run_)}
        assert {i for i, s in plain.items() if s == "test"} == here
        assert "few-label" in run_.points and set(setup.tune_scans) <= set(setup.val_scans)
    capsys.readouterr()
    assert (
        run(
            "compare", "--data", data, *models, "--seeds", 1, "--out", tmp_path / "seeds", *settings
        )
        == 2
    )
    assert (
        "a supervised model needs healthy and abnormal scans in split 'train'"
        in capsys.readouterr().err
    )


def test_dice_on_a_picture_is_on_its_own_grid(compared, data, folder):
    out, _ = compared
    folds = out / "intensity" / "repeat-0_fold-0"
    result = json.loads((folds / "evaluation" / "heads" / "evaluation.json").read_text())
    case = next(s for s in result["scans"] if s["truth_voxels"])
    truth = np.asarray(Image.open(folder / "masks" / f"{case['id']}.png")) > 0
    import nibabel as nib

    values = (
        nib.load(folds / "evaluation" / "heads" / "maps" / f"{case['id']}_map.nii.gz")
        .get_fdata()[::-1, ::-1, 0]
        .T
    )
    assert values.shape == truth.shape and case["truth_voxels"] == truth.sum()
    assert values[truth].mean() > 3 * values[~truth].mean()


def test_a_second_comparison_trains_and_scores_nothing(compared, monkeypatch):
    import pipelines.detect.detector as scoring

    out, arguments = compared
    before = {p: p.stat().st_mtime_ns for p in out.rglob("weights.pt")}
    monkeypatch.setattr(
        scoring, "slicewise", lambda *a: pytest.fail("a map that stands was made again")
    )
    assert run("compare", *arguments) == 0
    assert before == {p: p.stat().st_mtime_ns for p in before} and len(before) == 18


def test_variants_that_training_does_not_depend_on_are_trained_once(data, tmp_path):
    """vae_kl's kind of map and the healthy reference come after training; its latent does not."""
    common = [
        "--data",
        data,
        "--protocol",
        "kfold",
        "--folds",
        3,
        "--repeats",
        1,
        "--out",
        tmp_path,
        "all.image_size=[32,32]",
    ]
    common += [
        "all.loop.loader_workers=0",
        "vae_kl.stages.train.max_epochs=2",
        "vae_kl.model.channels=[4,8]",
        "vae_kl.model.latent=4",
    ]
    variants = {"rec": "model.map=rec", "z": "reference.kind=z", "wide": "model.latent=8"}
    names = ["vae_kl", *(f"vae_kl@{v}" for v in variants)]
    assert (
        run(
            "compare",
            "--models",
            " ".join(names),
            *common,
            *(f"vae_kl@{k}.{v}" for k, v in variants.items()),
        )
        == 0
    )
    clocks = [(tmp_path / n / "repeat-0_fold-1" / "metrics.csv").read_bytes() for n in names]
    assert clocks[0] == clocks[1] == clocks[2] != clocks[3]  # seconds of every epoch stand in it
    results = Results.read(tmp_path / "heads_results")
    assert results.names() == names and results.model(names[1]).config["model"]["map"] == "rec"
    scores = [scores_of(results, name) for name in names]
    assert all(scores[0] != other for other in scores[1:])
    alone = [
        "--models",
        "vae_kl@own",
        *common,
        "vae_kl@own.reference.kind=z",
    ]  # no plain vae_kl beside it
    alone[alone.index(tmp_path)] = tmp_path / "alone"
    assert run("compare", *alone) == 0
    assert "Model vae_kl@own" in (tmp_path / "alone" / "heads_comparison.html").read_text()
    again = Results.read(tmp_path / "alone" / "heads_results")
    assert scores_of(again, "vae_kl@own") == scores[2]
    from pipelines.config import read_config
    from pipelines.detect.config import RunConfig
    from pipelines.training.folds import share_training
    from preprocessing.files import read_json

    donor = tmp_path / "vae_kl" / "repeat-0_fold-1"
    fresh = tmp_path / "fresh"
    config = read_config(RunConfig, donor / "config.yaml")
    digest = read_json(donor / "run.json")["data_digest"]
    fresh.mkdir()
    share_training(config, "of other data", fresh, [donor])
    assert not any(fresh.iterdir())
    share_training(config, digest, fresh, [donor])
    assert (fresh / "checkpoints" / "last.pt").is_file()


def test_a_second_preprocess_reads_no_file_that_kept_its_size_and_time(
    folder, data, tmp_path, monkeypatch
):
    """A file of the same size and time is not read.

    A new time alone sends for the bytes, and only other bytes for new work.
    """
    import os
    import shutil

    import pipelines.cohort.store as module

    own = tmp_path / "in"
    out = tmp_path / "out"
    shutil.copytree(folder / "images", own)
    command = [
        "preprocess",
        "--input",
        own,
        "--modality",
        "picture",
        "--out",
        out,
        "grid=[48,48,1]",
    ]
    assert run(*command) == 0
    digests = {r["id"]: r["digest"] for r in read_table(out / "scans.tsv")}
    read = []
    made = []
    digest = module.file_digest
    prepare = module.prepare
    monkeypatch.setattr(module, "file_digest", lambda p: read.append(p.stem) or digest(p))
    monkeypatch.setattr(
        module, "prepare", lambda scan, recipe: made.append(scan.id) or prepare(scan, recipe)
    )
    assert run(*command) == 0 and read == made == []
    os.utime(own / "03.png", ns=(1, 1))
    assert run(*command) == 0 and read == ["03"] and made == []
    shutil.copyfile(own / "05.png", own / "04.png")
    assert run(*command) == 0 and set(read) == {"03", "04"} and made == ["04"]
    assert {r["id"]: r["digest"] for r in read_table(out / "scans.tsv")} == digests | {
        "04": digests["05"]
    }
    monkeypatch.setattr(module, "prepare", lambda *a: pytest.fail("prepared again"))
    assert run(*command) == 0


def test_the_quality_page_of_many_scans_shows_the_flagged_and_a_sample(
    folder, tmp_path, monkeypatch
):
    import pipelines.pages.quality as module
    from preprocessing import quality

    monkeypatch.setattr(module, "SHOWN", 8)
    original = quality.flags
    monkeypatch.setattr(
        quality,
        "flags",
        lambda checks: [*original(checks), "odd"] if len(seen.append(1) or seen) in (7, 20) else [],
    )
    seen = []
    out = tmp_path / "out"
    assert (
        run(
            "preprocess",
            "--input",
            folder / "images",
            "--modality",
            "picture",
            "--out",
            out,
            "grid=[48,48,1]",
        )
        == 0
    )
    flagged = [r["id"] for r in read_table(out / "scans.tsv") if r["flags"]]
    text = (out / "quality.html").read_text()
    shown = [i for i in range(N) if f"<h2>{i:02d}</h2>" in text]
    assert len(flagged) == 2 and len(shown) == 8 and set(map(int, flagged)) <= set(shown)
    assert f"{N} scans preprocessed" in text and "8 of the scans are shown" in text
    assert len(read_table(out / "slices" / "index.tsv")) == N


def test_a_deleted_run_alone_is_made_again(compared):
    import shutil

    out, arguments = compared
    before = {p: p.stat().st_mtime_ns for p in out.rglob("weights.pt")}
    scores = scores_of(Results.read(out / "heads_results"), "pca")
    shutil.rmtree(out / "pca" / "repeat-1_fold-2")
    assert run("compare", *arguments) == 0
    after = {p: p.stat().st_mtime_ns for p in out.rglob("weights.pt")}
    assert {p for p in after if after[p] != before.get(p)} == {
        out / "pca" / "repeat-1_fold-2" / "weights.pt"
    }
    again = scores_of(Results.read(out / "heads_results"), "pca")
    assert again == pytest.approx(scores, rel=1e-5)


def test_a_corrected_mask_is_measured_anew_and_panels_are_those_of_the_page(compared, folder):
    """A radiologist mends a mask and runs the same line. No old figure or picture may answer."""
    out, arguments = compared
    where = out / "intensity" / "repeat-0_fold-0" / "evaluation" / "heads"
    case = next(
        s for s in json.loads((where / "evaluation.json").read_text())["scans"] if s["truth_voxels"]
    )
    path = folder / "masks" / f"{case['id']}.png"
    before = path.read_bytes()
    (where / "cases" / "9_left-over.png").write_bytes(b"")
    try:
        Image.fromarray(np.pad(np.full((3, 3), 255, np.uint8), ((20, 21), (15, 18)))).save(path)
        assert run("compare", *arguments) == 0
        now = next(
            s
            for s in json.loads((where / "evaluation.json").read_text())["scans"]
            if s["id"] == case["id"]
        )
        assert now["truth_voxels"] == 9 != case["truth_voxels"]
        assert not (where / "cases" / "9_left-over.png").exists() and any(
            (where / "cases").iterdir()
        )
    finally:
        path.write_bytes(before)
    assert run("compare", *arguments) == 0


def test_few_label_points_rest_on_the_labelled_split_alone(compared):
    """The best F1 over validation and tune, by hand; no test scan is in it."""
    out, _ = compared
    run_folder = out / "intensity" / "repeat-0_fold-0"
    points = json.loads((run_folder / "threshold.json").read_text())["points"]
    about = json.loads((run_folder / "run.json").read_text())
    splits = {r["id"]: r["split"] for r in read_table(run_folder / "splits.tsv")}
    assert (
        set(about["tune_scans"]) == {i for i, s in splits.items() if s == "tune"}
        and len(about["tune_scans"]) == 5
    )
    assert (
        "few-label" in points["few-label"]["rule"] and "5 labelled" in points["few-label"]["rule"]
    )
    assert (
        points["few-label"]["scan"]
        > max(s["score"] for s in json.loads((run_folder / "reference.json").read_text())["scans"])
        * 0.5
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--models", "zero pca", "--baseline", "pcaa"),
            "baseline 'pcaa' is not among the models zero, pca; did you mean 'pca'?",
        ),
        (("--models", "zero pcaa"), "unknown MODEL 'pcaa'"),
        (("--models", ""), "MODELS is empty"),
        (
            ("--models", "zero", "pca.model.n_components=3"),
            "expected <model>.<key>=<value>, with a model of all, zero",
        ),
        (
            ("--models", "zero", "--protocol", "kfolds"),
            "unknown PROTOCOL 'kfolds'; known: kfold, pictures, volumes; did you mean 'kfold'?",
        ),
        (
            ("--models", "zero", "--protocol", "kfold", "--folds", 20),
            "subjects with healthy scans cannot be cut into 20 folds",
        ),
        (
            ("--models", "pca", "all.image_size=[32,32]"),
            "model of pca: 16 healthy slices cannot give n_components=64; "
            "lower model.n_components.",
        ),
    ],
)
def test_comparisons_that_cannot_be_made_say_why(data, tmp_path, capsys, arguments, sentence):
    assert run("compare", "--data", data, "--out", tmp_path, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_a_group_in_two_folds_and_an_image_under_two_names_are_refused(data, tmp_path, capsys):
    rows = read_table(data / "scans.tsv")

    def train(splits):
        (tmp_path / "splits.tsv").write_text(
            "id\tsplit\n" + "".join(f"{i}\t{s}\n" for i, s in splits.items())
        )
        assert (
            run(
                "train",
                "--model",
                "zero",
                "--data",
                data,
                "--out",
                tmp_path / "run",
                "--splits",
                tmp_path / "splits.tsv",
            )
            == 2
        )
        return capsys.readouterr().err

    assert "subject 'a' is in two splits, 'train' and 'val' (scan '02')" in train(
        {"00": "train", "02": "val", "04": "val"}
    )
    assert "scan '99' is not in" in train({"00": "train", "99": "val"})
    assert "split 'trian', expected train, val, tune, test" in train({"00": "trian"})
    assert "abnormal scan '01' in split 'train'" in train({"01": "train", "04": "val"})
    table = data / "scans.tsv"
    text = table.read_text()
    try:
        digest = {r["id"]: r["digest"] for r in rows}
        table.write_text(text.replace(digest["06"], digest["04"]))
        assert "the same image, as '04' is in two splits, 'train' and 'val' (scan '06')" in train(
            {"04": "train", "06": "val"}
        )
    finally:
        table.write_text(text)
