"""Volumes: what the dataset gives and how maps come back.

And the 3-D cae and vae by the properties that define them.
"""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import nn

from models import create_model
from models.base import AnomalyModel
from models.parts import layers
from models.parts.randomness import generator
from pipelines.config import ConfigError, load_recipe
from pipelines.detect.build import build_model
from pipelines.detect.config import Augmentation, load_run_config
from pipelines.detect.detector import Detector, slicewise
from pipelines.detect.inputs import resize_volume
from pipelines.training.augment import STREAM, augment
from pipelines.training.data import SliceDataset
from pipelines.training.loop import tiles
from preprocessing import slices
from tests.conftest import case_of
from tests.shared import run

pytestmark = pytest.mark.usefixtures("no_figures")

SHAPE = (10, 12, 9)
SMALL = (5, 4, 3)  # blocks of 2 x 3 x 3
Z = (2, 3, 5, 6, 7)  # slices 0, 1, 4 and 8 hold no brain
CPU = torch.device("cpu")


def volume(seed=0):
    """Image with sixteenths, which float16 holds exactly, and a brain with holes."""
    rng = np.random.default_rng(seed)
    brain = np.zeros(SHAPE, bool)
    brain[1:9, 2:11, Z] = rng.random((8, 9, len(Z))) < 0.9
    return rng.integers(0, 17, SHAPE) / 16 * brain, brain


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    rows = []
    for seed, scan in enumerate(("b", "a")):
        image, brain = volume(seed)
        slices.write_arrays(folder, scan, image, brain, np.array(Z))
        rows += [{"scan": scan, "row": i, "z": z} for i, z in enumerate(Z)]
    slices.write_index(folder, rows[::-1])  # the order of the table does not count
    return folder


def test_an_item_is_the_scan_s_slices_in_their_places_resized(store):
    data = SliceDataset(store, ["a", "b"], SMALL, abnormal=["b"], depth=9)
    assert len(data) == 2
    for i, seed in ((0, 1), (1, 0)):
        image, brain = volume(seed)
        means = image.reshape(5, 2, 4, 3, 3, 3).mean((1, 3, 5))
        middle = brain[1::2, 1::3, 1::3]
        item = data[(i, 77)]
        np.testing.assert_allclose(item["image"], (means * middle)[None], atol=1e-6)
        np.testing.assert_array_equal(item["mask"], middle[None])
        assert (
            item["z"] == 0
            and item["seed"] == 77
            and item["label"] == i
            and data.data.scan_of(i) == "ab"[i]
        )


@pytest.mark.parametrize("size", [SMALL, SHAPE, (7, 5, 8)])
def test_training_and_inference_resize_volumes_alike(store, size):
    item = SliceDataset(store, ["b"], size, depth=9)[(0, 0)]
    image, mask = resize_volume(*volume(0), size)
    assert image.shape == mask.shape == (1, 1, *size)
    torch.testing.assert_close(image[0], item["image"], rtol=0, atol=1e-6)
    torch.testing.assert_close(mask[0], item["mask"], rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"flip": 0.5},
        {"rotate": 25},
        {"translate": 0.1},
        {"scale": 0.3},
        {"flip": 0.5, "rotate": 20, "scale": 0.2},
    ],
)
def test_augmentation_of_volumes_is_scipy_s_affine(change):
    """Measured on a smooth volume of unequal sides, applied by scipy.

    Flip, then shift, size and turns about three axes, in voxels.
    """
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((24, 20, 16)), 2)
    image = (
        torch.tensor((smooth - smooth.min()) / np.ptp(smooth), dtype=torch.float32)
        .expand(6, 1, 24, 20, 16)
        .clone()
    )
    mask = torch.zeros_like(image)
    mask[:, :, 4:19, 5:16, 3:14] = 1
    batch = {"image": image * mask, "mask": mask, "seed": torch.arange(6) + 11}
    a = Augmentation(intensity=0.3, **change)
    got = augment(batch, a)
    alone = augment({k: v[2:3] for k, v in batch.items()}, a)
    torch.testing.assert_close(alone["image"][0], got["image"][2], rtol=0, atol=0)
    mirrors = []
    for i in range(6):
        u = torch.rand(11, generator=generator(i + 11, STREAM)).double().numpy()
        v = 2 * u - 1
        mirrors.append(-1.0 if u[0] < a.flip else 1.0)
        turn = Rotation.from_euler(
            "XYZ", np.array([1, -1, 1]) * v[1:4] * a.rotate, degrees=True
        ).as_matrix()
        matrix = turn / (1 + a.scale * v[7:10])[:, None]
        shift = a.translate * v[4:7] * (24, 20, 16)
        matrix[0] = mirrors[-1] * matrix[0]
        shift[0] = mirrors[-1] * shift[0]
        centre = np.array([11.5, 9.5, 7.5])
        want, there = (
            ndimage.affine_transform(
                x[i, 0].double().numpy(),
                matrix,
                centre - matrix @ centre + shift,
                order=1,
                mode="grid-constant",
            )
            for x in (batch["image"], mask)
        )
        new_mask = got["mask"][i, 0].numpy()
        np.testing.assert_allclose(
            got["image"][i, 0], np.clip(want * (1 + 0.3 * v[10]), 0, 1) * new_mask, atol=3e-4
        )
        sure = (there < 0.01) | (there > 0.99)
        np.testing.assert_array_equal(new_mask[sure], there[sure].round())
    assert set(mirrors) == ({-1.0, 1.0} if a.flip else {1.0})


def test_patches_of_a_volume_are_cut_from_it_around_the_brain(store):
    data = SliceDataset(store, ["a"], SHAPE, patch_size=(4, 6, 4), depth=9)
    item = data[(0, 0)]
    windows = item["image"][0].unfold(0, 4, 1).unfold(1, 6, 1).unfold(2, 4, 1)
    items = [(0, seed) for seed in range(12)]
    batch = data.batch(items)
    twice = data.batch(items)
    assert batch["image"].shape == (12, 1, 4, 6, 4) and torch.equal(batch["image"], twice["image"])
    places = [(windows == one[0]).flatten(3).all(3).nonzero() for one in batch["image"]]
    assert all(len(p) == 1 for p in places) and len({tuple(p[0].tolist()) for p in places}) > 5
    for (place,), mask in zip(places, batch["mask"], strict=True):
        inner = all(0 < p < n - s for p, n, s in zip(place.tolist(), SHAPE, (4, 6, 4), strict=True))
        assert not inner or mask[0, 2, 3, 2] == 1  # its centre is brain, unless the border is near


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_that_fits_its_patches_alone_learns_from_slices_and_volumes(
    store, tmp_path, dims
):
    """A dense code takes patches of one size: in training, validation and pictures of the log."""
    from lightning_fabric import Fabric

    from pipelines.training.loop import fit

    sides = [
        f"image_size={list(SHAPE[:dims])}",
        f"patch_size={[4, 8, 4][:dims]}",
        f"model.spatial_dims={dims}",
    ]
    quick = [
        "model.channels=[3,5]",
        "loop.loader_workers=0",
        "loop.batch_size=2",
        "stages.train.max_epochs=2",
    ]
    c = load_run_config("cae", sides + quick)
    model = build_model(c)
    before = [p.clone() for p in model.parameters()]
    sets = [SliceDataset(store, [scan], c.image_size, None, c.patch_size, depth=9) for scan in "ab"]
    fit(model, c, *sets, Fabric(accelerator="cpu", devices=1), tmp_path)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def config(size, patch=None):
    return load_run_config("vae", [f"image_size={list(size)}", "model.spatial_dims=3"]).model_copy(
        update={"patch_size": patch}
    )


def test_a_map_comes_back_to_the_grid_of_the_volume():
    """By hand: a network that answers with its input.

    On a half-sized grid a linear ramp keeps its values away from the ends.
    """
    image, brain = volume()
    seen = []

    def network(x, mask, z):
        seen.append((x.shape, mask.shape, z.tolist()))
        return x * mask

    np.testing.assert_allclose(
        slicewise(network, config(SHAPE), image, brain, CPU), image, atol=1e-6
    )
    assert seen == [((1, 1, *SHAPE), (1, 1, *SHAPE), [0])]
    ramp = np.broadcast_to(np.arange(16) / 16, (8, 12, 16)).astype(np.float32)
    got = slicewise(network, config((4, 6, 8)), ramp, np.ones_like(ramp, bool), CPU)
    np.testing.assert_allclose(got[..., 1:-1], ramp[..., 1:-1], atol=1e-6)


def test_patchwise_maps_of_a_voxelwise_network_are_those_of_the_volume():
    image, brain = volume()
    one, two = (
        slicewise(lambda x, mask, z: x * mask + 1, config(SHAPE, p), image, brain, CPU)
        for p in (None, (4, 6, 4))
    )
    np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("patch", [None, (4, 6, 4)])
def test_a_volume_has_one_score_of_the_model(patch):
    class Constant(AnomalyModel):
        def anomaly_map(self, x, mask, z=None):
            return x * mask

        def score(self, x, mask, z=None):
            assert x.dim() == 5 and z.tolist() == [0] * len(x)
            return torch.full((len(x),), 3.5)

    image, brain = volume()
    plain = config(SHAPE, patch)
    detector = Detector(Constant(), plain, CPU)
    found, score = detector.map_and_scores(image, brain)
    np.testing.assert_allclose(score, 3.5 * brain, atol=1e-5)
    np.testing.assert_array_equal(found, detector.atlas_map(image, brain))


def test_the_log_shows_the_middle_slice_of_volumes():
    x = torch.rand(2, 1, 4, 6, 5)
    assert torch.equal(tiles([x]), tiles([x[..., 2]]))


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (
            "vae",
            ["image_size=[64,64,64]"],
            r"image_size \[64, 64, 64\] has 3 numbers and model.spatial_dims of 'vae' is 2; "
            r"make them agree\.$",
        ),
        (
            "cae",
            ["model.spatial_dims=3"],
            r"image_size \[64, 64\] has 2 numbers and model.spatial_dims of 'cae' is 3; "
            r"make them agree\.$",
        ),
        (
            "vae_cr",
            ["image_size=[64,64,64]"],
            r"image_size \[64, 64, 64\] asks for volumes, and 'vae_cr' works on slices alone; "
            r"give two num",
        ),
        ("pca", ["image_size=[64,64,64]"], "'pca' works on slices alone"),
        (
            "vae",
            ["image_size=[64,64,64]", "model.spatial_dims=3", "patch_size=[32,32]"],
            r"patch_size \[32, 32\] and image_size \[64, 64, 64\]",
        ),
        (
            "vae",
            ["model.spatial_dims=4"],
            r"model of vae: 'spatial_dims': input should be 2 or 3, got 4",
        ),
        (
            "vae",
            ["image_size=[48,48,48]", "model.spatial_dims=3"],
            r"\(48, 48, 48\) must be divisible by 32",
        ),
        (
            "cae",
            ["image_size=[64,64,64]", "model.spatial_dims=3", "reference.kind=z"],
            r"reference.kind and reference.symmetry compare places of slices; "
            r"they do not go with three numbers in image_size\.$",
        ),
        ("vae_cr", ["model.spatial_dims=3"], "unknown key 'spatial_dims'"),
        (
            "multitask",
            ["image_size=[128,64]"],
            r"model of multitask: image_size \(128, 64\): quarter turns need square slices$",
        ),
    ],
)
def test_dimensions_that_disagree_are_refused_at_build(model, changes, message):
    with pytest.raises(ConfigError, match=message):
        build_model(load_run_config(model, changes))


def make(name, **arguments):
    torch.manual_seed(0)
    return create_model(
        name,
        **(
            {"channels": (3, 5), "latent": 4, "image_size": (8, 12, 4), "spatial_dims": 3}
            | arguments
        ),
    )


def batch(n=3):
    torch.manual_seed(1)
    image = torch.rand(n, 1, 8, 12, 4, dtype=torch.float64)
    return {"image": image, "mask": torch.ones_like(image), "seed": torch.arange(n)}


def test_the_loss_of_the_3d_vae_is_the_negative_elbo_per_voxel():
    model = make("vae", beta=0.7).double().eval()
    b = batch()
    mean, log_variance = model.encode(b["image"])
    assert mean.shape == (3, 4, 1, 1, 1)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    kl = torch.distributions.kl_divergence(
        normal, torch.distributions.Normal(torch.zeros_like(mean), 1)
    ).sum((1, 2, 3, 4))
    error = (model.decoder(mean) - b["image"]).square().sum((1, 2, 3, 4))
    torch.testing.assert_close(model.loss(b)["loss"], (error + 0.7 * kl).mean() / (8 * 12 * 4))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("vae", {}), ("cae", {}), ("cae", {"bottleneck": "spatial", "channels": (3, 5, 4)})],
)
def test_every_voxel_of_a_volume_can_reach_every_other_through_the_code(name, arguments):
    """Slices of a 2-D network would not see each other.

    A spatial code sees as far as its kernels do.
    """
    model = make(name, **({"image_size": (8, 16, 8)} | arguments)).double().eval()
    x = torch.rand(1, 1, 8, 16, 8, dtype=torch.float64)
    moved = x.clone()
    moved[0, 0, 3, 8, 2] += 1
    with torch.no_grad():
        changed = (model.reconstruct(moved) - model.reconstruct(x))[0, 0].abs()
    dense = arguments.get("bottleneck") != "spatial"
    assert changed[0, 0, 0] > 0 or not dense
    assert (changed.amax((0, 1)) > 0).all() and (changed.amax((1, 2)) > 0).all()


def plain(channels, latent, size):
    """The 2-D network of the vae in torch's own parts."""

    def block(convolution, width):
        return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.LeakyReLU(0.1))

    downs = [
        block(nn.Conv2d(a, b, 4, 2, 1, bias=False), b)
        for a, b in itertools.pairwise((1, *channels))
    ]
    last = nn.Conv2d(channels[-1], 2 * latent, size)
    first = nn.ConvTranspose2d(latent, channels[-1], size)
    way = (channels[-1], *reversed(channels[:-1]))
    ups = [
        block(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), b) for a, b in itertools.pairwise(way)
    ]
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(*downs, last),
            "decoder": nn.Sequential(first, *ups, nn.ConvTranspose2d(channels[0], 1, 4, 2, 1)),
        }
    )


def test_in_two_dimensions_names_and_numbers_are_what_they_were():
    torch.manual_seed(5)
    ours = create_model("vae", channels=(4, 6, 8), latent=5, image_size=(16, 24)).train()
    torch.manual_seed(5)
    theirs = plain((4, 6, 8), 5, (2, 3)).train()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.rand(3, 1, 16, 24)
    for mode in (True, False):
        mean = theirs.train(mode)["encoder"](x).chunk(2, 1)[0]
        assert torch.equal(ours.train(mode).reconstruct(x), theirs["decoder"](mean))
    for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("dims", [2, 3])
def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(monkeypatch, dims):
    """Both halves of the batch hold the same numbers.

    So the sum over processes is twice the own one.
    """
    kinds = {2: (layers.BatchNorm2d, nn.BatchNorm2d), 3: (layers.BatchNorm3d, nn.BatchNorm3d)}[dims]
    ours, theirs = (kind(5) for kind in kinds)
    for norm in (ours, theirs):
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
    half = torch.randn(3, 5, 4, 6, 2)[(...,) if dims == 3 else (..., 0)] * 3 + 1
    want = theirs(torch.cat([half, half]))[:3]
    torch.testing.assert_close(
        kinds[0](5)(half), kinds[1](5)(half), rtol=0, atol=0
    )  # alone: torch's own
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    import torch.distributed.nn.functional as functional

    monkeypatch.setattr(functional, "all_reduce", lambda t: 2 * t)
    torch.testing.assert_close(ours(half), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


# the whole chain


QUICK = [
    "model.spatial_dims=3",
    "image_size=[32,32,24]",
    "model.channels=[8,16,16]",
    "model.latent=32",
    "loop.batch_size=4",
]
QUICK += [
    "loop.loader_workers=0",
    "loop.accelerator=cpu",
    "stages.train.lr=3e-3",
    "postprocess.rim_mm=6",
]
QUICK += [f"augmentation.{k}=0" for k in ("flip", "rotate", "translate", "scale")]
BALL = np.array([18.0, -26.0, 14.0])  # mm, in healthy tissue
RADIUS = 11.0  # mm


def head(rng, step, ball=False):
    """An ellipsoid of 90 x 112 x 80 mm with a ventricle and one nucleus, on voxels of `step` mm.

    Each has its own size, brightness and grain.
    """
    import nibabel as nib

    shape = tuple(int(n // step) for n in (116, 140, 108))
    affine = np.diag([step] * 3 + [1.0])
    affine[:3, 3] = -step * (np.array(shape) - 1) / 2
    mm = np.moveaxis(np.indices(shape), 0, -1) * step + affine[:3, 3]

    def ellipsoid(centre, axes):
        return (((mm - centre) / axes) ** 2).sum(-1) < 1

    size = rng.uniform(0.98, 1.02)
    data = np.where(ellipsoid((0, 0, 0), np.array([45, 56, 40]) * size), 100.0, 0)
    data[ellipsoid((0, -6, 4), np.array([14, 26, 9]) * rng.uniform(0.9, 1.1))] = 45
    data[ellipsoid((-20, 14, -6), np.array([11, 15, 10]) * rng.uniform(0.9, 1.1))] = 130
    truth = ((mm - BALL) ** 2).sum(-1) < RADIUS**2
    data[truth & ball] = 185
    data *= rng.uniform(0.9, 1.1) * (1 + 0.02 * rng.normal(size=shape))
    return nib.Nifti1Image(data.astype(np.float32), affine), nib.Nifti1Image(
        truth.astype(np.uint8), affine
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Nine heads on voxels of 4 mm, preprocessed to an atlas head of their kind.

    And a 3-D vae that learned five of them.
    """
    import nibabel as nib

    from preprocessing.files import write_table

    root = tmp_path_factory.mktemp("heads")
    rng = np.random.default_rng(0)
    nib.save(head(rng, 2.0)[0], root / "atlas.nii.gz")
    rows = []
    for i, split in enumerate(["train"] * 5 + ["val"] * 2 + ["test"] * 2):
        image, truth = head(rng, 4.0, ball=i == 8)
        nib.save(image, root / f"{i}.nii.gz")
        nib.save(truth, root / f"{i}_truth.nii.gz")
        label = "abnormal" if i == 8 else "healthy"
        rows.append(
            {
                "image": f"{i}.nii.gz",
                "id": str(i),
                "split": split,
                "label": label,
                "mask": f"{i}_truth.nii.gz" if i == 8 else "",
            }
        )
    write_table(root / "table.tsv", rows)
    recipe = [
        "brain=none",
        "grid=[null,null,null]",
        "limits.brain_ml=[200,700]",
        "limits.min_information=0",
        "limits.min_pose_ratio=0",  # a ball lies alike in every pose
        "registration_spacing=6",
    ]
    given = (
        "--input",
        root / "table.tsv",
        "--template",
        root / "atlas.nii.gz",
        "--out",
        root / "data",
    )
    assert run("preprocess", "--modality", "t1", *given, *recipe) == 0
    assert (
        run(
            "train",
            "--model",
            "vae",
            "--data",
            root / "data",
            "--out",
            root / "run",
            *QUICK,
            "stages.train.max_epochs=60",
        )
        == 0
    )
    return root


def test_a_3d_vae_marks_a_bright_ball_in_a_raw_scan(trained):
    import nibabel as nib

    assert (
        run(
            "infer",
            "--run",
            trained / "run",
            "--input",
            trained / "8.nii.gz",
            "--out",
            trained / "out",
        )
        == 0
    )
    scan = nib.load(trained / "8.nii.gz")
    found = nib.load(trained / "out/8_map.nii.gz")
    mask = nib.load(trained / "out/8_mask.nii.gz")
    assert found.shape == scan.shape and np.array_equal(found.affine, scan.affine)
    truth = nib.load(trained / "8_truth.nii.gz").get_fdata() > 0
    values = found.get_fdata()
    brain = scan.get_fdata() > 20
    assert values[truth].mean() > 3 * values[brain & ~truth].mean()
    assert truth[np.unravel_index(values.argmax(), values.shape)]
    assert set(np.unique(mask.get_fdata())) == {0, 1} and mask.get_fdata()[truth].mean() > 0.5


def test_volumes_are_evaluated_and_compared_like_slices(trained):
    import json

    assert (
        run(
            "evaluate",
            "--run",
            trained / "run",
            "--data",
            trained / "data",
            "--out",
            trained / "evaluation",
        )
        == 0
    )
    result = json.loads((trained / "evaluation" / "evaluation.json").read_text())
    scores = {c["id"]: c["score"] for c in result["scans"]}
    assert scores["8"] > 1.2 * scores["7"] and result["summary"]["oracle_dice_pooled"] > 0.6
    out = trained / "compared"
    settings = [
        f"vae.{s}" for s in (*QUICK, "stages.train.max_epochs=2", "calibration.score=model")
    ]
    assert (
        run(
            "compare",
            "--data",
            trained / "data",
            "--models",
            "intensity vae",
            "--seeds",
            1,
            "--out",
            out,
            *settings,
        )
        == 0
    )
    assert {"intensity", "vae"} <= {
        m if isinstance(m, str) else m["model"]
        for m in json.loads((out / "data_comparison.json").read_text())["models"]
    }
    for rows in (json.loads(next((out / "vae").rglob("evaluation.json")).read_text())["slices"],):
        assert (
            len(rows) > 20 and len({(r["id"].split("/")[0], r["score"]) for r in rows}) == 2
        )  # the model gave each scan one score


# neighbouring slices as channels


def test_neighbours_are_the_slices_so_far_away_and_nothing_where_none_is_stored(store):
    data = slices.SliceStore(store)
    for i in range(len(data)):
        image, _ = volume("ba".index(data.scan_of(i)))
        z = data[i]["z"]
        got = data.batch([i], (-1, 2))["image"][0]
        want = [image[:, :, k] if k in Z else np.zeros(SHAPE[:2]) for k in (z, z - 1, z + 2)]
        np.testing.assert_array_equal(got, np.stack(want))


def test_training_and_inference_see_the_same_neighbours(store):
    """The network's input in inference is the item of training.

    A network that gives back its second channel gives that slice.
    """
    from pipelines.detect.detector import network_batches

    c = load_run_config("vae", ["around=[-1,2]", "image_size=[5,4]"])
    image, brain = volume(1)
    ((rows, x, mask, _),) = network_batches(c, image, brain, CPU)
    data = SliceDataset(store, ["a"], (5, 4), around=(-1, 2))
    items = {int(data[(i, 0)]["z"]): data[(i, 0)] for i in range(len(data))}
    for row, own, inside in zip(rows.tolist(), x, mask, strict=True):
        torch.testing.assert_close(own, items[row]["image"], atol=1e-6, rtol=0)
        torch.testing.assert_close(inside, items[row]["mask"], atol=0, rtol=0)
    full = load_run_config("vae", ["around=[-1,2]", f"image_size={list(SHAPE[:2])}"])
    second = slicewise(lambda x, mask, z: x[:, 1:2], full, image, brain, CPU)
    for z in Z[1:]:
        before = image[:, :, z - 1] if z - 1 in Z else np.zeros(SHAPE[:2])
        np.testing.assert_allclose(second[:, :, z], before * brain[:, :, z], atol=1e-6)


def test_a_model_of_neighbours_has_as_many_channels_and_reconstructs_its_own_slice():
    recipe = load_recipe("t1")
    c = load_run_config("vae", ["around=[-3,3]", "image_size=[32,32]", "model.channels=[4,8]"])
    model = build_model(c, recipe)
    assert model.reconstruct(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    for wrong in ("around=[0,1]", "around=[2,2]"):
        with pytest.raises(ConfigError, match="expected the distances of other slices, each once"):
            build_model(load_run_config("vae", [wrong]), recipe)


def test_neighbours_of_pictures_are_refused(tmp_path):
    from pipelines.training.fit import grid_depth

    nib.save(nib.Nifti1Image(np.zeros((4, 4, 1), np.float32), np.eye(4)), tmp_path / "p.nii")
    with pytest.raises(
        ConfigError,
        match=r"around=\[-1, 1\] asks for volumes, and .* holds pictures; leave that out\.",
    ):
        case = case_of("p", tmp_path, preproc="p.nii")
        grid_depth(tmp_path, case, load_run_config("vae", ["around=[-1,1]"]))
