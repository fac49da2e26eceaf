"""A run as a MONAI bundle: where Norma cannot be imported it gives Norma's map and mask."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from scipy import ndimage

from evaluation import postprocess
from models.base import AnomalyModel
from pipelines.config import load_recipe, write_yaml
from pipelines.detect.config import load_run_config
from pipelines.detect.detector import Detector, NativeMap, cut
from pipelines.detect.folder import seal
from pipelines.detect.ready import ready_run
from pipelines.detect.run import load_run
from pipelines.export import bundle_scoring as scoring
from pipelines.export import monai_bundle, traced
from pipelines.export.monai_bundle import MAP_TOLERANCE, atlas_grid, inference
from preprocessing.files import read_json, write_json

GRID = ["grid=[44,52,36]"]  # the middle of the atlas
OWN = {"torch", "numpy", "nibabel", "monai"}
PROJECT = ["norma", "models.base", "pipelines", "evaluation", "preprocessing"]

# What a user's process does in the folder of a bundle, with no network.
ELSEWHERE = f"""
import importlib.util, socket, sys
for name in {PROJECT}:
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    assert found is None, f"{{name}} can be imported here"

def refuse(*_):
    raise OSError("no network in this test")
socket.socket.connect = refuse

from monai.bundle import run, verify_metadata, verify_net_in_out
meta = "configs/metadata.json"
config = "configs/inference.json"
verify_metadata(meta_file=meta, filepath="configs/metadata_schema.json")
verify_net_in_out("network", meta_file=meta, config_file=config, device="cpu")
run(meta_file=meta, config_file=config, dataset_dir=sys.argv[1], output_dir=sys.argv[2])
assert not set(sys.modules) & set({PROJECT})
"""


def made_scan(shape, channels=0):
    """Noise in an ellipsoid that the array border cuts off, with two bright balls in it."""
    source = np.random.default_rng(3)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    brain = axes[0] ** 2 + (axes[1] / 0.9) ** 2 + (axes[2] / 1.1) ** 2 < 1
    right = (axes[0] - 0.4) ** 2 + axes[1] ** 2 + axes[2] ** 2 < 0.06
    left = (axes[0] + 0.4) ** 2 + axes[1] ** 2 + axes[2] ** 2 < 0.06
    balls = 0.4 * right + 0.3 * left
    noise = source.random((*shape, channels) if channels else shape)
    noise = ndimage.gaussian_filter(noise, 2, axes=(0, 1, 2))
    noise = (noise - noise.min()) / np.ptp(noise)
    inside, bright = (v[..., None] if channels else v for v in (brain, balls))
    return np.clip((0.6 * noise + bright) * inside, 0, 1).astype(np.float32), brain


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    """A run whose point drops some components and keeps others, its scan, its bundle and zip."""
    from pipelines import export_bundle

    base = tmp_path_factory.mktemp("export")
    run_dir = shutil.copytree(tiny_run, base / "run")
    (run_dir / "recipe.yaml").write_text(write_yaml(load_recipe("t1", GRID)))
    seal(run_dir)
    run = load_run(run_dir, "cpu")
    grid = atlas_grid(run.recipe)
    image, brain = made_scan(grid.shape)
    found = run.detector.atlas_map(image, brain)

    level = float(np.quantile(found[brain], 0.95))
    peaks = postprocess.strengths(
        postprocess.binarise(found, brain, (1, 1, 1), level, 2.0, 100.0), found, (1, 1, 1)
    )
    assert len(peaks) > 1
    stored = read_json(run_dir / "threshold.json")
    stored["points"]["quantile"] |= {"voxel": level, "component": float(np.mean(peaks))}
    write_json(run_dir / "threshold.json", stored | {"value": level, "voxel": level})
    seal(run_dir)

    prepared = base / "prepared" / "sub-01"
    prepared.mkdir(parents=True)
    files = {"desc-preproc_T1w": image, "desc-brain_mask": brain.astype(np.uint8)}
    for name, data in files.items():
        nib.save(nib.Nifti1Image(data, grid.affine), prepared / f"sub-01_{name}.nii.gz")

    arguments = ["--run", str(run_dir), "--out", str(base / "t1_bundle"), "--zip"]
    export_bundle.main(export_bundle.build_parser().parse_args(arguments))
    return SimpleNamespace(
        run=load_run(run_dir, "cpu"),
        image=image,
        brain=brain,
        grid=grid,
        prepared=prepared.parent,
        bundle=base / "t1_bundle",
    )


@pytest.fixture(scope="module")
def results(exported, tmp_path_factory):
    """The folder that `monai.bundle run` wrote, in a process without Norma."""
    out = tmp_path_factory.mktemp("elsewhere")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(exported.prepared), str(out)],
        cwd=exported.bundle,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sub-01: " in done.stdout
    return out


def test_the_bundle_gives_norma_s_map_where_norma_is_not(exported, results):
    file = nib.load(results / "sub-01_map.nii.gz")
    expected = exported.run.detector.atlas_map(exported.image, exported.brain)
    assert np.allclose(file.affine, exported.grid.affine)
    assert expected.max() > exported.run.point().voxel
    apart = np.abs(file.get_fdata() - expected).max()
    assert apart < MAP_TOLERANCE * exported.run.point().voxel


def test_its_mask_is_norma_s_cut_at_the_operating_point(exported, results):
    run = exported.run
    expected = run.detector.atlas_map(exported.image, exported.brain)
    native = NativeMap(expected, exported.brain, exported.grid)
    every = run.point().model_copy(update={"component": None})
    marked = cut(native, run.point(), run.config.postprocess)
    assert 0 < marked.sum() < cut(native, every, run.config.postprocess).sum()
    file = nib.load(results / "sub-01_mask.nii.gz")
    assert np.array_equal(np.asarray(file.dataobj), marked)


def test_the_bundle_holds_what_monai_asks_for(exported):
    names = {str(p.relative_to(exported.bundle)) for p in exported.bundle.rglob("*.*")}
    docs = {"docs/README.md", "docs/data_license.txt"}
    models = {"models/model.pt", "models/model.ts", "models/model.onnx"}
    configs = {"configs/metadata.json", "configs/inference.json", "configs/metadata_schema.json"}
    assert names >= docs | models | configs | {"scripts/scoring.py", "scripts/__init__.py"}
    assert (exported.bundle / "LICENSE").is_file()
    readme = (exported.bundle / "docs/README.md").read_text()
    assert "## What it learned from" in readme and "$" not in readme

    network = scoring.Network(exported.bundle / "models/model.ts")
    weights = torch.load(exported.bundle / "models/model.pt", weights_only=True)
    assert not network.load_state_dict(weights).missing_keys
    with zipfile.ZipFile(exported.bundle.with_suffix(".zip")) as file:
        assert {f"t1_bundle/{name}" for name in names} <= set(file.namelist())


def test_metadata_without_a_needed_key_are_refused(exported, tmp_path):
    from monai.bundle import verify_metadata

    metadata = read_json(exported.bundle / "configs/metadata.json")
    del metadata["network_data_format"]["outputs"]["pred"]["dtype"]
    write_json(tmp_path / "metadata.json", metadata)
    schema = exported.bundle / "configs/metadata_schema.json"
    with pytest.raises(ValueError, match="'dtype' is a required property"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema))


def test_onnx_and_torchscript_give_the_model_s_map(exported):
    source = torch.Generator().manual_seed(5)
    image = torch.rand((3, 1, 32, 32), generator=source)
    brain = torch.zeros(3, 1, 32, 32)
    brain[::2, :, 4:25, 7:30] = 1  # none in the second slice
    expected = exported.run.model.anomaly_map(image * brain, brain).detach()
    assert expected.std() > 0.01

    network = scoring.Network(exported.bundle / "models/model.ts")
    assert torch.allclose(network(image * brain, brain), expected, atol=1e-5)
    session = onnxruntime.InferenceSession(exported.bundle / "models/model.onnx")
    names = [given.name for given in session.get_inputs()]
    for i in range(3):
        given = {"image": (image * brain)[i : i + 1], "brain": brain[i : i + 1]}
        found = session.run(None, {name: given[name].numpy() for name in names})[0]
        assert np.allclose(found[0], expected[i], atol=1e-5)


class ByPlace(AnomalyModel):
    """A map that shows channels, places and the brain."""

    def anomaly_map(self, x, mask, z=None):
        weights = torch.arange(1.0, x.shape[1] + 1).view(-1, *[1] * (x.dim() - 2))
        place = z.view(-1, *[1] * (x.dim() - 1)) / 20
        return ((x * weights).sum(1, keepdim=True) + place) * mask

    def forward(self, image, brain, place):
        return self.anomaly_map(image, brain, place)


@pytest.mark.parametrize(
    ("settings", "channels"),
    [
        (["image_size=[20,28]", "plane=coronal", "around=[-2,3]"], 0),
        (["image_size=[24,20]", "plane=sagittal", "postprocess.rim_mm=0"], 2),
        (["image_size=[16,24,20]", "postprocess.median=3"], 0),
        (["image_size=[36,44]", "postprocess.median=0", "postprocess.rim_mm=1.5"], 0),
    ],
)
def test_every_way_to_see_a_scan_is_norma_s(settings, channels):
    config = load_run_config("zero", settings)
    recipe = load_recipe("t1", GRID)
    point = SimpleNamespace(voxel=0.5, component=None, strength="peak")
    values = inference(SimpleNamespace(config=config, recipe=recipe), point)["scorer"]
    assert values.pop("_target_") == "scripts.scoring.Scorer"
    image, brain = made_scan((44, 52, 36), channels)

    model = ByPlace()
    found = scoring.Scorer(**values | {"network": model}).map(image, brain)
    expected = Detector(model, config, torch.device("cpu")).atlas_map(image, brain)
    assert expected.max() > 0.5
    assert np.allclose(found, expected, atol=1e-6)


def test_a_bundle_of_other_maps_is_not_kept(exported, tmp_path, monkeypatch):
    case = SimpleNamespace(id="sub-01", image=exported.image, brain=exported.brain)
    case.grid = exported.grid
    monkeypatch.setattr(monai_bundle, "load", lambda found: found)
    assert monai_bundle.check_bundle(exported.run, exported.bundle, [case]) < 1e-5

    folder = shutil.copytree(exported.bundle, tmp_path / "bundle")
    settings = read_json(folder / "configs/inference.json")
    settings["scorer"]["rim_mm"] = 2.0
    write_json(folder / "configs/inference.json", settings)
    with pytest.raises(ValueError, match="the bundle's map of sub-01 differs"):
        monai_bundle.check_bundle(exported.run, folder, [case])


def test_components_are_those_of_scipy():
    marked = np.random.default_rng(1).random((17, 13, 11)) < 0.06
    voxels = np.argwhere(marked)
    labels = scoring.components(voxels, marked.shape)
    expected, count = ndimage.label(marked, np.ones((3, 3, 3)))
    assert len(np.unique(labels)) == count > 10
    pairs = {*zip(labels.tolist(), expected[marked].tolist(), strict=True)}
    assert len(pairs) == count  # one to one
    assert len(scoring.components(np.zeros((0, 3), int), marked.shape)) == 0


@pytest.mark.parametrize("radius", [0, 1, 1.5, 2, 3])
def test_growth_and_closing_are_by_distance(radius):
    mask = np.random.default_rng(2).random((15, 12, 14)) < 0.03
    by_distance = ndimage.distance_transform_edt(~mask) <= radius
    assert np.array_equal(scoring.grown(mask, radius), by_distance)

    wide = np.pad(mask, 5)
    wide = ndimage.distance_transform_edt(~wide) <= radius
    shut = ndimage.distance_transform_edt(wide) > radius
    assert np.array_equal(scoring.closed(mask, radius), shut[5:-5, 5:-5, 5:-5])


def test_the_median_is_scipy_s():
    values = np.random.default_rng(4).random((9, 12, 7)).astype(np.float32)
    inside = values > 0.3
    expected = np.where(inside, ndimage.median_filter(values, 5, mode="nearest"), 0)
    assert np.array_equal(scoring.smoothed(values, inside, 5), expected)


def test_a_component_may_count_by_its_mass():
    values, brain = made_scan((30, 24, 20))
    settings = {"image_size": (8, 8), "grid": {}, "voxel": 0.45, "strength": "mass"}
    scorer = scoring.Scorer(ByPlace(), **settings, component=0.01, min_volume_mm3=20)
    marked = postprocess.binarise(values, brain, (1, 1, 1), 0.45, 2.0, 20)
    masses = postprocess.strengths(marked, values, (1, 1, 1), 0.45, "mass")
    assert (masses > 0.01).any() and (masses <= 0.01).any()
    expected = postprocess.keep_strong(marked, masses, 0.01)
    assert np.array_equal(scorer.mask(values, brain), expected)


def test_the_scoring_code_needs_nothing_of_norma():
    with open(scoring.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    tops = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            tops |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            tops.add(node.module.partition(".")[0])
    assert tops - OWN <= sys.stdlib_module_names


@pytest.mark.parametrize("name", ["t1", "ct_atlas"])
def test_a_ready_made_run_can_be_exported(name, tmp_path):
    traced.write_torchscript(load_run(ready_run(name), "cpu"), tmp_path / "model.ts")


class ByChance(ByPlace):
    def anomaly_map(self, x, mask, z=None):
        return torch.rand_like(mask) * mask


class ByWhatItSaw(ByPlace):
    def anomaly_map(self, x, mask, z=None):
        return mask * float(x.sum())


@pytest.mark.parametrize("model", [ByChance, ByWhatItSaw])
def test_a_model_that_a_trace_does_not_hold_is_refused(model, tmp_path):
    config = load_run_config("zero", ["image_size=[16,20]"])
    recipe = load_recipe("t1")
    run = SimpleNamespace(model=model(), config=config, recipe=recipe, folder="runs/t1/x")
    with pytest.raises(ValueError, match="runs/t1/x: model 'zero' cannot be exported as Torch"):
        traced.write_torchscript(run, tmp_path / "model.ts")


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(exported, command, tmp_path):
    done = command("export_bundle", "--run", exported.run.folder, "--out", exported.bundle)
    assert done.code == 2 and "is there already" in done.error

    run_dir = shutil.copytree(exported.run.folder, tmp_path / "run")
    text = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(text.replace("patch_size: null", "patch_size: [16, 16]"))
    seal(run_dir)
    done = command("export_bundle", "--run", run_dir, "--out", tmp_path / "made.zip")
    assert done.code == 2 and "its network sees patches" in done.error
    (run_dir / "config.yaml").write_text(text)
    (run_dir / "recipe.yaml").write_text(write_yaml(load_recipe("chest_ct")))
    seal(run_dir)
    done = command("export_bundle", "--run", run_dir, "--out", tmp_path / "made.zip")
    assert done.code == 2 and "it is of chests" in done.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_scans_on_another_grid_and_empty_folders_are_refused(exported, tmp_path):
    grid = {"shape": [44, 52, 36], "affine": np.eye(4).tolist()}
    (scan,) = scoring.find_scans(exported.prepared, ["T1w"])
    with pytest.raises(ValueError, match="not on the atlas grid of this bundle"):
        scoring.read_scan(scan, grid)
    with pytest.raises(FileNotFoundError, match="holds no prepared scan"):
        scoring.find_scans(tmp_path, ["T1w"])
