"""Slices: which to keep, the store that training reads, the same in other planes, export as NIfTI."""

from __future__ import annotations

import os
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.files import atomic, each_row, write_table
from preprocessing.images import save_nifti
from preprocessing.scans import InputError

OPEN = 64  # scans whose files stay open
PLANES = {
    "axial": (0, 1, 2),
    "coronal": (0, 2, 1),
    "sagittal": (1, 2, 0),
}  # axes of a volume (X, Y, Z), that of the slices last
INDEX_COLUMNS = ("scan", "subject", "split", "label", "row", "z", "brain_px")


def select(mask: np.ndarray, min_pixels: int) -> np.ndarray:
    """Indices along the last axis of the slices with at least `min_pixels` brain pixels."""
    return np.flatnonzero(mask.sum(axis=(0, 1)) >= min_pixels)


def write_arrays(
    folder: Path, scan: str, image: np.ndarray, mask: np.ndarray, z: np.ndarray
) -> None:
    """Store slices `z` of a volume: `<scan>_image.npy` (n, C, X, Y) float16 and `<scan>_mask.npy` (n, 1, X, Y) uint8.

    Image (X, Y, Z), or (X, Y, Z, C) where it has several channels; mask (X, Y, Z).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, volume, dtype in (("image", image, np.float16), ("mask", mask, np.uint8)):
        with atomic(folder / f"{scan}_{name}.npy") as temporary, open(temporary, "wb") as handle:
            channels = volume.reshape(*mask.shape, -1)[:, :, z]
            np.save(handle, np.ascontiguousarray(channels.transpose(2, 3, 0, 1)).astype(dtype))


def write_index(folder: Path, rows: Iterable[dict]) -> None:
    """Write the index: one row per slice; columns `INDEX_COLUMNS`."""
    write_table(folder / "index.tsv", rows, INDEX_COLUMNS)


def export_nifti(
    folder: Path, scan: str, image: np.ndarray, affine: np.ndarray, z: np.ndarray
) -> None:
    """Write each slice of a volume (X, Y, Z[, C]) as `<scan>_slice-<zzz>.nii.gz` of shape (X, Y, 1[, C]), in its place in space."""
    import nibabel as nib

    folder.mkdir(parents=True, exist_ok=True)
    for index in z:
        moved = affine.copy()
        moved[:3, 3] += affine[:3, 2] * index
        save_nifti(
            nib.Nifti1Image(image[:, :, index : index + 1], moved),
            folder / f"{scan}_slice-{index:03d}.nii.gz",
        )


def turned(volume: np.ndarray, plane: str) -> np.ndarray:
    """A view of a volume (X, Y, Z[, C]) whose third axis goes through the slices of `plane`; what is written to it stands in the volume."""
    return volume.transpose(*PLANES[plane], *range(3, volume.ndim))


def in_plane(folder: Path, plane: str, depth: int, min_pixels: int) -> Path:
    """The store of `folder`, whose axial slices come from a grid of `depth`, in another plane: made within it where it is not there yet.

    It stands as long as its index is no older than the axial one, which is given back for "axial".
    """
    index, own = folder / "index.tsv", folder / plane / "index.tsv"
    if plane == "axial" or (own.is_file() and own.stat().st_mtime >= index.stat().st_mtime):
        return folder if plane == "axial" else own.parent
    store, about = SliceStore(folder), {r["scan"]: r for r in each_row(index)}

    def rows() -> Iterator[dict]:
        for number, scan in enumerate(store.scans):
            image, mask = (
                turned(np.moveaxis(v, 0, -1), plane) for v in store.volume(number, depth).values()
            )
            z = select(mask[..., 0], min_pixels)
            write_arrays(own.parent, scan, image, mask[..., 0], z)
            pixels = mask[..., 0].sum((0, 1), dtype=int)[z]
            yield from (
                about[scan] | {"row": i, "z": int(at), "brain_px": int(n)}
                for i, (at, n) in enumerate(zip(z, pixels, strict=True))
            )

    own.parent.mkdir(exist_ok=True)
    write_index(own.parent, rows())
    return own.parent


class SliceStore:
    """Slices of a preprocessed cohort, or of the `scans` named: rows of the index, and arrays that are read slice by slice.

    `store[i]` gives {"image": (C, X, Y) float16 in [0, 1], "mask": (1, X, Y) uint8 of 0 and 1, "z": int}, as stored. What it holds in
    memory is 12 bytes a slice; files are read where the slice lies, by any number of processes. Raises InputError where the folder
    holds no index.
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
        for r in each_row(index):
            if scans is None or r["scan"] in scans:
                places.extend((found.setdefault(r["scan"], len(found)), int(r["row"]), int(r["z"])))
        self.scans = sorted(found)
        number = {scan: i for i, scan in enumerate(self.scans)}
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
        """Several slices at once: the arrays of `store[i]` one after the other, (B, C, X, Y), (B, 1, X, Y) and (B,).

        With `around` the images of the slices so many places further up or down follow as channels, 0 where none is stored:
        (B, C * (1 + len(around)), X, Y).
        """
        scans, rows, z = self.places[indices].T.tolist()
        pairs = [self._open(scan) for scan in scans]
        (images, masks), n = zip(*pairs, strict=True), pairs[0][0].shape[0]
        result = {
            "image": np.zeros(
                (len(pairs), n * (1 + len(around)), *images[0].shape[1:]), images[0].dtype
            ),
            "mask": np.empty((len(pairs), *masks[0].shape), masks[0].dtype),
        }
        for b, i in enumerate(indices):
            masks[b].read(rows[b], result["mask"][b])
            for k, offset in enumerate((0, *around)):
                row = rows[b] if offset == 0 else self._row_of(scans[b], z[b] + offset, i)
                if row is not None:
                    images[b].read(row, result["image"][b, k * n : (k + 1) * n])
        return result | {"z": np.array(z)}

    def _row_of(self, scan: int, z: int, near: int) -> int | None:
        """Row of the slice `z` of a scan whose slice `near` is known; None where it is not stored."""
        # a scan's slices stand together in order, so that the wanted one is no further away than its z
        low, high = (
            max(0, near - abs(z - self.places[near, 2])),
            near + abs(z - self.places[near, 2]) + 1,
        )
        found = np.flatnonzero((self.places[low:high, 0] == scan) & (self.places[low:high, 2] == z))
        return int(self.places[low + found[0], 1]) if found.size else None

    def volume(self, scan: int, depth: int) -> dict[str, np.ndarray]:
        """All slices of the `scan`-th scan at their places in a grid of `depth` axial slices, (C, X, Y, depth); 0 where none is stored."""
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


class _Rows:
    """The entries of a .npy file along its first axis, read one by one: no mapped memory that grows with what was seen."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed when the store lets go of it)
        np.lib.format.read_magic(self.file)
        shape, _, self.dtype = np.lib.format.read_array_header_1_0(self.file)
        self.shape, self.start = shape[1:], self.file.tell()
        self.size = int(np.prod(self.shape)) * self.dtype.itemsize

    def read(self, row: int, target: np.ndarray) -> None:
        """Entry `row` into an array of its shape and type."""
        if (
            os.preadv(
                self.file.fileno(),
                [target.reshape(-1).view(np.uint8).data],
                self.start + row * self.size,
            )
            < self.size
        ):
            raise InputError(
                f"{self.file.name}: ends before slice {row}; delete it and run 'make preprocess' again."
            )


class VolumeStore:
    """The scans of a slice store, one by one: the store's own interface, with volumes (C, X, Y, `depth`) in place of slices and z = 0."""

    def __init__(self, slices: SliceStore, depth: int) -> None:
        self.slices, self.depth = slices, depth

    def __len__(self) -> int:
        return len(self.slices.scans)

    def scan_of(self, i: int) -> str:
        """Name of scan `i`."""
        return self.slices.scans[i]

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.slices.volume(i, self.depth) | {"z": 0}

    def batch(self, indices: Sequence[int], around: Sequence[int] = ()) -> dict[str, np.ndarray]:
        """Several volumes at once, as `SliceStore.batch` gives slices."""
        found = [self[i] for i in indices]
        return {key: np.stack([v[key] for v in found]) for key in ("image", "mask", "z")}
