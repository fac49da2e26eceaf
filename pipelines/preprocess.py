"""`make preprocess`: scans in, preprocessed volumes, the slice store and quality.html out."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines import cli, spread
from pipelines.config import Intensity, Recipe, Series, load_recipe, write_yaml
from pipelines.runs import read_json, versions, write_json
from preprocessing import brain, dicom, intensity, quality, register, slices
from preprocessing.quality import Check
from preprocessing.scans import (
    InputError,
    Scan,
    ScanError,
    assign_splits,
    check_leaks,
    file_digest,
    how_to_give,
    is_picture,
    read_image,
    read_picture,
    read_scans,
    save_nifti,
    scan_row,
    voxel_sizes,
    write_atomic,
    write_table,
)

if TYPE_CHECKING:
    import nibabel as nib

log = logging.getLogger("norma")
SHOWN = 200  # scans on quality.html at most
STEPS_VERSION = 3  # raise when the steps change, so that nothing old is taken for done


@dataclass(frozen=True)
class Prepared:
    """A scan in the space of its atlas (a picture: of its frame), and the way back.

    image (X, Y, Z) float32 in [0, 1], 0 outside `mask` (bool), on the grid of `affine` in the `space` named; with several
    channels (X, Y, Z, C). `world` (4x4) maps its mm to scan mm (RAS+), `worlds` to those of the further sequences; `native` is
    the scan (its first sequence) as it came in; `outline` the atlas brain, for pictures to look at.
    """

    image: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    space: str
    outline: np.ndarray | None
    world: np.ndarray
    native: nib.Nifti1Image
    brain_method: str
    checks: list[Check]
    worlds: tuple[np.ndarray, ...] = ()

    @property
    def flags(self) -> list[str]:
        return quality.flags(self.checks)

    @property
    def channels(self) -> list[np.ndarray]:
        """Each channel (X, Y, Z)."""
        return [self.image] if self.image.ndim == 3 else list(np.moveaxis(self.image, -1, 0))


class RefusedScan(ScanError):
    """A scan failed its checks; carries what was seen, for the report and the picture."""

    def __init__(self, message: str, checks: list[Check], picture: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        super().__init__(message)
        self.checks, self.picture = checks, picture


def prepare(scan: Scan, recipe: Recipe) -> Prepared:
    """`chain` or `picture_chain` for one scan; every ScanError names the file."""
    try:
        return picture_chain(scan, recipe) if recipe.modality == "picture" else chain(scan, recipe)
    except RefusedScan:
        raise
    except ScanError as error:
        if str(error).startswith((*map(str, scan.files), str(scan.brain_mask))):
            raise
        raise ScanError(f"{scan.image}: {error}") from None


def chain(scan: Scan, recipe: Recipe) -> Prepared:
    """The steps for one scan: check, 1 mm, brain mask, N4, rigid to the atlas, intensity; raises ScanError.

    Without N4 the image is interpolated once, from its own voxels to the atlas: the 1 mm copy serves the mask and the
    fit. Half a voxel beyond the outermost slices, where the mask may reach, the image repeats its last value. Further sequences
    follow as channels.
    """
    import nibabel as nib

    files = channel_files(scan, recipe)
    native = read_image(scan.image)
    checks = quality.image_checks(np.asarray(native.dataobj), recipe.modality, _extent(native))
    _demand(checks, scan)
    work = register.to_spacing(nib.as_closest_canonical(native), recipe.spacing, recipe.pad)
    mask, method = _brain(scan, work, recipe)
    checks += quality.brain_checks(mask, (recipe.spacing,) * 3, recipe.limits.brain_ml)
    _demand(checks, scan, (np.asarray(work.dataobj), mask))
    if recipe.n4 and recipe.modality != "ct":
        work = register.n4(work, mask)
    source = work if recipe.n4 else native
    atlas = register.load_atlas(recipe.template, recipe.grid)
    shown = _visible(np.asarray(work.dataobj), mask, recipe.intensity)
    world, loose = register.fit(shown, work.affine, atlas, mask=mask, spacing=recipe.registration_spacing)
    in_atlas = register.carry_mask(mask, work.affine, atlas.shape, atlas.affine, world)
    image = register.resample(np.asarray(source.dataobj), source.affine, atlas.shape, atlas.affine, world, pad=None, within=in_atlas)
    checks += _registration_checks(shown, mask, in_atlas, work.affine, loose, atlas, recipe)
    _demand(checks, scan, (image, in_atlas))
    scaled, worlds = [_scale(image, in_atlas, recipe.intensity)], []
    for series, path in zip(recipe.sequences, files[1:], strict=True):
        other, between, its_checks = further(series, path, native, work, mask, recipe)
        worlds.append(between @ world)
        covered = register.carry_mask(np.ones(other.shape, bool), other.affine, atlas.shape, atlas.affine, worlds[-1])
        its_checks += quality.coverage_checks(covered, in_atlas)
        checks += [replace(c, name=f"{series.modality}: {c.name}") for c in its_checks]
        image = register.resample(np.asarray(other.dataobj), other.affine, atlas.shape, atlas.affine, worlds[-1], pad=None, within=in_atlas)
        _demand(checks, scan, (image, in_atlas), path)
        scaled.append(_scale(image, in_atlas, series.intensity))
    image = np.stack(scaled, -1) if worlds else scaled[0]
    return Prepared(image, in_atlas, atlas.affine, atlas.name, atlas.mask, world, native, method, checks, tuple(worlds))


def further(
    series: Series, path: Path, first: nib.Nifti1Image, work: nib.Nifti1Image, mask: np.ndarray, recipe: Recipe
) -> tuple[nib.Nifti1Image, np.ndarray, list[Check]]:
    """A further sequence as it is to be interpolated, the rigid map (4x4) from the first one's mm to its own, and its checks.

    `work` and `mask` are the first sequence at 1 mm and its brain. Sequences whose headers give one shape and affine are taken as
    aligned; all others are registered.
    """
    import nibabel as nib

    native = read_image(path)
    checks = quality.image_checks(np.asarray(native.dataobj), series.modality, _extent(native))
    if any(c.hard and not c.passed for c in checks):
        return native, np.eye(4), checks
    here = register.to_spacing(nib.as_closest_canonical(native), recipe.spacing, series.pad)
    pair = _ranged(work, recipe.intensity), work.affine, mask, _ranged(here, series.intensity), here.affine
    same = native.shape == first.shape and np.allclose(native.affine, first.affine, atol=1e-4)
    between = np.eye(4) if same else register.fit_sequence(*pair, spacing=recipe.registration_spacing)
    checks += quality.likeness_checks(register.likeness(*pair, between), recipe.modality, hard="ct" not in recipe.name)
    if recipe.n4 and series.modality != "ct":
        inside = register.carry_mask(mask, work.affine, here.shape, here.affine, np.linalg.inv(between))
        return register.n4(here, inside), between, checks
    return native, between, checks


def channel_files(scan: Scan, recipe: Recipe) -> list[Path]:
    """The files of a scan's sequences in the order of the channels; ScanError where one is missing."""
    for series in recipe.sequences:
        if series.modality not in scan.sequences:
            raise ScanError(f"{scan.image}: no {series.modality} sequence of this scan, or more than one. {how_to_give(recipe.name)}")
    files = [scan.image, *(scan.sequences[s.modality] for s in recipe.sequences)]
    lost = next((f for f in files if not f.is_file()), None)
    if lost:
        raise ScanError(f"{lost}: no such file.")
    return files


def picture_chain(scan: Scan, recipe: Recipe) -> Prepared:
    """The steps for one 2-D picture: read, foreground, the middle of the frame, intensity; no atlas."""
    native, planes = _picture_and_planes(scan.image, recipe.channels)
    data = np.asarray(native.dataobj)
    if data.shape[2] != 1:
        raise ScanError(f"{scan.image}: expected a picture, got a volume of shape {data.shape}; give MODALITY=ct, t1, t2 or flair.")
    if scan.brain_mask:
        mask, method = np.asarray(read_image(scan.brain_mask).dataobj) > 0, "given"
        if mask.shape != data.shape:
            raise ScanError(f"{scan.brain_mask}: shape {mask.shape[:2]} differs from the picture's, {data.shape[:2]}.")
    elif recipe.brain == "none":
        mask, method = np.ones(data.shape, bool), "none"
    else:
        mask, method = brain.picture_foreground(data), "foreground"
    checks = quality.picture_checks(data, mask)
    _demand(checks, scan, (data, mask))
    side = (recipe.grid[0] or data.shape[0], recipe.grid[1] or data.shape[1])
    image, framed, world = register.fit_picture(planes, mask, side)
    there = framed if image.ndim == 3 else framed[..., None]
    return Prepared(_scale(image, there, recipe.intensity), framed, np.eye(4), "picture", None, world, native, method, checks)


def _picture_and_planes(path: Path, channels: int) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A picture as a grey scan (X, Y, 1), and what its channels are made of: the same, or its colour planes (X, Y, 1, C)."""
    import nibabel as nib

    if channels == 1:
        native = read_image(path)
        return native, np.asarray(native.dataobj)
    if not is_picture(path):
        raise ScanError(f"{path}: channels={channels} is for pictures, this is none; give PNG, JPG or TIF.")
    planes = np.asarray(read_picture(path, channels).dataobj)
    return nib.Nifti1Image(planes.mean(-1), np.eye(4)), planes


def _registration_checks(
    shown: np.ndarray, mask: np.ndarray, in_atlas: np.ndarray, affine: np.ndarray, loose: np.ndarray, atlas: register.Atlas, recipe: Recipe
) -> list[Check]:
    """Overlaps and mutual information; the affine ones on every second atlas voxel."""
    coarse, half = atlas.affine @ np.diag([2, 2, 2, 1]), (slice(None, None, 2),) * 3
    there, atlas_there = atlas.mask[half], atlas.image[half]
    mask_there = register.carry_mask(mask, affine, there.shape, coarse, loose)
    image_there = register.resample(shown, affine, there.shape, coarse, loose)
    both = mask_there & there
    information = quality.mutual_information(image_there[both], atlas_there[both]) if both.any() else 0.0
    return quality.registration_checks(
        quality.overlap(in_atlas, atlas.mask),
        quality.overlap(mask_there, there),
        information,
        recipe.limits.min_overlap,
        recipe.limits.min_information,
    )


def _demand(checks: list[Check], scan: Scan, picture: tuple[np.ndarray, np.ndarray] | None = None, path: Path | None = None) -> None:
    try:
        quality.demand(checks)
    except ScanError as error:
        raise RefusedScan(f"{path or scan.image}: {error}", checks, picture) from None


def _extent(image: nib.Nifti1Image) -> list[float]:
    return [float(n * s) for n, s in zip(image.shape, voxel_sizes(image.affine), strict=True)]


def _brain(scan: Scan, work: nib.Nifti1Image, recipe: Recipe) -> tuple[np.ndarray, str]:
    if scan.brain_mask:
        given = read_image(scan.brain_mask)
        mask = register.carry_mask(np.asarray(given.dataobj) > 0, given.affine, work.shape, work.affine)
        if not mask.any():
            raise ScanError(f"{scan.brain_mask}: the brain mask is empty on the grid of {scan.image}.")
        return mask, "given"
    mask, method = brain.brain_mask(work, recipe.modality, recipe.brain)
    if method == "none" and recipe.brain == "auto":
        log.info("%s: already skull-stripped, taken as it is", scan.id)
    return mask, method


def _visible(data: np.ndarray, mask: np.ndarray, how: Intensity) -> np.ndarray:
    """Brain alone, in a range that registration can use."""
    if how.kind == "window":
        return intensity.window(data, mask, how.low, how.high)
    return intensity.percentiles(data, mask, 0.5, 99.5)


def _ranged(image: nib.Nifti1Image, how: Intensity) -> np.ndarray:
    """The whole head, in a range that registration can use."""
    data = np.asarray(image.dataobj, np.float32)
    limits = (how.low, how.high) if how.kind == "window" else np.percentile(data, (0.5, 99.5))
    return np.clip(data, *limits)


def _scale(image: np.ndarray, mask: np.ndarray, how: Intensity) -> np.ndarray:
    if how.kind == "window":
        return intensity.window(image, mask, how.low, how.high)
    return intensity.percentiles(image, mask, how.low, how.high, how.top)


def sidecar_of(scan: Scan, out: Path) -> Path:
    """The JSON that stands beside a preprocessed scan, and says how it was made and where its files are."""
    return out / scan.subject / f"{scan.id}_preproc.json"


def stem(scan_id: str, space: str) -> str:
    return f"{scan_id}_space-{space}"


def inputs(scan: Scan, recipe: Recipe) -> list[Path]:
    """Every file that a preprocessed scan is made of."""
    more = [scan.brain_mask, Path(recipe.template) if recipe.template else None]
    return [*channel_files(scan, recipe), *(p for p in more if p)]


def fingerprint(scan: Scan, recipe: Recipe) -> str:
    """Digest of the recipe, the version of the steps and the bytes of all inputs: same digest, same result."""
    return _joined(recipe, [file_digest(p) for p in inputs(scan, recipe)])


def _joined(recipe: Recipe, digests: Sequence[str]) -> str:
    return sha256("\n".join([str(STEPS_VERSION), recipe.model_dump_json(), *digests]).encode()).hexdigest()


def process(scan: Scan, recipe: Recipe, out: Path, formats: Sequence[str] = ()) -> None:
    """Preprocess one scan into `out`, its sidecar last; skip it where nothing has changed since: recipe, steps, and its files.

    Files are the same by path, size and time, and else by their bytes.
    """
    import nibabel as nib

    folder = out / scan.subject
    sidecar = sidecar_of(scan, out)
    files_in = inputs(scan, recipe)
    settings = _joined(recipe, [])
    stamps = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files_in]
    done = read_json(sidecar) if sidecar.is_file() else {}
    complete = set(formats) <= set(done.get("formats", ())) and all((out / f).is_file() for f in done.get("files", ()))
    if done and complete and (done.get("settings"), done.get("stamps")) == (settings, stamps):
        return
    digests = [file_digest(p) for p in files_in]
    digest = _joined(recipe, digests)
    if done and complete and done["fingerprint"] == digest:
        write_json(sidecar, done | {"settings": settings, "stamps": stamps, "digest": digests[0]})
        return
    prepared = prepare(scan, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / stem(scan.id, prepared.space)
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
        _picture(files[f"{suffix} picture"], data, prepared.mask, f"{scan.id} {suffix}", prepared.outline)
        more.append({"suffix": suffix, "image": str(files[suffix].relative_to(out))})
        if prepared.worlds:
            files[f"{suffix} transform"] = folder / f"{scan.id}_from-{suffix}_to-{prepared.space}_mode-image_xfm.mat"
            register.write_matrix(files[f"{suffix} transform"], prepared.worlds[i])
            more[-1]["world"] = prepared.worlds[i]
    z = slices.select(prepared.mask, recipe.min_brain_pixels)
    slices.write_arrays(out / "slices", scan.id, prepared.image, prepared.mask, z)
    if "nifti" in formats:
        slices.export_nifti(out / "slices" / "nifti" / scan.id, scan.id, prepared.image, prepared.affine, z)
    _picture(files["picture"], channels[0], prepared.mask, f"{scan.id} {recipe.suffixes[0]}" if more else scan.id, prepared.outline)
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


def _picture(path: Path, image: np.ndarray, mask: np.ndarray, title: str, atlas_mask: np.ndarray | None = None) -> None:
    from evaluation.plots import outline_figure

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, outline_figure(image, mask, spacing=(1.0, 1.0, 1.0), title=title, window=(0.0, 1.0), atlas=atlas_mask))


def attempt(scan: Scan, recipe: Recipe, out: Path, formats: Sequence[str] = ()) -> dict[str, Any] | None:
    """`process` that answers a failure ({"reason", "checks"}) instead of raising for a bad scan, and None for a good one."""
    try:
        process(scan, recipe, out, formats)
        return None
    except OSError as error:
        if error.errno in (28, 13, 30):  # disk full, no permission, read-only: no scan's fault
            raise
        return {"reason": f"{scan.image}: {cli.error_sentence(error)}", "checks": []}
    except RefusedScan as error:
        if error.picture is not None:
            low, high = np.percentile(error.picture[0], (1, 99.5))
            shown = np.clip((error.picture[0] - low) / max(high - low, 1e-6), 0, 1)
            _picture(out / "quality" / f"{scan.id}.png", shown, error.picture[1], f"{scan.id} (refused)")
        return {"reason": str(error), "checks": [c.row() for c in error.checks]}
    except ScanError as error:
        return {"reason": str(error), "checks": []}
    except (RuntimeError, MemoryError, ArithmeticError, np.linalg.LinAlgError, ValueError, KeyError, IndexError) as error:
        return {"reason": f"{scan.image}: unexpected {type(error).__name__}: {cli.error_sentence(error)}", "checks": []}


def write_cohort(results: Sequence[tuple[Scan, dict[str, Any] | None]], recipe: Recipe, out: Path, notes: Sequence[str] = ()) -> None:
    """Write scans.tsv, failures.tsv, the slice index, recipe.yaml and quality.html from (scan, failure or None).

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
    slices.write_index(out / "slices", (row for s in good for row in _index_rows(s, read_json(sidecar_of(s, out)), values, n_slices)))
    write_atomic(out / "recipe.yaml", write_yaml(recipe))
    spread_of = {name: {"min": min(v), "median": float(np.median(v)), "max": max(v)} for name, v in values.items()}
    summary = {"n_scans": len(good), "n_failed": len(bad), "n_slices": next(n_slices), "checks": spread_of}
    write_json(out / "preprocess.json", summary | {"command": sys.argv[1:], "recipe": recipe.model_dump(), "versions": versions()})
    write_atomic(out / "quality.html", quality_page(good, bad, recipe, out, notes))


def _cohort_row(scan: Scan, out: Path) -> dict[str, Any]:
    side, path = read_json(sidecar_of(scan, out)), sidecar_of(scan, out)
    about = {"preproc": side["image"], "brain": side["mask"], "sidecar": str(path.relative_to(out)), "flags": "; ".join(side["flags"])}
    return {**scan.extra, **scan_row(replace(scan, extra={})), **about, "digest": side.get("digest") or file_digest(scan.image)}


def _index_rows(scan: Scan, side: dict[str, Any], values: dict[str, list[float]], count: Iterator[int]) -> Iterator[dict[str, Any]]:
    """The slices of a scan for the index; notes the values of its checks and counts its slices on the way."""
    for check in side["checks"]:
        values.setdefault(check["name"], []).append(check["value"])
    about = {"scan": scan.id, "subject": scan.subject, "split": scan.split, "label": scan.label}
    for i, (z, px) in enumerate(zip(side["z"], side["brain_px"], strict=True)):
        next(count)
        yield about | {"row": i, "z": z, "brain_px": px}


def quality_page(good: Sequence[Scan], bad: Sequence[tuple[Scan, dict[str, Any]]], recipe: Recipe, out: Path, notes: Sequence[str]) -> str:
    """One page: what went in, what fell out and why, and each scan's outline with its checks.

    Of more than `SHOWN` scans the flagged ones come first, and then scans at even distances.
    """
    from evaluation.report import Section, page

    def pictures(scan: Scan) -> list[tuple[str, bytes]]:
        names = [f"{scan.id}.png", *(f"{scan.id}_{suffix}.png" for suffix in recipe.suffixes[1:])]
        return [("", (out / "quality" / name).read_bytes()) for name in names if (out / "quality" / name).is_file()]

    def table(checks: list[dict]) -> list[list]:
        return [
            [c["name"], c["value"], c["unit"], c["expected"], "ok" if c["passed"] else "FAILED" if c["hard"] else "flag"] for c in checks
        ]

    columns = ["check", "value", "unit", "expected", "result"]
    picked = _shown(good, out)
    text = (
        f"{len(good)} scans preprocessed, {len(bad)} left out. Modality {recipe.name}"
        + (
            ". Outline: the foreground. "
            if recipe.modality == "picture"
            else ", 1 mm, rigid to the atlas. Outlines: the scan's brain mask (solid) and the atlas brain (dashed); they should agree in "
            "place and tilt, not in size. "
        )
        + " ".join(notes)
        + (
            f" {len(picked)} of the scans are shown: flagged ones first; the pictures of all are in the folder quality."
            * (len(picked) < len(good))
        )
    )
    sections = [Section("Summary", text)]
    if bad:
        sections.append(Section("Left out", table=(["scan", "reason"], [[s.id, f["reason"]] for s, f in bad])))
    for scan, failure in bad[:SHOWN]:
        if pictures(scan):
            sections.append(Section(f"{scan.id} (left out)", failure["reason"], (columns, table(failure["checks"])), pictures(scan)))
    for scan in picked:
        side = read_json(sidecar_of(scan, out))
        about = f"split {scan.split or '-'}, {scan.label or 'no label'}, brain mask: {side['brain_method']}. " + " ".join(side["flags"])
        sections.append(Section(scan.id, about, (columns, table(side["checks"])), pictures(scan)))
    return page("Preprocessing quality", sections)


def _shown(good: Sequence[Scan], out: Path) -> list[Scan]:
    if len(good) <= SHOWN:
        return list(good)
    flagged = list(itertools.islice((s for s in good if read_json(sidecar_of(s, out))["flags"]), SHOWN // 2))
    seen = {s.id for s in flagged}
    rest = [s for s in good if s.id not in seen]
    return flagged + [rest[i * len(rest) // (SHOWN - len(flagged))] for i in range(SHOWN - len(flagged))]


def list_scans(source: Path, modality: str, out: Path) -> tuple[list[Scan], dict[str, str]]:
    """Scans of any input; DICOM folders are converted below `out` first. Also why DICOM series gave none, by name."""
    if source.is_dir() and not (source / "dataset_description.json").is_file() and dicom.has_dicom(source):
        if "+" in modality:
            raise InputError(f"{source}: DICOM series do not say which sequence they are; convert them first. {how_to_give(modality)}")
        return dicom.convert(source, out / "dicom")
    return read_scans(source, modality), {}


def main(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    recipe = load_recipe(arguments.modality, arguments.overrides, arguments.template)
    if recipe.template:
        register.load_atlas(recipe.template, recipe.grid)
    source = Path(arguments.input)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give IN= a scan, a folder, a CSV/TSV table or a JSON datalist.")
    out = cli.writable_folder(arguments.out)
    scans, lost = list_scans(source, arguments.modality, out)
    given = all(s.split for s in scans)
    scans = assign_splits(scans, arguments.seed)
    check_leaks(scans)
    notes = [] if given else [f"Splits by subject were made here (seed {arguments.seed}) and are in scans.tsv."]
    if any(not s.label and s.split in ("train", "val") for s in scans):
        notes.append("Scans without a label in train and val are taken as healthy.")
    for note in notes:
        log.info(note)
    from pipelines import preprocess  # workers know this module by its name, not as __main__

    if arguments.dry_run:
        print(spread.preview(arguments.executor, arguments.workers, len(scans)))
        return cli.OK
    results: list[tuple[Scan, dict[str, Any] | None]] = []
    work = partial(preprocess.attempt, recipe=recipe, out=out, formats=arguments.format)
    bar = tqdm(spread.each(work, scans, arguments.executor, arguments.workers), total=len(scans), desc="preprocess", unit="scan")
    try:
        for scan, result, lost_because in bar:
            failure = {"reason": f"{scan.image}: {lost_because}", "checks": []} if lost_because else result
            results.append((scan, failure))
            if failure:
                tqdm.write(f"left out: {failure['reason']}", file=bar.fp)
    finally:
        order = {s.id: i for i, s in enumerate(scans)}
        results.sort(key=lambda r: order[r[0].id])
        if results:
            results += [(Scan(name, source, name), {"reason": reason, "checks": []}) for name, reason in lost.items()]
            write_cohort(results, recipe, out, notes)
    failed = sum(1 for _, failure in results if failure)
    print(f"{out}: {len(results) - failed} scans preprocessed, {failed} left out; look at {out / 'quality.html'}")
    return cli.NOTHING_DONE if failed == len(results) else cli.SOME_FAILED if failed else cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("preprocess", "Bring scans to atlas space: 1 mm, brain only, rigid, [0, 1]; write the slice store.")
    p.add_argument(
        "--input", required=True, help="BIDS folder, folder of NIfTI or pictures, table (.csv/.tsv), datalist (.json) or DICOM folder"
    )
    p.add_argument(
        "--modality", required=True, help="a file of configs/modality: ct, t1, t2, flair, picture; or several sequences: t1+flair"
    )
    p.add_argument("--out", required=True, help="output folder; a second run skips what is unchanged")
    p.add_argument("--template", help="skull-stripped NIfTI to use as atlas instead of ICBM152")
    p.add_argument("--format", action="append", default=[], choices=["nifti"], help="also write one NIfTI per slice")
    spread.add_arguments(p)
    p.add_argument("--seed", type=int, default=0, help="for the splits, where the input has none")
    p.add_argument("overrides", nargs="*", help="recipe settings such as brain=none or n4=true")
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
