"""Which run, map and score finds lesions planted in healthy validation scans; no test scan is read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from evaluation import synthetic
from evaluation.metrics import VoxelHistogram, auroc
from evaluation.postprocess import cluster_enhanced
from pipelines.cohort.cases import cohort_rows
from pipelines.config import read_config
from pipelines.detect.config import RunConfig
from pipelines.detect.detector import atlas_map, map_and_slice_volume, top_mean
from pipelines.detect.run import Run, load_run
from pipelines.study.plant import Head, Plan, plant_one
from pipelines.versions import versions
from preprocessing.files import file_digest, read_json, write_rows, write_table
from preprocessing.images import load_array
from preprocessing.scans import InputError

log = logging.getLogger("norma")

FRACTIONS = (0.001, 0.01, 0.05, 0.25, 1.0)

CHOOSE_VERSION = 1  # raise when the figures change, so that no old ranking is taken for done

COLUMNS = ("run", "voxel_ap", "score", "auroc", "sd", "runs")


@dataclass
class PlantedScores:
    """What a run made of its validation scans, as they are and with a lesion."""

    voxels: dict[str, VoxelHistogram] = field(
        default_factory=dict
    )  # of the scans with a lesion, by its kind
    healthy: dict[str, list[float]] = field(default_factory=dict)
    planted: dict[str, list[float]] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)


def validation_rows(run: Path, data: Path) -> list[dict[str, str]]:
    """The healthy scans of `data` that a run was validated on; InputError where they are not there."""
    wanted = set(read_json(run / "run.json").get("val_scans", []))
    splits = run / "splits.tsv"
    rows = [
        r
        for r in cohort_rows(data, splits if splits.is_file() else None)
        if r["id"] in wanted and r["label"] != "abnormal"
    ]
    if not rows or len(rows) != len(wanted):
        raise InputError(
            f"{data}: holds {len(rows)} of the {len(wanted)} validation scans of {run}; give the data it was trained on."
        )
    return rows


def planted_scans(
    data: Path,
    rows: Sequence[dict[str, str]],
    kinds: Sequence[str],
    volumes: tuple[float, float],
    seed: int,
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Kind, image, brain and lesion (bool) of each validation scan in atlas space: as it is (kind ""), then with one lesion per kind."""
    plan = Plan(list(kinds), len(kinds), volumes, [], seed)
    for number, row in enumerate(rows):
        head = _in_atlas(data, row)
        yield "", head.data, head.brain, np.zeros_like(head.brain)
        for kind in kinds:
            rng = np.random.default_rng([seed, number, synthetic.KINDS.index(kind)])
            donor = _in_atlas(data, rows[(number + 1) % len(rows)]) if kind == "blend" else None
            image, lesion, _ = plant_one(head, kind, plan, rng, donor)
            yield kind, image, head.brain, lesion


def _in_atlas(data: Path, row: dict[str, str]) -> Head:
    """A preprocessed scan as one to plant lesions in."""
    image, brain = (load_array(data / row[k]) for k in ("preproc", "brain"))
    affine = nib.Nifti1Image.from_filename(data / row["preproc"]).affine
    return Head(row, nib.Nifti1Image(image.astype(np.float32), affine), brain > 0, np.eye(4))


def score_planted(
    run: Run, data: Path, kinds: Sequence[str], volumes: tuple[float, float], seed: int
) -> PlantedScores:
    """Score a run's validation scans, as they are and with lesions, in atlas space."""
    if len(run.recipe.suffixes) > 1:
        raise InputError(
            f"{run.folder}: its scans have several channels, and a lesion is planted in one image; choose among runs on one."
        )
    seen = PlantedScores()
    for kind, image, brain, lesion in planted_scans(
        data, validation_rows(run.folder, data), kinds, volumes, seed
    ):
        if run.config.calibration.score == "model":
            found, own = map_and_slice_volume(run.model, run.config, image, brain, run.device)
            scored = {"map": found[brain], "model": own[brain]}
        else:
            found = atlas_map(run.model, run.config, image, brain, run.device)
            scored = {"map": found[brain]}
        scored["cluster"] = cluster_enhanced(found, (1.0, 1.0, 1.0))[brain]
        if kind:
            seen.voxels.setdefault(kind, VoxelHistogram()).update(found[brain], lesion[brain])
            seen.kinds.append(kind)
        for what, values in scored.items():
            for fraction in FRACTIONS:
                (seen.planted if kind else seen.healthy).setdefault(
                    f"{what} {fraction:g}", []
                ).append(top_mean(values, fraction))
    return seen


def ranking_entry(
    name: str, folders: Sequence[Path], runs: Sequence[PlantedScores]
) -> dict[str, Any]:
    """Of one entry of --runs, means over its runs: average precision of the voxels, all and by kind of lesion; per kind of score the AUROC
    of scans with a lesion against the same scans without, mean and sd; how it was trained."""
    about = [read_json(f / "run.json") for f in folders]
    scores = {}
    for score in runs[0].healthy:
        values = [
            auroc(
                np.array(s.healthy[score] + s.planted[score]),
                np.repeat([0, 1], [len(s.healthy[score]), len(s.planted[score])]),
            )
            for s in runs
        ]
        scores[score] = {"auroc": np.mean(values), "sd": np.std(values)}
    return {
        "run": name,
        "runs": len(runs),
        "voxel_ap": np.mean(
            [sum(s.voxels.values(), VoxelHistogram()).average_precision() for s in runs]
        ),
        "voxel_ap_by_kind": {
            k: np.mean([s.voxels[k].average_precision() for s in runs]) for k in runs[0].voxels
        },
        "scores": dict(sorted(scores.items(), key=lambda item: -item[1]["auroc"])),
        "trained_by": about[0].get("command"),
        "train_seconds": np.mean([a["seconds"] for a in about]),
    }


def ranking_digest(run: Path, data: Path) -> str:
    """What the figures of a run depend on besides kinds, volumes and seed: its weights, its config, its validation scans."""
    scans = [
        file_digest(data / row[k])
        for row in validation_rows(run, data)
        for k in ("preproc", "brain")
    ]
    config = read_config(RunConfig, run / "config.yaml").model_dump()
    return sha256(
        repr([CHOOSE_VERSION, file_digest(run / "weights.pt"), config, scans]).encode()
    ).hexdigest()


@dataclass(frozen=True)
class Planting:
    """The lesions to plant: kinds, smallest and largest volume in ml, seed."""

    kinds: Sequence[str]
    volumes: tuple[float, float]
    seed: int = 0


def rank(
    data: Path,
    runs: Sequence[str],
    planting: Planting,
    out: Path | None = None,
    accelerator: str = "auto",
) -> list[dict[str, Any]]:
    """The entries of `runs` (folders of one run or several), best voxel AP first; written to `out` (.tsv, .json) after every run.

    Entries of a former ranking in `out` stand as long as nothing that they depend on has changed.
    """
    kinds, volumes, seed = planting.kinds, planting.volumes, planting.seed
    about: dict[str, Any] = {
        "data": data.name,
        "kinds": kinds,
        "volumes_ml": list(volumes),
        "seed": seed,
    }
    before = (
        read_json(out.with_suffix(".json")) if out and out.with_suffix(".json").is_file() else {}
    )
    same = all(before.get(k) == v for k, v in about.items())
    known: dict[str, Any] = {
        e["run"]: e for e in before.get("entries", []) if same and e["run"] in runs
    }
    for text in runs:
        folders = sorted(p.parent for p in Path(text).rglob("weights.pt"))
        if not folders:
            raise InputError(
                f"{text}: no finished run in this folder; train one with 'make train'."
            )
        stamps = [ranking_digest(folder, data) for folder in folders]
        if known.get(text, {}).get("stamps") != stamps:
            found = [
                score_planted(load_run(folder, accelerator), data, kinds, volumes, seed)
                for folder in folders
            ]
            known[text] = ranking_entry(text, folders, found) | {
                "stamps": stamps,
                "versions": versions(),
            }
        entries = sorted(known.values(), key=lambda e: -e["voxel_ap"])
        log.info("%s: voxel AP %.3f", text, known[text]["voxel_ap"])
        if out:  # after every run, so that an interrupted ranking goes on where it stopped
            write_table(out.with_suffix(".tsv"), ranking_rows(entries), COLUMNS)
            scans = len(validation_rows(folders[0], data))
            write_rows(
                out.with_suffix(".json"), {**about, "validation_scans": scans, "entries": entries}
            )
    return entries


def ranking_rows(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per run and kind of score, the best score first."""
    rows = [
        {"run": e["run"], "voxel_ap": e["voxel_ap"], "score": score, **found, "runs": e["runs"]}
        for e in entries
        for score, found in e["scores"].items()
    ]
    rows.sort(key=lambda r: (-r["auroc"], -r["voxel_ap"]))
    return [{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in r.items()} for r in rows]
