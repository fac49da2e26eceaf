"""The preprocessed cohort on disk: one scan with its sidecar, the tables, the slice index."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from evaluation.figures.plots import outline_figure
from pipelines import cli, spread
from pipelines.config import write_yaml
from pipelines.versions import versions
from preprocessing import register, slices
from preprocessing.files import file_digest, read_json, write_atomic, write_json, write_table
from preprocessing.images import save_nifti
from preprocessing.prepare import RefusedScan, channel_files, prepare
from preprocessing.recipe import Recipe
from preprocessing.scans import InputError, Scan, ScanError, scan_row
from preprocessing.splits import assign_splits, check_leaks
from preprocessing.tables import list_scans

log = logging.getLogger("norma")

STEPS_VERSION = 3  # raise when the steps change, so that nothing old is taken for done


def sidecar_of(scan: Scan, out: Path) -> Path:
    """The JSON that stands beside a preprocessed scan, and says how it was made and where its files are."""
    return out / scan.subject / f"{scan.id}_preproc.json"


def file_stem(scan_id: str, space: str) -> str:
    return f"{scan_id}_space-{space}"


def input_files(scan: Scan, recipe: Recipe) -> list[Path]:
    """Every file that a preprocessed scan is made of."""
    more = [scan.brain_mask, Path(recipe.template) if recipe.template else None]
    return [*channel_files(scan, recipe), *(p for p in more if p)]


def fingerprint(scan: Scan, recipe: Recipe) -> str:
    """Digest of the recipe, the version of the steps and the bytes of all inputs: same digest, same result."""
    return recipe_digest(recipe, [file_digest(p) for p in input_files(scan, recipe)])


def recipe_digest(recipe: Recipe, digests: Sequence[str]) -> str:
    return sha256(
        "\n".join([str(STEPS_VERSION), recipe.model_dump_json(), *digests]).encode()
    ).hexdigest()


def preprocess_scan(scan: Scan, recipe: Recipe, out: Path, formats: Sequence[str] = ()) -> None:
    """Preprocess one scan into `out`, its sidecar last; skip it where nothing has changed since: recipe, steps, and its files.

    Files are the same by path, size and time, and else by their bytes.
    """
    folder = out / scan.subject
    sidecar = sidecar_of(scan, out)
    files_in = input_files(scan, recipe)
    settings = recipe_digest(recipe, [])
    stamps = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files_in]
    done = read_json(sidecar) if sidecar.is_file() else {}
    complete = set(formats) <= set(done.get("formats", ())) and all(
        (out / f).is_file() for f in done.get("files", ())
    )
    if done and complete and (done.get("settings"), done.get("stamps")) == (settings, stamps):
        return
    digests = [file_digest(p) for p in files_in]
    digest = recipe_digest(recipe, digests)
    if done and complete and done["fingerprint"] == digest:
        write_json(sidecar, done | {"settings": settings, "stamps": stamps, "digest": digests[0]})
        return
    prepared = prepare(scan, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / file_stem(scan.id, prepared.space)
    files = {
        "image": Path(f"{base}_desc-preproc_{recipe.suffixes[0]}.nii.gz"),
        "mask": Path(f"{base}_desc-brain_mask.nii.gz"),
        "transform": folder / f"{scan.id}_from-orig_to-{prepared.space}_mode-image_xfm.mat",
        "picture": out / "quality" / f"{scan.id}.png",
    }
    channels = prepared.channels
    more: list[dict[str, Any]] = []
    save_nifti(nib.Nifti1Image(channels[0], prepared.affine), files["image"])
    save_nifti(nib.Nifti1Image(prepared.mask.astype(np.uint8), prepared.affine), files["mask"])
    register.write_matrix(files["transform"], prepared.world)
    for i, (suffix, data) in enumerate(zip(recipe.suffixes[1:], channels[1:], strict=True)):
        files[suffix] = Path(f"{base}_desc-preproc_{suffix}.nii.gz")
        save_nifti(nib.Nifti1Image(data, prepared.affine), files[suffix])
        files[f"{suffix} picture"] = out / "quality" / f"{scan.id}_{suffix}.png"
        _picture(
            files[f"{suffix} picture"], data, prepared.mask, f"{scan.id} {suffix}", prepared.outline
        )
        more.append({"suffix": suffix, "image": str(files[suffix].relative_to(out))})
        if prepared.worlds:
            files[f"{suffix} transform"] = (
                folder / f"{scan.id}_from-{suffix}_to-{prepared.space}_mode-image_xfm.mat"
            )
            register.write_matrix(files[f"{suffix} transform"], prepared.worlds[i])
            more[-1]["world"] = prepared.worlds[i]
    z = slices.select(prepared.mask, recipe.min_brain_pixels)
    slices.write_arrays(out / "slices", scan.id, prepared.image, prepared.mask, z)
    if "nifti" in formats:
        slices.export_nifti(
            out / "slices" / "nifti" / scan.id, scan.id, prepared.image, prepared.affine, z
        )
    _picture(
        files["picture"],
        channels[0],
        prepared.mask,
        f"{scan.id} {recipe.suffixes[0]}" if more else scan.id,
        prepared.outline,
    )
    content = {
        "fingerprint": digest,
        "settings": settings,
        "stamps": stamps,
        "digest": digests[0],
        "formats": list(formats),
        "files": [str(p.relative_to(out)) for p in files.values()],
        "image": str(files["image"].relative_to(out)),
        "mask": str(files["mask"].relative_to(out)),
        "world": prepared.world,
        "native_shape": prepared.native.shape,
        "native_affine": prepared.native.affine,
        "brain_method": prepared.brain_method,
        "z": z,
        "brain_px": prepared.mask.sum((0, 1))[z],
        "checks": [c.row() for c in prepared.checks],
        "flags": prepared.flags,
    } | ({"further": more} if more else {})
    write_json(sidecar, content)


def _picture(
    path: Path,
    image: np.ndarray,
    mask: np.ndarray,
    title: str,
    atlas_mask: np.ndarray | None = None,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(
        path,
        outline_figure(
            image, mask, spacing=(1.0, 1.0, 1.0), title=title, window=(0.0, 1.0), atlas=atlas_mask
        ),
    )


def try_preprocess(
    scan: Scan, recipe: Recipe, out: Path, formats: Sequence[str] = ()
) -> dict[str, Any] | None:
    """`process` that answers a failure ({"reason", "checks"}) instead of raising for a bad scan, and None for a good one."""
    try:
        preprocess_scan(scan, recipe, out, formats)
        return None
    except OSError as error:
        if error.errno in (28, 13, 30):  # disk full, no permission, read-only: no scan's fault
            raise
        return {"reason": f"{scan.image}: {cli.error_sentence(error)}", "checks": []}
    except RefusedScan as error:
        if error.picture is not None:
            low, high = np.percentile(error.picture[0], (1, 99.5))
            shown = np.clip((error.picture[0] - low) / max(high - low, 1e-6), 0, 1)
            _picture(
                out / "quality" / f"{scan.id}.png", shown, error.picture[1], f"{scan.id} (refused)"
            )
        return {"reason": str(error), "checks": [c.row() for c in error.checks]}
    except ScanError as error:
        return {"reason": str(error), "checks": []}
    except (
        RuntimeError,
        MemoryError,
        ArithmeticError,
        np.linalg.LinAlgError,
        ValueError,
        KeyError,
        IndexError,
    ) as error:
        return {
            "reason": f"{scan.image}: unexpected {type(error).__name__}: {cli.error_sentence(error)}",
            "checks": [],
        }


@dataclass(frozen=True)
class Input:
    """What a cohort is made of: scans with their splits, why DICOM series gave none (by name), and what the reader should know."""

    source: Path
    scans: list[Scan]
    lost: dict[str, str]
    notes: list[str]


Results = list[tuple[Scan, dict[str, Any] | None]]
"""Scans with their failure ({"reason", "checks"}), None for a good one."""


def list_input(source: Path, modality: str, out: Path, seed: int = 0) -> Input:
    """The scans of `source`, split by subject where it says nothing of splits; InputError for a leak or nothing to read.

    DICOM folders are converted below `out`.
    """
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; give IN= a scan, a folder, a CSV/TSV table or a JSON datalist."
        )
    scans, lost = list_scans(source, modality, out)
    given = all(s.split for s in scans)
    scans = assign_splits(scans, seed)
    check_leaks(scans)
    notes = (
        [] if given else [f"Splits by subject were made here (seed {seed}) and are in scans.tsv."]
    )
    if any(not s.label and s.split in ("train", "val") for s in scans):
        notes.append("Scans without a label in train and val are taken as healthy.")
    for note in notes:
        log.info(note)
    return Input(source, scans, lost, notes)


def preprocess_cohort(
    given: Input,
    recipe: Recipe,
    out: Path,
    formats: Sequence[str] = (),
    executor: str = "",
    workers: int = 1,
    page: Callable[[Results, Recipe, Path, Sequence[str]], str] | None = None,
) -> Results:
    """Preprocess every scan into `out`, and write what the cohort consists of even where the work is interrupted.

    `page` makes quality.html of the results, the recipe, `out` and the notes.
    """
    results: Results = []
    work = partial(try_preprocess, recipe=recipe, out=out, formats=formats)
    bar = tqdm(
        spread.each(work, given.scans, executor, workers),
        total=len(given.scans),
        desc="preprocess",
        unit="scan",
    )
    try:
        for scan, result, lost_because in bar:
            failure = (
                {"reason": f"{scan.image}: {lost_because}", "checks": []}
                if lost_because
                else result
            )
            results.append((scan, failure))
            if failure:
                tqdm.write(f"left out: {failure['reason']}", file=bar.fp)
    finally:
        order = {s.id: i for i, s in enumerate(given.scans)}
        results.sort(key=lambda r: order[r[0].id])
        if results:
            results += [
                (Scan(name, given.source, name), {"reason": reason, "checks": []})
                for name, reason in given.lost.items()
            ]
            write_cohort(results, recipe, out)
            if page:
                write_atomic(out / "quality.html", page(results, recipe, out, given.notes))
    return results


def write_cohort(
    results: Sequence[tuple[Scan, dict[str, Any] | None]], recipe: Recipe, out: Path
) -> None:
    """Write scans.tsv, failures.tsv, the slice index, recipe.yaml and preprocess.json from (scan, failure or None).

    Sidecars are read one at a time, so that memory holds a few numbers per scan.
    """
    good = [scan for scan, failure in results if not failure]
    bad = [(scan, failure) for scan, failure in results if failure]
    (out / "slices").mkdir(parents=True, exist_ok=True)
    extra = dict.fromkeys(k for s in good for k in s.extra)  # the user's own columns come last
    columns = [
        *scan_row(Scan("", Path(), "", sequences={s.modality: Path() for s in recipe.sequences})),
        "preproc",
        "brain",
        "sidecar",
        "digest",
        "flags",
    ]
    columns += [k for k in extra if k not in columns]
    write_table(out / "scans.tsv", (_cohort_row(s, out) for s in good), columns)
    write_table(
        out / "failures.tsv",
        ({"id": s.id, "image": s.image, "split": s.split, "reason": f["reason"]} for s, f in bad),
        ("id", "image", "split", "reason"),
    )
    values: dict[str, list[float]] = {}
    n_slices = itertools.count()
    slices.write_index(
        out / "slices",
        (
            row
            for s in good
            for row in _index_rows(s, read_json(sidecar_of(s, out)), values, n_slices)
        ),
    )
    write_atomic(out / "recipe.yaml", write_yaml(recipe))
    spread_of = {
        name: {"min": min(v), "median": float(np.median(v)), "max": max(v)}
        for name, v in values.items()
    }
    summary = {
        "n_scans": len(good),
        "n_failed": len(bad),
        "n_slices": next(n_slices),
        "checks": spread_of,
    }
    write_json(
        out / "preprocess.json",
        summary | {"command": sys.argv[1:], "recipe": recipe.model_dump(), "versions": versions()},
    )


def _cohort_row(scan: Scan, out: Path) -> dict[str, Any]:
    side, path = read_json(sidecar_of(scan, out)), sidecar_of(scan, out)
    about = {
        "preproc": side["image"],
        "brain": side["mask"],
        "sidecar": str(path.relative_to(out)),
        "flags": "; ".join(side["flags"]),
    }
    return {
        **scan.extra,
        **scan_row(replace(scan, extra={})),
        **about,
        "digest": side.get("digest") or file_digest(scan.image),
    }


def _index_rows(
    scan: Scan, side: dict[str, Any], values: dict[str, list[float]], count: Iterator[int]
) -> Iterator[dict[str, Any]]:
    """The slices of a scan for the index; notes the values of its checks and counts its slices on the way."""
    for check in side["checks"]:
        values.setdefault(check["name"], []).append(check["value"])
    about = {"scan": scan.id, "subject": scan.subject, "split": scan.split, "label": scan.label}
    for i, (z, px) in enumerate(zip(side["z"], side["brain_px"], strict=True)):
        next(count)
        yield about | {"row": i, "z": z, "brain_px": px}
