"""Slices to batches: MONAI dataset and transform chain, seeded sample by sample."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from monai import transforms as mt
from monai.data import Dataset, set_track_meta
from torch import Tensor
from torch.utils.data import DataLoader

from preprocessing.slices import SliceStore

if TYPE_CHECKING:
    from pipelines.config import Augmentation, Loop


class SliceDataset(Dataset):
    """MONAI dataset over a slice store; an item is asked for as (index, seed) and depends on nothing else.

    Gives {"image": (C, H, W) float32 in [0, 1], 0 outside the brain, "mask": (1, H, W), "z": int, "seed": int, "label": 1 for
    a slice of a scan named in `abnormal`, else 0}.
    """

    def __init__(
        self,
        folder: Path,
        scans: Collection[str],
        image_size: tuple[int, int],
        augmentation: Augmentation | None = None,
        patch_size: tuple[int, int] | None = None,
        abnormal: Collection[str] = (),
    ) -> None:
        self.abnormal = frozenset(abnormal)
        super().__init__(cast(Any, SliceStore(folder, scans)), transform=chain(image_size, augmentation, patch_size))

    def __getitem__(self, item: Any) -> dict[str, Any]:
        set_track_meta(False)  # per process: plain tensors, no bookkeeping of the spatial transforms
        index, seed = item
        self.transform.set_random_state(seed=seed % (1 << 32))
        label = int(self.data.scan_of(index) in self.abnormal)  # type: ignore[attr-defined]
        sample = self.transform(self.data[index])
        sample = sample[0] if isinstance(sample, list) else sample  # a crop gives a list of one
        return {"image": sample["image"] * sample["mask"], "mask": sample["mask"], "z": sample["z"], "seed": seed, "label": label}


def chain(image_size: tuple[int, int], augmentation: Augmentation | None = None, patch_size: tuple[int, int] | None = None) -> mt.Compose:
    """Resize (area for images, nearest for masks), then flip, affine, intensity changes and a patch of the brain where asked for."""
    keys = ("image", "mask")
    steps: list[Any] = [mt.ToTensord(keys), mt.Resized(keys, image_size, mode=("area", "nearest-exact"))]
    a = augmentation
    if a and a.flip:
        steps.append(mt.RandFlipd(keys, prob=a.flip, spatial_axis=0))  # the first axis runs from left to right
    if a and (a.rotate or a.translate or a.scale):
        shift = tuple(a.translate * side for side in image_size)
        steps.append(
            mt.RandAffined(
                keys,
                prob=1.0,
                rotate_range=np.deg2rad(a.rotate),
                translate_range=shift,
                scale_range=(a.scale, a.scale),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            )
        )
    if a and a.intensity:
        steps += [mt.RandScaleIntensityd("image", factors=a.intensity, prob=1.0), mt.Lambdad("image", lambda x: x.clamp(0, 1))]
    if patch_size:
        steps.append(mt.RandCropByPosNegLabeld(keys, label_key="mask", spatial_size=patch_size, pos=1, neg=0, num_samples=1))
    return mt.Compose(steps)


def resize_volume(image: np.ndarray, mask: np.ndarray, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Axial slices of a volume (X, Y, Z[, C]) and mask (X, Y, Z) as network input, (Z, C, H, W) and (Z, 1, H, W), by training's chain."""
    set_track_meta(False)
    channels = image.reshape(*mask.shape, -1).transpose(2, 3, 0, 1)
    stack = {"image": channels.reshape(-1, *mask.shape[:2]).astype(np.float32), "mask": mask.transpose(2, 0, 1).astype(np.float32)}
    small = chain(image_size)(stack)  # slices, and the channels of each, stand where channels would
    inside = small["mask"][:, None]
    return small["image"].reshape(*channels.shape[:2], *inside.shape[2:]) * inside, inside


class Batches:
    """Batches of one epoch, the same whatever the number of processes and loader workers.

    The order and every sample's seed follow from (seed, epoch). `batch_size` is the total: each of `world` processes
    gets its contiguous share of every batch. Without `shuffle` the order is the store's and seeds do not change.
    """

    def __init__(
        self, dataset: SliceDataset, loop: Loop, *, shuffle: bool, stream: int, rank: int = 0, world: int = 1, steps: int | None = None
    ) -> None:
        self.dataset, self.loop, self.shuffle, self.stream = dataset, loop, shuffle, stream
        self.rank, self.world, self.steps = rank, world, steps

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
        share = [np.array_split(b, self.world)[self.rank] for b in batches]
        return [[(int(i), int(seeds[i])) for i in b] for b in share]

    def epoch(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Batches of an epoch, read as they are asked for."""
        yield from DataLoader(self.dataset, batch_sampler=self.plan(epoch), num_workers=self.loop.loader_workers)

    def length(self) -> int:
        return len(self.plan(0))
