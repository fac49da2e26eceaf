"""Slices or volumes to batches.

What is random is drawn for each sample and applied to a whole batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai import transforms as mt
from monai.data import Dataset, set_track_meta
from torch import Tensor
from torch.utils.data import DataLoader

from pipelines.detect.config import Augmentation, Loop
from pipelines.training.augment import augment, crop
from preprocessing.slices import SliceStore, VolumeStore

# Slices that are read and resized together: arrays so small find their memory again each time.
AT_ONCE = 8
KEPT_BYTES = 2**29  # of resized slices that a dataset holds in memory: the next epoch needs them

Resized = tuple[Tensor, Tensor, int]  # image, brain, index in the atlas


class SliceDataset(Dataset):
    """MONAI dataset over a slice store; an item depends on its (index, seed) alone.

    | key | value |
    |---|---|
    | image | (C, H, W) float32 in [0, 1], 0 outside the brain |
    | mask | the brain (1, H, W) |
    | z | index of the slice in the atlas |
    | seed | what random changes are drawn from |
    | label | 1 for a slice of a scan named in `abnormal`, else 0 |

    With three numbers in `image_size` an item is a whole scan (C, X, Y, Z), and "z" is 0. It has
    `depth` axial slices before it is resized. `around` adds neighbouring slices as channels, inside
    the brain of the slice. `batch` reads several items at once. It augments them and cuts patches
    where the settings say so. Resized items stay in memory, up to `KEPT_BYTES`.
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
        self.abnormal = frozenset(abnormal)
        self.augmentation = augmentation
        self.patch_size = patch_size
        self.around = around
        store = SliceStore(folder, scans)
        items = store if len(image_size) == 2 else VolumeStore(store, depth)
        super().__init__(cast(Any, items), transform=resize_chain(image_size))
        self._kept: dict[int, Resized] = {}
        self._room = KEPT_BYTES

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
        """The items (index, seed) as one batch, without random changes."""
        indices = [index for index, _ in items]
        found = {i: self._kept[i] for i in indices if i in self._kept}
        missing = [i for i in dict.fromkeys(indices) if i not in found]
        for start in range(0, len(missing), AT_ONCE):
            found |= self._resized(missing[start : start + AT_ONCE])
        images, brains, z = zip(*(found[i] for i in indices), strict=True)
        stored = cast(SliceStore | VolumeStore, self.data)
        return {
            "image": torch.stack(images),
            "mask": torch.stack(brains),
            "z": torch.tensor(z),
            "seed": torch.tensor([seed for _, seed in items]),
            "label": torch.tensor([int(stored.scan_of(i) in self.abnormal) for i in indices]),
        }

    def _resized(self, indices: Sequence[int]) -> dict[int, Resized]:
        """Items as they are stored, resized; kept while there is room."""
        stored = cast(SliceStore | VolumeStore, self.data)
        arrays = stored.batch(indices, self.around)
        image, brain = (torch.from_numpy(arrays[key]) for key in ("image", "mask"))
        resized = resize(image, brain, cast(mt.Compose, self.transform))
        found = dict(zip(indices, zip(*resized, arrays["z"].tolist(), strict=True), strict=True))
        size = sum(values.nbytes for values in resized)
        if size <= self._room:
            self._room -= size
            self._kept |= found
        return found


def resize_chain(image_size: tuple[int, ...]) -> mt.Compose:
    """To tensors, and resized: area for images, nearest neighbour for brains."""
    keys = ("image", "mask")
    return mt.Compose(
        [mt.ToTensord(keys), mt.Resized(keys, image_size, mode=("area", "nearest-exact"))]
    )


def resize(image: Tensor, brain: Tensor, chain: mt.Compose) -> tuple[Tensor, Tensor]:
    """Images (B, C, ...) and brains (B, 1, ...) of any type by `resize_chain`, all at once.

    Gives both as float32, the images 0 outside the brain.
    """
    set_track_meta(False)  # per process: plain tensors, no bookkeeping of the spatial transforms
    # samples stand where the transforms expect channels
    small = chain({"image": image.flatten(0, 1).float(), "mask": brain[:, 0].float()})
    inside = small["mask"][:, None]
    return small["image"].unflatten(0, image.shape[:2]) * inside, inside


class Batches:
    """Batches of one epoch, the same whatever the number of processes and loader workers.

    The order and the seed of every sample follow from (seed, epoch). `batch_size` is the total:
    each of `world` processes gets a contiguous share of every batch. Without `shuffle` the order is
    that of the store, and seeds do not change.
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
        self.dataset = dataset
        self.loop = loop
        self.shuffle = shuffle
        self.stream = stream
        self.rank = rank
        self.world = world
        self.steps = steps
        self.loader: DataLoader | None = None
        self.planned: list[list[tuple[int, int]]] = []  # of this epoch; the loader reads it

    def plan(self, epoch: int) -> list[list[tuple[int, int]]]:
        """This process's (index, seed) lists, one per batch."""
        n = len(self.dataset)
        size = self.loop.batch_size
        base = np.random.default_rng([self.loop.seed, self.stream, epoch if self.shuffle else 0])
        order = base.permutation(n) if self.shuffle else np.arange(n)
        seeds = base.integers(0, 1 << 62, size=n)
        if self.shuffle and n >= size:
            order = order[: n // size * size]
        batches = [order[i : i + size] for i in range(0, len(order), size)][: self.steps]
        if len(batches) > 1 and len(batches[-1]) < self.world:  # no process may go without a sample
            batches[-2:] = [np.concatenate(batches[-2:])]
        shares = [np.array_split(batch, self.world)[self.rank] for batch in batches]
        return [_with_seeds(share, seeds) for share in shares]

    def epoch(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Batches of an epoch, read when they are needed; every epoch has the same workers."""
        self.planned[:] = self.plan(epoch)
        if self.loader is None:
            workers = self.loop.loader_workers
            if workers is None:
                workers = 2 if self.loop.accelerator != "cpu" and torch.cuda.is_available() else 0
            self.loader = DataLoader(
                self.dataset,
                batch_sampler=self.planned,
                num_workers=workers,
                collate_fn=as_it_is,
                persistent_workers=workers > 0,
            )
        yield from self.loader

    def length(self) -> int:
        """The number of batches of an epoch."""
        return len(self.plan(0))


def _with_seeds(indices: np.ndarray, seeds: np.ndarray) -> list[tuple[int, int]]:
    return [(int(i), int(seeds[i])) for i in indices]


def as_it_is(batch: Any) -> Any:
    """The collate function of a loader whose dataset reads whole batches."""
    return batch
