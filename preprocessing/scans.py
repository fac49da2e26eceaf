"""Scan tables: read BIDS folders, plain folders, CSV/TSV tables and decathlon JSON; split by subject; refuse leaks."""

from __future__ import annotations

import csv
import difflib
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import nibabel as nib
    import numpy as np

SPLITS = ("train", "val", "tune", "test")  # "tune": labelled scans for few-label operating points, in no other use
LABELS = ("healthy", "abnormal")
SUFFIXES = {"ct": "ct", "t1": "T1w", "t2": "T2w", "flair": "FLAIR", "picture": "picture"}  # BIDS has no CT: see docs/conventions.md
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_SPLIT_NAMES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
_LABEL_NAMES = {
    "0": "healthy",
    "normal": "healthy",
    "control": "healthy",
    "1": "abnormal",
    "lesion": "abnormal",
    "pathological": "abnormal",
}


class InputError(ValueError):
    """The input as a whole cannot be used; nothing is processed."""


class ScanError(ValueError):
    """One scan cannot be used; the batch goes on without it."""


@dataclass(frozen=True)
class Scan:
    """One image file with its row in the table.

    `label` is "healthy", "abnormal" or "" (unknown); `split` is "train", "val", "test" or "" (not split yet);
    `slice_labels` is a CSV with one row per axial slice of the scan's own grid (see docs/conventions.md). What else the
    table says about the scan is kept in `extra`, by column. `image` is the first sequence; `sequences` names the files of further
    ones by modality, where several are asked for.
    """

    id: str
    image: Path
    subject: str
    split: str = ""
    label: str = ""
    pathology: str = ""
    mask: Path | None = None
    brain_mask: Path | None = None
    slice_labels: Path | None = None
    extra: dict[str, str] = field(default_factory=dict)
    sequences: dict[str, Path] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """Every image file of the scan, the first sequence first."""
        return [self.image, *self.sequences.values()]


def read_scans(source: Path, modality: str) -> list[Scan]:
    """List the scans in `source`: one NIfTI file, a BIDS folder, a plain folder, a CSV/TSV table or a decathlon JSON.

    For modality "picture": one picture, a folder of pictures, or a folder whose CSV/TSV table lists them. For several sequences
    ("t1+flair"): a table with a column `image_<modality>` for each further one, or a BIDS folder.

    Raises InputError where nothing can be read, a row is malformed or two scans share a name.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give IN= a scan, a folder, a CSV/TSV table or a JSON datalist.")
    if "+" in modality and source.suffix.lower() not in (".csv", ".tsv") and not (source.is_dir() and _is_bids(source)):
        raise InputError(f"{source}: which files belong together is not told here. {how_to_give(modality)}")
    if modality == "picture" and source.is_dir():
        scans = _from_pictures(source)
    elif source.is_dir():
        scans = _from_bids(source, modality) if _is_bids(source) else _from_folder(source)
    elif source.suffix.lower() in (".csv", ".tsv"):
        scans = _from_table(source, modality)
    elif source.suffix.lower() == ".json":
        scans = _from_decathlon(source)
    elif is_nifti(source) or (modality == "picture" and is_picture(source)):
        scans = [Scan(id=_stem(source), image=source, subject=_subject(source))]
    else:
        kinds = ", ".join(PICTURES) if modality == "picture" else ".nii, .nii.gz"
        raise InputError(f"{source}: expected {kinds}, .csv, .tsv, .json or a folder, got a '{source.suffix}' file.")
    if not scans:
        kinds = "pictures" if modality == "picture" else f".nii or .nii.gz files (BIDS suffix '{SUFFIXES.get(modality)}')"
        raise InputError(f"{source}: no scans found; expected {kinds}.")
    return _unique_ids(scans)


def how_to_give(modality: str) -> str:
    """Which sequences are expected of each scan and how they are given, for a message; `modality` such as "t1+flair"."""
    first, *further = modality.split("+")
    named = " and ".join(f"'{column(name)}' ({SUFFIXES.get(name, name)})" for name in further)
    return (
        f"{len(further) + 1} sequences of each scan are expected, {modality}: give a table with the columns 'image' "
        f"({SUFFIXES.get(first, first)}), {named}, or a BIDS folder that has them."
    )


def column(modality: str) -> str:
    """The table's column of a further sequence."""
    return f"image_{modality}"


def is_nifti(path: Path) -> bool:
    """Whether the file name ends in .nii or .nii.gz."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def is_picture(path: Path) -> bool:
    """Whether the file name ends as a picture's does: `PICTURES`."""
    return path.suffix.lower() in PICTURES


def has_nifti(folder: Path) -> bool:
    """Whether a folder holds a NIfTI file at any depth."""
    return any(is_nifti(p) for p in folder.rglob("*.nii*"))


def assign_splits(scans: Sequence[Scan], seed: int = 0, fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)) -> list[Scan]:
    """Give every scan a split by subject where the table has none; abnormal subjects go to the test split.

    Healthy and unlabelled subjects are put in an order that depends on the seed and their names alone, then cut into
    train, val and test by `fractions`. A table that names splits for some rows only is refused.
    """
    given = [s for s in scans if s.split]
    if len(given) == len(scans):
        return list(scans)
    if given:
        missing = next(s for s in scans if not s.split)
        raise InputError(f"{missing.image}: no split, while other rows have one; give every row a split or none.")
    abnormal = {s.subject for s in scans if s.label == "abnormal"}
    subjects = sorted({s.subject for s in scans} - abnormal, key=lambda name: _digest(f"{seed}:{name}"))
    n_train, n_val = _counts(len(subjects), fractions)
    split = dict.fromkeys(subjects[:n_train], "train") | dict.fromkeys(subjects[n_train : n_train + n_val], "val")
    return [replace(s, split=split.get(s.subject, "test")) for s in scans]


def check_leaks(scans: Iterable[Scan]) -> None:
    """Refuse a subject in two splits, one image in two rows, and an abnormal scan in train or val, by name.

    A further sequence may serve two scans of one subject.
    """
    scans = list(scans)
    seen_split: dict[str, str] = {}
    seen_image: dict[Path, str] = {}
    for scan in scans:
        other = seen_split.setdefault(scan.subject, scan.split)
        if other != scan.split:
            raise InputError(f"subject '{scan.subject}' is in two splits, '{other}' and '{scan.split}'; keep a subject in one.")
        image = scan.image.resolve()
        if image in seen_image:
            raise InputError(f"{scan.image}: listed twice, as '{seen_image[image]}' and '{scan.id}'; list a scan once.")
        seen_image[image] = scan.id
        if scan.label == "abnormal" and scan.split in ("train", "val"):
            raise InputError(
                f"{scan.image}: abnormal scan '{scan.id}' in split '{scan.split}'; training and thresholds "
                "take healthy scans only, move it to 'test'."
            )
    owners: dict[Path, Scan] = {}
    for scan, file in ((s, f) for s in scans for f in s.sequences.values()):
        owner = owners.setdefault(file.resolve(), scan)
        if file.resolve() in seen_image or owner.subject != scan.subject:
            name = seen_image.get(file.resolve(), owner.id)
            raise InputError(f"{file}: listed twice, as '{name}' and as a further sequence of '{scan.id}'; list an image once.")


def write_table(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write dictionaries as a tab-separated table, atomically; None becomes an empty cell. `columns` by default those of the first row."""
    rows = iter(rows)
    if columns is None:
        first = next(rows, {})
        columns, rows = list(first), itertools.chain([first] if first else [], rows)
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")  # quotes a cell that holds a quotation mark
        writer.writerow(columns)
        writer.writerows(["" if r.get(c) is None else re.sub(r"[\t\r\n]+", " ", str(r[c])) for c in columns] for r in rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV or TSV file as dictionaries of stripped strings."""
    return list(each_row(path))


def each_row(path: Path) -> Iterator[dict[str, str]]:
    """`read_table` row by row, for tables that are larger than memory should bear."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            for row in csv.DictReader(handle, delimiter=delimiter):
                yield {(k or "").strip(): (v or "").strip() for k, v in row.items() if isinstance(v, (str, type(None)))}
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable {path.suffix} table ({error}).") from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` at the end; on an error it goes, and an OSError names `path`."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # a full disk names no file, or one that the user never heard of
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it; nothing half-written stays behind."""
    with atomic(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def save_nifti(image: nib.Nifti1Image, path: Path) -> None:
    """Write a NIfTI under a temporary name in the same folder, then rename it."""
    with atomic(path) as temporary:
        image.to_filename(temporary)


def read_image(path: Path) -> nib.Nifti1Image:
    """Read a NIfTI as float32 (X, Y, Z), scl_slope applied, header kept; a picture as `read_picture` does.

    A trailing axis of length 1 is dropped. Raises ScanError for a file that is missing, truncated, no NIfTI, in colour or
    complex, not 3-D, smaller than 8 voxels along an axis, or without a usable voxel size or affine.
    """
    import gzip
    import zlib

    import nibabel as nib
    import numpy as np

    if not path.is_file():
        raise ScanError(f"{path}: no such file.")
    if is_picture(path):
        return read_picture(path)
    try:
        pixdim = _stored_pixdim(path)
        if pixdim is not None and not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
            raise ScanError(f"{path}: voxel size {pixdim.tolist()} mm in the header; expected three positive numbers.")
        image: Any = nib.load(path)
        shape = image.shape
        if len(shape) > 3 and set(shape[3:]) == {1}:
            shape = shape[:3]
        if len(shape) != 3:
            raise ScanError(f"{path}: expected a 3-D scan, got {len(shape)}-D of shape {tuple(map(int, shape))}; give one volume per file.")
        if min(shape) < 8:
            raise ScanError(f"{path}: expected at least 8 voxels along each axis, got shape {tuple(map(int, shape))}.")
        if image.get_data_dtype().kind not in "biuf":
            raise ScanError(f"{path}: expected one number per voxel, got data of type {image.get_data_dtype()} (colour or complex).")
        affine = np.array(image.affine, dtype=float)
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.isfinite(affine).all() or (sizes == 0).any() or abs(np.linalg.det(affine[:3, :3] / np.where(sizes, sizes, 1))) < 1e-3:
            raise ScanError(f"{path}: the affine is singular or not finite, so voxels have no place in space; repair the header.")
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    except ScanError:
        raise
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
        raise ScanError(f"{path}: not a readable NIfTI file ({_first_line(error)}).") from None
    except (EOFError, OSError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ScanError(f"{path}: truncated or damaged ({_first_line(error)}); copy or export it again.") from None
    header = image.header if isinstance(image, nib.Nifti1Image) else None
    return nib.Nifti1Image(data, image.affine, header)


def read_picture(path: Path, channels: int = 1) -> nib.Nifti1Image:
    """Read a picture as a scan of one slice, float32 (X, Y, 1) in [0, 1] by its data type, pixels of 1 mm, grey.

    A picture is taken as a radiological display: its left is the patient's right, its top the front, so the array is
    RAS+ and shows the same way up in every figure. Colour becomes luminance; with `channels` above 1 the first so many planes
    (red, green, blue; of a TIFF whatever it holds) are kept, (X, Y, 1, channels). Raises ScanError for what is no picture.
    """
    import imageio.v3 as iio
    import nibabel as nib
    import numpy as np
    from skimage import color, util

    try:
        data = iio.imread(path)
    except (OSError, ValueError, SyntaxError, IndexError, RuntimeError) as error:
        raise ScanError(f"{path}: not a readable picture ({_first_line(error)}).") from None
    if channels > 1:
        return nib.Nifti1Image(np.ascontiguousarray(_planes(data, path, channels)[::-1, ::-1, None]), np.eye(4))
    if data.ndim == 3 and data.shape[2] in (3, 4):
        data = color.rgb2gray(data[:, :, :3]) if np.ptp(data[:, :, :3], axis=2).any() else data[:, :, 0]
    if data.ndim != 2 or min(data.shape) < 8:
        raise ScanError(f"{path}: expected one grey or colour picture of at least 8 x 8 pixels, got shape {data.shape}.")
    grey = util.img_as_float32(data)
    return nib.Nifti1Image(np.ascontiguousarray(grey.T[::-1, ::-1, None]), np.eye(4))


def _planes(data: np.ndarray, path: Path, channels: int) -> np.ndarray:
    """The first planes of a picture (rows, columns, planes) as float32 (X, Y, channels); pages of a TIFF are planes, alpha is none."""
    import numpy as np
    from skimage import util

    if path.suffix.lower() in (".tif", ".tiff") and data.ndim == 3 and data.shape[0] < min(8, data.shape[2]):
        data = np.moveaxis(data, 0, -1)
    elif data.ndim == 3 and data.shape[2] in (2, 4) and path.suffix.lower() not in (".tif", ".tiff"):
        data = data[:, :, :-1]
    count = data.shape[2] if data.ndim == 3 else 1
    if data.ndim not in (2, 3) or min(data.shape[:2]) < 8 or count < channels:
        raise ScanError(
            f"{path}: expected a picture of at least 8 x 8 pixels with {channels} colour planes, got {count} (shape {data.shape})."
        )
    return util.img_as_float32(data[:, :, :channels]).transpose(1, 0, 2)


def _stored_pixdim(path: Path) -> np.ndarray | None:
    """Voxel size of a 3-D NIfTI as it stands in the file, (3,): nibabel mends zeros and signs on loading. None for no NIfTI."""
    import nibabel as nib
    import numpy as np

    with nib.openers.ImageOpener(str(path)) as handle:
        block = handle.read(540)
    kind = nib.Nifti1Header if block[344:347] in (b"n+1", b"ni1") else nib.Nifti2Header if block[4:7] in (b"n+2", b"ni2") else None
    if kind is None or len(block) < kind.sizeof_hdr:
        return None
    header = kind(block[: kind.sizeof_hdr], check=False)
    return np.array(header["pixdim"][1:4], dtype=float) if header["dim"][0] >= 3 else None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def array_axis(affine: np.ndarray, world: int) -> int:
    """The array axis that runs closest to a world axis: 0 left-right, 1 back-front, 2 foot-head."""
    import nibabel as nib
    import numpy as np

    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == world)[0])


def voxel_sizes(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel size in mm along each array axis."""
    import numpy as np

    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as "; did you mean 'vae_cr'?" or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{match[0]}'?" if match else ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _counts(n: int, fractions: tuple[float, float, float]) -> tuple[int, int]:
    if n < 3:
        return max(n - 1, 0) if n > 1 else 0, min(n, 1) if n > 1 else 0
    n_val = max(1, round(n * fractions[1]))
    n_test = max(1, round(n * fractions[2])) if fractions[2] > 0 else 0
    return n - n_val - n_test, n_val


def _stem(path: Path) -> str:
    name = path.stem if is_picture(path) else re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    return re.sub(r"_(T1w|T2w|FLAIR|ct)$", "", name, flags=re.IGNORECASE) or name


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "scan"


def _subject(path: Path) -> str:
    found = re.match(r"(sub-[A-Za-z0-9]+)", path.name)
    return found.group(1) if found else _safe(_stem(path))


def _is_bids(folder: Path) -> bool:
    return (folder / "dataset_description.json").is_file() or any(is_nifti(p) for p in folder.glob("sub-*/**/sub-*.nii*"))


def _from_bids(folder: Path, modality: str) -> list[Scan]:
    modality, *further = modality.split("+")
    for name in (modality, *further):
        if name not in SUFFIXES:
            raise InputError(f"unknown MODALITY '{name}'; known: {', '.join(SUFFIXES)}.")
    people = {}
    if (folder / "participants.tsv").is_file():
        people = {row.get("participant_id", ""): row for row in read_table(folder / "participants.tsv")}
    ending = f"_{SUFFIXES[modality]}.nii"
    files = sorted(p for p in folder.glob("sub-*/**/sub-*.nii*") if is_nifti(p))
    images = [p for p in files if ending in p.name]
    if not images:
        raise InputError(f"{folder}: a BIDS folder without any sub-*{ending}[.gz] file for MODALITY={modality}.")
    scans = []
    for image in images:
        subject = _subject(image)
        row = people.get(subject, {})
        scans.append(
            Scan(
                id=_stem(image),
                image=image,
                subject=subject,
                split=_split_name(row.get("split", ""), image),
                label=_label_name(row.get("label", ""), image),
                pathology=row.get("pathology", ""),
                sequences={name: p for name in further if (p := _partner(image, SUFFIXES[name], files))},
            )
        )
    return scans


def _partner(image: Path, suffix: str, files: Sequence[Path]) -> Path | None:
    """The one file of a suffix with the name of `image` otherwise, or else of its subject and session; None for none or several."""

    def split(path: Path) -> tuple[str, str]:
        base, _, last = path.name.partition(".nii")[0].rpartition("_")
        return base, last

    def session(base: str) -> list[str]:
        return [part for part in base.split("_") if part.startswith(("sub-", "ses-"))]

    base = split(image)[0]
    found = [p for p in files if split(p)[1] == suffix and session(split(p)[0]) == session(base)]
    same = [p for p in found if split(p)[0] == base]
    return same[0] if len(same) == 1 else found[0] if len(found) == 1 else None


def _from_folder(folder: Path) -> list[Scan]:
    """Every NIfTI below a folder, except Norma's own `_mask` and `_map` outputs; names keep the sub-folders apart."""
    images = [
        p
        for p in sorted(folder.rglob("*.nii*"))
        if is_nifti(p) and not p.name.startswith(".") and not re.search(r"_(mask|map)\.nii", p.name)
    ]
    return [Scan(id=_stem(p), image=p, subject=_subject(p)) for p in images]


def _from_pictures(folder: Path) -> list[Scan]:
    """The one table in a folder, or else every picture below it."""
    tables = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".csv", ".tsv"))
    if len(tables) > 1:
        raise InputError(f"{folder}: {len(tables)} tables ({', '.join(p.name for p in tables)}); give the one to use as IN.")
    if tables:
        return _from_table(tables[0], "picture")
    pictures = [p for p in sorted(folder.rglob("*")) if is_picture(p) and not p.name.startswith(".")]
    return [Scan(id=_stem(p), image=p, subject=_subject(p)) for p in pictures]


def _from_table(table: Path, modality: str) -> list[Scan]:
    """Rows of a table; `group` (images that belong together, such as near-duplicates) stands in for the subject where it is given.

    A further sequence that a row leaves empty is missing in its scan.
    """
    rows = read_table(table)
    if not rows:
        raise InputError(f"{table}: the table has no rows.")
    if "image" not in rows[0]:
        raise InputError(f"{table}: no column 'image'; columns found: {', '.join(rows[0])}.")
    further = {name: column(name) for name in modality.split("+")[1:]}
    lacking = next((c for c in further.values() if c not in rows[0]), None)
    if lacking:
        raise InputError(f"{table}: no column '{lacking}'; columns found: {', '.join(rows[0])}. {how_to_give(modality)}")
    scans, known = [], {f.name for f in fields(Scan)} - {"sequences"} | {"group", *further.values()}
    for number, row in enumerate(rows, start=2):
        if not row["image"]:
            raise InputError(f"{table}, line {number}: empty 'image'.")
        image = table.parent / row["image"]
        paths = {k: table.parent / row[k] if row.get(k) else None for k in ("mask", "brain_mask", "slice_labels")}
        label = _label_name(row.get("label", ""), f"{table}, line {number}") or ("abnormal" if paths["mask"] else "")
        scans.append(
            Scan(
                id=_safe(row.get("id") or _stem(image)),
                image=image,
                subject=_safe(row.get("group") or row.get("subject") or _subject(image)),
                split=_split_name(row.get("split", ""), f"{table}, line {number}"),
                label=label,
                pathology=row.get("pathology", ""),
                extra={k: v for k, v in row.items() if k and k not in known},
                sequences={name: table.parent / row[c] for name, c in further.items() if row.get(c)},
                **paths,
            )
        )
    return scans


def _from_decathlon(path: Path) -> list[Scan]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error}).") from None
    sections = [k for k in ("training", "validation", "test", "testing") if isinstance(content, dict) and isinstance(content.get(k), list)]
    if not sections:
        raise InputError(f"{path}: no list named 'training', 'validation' or 'test'; expected a MONAI decathlon datalist.")
    scans = []
    for section in sections:
        for entry in content[section]:
            entry = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                raise InputError(f"{path}: every entry of '{section}' needs one file name under 'image', got {entry!r}.")
            image = path.parent / entry["image"]
            label, mask = _decathlon_label(entry.get("label"), path)
            scans.append(
                Scan(
                    id=_stem(image),
                    image=image,
                    subject=_safe(str(entry.get("subject") or _subject(image))),
                    split=_SPLIT_NAMES.get(section, section),
                    label=label,
                    mask=mask,
                )
            )
    splits = {s.split for s in scans}
    return [replace(s, split="") for s in scans] if splits == {"train"} else scans


def _decathlon_label(value: object, path: Path) -> tuple[str, Path | None]:
    """The label of a datalist entry: a mask file (abnormal), 0 or 1, or nothing."""
    if value is None or value == "":
        return "", None
    if isinstance(value, str):
        return "abnormal", path.parent / value
    if value in (0, 1):
        return LABELS[int(value)], None
    raise InputError(f"{path}: label {value!r}; expected one mask file name, 0 (healthy) or 1 (abnormal).")


def _split_name(value: str, where: object) -> str:
    name = _SPLIT_NAMES.get(value.lower(), value.lower())
    if name and name not in SPLITS:
        raise InputError(f"{where}: split '{value}'; expected one of {', '.join(SPLITS)}{nearest(name, SPLITS)}")
    return name


def _label_name(value: str, where: object) -> str:
    name = _LABEL_NAMES.get(value.lower(), value.lower())
    if name and name not in LABELS:
        raise InputError(f"{where}: label '{value}'; expected one of {', '.join(LABELS)}{nearest(name, LABELS)}")
    return name


def _unique_ids(scans: list[Scan]) -> list[Scan]:
    """Tell scans of one name apart by their folder; refuse what still clashes."""
    names = Counter(s.id for s in scans)
    scans = [_named_by_folder(s) if names[s.id] > 1 else s for s in scans]
    clash = next((n for n, count in Counter(s.id for s in scans).items() if count > 1), None)
    if clash:
        raise InputError(f"two scans are named '{clash}'; give the table a column 'id' that tells them apart.")
    return [replace(s, id=_safe(s.id)) for s in scans]


def _named_by_folder(scan: Scan) -> Scan:
    """The scan with its folder in its name, and in its subject where that was only the file's name."""
    name = _safe(f"{scan.image.parent.name}_{scan.id}")
    of_file = scan.subject == _subject(scan.image) and not scan.subject.startswith("sub-")
    return replace(scan, id=name, subject=name if of_file else scan.subject)


def scan_row(scan: Scan) -> dict[str, Any]:
    """A scan as a table row; paths absolute, so that the table can be read from anywhere."""
    row = {f.name: getattr(scan, f.name) for f in fields(scan) if f.name not in ("extra", "sequences")}
    row |= {column(name): path for name, path in scan.sequences.items()} | scan.extra
    return {k: v.resolve() if isinstance(v, Path) else v for k, v in row.items()}
