"""`make infer`: raw scans in, mask, map and report out, on each scan's own grid."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from norma import __version__
from pipelines import cli, spread
from preprocessing.scans import SUFFIXES, InputError, Scan, ScanError, save_nifti, write_table

if TYPE_CHECKING:
    import nibabel as nib

    from pipelines.preprocess import Prepared
    from pipelines.runs import Run
    from pipelines.scoring import NativeMap

NOTICE = "Research software, not a medical device; not for diagnosis."
COLUMNS = ("id", "image", "status", "score", "percentile", "anomalous_ml", "components", "flags", "reason")


@dataclass(frozen=True)
class Job:
    """What every scan of a command is scored by. `digest` is of the run's weights and of all settings: same digest, same result."""

    run: Path
    out: Path
    threshold: float
    digest: str
    accelerator: str = "auto"

    @property
    def loaded(self) -> Run:
        return loaded(self.run, self.accelerator)


def loaded(run: Path, accelerator: str) -> Run:
    """A run, read once per process while its weights are the same file."""
    weights = run / "weights.pt"
    return _read(run, accelerator, weights.stat().st_mtime_ns if weights.is_file() else 0)


@lru_cache(maxsize=1)
def _read(run: Path, accelerator: str, stamp: int) -> Run:
    from pipelines.runs import load_run

    return load_run(run, accelerator)


def infer_scan(run: Run, scan: Scan, threshold: float, p: Prepared) -> tuple[nib.Nifti1Image, nib.Nifti1Image, dict[str, Any]]:
    """Mask (uint8) and map (float32) on the grid of a raw scan that was prepared, and its report."""
    from pipelines.scoring import cut, native_map

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
        "norma": __version__,
    }


def save_results(out: Path, scan: Scan, mask: nib.Nifti1Image, anomaly_map: nib.Nifti1Image, report: dict[str, Any]) -> None:
    """Write `<id>_map.nii.gz`, `<id>_mask.nii.gz` and, last, `<id>_report.json`."""
    from pipelines.runs import write_json

    (out / f"{scan.id}_report.json").unlink(missing_ok=True)  # an old report must not stand beside a new map
    (out / f"{scan.id}_mask.nii.gz").unlink(missing_ok=True)
    save_nifti(anomaly_map, out / f"{scan.id}_map.nii.gz")
    save_nifti(mask, out / f"{scan.id}_mask.nii.gz")
    write_json(out / f"{scan.id}_report.json", report)


def begin(scan: Scan, job: Job) -> tuple[str, dict[str, Any], Prepared | None]:
    """A scan's fingerprint and its report where it was scored before, or else what `prepare` makes of it; raises ScanError."""
    from pipelines.preprocess import channel_files, prepare
    from pipelines.runs import read_json
    from preprocessing.scans import file_digest

    recipe, path = job.loaded.recipe, job.out / f"{scan.id}_report.json"
    key = ":".join([job.digest, *(file_digest(p) for p in channel_files(scan, recipe))])
    done = read_json(path) if path.is_file() else {}
    if done.get("fingerprint") == key and (done["status"] != "scored" or (job.out / f"{scan.id}_mask.nii.gz").is_file()):
        return key, done, None
    return key, {}, prepare(scan, recipe)


def attempt(scan: Scan, job: Job, begun: Callable[[], tuple[str, dict[str, Any], Prepared | None]] | None = None) -> dict[str, Any]:
    """Score one scan; one that fails gets a report "not scored" that says why, and never a mask.

    `begun` gives what `begin` made of the scan, where that was called already.
    """
    from pipelines.preprocess import RefusedScan

    try:
        key, done, prepared = begun() if begun else begin(scan, job)
        if done or not prepared:
            return done
        mask, anomaly_map, report = infer_scan(job.loaded, scan, job.threshold, prepared)
        save_results(job.out, scan, mask, anomaly_map, report | {"fingerprint": key})
        return report
    except OSError as error:
        if error.errno in (28, 13, 30):  # disk full, no permission, read-only: no scan's fault
            raise
        return not_scored(scan, job, cli.error_sentence(error))
    except RefusedScan as error:
        return not_scored(scan, job, str(error), [c.row() for c in error.checks])
    except ScanError as error:
        return not_scored(scan, job, str(error))
    except (RuntimeError, MemoryError, ArithmeticError, ValueError, KeyError, IndexError) as error:
        return not_scored(scan, job, f"{scan.image}: unexpected {type(error).__name__}: {cli.error_sentence(error)}")


def not_scored(scan: Scan, job: Job, reason: str, checks: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The report of a scan that could not be scored, written in the place of any older result of its name."""
    from pipelines.runs import write_json

    for name in ("mask", "map"):  # an older result would be taken for this scan's
        (job.out / f"{scan.id}_{name}.nii.gz").unlink(missing_ok=True)
    report = {"id": scan.id, "image": str(scan.image), "status": "not scored", "reason": reason, "checks": list(checks), "notice": NOTICE}
    report["norma"] = __version__
    write_json(job.out / f"{scan.id}_report.json", report)
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

    from pipelines import infer  # workers know this module by its name, not as __main__
    from pipelines.preprocess import list_scans

    if not Path(arguments.run).is_dir():
        raise InputError(f"{arguments.run}: no such run folder; train one with 'make train'.")
    source = Path(arguments.input)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give IN= a scan, a folder, a table or a DICOM folder.")
    out = cli.writable_folder(arguments.out)
    run = infer.loaded(Path(arguments.run), arguments.accelerator)
    with tempfile.TemporaryDirectory(prefix="norma-dicom-", dir=out if arguments.executor else None) as folder:
        scans, lost = list_scans(source, run.recipe.name, Path(folder))
        if arguments.dry_run:
            print(spread.preview(arguments.executor, arguments.workers, len(scans)))
            return cli.OK
        threshold = run.threshold if arguments.threshold is None else arguments.threshold
        weights = (run.folder / "weights.pt").read_bytes()
        digest = sha256(weights + f"{threshold} {run.config!r} {run.recipe!r}".encode()).hexdigest()
        job, reports = infer.Job(run.folder, out, threshold, digest, arguments.accelerator), []
        if arguments.executor or arguments.workers > 1:
            results = spread.each(partial(infer.attempt, job=job), scans, arguments.executor, arguments.workers)
        else:
            results = ((scan, attempt(scan, job, begun), "") for scan, begun in spread.one_ahead(partial(begin, job=job), scans))
        bar = tqdm(results, total=len(scans), desc="infer", unit="scan")
        try:
            for scan, result, lost_because in bar:
                report = result or not_scored(scan, job, f"{scan.image}: {lost_because}")
                reports.append(report)
                if report["status"] != "scored":
                    tqdm.write(f"not scored: {report['reason']}", file=bar.fp)
        finally:
            order = {s.id: i for i, s in enumerate(scans)}
            reports.sort(key=lambda r: order[r["id"]])
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
    spread.add_arguments(p)
    p.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "cuda"])
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
