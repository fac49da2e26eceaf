"""The runs of a comparison: seeds, or folds by subject."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sklearn.model_selection import StratifiedGroupKFold

from models.base import AnomalyModel
from pipelines.study.protocol import Protocol
from preprocessing.files import write_table
from preprocessing.scans import InputError


@dataclass(frozen=True)
class Unit:
    """One run of a comparison: a seed, or a fold of a repeat with its table of splits."""

    name: str
    seed: int
    repeat: int | None = None
    fold: int | None = None
    splits: Path | None = None


def units(protocol: Protocol, model: type[AnomalyModel], folder: Path) -> list[Unit]:
    """The runs of one model: every fold of every repeat, or every seed; one seed alone for a model that no seed changes."""
    if protocol.folds:
        folder = folder / "labelled" if model.supervised else folder
        pairs = [(r, f) for r in range(protocol.repeats) for f in range(protocol.folds)]
        return [
            Unit(f"repeat-{r}_fold-{f}", r, r, f, folder / f"repeat-{r}_fold-{f}.tsv")
            for r, f in pairs
        ]
    return [
        Unit(f"seed-{s}", s) for s in range(protocol.seeds if model.stages or model.combines else 1)
    ]


def write_folds(rows: list[dict[str, str]], protocol: Protocol, folder: Path) -> None:
    """Tables (id, split) of grouped, stratified, repeated k-fold: scikit-learn's StratifiedGroupKFold, seeded by the repeat.

    The scans of a subject (or group) stay together. In run f of k, fold f is the test; of fold f + 1 the healthy scans
    validate and the abnormal ones are the labelled split "tune"; the healthy ones of all other folds train. InputError for
    scans without a label, or fewer groups of a kind than folds. `labelled`/ holds the same folds for supervised models, which train
    and validate on the abnormal scans too.
    """
    assert protocol.folds
    unknown = next((r for r in rows if r["label"] not in ("healthy", "abnormal")), None)
    if unknown:
        raise InputError(
            f"scan '{unknown['id']}' has no label; folds need healthy and abnormal scans, say so in the table's column 'label'."
        )
    labels, groups = [r["label"] for r in rows], [r["subject"] for r in rows]
    for label in ("healthy", "abnormal"):
        n = len({g for g, own in zip(groups, labels, strict=True) if own == label})
        if n < protocol.folds:
            raise InputError(
                f"{n} subjects with {label} scans cannot be cut into {protocol.folds} folds; use fewer folds."
            )
    for repeat in range(protocol.repeats):
        parts = StratifiedGroupKFold(protocol.folds, shuffle=True, random_state=repeat).split(
            rows, labels, groups
        )
        tests = [{rows[i]["id"] for i in test} for _, test in parts]
        for fold, test in enumerate(tests):
            nearby = tests[(fold + 1) % protocol.folds]
            table, labelled = [], []
            for row in rows:
                healthy = row["label"] == "healthy"
                if row["id"] in test:
                    split = "test"
                elif row["id"] in nearby:
                    split = "val" if healthy else "tune"
                else:
                    split = "train" if healthy else ""
                table += [{"id": row["id"], "split": split}] if split else []
                part = "test" if row["id"] in test else "val" if row["id"] in nearby else "train"
                labelled.append({"id": row["id"], "split": part})
            write_table(folder / f"repeat-{repeat}_fold-{fold}.tsv", table)
            write_table(folder / "labelled" / f"repeat-{repeat}_fold-{fold}.tsv", labelled)
