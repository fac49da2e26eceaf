"""The report of a study on one page: as HTML to look at and print, and as PDF."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import nibabel as nib
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from PIL import Image, ImageFile

from app import opinions, pages
from app.api import StudyId, database, study_or_404
from app.pictures import Layers, as_png, key_slices
from app.security import Reader, Visitor
from app.store import Result, Study
from app.studies import result_folder, scan_path

router = APIRouter(include_in_schema=False)

STYLE = Path(__file__).parent / "static" / "report.css"


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
    # the findings of an earlier result had other numbers
    of_this = [one for one in said if one.result == result.id]
    return pages.page(
        request,
        "report.html",
        visitor,
        study=study,
        result=result,
        report=report,
        pictures=pictures(settings.data, study, result, report),
        verdicts={one.component: one.value for one in of_this if one.kind == "component"},
        opinions=list({one.user: one for one in of_this if one.kind == "scan"}.values()),
        corrections=sum(one.kind == "correction" for one in said),
        fields=settings.report_fields,
        is_pdf=is_pdf,
        can_make_pdf=is_pdf or can_make_pdf(),
    )


def pictures(
    data: Path, study: Study, result: Result, report: dict[str, Any]
) -> list[dict[str, Any]]:
    """Key slices without and with map and marks, as addresses that hold them."""
    folder = result_folder(data, result.id)
    paths = (scan_path(data, study.id), folder / "map.nii.gz", folder / "mask.nii.gz")
    scan, levels, marked = (nib.Nifti1Image.from_filename(path) for path in paths)
    layers = Layers(scan, levels, marked, study.modality, report["threshold"])
    return [
        {
            "plain": address(one.plain),
            "marked": address(one.marked),
            "number": one.number,
            "place": one.place,
            "z_mm": one.z_mm,
        }
        for one in key_slices(layers, report)
    ]


def address(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(as_png(picture)).decode()
