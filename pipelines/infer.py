"""`make infer`: raw scans in, mask, map and report out, on each scan's own grid."""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines import cli
from preprocessing.scans import SUFFIXES, InputError, Scan, ScanError, save_nifti, write_table

if TYPE_CHECKING:
    import nibabel as nib

    from pipelines.runs import Run
    from pipelines.scoring import NativeMap

log = logging.getLogger("norma")
NOTICE = "Research software, not a medical device; not for diagnosis."
COLUMNS = ("id", "image", "status", "score", "percentile", "anomalous_ml", "components", "flags", "reason")


def infer_scan(run: Run, scan: Scan, threshold: float) -> tuple[nib.Nifti1Image, nib.Nifti1Image, dict[str, Any]]:
    """Mask (uint8) and map (float32) on the grid of a raw scan, and its report; raises ScanError for a scan that cannot be trusted."""
    from pipelines.preprocess import prepare
    from pipelines.scoring import cut, native_map

    p = prepare(scan, run.recipe)
    native = native_map(run.model, run.config, p.image, p.mask, p.affine, p.world, p.native.shape, p.native.affine, run.device)
    mask = cut(native, threshold, run.config.postprocess)
    report = _report(run, scan, threshold, native, mask, p.world)
    report |= {"sequences": {k: str(v) for k, v in scan.sequences.items()}} if scan.sequences else {}
    report |= {"brain_mask": p.brain_method, "flags": p.flags, "checks": [c.row() for c in p.checks]}
    return _like(p.native, mask.astype(np.uint8)), _like(p.native, native.map), report


def _like(native: nib.Nifti1Image, data: np.ndarray) -> nib.Nifti1Image:
    """`data` with the shape, affine and qform/sform codes of the scan."""
    import nibabel as nib

    image = nib.Nifti1Image(data, native.affine, native.header)  # the header brings the codes, and the affine is its own
    image.header.set_data_dtype(data.dtype)
    image.header.set_slope_inter(1, 0)
    image.header["cal_min"] = image.header["cal_max"] = 0
    return image


def _report(run: Run, scan: Scan, threshold: float, native: NativeMap, mask: np.ndarray, world: np.ndarray) -> dict[str, Any]:
    from evaluation.postprocess import components, location_of_maximum
    from evaluation.thresholds import percentile_of
    from pipelines.scoring import scan_score

    score = scan_score(native, run.config.calibration.score_fraction)
    found = components(mask, native.map, native.affine)
    peak = location_of_maximum(native.map, native.affine)
    for place in (*found, peak):
        for key in [k for k in place if k.endswith("mm")]:
            place[key.replace("mm", "atlas_mm")] = (np.linalg.inv(world) @ [*place[key], 1])[:3].round(1)
    volume = float(mask.sum() * np.prod(native.spacing))
    return {
        "id": scan.id,
        "image": str(scan.image),
        "status": "scored",
        "notice": NOTICE,
        "score": score,
        "percentile": percentile_of(score, run.healthy_scores),
        "percentile_of": f"{len(run.healthy_scores)} healthy validation scans",
        "threshold": threshold,
        "anomalous_mm3": volume,
        "n_components": len(found),
        "components": found[:20],
        "maximum": peak,
        "coordinates": "RAS+ millimetres; *_mm in the scan's world, *_atlas_mm in the atlas",
        "model": run.config.name,
        "run": str(run.folder),
    }


def save_results(out: Path, scan: Scan, mask: nib.Nifti1Image, anomaly_map: nib.Nifti1Image, report: dict[str, Any]) -> None:
    """Write `<id>_map.nii.gz`, `<id>_mask.nii.gz` and, last, `<id>_report.json`."""
    from pipelines.runs import write_json

    (out / f"{scan.id}_report.json").unlink(missing_ok=True)  # an old report must not stand beside a new map
    (out / f"{scan.id}_mask.nii.gz").unlink(missing_ok=True)
    save_nifti(anomaly_map, out / f"{scan.id}_map.nii.gz")
    save_nifti(mask, out / f"{scan.id}_mask.nii.gz")
    write_json(out / f"{scan.id}_report.json", report)


def attempt(run: Run, scan: Scan, out: Path, threshold: float, digest: str) -> dict[str, Any]:
    """Score one scan into `out`; a scan that fails gets a report "not scored" that says why, and never a mask."""
    from pipelines.preprocess import RefusedScan, channel_files
    from pipelines.runs import read_json, write_json
    from preprocessing.scans import file_digest

    path, problem = out / f"{scan.id}_report.json", ""
    try:
        key = ":".join([digest, *(file_digest(p) for p in channel_files(scan, run.recipe))])
        done = read_json(path) if path.is_file() else {}
        if done.get("fingerprint") == key and (done["status"] != "scored" or (out / f"{scan.id}_mask.nii.gz").is_file()):
            return done
        mask, anomaly_map, report = infer_scan(run, scan, threshold)
        save_results(out, scan, mask, anomaly_map, report | {"fingerprint": key})
        return report
    except OSError as error:
        if error.errno in (28, 13, 30):  # disk full, no permission, read-only: no scan's fault
            raise
        problem, checks = cli.error_sentence(error), []
    except RefusedScan as error:
        problem, checks = str(error), [c.row() for c in error.checks]
    except ScanError as error:
        problem, checks = str(error), []
    except (RuntimeError, MemoryError, ArithmeticError, ValueError, KeyError, IndexError) as error:
        problem, checks = f"{scan.image}: unexpected {type(error).__name__}: {cli.error_sentence(error)}", []
    for name in ("mask", "map"):  # an older result of this name would be taken for this scan's
        (out / f"{scan.id}_{name}.nii.gz").unlink(missing_ok=True)
    report = {"id": scan.id, "image": str(scan.image), "status": "not scored", "reason": problem, "checks": checks, "notice": NOTICE}
    write_json(path, report)
    log.warning("not scored: %s", problem)
    return report


def score_row(report: dict[str, Any]) -> dict[str, Any]:
    """A report as a row of scores.tsv."""
    row = {k: report.get(k) for k in COLUMNS}
    if report["status"] == "scored":
        row |= {
            "score": f"{report['score']:.6g}",
            "anomalous_ml": f"{report['anomalous_mm3'] / 1000:.3f}",
            "components": report["n_components"],
            "flags": "; ".join(report["flags"]),
        }
    return row


def main(arguments: argparse.Namespace) -> int:
    from hashlib import sha256

    from tqdm import tqdm

    from pipelines.preprocess import list_scans
    from pipelines.runs import load_run

    if not Path(arguments.run).is_dir():
        raise InputError(f"{arguments.run}: no such run folder; train one with 'make train'.")
    source = Path(arguments.input)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give IN= a scan, a folder, a table or a DICOM folder.")
    out = cli.writable_folder(arguments.out)
    run = load_run(arguments.run, arguments.accelerator)
    with tempfile.TemporaryDirectory(prefix="norma-dicom-") as folder:
        scans, lost = list_scans(source, run.recipe.name, Path(folder))
        threshold = run.threshold if arguments.threshold is None else arguments.threshold
        weights = (run.folder / "weights.pt").read_bytes()
        digest = sha256(weights + f"{threshold} {run.config!r} {run.recipe!r}".encode()).hexdigest()
        reports = []
        try:
            for scan in tqdm(scans, desc="infer", unit="scan"):
                reports.append(attempt(run, scan, out, threshold, digest))
        finally:
            reports += [{"id": name, "status": "not scored", "reason": reason} for name, reason in lost.items()]
            write_table(out / "scores.tsv", [score_row(r) for r in reports], COLUMNS)
    failed = sum(r["status"] != "scored" for r in reports)
    print(f"{out}: {len(reports) - failed} scans scored, {failed} not scored; see scores.tsv. {NOTICE}")
    return cli.NOTHING_DONE if failed == len(reports) else cli.SOME_FAILED if failed else cli.OK


def positive(text: str) -> float:
    """A threshold from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got '{text}'")
    return value


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("infer", f"Mark what should not be there in raw scans. {NOTICE}")
    p.add_argument("--run", required=True, help="run folder of train")
    p.add_argument("--input", required=True, help=f"scan, folder, BIDS folder ({', '.join(SUFFIXES.values())}), table or DICOM folder")
    p.add_argument("--out", required=True, help="output folder")
    p.add_argument("--threshold", type=positive, help="cut maps here instead of at the run's threshold")
    p.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "cuda"])
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
