"""Training steps, augmentation and start-up beside what users would run instead."""

from __future__ import annotations

import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import monai.transforms as mt
import numpy as np
import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from benchmarks.loading import cohort_of
from benchmarks.measure import NOTES, Row, alternate, quiet, row, seconds
from benchmarks.start_up import start_up
from models.base import AnomalyModel, Batch
from pipelines.detect.build import build_model
from pipelines.detect.config import Augmentation, RunConfig, load_run_config
from pipelines.training.augment import augment
from pipelines.training.data import Batches, SliceDataset, as_it_is
from pipelines.training.loop import Session, laid_out, stage_steps, train_epoch

SIZE = (128, 128)
BATCH = 64
TRAINING_SCANS = 10  # copies of a scan that training reads
SPEED = (
    "loop.channels_last=true",
    "loop.compile=true",
    "loop.precision=bf16-mixed",
    "loop.loader_workers=1",
)
"""Settings for speed, each measured against a run without it."""


def sized(height: int, width: int, *settings: str) -> RunConfig:
    """Return the config of vae_cr at a size in pixels."""
    return load_run_config("vae_cr", [f"image_size=[{height},{width}]", *settings])


class Bare:
    """The same network in a plain PyTorch loop.

    It trains on the same loaded and augmented batches, or on slices in memory at the network's
    size.
    """

    def __init__(self, folder: Path, model: AnomalyModel) -> None:
        scans = [f"c{i}" for i in range(TRAINING_SCANS)]
        self.data = SliceDataset(folder, scans, SIZE, load_run_config("vae_cr").augmentation)
        plain = SliceDataset(folder, scans[:3], SIZE)
        items = [plain[(i, i)] for i in range(len(plain))]
        self.tensors = stacked(items, ("image", "mask", "z", "seed"))
        self.model = model
        self.update = model.updates(model.stages[-1])[0]
        self.optimizer = torch.optim.Adam(list(self.update.parameters), lr=1e-4)

    def loaded(self, steps: int) -> Iterable[Batch]:
        """Return a plain DataLoader over the same store, resized and augmented in the same way."""
        order = np.random.default_rng(0).permutation(len(self.data))[: steps * BATCH]
        plan = []
        for batch in order.reshape(steps, BATCH).tolist():
            plan.append([(i, i) for i in batch])
        return DataLoader(self.data, batch_sampler=plan, collate_fn=as_it_is)

    def in_memory(self, steps: int) -> Iterator[Batch]:
        """Yield random batches of the slices in memory, unchanged."""
        for _ in range(steps):
            at = torch.randint(len(self.tensors["image"]), (BATCH,))
            yield {key: values[at] for key, values in self.tensors.items()}

    def run(self, batches: Iterable[Batch]) -> None:
        """Take a step per batch."""
        self.model.train()
        for batch in batches:
            loss = self.update.loss(batch)["loss"]
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()


def stacked(items: list[dict[str, torch.Tensor]], keys: Iterable[str]) -> Batch:
    """Return items as one batch."""
    batch: Batch = {}
    for key in keys:
        batch[key] = torch.stack([item[key] for item in items])
    return batch


def own_epoch(folder: Path, settings: tuple[str, ...] = ()) -> Callable[[int], float]:
    """Return a function of a number of steps that gives the seconds of Norma's loop.

    It trains on the same slices, loading and augmentation included.
    """
    config = sized(*SIZE, f"loop.batch_size={BATCH}", *settings)
    fabric = Fabric(accelerator="cpu", devices=1, precision=config.loop.precision)
    torch.manual_seed(0)
    model = build_model(config)
    module = laid_out(model, config, fabric)
    scans = [f"c{i}" for i in range(TRAINING_SCANS)]
    data = SliceDataset(folder, scans, SIZE, config.augmentation)
    session = Session(model, module, config, data, data, fabric, folder, None)
    stage = stage_steps(session, "finetune", {})

    def epoch(steps: int) -> float:
        batches = Batches(data, config.loop, shuffle=True, stream=0, steps=steps)
        with quiet():
            return seconds(lambda: train_epoch(session, 0, "finetune", stage, batches))

    epoch(1)
    return epoch


def training(scan: Path, repeats: int, steps: int = 20) -> list[Row]:
    """Measure training steps, what the settings for speed bring, augmentation and start-up."""
    with tempfile.TemporaryDirectory() as folder:
        slices = cohort_of(scan, "t1", TRAINING_SCANS, Path(folder))
        plain = own_epoch(slices)
        rows = beside_other_loops(slices, plain, repeats, steps)
        for setting in SPEED:
            rows.append(with_setting(slices, plain, setting, repeats, steps))
        for side in (64, 128, 192):
            rows.append(row(f"training step of 64 slices of {side} x {side}", step_at(side), "s"))
        rows.append(augmentation(slices, repeats))
    return rows + start_up(repeats)


def beside_other_loops(
    slices: Path, plain: Callable[[int], float], repeats: int, steps: int
) -> list[Row]:
    """Measure a step of Norma's loop beside a bare loop and a Lightning Trainer."""
    bare = Bare(slices, build_model(sized(*SIZE)))
    ways: dict[str, Callable[[], Any]] = {
        "Norma": lambda: plain(steps),
        "bare PyTorch loop": lambda: bare.run(bare.loaded(steps)),
        "bare loop on slices in memory, unchanged": lambda: bare.run(bare.in_memory(steps)),
    }
    if find_spec("lightning"):
        ways["Lightning Trainer"] = lightning_epoch(bare, steps)
    else:
        NOTES.append("Lightning Trainer: lightning is not installed")
    if not find_spec("anomalib"):
        NOTES.append("anomalib: not installed (it needs torchvision)")

    taken = alternate(ways, repeats)
    own = taken.pop("Norma") / steps
    name = "training step of vae_cr, 64 slices of 128 x 128, loading and augmentation included"
    return [row(name, own, "s", peer, value / steps) for peer, value in taken.items()]


def lightning_epoch(bare: Bare, steps: int) -> Callable[[], None]:
    """Return a function that trains the bare loop's network by a Lightning Trainer."""
    # A peer that may be missing.
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


def with_setting(
    slices: Path, plain: Callable[[int], float], setting: str, repeats: int, steps: int
) -> Row:
    """Measure a step of Norma's loop with a setting and without it."""
    ways: dict[str, Callable[[], Any]] = {
        "with": partial(own_epoch(slices, (setting,)), steps),
        "without": partial(plain, steps),
    }
    taken = alternate(ways, repeats)
    name = f"training step with {setting}"
    return row(name, taken["with"] / steps, "s", "without", taken["without"] / steps)


def step_at(side: int, repeats: int = 3) -> float:
    """Return the seconds of a loss and its gradient on a batch of a side in pixels."""
    torch.manual_seed(0)
    model = build_model(sized(side, side))
    update = model.updates("finetune")[0]
    x = torch.rand(BATCH, 1, side, side)
    batch = {
        "image": x,
        "mask": torch.ones_like(x),
        "z": torch.zeros(BATCH, dtype=torch.long),
        "seed": torch.arange(BATCH),
    }

    def step() -> None:
        update.loss(batch)["loss"].backward()

    return statistics.median(seconds(step) for _ in range(repeats))


def augmentation(folder: Path, repeats: int) -> Row:
    """Measure the same random changes, batch by batch and by MONAI's transforms item by item."""
    asked = load_run_config("vae_cr").augmentation
    data = SliceDataset(folder, ["c0"], SIZE)
    items = [data[(i, i)] for i in range(BATCH)]
    batch = stacked(items, ("image", "mask", "z", "seed", "label"))
    pairs = [{"image": item["image"], "mask": item["mask"]} for item in items]
    chain = by_monai(asked)
    ways: dict[str, Callable[[], Any]] = {
        "own": lambda: augment(batch, asked),
        "monai": lambda: [chain(dict(pair)) for pair in pairs],
    }
    taken = alternate(ways, 2 * repeats + 1)
    name = "augmented slices of 128 x 128, one process"
    rate = {way: BATCH / value for way, value in taken.items()}
    return row(name, rate["own"], "1/s", "MONAI per item", rate["monai"], more=True)


def by_monai(asked: Augmentation) -> mt.Compose:
    """Return Norma's random changes as MONAI's transforms of one item."""
    keys = ("image", "mask")
    affine = mt.RandAffined(
        keys,
        prob=1,
        rotate_range=np.deg2rad(asked.rotate),
        translate_range=[asked.translate * side for side in SIZE],
        scale_range=[asked.scale] * 2,
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
    )
    return mt.Compose(
        [
            mt.RandFlipd(keys, prob=asked.flip, spatial_axis=0),
            affine,
            mt.RandScaleIntensityd("image", factors=asked.intensity, prob=1),
        ]
    )
