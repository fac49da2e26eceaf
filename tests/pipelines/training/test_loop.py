"""The loop: a killed run resumes bit for bit, and two processes learn what one does.

Stages and early stopping behave.
"""

import textwrap

import numpy as np
import pytest
import torch

from pipelines.detect.config import load_run_config
from preprocessing import slices
from tests.shared import in_one_and_two_processes

TINY = [
    "model.channels=[4,8,8]",
    "image_size=[32,32]",
    "loop.batch_size=8",
    "loop.loader_workers=0",
    "loop.accelerator=cpu",
    "stages.pretrain.max_epochs=2",
    "stages.finetune.max_epochs=3",
]


def make_store(folder, n=24):
    """Twenty-four training and eight validation slices of 40 x 36 x 1 in two scans."""
    rng = np.random.default_rng(0)
    rows = []
    for scan, split, count in (("a", "train", n), ("b", "val", 8)):
        mask = np.zeros((40, 36, count), bool)
        mask[6:34, 5:31] = True
        image = (
            np.clip(
                0.5 + 0.1 * rng.normal(size=mask.shape) + 0.2 * rng.normal(size=(1, 1, count)), 0, 1
            )
            * mask
        )
        slices.write_arrays(folder, scan, image, mask, np.arange(count))
        rows += [
            {
                "scan": scan,
                "subject": scan,
                "split": split,
                "label": "",
                "row": i,
                "z": i,
                "brain_px": 700,
            }
            for i in range(count)
        ]
    slices.write_index(folder, rows)
    return folder


def fit(store, run, *overrides):
    """Train a tiny vae_cr in this process; returns the model."""
    from lightning_fabric import Fabric

    from pipelines.detect.build import build_model
    from pipelines.training.data import SliceDataset
    from pipelines.training.loop import fit as loop

    config = load_run_config("vae_cr", [*TINY, *overrides])
    fabric = Fabric(accelerator="cpu", devices=1)
    torch.manual_seed(config.loop.seed)
    model = build_model(config)
    sets = (
        SliceDataset(store, ["a"], config.image_size, config.augmentation),
        SliceDataset(store, ["b"], config.image_size),
    )
    loop(model, config, *sets, fabric, run)
    return model


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    return fit(store, run), run


@pytest.mark.parametrize("kill_at", [(0, 1), (1, 0), (1, 2)])
def test_a_killed_run_ends_with_the_same_weights_bit_for_bit(
    store, whole, tmp_path, monkeypatch, kill_at
):
    import pipelines.training.loop as loop

    stage, epoch = kill_at
    real = loop.train_epoch

    def killed(session, at, name, *rest):
        if (name, at) == (["pretrain", "finetune"][stage], epoch):
            raise KeyboardInterrupt
        return real(session, at, name, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_epoch", killed)
        fit(store, tmp_path)
    resumed = fit(store, tmp_path)
    for (key, a), b in zip(
        whole[0].state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), key
    lines = [(p / "metrics.csv").read_text().splitlines() for p in (whole[1], tmp_path)]
    assert [line for line in lines[0] if ",seconds," not in line] == [
        line for line in lines[1] if ",seconds," not in line
    ]


def test_training_learns_and_logs(whole):
    import csv

    rows = list(csv.DictReader((whole[1] / "metrics.csv").open()))
    loss = {
        (r["stage"], int(r["epoch"])): float(r["value"]) for r in rows if r["name"] == "val_loss"
    }
    assert sorted(loss) == [
        ("finetune", 0),
        ("finetune", 1),
        ("finetune", 2),
        ("pretrain", 0),
        ("pretrain", 1),
    ]
    train = {
        int(r["epoch"]): float(r["value"])
        for r in rows
        if r["name"] == "loss" and r["stage"] == "finetune"
    }
    assert train[2] < train[0]
    assert {"loss", "kl", "squared_error", "lr", "seconds"} <= {
        r["name"] for r in rows if r["stage"] == "finetune"
    }
    assert any((whole[1] / "tensorboard").iterdir())
    assert {p.name for p in (whole[1] / "checkpoints").iterdir()} == {
        "last.pt",
        "best-pretrain.pt",
        "best-finetune.pt",
    }


def test_another_seed_gives_another_model(store, whole, tmp_path):
    other = fit(store, tmp_path, "loop.seed=1")
    assert any(
        not torch.equal(a, b)
        for a, b in zip(whole[0].parameters(), other.parameters(), strict=True)
    )


def test_the_best_epoch_on_validation_is_what_remains(store, tmp_path):
    import csv

    model = fit(store, tmp_path, "stages.finetune.max_epochs=6", "stages.finetune.lr=0.05")
    rows = [
        r
        for r in csv.DictReader((tmp_path / "metrics.csv").open())
        if r["name"] == "val_loss" and r["stage"] == "finetune"
    ]
    best = min(float(r["value"]) for r in rows)
    from pipelines.training.data import SliceDataset

    val = SliceDataset(store, ["b"], (32, 32))
    items = [val[(i, 0)] for i in range(len(val))]
    batch = {}
    for key in ("image", "mask"):
        batch[key] = torch.stack([item[key] for item in items])
    with torch.no_grad():
        assert model.eval().vae_loss(batch)["loss"].item() == pytest.approx(best, rel=1e-4)


def test_early_stop_counts_epochs_without_a_better_validation_loss(store, tmp_path, monkeypatch):
    import pipelines.training.loop as loop

    losses = iter([1.0, 0.9, 0.95, 0.96, 0.8, 0.7])
    monkeypatch.setattr(loop, "validation_losses", lambda *a: {"loss": next(losses)})
    fit(
        store,
        tmp_path,
        "stages.pretrain.max_epochs=10",
        "stages.pretrain.patience=2",
        "stages.finetune.max_epochs=0",
    )
    epochs = {
        line.split(",")[1] for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    }
    assert epochs == {"0", "1", "2", "3"}


def test_a_loss_that_is_not_finite_stops_with_advice(store, tmp_path, monkeypatch):
    import pipelines.training.loop as loop

    monkeypatch.setattr(loop, "validation_losses", lambda *a: {"loss": float("nan")})
    with pytest.raises(
        loop.TrainingError,
        match=r"pretrain, epoch 1: the validation loss is nan; lower stages\.pretrain\.lr",
    ):
        fit(store, tmp_path)


def test_only_the_update_s_parameters_move(store, tmp_path, monkeypatch):
    from models.base import Update
    from models.vae_cr import VaeCr

    class DecoderOnly(VaeCr):
        def updates(self, stage):
            return [Update(stage, self.vae_loss, list(self.decoder.parameters()))]

    before = {}

    def build(config):
        model = DecoderOnly(channels=(4, 8, 8))
        before.update({k: v.clone() for k, v in model.named_parameters()})
        return model

    monkeypatch.setattr("pipelines.detect.build.build_model", build)
    model = fit(store, tmp_path)
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key]) == key.startswith("encoder"), key


def test_batches_do_not_depend_on_workers_or_processes(store):
    from pipelines.training.data import Batches, SliceDataset

    config = load_run_config("vae_cr", TINY)
    data = SliceDataset(store, ["a"], (32, 32), config.augmentation)
    one = list(Batches(data, config.loop, shuffle=True, stream=0).epoch(3))
    halves = [
        list(Batches(data, config.loop, shuffle=True, stream=0, rank=r, world=2).epoch(3))
        for r in (0, 1)
    ]
    loop = config.loop.model_copy(update={"loader_workers": 2})
    kept = Batches(data, loop, shuffle=True, stream=0)
    other = [b["seed"] for b in kept.epoch(1)]
    many = list(kept.epoch(3))  # by the same workers
    again = [b["seed"] for b in Batches(data, config.loop, shuffle=True, stream=0).epoch(1)]
    assert all(torch.equal(a, b) for a, b in zip(other, again, strict=True)) and not torch.equal(
        other[0], many[0]["seed"]
    )
    for i, batch in enumerate(one):
        for key in ("image", "mask", "seed"):
            torch.testing.assert_close(
                torch.cat([h[i][key] for h in halves]), batch[key], rtol=0, atol=0
            )
            torch.testing.assert_close(many[i][key], batch[key], rtol=0, atol=0)
    assert not torch.equal(
        one[0]["seed"], next(Batches(data, config.loop, shuffle=True, stream=0).epoch(4))["seed"]
    )
    seeds = torch.cat([batch["seed"] for batch in one])
    assert len(set(seeds.tolist())) == 24


def test_no_process_is_left_without_a_sample(store):
    """Batches of all slices but one leave one over. Two processes cannot share it.

    It joins the batch before.
    """
    from pipelines.training.data import Batches, SliceDataset

    data = SliceDataset(store, ["a"], (32, 32))
    loop = load_run_config("vae_cr", [*TINY, f"loop.batch_size={len(data) - 1}"]).loop
    halves = [Batches(data, loop, shuffle=False, stream=0, rank=r, world=2).plan(0) for r in (0, 1)]
    assert [len(h) for h in halves] == [1, 1]
    batches = halves[0] + halves[1]
    assert all(len(b) for b in batches)
    items = []
    for batch in batches:
        items += batch
    assert sorted(i for i, _ in items) == list(range(len(data)))
    assert [len(b) for b in Batches(data, loop, shuffle=False, stream=0).plan(0)] == [
        len(data) - 1,
        1,
    ]


def test_augmentation_is_scipy_s_affine_and_the_same_however_slices_are_batched():
    """Measured on a smooth slice of unequal sides.

    Each sample's matrix is in pixels and applied by scipy.
    """
    from scipy import ndimage

    from models.parts.randomness import generator
    from pipelines.detect.config import Augmentation
    from pipelines.training.augment import STREAM, augment

    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.random((40, 28)), 3)
    image = (
        torch.tensor((smooth - smooth.min()) / np.ptp(smooth), dtype=torch.float32)
        .expand(6, 1, 40, 28)
        .clone()
    )
    mask = torch.zeros_like(image)
    mask[:, :, 8:32, 5:23] = 1
    batch = {"image": image * mask, "mask": mask, "seed": torch.arange(6) + 11}
    a = Augmentation(flip=0.5, rotate=20, translate=0.1, scale=0.1, intensity=0.3)
    got = augment(batch, a)
    flipped = 0
    for i in range(6):
        u = torch.rand(7, generator=generator(i + 11, STREAM)).numpy()
        v = 2 * u - 1
        angle = np.deg2rad(20 * v[1])
        mirror = -1 if u[0] < 0.5 else 1
        flipped += mirror < 0
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = np.diag([mirror / (1 + 0.1 * v[4]), 1.0]) @ turn
        matrix[1] = turn[1] / (1 + 0.1 * v[5])
        shift = np.array([mirror * 0.1 * v[2] * 40, 0.1 * v[3] * 28])
        centre = np.array([19.5, 13.5])
        want = ndimage.affine_transform(
            batch["image"][i, 0].numpy(),
            matrix,
            centre - matrix @ centre + shift,
            order=1,
            mode="constant",
        )
        new_mask = got["mask"][i, 0].numpy()
        want = np.clip(want * (1 + 0.3 * v[6]), 0, 1) * new_mask
        np.testing.assert_allclose(got["image"][i, 0].numpy(), want, atol=2e-4)
        there = ndimage.affine_transform(
            mask[i, 0].numpy(), matrix, centre - matrix @ centre + shift, order=1, mode="constant"
        )
        sure = np.abs(there - 0.5) > 0.49
        np.testing.assert_array_equal(new_mask[sure], there[sure].round())
    assert 0 < flipped < 6 and not got["image"][got["mask"] == 0].any()
    alone = augment({k: v[2:3] for k, v in batch.items()}, a)
    torch.testing.assert_close(alone["image"][0], got["image"][2], rtol=0, atol=0)
    same = augment(batch, Augmentation())
    torch.testing.assert_close(same["image"], batch["image"], rtol=0, atol=0)


def test_training_and_inference_resize_alike(store):
    from pipelines.detect.inputs import resize_volume
    from pipelines.training.data import SliceDataset

    data = SliceDataset(store, ["b"], (32, 32))
    raw = [data.data[i] for i in range(4)]
    image = np.stack([r["image"][0] for r in raw], -1)
    mask = np.stack([r["mask"][0] for r in raw], -1)
    small, small_mask = resize_volume(image, mask, (32, 32))
    for i in range(4):
        torch.testing.assert_close(small[i], data[(i, 0)]["image"], rtol=0, atol=1e-6)
        torch.testing.assert_close(small_mask[i], data[(i, 0)]["mask"], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 2, 240, 240), (64, 64)), ((2, 1, 44, 36), (48, 48)), ((1, 2, 61, 70, 50), (32, 64, 48))],
)
def test_monai_s_chain_resizes_as_inference_does(shape, size, dtype):
    """To the bit: training takes MONAI's transforms, inference is spared loading them."""
    from pipelines.detect import inputs
    from pipelines.training import data

    source = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=source).to(dtype)
    brain = torch.rand((shape[0], 1, *shape[2:]), generator=source) > 0.4
    ours = inputs.resize(image, brain, size)
    for one, other in zip(ours, data.resize(image, brain, data.resize_chain(size)), strict=True):
        assert torch.equal(one, other) and one.shape[2:] == size


def test_a_run_killed_after_its_last_stage_keeps_its_weights(store, whole, tmp_path):
    """The kill may come while the healthy reference is made.

    The trained weights must be there, not fresh ones.
    """
    import shutil

    model, run = whole
    shutil.copytree(run, tmp_path / "again")
    again = fit(store, tmp_path / "again", "loop.seed=77")  # another seed: other fresh weights
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


SCRIPT = """
import sys, torch
from pathlib import Path
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from pipelines.detect.build import build_model
from pipelines.detect.config import load_run_config
from pipelines.training.data import SliceDataset
from pipelines.training.loop import fit
class Double(SliceDataset):
    def _read(self, items):
        read = super()._read(items)
        return {k: v.double() if v.is_floating_point() else v for k, v in read.items()}
store, run, world, tiny = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
torch.set_num_threads(1)
config = load_run_config("vae_cr", tiny)
strategy = "auto"
if world > 1:
    strategy = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
fabric = Fabric(accelerator="cpu", devices=world, strategy=strategy, precision="64-true")
fabric.launch()
torch.manual_seed(0)
model = build_model(config)
train = Double(store, ["a"], config.image_size, config.augmentation)
val = Double(store, ["b"], config.image_size)
fit(model, config, train, val, fabric, run)
if fabric.is_global_zero:
    torch.save(model.state_dict(), run / "final.pt")
"""


@pytest.mark.slow
def test_two_gloo_processes_learn_what_one_does(store, tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    for world in ("1", "2"):
        (tmp_path / world).mkdir()

    def arguments_of(world):
        return [store, tmp_path / str(world), world, *TINY]

    in_one_and_two_processes(script, arguments_of, monkeypatch)
    weights = [torch.load(tmp_path / f"{world}/final.pt", weights_only=True) for world in (1, 2)]
    for key, one in weights[0].items():
        torch.testing.assert_close(
            weights[1][key], one, rtol=1e-6, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_mixed_precision_reaches_the_losses_on_one_device(store, tmp_path, monkeypatch):
    from lightning_fabric import Fabric

    from models.vae_cr import VaeCr
    from pipelines.detect.build import build_model
    from pipelines.training.data import SliceDataset
    from pipelines.training.loop import fit as loop

    seen = set()
    real = VaeCr.encode
    monkeypatch.setattr(
        VaeCr, "encode", lambda self, x: (seen.add(self.encoder[0][0](x).dtype), real(self, x))[1]
    )
    config = load_run_config("vae_cr", [*TINY, "loop.precision=bf16-mixed"])
    sets = (SliceDataset(store, ["a"], (32, 32)), SliceDataset(store, ["b"], (32, 32)))
    loop(
        build_model(config),
        config,
        *sets,
        Fabric(accelerator="cpu", devices=1, precision=config.loop.precision),
        tmp_path,
    )
    assert torch.bfloat16 in seen


def test_synchronised_batch_norm_matches_torch_alone():
    from models.parts.layers import BatchNorm2d

    torch.manual_seed(0)
    ours = BatchNorm2d(5)
    theirs = torch.nn.BatchNorm2d(5)
    x = torch.randn(6, 5, 4, 3) * 3 + 1
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_patches_come_from_the_brain_and_are_the_same_for_a_seed(store):
    from pipelines.training.data import SliceDataset

    data = SliceDataset(store, ["a"], (32, 32), patch_size=(12, 8))
    whole = SliceDataset(store, ["a"], (32, 32))
    items = [(s, s) for s in range(20)]
    batch = data.batch(items)
    twice = data.batch(items)
    assert batch["image"].shape == batch["mask"].shape == (20, 1, 12, 8) and torch.equal(
        batch["image"], twice["image"]
    )
    for seed in range(20):
        image = batch["image"][seed, 0]
        full = whole[(seed, 0)]
        windows = full["image"][0].unfold(0, 12, 1).unfold(1, 8, 1)
        place = (windows == image).flatten(2).all(2).nonzero()
        assert len(place) and batch["mask"][seed].any()
        inner = all(0 < int(p) < n - s for p, n, s in zip(place[0], (32, 32), (12, 8), strict=True))
        assert (
            not inner or batch["mask"][seed, 0, 6, 4] == 1
        )  # its centre is brain, unless the border is near


def test_patchwise_maps_of_a_pixelwise_network_are_those_of_whole_slices():
    """A network that looks at single pixels and at z cannot tell patches from slices."""
    import numpy as np

    from pipelines.detect.detector import slicewise

    rng = np.random.default_rng(0)
    image = rng.random((40, 36, 5)).astype(np.float32)
    brain = np.ones((40, 36, 5), bool)
    image[:, :, 1] = 0
    brain[:, :, 1] = False
    plain = load_run_config("vae_cr", ["image_size=[40,36]"])
    patched = plain.model_copy(update={"patch_size": (16, 12)})

    def network(x, mask, z):
        return x * mask + z[:, None, None, None]

    one, two = (slicewise(network, c, image, brain, torch.device("cpu")) for c in (plain, patched))
    np.testing.assert_allclose(one, two, atol=1e-5)
    np.testing.assert_allclose(one[:, :, 4], image[:, :, 4] + 4, atol=1e-5)


@pytest.mark.parametrize("patch_size", [None, (16, 12)])
def test_slice_scores_lie_in_their_slices(patch_size):
    import numpy as np

    from models.base import AnomalyModel
    from pipelines.detect.detector import Detector

    class Places(AnomalyModel):
        def anomaly_map(self, x, mask, z=None):
            return x * mask

        def score(self, x, mask, z=None):
            return 10.0 - z

    image = np.ones((40, 36, 4), np.float32)
    brain = np.zeros((40, 36, 4), bool)
    brain[5:30, 6:30, [0, 2, 3]] = True
    config = load_run_config("vae_cr", ["image_size=[40,36]"]).model_copy(
        update={"patch_size": patch_size}
    )
    _, got = Detector(Places(), config, torch.device("cpu")).map_and_scores(image, brain)
    np.testing.assert_allclose(got, np.where(brain, 10.0 - np.arange(4), 0), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["loop.channels_last=true", "loop.compile=true"])
def test_ways_to_be_faster_learn_the_same(store, whole, tmp_path, setting):
    """Weights after two stages differ in rounding alone, and the setting did reach the network."""
    import torch._dynamo

    plain, _ = whole
    torch.manual_seed(0)
    fresh = build_tiny()
    torch._dynamo.utils.counters.clear()
    other = fit(store, tmp_path / "other", setting)
    apart = [
        float((a - b).detach().abs().max())
        for a, b in zip(plain.parameters(), other.parameters(), strict=True)
    ]
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(plain.parameters(), fresh.parameters(), strict=True)
    ]
    assert max(apart) < 0.1 * max(moved)
    if "compile" in setting:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    else:
        assert all(
            p.is_contiguous(memory_format=torch.channels_last)
            for p in other.parameters()
            if p.dim() == 4
        )


def build_tiny():
    from pipelines.detect.build import build_model

    return build_model(load_run_config("vae_cr", TINY))


def test_slices_are_read_once_while_there_is_room(store, monkeypatch):
    """Whether kept, kept in part or never, batches are the same to the bit."""
    from pipelines.training import data

    read = []
    real = slices.SliceStore.batch

    def counted(self, indices, around=()):
        read.extend(indices)
        return real(self, indices, around)

    monkeypatch.setattr(slices.SliceStore, "batch", counted)
    items = [(i, 7 + i) for i in (3, 0, 3, 9, 20, 11, 4, 5, 6, 7, 8, 1)]
    first = data.SliceDataset(store, ["a"], (32, 32)).batch(items)
    eight = 8 * 2 * 32 * 32 * 4  # bytes of the images and brains that are read together
    for room, reads in ((0, 22), (eight, 14), (2 * eight, 11)):
        monkeypatch.setattr(data, "KEPT_BYTES", room)
        read.clear()
        dataset = data.SliceDataset(store, ["a"], (32, 32))
        for batch in (dataset.batch(items), dataset.batch(items)):
            assert all(torch.equal(batch[key], first[key]) for key in first)
        assert len(read) == reads
