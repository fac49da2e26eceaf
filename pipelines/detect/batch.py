"""Many raw scans by one run: each scored, written and reported, or said why not."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from tqdm import tqdm

from pipelines import cli, spread
from pipelines.cohort.store import fingerprint
from pipelines.detect.ahead import Ahead, may_be_done
from pipelines.detect.folder import MEMORY
from pipelines.detect.gate import gate_flags, refusal
from pipelines.detect.identity import figures_digest
from pipelines.detect.points import Point
from pipelines.detect.report import COLUMNS, DICOM_FILES, Report, of_scan
from pipelines.detect.run import Run, load_run
from pipelines.detect.thumbnail import thumbnail
from pipelines.detect.typical import flags_of
from pipelines.versions import __version__, shown_text
from preprocessing.dicom import save_copy
from preprocessing.files import (
    digest_of,
    file_digest,
    read_json,
    write_atomic,
    write_json,
    write_table,
)
from preprocessing.prepare import Prepared, RefusedScan, prepare
from preprocessing.recipe import Recipe
from preprocessing.scans import NOTICE, InputError, Scan, ScanError
from preprocessing.splits import check_leaks
from preprocessing.tables import existing_input, list_scans

log = logging.getLogger("norma")
REPORTS = 3  # raise when a report of the same figures changes


@dataclass(frozen=True)
class Options:
    """What a user may ask for besides.

    keep_nifti: a converted scan is written beside its mask.
    overwrite: score again what is done, and let a scan take the place of another of its name.
    refuse_unlike: a scan that as a whole is unlike the training scans is not scored.
    """

    keep_nifti: bool = False
    overwrite: bool = False
    refuse_unlike: bool = False


PLAIN = Options()


@dataclass(frozen=True)
class Job:
    """What every scan of a command is scored by.

    `digest` is of the run's weights, settings and healthy reference: same digest, same result.
    Reports name files by their way from `root`, the folder that came in.
    """

    run_dir: Path
    out: Path
    point: Point
    digest: str
    accelerator: str = "auto"
    root: Path | None = None
    options: Options = PLAIN

    @property
    def run(self) -> Run:
        return loaded_run(self.run_dir, self.accelerator)


@dataclass(frozen=True)
class Begun:
    """A scan before it is scored: its key, and its earlier report or what `prepare` made of it.

    `seconds` is what that took.
    """

    key: str
    seconds: float
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
    run_dir: Path,
    source: Path,
    out: Path,
    point: str | None = None,
    accelerator: str = "auto",
    options: Options = PLAIN,
) -> Job:
    """The job of scoring `source` by a run into `out`, cut at a named point or the run's own."""
    run = loaded_run(run_dir, accelerator)
    at = run.point(point)
    if np.isnan(at.voxel):
        raise InputError(f"operating point '{at.point}': new scans have no labels to find it with.")
    digest = result_digest(run, at)
    root = source if source.is_dir() else source.parent
    return Job(run.folder, out, at, digest, accelerator, root, options)


def result_digest(run: Run, at: Point) -> str:
    """Digest of weights, settings, point and healthy reference: same digest, same result."""
    template = run.recipe.template
    atlas = file_digest(Path(template)) if template else None
    recipe = run.recipe.model_copy(update={"template": atlas})
    # percentiles are read off the first two; the last is there where readers were learned from
    known = [run.folder / name for name in ("reference.json", "typical.json", MEMORY)]
    healthy = [file_digest(path) for path in known if path.is_file()]
    shaping = (recipe, at.as_json(), healthy, REPORTS)
    return figures_digest(run.weights_digest, run.config, *shaping)


@contextmanager
def listed(
    source: Path, job: Job, shared: bool = False
) -> Iterator[tuple[list[Scan], dict[str, str]]]:
    """Scans of any input, and why DICOM series gave none; converted DICOM is gone afterwards.

    `shared`: convert below the job's `out`, which every worker sees, and not in this machine's
    temporary folder.
    """
    with listed_scans(source, job.run.recipe, job.out if shared else None) as (scans, lost):
        check_out(scans, job)
        yield scans, lost


@contextmanager
def listed_scans(
    source: Path, recipe: Recipe, parent: Path | None = None
) -> Iterator[tuple[list[Scan], dict[str, str]]]:
    """`listed` for no job: DICOM is converted in `parent`, or else a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="norma-dicom-", dir=parent) as folder:
        scans, lost = list_scans(
            existing_input(source), recipe.name, Path(folder), recipe.limits.max_gb
        )
        check_leaks(scans)
        yield scans, lost


def check_scan(scan: Scan, run: Run) -> tuple[list[str], str]:
    """Lines that compare a scan with a run's training scans, and why it cannot be used, or ""."""
    try:
        prepared = prepare(scan, run.recipe)
    except ScanError as error:
        return [], cli.error_sentence(error)
    if not run.typical:
        return ["the run is of an older version and does not describe its training scans"], ""
    rows, gate = run.compared(prepared)
    flags = (*prepared.flags, *gate_flags(gate), *flags_of(rows))
    lines = [f"flag: {flag}" for flag in flags]
    if gate:
        lines.append(f"as a whole: {gate.verdict}, p {gate.p_value:.3g}")
    for row in rows:
        between = f"training scans {row.lowest:.3g} to {row.highest:.3g}"
        lines.append(f"{row.name}: {row.value:.3g}, percentile {row.percentile:.0f} ({between})")
    return lines, ""


def check_out(scans: Sequence[Scan], job: Job) -> None:
    """InputError where a result would take the place of another scan's, or of a user's file."""
    for scan in scans:
        report = read_report(job.out, scan.id)
        other = report and report.source and report.source != source_of(scan)
        readable = scan.image.is_file()
        differs = other and readable and not job.options.overwrite
        if report and differs and report.digest != file_digest(scan.image):
            raise InputError(
                f"{job.out}: holds the result of another scan that is called '{scan.id}' too, "
                f"not that of {scan.image}; give another OUT, an id in a table, or OVERWRITE=1."
            )
        own_mask = scan.image.parent / f"{scan.id}_mask.nii.gz"
        in_place = scan.image.parent.resolve() == job.out.resolve()
        if in_place and own_mask.is_file() and not report:
            raise InputError(
                f"{own_mask}: a file that Norma did not write stands where its mask would go; "
                "give another OUT."
            )


def source_of(scan: Scan) -> str:
    """Which file a scan is, as a digest of its place: a report names no folder."""
    return digest_of(scan.origin or os.path.realpath(scan.image))


def detect_all(
    scans: Sequence[Scan],
    lost: dict[str, str],
    job: Job,
    spread_over: tuple[str, int] = ("", 1),
    progress: bool = True,
    tell: Callable[[Report], None] | None = None,
    ahead: Ahead | None = None,
) -> list[Report]:
    """Score every scan; write its results and scores.tsv, also where the work is interrupted.

    `spread_over` is the executor and the number of workers. `tell` gets each report as it comes.
    `ahead` prepares the scans, where they are not spread over workers. Gives the reports in the
    order of the scans, then one for each DICOM series that was `lost`.
    """
    reports: list[Report] = []
    executor, workers = spread_over
    if executor or workers > 1:
        results = spread.each(partial(try_detect, job=job), scans, executor, workers)
    else:
        results = _one_after_the_other(scans, job, ahead)
    cli.log_to(job.out)  # before the bar, which keeps the stderr that it begins with
    bar = tqdm(results, total=len(scans), desc="infer", unit="scan", disable=not progress)
    try:
        for scan, result, lost_because in bar:
            report = result or not_scored(scan, job, f"{scan.image}: {lost_because}")
            reports.append(report)
            if tell:
                tell(report)
            if progress and not report.scored:
                tqdm.write(f"not scored: {_full_reason(report, scan)}", file=bar.fp)
    finally:
        order = {scan.id: i for i, scan in enumerate(scans)}
        reports.sort(key=lambda report: order[report.id])
        for name, reason in lost.items():
            reports.append(not_scored(Scan(name, Path(name), name), job, reason))
        write_scores(job.out, reports)
    return reports


def _full_reason(report: Report, scan: Scan) -> str:
    """Why a scan was not scored, for the terminal: with the path that the user knows."""
    reason = report.reason or ""
    if report.image and reason.startswith(report.image):
        return f"{scan.image}{reason.removeprefix(report.image)}"
    return reason


def write_scores(out: Path, reports: Sequence[Report]) -> None:
    """scores.tsv: the scans of this command, then those of others whose reports stand in `out`."""
    own = {report.id for report in reports}
    others = [report for report in all_reports(out) if report.id not in own]
    write_table(out / "scores.tsv", [report.row() for report in (*reports, *others)], COLUMNS)


def _one_after_the_other(
    scans: Sequence[Scan], job: Job, ahead: Ahead | None
) -> Iterator[tuple[Scan, Report | None, str]]:
    """In this process: the next scan is prepared, elsewhere or in a thread, while one is scored."""
    if ahead:
        begun = spread.begun_ahead(partial(begin_elsewhere, job=job, ahead=ahead), scans)
    else:
        begun = spread.one_ahead(partial(begin_scan, job=job), scans)
    for scan, result in begun:
        yield scan, try_detect(scan, job, result), ""


def begin_elsewhere(scan: Scan, job: Job, ahead: Ahead) -> Callable[[], Begun]:
    """A call that waits for `begin_scan`; a scan that has no report yet is begun at once."""
    if not may_be_done(scan, job.out, job.options.overwrite):
        ahead.begin(scan, job.run.recipe, job.out)
    return partial(begin_scan, scan, job, ahead)


def begin_scan(scan: Scan, job: Job, ahead: Ahead | None = None) -> Begun:
    """A scan's earlier report where it stands, or else what `prepare` makes; raises ScanError.

    `ahead` prepares it, or else this process.
    """
    recipe = job.run.recipe
    # the template counts by its bytes, in the job's digest, and not by its place
    way = fingerprint(scan, recipe.model_copy(update={"template": None}))
    key = digest_of(job.digest, job.options.refuse_unlike, way)
    report = read_report(job.out, scan.id)
    again = job.options.overwrite or not report or report.fingerprint != key
    if report and not again and _stands(report, job.out):
        return Begun(key, 0.0, report=report)
    if ahead:
        prepared, seconds = ahead.result(scan, recipe, job.out)
        return Begun(key, seconds, prepared=prepared)
    started = time.perf_counter()
    prepared = prepare(scan, recipe)
    return Begun(key, time.perf_counter() - started, prepared=prepared)


def _stands(report: Report, out: Path) -> bool:
    """Whether the files that a report describes are there, and whole."""
    if not report.scored:
        return True
    files = report.files or {}
    sizes = [(out / name, size) for name, size in files.items()]
    return bool(sizes) and all(p.is_file() and p.stat().st_size == size for p, size in sizes)


def read_report(out: Path, scan_id: str) -> Report | None:
    """The report of a scan in `out`; None where there is none, or one that is damaged."""
    path = out / f"{scan_id}_report.json"
    if not path.is_file():
        return None
    try:
        return parse_report(path)
    except InputError as error:
        log.warning("%s the scan is scored again.", error)
        return None


def parse_report(path: Path) -> Report:
    """The report in a file; InputError for one that is damaged."""
    try:
        return Report(**read_json(path))
    except (InputError, TypeError, ValidationError):
        raise InputError(f"{path}: a damaged report;") from None


def all_reports(out: Path) -> list[Report]:
    """Every report that stands in `out`, of other commands too, by id."""
    ids = [path.name.removesuffix("_report.json") for path in out.glob("*_report.json")]
    reports = [read_report(out, scan_id) for scan_id in sorted(ids)]
    return [report for report in reports if report]


def try_detect(scan: Scan, job: Job, begun: Callable[[], Begun] | None = None) -> Report:
    """Score one scan; one that fails gets a report "not scored" that says why, and never a mask.

    `begun` gives what `begin_scan` made of the scan, where that was called already. Whatever one
    scan raises costs that scan alone; its traceback goes to the log file.
    """
    cli.log_to(job.out)
    try:
        start = begun() if begun else begin_scan(scan, job)
        if scan.origin:
            keep_converted(scan, job)
        if start.report:
            return start.report
        assert start.prepared
        started = time.perf_counter()
        detection = job.run.detect_prepared(scan, start.prepared, job.point, job.root)
        gate = detection.report.gate
        if job.options.refuse_unlike and gate and gate.because:
            checks = [check.row() for check in start.prepared.checks]
            return not_scored(scan, job, f"{scan.image}: {refusal(gate)}", checks)
        detection.report.fingerprint = start.key
        detection.report.source = source_of(scan)
        detection.report.digest = file_digest(scan.image)
        write_atomic(job.out / f"{scan.id}_picture.png", thumbnail(start.prepared, detection))
        detection.save(job.out)
        detection.report.took(start.seconds + time.perf_counter() - started)
        return detection.report
    except RefusedScan as error:
        return not_scored(scan, job, str(error), [c.row() for c in error.checks])
    except ScanError as error:
        return not_scored(scan, job, str(error))
    except Exception as error:
        if cli.ends_the_command(error, job.out):
            raise
        cli.log_traceback(error, job.out)
        return not_scored(scan, job, cli.unexpected(error, scan.image))


def keep_converted(scan: Scan, job: Job) -> None:
    """Write the image of a DICOM scan beside its mask, if asked for, or remove an older one."""
    path = job.out / f"{scan.id}_scan.nii.gz"
    if job.options.keep_nifti:
        save_copy(scan.image, path)
    else:
        path.unlink(missing_ok=True)


def not_scored(scan: Scan, job: Job, reason: str, checks: Sequence[dict[str, Any]] = ()) -> Report:
    """The report of a scan that could not be scored; it replaces any older result of its name."""
    for name in ("mask.nii.gz", "map.nii.gz", "picture.png", *DICOM_FILES):
        # an older result would be taken for this scan's
        (job.out / f"{scan.id}_{name}").unlink(missing_ok=True)
    named = of_scan(scan, job.root)
    report = Report(
        **named,
        status="not scored",
        reason=shown_text(reason.replace(str(scan.image), named["image"]), job.root),
        checks=list(checks),
        notice=NOTICE,
        norma=__version__,
    )
    write_json(job.out / f"{scan.id}_report.json", report.as_json())
    return report
