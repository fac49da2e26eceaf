"""The report of a study on one page: as HTML to look at and print, and as PDF."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from PIL import Image, ImageDraw, ImageFile
from scipy.ndimage import binary_erosion

from app import opinions, pages
from app.api import StudyId, database, study_or_404
from app.security import Reader, Visitor
from app.store import Result, Study
from app.studies import result_folder, scan_path

router = APIRouter(include_in_schema=False)

STYLE = Path(__file__).parent / "static" / "report.css"
SLICES = 3
SIDE = 360  # pixels of the longer side of a picture
BRAIN_WINDOW = (0.0, 80.0)  # HU, as radiologists look at brain: centre 40, width 80
MR_PERCENTILES = (1.0, 99.5)
MARGIN_MM = 20  # around the brain: the skull
MAP_COLOUR = (255, 150, 30)
MARK_COLOUR = (70, 235, 215)


@dataclass(frozen=True)
class Picture:
    """An axial slice without and with map and marks, as addresses of data, and where it lies."""

    plain: str
    marked: str
    place: str
    z_mm: float


@router.get("/studies/{study_id}/report", response_class=HTMLResponse)
def report_page(request: Request, visitor: Reader, study_id: StudyId) -> HTMLResponse:
    """The report of a study on one page, to print."""
    return _page(request, visitor, study_id, is_pdf=False)


@router.get("/studies/{study_id}/report.pdf", response_class=Response)
def report_pdf(request: Request, visitor: Reader, study_id: StudyId) -> Response:
    """The report as PDF; 501 where this server has no pango."""
    if not can_make_pdf():
        raise HTTPException(501, "This server makes no PDF; print the report from the browser.")
    page = _page(request, visitor, study_id, is_pdf=True)
    headers = {"Content-Disposition": f'attachment; filename="norma-{study_id}.pdf"'}
    pdf = laid_out(bytes(page.body).decode()).write_pdf()
    return Response(pdf, media_type="application/pdf", headers=headers)


def can_make_pdf() -> bool:
    """Whether WeasyPrint finds the libraries of the system that it draws with."""
    try:
        _weasyprint()
    except (ImportError, OSError):
        return False
    return True


def _weasyprint() -> Any:
    """The package, without what its import sets for the whole process: that cut pictures pass."""
    import weasyprint.urls

    ImageFile.LOAD_TRUNCATED_IMAGES = False
    return weasyprint


def laid_out(html: str) -> Any:
    """A page on paper (weasyprint.Document). It holds its pictures: no address is asked for."""
    weasyprint = _weasyprint()
    fetcher = weasyprint.urls.URLFetcher(allowed_protocols=["data"])
    document = weasyprint.HTML(string=html, url_fetcher=fetcher)
    return document.render(stylesheets=[weasyprint.CSS(filename=str(STYLE))])


def _page(request: Request, visitor: Visitor, study_id: str, is_pdf: bool) -> HTMLResponse:
    settings = request.app.state.settings
    with database(request) as session:
        study = study_or_404(session, study_id)
        result = session.get(Result, study.result_id) if study.result_id else None
        if result is None:
            raise HTTPException(404, "This study has no result yet.")
        said = opinions.history(session, study_id, visitor)
    report = json.loads(result.report)
    return pages.page(
        request,
        "report.html",
        visitor,
        study=study,
        result=result,
        report=report,
        pictures=pictures(settings.data, study, result, report),
        verdicts={one.component: one.value for one in said if one.kind == "component"},
        opinions=list({one.user: one for one in said if one.kind == "scan"}.values()),
        corrections=sum(one.kind == "correction" for one in said),
        fields=settings.report_fields,
        is_pdf=is_pdf,
        can_make_pdf=is_pdf or can_make_pdf(),
    )


def pictures(data: Path, study: Study, result: Result, report: dict[str, Any]) -> list[Picture]:
    """The axial slices through the peaks of the strongest components, or where the map is highest.

    Two peaks in one slice give one picture.
    """
    spots = [(one["peak_voxel"], one["peak_mm"], one["place"]) for one in report["components"]]
    if not spots and report.get("maximum"):
        spots = [(report["maximum"]["voxel"], report["maximum"]["mm"], "")]
    folder = result_folder(data, result.id)
    images = [nib.Nifti1Image.from_filename(scan_path(data, study.id))]
    images += [nib.Nifti1Image.from_filename(folder / f"{n}.nii.gz") for n in ("map", "mask")]

    found: dict[int, Picture] = {}
    axis = axial_axis(images[0].affine)
    frame = brain_frame(images[1], axis)
    for voxel, mm, place in spots:
        if voxel[axis] in found or len(found) == SLICES:
            continue
        scan, levels, marked = (axial_slice(i, axis, voxel[axis])[frame] for i in images)
        grey = windowed(scan, study.modality)
        size = picture_size(grey.shape, images[0], axis)
        plain = to_picture(np.repeat(grey[..., None], 3, axis=2), size)
        overlaid = overlay(plain, levels, marked > 0, report["threshold"])
        found[voxel[axis]] = Picture(address(plain), address(overlaid), place, mm[2])
    return list(found.values())


def axial_axis(affine: np.ndarray) -> int:
    """The axis of an array that runs from feet to head most."""
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == 2)[0])


def axial_slice(image: nib.Nifti1Image, axis: int, index: int) -> np.ndarray:
    """One slice (rows, columns) in radiological convention: nose up, the patient's right left."""
    place = [slice(None)] * 3
    place[axis] = slice(index, index + 1)
    canonical = nib.as_closest_canonical(image.slicer[tuple(place)])
    return np.asarray(canonical.dataobj)[::-1, ::-1, 0].T


def pixel_sides(image: nib.Nifti1Image, axis: int) -> np.ndarray:
    """Height and width in mm of a pixel of an axial slice."""
    ornt = nib.io_orientation(image.affine)[:, 0]
    zooms = image.header.get_zooms()
    return np.array([zooms[int(np.flatnonzero(ornt == world)[0])] for world in (1, 0)])


def brain_frame(levels: nib.Nifti1Image, axis: int) -> tuple[slice, slice]:
    """Rows and columns of axial slices that hold the brain, where the map is not 0, and a margin.

    One frame for all slices: so they have one scale.
    """
    canonical = nib.as_closest_canonical(levels)
    seen = (np.asarray(canonical.dataobj) != 0).any(axis=2)[::-1, ::-1].T
    margins = np.ceil(MARGIN_MM / pixel_sides(levels, axis)).astype(int)
    sides: list[slice] = []
    for flat, margin in zip((seen.any(axis=1), seen.any(axis=0)), margins, strict=True):
        places = np.flatnonzero(flat)
        if not places.size:
            return slice(None), slice(None)
        sides.append(slice(max(places[0] - margin, 0), places[-1] + 1 + margin))
    return sides[0], sides[1]


def picture_size(shape: tuple[int, ...], image: nib.Nifti1Image, axis: int) -> tuple[int, int]:
    """Width and height in pixels of a slice whose pixels are square."""
    sides = np.array(shape) * pixel_sides(image, axis)
    height, width = np.round(sides / sides.max() * SIDE).astype(int)
    return int(width), int(height)


def windowed(values: np.ndarray, modality: str) -> np.ndarray:
    """A slice as grey values 0 to 255: the brain window for CT, percentiles of the slice for MR."""
    low, high = BRAIN_WINDOW
    if modality != "ct":
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
    alpha = (
        np.asarray(
            to_picture(((levels > threshold) * (70 + strength * 100)).astype(np.uint8), size)
        )[..., None]
        / 255
    )
    pixels = np.asarray(plain) * (1 - alpha) + np.array(MAP_COLOUR) * alpha
    nearest = Image.fromarray(marked.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    inside = np.asarray(nearest) > 0
    pixels[inside & ~binary_erosion(inside, iterations=2)] = MARK_COLOUR
    return Image.fromarray(pixels.astype(np.uint8))


def address(picture: Image.Image) -> str:
    """A picture with its sides named, as an address that holds it."""
    named = picture.copy()
    draw = ImageDraw.Draw(named)
    width, height = named.size
    for text, x, anchor in (("R", 5, "lm"), ("L", width - 5, "rm")):
        place = (x, height // 2)
        draw.text(
            place, text, "white", None, anchor, stroke_width=2, stroke_fill="black", font_size=18
        )
    stream = io.BytesIO()
    named.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
