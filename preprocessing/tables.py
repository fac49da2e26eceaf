"""Lists of scans from BIDS folders, plain folders, CSV/TSV tables, decathlon JSON and DICOM."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

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


def read_scans(source: Path, modality: str) -> list[Scan]:
    """List the scans in `source`: one NIfTI file, a BIDS folder, a plain folder, a CSV/TSV table or a decathlon JSON.

    For modality "picture": one picture, a folder of pictures, or a folder whose CSV/TSV table lists them. For several sequences
    ("t1+flair"): a table with a column `image_<modality>` for each further one, or a BIDS folder.

    Raises InputError where nothing can be read, a row is malformed or two scans share a name.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; give IN= a scan, a folder, a CSV/TSV table or a JSON datalist."
        )
    if (
        "+" in modality
        and source.suffix.lower() not in (".csv", ".tsv")
        and not (source.is_dir() and _is_bids(source))
    ):
        raise InputError(
            f"{source}: which files belong together is not told here. {how_to_give(modality)}"
        )
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
        raise InputError(
            f"{source}: expected {kinds}, .csv, .tsv, .json or a folder, got a '{source.suffix}' file."
        )
    if not scans:
        kinds = (
            "pictures"
            if modality == "picture"
            else f".nii or .nii.gz files (BIDS suffix '{SUFFIXES.get(modality)}')"
        )
        raise InputError(f"{source}: no scans found; expected {kinds}.")
    return _unique_ids(scans)


def _stem(path: Path) -> str:
    name = (
        path.stem
        if is_picture(path)
        else re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    )
    return re.sub(r"_(T1w|T2w|FLAIR|ct)$", "", name, flags=re.IGNORECASE) or name


def _subject(path: Path) -> str:
    found = re.match(r"(sub-[A-Za-z0-9]+)", path.name)
    return found.group(1) if found else safe_name(_stem(path))


def _is_bids(folder: Path) -> bool:
    return (folder / "dataset_description.json").is_file() or any(
        is_nifti(p) for p in folder.glob("sub-*/**/sub-*.nii*")
    )


def _from_bids(folder: Path, modality: str) -> list[Scan]:
    modality, *further = modality.split("+")
    for name in (modality, *further):
        if name not in SUFFIXES:
            raise InputError(f"unknown MODALITY '{name}'; known: {', '.join(SUFFIXES)}.")
    people = {}
    if (folder / "participants.tsv").is_file():
        people = {
            row.get("participant_id", ""): row for row in read_table(folder / "participants.tsv")
        }
    ending = f"_{SUFFIXES[modality]}.nii"
    files = sorted(p for p in folder.glob("sub-*/**/sub-*.nii*") if is_nifti(p))
    images = [p for p in files if ending in p.name]
    if not images:
        raise InputError(
            f"{folder}: a BIDS folder without any sub-*{ending}[.gz] file for MODALITY={modality}."
        )
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
                sequences={
                    name: p for name in further if (p := _partner(image, SUFFIXES[name], files))
                },
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
        raise InputError(
            f"{folder}: {len(tables)} tables ({', '.join(p.name for p in tables)}); give the one to use as IN."
        )
    if tables:
        return _from_table(tables[0], "picture")
    pictures = [
        p for p in sorted(folder.rglob("*")) if is_picture(p) and not p.name.startswith(".")
    ]
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
        raise InputError(
            f"{table}: no column '{lacking}'; columns found: {', '.join(rows[0])}. {how_to_give(modality)}"
        )
    scans, known = [], {f.name for f in fields(Scan)} - {"sequences"} | {"group", *further.values()}
    for number, row in enumerate(rows, start=2):
        if not row["image"]:
            raise InputError(f"{table}, line {number}: empty 'image'.")
        image = table.parent / row["image"]
        paths = {
            k: table.parent / row[k] if row.get(k) else None
            for k in ("mask", "brain_mask", "slice_labels")
        }
        label = _label_name(row.get("label", ""), f"{table}, line {number}") or (
            "abnormal" if paths["mask"] else ""
        )
        scans.append(
            Scan(
                id=safe_name(row.get("id") or _stem(image)),
                image=image,
                subject=safe_name(row.get("group") or row.get("subject") or _subject(image)),
                split=_split_name(row.get("split", ""), f"{table}, line {number}"),
                label=label,
                pathology=row.get("pathology", ""),
                extra={k: v for k, v in row.items() if k and k not in known},
                sequences={
                    name: table.parent / row[c] for name, c in further.items() if row.get(c)
                },
                **paths,
            )
        )
    return scans


def _from_decathlon(path: Path) -> list[Scan]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error}).") from None
    sections = [
        k
        for k in ("training", "validation", "test", "testing")
        if isinstance(content, dict) and isinstance(content.get(k), list)
    ]
    if not sections:
        raise InputError(
            f"{path}: no list named 'training', 'validation' or 'test'; expected a MONAI decathlon datalist."
        )
    scans = []
    for section in sections:
        for entry in content[section]:
            entry = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                raise InputError(
                    f"{path}: every entry of '{section}' needs one file name under 'image', got {entry!r}."
                )
            image = path.parent / entry["image"]
            label, mask = _decathlon_label(entry.get("label"), path)
            scans.append(
                Scan(
                    id=_stem(image),
                    image=image,
                    subject=safe_name(str(entry.get("subject") or _subject(image))),
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
    raise InputError(
        f"{path}: label {value!r}; expected one mask file name, 0 (healthy) or 1 (abnormal)."
    )


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
    clash = next((n for n, count in Counter(s.id for s in scans).items() if count > 1), None)
    if clash:
        raise InputError(
            f"two scans are named '{clash}'; give the table a column 'id' that tells them apart."
        )
    return [replace(s, id=safe_name(s.id)) for s in scans]


def _named_by_folder(scan: Scan) -> Scan:
    """The scan with its folder in its name, and in its subject where that was only the file's name."""
    name = safe_name(f"{scan.image.parent.name}_{scan.id}")
    of_file = scan.subject == _subject(scan.image) and not scan.subject.startswith("sub-")
    return replace(scan, id=name, subject=name if of_file else scan.subject)


def list_scans(source: Path, modality: str, out: Path) -> tuple[list[Scan], dict[str, str]]:
    """Scans of any input; DICOM folders are converted below `out` first. Also why DICOM series gave none, by name."""
    if (
        source.is_dir()
        and not (source / "dataset_description.json").is_file()
        and dicom.has_dicom(source)
    ):
        if "+" in modality:
            raise InputError(
                f"{source}: DICOM series do not say which sequence they are; convert them first. {how_to_give(modality)}"
            )
        return dicom.convert(source, out / "dicom")
    return read_scans(source, modality), {}
