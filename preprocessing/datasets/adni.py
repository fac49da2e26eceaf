"""ADNI as BIDS, as Clinica's adni-to-bids writes it: T1 with a diagnosis.

Licence: ADNI's terms; for evaluation only. Layout as at https://aramislab.paris.inria.fr/clinica/docs/public/latest/Converters/ADNI2BIDS/:

    participants.tsv    participant_id, diagnosis_sc (in older versions diagnosis_bl)
    sub-ADNI002S0295/sub-ADNI002S0295_sessions.tsv    session_id, diagnosis
    sub-ADNI002S0295/ses-M000/anat/sub-ADNI002S0295_ses-M000_T1w.nii.gz

Assumed: CN (cognitively normal) is healthy; MCI and AD are abnormal, without a lesion that a mask
could show. A scan without diagnosis at its session, or of another group (SMC), is left out; the
diagnosis at screening counts for month 0 alone.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from preprocessing.files import read_table
from preprocessing.scans import Scan
from preprocessing.tables import read_scans

PATIENTS = {"AD": "AD", "Dementia": "AD", "MCI": "MCI", "EMCI": "MCI", "LMCI": "MCI"}


def scans(data: Path, out: Path, modality: str = "") -> tuple[list[Scan], dict[str, str]]:
    """Every scan of a person with a diagnosis, and by id why one is left out."""
    screened: dict[str, str] = {}
    if (data / "participants.tsv").is_file():
        for row in read_table(data / "participants.tsv"):
            first = row.get("diagnosis_sc") or row.get("diagnosis_bl", "")
            screened[row["participant_id"]] = first

    found: list[Scan] = []
    lost: dict[str, str] = {}
    for scan in read_scans(data, modality or "t1"):
        session = re.search(r"_(ses-M0*(\d+))_", scan.image.name)
        told = _at_session(data / scan.subject, session[1]) if session else ""
        if not told and session and session[2] == "0":
            told = screened.get(scan.subject, "")
        if told == "CN":
            found.append(replace(scan, label="healthy"))
        elif told in PATIENTS:
            found.append(replace(scan, label="abnormal", pathology=PATIENTS[told]))
        else:
            when = session[1] if session else "an unknown session"
            lost[scan.id] = f"{scan.image}: diagnosis '{told or 'none'}' at {when}; left out."
    return found, lost


def _at_session(folder: Path, session: str) -> str:
    """The diagnosis of a subject at a session, or ""; n/a is none."""
    table = folder / f"{folder.name}_sessions.tsv"
    if not table.is_file():
        return ""
    for row in read_table(table):
        if row["session_id"] == session and row.get("diagnosis") not in (None, "n/a"):
            return row["diagnosis"]
    return ""
