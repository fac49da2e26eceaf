"""Results as DICOM, beside the series that a scan came as.

Three files in the study of the series: the mask as a Segmentation, the anomaly map as a Parametric
Map, the report as a Comprehensive SR (template 1500, which refers to the segments). They carry the
patient's identity, as the standard asks of everything in a study.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from skimage.measure import label

from pipelines import cli, spread
from pipelines.detect.batch import Job, read_report
from pipelines.detect.report import DICOM_FILES, Detection, Report
from pipelines.export.dicom_objects import (
    Result,
    parametric_map,
    segmentation,
    structured_report,
)
from pipelines.export.dicom_planes import on_planes, read_source, silence
from pipelines.versions import __version__
from preprocessing.dicom_headers import BY_NORMA
from preprocessing.files import atomic, digest_of
from preprocessing.scans import Scan, ScanError

log = logging.getLogger("norma")
KINDS = ("mask", "map", "report")
FORMAT = 2  # raise when the files of the same result change


def write_all(scans: Sequence[Scan], job: Job, executor: str = "", workers: int = 1) -> int:
    """Write DICOM files of every scored scan of a job; gives how many could not be written.

    Why not is logged, a sentence each. A scan that came as a file is no fault.
    """
    for scan in scans:
        if not scan.instances:
            log.warning("%s: no DICOM is written, as it came as a file and not as DICOM.", scan.id)
    came = [scan for scan in scans if scan.instances]
    write = partial(try_write, out=job.out, weights=job.run.weights_digest)
    failed = 0
    for scan, reason, died in spread.each(write, came, executor, workers):
        if reason or died:
            log.warning("%s: no DICOM is written, the mask stays: %s", scan.id, reason or died)
            failed += 1
    return failed


def try_write(scan: Scan, out: Path, weights: str) -> str:
    """Write the DICOM files of the result that stands in `out`; "" or why that cannot be done."""
    report = read_report(out, scan.id)
    if not report or not report.scored:  # the report says why
        return ""
    try:
        mask = nib.Nifti1Image.from_filename(out / f"{scan.id}_mask.nii.gz")
        anomaly_map = nib.Nifti1Image.from_filename(out / f"{scan.id}_map.nii.gz")
        write_scan(scan, Detection(mask, anomaly_map, report), weights, out)
    except ScanError as error:
        return str(error)
    except Exception as error:
        if cli.ends_the_command(error, out):
            raise
        cli.log_traceback(error, out)
        return cli.unexpected(error, scan.image)
    return ""


def write_scan(scan: Scan, detection: Detection, weights: str, out: Path) -> list[Path]:
    """Write `<id>_mask.dcm` (none where nothing is marked), `<id>_map.dcm` and `<id>_report.dcm`.

    `weights` is the digest of the run's weights. Files of this very result are left as they are.
    ScanError for a scan that did not come as DICOM, or whose files nothing can refer to.
    """
    if not scan.instances:
        raise ScanError(f"{scan.image.name}: came as a file and not as DICOM.")
    result = _result(scan, detection, weights)
    kinds = KINDS if result.segments.any() else KINDS[1:]
    paths = {kind: out / f"{scan.id}_{kind}.dcm" for kind in kinds}
    if all(_stands(path, result.uid(kind)) for kind, path in paths.items()):
        return list(paths.values())
    for name in DICOM_FILES:
        (out / f"{scan.id}_{name}").unlink(missing_ok=True)

    try:
        made = _instances(result)
    except MemoryError:
        raise
    except Exception as error:
        # its message may hold what a header says of a person, so the place alone is told
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ScanError(
            f"its headers hold what cannot be carried over ({type(error).__name__} in "
            f"{Path(place.filename).name}, line {place.lineno}); mend them in a copy."
        ) from None
    for kind, instance in made.items():
        instance.preamble = BY_NORMA.ljust(128, b"\0")
        with atomic(paths[kind]) as temporary, silence():
            instance.save_as(temporary, enforce_file_format=True)
    return list(paths.values())


def _instances(result: Result) -> dict[str, Dataset]:
    """The instances of a result by their kind."""
    made: dict[str, Dataset] = {}
    with silence():
        if result.segments.any():
            made["mask"] = segmentation(result)
        made["map"] = parametric_map(result)
        made["report"] = structured_report(result, made.get("mask"))
    return made


def _stands(path: Path, uid: str) -> bool:
    """Whether a file is the instance of that UID; files are written whole or not at all."""
    if not path.is_file():
        return False
    found = pydicom.dcmread(path, force=True, specific_tags=["SOPInstanceUID"])
    return str(found.get("SOPInstanceUID")) == uid


def _result(scan: Scan, detection: Detection, weights: str) -> Result:
    """A result brought to the planes of its series."""
    report = detection.report
    source = read_source(scan.instances)
    marked = np.asarray(detection.mask.dataobj) > 0
    values = np.asarray(detection.map.dataobj, np.float32)
    affine = detection.mask.affine
    segments = on_planes(_segments(marked, report), affine, source, order=0)
    on_slices = on_planes(values, affine, source, order=1)
    content = digest_of(
        [FORMAT, __version__, weights, report.as_json()],
        [str(instance.SOPInstanceUID) for instance in source.instances],
        [sha256(np.ascontiguousarray(part).tobytes()).hexdigest() for part in (marked, values)],
    )
    return Result(source, report, segments, on_slices, weights, content)


def _segments(marked: np.ndarray, report: Report) -> np.ndarray:
    """Marked voxels by the component of the report that they are of, uint8; the rest one more."""
    pieces = label(marked, connectivity=3)
    segments = np.where(marked, len(report.components) + 1, 0).astype(np.uint8)
    for number, component in enumerate(report.components, start=1):
        segments[pieces == pieces[tuple(component.peak_voxel)]] = number
    segments[~marked] = 0
    return segments
