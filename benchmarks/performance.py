"""What Norma costs beside what users would run instead: `python -m benchmarks.performance`.

Each figure is the median of runs that alternate with the peer's, on the same work, in one process,
on one machine. `ratio` says how many times better Norma is. Absolute seconds belong to that machine
at that moment. Nothing here decides pass or fail.

`--t1` and `--ct` name raw scans (without `--t1` it is one of the demo's virtual cohort), `--only`
one part, `--out` the JSON file. Peers that are not installed
(`pip install -r requirements-benchmark.txt`) are left out with a note.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib

from benchmarks.growth import growth
from benchmarks.inference import inference
from benchmarks.loading import loading
from benchmarks.measure import NOTES, Row
from benchmarks.preprocessing import preprocessing
from benchmarks.recommended import recommended
from benchmarks.scale import scale, workers
from benchmarks.stages import profiles
from benchmarks.training import training
from pipelines import cli
from pipelines.versions import versions
from preprocessing.datasets.virtual import draw, render
from preprocessing.files import read_json, write_rows
from preprocessing.images import read_image

PARTS = (
    "preprocessing",
    "loading",
    "training",
    "inference",
    "profile",
    "recommended",
    "scale",
    "growth",
    "workers",
)


def main(arguments: argparse.Namespace) -> int:
    given = {"t1": arguments.t1, "ct": arguments.ct, "flair": arguments.flair}
    scans = {modality: path for modality, path in given.items() if path}
    for path in scans.values():
        read_image(path)  # what cannot be read fails now, not in half an hour
    with tempfile.TemporaryDirectory() as folder:
        if "t1" not in scans:
            scans = {"t1": virtual_scan(Path(folder)), **scans}
        content = read_json(arguments.out) if arguments.out.is_file() else {}
        for part in arguments.only or PARTS:
            rows = measured(part, scans, arguments.flair_run, arguments.repeats)
            content = with_part(content, part, rows) | {
                "scans": {modality: path.name for modality, path in scans.items()},
                "repeats": arguments.repeats,
                "machine": {"cores": os.cpu_count()},
                "versions": versions(),
            }
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_rows(arguments.out, content)
    return cli.OK


def measured(part: str, scans: dict[str, Path], flair_run: Path | None, repeats: int) -> list[Row]:
    """Return the rows of one part."""
    t1 = scans["t1"]
    parts: dict[str, Callable[[], list[Row]]] = {
        "preprocessing": lambda: preprocessing(scans, repeats),
        "loading": lambda: loading(t1, repeats),
        "training": lambda: training(t1, repeats),
        "inference": lambda: inference(t1, repeats),
        "profile": lambda: profiles(scans, flair_run, repeats),
        "recommended": lambda: recommended(repeats),
        "scale": scale,
        "growth": growth,
        "workers": lambda: workers(max(1, repeats - 1)),
    }
    return parts[part]()


def with_part(content: dict[str, Any], part: str, rows: list[Row]) -> dict[str, Any]:
    """Return a results file's rows and notes with one part measured again."""
    others = [one for one in content.get("rows", []) if one["part"] != part]
    return {
        "rows": [*others, *({"part": part, **one} for one in rows)],
        "notes": sorted({*content.get("notes", []), *NOTES}),
    }


def build_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.performance", description=(__doc__ or "").splitlines()[0]
    )
    p.add_argument("--t1", type=Path, help="a raw T1 scan")
    p.add_argument("--ct", type=Path, help="a raw head CT")
    p.add_argument("--flair", type=Path, help="a raw FLAIR scan, for which no run is ready-made")
    p.add_argument("--flair-run", type=Path, help="a run of atlas PRESET=flair, for its profile")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument(
        "--only", choices=PARTS, action="append", help="a part; the rows of others in OUT stay"
    )
    p.add_argument("--out", required=True, type=Path, help="JSON file")
    return p


def virtual_scan(folder: Path) -> Path:
    """Write a T1 scan of the demo's virtual cohort."""
    image, _, affine = render(draw(0, 0, "train", "healthy"), 0)
    path = folder / "virtual_T1w.nii.gz"
    nib.save(nib.Nifti1Image(image, affine), path)
    return path


if __name__ == "__main__":
    cli.run(main, build_parser())
