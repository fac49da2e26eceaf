"""Random slices of the store beside NIfTI per slice and MONAI's caches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import CacheDataset, PersistentDataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from benchmarks.measure import Row, alternate, resident_mb, row
from pipelines.cohort.store import preprocess_scan
from pipelines.config import load_recipe
from preprocessing import slices
from preprocessing.scans import Scan
from preprocessing.slices import SliceStore

SCANS = 12  # copies of a scan in the store
READS = 600  # random slices


def cohort_of(scan: Path, modality: str, copies: int, out: Path) -> Path:
    """Preprocess one scan and enter it many times in the slice store; return the store's folder.

    The last copy is for validation, the others for training.
    """
    preprocess_scan(Scan("scan", scan, "scan"), load_recipe(modality), out)
    folder = out / "slices"
    image = np.load(folder / "scan_image.npy")
    brain = np.load(folder / "scan_mask.npy")
    pixels = [int(one.sum()) for one in brain]
    entries: list[dict[str, Any]] = []
    for i in range(copies):
        name = f"c{i}"
        np.save(folder / f"{name}_image.npy", image)
        np.save(folder / f"{name}_mask.npy", brain)
        split = "val" if i == copies - 1 else "train"
        copy = {"scan": name, "subject": name, "split": split, "label": "healthy"}
        entries += [copy | {"row": z, "z": z, "brain_px": n} for z, n in enumerate(pixels)]
    slices.write_index(folder, entries)
    return folder


def loading(scan: Path, repeats: int) -> list[Row]:
    """Measure random slices per second, and memory as the cohort grows."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = SliceStore(cohort_of(scan, "t1", SCANS, Path(folder)))
        order = rng.integers(0, len(store), READS)
        ways = ways_to_load(store, order, Path(folder))
        taken = alternate(ways, repeats)
        # The caches stay alive: memory that they give back would hide what reads take.
        grown = [memory_of_reads(store, copies, rng) for copies in (2, SCANS)]

    rows: list[Row] = []
    for name, value in taken.items():
        if name != "Norma":
            what = "random slices, image and mask"
            rows.append(row(what, READS / taken["Norma"], "1/s", name, READS / value, more=True))
    what = f"memory that 3,000 random reads of {SCANS} scans leave"
    return [*rows, row(what, grown[1], "MB", "of 2 scans", grown[0])]


def ways_to_load(
    store: SliceStore, order: np.ndarray, folder: Path
) -> dict[str, Callable[[], Any]]:
    """Return the ways to read slices in an order; MONAI's caches are filled before."""
    files = nifti_per_slice(store, folder)
    chain = Compose([LoadImaged("image"), EnsureChannelFirstd("image", channel_dim="no_channel")])
    items = [{"image": str(file)} for file in files]
    on_disk = PersistentDataset(items, chain, cache_dir=folder / "cache")
    in_memory = CacheDataset(items, chain, progress=False, num_workers=0)
    for i in order:
        on_disk[int(i)]

    def by_nibabel() -> None:
        for i in order:
            np.asarray(nib.Nifti1Image.from_filename(files[int(i)]).dataobj)

    return {
        "Norma": lambda: [store.batch(eight) for eight in order.reshape(-1, 8).tolist()],
        "NIfTI per slice (nibabel)": by_nibabel,
        "MONAI PersistentDataset": lambda: [on_disk[int(i)] for i in order],
        "MONAI CacheDataset": lambda: [in_memory[int(i)] for i in order],
    }


def nifti_per_slice(store: SliceStore, folder: Path) -> list[Path]:
    """Write every slice of a store as a file of its own."""
    files = []
    for i in range(len(store)):
        image = store[i]["image"][0].astype(np.float32)[..., None]
        files.append(folder / f"{i:05d}.nii.gz")
        nib.save(nib.Nifti1Image(image, np.eye(4)), files[-1])
    return files


def memory_of_reads(store: SliceStore, copies: int, rng: np.random.Generator) -> float:
    """Return the MB by which random reads of so many scans make this process grow."""
    part = SliceStore(store.folder, {f"c{i}" for i in range(copies)})
    before = resident_mb()
    for eight in rng.integers(0, len(part), (375, 8)).tolist():
        part.batch(eight)
    return max(resident_mb() - before, 0.0)
