"""OASIS-1: T1 of young, old and demented adults. OASIS terms: for evaluation only.

Layout as in the set's fact sheet, https://sites.wustl.edu/oasisbrains/home/oasis-1/;
'make fetch DATASET=oasis1' brings it:

    disc1/OAS1_0001_MR1/OAS1_0001_MR1.txt (age, sex, CDR)
    disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.img

Assumed: the skull-stripped average of a session. Clinical Dementia Rating 0, and none in people
under 60, is healthy; above 0 is dementia, abnormal without a lesion that a mask could show. Files
are Analyze 7.5 without orientation: preprocess needs ARGS=orientation=guess.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from preprocessing.datasets.layout import Layout, listed
from preprocessing.scans import Scan

SESSION = r"(?:.*/)?(?P<id>(?P<subject>OAS1_\d{4})_MR\d)/"
LAYOUT = Layout(
    title="OASIS-1",
    example="OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.img",
    files={
        "t1": SESSION + r"PROCESSED/MPRAGE/T88_111/(?P=id)_mpr_n\d_anon_111_t88_masked_gfc\.img",
        "other": r"(?:.*/)?OAS1_\d{4}_MR\d/.*|.*\.(?:csv|xlsx|pdf)|fetched\.json|norma\.log",
    },
    label="healthy",
)
YOUNG = 60  # years; younger people were not rated


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every session, and by id why one is left out."""
    found, lost = listed(data, LAYOUT, modality)
    kept: list[Scan] = []
    for scan in found:
        sheet = scan.image.parents[3] / f"{scan.id}.txt"
        if not sheet.is_file():
            lost[scan.id] = f"{sheet}: missing, so nobody knows who is demented; left out."
            continue
        told = dict(re.findall(r"^(\w+): *(\S+)$", sheet.read_text(), re.MULTILINE))
        age = told.get("AGE", "")
        rating = told.get("CDR", "")
        if not rating and not (age.isdigit() and int(age) < YOUNG):
            lost[scan.id] = f"{sheet}: no CDR of a person of {age or 'unknown'} years; left out."
            continue
        demented = float(rating or 0) > 0
        label = "abnormal" if demented else "healthy"
        pathology = "dementia" if demented else ""
        extra = {"age": age, "cdr": rating}
        kept.append(replace(scan, label=label, pathology=pathology, extra=extra))
    return kept, lost
