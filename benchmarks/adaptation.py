"""What `make adapt` does for another scanner: `python -m benchmarks.adaptation`.

Each way adapts `--run` on k healthy scans of `--target`, drawn by lot, `--draws` times. Other
healthy scans, at most `--held-out`, are then scored as they are and with planted lesions, by the
parent ("none") and by the child. Two figures of each:

- at equal sensitivity: what the threshold at which a share of the planted lesions is found
  (`--sensitivities`) marks in the same scans without lesion, in ml and findings;
- at the run's own point: the same, and the share of planted lesions found.

A lesion is found where at least FOUND of it is marked. All is measured in atlas space. `--out`
holds any number of runs; its rows of the same run, scans and lesions are not measured again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from skimage.measure import label
from tqdm import tqdm

from evaluation.checks import bounding_box
from pipelines import cli
from pipelines.cohort.cases import Case, read_cases
from pipelines.detect.detector import ATLAS_MM, NativeMap, cut
from pipelines.detect.points import Point
from pipelines.detect.ready import run_folder
from pipelines.detect.run import Run, load_run
from pipelines.detect.typical import FEWEST
from pipelines.study.choose import Planting, planted_of
from pipelines.study.plant import kinds_of, volumes_of
from pipelines.training.adapt import adapt, demand_way
from pipelines.versions import versions
from preprocessing.files import digest_of, read_json, write_rows
from preprocessing.images import Grid

Row = dict[str, Any]
FOUND = 0.1  # of a lesion
NONE = "none"  # the parent as it is


@dataclass(frozen=True)
class Asked:
    """What is measured: ways, numbers of scans, draws of each, and the lesions to plant.

    `source` is the cohort that the run learned from, for "fada". With `splits`, a table (id,
    split), the scans are those of split "test" there.
    """

    target: Path
    ways: Sequence[str]
    counts: Sequence[int]
    draws: int
    held_out: int
    sensitivities: tuple[float, ...]
    planting: Planting
    source: Path | None = None
    splits: Path | None = None


@dataclass(frozen=True)
class Draw:
    """Scans of the target by number: those that adapt, and those that are held out."""

    count: int
    number: int
    adapting: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """What a run sees in a scan: the healthy map, and of each planted lesion its strength.

    The strength is the highest threshold at which the lesion is found. `found` says whether it is
    at the run's own point.
    """

    healthy: NativeMap
    strengths: list[float]
    found: list[bool]


def healthy_cases(data: Path, splits: Path | None = None) -> list[Case]:
    """The healthy scans of a cohort, one of a person each; of a table of splits its test scans."""
    cases = [case for case in read_cases(data, splits) if case.label == "healthy"]
    return [c for c in cases if not c.is_part and (not splits or c.split == "test")]


def draws_of(total: int, asked: Asked) -> Iterator[Draw]:
    """Every draw that leaves a scan to test on."""
    for count in asked.counts:
        for number in range(asked.draws if count < total else 0):
            rng = np.random.default_rng([asked.planting.seed, count, number])
            order = tuple(rng.permutation(total).tolist())
            yield Draw(count, number, order[:count], order[count:][: asked.held_out])


def left_out(total: int, asked: Asked) -> Iterator[str]:
    """What is asked and cannot be measured, and why."""
    for count in asked.counts:
        if count >= total:
            yield f"k = {count}: not measured, as {total} scans leave none to test on."
        elif count < FEWEST and "calibration" in asked.ways:
            yield f"calibration, k = {count}: not measured, as it needs {FEWEST} scans."


def look(run: Run, cases: Sequence[Case], number: int, asked: Asked) -> Seen:
    """What a run sees in one of the cases, as it is and with lesions."""
    at = run.point()
    healthy: NativeMap | None = None
    strengths: list[float] = []
    found: list[bool] = []
    for scan in planted_of(cases, number, asked.planting):
        values = run.detector.atlas_map(scan.image, scan.brain)
        box = bounding_box(scan.brain, margin=2)
        grid = Grid(scan.brain[box].shape, np.diag([*ATLAS_MM, 1.0]))
        native = NativeMap(values[box], scan.brain[box], grid)
        if not scan.kind:
            healthy = native
            continue
        lesion = scan.lesion[box]
        strengths.append(float(np.quantile(native.map[lesion], 1 - FOUND, method="lower")))
        marked = cut(native, at, run.config.postprocess)
        found.append(bool(marked[lesion].mean() >= FOUND))
    assert healthy
    return Seen(healthy, strengths, found)


def level_of(strengths: Sequence[float], sensitivity: float) -> float:
    """The highest threshold that at least that share of the lesions pass."""
    ordered = sorted(strengths, reverse=True)
    last = int(np.ceil(sensitivity * len(ordered) - 1e-9)) - 1
    return float(np.nextafter(ordered[max(last, 0)], -np.inf))


def in_vain(run: Run, seen: Sequence[Seen], at: Point) -> Row:
    """What a point marks in healthy scans: millilitres and findings per scan."""
    ml: list[float] = []
    findings: list[int] = []
    for scan in seen:
        marked = cut(scan.healthy, at, run.config.postprocess)
        ml.append(float(marked.sum()) * float(np.prod(ATLAS_MM)) / 1000)
        findings.append(int(label(marked, connectivity=3).max()))
    return {"ml": float(np.mean(ml)), "findings": float(np.mean(findings))}


def figures(run: Run, seen: Sequence[Seen], sensitivities: Sequence[float]) -> Row:
    """Both figures of a run on held-out scans."""
    strengths: list[float] = []
    found: list[bool] = []
    for scan in seen:
        strengths += scan.strengths
        found += scan.found
    equal: list[Row] = []
    for sensitivity in sensitivities:
        level = level_of(strengths, sensitivity)
        marked = in_vain(run, seen, Point(point="equal", voxel=level))
        equal.append({"sensitivity": sensitivity, "threshold": level} | marked)
    own = in_vain(run, seen, run.point()) | {"found": float(np.mean(found))}
    return {"lesions": len(found), "equal": equal, "own": own}


def measured(run: Run, asked: Asked, known: Sequence[Row]) -> Iterator[list[Row]]:
    """All rows so far, after every draw of a way; `known` are those of an earlier call."""
    cases = healthy_cases(asked.target, asked.splits)
    rows = list(known)
    done = {(row["how"], row["k"], row["draw"]) for row in rows}
    for reason in left_out(len(cases), asked):
        print(reason, flush=True)
    parent: dict[int, Seen] = {}
    jobs: list[tuple[str, Draw]] = []
    for draw in draws_of(len(cases), asked):
        jobs += [(how, draw) for how in (NONE, *asked.ways)]
    for how, draw in tqdm(jobs, desc=run.folder.name, unit="draw"):
        if (how, draw.count, draw.number) in done:
            continue
        if how == "calibration" and draw.count < FEWEST:
            continue
        if how == NONE:
            for number in set(draw.held_out) - set(parent):
                parent[number] = look(run, cases, number, asked)
            found = figures(run, [parent[i] for i in draw.held_out], asked.sensitivities)
        else:
            found = adapted(run, cases, how, draw, asked)
        about = {"how": how, "k": draw.count, "draw": draw.number}
        rows.append(about | {"held_out": [cases[i].id for i in draw.held_out]} | found)
        yield rows


def adapted(run: Run, cases: Sequence[Case], how: str, draw: Draw, asked: Asked) -> Row:
    """The figures of a child that the scans of a draw adapt."""
    source = asked.source if how == "fada" else None
    with tempfile.TemporaryDirectory(prefix="norma-adapt-") as folder:
        given = [cases[i] for i in draw.adapting]
        child = adapt(run, given, Path(folder) / "child", how, source)
        seen = [look(child, cases, i, asked) for i in draw.held_out]
        return figures(child, seen, asked.sensitivities)


def summary(rows: Sequence[Row]) -> list[Row]:
    """Means over the draws, by way and number of scans."""
    found: list[Row] = []
    for k, how in sorted({(row["k"], row["how"]) for row in rows}):
        own = [row for row in rows if (row["k"], row["how"]) == (k, how)]
        entry: Row = {"k": k, "how": how, "draws": len(own), "equal": []}
        by_row = [row["equal"] for row in own]
        for levels in zip(*by_row, strict=True):
            asked = {"sensitivity": levels[0]["sensitivity"]}
            entry["equal"].append(asked | means(levels, ("ml", "findings")))
        entry["own"] = means([row["own"] for row in own], ("ml", "findings", "found"))
        found.append(entry)
    return found


def means(rows: Sequence[Row], names: Sequence[str]) -> Row:
    """The mean of each column."""
    found: Row = {}
    for name in names:
        found[name] = float(np.mean([row[name] for row in rows]))
    return found


def about(run: Run, asked: Asked) -> Row:
    """What rows depend on but way, number and draw."""
    prints = [[case.id, case.fingerprint] for case in healthy_cases(asked.target, asked.splits)]
    return {
        "learned_from": run.history.get("data"),
        "target": asked.target.name,
        "splits": asked.splits.name if asked.splits else None,
        "scans": len(prints),
        "kinds": list(asked.planting.kinds),
        "volumes_ml": list(asked.planting.volumes),
        "seed": asked.planting.seed,
        "most_held_out": asked.held_out,
        "sensitivities": list(asked.sensitivities),
        "stamp": digest_of(run.weights_digest, run.config.model_dump(mode="json"), prints),
    }


def measure(name: str, run: Run, asked: Asked, out: Path) -> None:
    """Measure a run into a JSON file, which is written after every row."""
    for how in asked.ways:
        demand_way(run, how, asked.source if how == "fada" else None)
    said = about(run, asked)
    content: Row = read_json(out) if out.is_file() else {"runs": {}}
    before = content["runs"].get(name, {})
    known = before.get("rows", []) if {k: before.get(k) for k in said} == said else []
    for rows in measured(run, asked, known):
        entry = said | {"summary": summary(rows), "rows": rows}
        runs = content["runs"] | {name: entry}
        write_rows(out, {"versions": versions(), "found": FOUND, "runs": runs})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, help="a run, or the name of a ready-made one")
    parser.add_argument("--name", help="of the run in the file; its folder's where left out")
    parser.add_argument("--target", required=True, type=Path, help="OUT of preprocess, healthy")
    parser.add_argument("--source", type=Path, help="for fada: OUT of preprocess of the run's data")
    parser.add_argument("--splits", type=Path, help="table (id, split): its test scans alone")
    parser.add_argument("--ways", nargs="+", default=["harmonise"], help="HOW of make adapt")
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 5, 10, 20])
    parser.add_argument("--draws", type=int, default=2, help="of each number of scans")
    parser.add_argument("--held-out", type=int, default=10, help="most scans tested per draw")
    parser.add_argument("--sensitivities", nargs="+", type=float, default=[0.5, 0.8])
    parser.add_argument("--kinds", help="of lesions, between commas")
    parser.add_argument("--volumes", help="smallest and largest in ml, such as 1,20")
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    arguments = parser.parse_args()
    asked = Asked(
        target=arguments.target,
        ways=arguments.ways,
        counts=arguments.counts,
        draws=arguments.draws,
        held_out=arguments.held_out,
        sensitivities=tuple(arguments.sensitivities),
        planting=Planting(kinds_of(arguments.kinds), volumes_of(arguments.volumes)),
        source=arguments.source,
        splits=arguments.splits,
    )
    run = load_run(run_folder(arguments.run))
    measure(arguments.name or run.folder.name, run, asked, arguments.out)


if __name__ == "__main__":
    cli.leave(main)
