"""Loading, training steps, augmentation and start-up beside what users would run instead."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import NOTES, Row, alternate, quiet, resident_mb, row, seconds
from benchmarks.scale import toy_cohort
from pipelines.config import ROOT, load_recipe
from pipelines.detect.config import load_run_config

SIZE, BATCH = (128, 128), 64


def cohort_of(scan: Path, modality: str, copies: int, out: Path) -> Path:
    """A preprocessed cohort of one scan, entered many times in the slice store (train, the last one val)."""
    from pipelines.cohort.store import preprocess_scan
    from preprocessing import slices
    from preprocessing.scans import Scan

    recipe = load_recipe(modality)
    preprocess_scan(Scan("scan", scan, "scan"), recipe, out)
    image, mask = (np.load(out / "slices" / f"scan_{name}.npy") for name in ("image", "mask"))
    rows = []
    for i in range(copies):
        for name, data in (("image", image), ("mask", mask)):
            np.save(out / "slices" / f"c{i}_{name}.npy", data)
        about = {
            "scan": f"c{i}",
            "subject": f"c{i}",
            "split": "val" if i == copies - 1 else "train",
            "label": "healthy",
        }
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
            nib.save(
                nib.Nifti1Image(store[i]["image"][0].astype(np.float32)[..., None], np.eye(4)),
                files[-1],
            )
        order = rng.integers(0, len(store), 600)
        chain = Compose(
            [LoadImaged("image"), EnsureChannelFirstd("image", channel_dim="no_channel")]
        )
        items = [{"image": str(f)} for f in files]
        kept = PersistentDataset(items, chain, cache_dir=Path(folder) / "cache")
        cached = CacheDataset(items, chain, progress=False, num_workers=0)
        for i in order:
            kept[int(i)]
        ways: dict[str, Callable[[], Any]] = {
            "Norma": lambda: [store.batch(part) for part in order.reshape(-1, 8).tolist()],
            "NIfTI per slice (nibabel)": lambda: [
                np.asarray(nib.Nifti1Image.from_filename(files[int(i)]).dataobj) for i in order
            ],
            "MONAI PersistentDataset": lambda: [kept[int(i)] for i in order],
            "MONAI CacheDataset": lambda: [cached[int(i)] for i in order],
        }
        taken = alternate(ways, repeats)
        for name in taken:
            if name != "Norma":
                value, other = (len(order) / taken[k] for k in ("Norma", name))
                rows.append(
                    row("random slices, image and mask", value, "1/s", name, other, more=True)
                )
        ways.clear()
        grown = []
        for part in (2, 12):
            small = SliceStore(store.folder, {f"c{i}" for i in range(part)})
            before = resident_mb()
            for eight in rng.integers(0, len(small), (375, 8)).tolist():
                small.batch(eight)
            grown.append(max(resident_mb() - before, 0.0))
        rows.append(
            row(
                "memory that 3,000 random reads of 12 scans leave",
                grown[1],
                "MB",
                "of 2 scans",
                grown[0],
            )
        )
    return rows


TRAINING_SCANS = 10  # copies of a scan that training reads


class Bare:
    """The same network in a plain PyTorch loop, on the same loaded and augmented batches or on slices in memory at the network's size."""

    def __init__(self, folder: Path, model: Any) -> None:
        import torch

        from pipelines.training.data import SliceDataset

        scans, config = [f"c{i}" for i in range(TRAINING_SCANS)], load_run_config("vae_cr")
        self.data = SliceDataset(folder, scans, SIZE, config.augmentation)
        data = SliceDataset(folder, scans[:3], SIZE)
        self.tensors = {
            k: torch.stack([data[(i, i)][k] for i in range(len(data))])
            for k in ("image", "mask", "z", "seed")
        }
        self.model, self.update = model, model.updates(model.stages[-1])[0]
        self.optimizer = torch.optim.Adam(list(self.update.parameters), lr=1e-4)

    def loaded(self, steps: int) -> Any:
        """A plain DataLoader over the same store, resized and augmented in the same way."""
        from torch.utils.data import DataLoader

        from pipelines.training.data import as_it_is

        order = (
            np.random.default_rng(0)
            .permutation(len(self.data))[: steps * BATCH]
            .reshape(steps, BATCH)
        )
        plan = [[(int(i), int(i)) for i in batch] for batch in order]
        return DataLoader(self.data, batch_sampler=plan, collate_fn=as_it_is)

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

    from pipelines.detect.build import build_model
    from pipelines.training.data import Batches, SliceDataset
    from pipelines.training.loop import Session, laid_out, stage_steps, train_epoch

    config = load_run_config(
        "vae_cr", [f"image_size={list(SIZE)}", f"loop.batch_size={BATCH}", *settings]
    )
    fabric = Fabric(accelerator="cpu", devices=1, precision=config.loop.precision)
    torch.manual_seed(0)
    model = build_model(config)
    module = laid_out(model, config, fabric)
    data = SliceDataset(folder, [f"c{i}" for i in range(TRAINING_SCANS)], SIZE, config.augmentation)

    session = Session(model, module, config, data, data, fabric, folder, None)
    stage = stage_steps(session, "finetune", {})

    def epoch(steps: int) -> float:
        batches = Batches(data, config.loop, shuffle=True, stream=0, steps=steps)
        with quiet():
            return seconds(lambda: train_epoch(session, 0, "finetune", stage, batches))

    epoch(1)
    return epoch


def training(scan: Path, repeats: int, steps: int = 20) -> list[Row]:
    """Steps at 128 x 128 beside a bare loop and a Lightning Trainer; what the settings for speed bring; augmentation beside MONAI's."""
    from pipelines.detect.build import build_model

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
            rows.append(
                row(
                    "training step of vae_cr, 64 slices of 128 x 128, loading and augmentation included",
                    value,
                    "s",
                    name,
                    other,
                )
            )
        if not find_spec("anomalib"):
            NOTES.append("anomalib: not installed (it needs torchvision)")
        for setting in (
            "loop.channels_last=true",
            "loop.compile=true",
            "loop.precision=bf16-mixed",
            "loop.loader_workers=1",
        ):
            other_way = own_epoch(slices, (setting,))
            both = alternate(
                {"with": lambda: other_way(steps), "without": lambda: plain(steps)}, repeats
            )  # noqa: B023
            rows.append(
                row(
                    f"training step with {setting}",
                    both["with"] / steps,
                    "s",
                    "without",
                    both["without"] / steps,
                )
            )
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

    from pipelines.detect.build import build_model

    torch.manual_seed(0)
    model = build_model(load_run_config("vae_cr", [f"image_size=[{side},{side}]"]))
    update, x = model.updates("finetune")[0], torch.rand(BATCH, 1, side, side)
    batch = {
        "image": x,
        "mask": torch.ones_like(x),
        "z": torch.zeros(BATCH, dtype=torch.long),
        "seed": torch.arange(BATCH),
    }
    return statistics.median(
        seconds(lambda: update.loss(batch)["loss"].backward()) for _ in range(repeats)
    )


def augmentation(folder: Path, repeats: int) -> list[Row]:
    """The same random changes, batch by batch and by MONAI's transforms item by item."""
    import monai.transforms as mt
    import torch

    from pipelines.training.augment import augment
    from pipelines.training.data import SliceDataset

    a = load_run_config("vae_cr").augmentation
    data = SliceDataset(folder, ["c0"], SIZE)
    batch = {
        k: torch.stack([data[(i, i)][k] for i in range(BATCH)])
        for k in ("image", "mask", "z", "seed", "label")
    }
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
    taken = alternate(
        {"own": lambda: augment(batch, a), "monai": lambda: [chain(dict(item)) for item in items]},
        2 * repeats + 1,
    )
    peer = "MONAI per item"
    return [
        row(
            "augmented slices of 128 x 128, one process",
            BATCH / taken["own"],
            "1/s",
            peer,
            BATCH / taken["monai"],
            more=True,
        )
    ]


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
        call: dict[str, Any] = {
            "cwd": ROOT,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "check": True,
        }
        help_taken = alternate(
            {"help": lambda: subprocess.run([*python, "pipelines.preprocess", "--help"], **call)},
            2 * repeats + 1,
        )
        count = iter(range(1000))
        batch = data / "slices" / "batch.npy"
        np.save(batch, np.random.default_rng(0).random((64, 1, 32, 32)).astype(np.float16))
        settings = ["image_size=[128,128]", "loop.batch_size=64", "loop.loader_workers=0"]

        def train() -> None:
            command = [
                "-c",
                STEP,
                "--model",
                "vae_cr",
                "--data",
                str(data),
                "--out",
                f"{folder}/run{next(count)}",
                *settings,
            ]
            subprocess.run([sys.executable, *command], **call)

        def bare() -> None:
            subprocess.run([sys.executable, "-c", BARE_STEP, str(batch)], **call)

        taken = alternate({"train": train, "bare": bare}, repeats)
    return [
        row("python -m pipelines.preprocess --help", help_taken["help"], "s"),
        row(
            "start of a training to its first step",
            taken["train"],
            "s",
            "bare PyTorch script",
            taken["bare"],
        ),
    ]
