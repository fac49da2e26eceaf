"""Slices of a scan as pictures, with the map in orange and the outline of what is marked.

Planes by the world axis that they cut: 0 sagittal, 1 coronal, 2 axial. All are in radiological
convention: the patient's right on the left, the nose up or to the left, the head upright.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

SAGITTAL, CORONAL, AXIAL = range(3)
LETTERS = {SAGITTAL: ("A", "P"), CORONAL: ("R", "L"), AXIAL: ("R", "L")}  # left and right edge
SLICES = 3
SIDE = 360  # pixels of the longer side of a picture
GAP = 6  # pixels between two planes
# HU, as radiologists look at brain: centre 40, width 80; of a chest what the recipe keeps
WINDOWS = {"ct": (0.0, 80.0), "chest_ct": (-1000.0, 400.0)}
MR_PERCENTILES = (1.0, 99.5)
MARGIN_MM = 20  # around the brain: the skull
MAP_COLOUR = (255, 150, 30)
MARK_COLOUR = (70, 235, 215)


@dataclass(frozen=True)
class Layers:
    """A scan, its map and its mask on one grid; how they are shown."""

    scan: nib.Nifti1Image
    map: nib.Nifti1Image
    mask: nib.Nifti1Image
    modality: str
    threshold: float


@dataclass(frozen=True)
class KeySlice:
    """An axial slice without and with map and marks, where it lies, and of which finding it is."""

    plain: Image.Image
    marked: Image.Image
    number: int
    place: str
    z_mm: float


def key_slices(layers: Layers, report: dict[str, Any]) -> list[KeySlice]:
    """The axial slices through the peaks of the strongest components, or where the map is highest.

    Two peaks in one slice give one picture.
    """
    axis = array_axis(layers.scan.affine, AXIAL)
    frame = brain_frame(layers.map, AXIAL)
    found: dict[int, KeySlice] = {}
    for number, (voxel, mm, place) in enumerate(spots(report), start=1):
        if voxel[axis] in found or len(found) == SLICES:
            continue
        plain, marked = drawn(layers, AXIAL, voxel[axis], frame, SIDE)
        pair = (lettered(plain, AXIAL), lettered(marked, AXIAL))
        found[voxel[axis]] = KeySlice(*pair, number, place, mm[2])
    return list(found.values())


def three_planes(layers: Layers, report: dict[str, Any]) -> Image.Image:
    """The planes through the strongest peak: axial, and beside it coronal above sagittal."""
    strongest = spots(report)
    voxel = strongest[0][0] if strongest else [n // 2 for n in layers.scan.shape]
    parts: dict[int, Image.Image] = {}
    for world, side in ((AXIAL, 2 * SIDE), (CORONAL, SIDE), (SAGITTAL, SIDE)):
        index = voxel[array_axis(layers.scan.affine, world)]
        frame = brain_frame(layers.map, world)
        parts[world] = lettered(drawn(layers, world, index, frame, side)[1], world)

    below = parts[CORONAL].height + GAP
    beside = max(parts[CORONAL].width, parts[SAGITTAL].width)
    height = max(parts[AXIAL].height, below + parts[SAGITTAL].height)
    whole = Image.new("RGB", (parts[AXIAL].width + GAP + beside, height))
    whole.paste(parts[AXIAL], (0, 0))
    whole.paste(parts[CORONAL], (parts[AXIAL].width + GAP, 0))
    whole.paste(parts[SAGITTAL], (parts[AXIAL].width + GAP, below))
    return whole


def spots(report: dict[str, Any]) -> list[tuple[list[int], list[float], str]]:
    """(peak voxel, peak in mm, place) of each component; where there is none, of the maximum."""
    found = [(one["peak_voxel"], one["peak_mm"], one["place"]) for one in report["components"]]
    if not found and report.get("maximum"):
        found = [(report["maximum"]["voxel"], report["maximum"]["mm"], "")]
    return found


def drawn(
    layers: Layers, world: int, index: int, frame: tuple[slice, slice], side: int
) -> tuple[Image.Image, Image.Image]:
    """One slice without and with map and marks; `side`: pixels of its longer side."""
    images = (layers.scan, layers.map, layers.mask)
    scan, levels, marked = (plane_slice(image, world, index)[frame] for image in images)
    grey = windowed(scan, layers.modality)
    size = picture_size(grey.shape, layers.scan, world, side)
    plain = to_picture(np.repeat(grey[..., None], 3, axis=2), size)
    return plain, overlay(plain, levels, marked > 0, layers.threshold)


def array_axis(affine: np.ndarray, world: int) -> int:
    """The axis of an array that runs along a world axis most."""
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == world)[0])


def plane_slice(image: nib.Nifti1Image, world: int, index: int) -> np.ndarray:
    """One slice (rows, columns) in radiological convention; `index` along the array's own axis."""
    place = [slice(None)] * 3
    place[array_axis(image.affine, world)] = slice(index, index + 1)
    canonical = nib.as_closest_canonical(image.slicer[tuple(place)])
    return np.flip(np.asarray(canonical.dataobj).squeeze(world)).T


def pixel_sides(image: nib.Nifti1Image, world: int) -> np.ndarray:
    """Height and width in mm of a pixel of a slice."""
    zooms = image.header.get_zooms()
    column, row = [axis for axis in range(3) if axis != world]
    return np.array([zooms[array_axis(image.affine, axis)] for axis in (row, column)])


def brain_frame(levels: nib.Nifti1Image, world: int) -> tuple[slice, slice]:
    """Rows and columns of slices that hold the brain, where the map is not 0, and a margin.

    One frame for all slices: so they have one scale.
    """
    canonical = nib.as_closest_canonical(levels)
    seen = np.flip((np.asarray(canonical.dataobj) != 0).any(axis=world)).T
    margins = np.ceil(MARGIN_MM / pixel_sides(levels, world)).astype(int)
    sides: list[slice] = []
    for flat, margin in zip((seen.any(axis=1), seen.any(axis=0)), margins, strict=True):
        places = np.flatnonzero(flat)
        if not places.size:
            return slice(None), slice(None)
        sides.append(slice(max(places[0] - margin, 0), places[-1] + 1 + margin))
    return sides[0], sides[1]


def picture_size(
    shape: tuple[int, ...], image: nib.Nifti1Image, world: int, side: int
) -> tuple[int, int]:
    """Width and height in pixels of a slice whose pixels are square."""
    sides = np.array(shape) * pixel_sides(image, world)
    height, width = np.round(sides / sides.max() * side).astype(int)
    return int(width), int(height)


def windowed(values: np.ndarray, modality: str) -> np.ndarray:
    """A slice as grey values 0 to 255: a window for CT, percentiles of the slice for MR."""
    low, high = WINDOWS.get(modality, (0.0, 0.0))
    if modality not in WINDOWS:
        inside = values[values > 0]
        low, high = np.percentile(inside if inside.size else values, MR_PERCENTILES)
    share = (values - low) / max(high - low, 1e-6)
    return (np.clip(share, 0, 1) * 255).astype(np.uint8)


def to_picture(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR)


def overlay(
    plain: Image.Image, levels: np.ndarray, marked: np.ndarray, threshold: float
) -> Image.Image:
    """A picture with the map in orange, and the outline of what is marked."""
    size = plain.size
    strength = np.clip((levels - threshold) / max(float(levels.max()) - threshold, 1e-6), 0, 1)
    shown = ((levels > threshold) * (70 + strength * 100)).astype(np.uint8)
    alpha = np.asarray(to_picture(shown, size))[..., None] / 255
    pixels = np.asarray(plain) * (1 - alpha) + np.array(MAP_COLOUR) * alpha
    nearest = Image.fromarray(marked.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    inside = np.asarray(nearest) > 0
    pixels[inside & ~binary_erosion(inside, iterations=2)] = MARK_COLOUR
    return Image.fromarray(pixels.astype(np.uint8))


def lettered(picture: Image.Image, world: int) -> Image.Image:
    """A picture whose left and right edges are named."""
    named = picture.copy()
    draw = ImageDraw.Draw(named)
    left, right = LETTERS[world]
    for text, x, anchor in ((left, 5, "lm"), (right, named.width - 5, "rm")):
        place = (x, named.height // 2)
        draw.text(
            place, text, "white", None, anchor, stroke_width=2, stroke_fill="black", font_size=18
        )
    return named


def as_png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
