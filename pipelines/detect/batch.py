"""Many raw scans by one run: each scored, written and reported, or said why not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipelines import cli, spread
from pipelines.detect.identity import figures_digest
from pipelines.detect.report import COLUMNS, Report
from pipelines.detect.run import Run, load_run
from pipelines.versions import __version__
from preprocessing.files import digest_of, file_digest, read_json, write_json, write_table
from preprocessing.prepare import Prepared, RefusedScan, channel_files, prepare
from preprocessing.scans import NOTICE, InputError, Scan, ScanError
from preprocessing.tables import list_scans

NO_SCANS_FAULT = (28, 13, 30)  # errno: disk full, no permission, read-only


@dataclass(frozen=True)
class Job:
    """What every scan of a command is scored by.

    `digest` is of the run's weights and of all settings: same digest, same result.
    """

    run_dir: Path
    out: Path
    threshold: float
    digest: str
    accelerator: str = "auto"

    @property
    def run(self) -> Run:
        return loaded_run(self.run_dir, self.accelerator)


@dataclass(frozen=True)
class Begun:
    """A scan before it is scored: its key, and its earlier report or what `prepare` made of it."""

    key: str
    report: Report | None = None
    prepared: Prepared | None = None


def loaded_run(run_dir: Path, accelerator: str) -> Run:
    """A run, read once per process while its weights are the same file."""
    weights = run_dir / "weights.pt"
    return _read_run(run_dir, accelerator, weights.stat().st_mtime_ns if weights.is_file() else 0)


@lru_cache(maxsize=1)
def _read_run(run_dir: Path, accelerator: str, stamp: int) -> Run:
    return load_run(run_dir, accelerator)


def make_job(
    run_dir: Path, out: Path, threshold: float | None = None, accelerator: str = "auto"
) -> Job:
    """The job of scoring scans by a run into `out`, cut at `threshold` or else at the run's own."""
    run = loaded_run(run_dir, accelerator)
    threshold = run.threshold if threshold is None else threshold
    digest = figures_digest(run.weights_digest, run.config, run.recipe, threshold)
    return Job(run.folder, out, threshold, digest, accelerator)


def existing_source(source: Path) -> Path:
    """The input as it is given; InputError where there is none."""
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; give IN= a scan, a folder, a table or a DICOM "
            "folder."
        )
    return source


@contextmanager
def listed(
    source: Path, job: Job, shared: bool = False
) -> Iterator[tuple[list[Scan], dict[str, str]]]:
    """Scans of any input, and why DICOM series gave none; converted DICOM is gone afterwards.

    `shared`: convert below the job's `out`, which every worker sees, and not in this machine's
    temporary folder.
    """
    parent = job.out if shared else None
    with tempfile.TemporaryDirectory(prefix="norma-dicom-", dir=parent) as folder:
        yield list_scans(existing_source(source), job.run.recipe.name, Path(folder))


def detect_all(
    scans: Sequence[Scan],
    lost: dict[str, str],
    job: Job,
    executor: str = "",
    workers: int = 1,
    progress: bool = True,
) -> list[Report]:
    """Score every scan; write its results and scores.tsv, also where the work is interrupted.

    Gives the reports in the order of the scans, then one for each DICOM series that was `lost`.
    """
    reports: list[Report] = []
    if executor or workers > 1:
        results = spread.each(partial(try_detect, job=job), scans, executor, workers)
    else:
        results = _one_after_the_other(scans, job)
    bar = tqdm(results, total=len(scans), desc="infer", unit="scan", disable=not progress)
    try:
        for scan, result, lost_because in bar:
            report = result or not_scored(scan, job, f"{scan.image}: {lost_because}")
            reports.append(report)
            if progress and not report.scored:
                tqdm.write(f"not scored: {report.reason}", file=bar.fp)
    finally:
        order = {scan.id: i for i, scan in enumerate(scans)}
        reports.sort(key=lambda report: order[report.id])
        for name, reason in lost.items():
            reports.append(Report(id=name, status="not scored", reason=reason))
        write_table(job.out / "scores.tsv", [report.row() for report in reports], COLUMNS)
    return reports


def _one_after_the_other(
    scans: Sequence[Scan], job: Job
) -> Iterator[tuple[Scan, Report | None, str]]:
    """In this process: the next scan is prepared while this one is scored."""
    for scan, begun in spread.one_ahead(partial(begin_scan, job=job), scans):
        yield scan, try_detect(scan, job, begun), ""


def begin_scan(scan: Scan, job: Job) -> Begun:
    """A scan's earlier report where it stands, or else what `prepare` makes; raises ScanError."""
    recipe = job.run.recipe
    files = channel_files(scan, recipe)
    if scan.brain_mask:
        files.append(scan.brain_mask)
    key = digest_of(job.digest, [file_digest(path) for path in files])
    report = read_report(job.out, scan.id)
    masked = (job.out / f"{scan.id}_mask.nii.gz").is_file()
    if report and report.fingerprint == key and (masked or not report.scored):
        return Begun(key, report=report)
    return Begun(key, prepared=prepare(scan, recipe))


def read_report(out: Path, scan_id: str) -> Report | None:
    """The report of a scan in `out`; None where there is none."""
    path = out / f"{scan_id}_report.json"
    return Report(**read_json(path)) if path.is_file() else None


def try_detect(scan: Scan, job: Job, begun: Callable[[], Begun] | None = None) -> Report:
    """Score one scan; one that fails gets a report "not scored" that says why, and never a mask.

    `begun` gives what `begin_scan` made of the scan, where that was called already.
    """
    try:
        start = begun() if begun else begin_scan(scan, job)
        if start.report:
            return start.report
        assert start.prepared
        detection = job.run.detect_prepared(scan, start.prepared, job.threshold)
        detection.report.fingerprint = start.key
        detection.save(job.out)
        return detection.report
    except OSError as error:
        if error.errno in NO_SCANS_FAULT:
            raise
        return not_scored(scan, job, cli.error_sentence(error))
    except RefusedScan as error:
        return not_scored(scan, job, str(error), [c.row() for c in error.checks])
    except ScanError as error:
        return not_scored(scan, job, str(error))
    except (RuntimeError, MemoryError, ArithmeticError, ValueError, KeyError, IndexError) as error:
        what = f"unexpected {type(error).__name__}: {cli.error_sentence(error)}"
        return not_scored(scan, job, f"{scan.image}: {what}")


def not_scored(scan: Scan, job: Job, reason: str, checks: Sequence[dict[str, Any]] = ()) -> Report:
    """The report of a scan that could not be scored; it replaces any older result of its name."""
    for name in ("mask", "map"):  # an older result would be taken for this scan's
        (job.out / f"{scan.id}_{name}.nii.gz").unlink(missing_ok=True)
    report = Report(
        id=scan.id,
        image=str(scan.image),
        status="not scored",
        reason=reason,
        checks=list(checks),
        notice=NOTICE,
        norma=__version__,
    )
    write_json(job.out / f"{scan.id}_report.json", report.as_json())
    return report
