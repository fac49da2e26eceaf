"""`make export`: a run as a MONAI bundle that needs no Norma, for scans that are prepared."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from pipelines import cli
from preprocessing.scans import InputError


def main(arguments: argparse.Namespace) -> int:
    from pipelines.cohort.cases import read_cases
    from pipelines.detect.ready import run_folder
    from pipelines.detect.run import load_run
    from pipelines.export.monai_bundle import check_bundle, write_bundle, write_zip

    run = load_run(run_folder(arguments.run), "cpu")
    cases = read_cases(Path(arguments.data))[: arguments.scans] if arguments.data else []
    out = Path(arguments.out)
    zipped = out.suffix == ".zip"
    archive = out if zipped else out.with_name(f"{out.name}.zip")
    for path in {out, archive} if arguments.zip else {out}:
        if path.exists():
            raise InputError(f"{path}: is there already; give another OUT.")

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=out.parent) as temporary:
        folder = Path(temporary) / (out.stem if zipped else out.name)
        without_onnx = write_bundle(run, folder)
        apart = check_bundle(run, folder, cases)
        if zipped or arguments.zip:
            write_zip(folder, archive)
        if not zipped:
            shutil.move(folder, out)
    print(f"{out}: a MONAI bundle; docs/README.md in it says how to use it")
    if cases:
        print(f"maps of {len(cases)} scans differ by {apart:.2g} of the threshold at most")
    if without_onnx:
        print(f"models/model.onnx is left out: {without_onnx}")
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("export_bundle", "Write a run as a MONAI bundle, for use without Norma.")
    p.add_argument("--run", required=True, help="run folder of train, or a ready-made run: t1, ct")
    p.add_argument("--out", required=True, help="new folder, or a file that ends in .zip")
    p.add_argument("--zip", action="store_true", help="write OUT.zip beside the folder too")
    p.add_argument("--data", help="OUT folder of preprocess to compare the maps on")
    p.add_argument("--scans", type=int, default=1, help="how many of its scans")
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
