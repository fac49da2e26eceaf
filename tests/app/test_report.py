"""The report on paper: one page, the right side of the patient on the left, PDF where it can be."""

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from sqlmodel import Session, select

from app import report
from app.pictures import MARK_COLOUR
from app.store import Result
from tests.app.conftest import Site, upload
from tests.app.heads import AFFINE, detect_head, head_file, head_mask

needs_pango = pytest.mark.skipif(
    not report.can_make_pdf(), reason="needs pango: apt install libpango-1.0-0 libpangoft2-1.0-0"
)


@pytest.fixture
def scored(tmp_path):
    """A client, and the address of a study that has a result."""

    def make(**settings):
        site = Site(tmp_path / "data", solo=True, **settings)
        client = site.client(headers={"Accept": "text/html"})
        (arrived,) = upload(client, head_file(), run="ct", label="Bed 7").json()
        assert site.work(detect_head) == 1
        client.site = site
        return client, f"/studies/{arrived['study']['id']}"

    return make


def test_the_report_says_all_that_it_should(scored):
    client, study = scored()
    page = client.get(f"{study}/report")
    assert page.status_code == 200
    marked = head_mask().sum() * abs(np.linalg.det(AFFINE)) / 1000
    for said in (
        "Research software, not a medical device; not for diagnosis.",
        *(
            "Bed 7",
            "CT",
            "left frontal lobe, 12 mm deep",
            "right cerebellum, 3 mm deep",
            "dddddddddddd",
        ),
        *("noise 0.02 is unlike the training scans", "5 healthy scans", "100", f"{marked:.1f} ml"),
        *("Threshold", "At most one in 10 healthy scans shows any finding.", "Signature"),
    ):
        assert said in page.text, said
    assert "Date of birth" not in page.text
    captions = re.findall(r"<figcaption>(.+), z", page.text)
    assert captions == ["1. left frontal lobe, 12 mm deep", "2. right cerebellum, 3 mm deep"]
    assert page.text.count("<img") == 4  # two peaks, without and with marks


def test_the_site_says_which_patient_fields_a_report_has(scored):
    client, study = scored(report_fields=("name", "birth"))
    page = client.get(f"{study}/report").text
    assert "Date of birth" in page and 'class="blank"' in page
    assert "Bed 7</td>" not in page


def test_opinions_of_an_earlier_result_are_not_of_this_one(scored):
    client, study = scored()
    for said in (
        {"kind": "component", "value": "unsure", "component": 0},
        {"kind": "scan", "value": "agree", "comment": "clear"},
    ):
        assert client.post(f"/api{study}/opinions", json=said).status_code == 201
    page = client.get(f"{study}/report").text
    assert "<td>unsure</td>" in page
    assert "agree: clear" in page
    again = client.site.client().post(f"/api{study}/start", json={"run": "ct"})
    assert again.status_code == 200
    assert client.site.work(detect_head) == 1
    page = client.get(f"{study}/report").text
    assert "unsure" not in page
    assert "None was given." in page


@pytest.mark.slow
@needs_pango
def test_the_pdf_is_one_page(scored):
    client, study = scored()
    pdf = client.get(f"{study}/report.pdf")
    assert pdf.content.startswith(b"%PDF")
    assert pdf.headers["Content-Type"] == "application/pdf"
    assert pages_of(client, study) == 1


@pytest.mark.slow
@needs_pango
def test_a_report_with_much_to_say_is_one_page_too(scored):
    client, study = scored()
    flag = "distance of the intensity histogram 0.0499 is unlike the training scans (0.002 to 0.02)"
    with Session(client.app.state.engine) as session:
        result = session.exec(select(Result)).one()
        told = json.loads(result.report)
        told["flags"] = [f"as a whole unlike the training scans: {flag}", *[flag] * 7]
        third = told["components"][0] | {"peak_voxel": [30, 30, 25]}
        told["components"] = [*told["components"], *[third] * 7]
        told["n_components"] = 12
        told["promise"] = "At most one in 10 healthy scans shows any finding. " * 6
        result.report = json.dumps(told)
        session.add(result)
        session.commit()
    opinion = {"kind": "scan", "value": "disagree", "comment": "no lesion " * 20}
    assert client.post(f"/api{study}/opinions", json=opinion).status_code == 201
    page = client.get(f"{study}/report").text
    assert page.count("<img") == 6
    assert page.count(flag) == 8
    assert pages_of(client, study) == 1


def pages_of(client, study):
    return len(report.laid_out(client.get(f"{study}/report").text).pages)


def test_without_pango_the_page_says_to_print(scored, monkeypatch):
    client, study = scored()
    monkeypatch.setattr(report, "can_make_pdf", lambda: False)
    assert "print the page and choose PDF there" in client.get(f"{study}/report").text
    assert client.get(f"{study}/report.pdf").status_code == 501


def test_the_outline_lies_around_what_is_marked(scored):
    client, study = scored()
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', client.get(f"{study}/report").text)
    plain, marked = (Image.open(io.BytesIO(base64.b64decode(s))) for s in sources[:2])
    colour = np.abs(np.asarray(marked).astype(int) - MARK_COLOUR).max(axis=2) < 10
    assert plain.size == marked.size
    assert 50 < colour.sum() < 0.05 * colour.size
    assert not (np.abs(np.asarray(plain).astype(int) - MARK_COLOUR).max(axis=2) < 10).any()


def test_the_vendored_viewer_is_the_one_that_was_published():
    folder = report.STYLE.parent / "vendor"
    told = (folder / "niivue.txt").read_text()
    (digest,) = re.findall(r"sha256 ([0-9a-f]{64})", told)
    assert hashlib.sha256((folder / "niivue-0.69.0.umd.js").read_bytes()).hexdigest() == digest
    assert "NiiVue 0.69.0" in told
    assert "BSD 2-Clause License" in (folder / "LICENSE-niivue.txt").read_text()
