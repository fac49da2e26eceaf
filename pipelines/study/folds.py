"""The runs of a comparison: seeds, or folds by subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sklearn.model_selection import StratifiedGroupKFold

from models.base import AnomalyModel
from pipelines.cohort.cases import Case
from pipelines.study.protocol import Protocol
from preprocessing.files import write_table
from preprocessing.scans import LABELS, InputError


@dataclass(frozen=True)
class Unit:
    """One run of a comparison: a seed, or a fold of a repeat with its table of splits."""

    name: str
    seed: int
    repeat: int | None = None
    fold: int | None = None
    splits: Path | None = None


def units(protocol: Protocol, model: type[AnomalyModel], folder: Path) -> list[Unit]:
    """The runs of one model: every fold of every repeat, or every seed.

    A model that no seed changes has one seed. `folder` holds the tables of `write_folds`.
    """
    if not protocol.folds:
        seeds = protocol.seeds if model.stages or model.combines else 1
        return [Unit(f"seed-{seed}", seed) for seed in range(seeds)]
    folder = folder / "labelled" if model.supervised else folder
    found: list[Unit] = []
    for repeat in range(protocol.repeats):
        for fold in range(protocol.folds):
            name = f"repeat-{repeat}_fold-{fold}"
            found.append(Unit(name, repeat, repeat, fold, folder / f"{name}.tsv"))
    return found


def write_folds(cases: Sequence[Case], protocol: Protocol, folder: Path) -> None:
    """Tables (id, split) of grouped, stratified, repeated k-fold, seeded by the repeat.

    scikit-learn's StratifiedGroupKFold: the scans of a subject (or group) stay together. In run f
    of k, fold f is the test. Of fold f + 1 the healthy scans validate and the abnormal ones are the
    labelled split "tune". The healthy scans of all other folds train. `labelled`/ holds the same
    folds for supervised models, which train and validate on the abnormal scans too. InputError for
    scans without a label, or fewer groups of a kind than folds.
    """
    assert protocol.folds
    labels = [case.label for case in cases]
    subjects = [case.subject for case in cases]
    _check_folds(cases, protocol.folds)
    for repeat in range(protocol.repeats):
        folds = StratifiedGroupKFold(protocol.folds, shuffle=True, random_state=repeat)
        tests: list[set[str]] = []
        for _, test in folds.split(cases, labels, subjects):
            tests.append({cases[i].id for i in test})
        for fold, test in enumerate(tests):
            validated = tests[(fold + 1) % protocol.folds]
            name = f"repeat-{repeat}_fold-{fold}.tsv"
            write_table(folder / name, _healthy_splits(cases, test, validated))
            write_table(folder / "labelled" / name, _labelled_splits(cases, test, validated))


def _check_folds(cases: Sequence[Case], folds: int) -> None:
    unknown = next((case for case in cases if case.label not in LABELS), None)
    if unknown:
        raise InputError(
            f"scan '{unknown.id}' has no label; folds need healthy and abnormal scans, "
            "say so in the table's column 'label'."
        )
    for label in LABELS:
        subjects = {case.subject for case in cases if case.label == label}
        if len(subjects) < folds:
            raise InputError(
                f"{len(subjects)} subjects with {label} scans cannot be cut into {folds} folds; "
                "use fewer folds."
            )


def _healthy_splits(
    cases: Sequence[Case], test: set[str], validated: set[str]
) -> list[dict[str, str]]:
    """Splits of a model that learns from healthy scans; abnormal ones of other folds have none.

    The slices without lesion of a patient's scan train and validate, and are never tested. Where a
    subject has healthy and abnormal scans, as with planted lesions, its healthy ones validate and
    the others have no split: a subject is in one split alone.
    """
    table: list[dict[str, str]] = []
    validating = {c.subject for c in cases if c.id in validated and c.label == "healthy"}
    for case in cases:
        healthy = case.label == "healthy"
        if case.id in test:
            if not case.is_part:
                table.append({"id": case.id, "split": "test"})
        elif case.gives_part:
            continue  # its slices without lesion, of the same subject, train or validate
        elif case.id in validated:
            if healthy or case.subject not in validating:
                table.append({"id": case.id, "split": "val" if healthy else "tune"})
        elif healthy:
            table.append({"id": case.id, "split": "train"})
    return table


def _labelled_splits(
    cases: Sequence[Case], test: set[str], validated: set[str]
) -> list[dict[str, str]]:
    """Splits of a supervised model."""
    table: list[dict[str, str]] = []
    for case in cases:
        if case.is_part:
            continue
        split = "train"
        if case.id in validated:
            split = "val"
        if case.id in test:
            split = "test"
        table.append({"id": case.id, "split": split})
    return table
