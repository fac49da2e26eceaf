"""Lists of scans from BIDS folders, plain folders, CSV/TSV tables, decathlon JSON and DICOM."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from preprocessing import dicom
from preprocessing.bids import bids_scans, bids_subject
from preprocessing.files import numbered_rows
from preprocessing.folders import BY_NORMA, TABLES, Tree, is_volume, look
from preprocessing.images import PICTURES, is_picture
from preprocessing.labels import are_kinds_of_people, label_name, split_name, told
from preprocessing.scans import (
    LABELS,
    NO_COLUMNS,
    SUFFIXES,
    InputError,
    Scan,
    column,
    how_to_give,
    stem,
    told_apart,
    unique_ids,
)
from preprocessing.splits import check_batch
from preprocessing.volumes import MAX_GB

# the columns that Norma reads in every table
_COLUMNS = {f.name for f in fields(Scan)} - set(NO_COLUMNS) | {"group"}

# folders of pictures that say what they show, as of a set graded for quality
LABEL_OF = {"good": "healthy", "bad": "abnormal"}

log = logging.getLogger("norma")


def existing_input(source: Path) -> Path:
    """The input as it is given; InputError where there is none."""
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; "
            "give IN= a scan, a folder (DICOM too), a CSV/TSV table or a JSON datalist."
        )
    return source


def list_scans(
    source: Path, modality: str, out: Path, max_gb: float = MAX_GB
) -> tuple[list[Scan], dict[str, str]]:
    """Scans of any input, and by name why a DICOM series gave none.

    The DICOM series of a folder are converted below `out`, those that take `max_gb` as float32 or
    more excepted; all else is read by `read_scans`.
    InputError where two scans are one image.
    """
    source = Path(source)
    described = (source / "dataset_description.json").is_file()
    lost: dict[str, str] = {}
    if not source.is_dir() or described or not dicom.has_dicom(source):
        scans = read_scans(source, modality)
    elif "+" in modality:
        raise InputError(
            f"{source}: DICOM series do not say which sequence they are; convert them first. "
            f"{how_to_give(modality)}"
        )
    else:
        scans, lost = _beside_dicom(source, modality, out, max_gb)
    check_batch(scans)
    return scans, lost


def _beside_dicom(
    source: Path, modality: str, out: Path, max_gb: float
) -> tuple[list[Scan], dict[str, str]]:
    """The scans of a folder that holds DICOM files, and maybe others; why series gave none."""
    tree = look(source)
    scans = _scans_below(tree, modality)
    tree.say(_used(tree, scans, modality), lambda file: not dicom.is_dicom(file))
    try:
        series, lost = dicom.convert(source, out / "dicom", max_gb)
    except InputError as error:
        if not scans:
            raise
        return unique_ids(scans), {f"DICOM in {source.name}": str(error)}
    return unique_ids([*scans, *series]), lost


def read_scans(source: Path, modality: str) -> list[Scan]:
    """List the scans in `source`.

    That is a volume, a BIDS folder, a plain folder, a CSV/TSV table or a decathlon JSON. For
    modality "picture": a picture, a folder of pictures, or a folder whose CSV/TSV table lists them.
    For several sequences ("t1+flair"): a BIDS folder, or a table with a column `image_<modality>`
    for each sequence but the first. What a folder holds besides is counted and named in the log.

    Raises InputError where nothing can be read, a row is malformed or two scans share a name.
    """
    source = existing_input(Path(source))
    tree = look(source) if source.is_dir() else None
    grouped = tree.is_bids if tree else source.suffix.lower() in TABLES
    if "+" in modality and not grouped:
        raise InputError(
            f"{source}: which files belong together is not told here. {how_to_give(modality)}"
        )

    scans = _scans_below(tree, modality) if tree else _scans_of_file(source, modality)
    if not scans:
        raise InputError(_nothing(source, modality, tree))
    if tree:
        tree.say(_used(tree, scans, modality), lambda file: True)
    return unique_ids(scans)


def _nothing(source: Path, modality: str, tree: Tree | None) -> str:
    """Why no scan was found."""
    if tree and tree.passed.get(BY_NORMA):
        count = len(tree.passed[BY_NORMA])
        return (
            f"{source}: no scans but {count} files that Norma wrote; "
            "give the folder of the scans that came in."
        )
    left_out = tree.left_out([], lambda file: True) if tree else []
    but = f" ({'; '.join(left_out)})" if left_out else ""
    if tree and tree.is_bids and modality != "picture":
        first = modality.split("+")[0]
        ending = f"sub-*_{SUFFIXES[first]}.nii[.gz]"
        return f"{source}: a BIDS folder without any {ending} file for MODALITY={first}{but}."
    kinds = f".nii or .nii.gz files (BIDS suffix '{SUFFIXES.get(modality)}')"
    if modality == "picture":
        kinds = "pictures"
    return f"{source}: no scans found; expected {kinds}{but}."


def _scans_below(tree: Tree, modality: str) -> list[Scan]:
    """The scans of a folder."""
    if modality == "picture":
        return _from_pictures(tree)
    if tree.is_bids:
        return bids_scans(tree, modality)
    return [_scan_of_file(file) for file in tree.volumes()]


def _scans_of_file(source: Path, modality: str) -> list[Scan]:
    """The scans of a file, by the reader of its kind."""
    kind = source.suffix.lower()
    if kind in TABLES:
        return _from_table(source, modality)
    if kind == ".json":
        return _from_decathlon(source)
    is_scan = is_volume(source) or kind == ".hdr"
    if is_scan or (modality == "picture" and is_picture(source)):
        return [_scan_of_file(source)]
    kinds = ", ".join(PICTURES) if modality == "picture" else ".nii, .nii.gz"
    raise InputError(
        f"{source}: expected {kinds}, .csv, .tsv, .json or a folder, got a '{source.suffix}' file."
    )


def _scan_of_file(path: Path) -> Scan:
    return Scan(id=stem(path), image=path, subject=bids_subject(path.name))


def _from_pictures(tree: Tree) -> list[Scan]:
    """The one table in a folder, or else every picture below it; folders good and bad label it."""
    folder = tree.folder
    tables = _tables(tree)
    if len(tables) > 1:
        raise InputError(
            f"{folder}: {len(tables)} tables ({', '.join(p.name for p in tables)}); "
            "give the one to use as IN."
        )
    if tables:
        return _from_table(tables[0], "picture")
    pictures = [file for file in tree.files if is_picture(file)]
    scans = [_scan_of_file(file) for file in pictures]
    folders = [tree.parts(file)[0].lower() for file in pictures]
    if not set(folders) & set(LABEL_OF):
        return scans
    lost = [f for f, name in zip(pictures, folders, strict=True) if name not in LABEL_OF]
    if lost:
        raise InputError(
            f"{lost[0]}: beside the folders good and bad; put it into one of them, "
            "or list all pictures in a table."
        )
    log.info("%s: pictures in 'good' are taken as healthy, in 'bad' as abnormal", folder)
    both = zip(scans, folders, strict=True)
    return [replace(scan, label=LABEL_OF[name]) for scan, name in both]


def _tables(tree: Tree) -> list[Path]:
    """Tables that lie in the folder itself."""
    files = tree.files
    return [f for f in files if f.parent == tree.folder and f.suffix.lower() in TABLES]


def _used(tree: Tree, scans: Sequence[Scan], modality: str) -> list[Path]:
    """The files that scans are made of, and the table that names them."""
    used = _tables(tree) if modality == "picture" else []
    for scan in scans:
        others = (scan.mask, scan.brain_mask, scan.slice_labels)
        used += [*scan.files, *(file for file in others if file)]
    return used


# tables


def _from_table(table: Path, modality: str) -> list[Scan]:
    """The scans of a table, one a row.

    Where a row has a `group` (images that belong together, such as near-duplicates), it stands in
    for the subject; where groups are kinds of people (control, patient) it does not. A sequence
    that a row leaves empty is missing in its scan.
    """
    rows = [(f"{table}, line {line}", _known_row(row)) for line, row in numbered_rows(table)]
    if not rows:
        raise InputError(f"{table}: the table has no rows.")
    names = rows[0][1]
    if "image" not in names:
        raise InputError(f"{table}: no column 'image'; columns found: {', '.join(names)}.")
    columns = {name: column(name) for name in modality.split("+")[1:]}
    lacking = next((c for c in columns.values() if c not in names), None)
    if lacking:
        raise InputError(
            f"{table}: no column '{lacking}'; columns found: {', '.join(names)}. "
            f"{how_to_give(modality)}"
        )
    groups = {row["group"] for _, row in rows if row.get("group")}
    ties = not are_kinds_of_people(groups)
    if not ties:
        log.info(
            "%s: 'group' says %s: kinds of people, not images that belong together; "
            "it changes no split.",
            table,
            " and ".join(sorted(groups)),
        )
    scans = [_scan_of_row(row, table, where, columns, ties) for where, row in rows]
    _check_given_ids([s for s, (_, row) in zip(scans, rows, strict=True) if row.get("id")], table)
    return scans


def _known_row(row: dict[str, str]) -> dict[str, str]:
    """A row with Norma's columns in lower case, however the table writes them, n/a as nothing."""
    low = {name: name.lower() for name in row}
    lower = {name: own for name, own in low.items() if own in _COLUMNS and own not in row}
    return told({lower.get(name, name): value for name, value in row.items()})


def _scan_of_row(
    row: dict[str, str], table: Path, where: str, columns: dict[str, str], ties: bool
) -> Scan:
    """The scan of a row of a table; `columns` names those of the sequences."""
    if not row["image"]:
        raise InputError(f"{where}: empty 'image'.")
    image = _file(row["image"], table, where)
    names = ("mask", "brain_mask", "slice_labels")
    paths = {k: _file(row[k], table, where) if row.get(k) else None for k in names}
    group = row.get("group", "")
    known = {*_COLUMNS, *columns.values()} if ties else {*_COLUMNS, *columns.values()} - {"group"}
    # a scan with a lesion mask is abnormal
    label = label_name(row.get("label", ""), where) or ("abnormal" if paths["mask"] else "")
    return Scan(
        id=row.get("id") or stem(image),
        image=image,
        subject=(group if ties else "") or row.get("subject") or bids_subject(image.name),
        split=split_name(row.get("split", ""), where),
        label=label,
        pathology=row.get("pathology", ""),
        extra={k: v for k, v in row.items() if k and k not in known},
        sequences={k: _file(row[c], table, where) for k, c in columns.items() if row.get(c)},
        group=group,
        mask=paths["mask"],
        brain_mask=paths["brain_mask"],
        slice_labels=paths["slice_labels"],
    )


def _file(cell: str, table: Path, where: str) -> Path:
    """The file that a cell names, from the table's folder on; also as Windows writes a way."""
    try:
        os.fsencode(cell)
    except UnicodeEncodeError:
        raise InputError(
            f"{where}: {cell!r} holds a character that no file name has; write the name as it is."
        ) from None
    if "\0" in cell:
        raise InputError(
            f"{where}: {cell!r} holds a NUL, which no file name has; write the name as it is."
        )
    path = table.parent / cell
    if "\\" in cell and not path.exists():
        turned = table.parent / PureWindowsPath(cell).as_posix()
        return turned if turned.exists() else path
    return path


def _check_given_ids(scans: Sequence[Scan], table: Path) -> None:
    """Refuse two rows of one id, where the folders of their files do not tell them apart."""
    names = Counter(told_apart([scan.id for scan in scans], [scan.image for scan in scans]))
    again = next((name for name, count in names.items() if count > 1), None)
    if again:
        raise InputError(
            f"{table}: two scans are named '{'_'.join(again)}'; give each row an 'id' of its own."
        )


# decathlon


def _from_decathlon(path: Path) -> list[Scan]:
    """The scans of a MONAI decathlon datalist; splits are left open where all is training."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
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
    image_of = entry.get("image") if isinstance(entry, dict) else None
    if not isinstance(image_of, str) or not image_of:
        raise InputError(
            f"{path}: every entry of '{section}' needs one file name under 'image', got {entry!r}."
        )
    image = _file(image_of, path, str(path))
    label, lesions = _decathlon_label(entry.get("label"), path)
    return Scan(
        id=stem(image),
        image=image,
        subject=str(entry.get("subject") or bids_subject(image.name)),
        split=split_name(section, path),
        label=label,
        mask=lesions,
    )


def _decathlon_label(value: object, path: Path) -> tuple[str, Path | None]:
    """The label of an entry: a lesion mask (so it is abnormal), 0 or 1, or nothing."""
    if value is None or value == "":
        return "", None
    if isinstance(value, str):
        return "abnormal", _file(value, path, str(path))
    if value in (0, 1):
        return LABELS[int(value)], None
    raise InputError(
        f"{path}: label {value!r}; expected one mask file name, 0 (healthy) or 1 (abnormal)."
    )
