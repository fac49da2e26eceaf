"""Slices: which to keep, the store that training reads, other planes, export as NIfTI."""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from preprocessing.files import atomic, each_row, read_json, write_json, write_table
from preprocessing.images import save_nifti
from preprocessing.scans import InputError

COUNT = "index.json"  # how many rows the index beside it has
AGAIN = "run 'make preprocess' again."
OPEN = 64  # scans whose files stay open

# axes of a volume (X, Y, Z), that of the slices last
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}

INDEX_COLUMNS = ("scan", "subject", "split", "label", "row", "z", "brain_px")


def select(brain: np.ndarray, min_pixels: int) -> np.ndarray:
    """Indices along the last axis of the slices with at least `min_pixels` brain pixels."""
    return np.flatnonzero(brain.sum(axis=(0, 1)) >= min_pixels)


def write_arrays(
    folder: Path, scan: str, image: np.ndarray, brain: np.ndarray, z: np.ndarray
) -> None:
    """Store slices `z` of a volume: the image (X, Y, Z[, C]) and its brain (X, Y, Z).

    They become `<scan>_image.npy` (n, C, X, Y) float16 and `<scan>_mask.npy` (n, 1, X, Y) uint8.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, volume, dtype in (("image", image, np.float16), ("mask", brain, np.uint8)):
        with atomic(folder / f"{scan}_{name}.npy") as temporary, open(temporary, "wb") as handle:
            channels = volume.reshape(*brain.shape, -1)[:, :, z]
            np.save(handle, np.ascontiguousarray(channels.transpose(2, 3, 0, 1)).astype(dtype))


def write_index(folder: Path, rows: Iterable[dict]) -> None:
    """Write index.tsv, a row per slice with `INDEX_COLUMNS`, and how many they are beside it."""
    count = itertools.count()
    (folder / COUNT).unlink(missing_ok=True)
    write_table(folder / "index.tsv", _counted(rows, count), INDEX_COLUMNS)
    write_json(folder / COUNT, {"slices": next(count)})


def _counted(rows: Iterable[dict], count: Iterator[int]) -> Iterator[dict]:
    for row in rows:
        next(count)
        yield row


def export_nifti(
    folder: Path, scan: str, image: np.ndarray, affine: np.ndarray, z: np.ndarray
) -> None:
    """Write slices of a volume (X, Y, Z[, C]) as NIfTI (X, Y, 1[, C]), in their place in space.

    They are named `<scan>_slice-<zzz>.nii.gz`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in z:
        moved = affine.copy()
        moved[:3, 3] += affine[:3, 2] * index
        picture = nib.Nifti1Image(image[:, :, index : index + 1], moved)
        save_nifti(picture, folder / f"{scan}_slice-{index:03d}.nii.gz")


def turned(volume: np.ndarray, plane: str) -> np.ndarray:
    """A view of a volume (X, Y, Z[, C]) whose third axis goes through the slices of `plane`.

    What is written to it stands in the volume.
    """
    return volume.transpose(*PLANES[plane], *range(3, volume.ndim))


def in_plane(folder: Path, plane: str, depth: int, min_pixels: int) -> Path:
    """The slice store of `folder` in another plane, made within it where it is missing or old.

    `folder` holds axial slices from a grid of `depth`, and is itself the store for "axial". A store
    is old where its index is older than the axial one.
    """
    if plane == "axial":
        return folder
    axial = folder / "index.tsv"
    target = folder / plane
    index = target / "index.tsv"
    if not index.is_file() or index.stat().st_mtime < axial.stat().st_mtime:
        target.mkdir(exist_ok=True)
        write_index(target, _rewritten(folder, target, plane, depth, min_pixels))
    return target


def _rewritten(
    folder: Path, target: Path, plane: str, depth: int, min_pixels: int
) -> Iterator[dict]:
    """Write the arrays of every scan in another plane, and give the rows of their index."""
    store = SliceStore(folder)
    row_of = {row["scan"]: row for row in each_row(folder / "index.tsv")}
    for number, scan in enumerate(store.scans):
        volumes = store.volume(number, depth).values()
        image, mask = (turned(np.moveaxis(v, 0, -1), plane) for v in volumes)
        brain = mask[..., 0]
        z = select(brain, min_pixels)
        write_arrays(target, scan, image, brain, z)

        pixels = brain.sum((0, 1), dtype=int)[z]
        for row, (place, count) in enumerate(zip(z, pixels, strict=True)):
            yield row_of[scan] | {"row": row, "z": int(place), "brain_px": int(count)}


class SliceStore:
    """Slices of a preprocessed cohort, or of the `scans` named.

    `store[i]` gives {"image": (C, X, Y) float16 in [0, 1], "mask": (1, X, Y) uint8 of 0 and 1,
    "z": int}, as stored. The store holds 12 bytes a slice in memory. Files are read where the slice
    lies, by any number of processes. Raises InputError where the folder holds no index.
    """

    def __init__(self, folder: Path, scans: Collection[str] | None = None) -> None:
        self.folder = Path(folder)
        index = self.folder / "index.tsv"
        if not index.is_file():
            raise InputError(
                f"{index}: no such file; run 'make preprocess' first and give its OUT as DATA."
            )
        found: dict[str, int] = {}  # scans in the order of the index
        places = array("i")
        rows = 0
        for rows, r in enumerate(each_row(index), start=1):
            try:
                place = (int(r["row"]), int(r["z"]))
                if scans is None or r["scan"] in scans:
                    places.extend((found.setdefault(r["scan"], len(found)), *place))
            except (KeyError, ValueError, OverflowError):
                raise InputError(f"{index}, line {rows + 1}: no row of a slice; {AGAIN}") from None
        _check_count(index, rows)
        self.scans = sorted(found)
        number = {scan: i for i, scan in enumerate(self.scans)}
        # a row per slice: the number of its scan, its row in the arrays, its z
        self.places = np.array(places, np.int32).reshape(-1, 3)
        self.places[:, 0] = np.array([number[scan] for scan in found], np.int32)[self.places[:, 0]]
        self._open = lru_cache(maxsize=OPEN)(self._files)

    def _files(self, scan: int) -> tuple[_Rows, _Rows]:
        base = self.folder / self.scans[scan]
        return _Rows(Path(f"{base}_image.npy")), _Rows(Path(f"{base}_mask.npy"))

    def __len__(self) -> int:
        return len(self.places)

    def scan_of(self, i: int) -> str:
        """Name of the scan that slice `i` belongs to."""
        return self.scans[self.places[i][0]]

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {key: value[0] for key, value in self.batch([i]).items()}

    def batch(self, indices: Sequence[int], around: Sequence[int] = ()) -> dict[str, np.ndarray]:
        """Several slices at once: the arrays of `store[i]` one after the other.

        "image" is (B, C * (1 + len(around)), X, Y), "mask" (B, 1, X, Y), "z" (B,). `around` adds as
        channels the images of the slices so many places up or down, 0 where none is stored.
        """
        scans, rows, z = self.places[indices].T.tolist()
        images, masks = zip(*(self._open(scan) for scan in scans), strict=True)
        channels, *size = images[0].shape
        shape = (len(indices), channels * (1 + len(around)), *size)
        image = np.zeros(shape, images[0].dtype)
        mask = np.empty((len(indices), *masks[0].shape), masks[0].dtype)
        for b, i in enumerate(indices):
            masks[b].read(rows[b], mask[b])
            for k, offset in enumerate((0, *around)):
                row = rows[b] if offset == 0 else self._row_of(scans[b], z[b] + offset, i)
                if row is not None:
                    images[b].read(row, image[b, k * channels : (k + 1) * channels])
        return {"image": image, "mask": mask, "z": np.array(z)}

    def _row_of(self, scan: int, z: int, near: int) -> int | None:
        """Row of the slice `z` of a scan whose slice `near` is known; None if it is not stored."""
        # the slices of a scan stand together in order, so the wanted one is no more places away
        # than its z
        away = abs(z - self.places[near, 2])
        low = max(0, near - away)
        places = self.places[low : near + away + 1]
        found = np.flatnonzero((places[:, 0] == scan) & (places[:, 2] == z))
        return int(places[found[0], 1]) if found.size else None

    def volume(self, scan: int, depth: int) -> dict[str, np.ndarray]:
        """All slices of the `scan`-th scan at their places in a grid of `depth` axial slices.

        "image" and "mask" are (C, X, Y, depth), 0 where no slice is stored.
        """
        found = self.batch(np.flatnonzero(self.places[:, 0] == scan).tolist())
        result = {}
        for name in ("image", "mask"):
            result[name] = np.zeros((*found[name].shape[1:], depth), found[name].dtype)
            result[name][..., found["z"]] = np.moveaxis(found[name], 0, -1)
        return result

    def __getstate__(self) -> dict:  # open files do not travel to loader workers
        return {k: v for k, v in self.__dict__.items() if k != "_open"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(maxsize=OPEN)(self._files)


def _check_count(index: Path, rows: int) -> None:
    """InputError where an index has lost rows since it was written, or the count of them."""
    path = index.parent / COUNT
    if not path.is_file():
        raise InputError(f"{path}: no such file, and it says how many slices there are; {AGAIN}")
    written = read_json(path).get("slices")
    if written != rows:
        raise InputError(f"{index}: {rows} slices, and {written} were written; {AGAIN}")


class _Rows:
    """The entries of a .npy file along its first axis, read one by one.

    No memory is mapped that would grow with what was read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"{path}: no such file; {AGAIN}")
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed when the store lets go)
        try:
            np.lib.format.read_magic(self.file)
            shape, _, self.dtype = np.lib.format.read_array_header_1_0(self.file)
        except Exception as error:  # numpy parses the header as Python and raises many kinds
            raise InputError(f"{path}: not an array of slices ({error}); {AGAIN}") from None
        self.shape = shape[1:]
        self.start = self.file.tell()
        self.size = int(np.prod(self.shape)) * self.dtype.itemsize

    def read(self, row: int, target: np.ndarray) -> None:
        """Entry `row` into an array of its shape and type; InputError where the file ends early."""
        buffer = target.reshape(-1).view(np.uint8).data
        count = os.preadv(self.file.fileno(), [buffer], self.start + row * self.size)
        if count < self.size:
            raise InputError(
                f"{self.file.name}: ends before slice {row}; "
                "delete it and run 'make preprocess' again."
            )


class VolumeStore:
    """The scans of a slice store, one by one, by the store's own interface.

    Volumes (C, X, Y, `depth`) stand in place of slices, and z is 0.
    """

    def __init__(self, slices: SliceStore, depth: int) -> None:
        self.slices = slices
        self.depth = depth

    def __len__(self) -> int:
        return len(self.slices.scans)

    def scan_of(self, i: int) -> str:
        """Name of scan `i`."""
        return self.slices.scans[i]

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.slices.volume(i, self.depth) | {"z": 0}

    def batch(self, indices: Sequence[int], around: Sequence[int] = ()) -> dict[str, np.ndarray]:
        """Several volumes at once, as `SliceStore.batch` gives slices."""
        volumes = [self[i] for i in indices]
        result = {}
        for name in ("image", "mask", "z"):
            result[name] = np.stack([volume[name] for volume in volumes])
        return result
