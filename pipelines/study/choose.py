"""Which run, map and score finds lesions planted in healthy validation scans, not in test scans."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import synthetic
from evaluation.metrics import VoxelHistogram, auroc
from evaluation.postprocess import cluster_enhanced
from pipelines import cli
from pipelines.cohort.cases import Case, read_cases
from pipelines.config import read_config
from pipelines.detect.config import RunConfig
from pipelines.detect.detector import ATLAS_MM, top_mean
from pipelines.detect.folder import read_history
from pipelines.detect.identity import figures_digest
from pipelines.detect.run import Run, load_run
from pipelines.study.plant import Plan, in_atlas, kinds_of, plant_one, volumes_of
from pipelines.study.planted_masks import OUTLINES, PlantedMasks
from pipelines.versions import versions
from preprocessing.files import file_digest, read_json, write_rows, write_table
from preprocessing.scans import InputError

log = logging.getLogger("norma")

FRACTIONS = (0.001, 0.01, 0.05, 0.25, 1.0)
CHOOSE_VERSION = 2  # raise when the figures change, so that no old ranking is taken for done
COLUMNS = ("run", "voxel_ap", "score", "auroc", "sd", "runs")


@dataclass(frozen=True)
class Planting:
    """The lesions to plant: kinds, smallest and largest volume in ml, seed."""

    kinds: Sequence[str]
    volumes: tuple[float, float]
    seed: int = 0


def planting_of(kinds: str | None, volumes: str | None, seed: int = 0) -> Planting:
    """The lesions to plant by a user's words, each kind once; InputError for what is none."""
    known = list(dict.fromkeys(kinds_of(kinds)))
    return Planting(known, volumes_of(volumes), cli.seed_of(seed))


@dataclass
class PlantedScores:
    """What a run makes of its validation scans, as they are and with a lesion.

    `voxels` are of the scans with a lesion, by its kind. Scores are lists by the name of the score.
    `masks` are what every way to cut the maps marks.
    """

    masks: PlantedMasks
    voxels: dict[str, VoxelHistogram] = field(default_factory=dict)
    healthy: dict[str, list[float]] = field(default_factory=dict)
    planted: dict[str, list[float]] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PlantedScan:
    """A validation scan in atlas space, as it is (kind "") or with a lesion (bool) of a kind."""

    kind: str
    image: np.ndarray
    brain: np.ndarray
    lesion: np.ndarray


def validation_cases(run_dir: Path, data: Path) -> list[Case]:
    """The healthy cases of `data` that a run was validated on; InputError where one is absent."""
    wanted = set(read_history(run_dir).get("val_scans", []))
    if not wanted:
        raise InputError(
            f"{run_dir}: no scan validated it, and lesions are planted in those; train it on a "
            "cohort with healthy scans in split 'val', or choose among other runs."
        )
    splits = run_dir / "splits.tsv"
    cases = [
        case
        for case in read_cases(data, splits if splits.is_file() else None)
        if case.id in wanted and case.label != "abnormal"
    ]
    if len(cases) != len(wanted):
        raise InputError(
            f"{data}: holds {len(cases)} of the {len(wanted)} validation scans of {run_dir}; "
            "give the data it was trained on."
        )
    return cases


def planted_scans(cases: Sequence[Case], planting: Planting) -> Iterator[PlantedScan]:
    """Each validation scan as it is, then with one lesion of each kind."""
    for number in range(len(cases)):
        yield from planted_of(cases, number, planting)


def planted_of(cases: Sequence[Case], number: int, planting: Planting) -> Iterator[PlantedScan]:
    """One of the cases, by its number, as it is, then with one lesion of each kind."""
    plan = Plan(list(planting.kinds), len(planting.kinds), planting.volumes, [], planting.seed)
    head = in_atlas(cases[number])
    yield PlantedScan("", head.data, head.brain, np.zeros_like(head.brain))
    for kind in planting.kinds:
        rng = np.random.default_rng([planting.seed, number, synthetic.KINDS.index(kind)])
        donor = in_atlas(cases[(number + 1) % len(cases)]) if kind == "blend" else None
        image, lesion, _ = plant_one(head, kind, plan, rng, donor)
        yield PlantedScan(kind, image, head.brain, lesion)


def score_planted(run: Run, data: Path, planting: Planting) -> PlantedScores:
    """Score a run's validation scans, as they are and with lesions, in atlas space."""
    if len(run.recipe.suffixes) > 1:
        raise InputError(
            f"{run.folder}: its scans have several channels, and a lesion is planted in one image; "
            "choose among runs on one."
        )
    healthy = run.healthy_voxels
    outlines = {q: healthy.quantile(q) for q in OUTLINES}
    scores = PlantedScores(PlantedMasks(outlines, run.config.postprocess))
    for scan in planted_scans(validation_cases(run.folder, data), planting):
        found, enhanced, scored = _scored_values(run, scan)
        scores.masks.add(found, scan.brain, scan.lesion, enhanced)
        if scan.kind:
            voxels = scores.voxels.setdefault(scan.kind, VoxelHistogram())
            voxels.update(found[scan.brain], scan.lesion[scan.brain])
            scores.kinds.append(scan.kind)
        group = scores.planted if scan.kind else scores.healthy
        for what, values in scored.items():
            for fraction in FRACTIONS:
                score = top_mean(values, fraction)
                group.setdefault(f"{what} {fraction:g}", []).append(score)
    return scores


def _scored_values(
    run: Run, scan: PlantedScan
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The map of a scan, its cluster enhancement, and what scores are taken from, by its name."""
    scored: dict[str, np.ndarray] = {}
    if run.config.calibration.score == "model":
        found, by_model = run.detector.map_and_scores(scan.image, scan.brain)
        scored = {"map": found[scan.brain], "model": by_model[scan.brain]}
    else:
        found = run.detector.atlas_map(scan.image, scan.brain)
        scored = {"map": found[scan.brain]}
    enhanced = cluster_enhanced(found, ATLAS_MM)
    scored["cluster"] = enhanced[scan.brain]
    return found, enhanced, scored


def ranking_entry(
    name: str, run_dirs: Sequence[Path], runs: Sequence[PlantedScores]
) -> dict[str, Any]:
    """One entry of --runs: means over its runs, and how it was trained.

    AP of the voxels, of all and by kind of lesion. Per way to cut the maps the mean Dice and the
    share of lesions found, the best Dice first. Per kind of score the AUROC of scans with a
    lesion against the same scans without, as mean and sd.
    """
    histories = [read_history(run_dir) for run_dir in run_dirs]
    scores: dict[str, dict[str, Any]] = {}
    for score in runs[0].healthy:
        values = [_auroc(run.healthy[score], run.planted[score]) for run in runs]
        scores[score] = {"auroc": np.mean(values), "sd": np.std(values)}

    by_kind: dict[str, Any] = {}
    for kind in runs[0].voxels:
        by_kind[kind] = np.mean([run.voxels[kind].average_precision() for run in runs])
    pooled = [sum(run.voxels.values(), VoxelHistogram()) for run in runs]
    trained = read_config(RunConfig, run_dirs[0] / "config.yaml")
    false_alarm = trained.calibration.false_alarm
    return {
        "run": name,
        "runs": len(runs),
        "voxel_ap": np.mean([voxels.average_precision() for voxels in pooled]),
        "voxel_ap_by_kind": by_kind,
        "masks": _mean_masks(runs, false_alarm),
        "scores": dict(sorted(scores.items(), key=lambda item: -item[1]["auroc"])),
        "trained_by": histories[0].get("command"),
        "train_seconds": np.mean([history["seconds"] for history in histories]),
    }


def _mean_masks(runs: Sequence[PlantedScores], false_alarm: float) -> list[dict[str, Any]]:
    """The figures of `PlantedMasks`, mean over runs."""
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for run in runs:
        for row in run.masks.figures(false_alarm):
            found.setdefault((row["strength"], row["outline"]), []).append(row)
    rows: list[dict[str, Any]] = []
    for (strength, outline), same in found.items():
        mean: dict[str, Any] = {"strength": strength, "outline": outline}
        mean["dice"] = float(np.mean([row["dice"] for row in same]))
        mean["found"] = float(np.mean([row["found"] for row in same]))
        rows.append(mean)
    return sorted(rows, key=lambda row: -row["dice"])


def _auroc(healthy: list[float], planted: list[float]) -> float:
    labels = np.repeat([0, 1], [len(healthy), len(planted)])
    return auroc(np.array(healthy + planted), labels)


def ranking_digest(run_dir: Path, data: Path) -> str:
    """What the figures of a run depend on besides the planting: weights, settings, scans."""
    scans: list[str] = []
    for case in validation_cases(run_dir, data):
        scans += [file_digest(case.preproc), file_digest(case.brain)]
    config = read_config(RunConfig, run_dir / "config.yaml")
    return figures_digest(file_digest(run_dir / "weights.pt"), config, CHOOSE_VERSION, scans)


def rank(
    data: Path,
    runs: Sequence[str],
    planting: Planting,
    out: Path | None = None,
    accelerator: str = "auto",
) -> list[dict[str, Any]]:
    """The entries of `runs` (folders of one run or several), best voxel AP first.

    They are written to `out` (.tsv, .json) after every run. Entries of a former ranking in `out`
    stand as long as nothing that they depend on has changed.
    """
    asked: dict[str, Any] = {
        "data": data.name,
        "kinds": list(planting.kinds),
        "volumes_ml": list(planting.volumes),
        "seed": planting.seed,
    }
    known = _former_entries(out, asked, runs)
    if out:
        cli.make_folder(out.parent)  # before minutes of scoring
    entries: list[dict[str, Any]] = []
    for name in runs:
        run_dirs = runs_in(Path(name))
        stamps = [ranking_digest(run_dir, data) for run_dir in run_dirs]
        if known.get(name, {}).get("stamps") != stamps:
            found = [score_planted(load_run(d, accelerator), data, planting) for d in run_dirs]
            entry = ranking_entry(name, run_dirs, found)
            known[name] = entry | {"stamps": stamps, "versions": versions()}
        entries = sorted(known.values(), key=lambda entry: -entry["voxel_ap"])
        log.info("%s: voxel AP %.3f", name, known[name]["voxel_ap"])
        if out:  # after every run, so that an interrupted ranking goes on where it stopped
            scans = len(validation_cases(run_dirs[0], data))
            write_table(_named(out, ".tsv"), ranking_rows(entries), COLUMNS)
            content = {**asked, "validation_scans": scans, "entries": entries}
            write_rows(_named(out, ".json"), content)
    return entries


def runs_in(folder: Path) -> list[Path]:
    """The finished runs in a folder; of a run trained in folds, its folds. InputError for none."""
    found = sorted(path.parent for path in folder.rglob("weights.pt"))
    if not found:
        raise InputError(f"{folder}: no finished run in this folder; train one with 'make train'.")
    return [run_dir for run_dir in found if not (run_dir / "folds").is_dir()]


def _named(out: Path, suffix: str) -> Path:
    """A file of a ranking: `out` with a suffix; "ranking.v2" keeps its own, "ranking.tsv" not."""
    base = out.with_suffix("") if out.suffix in (".tsv", ".json") else out
    return base.with_name(f"{base.name}{suffix}")


def _former_entries(
    out: Path | None, asked: dict[str, Any], runs: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Entries, by run, of a ranking in `out` that asked the same; InputError for a damaged one."""
    if not out or not _named(out, ".json").is_file():
        return {}
    path = _named(out, ".json")
    before = read_json(path)
    try:
        if any(before.get(key) != value for key, value in asked.items()):
            return {}
        found = {e["run"]: e for e in before.get("entries", []) if e["run"] in runs}
        for entry in found.values():
            _read_whole(entry)
    except (AttributeError, LookupError, TypeError, ValueError):
        raise InputError(
            f"{path}: not a ranking of 'make choose', or a damaged one; delete it and run again, "
            "or give another OUT."
        ) from None
    return found


def _read_whole(entry: dict[str, Any]) -> None:
    """Read of an entry what is shown and sorted by; an error of Python where that is not there."""
    ranking_rows([entry])
    best = entry["masks"][0]
    float(entry["voxel_ap"])
    for figure in ("outline", "dice", "found"):
        float(best[figure])
    str(best["strength"])


def ranking_rows(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per run and kind of score, the best score first."""
    rows: list[dict[str, Any]] = []
    for entry in entries:
        named = {"run": entry["run"], "voxel_ap": entry["voxel_ap"]}
        for score, found in entry["scores"].items():
            rows.append({**named, "score": score, **found, "runs": entry["runs"]})
    rows.sort(key=lambda row: (-row["auroc"], -row["voxel_ap"]))
    return [_cells(row) for row in rows]


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers with three digits."""
    return {key: f"{v:.3f}" if isinstance(v, float) else v for key, v in row.items()}
