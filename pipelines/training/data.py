"""Slices or volumes to batches; what is random is drawn sample by sample and done batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai import transforms as mt
from monai.data import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from pipelines.detect.config import Augmentation, Loop
from pipelines.detect.inputs import resize, resize_chain
from pipelines.training.augment import augment, crop
from preprocessing.slices import SliceStore, VolumeStore

AT_ONCE = 8  # slices that are read and resized together: arrays so small keep their memory from one time to the next


class SliceDataset(Dataset):
    """MONAI dataset over a slice store; an item is asked for as (index, seed) and depends on nothing else.

    Gives {"image": (C, H, W) float32 in [0, 1], 0 outside the brain, "mask": (1, H, W), "z", "seed", "label": 1 for a slice of a scan
    named in `abnormal`, else 0}. With three numbers in `image_size` an item is a whole scan, on a grid of `depth` axial slices before
    it is resized: (C, X, Y, Z), and "z" is 0. `around` adds neighbouring slices as channels, inside the slice's own brain. `batch`
    reads several at once, augmented, and cut to patches where asked for.
    """

    def __init__(
        self,
        folder: Path,
        scans: Collection[str],
        image_size: tuple[int, ...],
        augmentation: Augmentation | None = None,
        patch_size: tuple[int, ...] | None = None,
        abnormal: Collection[str] = (),
        depth: int = 0,
        around: tuple[int, ...] = (),
    ) -> None:
        self.abnormal, self.augmentation, self.patch_size, self.around = (
            frozenset(abnormal),
            augmentation,
            patch_size,
            around,
        )
        store = SliceStore(folder, scans)
        items = store if len(image_size) == 2 else VolumeStore(store, depth)
        super().__init__(cast(Any, items), transform=resize_chain(image_size))

    def __getitem__(self, item: Any) -> dict[str, Any]:
        return {key: value[0] for key, value in self._read([item]).items()}

    def batch(self, items: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """A batch of (index, seed); with several loader workers this runs in them."""
        batch = self._read(items)
        if self.augmentation:
            batch = augment(batch, self.augmentation)
        return crop(batch, self.patch_size) if self.patch_size else batch

    __getitems__ = batch  # what a DataLoader asks for

    def _read(self, items: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        stored = cast(SliceStore | VolumeStore, self.data)
        parts = []
        for start in range(0, len(items), AT_ONCE):
            read = stored.batch([i for i, _ in items[start : start + AT_ONCE]], self.around)
            found = {k: torch.from_numpy(v) for k, v in read.items()}
            parts.append(
                (
                    *resize(found["image"], found["mask"], cast(mt.Compose, self.transform)),
                    found["z"],
                )
            )
        image, mask, z = (torch.cat(values) for values in zip(*parts, strict=True))
        labels = torch.tensor([int(stored.scan_of(i) in self.abnormal) for i, _ in items])
        return {
            "image": image,
            "mask": mask,
            "z": z,
            "seed": torch.tensor([s for _, s in items]),
            "label": labels,
        }


class Batches:
    """Batches of one epoch, the same whatever the number of processes and loader workers.

    The order and every sample's seed follow from (seed, epoch). `batch_size` is the total: each of `world` processes
    gets its contiguous share of every batch. Without `shuffle` the order is the store's and seeds do not change.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        loop: Loop,
        *,
        shuffle: bool,
        stream: int,
        rank: int = 0,
        world: int = 1,
        steps: int | None = None,
    ) -> None:
        self.dataset, self.loop, self.shuffle, self.stream = dataset, loop, shuffle, stream
        self.rank, self.world, self.steps = rank, world, steps
        self.loader: DataLoader | None = None
        self.planned: list[
            list[tuple[int, int]]
        ] = []  # of the epoch that is on, read by the loader

    def plan(self, epoch: int) -> list[list[tuple[int, int]]]:
        """This process's (index, seed) lists, one per batch."""
        n, size = len(self.dataset), self.loop.batch_size
        epoch = epoch if self.shuffle else 0
        base = np.random.default_rng([self.loop.seed, self.stream, epoch])
        order = base.permutation(n) if self.shuffle else np.arange(n)
        seeds = base.integers(0, 1 << 62, size=n)
        if self.shuffle and n >= size:
            order = order[: n // size * size]
        batches = [order[i : i + size] for i in range(0, len(order), size)][: self.steps]
        if len(batches) > 1 and len(batches[-1]) < self.world:  # no process may go without a sample
            batches[-2:] = [np.concatenate(batches[-2:])]
        share = [np.array_split(b, self.world)[self.rank] for b in batches]
        return [[(int(i), int(seeds[i])) for i in b] for b in share]

    def epoch(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Batches of an epoch, read as they are asked for, by the same loader workers in every epoch."""
        self.planned[:] = self.plan(epoch)
        if self.loader is None:
            workers = self.loop.loader_workers
            if workers is None:
                workers = 2 if self.loop.accelerator != "cpu" and torch.cuda.is_available() else 0
            kept = workers > 0
            self.loader = DataLoader(
                self.dataset,
                batch_sampler=self.planned,
                num_workers=workers,
                collate_fn=as_it_is,
                persistent_workers=kept,
            )
        yield from self.loader

    def length(self) -> int:
        return len(self.plan(0))


def as_it_is(batch: Any) -> Any:
    return batch
