"""Lists of scans from BIDS folders, plain folders, CSV/TSV tables, decathlon JSON and DICOM."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from preprocessing import dicom
from preprocessing.files import nearest, read_table
from preprocessing.images import PICTURES, is_nifti, is_picture
from preprocessing.scans import (
    LABELS,
    SPLITS,
    SUFFIXES,
    InputError,
    Scan,
    column,
    how_to_give,
    safe_name,
)

TABLES = (".csv", ".tsv")

_SPLIT_NAMES = {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "testing": "test",
}

_LABEL_NAMES = {
    "0": "healthy",
    "normal": "healthy",
    "control": "healthy",
    "1": "abnormal",
    "lesion": "abnormal",
    "pathological": "abnormal",
}


def list_scans(source: Path, modality: str, out: Path) -> tuple[list[Scan], dict[str, str]]:
    """Scans of any input, and by name why a DICOM series gave none.

    A DICOM folder is converted below `out` first; all else is read by `read_scans`.
    """
    bids = (source / "dataset_description.json").is_file()
    if not source.is_dir() or bids or not dicom.has_dicom(source):
        return read_scans(source, modality), {}
    if "+" in modality:
        raise InputError(
            f"{source}: DICOM series do not say which sequence they are; convert them first. "
            f"{how_to_give(modality)}"
        )
    return dicom.convert(source, out / "dicom")


def read_scans(source: Path, modality: str) -> list[Scan]:
    """List the scans in `source`.

    That is a NIfTI file, a BIDS folder, a plain folder, a CSV/TSV table or a decathlon JSON. For
    modality "picture": a picture, a folder of pictures, or a folder whose CSV/TSV table lists them.
    For several sequences ("t1+flair"): a BIDS folder, or a table with a column `image_<modality>`
    for each sequence but the first.

    Raises InputError where nothing can be read, a row is malformed or two scans share a name.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; "
            "give IN= a scan, a folder, a CSV/TSV table or a JSON datalist."
        )
    grouped = source.suffix.lower() in TABLES or (source.is_dir() and _is_bids(source))
    if "+" in modality and not grouped:
        raise InputError(
            f"{source}: which files belong together is not told here. {how_to_give(modality)}"
        )

    scans = _scans_in(source, modality)
    if not scans:
        kinds = f".nii or .nii.gz files (BIDS suffix '{SUFFIXES.get(modality)}')"
        if modality == "picture":
            kinds = "pictures"
        raise InputError(f"{source}: no scans found; expected {kinds}.")
    return _unique_ids(scans)


def _scans_in(source: Path, modality: str) -> list[Scan]:
    """The scans of a file or folder that exists, by the reader of its kind."""
    kind = source.suffix.lower()
    if source.is_dir() and modality == "picture":
        return _from_pictures(source)
    if source.is_dir():
        return _from_bids(source, modality) if _is_bids(source) else _from_folder(source)
    if kind in TABLES:
        return _from_table(source, modality)
    if kind == ".json":
        return _from_decathlon(source)
    if is_nifti(source) or (modality == "picture" and is_picture(source)):
        return [_scan_of_file(source)]
    kinds = ", ".join(PICTURES) if modality == "picture" else ".nii, .nii.gz"
    raise InputError(
        f"{source}: expected {kinds}, .csv, .tsv, .json or a folder, got a '{source.suffix}' file."
    )


# names


def _stem(path: Path) -> str:
    """The file's name without its ending and without the BIDS suffix of its modality."""
    name = path.stem
    if not is_picture(path):
        name = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    return re.sub(r"_(T1w|T2w|FLAIR|ct)$", "", name, flags=re.IGNORECASE) or name


def _subject(path: Path) -> str:
    """The BIDS subject in the file's name, or else the name."""
    found = re.match(r"(sub-[A-Za-z0-9]+)", path.name)
    return found.group(1) if found else safe_name(_stem(path))


def _scan_of_file(path: Path) -> Scan:
    return Scan(id=_stem(path), image=path, subject=_subject(path))


def _split_name(value: str, where: object) -> str:
    name = _SPLIT_NAMES.get(value.lower(), value.lower())
    if name and name not in SPLITS:
        raise InputError(
            f"{where}: split '{value}'; expected one of {', '.join(SPLITS)}{nearest(name, SPLITS)}"
        )
    return name


def _label_name(value: str, where: object) -> str:
    name = _LABEL_NAMES.get(value.lower(), value.lower())
    if name and name not in LABELS:
        raise InputError(
            f"{where}: label '{value}'; expected one of {', '.join(LABELS)}{nearest(name, LABELS)}"
        )
    return name


def _unique_ids(scans: list[Scan]) -> list[Scan]:
    """Tell scans of one name apart by their folder; refuse what still clashes."""
    names = Counter(s.id for s in scans)
    scans = [_named_by_folder(s) if names[s.id] > 1 else s for s in scans]
    names = Counter(s.id for s in scans)
    clash = next((name for name, count in names.items() if count > 1), None)
    if clash:
        raise InputError(
            f"two scans are named '{clash}'; give the table a column 'id' that tells them apart."
        )
    return [replace(s, id=safe_name(s.id)) for s in scans]


def _named_by_folder(scan: Scan) -> Scan:
    """The scan with its folder in its name, and in its subject if that was the file's name."""
    name = safe_name(f"{scan.image.parent.name}_{scan.id}")
    of_file = scan.subject == _subject(scan.image) and not scan.subject.startswith("sub-")
    return replace(scan, id=name, subject=name if of_file else scan.subject)


# folders


def _is_bids(folder: Path) -> bool:
    return (folder / "dataset_description.json").is_file() or any(
        is_nifti(p) for p in folder.glob("sub-*/**/sub-*.nii*")
    )


def _from_bids(folder: Path, modality: str) -> list[Scan]:
    """The scans of a BIDS folder; participants.tsv may name split, label and pathology."""
    first, *others = modality.split("+")
    for name in (first, *others):
        if name not in SUFFIXES:
            raise InputError(f"unknown MODALITY '{name}'; known: {', '.join(SUFFIXES)}.")
    participants = folder / "participants.tsv"
    people = {}
    if participants.is_file():
        people = {row.get("participant_id", ""): row for row in read_table(participants)}

    ending = f"_{SUFFIXES[first]}.nii"
    files = sorted(p for p in folder.glob("sub-*/**/sub-*.nii*") if is_nifti(p))
    images = [p for p in files if ending in p.name]
    if not images:
        raise InputError(
            f"{folder}: a BIDS folder without any sub-*{ending}[.gz] file for MODALITY={first}."
        )

    scans = []
    for image in images:
        row = people.get(_subject(image), {})
        partners = {name: _partner(image, SUFFIXES[name], files) for name in others}
        scans.append(
            replace(
                _scan_of_file(image),
                split=_split_name(row.get("split", ""), image),
                label=_label_name(row.get("label", ""), image),
                pathology=row.get("pathology", ""),
                sequences={name: path for name, path in partners.items() if path},
            )
        )
    return scans


def _partner(image: Path, suffix: str, files: Sequence[Path]) -> Path | None:
    """The one file of a suffix that belongs to `image`; None for none or several.

    It has the name of `image` otherwise, or else is of the same subject and session.
    """
    base = _bids_parts(image)[0]
    of_session = []
    for path in files:
        other, its_suffix = _bids_parts(path)
        if its_suffix == suffix and _session(other) == _session(base):
            of_session.append(path)

    same_name = [p for p in of_session if _bids_parts(p)[0] == base]
    if len(same_name) == 1:
        return same_name[0]
    return of_session[0] if len(of_session) == 1 else None


def _bids_parts(path: Path) -> tuple[str, str]:
    """A BIDS file's name up to its suffix, and the suffix."""
    base, _, suffix = path.name.partition(".nii")[0].rpartition("_")
    return base, suffix


def _session(base: str) -> list[str]:
    """Subject and session in a BIDS name."""
    return [part for part in base.split("_") if part.startswith(("sub-", "ses-"))]


def _from_folder(folder: Path) -> list[Scan]:
    """Every NIfTI below a folder, but for the `_mask` and `_map` that Norma writes."""
    images = [p for p in sorted(folder.rglob("*.nii*")) if is_nifti(p) and not _is_hidden(p)]
    return [_scan_of_file(p) for p in images if not re.search(r"_(mask|map)\.nii", p.name)]


def _from_pictures(folder: Path) -> list[Scan]:
    """The one table in a folder, or else every picture below it."""
    tables = sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLES)
    if len(tables) > 1:
        raise InputError(
            f"{folder}: {len(tables)} tables ({', '.join(p.name for p in tables)}); "
            "give the one to use as IN."
        )
    if tables:
        return _from_table(tables[0], "picture")
    pictures = [p for p in sorted(folder.rglob("*")) if is_picture(p) and not _is_hidden(p)]
    return [_scan_of_file(p) for p in pictures]


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


# tables


def _from_table(table: Path, modality: str) -> list[Scan]:
    """The scans of a table, one a row.

    Where a row has a `group` (images that belong together, such as near-duplicates), it stands in
    for the subject. A sequence that a row leaves empty is missing in its scan.
    """
    rows = read_table(table)
    if not rows:
        raise InputError(f"{table}: the table has no rows.")
    if "image" not in rows[0]:
        raise InputError(f"{table}: no column 'image'; columns found: {', '.join(rows[0])}.")
    columns = {name: column(name) for name in modality.split("+")[1:]}
    lacking = next((c for c in columns.values() if c not in rows[0]), None)
    if lacking:
        raise InputError(
            f"{table}: no column '{lacking}'; columns found: {', '.join(rows[0])}. "
            f"{how_to_give(modality)}"
        )
    return [_scan_of_row(row, table, n, columns) for n, row in enumerate(rows, start=2)]


def _scan_of_row(row: dict[str, str], table: Path, number: int, columns: dict[str, str]) -> Scan:
    """The scan of a row of a table, on line `number`; `columns` names those of the sequences."""
    where = f"{table}, line {number}"
    if not row["image"]:
        raise InputError(f"{where}: empty 'image'.")
    image = table.parent / row["image"]
    names = ("mask", "brain_mask", "slice_labels")
    paths = {k: table.parent / row[k] if row.get(k) else None for k in names}
    known = {f.name for f in fields(Scan)} - {"sequences", "origin", "checks"} | {"group", *columns.values()}
    # a scan with a lesion mask is abnormal
    label = _label_name(row.get("label", ""), where) or ("abnormal" if paths["mask"] else "")
    return Scan(
        id=safe_name(row.get("id") or _stem(image)),
        image=image,
        subject=safe_name(row.get("group") or row.get("subject") or _subject(image)),
        split=_split_name(row.get("split", ""), where),
        label=label,
        pathology=row.get("pathology", ""),
        extra={k: v for k, v in row.items() if k and k not in known},
        sequences={name: table.parent / row[c] for name, c in columns.items() if row.get(c)},
        **paths,
    )


# decathlon


def _from_decathlon(path: Path) -> list[Scan]:
    """The scans of a MONAI decathlon datalist; splits are left open where all is training."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error}).") from None
    lists = content if isinstance(content, dict) else {}
    names = ("training", "validation", "test", "testing")
    sections = [name for name in names if isinstance(lists.get(name), list)]
    if not sections:
        raise InputError(
            f"{path}: no list named 'training', 'validation' or 'test'; "
            "expected a MONAI decathlon datalist."
        )

    scans = []
    for section in sections:
        scans += [_scan_of_entry(entry, section, path) for entry in lists[section]]
    splits = {s.split for s in scans}
    return [replace(s, split="") for s in scans] if splits == {"train"} else scans


def _scan_of_entry(entry: Any, section: str, path: Path) -> Scan:
    """The scan of one entry of a datalist: a file name, or a dictionary that has one."""
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise InputError(
            f"{path}: every entry of '{section}' needs one file name under 'image', got {entry!r}."
        )
    image = path.parent / entry["image"]
    label, lesions = _decathlon_label(entry.get("label"), path)
    return Scan(
        id=_stem(image),
        image=image,
        subject=safe_name(str(entry.get("subject") or _subject(image))),
        split=_SPLIT_NAMES.get(section, section),
        label=label,
        mask=lesions,
    )


def _decathlon_label(value: object, path: Path) -> tuple[str, Path | None]:
    """The label of an entry: a lesion mask (so it is abnormal), 0 or 1, or nothing."""
    if value is None or value == "":
        return "", None
    if isinstance(value, str):
        return "abnormal", path.parent / value
    if value in (0, 1):
        return LABELS[int(value)], None
    raise InputError(
        f"{path}: label {value!r}; expected one mask file name, 0 (healthy) or 1 (abnormal)."
    )
