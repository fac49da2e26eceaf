"""Norma finds what should not be there in a brain CT or MRI.

Everything that the commands do, as functions: nothing is printed, and nothing ends the process.

    import norma

    run = norma.load_run("runs/ct/ensemble")
    for scan in norma.read_scans("new_scans", run.recipe.name):
        detection = run.detect(scan)
        detection.save(out)  # mask, map and report on the scan's own grid

Errors: ConfigError for a setting, InputError for an input as a whole, ScanError for one scan.
Research software, not a medical device; not for diagnosis.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.scans import NOTICE as NOTICE
from preprocessing.scans import InputError as InputError
from preprocessing.scans import ScanError as ScanError

__version__ = "0.1.0"

if TYPE_CHECKING:  # heavy packages load when a function needs them
    import nibabel as nib

    from pipelines.detect.report import Detection, Report
    from pipelines.detect.run import Run
    from pipelines.study.evaluation import Evaluation
    from preprocessing.prepare import Prepared
    from preprocessing.recipe import Recipe
    from preprocessing.scans import Scan
    from preprocessing.volumes import Volume


def read_scans(source: str | Path, modality: str) -> list[Scan]:
    """List the scans of a NIfTI file, a folder, a BIDS folder, a table or a datalist.

    `modality` is "ct", "t1", "t2", "flair", "picture" or "chest_ct", or several sequences such as
    "t1+flair".
    """
    from preprocessing.tables import read_scans

    return read_scans(Path(source), modality)


def open_volume(path: str | Path, max_gb: float = 4.0) -> Volume:
    """The header of one volume file, judged before a voxel is read; ScanError says what is wrong.

    As float32 a scan takes less than `max_gb`. `.stored()` reads the voxels, and no byte more.
    """
    from preprocessing.volumes import check_volume, open_volume

    volume = open_volume(Path(path))
    check_volume(volume, max_gb)
    return volume


def convert_dicom(
    folder: str | Path, out: str | Path, max_gb: float = 4.0
) -> tuple[list[Scan], dict[str, str]]:
    """Convert the DICOM series below a folder to NIfTI in `out`; by name why a series gave none."""
    from preprocessing.dicom import convert

    return convert(Path(folder), Path(out), max_gb)


def load_recipe(modality: str, *settings: str) -> Recipe:
    """How scans of a modality are preprocessed, with settings such as "brain=none"."""
    from pipelines.config import load_recipe

    return load_recipe(modality, list(settings))


def prepare(scan: Scan, recipe: Recipe) -> Prepared:
    """Bring one scan to atlas space: 1 mm, brain, rigid fit, intensity in [0, 1]."""
    from preprocessing.prepare import prepare

    return prepare(scan, recipe)


def load_run(run_dir: str | Path, accelerator: str = "auto") -> Run:
    """A trained run by its folder, or a ready-made one by its name; `run.detect(scan)` scores.

    `accelerator`: "auto", "cpu" or "cuda".
    """
    from pipelines.detect.ready import run_folder
    from pipelines.detect.run import load_run

    return load_run(run_folder(run_dir), accelerator)


def list_runs(folder: str | Path | None = None) -> dict[str, str]:
    """The ready-made runs and the finished ones of a folder: their modality by name or path."""
    from pipelines.detect.listing import listed_runs

    return listed_runs(Path(folder) if folder else None)


def result_digest(run: Run, point: str | None = None) -> str:
    """Digest of all that shapes a result of a run at an operating point: same digest, same mask."""
    from pipelines.detect.batch import result_digest

    return result_digest(run, run.point(point))


def reconstruct(run: Run, prepared: Prepared) -> nib.Nifti1Image | None:
    """The pseudo-healthy image in [0, 1] on the scan's own grid; None where a model makes none."""
    return run.reconstruct(prepared)


def detect(image: str | Path, run: Run | str | Path, point: str | None = None) -> Detection:
    """Score one image file; `point` is such as "finding=0.05" or "quantile=0.99"."""
    loaded = load_run(run) if isinstance(run, str | Path) else run
    return loaded.detect(read_scans(image, loaded.recipe.name)[0], point)


def write_dicom(scan: Scan, detection: Detection, run: Run, out: str | Path) -> list[Path]:
    """Mask, map and report of a scan of `convert_dicom` as DICOM, with the patient's identity.

    ScanError for a scan that did not come as DICOM, or whose files nothing can refer to.
    """
    from pipelines.export.dicom import write_scan

    return write_scan(scan, detection, run.weights_digest, Path(out))


def detect_all(
    source: str | Path,
    run_dir: str | Path,
    out: str | Path,
    point: str | None = None,
    executor: str = "",
    workers: int = 1,
    keep_nifti: bool = False,
) -> list[Report]:
    """Score every scan of a folder or table into `out`, as `make infer` does; one report a scan.

    A scan that cannot be scored has a report that says why. DICOM folders are converted; with
    `keep_nifti` what they are converted to stays. `executor` and `workers` as in docs/cluster.md.
    """
    from pipelines.cli import release, writable_folder
    from pipelines.detect.batch import Options, detect_all, listed, make_job
    from pipelines.detect.ready import run_folder
    from preprocessing.tables import existing_input

    source = existing_input(Path(source))
    options = Options(keep_nifti=keep_nifti)
    job = make_job(run_folder(run_dir), source, Path(out), point, options=options)
    try:
        writable_folder(out)
        with listed(source, job, shared=bool(executor)) as (scans, lost):
            return detect_all(scans, lost, job, (executor, workers), progress=False)
    finally:
        release()


def evaluate(
    run: Run, data: str | Path, out: str | Path, point: str | None = None
) -> Evaluation | None:
    """Measure a run on the test scans of a preprocessed cohort; None where none can be read."""
    from pipelines.study.evaluate import evaluate
    from pipelines.study.protocol import protocol_for

    protocol = protocol_for(Path(data), None, [])
    return evaluate(run, Path(data), Path(out), protocol, point)
