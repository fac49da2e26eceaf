"""Plant synthetic lesions in healthy test scans, on their own grids: a labelled cohort where nobody drew a lesion mask."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import label
from skimage import io, util
from tqdm import tqdm

from evaluation import synthetic
from evaluation.synthetic import KINDS, match
from pipelines import cli
from pipelines.cohort.cases import cohort_rows
from pipelines.versions import versions
from preprocessing.files import atomic, nearest, read_json, write_json, write_table
from preprocessing.images import array_axis, is_nifti, read_image, save_nifti, voxel_sizes
from preprocessing.register import carry_mask, resample
from preprocessing.scans import InputError, ScanError

log = logging.getLogger("norma")

COLUMNS = ("id", "image", "subject", "split", "label", "pathology", "mask", "brain_mask")

MARGIN_MM = 3.0  # between a lesion and the brain's surface, about

LARGEST = 0.5  # of the brain's volume

TRIES, VISIBLE = (
    5,
    0.1,
)  # places tried for a lesion whose mean change is this share of the brain's range

VOLUMES = "1,20"


@dataclass(frozen=True)
class Head:
    """A test scan as it came in, with its brain (bool) on its own grid; `world` (4x4) maps atlas mm to its mm."""

    row: dict[str, str]
    image: nib.Nifti1Image
    brain: np.ndarray
    world: np.ndarray

    @property
    def data(self) -> np.ndarray:
        return np.asarray(self.image.dataobj)

    @property
    def spacing(self) -> tuple[float, float, float]:
        return voxel_sizes(self.image.affine)

    @property
    def lr_axis(self) -> int:
        """The array axis that runs closest to left-right."""
        return array_axis(self.image.affine, 0)


@dataclass(frozen=True)
class Plan:
    """What is wanted of every scan: the kinds in order, copies, volumes in ml (log-uniform) or mask files, and the seed."""

    kinds: list[str]
    per_scan: int
    volumes: tuple[float, float]
    masks: list[Path]
    seed: int


def load_head(data: Path, row: dict[str, str]) -> Head:
    """Read a raw scan of a preprocessed cohort and carry its brain mask back to it; ScanError where it is no longer that scan."""
    side, path = read_json(data / row["sidecar"]), Path(row["image"])
    image, mask = read_image(path), _read_mask(data / row["brain"])
    if list(image.shape) != side["native_shape"] or not np.allclose(
        image.affine, side["native_affine"], atol=1e-3
    ):
        raise ScanError(
            f"{path}: shape {image.shape} or affine differs from what {data} was made of; run 'make preprocess' again."
        )
    world = np.array(side["world"], float)
    brain = carry_mask(
        np.asarray(mask.dataobj) > 0, mask.affine, image.shape, image.affine, np.linalg.inv(world)
    )
    if not brain.any():
        raise ScanError(f"{path}: its brain mask {row['brain']} is empty on the scan's own grid.")
    return Head(row, image, brain, world)


def _read_mask(path: Path) -> nib.Nifti1Image:
    """A mask that Norma wrote, of any number of slices."""
    if not path.is_file():
        raise ScanError(f"{path}: no such file; run 'make preprocess' again.")
    return nib.Nifti1Image.from_filename(path)


def donor_on(head: Head, donor: Head) -> tuple[np.ndarray, np.ndarray]:
    """The donor on the head's grid, through the atlas, with intensities matched; and where both have brain (bool)."""
    way = donor.world @ np.linalg.inv(head.world)  # head mm -> atlas mm -> donor mm
    theirs = match(donor.data, donor.brain, head.data, head.brain)
    shape, affine = head.data.shape, head.image.affine
    both = head.brain & carry_mask(donor.brain, donor.image.affine, shape, affine, way)
    return resample(theirs, donor.image.affine, shape, affine, way, pad=None), both


def moved(
    lesion: np.ndarray,
    own: np.ndarray,
    shape: tuple[int, ...],
    affine: np.ndarray,
    centre: np.ndarray,
) -> np.ndarray:
    """A lesion (bool, affine `own`) on another grid with its middle at `centre` mm, in the pose that it has in the world."""
    world = np.eye(4)
    world[:3, 3] = own[:3, :3] @ np.argwhere(lesion).mean(0) + own[:3, 3] - centre
    return carry_mask(lesion, own, shape, affine, world)


def largest_piece(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The largest 26-connected lesion (bool) of a mask file, and its affine; ScanError where it is empty."""
    image = read_image(path)
    pieces, n = label(np.asarray(image.dataobj) > 0, np.ones((3, 3, 3)))
    if n == 0:
        raise ScanError(f"{path}: the lesion mask is empty; take it out of the folder of --masks.")
    return pieces == np.bincount(pieces[pieces > 0]).argmax(), image.affine


def plant_one(
    head: Head, kind: str, plan: Plan, rng: np.random.Generator, donor: Head | None
) -> tuple[np.ndarray, np.ndarray, dict]:
    """One lesion in a scan: the new image float32, its mask (bool), and what there is to tell of it.

    A lesion that changes next to nothing (white matter for white matter) is drawn again elsewhere, TRIES times at most;
    the first that VISIBLE allows is kept, or else the strongest.
    """
    room, foreign = head.brain, None
    if kind == "mirror":
        room = room & synthetic.mirrored(room, room, head.lr_axis)
    elif donor is not None:
        foreign, room = donor_on(head, donor)
    source = plan.masks[rng.integers(len(plan.masks))] if plan.masks else None
    lesion, own = largest_piece(source) if source else (None, np.eye(4))
    wanted = (
        float(np.exp(rng.uniform(*np.log(plan.volumes))))
        if lesion is None
        else float(lesion.sum()) * _voxel_ml(own)
    )
    if wanted > LARGEST * room.sum() * _voxel_ml(head.image.affine):
        advice = (
            f"take {source} out of the folder of --masks" if source else "give smaller --volumes"
        )
        raise ScanError(
            f"{head.row['image']}: a lesion of {wanted:.3g} ml has no place in this brain; {advice}."
        )
    best, change = None, -1.0
    for _ in range(TRIES):
        side = synthetic.hemisphere(rng, room, head.lr_axis) if kind == "mirror" else room
        voxel = synthetic.place(rng, side, head.spacing, wanted, MARGIN_MM)
        centre = head.image.affine[:3, :3] @ voxel + head.image.affine[:3, 3]
        if lesion is None:
            shape = synthetic.random_shape(rng, room.shape, head.spacing, voxel, wanted)
        else:
            shape = moved(lesion, own, room.shape, head.image.affine, centre)
        if not (shape & room).any():
            continue
        new, mask = synthetic.plant(
            rng, kind, head.data, room, shape, head.spacing, foreign, head.lr_axis
        )
        seen = synthetic.visibility(head.data, new, room, mask)
        if seen > change:
            best, change = (new, mask, {"centre_mm": centre, "centre_voxel": voxel}), seen
        if change >= VISIBLE:
            break
    if best is None:
        raise ScanError(
            f"{head.row['image']}: the lesion of {source} leaves no voxel on this grid; take it out of the folder of --masks."
        )
    volume = float(best[1].sum()) * _voxel_ml(head.image.affine)
    told = {"kind": kind, "volume_ml": volume, "wanted_ml": wanted, "change": change, **best[2]}
    return (
        best[0],
        best[1],
        told | {"shape": source or "generated", "donor": donor.row["id"] if donor else None},
    )


def _voxel_ml(affine: np.ndarray) -> float:
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def copies(
    head: Head, index: int, plan: Plan, data: Path, rows: Sequence[dict[str, str]], out: Path
) -> tuple[list[dict], list[dict]]:
    """Write a scan's synthetic copies and their masks; their rows of the table and of synthetic.json."""
    made, told = [], []
    others = [r for r in rows if r["subject"] != head.row["subject"]]
    for number in range(plan.per_scan):
        rng = np.random.default_rng([plan.seed, index, number])
        kind = plan.kinds[(index * plan.per_scan + number) % len(plan.kinds)]
        donor = load_head(data, others[rng.integers(len(others))]) if kind == "blend" else None
        image, mask, about = plant_one(head, kind, plan, rng, donor)
        name = f"{head.row['id']}_synthetic-{number + 1:02d}-{kind}"
        files = _write(head, image, mask, out / head.row["subject"] / name, kind)
        row = {
            "id": name,
            "subject": head.row["subject"],
            "split": "test",
            "label": "abnormal",
            "pathology": f"synthetic {kind}",
        }
        paths = {k: str(p.relative_to(out)) for k, p in files.items()}
        made.append(row | paths | {"brain_mask": head.row["brain_mask"]})
        told.append({"id": name, "original": head.row["id"], **paths, **about})
    return made, told


def _write(
    head: Head, image: np.ndarray, mask: np.ndarray, base: Path, kind: str
) -> dict[str, Path]:
    """Write image and mask on the scan's grid: a NIfTI with the scan's header, or for a picture 16-bit and 8-bit PNG."""
    base.parent.mkdir(parents=True, exist_ok=True)
    if image.shape[2] == 1:
        return _write_pictures(image, mask, base)
    files = {
        "image": base.with_name(f"{base.name}.nii.gz"),
        "mask": base.with_name(f"{base.name}_mask.nii.gz"),
    }
    arrays = {"image": _as_stored(image, head), "mask": mask.astype(np.uint8)}
    for what, path in files.items():
        header = head.image.header.copy()
        header.set_data_dtype(arrays[what].dtype)
        header["descrip"] = f"synthetic lesion: {kind}"
        save_nifti(nib.Nifti1Image(arrays[what], head.image.affine, header), path)
    return files


def _as_stored(image: np.ndarray, head: Head) -> np.ndarray:
    """Whole numbers where the scan has only those, in its own type or the first that holds them all; otherwise float32."""
    stored = head.image.header.get_data_dtype()
    if stored.kind not in "iu" or not (head.data == np.rint(head.data)).all():
        return image
    whole = np.rint(image)
    for dtype in (stored, np.dtype(np.int16), np.dtype(np.int32)):
        if np.iinfo(dtype).min <= whole.min() and whole.max() <= np.iinfo(dtype).max:
            return whole.astype(dtype)
    return whole


def _write_pictures(image: np.ndarray, mask: np.ndarray, base: Path) -> dict[str, Path]:
    """The inverse of `read_picture`, atomically; a picture ends at black and white, so what lies beyond is cut there."""
    files = {
        "image": base.with_name(f"{base.name}.png"),
        "mask": base.with_name(f"{base.name}_mask.png"),
    }
    arrays = {"image": util.img_as_uint(np.clip(image, 0, 1)), "mask": util.img_as_ubyte(mask)}
    for what, path in files.items():
        with atomic(path) as temporary:
            io.imsave(temporary, arrays[what][::-1, ::-1, 0].T, check_contrast=False)
    return files


def synthesise(
    data: Path, rows: Sequence[dict[str, str]], out: Path, plan: Plan
) -> tuple[list[dict], list[dict]]:
    """Write the cohort of healthy scans (`rows` of `data`) and their synthetic copies to `out`; its rows, and the scans left out."""
    table, told, failures = [], [], []
    with tqdm(total=len(rows) * plan.per_scan, desc="synthetic lesions", unit="copy") as bar:
        for index, row in enumerate(rows):
            try:
                made, about = copies(load_head(data, row), index, plan, data, rows, out)
            except ScanError as error:
                failures.append(
                    {
                        "id": row["id"],
                        "image": row["image"],
                        "split": "test",
                        "reason": cli.error_sentence(error),
                    }
                )
                log.warning("left out: %s", failures[-1]["reason"])
            else:
                healthy = {k: row[k] for k in ("id", "subject", "split", "brain_mask")} | {
                    "label": "healthy"
                }
                table += [healthy | {"image": Path(row["image"]).resolve()}, *made]
                told += about
            bar.update(plan.per_scan)
    write_table(out / "failures.tsv", failures, ("id", "image", "split", "reason"))
    if table:
        write_table(out / "cohort.tsv", table, COLUMNS)
        settings = {
            "seed": plan.seed,
            "per_scan": plan.per_scan,
            "kinds": plan.kinds,
            "data": data.resolve(),
        }
        settings |= {"masks": plan.masks} if plan.masks else {"volumes_ml": plan.volumes}
        write_json(
            out / "synthetic.json",
            {"synthetic": True, "settings": settings, "versions": versions(), "lesions": told},
        )
    return table, failures


def healthy_test_rows(data: Path) -> list[dict[str, str]]:
    """The test rows of a preprocessed cohort that are not labelled abnormal; InputError where there is none."""
    rows = [r for r in cohort_rows(data) if r["split"] == "test" and r["label"] != "abnormal"]
    if not rows:
        raise InputError(
            f"{data / 'scans.tsv'}: no healthy scans in split 'test'; synthetic lesions are planted in those alone."
        )
    unknown = sum(not r["label"] for r in rows)
    if unknown:
        log.info("%d test scans without a label are taken as healthy.", unknown)
    return rows


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Read the arguments; InputError says which one cannot be used, and why."""
    kinds = kinds_of(arguments.kinds)
    if arguments.per_scan < 1:
        raise InputError(
            f"--per-scan: {arguments.per_scan}; expected at least one copy of each scan."
        )
    if arguments.seed < 0:
        raise InputError(f"--seed: {arguments.seed}; expected 0 or a larger whole number.")
    if arguments.volumes and arguments.masks:
        raise InputError(
            "--volumes and --masks: the lesions of --masks keep their own volumes; give one of the two."
        )
    masks = _mask_files(Path(arguments.masks)) if arguments.masks else []
    return Plan(kinds, arguments.per_scan, volumes_of(arguments.volumes), masks, arguments.seed)


def kinds_of(text: str | None) -> list[str]:
    """Kinds of lesions in a user's order, all where nothing is said; InputError for an unknown one."""
    kinds = [k.strip() for k in text.split(",")] if text else list(KINDS)
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(
                f"--kinds: unknown kind '{kind}'; expected some of {', '.join(KINDS)}{nearest(kind, KINDS)}"
            )
    return kinds


def volumes_of(text: str | None) -> tuple[float, float]:
    """Smallest and largest volume in ml; InputError for what is no such pair."""
    text = text or VOLUMES
    try:
        low, high = (float(v) for v in text.split(","))
    except ValueError:
        low = high = float("nan")
    if not (0 < low <= high < float("inf")):
        raise InputError(
            f"--volumes: '{text}'; expected smallest and largest volume in ml, both positive, such as {VOLUMES}."
        )
    return low, high


def _mask_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if is_nifti(p) and not p.name.startswith("."))
    if not files:
        raise InputError(
            f"{folder}: no .nii or .nii.gz files; give --masks a folder of lesion masks."
        )
    return files


def without_blend(plan: Plan, rows: Sequence[dict[str, str]]) -> Plan:
    """The plan as it is, or where there is one subject only, without the kind that needs two."""
    if "blend" not in plan.kinds or len({r["subject"] for r in rows}) > 1:
        return plan
    kinds = [k for k in plan.kinds if k != "blend"]
    if not kinds:
        raise InputError(
            f"--kinds: there is one healthy test subject, '{rows[0]['subject']}'; kind 'blend' needs a second one, give other --kinds."
        )
    log.info("kind 'blend' is left out: it needs a second healthy test subject.")
    return replace(plan, kinds=kinds)
