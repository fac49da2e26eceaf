"""CQ500: head CT as DICOM, with what three radiologists saw. CC BY-NC-SA 4.0; for evaluation only.

Layout as at http://headctstudy.qure.ai/dataset; 'make fetch DATASET=cq500' brings it:

    reads.csv    name (CQ500-CT-0), R1:ICH, R2:ICH, R3:ICH, R1:Fracture, R1:MassEffect, ...
    CQ500-CT-0/CQ500CT0 CQ500CT0/Unknown Study/CT Plain/CT000000.dcm

Assumed: what two of the three radiologists saw is there. A study with none of ICH, fracture, mass
effect and midline shift is healthy. Every series of a study is a scan, but for those whose folder
speaks of contrast, bone, or a scout.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from preprocessing.dicom import convert
from preprocessing.files import read_table
from preprocessing.scans import InputError, Scan

MODALITY = "ct"
READERS = ("R1", "R2", "R3")
BLEEDS = {
    "IVH": "intraventricular",
    "IPH": "intraparenchymal",
    "SAH": "subarachnoid",
    "EDH": "epidural",
    "SDH": "subdural",
}
OTHERS = {"Fracture": "fracture", "MassEffect": "mass effect", "MidlineShift": "midline shift"}
NOT_PLAIN = re.compile(r"contrast|\bpost\b|bone|scout|topogram", re.IGNORECASE)


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """The plain series of every study, converted below `out`; by name why a series gave none."""
    table = data / "reads.csv"
    if not table.is_file():
        raise InputError(f"{table}: missing; it says which study of CQ500 shows what.")
    reads = {_number(row["name"]): row for row in read_table(table)}
    converted, lost = convert(data, out / "cq500")
    found: list[Scan] = []
    for scan in converted:
        folder = scan.origin["folder"]
        study = _number(folder)
        if NOT_PLAIN.search(folder.rpartition("/")[2]):
            lost[scan.id] = f"{folder}: no plain series by its name; left out."
        elif study not in reads:
            lost[scan.id] = f"{folder}: {table.name} does not name its study; left out."
        else:
            found.append(labelled(scan, reads[study], study))
    return found, lost


def labelled(scan: Scan, row: dict[str, str], study: str) -> Scan:
    """A scan with the label that most radiologists gave its study."""
    bleeds = [name for key, name in BLEEDS.items() if _seen(row, key)]
    others = [name for key, name in OTHERS.items() if _seen(row, key)]
    if _seen(row, "ICH") and not bleeds:
        bleeds = ["hemorrhage"]  # they agreed on that, and not on its kind
    kinds = bleeds or others
    return replace(
        scan,
        subject=f"CQ500-CT-{study}",
        label="abnormal" if kinds else "healthy",
        pathology="+".join(kinds),
    )


def _seen(row: dict[str, str], key: str) -> bool:
    """Whether two of three radiologists saw it."""
    return sum(row[f"{reader}:{key}"].strip() == "1" for reader in READERS) >= 2


def _number(name: str) -> str:
    """The number of a study in its name or the way to it, or ""."""
    match = re.search(r"CQ500-?CT-?(\d+)", name)
    return match[1] if match else ""
