"""The review app as a reader meets it: in Chromium, from the login to the printed report.

The tests share one open study, as starting its viewer is what takes long.
"""

import re
import shutil
import threading
import time
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
import uvicorn
from PIL import Image
from scipy.ndimage import label
from sqlmodel import Session, select

from app.store import Opinion
from tests.app.conftest import PASSWORD, Site
from tests.app.heads import AFFINE, SHAPE, STRONG, detect_head, head_file, head_map, head_mask

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium"),
]

SERIOUS = ("serious", "critical")  # as axe-core names them
SOFTWARE_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
AXE = Path(__file__).parent / "assets" / "axe-4.10.3.min.js"
LONG = 120_000  # ms that a busy machine may take
VOXEL_ML = abs(np.linalg.det(AFFINE)) / 1000


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server on a free port, with a reader and an admin."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.user("reader", "reader")
    site.user("boss", "admin")
    config = uvicorn.Config(site.app, host="127.0.0.1", port=0, log_level="error", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    site.address = f"http://127.0.0.1:{port}"
    yield site
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def context(served):
    """A browser that notes every request and every fault that a page reports."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GL)
        context = browser.new_context(
            base_url=served.address, viewport={"width": 1280, "height": 800}
        )
        context.set_default_timeout(LONG)
        context.asked = []
        context.faults = []
        context.on("request", lambda request: context.asked.append(request.url))
        context.on(
            "console", lambda said: said.type == "error" and context.faults.append(said.text)
        )
        context.on("weberror", lambda error: context.faults.append(str(error.error)))
        yield context
        browser.close()


@pytest.fixture(scope="module")
def study(served, context, tmp_path_factory):
    """The page of a study that a reader logged in for, uploaded and waited for."""
    page = context.new_page()
    page.goto("/")
    assert page.url.endswith("/login?next=%2F")
    page.fill("[name=name]", "reader")
    page.fill("[name=password]", PASSWORD)
    page.click("main button")

    scan = tmp_path_factory.mktemp("upload") / "head.nii"
    scan.write_bytes(head_file())
    page.set_input_files("[name=file]", scan)
    page.select_option("#upload [name=run]", "ct")
    page.click("#upload button")
    page.wait_for_selector("tr[data-state=queued]")
    assert served.work(detect_head) == 1
    page.reload()
    page.click("tr[data-state=done] a")
    page.wait_for_selector("#viewer[data-ready]")
    page.wait_for_selector("#score-plot svg")
    return page


def picture(page):
    """The canvas as it looks, (rows, columns, 3)."""
    page.wait_for_timeout(300)
    shot = page.locator("#canvas").screenshot()
    return np.asarray(Image.open(BytesIO(shot)).convert("RGB")).astype(int)


def changed(one, other):
    """How many pixels of two pictures differ."""
    return int((np.abs(one - other).max(axis=-1) > 20).sum())


def coloured(shot):
    """How many pixels are not grey."""
    return int((np.ptp(shot, axis=-1) > 40).sum())


def set_slider(page, name, value):
    page.locator(f"#{name}").evaluate(
        "(slider, value) => { slider.value = value; "
        "slider.dispatchEvent(new Event('input', {bubbles: true})); }",
        value,
    )


def says(page, place, text):
    playwright.expect(page.locator(place)).to_have_text(text, timeout=LONG)


def has_opinions(page, count):
    playwright.expect(page.locator("#opinions li")).to_have_count(count, timeout=LONG)


def opinions(served):
    with Session(served.engine) as session:
        return list(session.exec(select(Opinion).order_by(Opinion.id)))


def test_the_marks_are_seen_and_hidden(study):
    with_marks = picture(study)
    study.uncheck("#overlays")
    bare = picture(study)
    study.check("#overlays")
    assert changed(with_marks, bare) > 200
    assert coloured(with_marks) > coloured(bare) + 200
    assert changed(with_marks, picture(study)) == 0


def test_the_window_changes_the_grey(study):
    centre = (slice(200, 450), slice(150, 400))  # brain of 35 HU
    for window, low, width in (("480,2500", -770, 2500), ("40,40", 20, 40), ("40,80", 0, 80)):
        study.select_option("#window", window)
        grey = np.median(picture(study)[centre])
        assert grey == pytest.approx(255 * (35 - low) / width, abs=5)


@pytest.mark.parametrize(("threshold", "strong"), [(2.7, True), (2.7, False), (5.0, False)])
def test_the_threshold_cuts_again_without_the_server(study, context, threshold, strong):
    before = len(context.asked)
    study.set_checked("#strong", strong)
    set_slider(study, "threshold", threshold)
    labels, count = label(head_map() > threshold, np.ones((3, 3, 3)))
    peaks = [head_map()[labels == number].max() for number in range(1, count + 1)]
    kept = [n for n, peak in enumerate(peaks, start=1) if not strong or peak > STRONG]
    ml = np.isin(labels, kept).sum() * VOXEL_ML
    says(study, "#cut", f"{ml:.1f} ml, pieces: {len(kept)}")
    assert len(context.asked) == before
    study.click("#threshold-back")
    says(study, "#cut", f"{head_mask().sum() * VOXEL_ML:.1f} ml, pieces: 2")
    study.set_checked("#strong", True)


def test_a_component_is_gone_to(study):
    shown = head_map() * head_mask()
    peaks = [np.argwhere(shown == top)[0] for top in (9.0, 6.0)]
    for number, voxel in enumerate(peaks):
        study.click(f".jump[data-component='{number}']")
        told = re.findall(r"[xyz] (-?\d+)", study.inner_text("#location"))
        wanted = (AFFINE @ [*voxel, 1])[:3]
        np.testing.assert_allclose(np.array(told, float), wanted, atol=0.6)  # told as whole mm
    study.locator("body").press("k")
    assert study.get_attribute(".jump[data-component='0']", "aria-current") == "true"


def test_the_views_differ(study):
    seen = [picture(study)]
    for key in ("2", "3", "4", "5"):
        study.locator("body").press(key)
        seen.append(picture(study))
        assert all(changed(seen[-1], earlier) > 2000 for earlier in seen[:-1])
    study.locator("body").press("1")
    assert changed(picture(study), seen[0]) == 0


def test_the_arrows_step_through_the_plane_that_is_shown(study):
    for key, axis in (("1", 2), ("2", 2), ("3", 1), ("4", 0)):
        study.locator("body").press(key)
        before = place(study)
        study.locator("body").press("ArrowUp")
        moved = np.abs(np.array(place(study)) - before)
        assert moved.argmax() == axis and 2 <= moved[axis] <= 4  # a voxel has about 3 mm
        study.locator("body").press("ArrowDown")
        assert place(study) == before
    study.locator("body").press("1")


def place(page):
    """The crosshair in whole mm."""
    return [int(mm) for mm in re.findall(r"[xyz] (-?\d+)", page.inner_text("#location"))]


def test_it_is_zoomed_about_the_crosshair_and_back(study):
    before = picture(study)
    study.hover("#canvas", position={"x": 200, "y": 300})
    study.keyboard.down("Shift")
    study.mouse.wheel(0, -100)
    study.mouse.wheel(0, -100)
    study.keyboard.up("Shift")
    near = picture(study)
    assert changed(before, near) > 5000
    assert study.evaluate(
        "import('/static/viewer.js').then(({nv}) => nv.scene.pan2Dxyzmm[3])"
    ) == pytest.approx(1.25**2)
    study.locator("body").press("-")
    study.locator("body").press("-")
    assert changed(before, picture(study)) == 0


def test_a_window_of_ones_own_is_dragged_and_left_again(study):
    before = picture(study)
    shown = study.evaluate("document.querySelector('#window').value")
    study.hover("#canvas", position={"x": 300, "y": 300})
    study.mouse.down(button="right")
    box = study.locator("#canvas").bounding_box()
    study.mouse.move(box["x"] + 500, box["y"] + 300, steps=3)
    study.mouse.up(button="right")
    # 200 pixels to the right: twice the width of brain 40/80
    assert study.locator("#window option:checked").inner_text() == "own 40/160"
    centre = (slice(200, 450), slice(150, 400))  # brain of 35 HU
    assert np.median(picture(study)[centre]) == pytest.approx(255 * (35 + 40) / 160, abs=5)
    study.select_option("#window", shown)
    assert changed(before, picture(study)) == 0
    study.dblclick("#canvas", position={"x": 20, "y": 20})
    assert study.evaluate(
        "import('/static/viewer.js').then(({nv}) => [nv.volumes[0].cal_min, nv.volumes[0].cal_max])"
    ) == [0, 80]
    study.click(".jump[data-component='0']")


def test_the_reconstruction_stands_beside(study):
    study.click("#side-by-side")
    study.wait_for_selector("#screen-healthy[data-ready]")
    study.wait_for_timeout(300)
    shot = study.locator("#canvas-healthy").screenshot()
    pixels = np.asarray(Image.open(BytesIO(shot)).convert("L"))
    assert (pixels > 60).mean() > 0.1
    study.click("#side-by-side")
    assert study.locator("#screen-healthy").is_hidden()


def test_opinions_are_kept(study, served):
    study.click("[data-verdict='1'] button[value=false]")
    study.wait_for_selector("[data-verdict='1'] button[aria-pressed=true]")
    study.check("#whole [value=agree]")
    study.fill("#whole textarea", "left one is real")
    study.locator(".panel").evaluate("panel => { panel.scrollTop = panel.scrollHeight; }")
    study.click("#whole button")
    says(study, "#said", "Saved.")
    playwright.expect(study.locator("#said")).to_be_in_viewport()
    has_opinions(study, 2)
    of_component, of_scan = opinions(served)
    assert (of_component.kind, of_component.value, of_component.component) == (
        "component",
        "false",
        1,
    )
    assert (of_scan.value, of_scan.comment) == ("agree", "left one is real")
    assert of_scan.threshold == 2.0
    assert 0 < of_scan.seconds < 3600


def drawn(page):
    """How many voxels are drawn."""
    return page.evaluate(
        "import('/static/viewer.js').then(({nv}) => nv.drawBitmap.reduce((sum, v) => sum + v, 0))"
    )


def stroke(page, right):
    """Draw a line on the axial picture, from the crosshair by so many pixels."""
    place = page.evaluate(
        "import('/static/viewer.js').then(({nv}) => "
        "nv.frac2canvasPosWithTile(nv.scene.crosshairPos, 0).pos)"
    )
    box = page.locator("#canvas").bounding_box()
    x = box["x"] + place[0]
    y = box["y"] + place[1]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right, y, steps=4)
    page.mouse.up()
    page.wait_for_timeout(200)


def test_a_correction_is_drawn_on_the_grid_of_the_scan(study, served):
    study.click(".jump[data-component='0']")
    study.click("[data-tool=draw]")
    stroke(study, 30)
    once = drawn(study)
    stroke(study, -60)
    assert drawn(study) > once > 1
    study.click("#undo")
    assert drawn(study) == once
    study.click("#save-drawing")
    has_opinions(study, 3)

    (given,) = [one for one in opinions(served) if one.kind == "correction"]
    file = served.settings.data / "corrections" / f"{given.file}.nii.gz"
    image = nib.load(file)
    voxels = np.asarray(image.dataobj)
    assert image.shape == SHAPE
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-3)
    assert voxels.sum() == once
    places = np.argwhere(voxels)
    peak = np.unravel_index(np.argmax(head_map()), SHAPE)
    assert np.abs(places - peak).max(axis=1).min() == 0  # it begins at the crosshair
    # to the right of the picture is the patient's left, where the first axis runs to
    assert places[:, 0].max() > peak[0] and places[:, 0].min() == peak[0]


def test_the_marks_can_be_what_a_drawing_begins_with(study):
    study.click("#clear")
    assert drawn(study) == 0
    study.click("#take-mask")
    assert drawn(study) == head_mask().sum()
    study.click("[data-pen='0']")
    stroke(study, 20)
    assert 0 < drawn(study) < head_mask().sum()
    study.click("[data-tool=look]")


def test_a_drawing_that_is_not_saved_is_not_left_without_a_question(study):
    asked = []
    address = study.url
    study.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    study.evaluate("setTimeout(() => location.assign('/'))")
    study.wait_for_timeout(1000)
    assert asked == ["beforeunload"]
    assert study.url == address


def test_a_distance_is_measured(study):
    before = picture(study)
    study.click("[data-tool=measure]")
    stroke(study, 80)
    assert changed(before, picture(study)) > 50
    study.click("[data-tool=look]")
    assert changed(before, picture(study)) < 1000


def test_a_picture_is_saved(study):
    with study.expect_download() as coming:
        study.click("#screenshot")
    shot = Image.open(coming.value.path())
    assert shot.format == "PNG"
    assert np.asarray(shot.convert("L")).std() > 10


# a folder cannot be dropped by a program: the browser's answer to what a file is stands for it
DROP = """isFolder => {
  DataTransferItem.prototype.webkitGetAsEntry = () => ({ isDirectory: isFolder });
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File(["no scan"], "dropped"));
  document.getElementById("upload").dispatchEvent(
    new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""


def test_a_file_is_dropped_and_a_folder_is_said_to_be_one(study, context):
    page = context.new_page()
    page.goto("/")
    page.evaluate(DROP, True)
    says(page, "#upload-outcome li", "dropped: Not taken. A folder; put it into a zip file. ")
    page.reload()
    page.evaluate(DROP, False)
    refused = "dropped: Not taken. Not a readable NIfTI file"
    playwright.expect(page.locator("#upload-outcome li")).to_contain_text(refused, timeout=LONG)
    page.close()
    (told,) = [fault for fault in context.faults if "422" in fault]  # as it should be
    context.faults.remove(told)


def test_the_report_is_shown_and_printed(study, context):
    page = context.new_page()
    page.goto(study.url + "/report")
    assert page.locator("figure img").count() == 4
    assert all(page.locator("img").evaluate_all("all => all.map((one) => one.naturalWidth > 100)"))
    text = page.inner_text("main")
    for said in (
        "not for diagnosis",
        "left frontal lobe, 12 mm deep",
        "left one is real",
        "noise 0.02",
        "9",
    ):
        assert said in text
    page.evaluate("window.print = () => { document.title = 'printed'; }")
    page.click("#print")
    assert page.title() == "printed"
    page.emulate_media(media="print")
    assert page.locator(".actions").is_hidden()
    page.close()


@pytest.mark.parametrize("path", ["/", "study", "report", "/account"])
def test_axe_finds_no_serious_fault(study, context, path):
    page = context.new_page()
    if path == "study":  # the one that is open: to start a viewer takes long
        page.close()
        page = study
    else:
        page.goto(study.url + "/report" if path == "report" else path)
    page.evaluate(AXE.read_text())
    faults = page.evaluate("axe.run().then((found) => found.violations)")
    told = [(f["id"], f["nodes"][0]["html"]) for f in faults if f["impact"] in SERIOUS]
    assert told == []
    if page is not study:
        page.close()


def test_a_reader_sees_no_administration(study, context):
    assert study.locator("header a", has_text="Users").count() == 0
    for path in ("/users", "/audit", "/api/export/opinions.tsv"):
        assert context.request.get(path).status == 403
    token = study.evaluate("document.querySelector('meta[name=csrf-token]').content")
    form = {"name": "me2", "password": PASSWORD, "role": "admin", "csrf": token}
    assert context.request.post("/users", form=form).status == 403


def test_who_logs_out_is_out(study, context):
    address = study.url
    study.click("header button")
    study.wait_for_selector("[name=password]")
    study.goto(address)
    assert "/login?next=" in study.url
    assert context.request.get(f"/api{urlsplit(address).path}/scan.nii.gz").status == 401


def test_no_other_host_was_asked_and_no_page_was_at_fault(context, served):
    asked = {urlsplit(url).netloc for url in context.asked if url.startswith("http")}
    assert asked == {urlsplit(served.address).netloc}
    assert {url.partition(":")[0] for url in context.asked} <= {"http", "blob", "data"}
    expected = [fault for fault in context.faults if "403" in fault or "401" in fault]
    assert context.faults == expected
