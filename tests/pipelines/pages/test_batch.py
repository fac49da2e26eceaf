"""The page of a batch: order, places in words, pictures beside it, nothing from elsewhere."""

import io
import re

import nibabel as nib
import numpy as np
from PIL import Image

from pipelines.detect.report import Detection, Maximum, Report
from pipelines.detect.thumbnail import thumbnail
from pipelines.pages.batch import batch_page
from preprocessing.images import Grid
from preprocessing.prepare import Prepared


def scored(id, score, **more):
    found = {
        "percentile": 50.0,
        "anomalous_mm3": 1500.0,
        "n_components": 0,
        "promise": "One in ten.",
    }
    return Report(id=id, status="scored", score=score, run="t1", **(found | more))


def component(**more):
    place = {"centre_voxel": [0, 0, 0], "peak_voxel": [0, 0, 0], "centre_mm": [0, 0, 0]}
    place |= {"peak_mm": [0, 0, 0], "centre_atlas_mm": [0, 0, 0], "peak_atlas_mm": [0, 0, 0]}
    return {"volume_mm3": 2000.0, "n_voxels": 9, "peak": 3.0, "mean": 2.0} | place | more


def test_failures_first_then_the_highest_scores(tmp_path):
    (tmp_path / "b b_picture.png").write_bytes(b"")
    found = [
        component(volume_mm3=900.0, place="right insula, 3 mm deep", strength=4.0),
        component(place="left frontal lobe, 9 mm deep", p_value=0.1, strength=3.0),
    ]
    reports = [
        scored("a", 1.0, flags=["noise <3>"]),
        scored("b b", 2.0, n_components=1, components=found),
        Report(id="c", status="not scored", reason="c.nii: damaged"),
    ]
    html = batch_page(reports, tmp_path)
    rows = re.findall(r"<tr.*?</tr>", html, re.S)[1:]
    assert [re.search(r'data-sort="([^"]*)"', row).group(1) for row in rows] == ["c", "b b", "a"]
    assert "c.nii: damaged" in rows[0] and 'class="failed"' in rows[0]
    assert 'src="b%20b_picture.png"' in rows[1] and 'loading="lazy"' in rows[1]
    assert "2.0 ml, left frontal lobe, 9 mm deep, p 0.1" in rows[1] and ">1.5</td>" in rows[1]
    assert "noise &lt;3&gt;" in rows[2] and "<img" not in rows[2]
    assert "3 scans by the run t1" in html and "One in ten." in html
    assert "not a medical device" in html
    assert not re.search(r"(src|href)=.(https?:|//)", html)


def test_a_page_of_a_thousand_scans_holds_no_picture_itself(tmp_path):
    for i in range(1000):
        (tmp_path / f"s{i}_picture.png").write_bytes(b"x" * 10_000)
    html = batch_page([scored(f"s{i}", float(i)) for i in range(1000)], tmp_path)
    assert html.count("<img") == 1000 and len(html) < 1_500_000


def test_the_picture_shows_the_slice_of_the_maximum_with_the_right_on_the_left():
    """A brain of 40 x 60 x 20 voxels with a mark at the patient's right, front."""
    shape = (60, 80, 30)
    brain = np.zeros(shape, bool)
    brain[10:50, 10:70, 5:25] = True
    affine = np.eye(4)
    affine[:3, 3] = (-30, -40, -15)
    grid = Grid(shape, affine)
    image = np.where(brain, 0.5, 0).astype(np.float32)
    image[:, :, 12] *= 1.5
    marked = np.zeros(shape, np.uint8)
    marked[40:48, 56:66, 12] = 1
    home = nib.Nifti1Image(marked, affine)
    highest = Maximum(voxel=[44, 60, 12], mm=[14, 20, -3], value=9.0, atlas_mm=[14, 20, -3])
    report = scored("a", 1.0, maximum=highest)
    prepared = Prepared(image, brain, grid, grid, np.eye(4))
    png = thumbnail(prepared, Detection(home, home, report))
    picture = np.asarray(Image.open(io.BytesIO(png)))
    assert picture.shape == (68, 48, 3)  # the brain and 4 voxels around it
    orange = (picture[..., 0] > picture[..., 2] + 20).nonzero()
    rows = (orange[0].min(), orange[0].max())
    columns = (orange[1].min(), orange[1].max())
    assert rows == (8, 17) and columns == (6, 13)  # top is front, left is the patient's right
    assert picture[34, 24].tolist() == [191] * 3  # 0.75 of 255: the slice of the maximum


def test_the_page_counts_the_scans_for_which_nothing_is_promised(tmp_path):
    gate = {"verdict": "scored with warning", "p_value": 0.05, "distance": 9.0}
    unlike = {"gate": gate | {"because": ["noise"]}, "promise": "Not promised for this scan: x."}
    like = {"gate": gate | {"verdict": "scored", "because": []}}
    html = batch_page([scored("a", 1.0, **unlike), scored("b", 2.0, **like)], tmp_path)
    assert "One in ten. Not promised for 1 of the 2 scans: see their flags." in html
    assert "Not promised for this scan: x." in batch_page([scored("a", 1.0, **unlike)], tmp_path)
    assert "Not promised" not in batch_page([scored("b", 2.0, **like)], tmp_path)
