"""What Norma costs beside what users would run instead: `python -m benchmarks.performance --out JSON`.

Each figure is the median of runs that alternate with the peer's on the same work, in one process on one machine; `ratio` says how many
times better Norma is. Absolute seconds belong to that machine at that moment. Nothing here decides pass or fail.

`--t1` and `--ct` name raw scans (without `--t1` one of the demo's virtual cohort), `--only` one part. Peers that are not installed
(`pip install -r requirements-benchmark.txt`) are left out with a note.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.inference import inference
from benchmarks.measure import NOTES, Row
from benchmarks.preprocessing import preprocessing
from benchmarks.recommended import recommended
from benchmarks.scale import scale, workers
from benchmarks.training import loading, training
from pipelines import cli

PARTS = ("preprocessing", "loading", "training", "inference", "recommended", "scale", "workers")


def main(arguments: argparse.Namespace) -> int:
    from pipelines.versions import versions
    from preprocessing.files import read_json, write_rows
    from preprocessing.images import read_image

    given = {
        modality: path for modality, path in (("t1", arguments.t1), ("ct", arguments.ct)) if path
    }
    for path in given.values():
        read_image(path)  # a scan that cannot be read is told now, not in half an hour
    with tempfile.TemporaryDirectory() as folder:
        scans = given if "t1" in given else {"t1": virtual_scan(Path(folder)), **given}
        made: dict[str, Callable[[], list[Row]]] = {
            "preprocessing": lambda: preprocessing(scans, arguments.repeats),
            "loading": lambda: loading(scans["t1"], arguments.repeats),
            "training": lambda: training(scans["t1"], arguments.repeats),
            "inference": lambda: inference(scans["t1"], arguments.repeats),
            "recommended": lambda: recommended(arguments.repeats),
            "scale": scale,
            "workers": lambda: workers(max(1, arguments.repeats - 1)),
        }
        before = read_json(arguments.out) if arguments.out.is_file() else {}
        for part in arguments.only or PARTS:
            rows = [r for r in before.get("rows", []) if r["part"] != part] + [
                {"part": part, **r} for r in made[part]()
            ]
            notes = sorted({*before.get("notes", []), *NOTES})
            before = {"rows": rows, "notes": notes, "scans": {k: p.name for k, p in scans.items()}}
            before |= {
                "repeats": arguments.repeats,
                "machine": {"cores": os.cpu_count()},
                "versions": versions(),
            }
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_rows(arguments.out, before)
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.performance", description=(__doc__ or "").splitlines()[0]
    )
    p.add_argument("--t1", type=Path, help="a raw T1 scan")
    p.add_argument("--ct", type=Path, help="a raw head CT")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument(
        "--only", choices=PARTS, action="append", help="a part; the rows of others in OUT stay"
    )
    p.add_argument("--out", required=True, type=Path, help="JSON file")
    return p


def virtual_scan(folder: Path) -> Path:
    """A T1 scan of the demo's virtual cohort."""
    import nibabel as nib

    from preprocessing.datasets.virtual import draw, render

    image, _, affine = render(draw(0, 0, "train", "healthy"), 0)
    nib.save(nib.Nifti1Image(image, affine), folder / "virtual_T1w.nii.gz")
    return folder / "virtual_T1w.nii.gz"


if __name__ == "__main__":
    cli.run(main, build_parser())
