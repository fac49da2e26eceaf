"""Many raw scans by one run: each scored, written and reported, or said why not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from pipelines import cli, spread
from pipelines.detect.detector import cut, native_map
from pipelines.detect.report import COLUMNS, score_row, scored_report
from pipelines.detect.run import Run, load_run
from pipelines.versions import __version__
from preprocessing.files import file_digest, read_json, write_json, write_table
from preprocessing.images import save_nifti
from preprocessing.prepare import Prepared, RefusedScan, channel_files, prepare
from preprocessing.scans import NOTICE, InputError, Scan, ScanError
from preprocessing.tables import list_scans


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
    return load_run(run, accelerator)


def infer_scan(
    run: Run, scan: Scan, threshold: float, p: Prepared
) -> tuple[nib.Nifti1Image, nib.Nifti1Image, dict[str, Any]]:
    """Mask (uint8) and map (float32) on the grid of a raw scan that was prepared, and its report."""
    native = native_map(
        run.model,
        run.config,
        p.image,
        p.mask,
        p.affine,
        p.world,
        p.native.shape,
        p.native.affine,
        run.device,
    )
    mask = cut(native, threshold, run.config.postprocess)
    report = scored_report(run, scan, threshold, native, mask, p.world)
    report |= (
        {"sequences": {k: str(v) for k, v in scan.sequences.items()}} if scan.sequences else {}
    )
    report |= {
        "brain_mask": p.brain_method,
        "flags": p.flags,
        "checks": [c.row() for c in p.checks],
    }
    return _like(p.native, mask.astype(np.uint8)), _like(p.native, native.map), report


def _like(native: nib.Nifti1Image, data: np.ndarray) -> nib.Nifti1Image:
    """`data` with the shape, affine and qform/sform codes of the scan."""
    image = nib.Nifti1Image(
        data, native.affine, native.header
    )  # the header brings the codes, and the affine is its own
    image.header.set_data_dtype(data.dtype)
    image.header.set_slope_inter(1, 0)
    image.header["cal_min"] = image.header["cal_max"] = 0
    return image


def save_results(
    out: Path,
    scan: Scan,
    mask: nib.Nifti1Image,
    anomaly_map: nib.Nifti1Image,
    report: dict[str, Any],
) -> None:
    """Write `<id>_map.nii.gz`, `<id>_mask.nii.gz` and, last, `<id>_report.json`."""
    (out / f"{scan.id}_report.json").unlink(
        missing_ok=True
    )  # an old report must not stand beside a new map
    (out / f"{scan.id}_mask.nii.gz").unlink(missing_ok=True)
    save_nifti(anomaly_map, out / f"{scan.id}_map.nii.gz")
    save_nifti(mask, out / f"{scan.id}_mask.nii.gz")
    write_json(out / f"{scan.id}_report.json", report)


def begin_scan(scan: Scan, job: Job) -> tuple[str, dict[str, Any], Prepared | None]:
    """A scan's fingerprint and its report where it was scored before, or else what `prepare` makes of it; raises ScanError."""
    recipe, path = job.loaded.recipe, job.out / f"{scan.id}_report.json"
    key = ":".join([job.digest, *(file_digest(p) for p in channel_files(scan, recipe))])
    done = read_json(path) if path.is_file() else {}
    if done.get("fingerprint") == key and (
        done["status"] != "scored" or (job.out / f"{scan.id}_mask.nii.gz").is_file()
    ):
        return key, done, None
    return key, {}, prepare(scan, recipe)


def try_detect(
    scan: Scan,
    job: Job,
    begun: Callable[[], tuple[str, dict[str, Any], Prepared | None]] | None = None,
) -> dict[str, Any]:
    """Score one scan; one that fails gets a report "not scored" that says why, and never a mask.

    `begun` gives what `begin` made of the scan, where that was called already.
    """
    try:
        key, done, prepared = begun() if begun else begin_scan(scan, job)
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
        return not_scored(
            scan,
            job,
            f"{scan.image}: unexpected {type(error).__name__}: {cli.error_sentence(error)}",
        )


def not_scored(
    scan: Scan, job: Job, reason: str, checks: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """The report of a scan that could not be scored, written in the place of any older result of its name."""
    for name in ("mask", "map"):  # an older result would be taken for this scan's
        (job.out / f"{scan.id}_{name}.nii.gz").unlink(missing_ok=True)
    report = {
        "id": scan.id,
        "image": str(scan.image),
        "status": "not scored",
        "reason": reason,
        "checks": list(checks),
        "notice": NOTICE,
    }
    report["norma"] = __version__
    write_json(job.out / f"{scan.id}_report.json", report)
    return report


def make_job(
    run_dir: Path, out: Path, threshold: float | None = None, accelerator: str = "auto"
) -> Job:
    """The job of scoring scans by a run into `out`, cut at `threshold` or else at the run's own."""
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run folder; train one with 'make train'.")
    run = loaded(run_dir, accelerator)
    threshold = run.threshold if threshold is None else threshold
    weights = (run.folder / "weights.pt").read_bytes()
    digest = sha256(weights + f"{threshold} {run.config!r} {run.recipe!r}".encode()).hexdigest()
    return Job(run.folder, out, threshold, digest, accelerator)


@contextmanager
def listed(
    source: Path, job: Job, shared: bool = False
) -> Iterator[tuple[list[Scan], dict[str, str]]]:
    """Scans of any input, and why DICOM series gave none; what DICOM is converted to is gone afterwards.

    `shared`: convert below the job's `out`, which every worker sees, and not in this machine's temporary folder.
    """
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; give IN= a scan, a folder, a table or a DICOM folder."
        )
    with tempfile.TemporaryDirectory(
        prefix="norma-dicom-", dir=job.out if shared else None
    ) as folder:
        yield list_scans(source, job.loaded.recipe.name, Path(folder))


def detect_all(
    scans: Sequence[Scan], lost: dict[str, str], job: Job, executor: str = "", workers: int = 1
) -> list[dict[str, Any]]:
    """Score every scan, write its results and scores.tsv, also where the work is interrupted; the reports in the order of the scans."""
    reports: list[dict[str, Any]] = []
    if executor or workers > 1:
        results = spread.each(partial(try_detect, job=job), scans, executor, workers)
    else:
        results = (
            (scan, try_detect(scan, job, begun), "")
            for scan, begun in spread.one_ahead(partial(begin_scan, job=job), scans)
        )
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
        reports += [
            {"id": name, "status": "not scored", "reason": reason} for name, reason in lost.items()
        ]
        write_table(job.out / "scores.tsv", [score_row(r) for r in reports], COLUMNS)
    return reports
