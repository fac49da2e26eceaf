"""Figures by their pixels and pages by their parsed HTML."""

import io
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from evaluation.figures import plots
from evaluation.figures.plots import View, case_figure, histogram_figure, outline_figure
from pipelines.pages.html import DISCLAIMER, Section, page

SHAPE, SPACING = (40, 32, 12), (1.0, 1.5, 4.0)
WHOLE = tuple(slice(0, n) for n in SHAPE)


def head():
    """An ellipsoid brain and a lesion in the patient's right front, high up (RAS+)."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    brain = (grid**2).sum(axis=0) < 0.8
    lesion = ((grid - np.array([0.45, 0.3, 0.4])[:, None, None, None]) ** 2).sum(axis=0) < 0.05
    return 0.5 * brain, brain, lesion


def pixels(png):
    return imread(io.BytesIO(png))[..., :3]


def coloured(png, colour):
    """Centre (column, row) and number of the pixels close to a colour."""
    target = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    rows, columns = np.nonzero(np.abs(pixels(png) - target).max(axis=-1) < 0.12)
    return columns.mean(), rows.mean(), len(rows)


class Reader(HTMLParser):
    """Collects tags with attributes, and the text of each table cell."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.cells, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text = "" if tag in ("td", "th") else self.text

    def handle_data(self, data):
        self.text += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cells.append(self.text)


@pytest.mark.parametrize(
    ("plane", "index", "seen"),
    [("axial", 9, (5, 3)), ("coronal", 28, (5, 2)), ("sagittal", 34, (3, 2))],
)
def test_display_is_radiological(plane, index, seen):
    volume = np.zeros(SHAPE)
    volume[34, 28, 9] = 1  # right, anterior, superior
    view = View(plane, index, SPACING, WHOLE)
    column, row = seen  # from the top left, which is right (or anterior) and anterior (or superior)
    assert np.argwhere(view.cut(volume)).tolist() == [[row, column]]
    _, across, up = plots.PLANES[plane]
    assert view.size == (SHAPE[across] * SPACING[across], SHAPE[up] * SPACING[up])


def test_case_figure_shows_the_right_sided_lesion_on_the_viewers_left():
    image, _, lesion = head()
    png = case_figure(image, spacing=SPACING, truth=lesion, slices=[8])
    picture = pixels(png)
    column, row, count = coloured(png, plots.TRUTH_COLOUR)
    dark = np.argwhere(
        picture.max(axis=-1) < 0.02
    )  # the second panel: from the lesion's column to its ends
    right_half = dark[dark[:, 1] > picture.shape[1] / 2]
    middle = (right_half[:, 1].min() + right_half[:, 1].max()) / 2
    assert count > 20 and column < middle and row < picture.shape[0] / 2


def test_overlays_are_drawn_only_when_given():
    image, brain, lesion = head()
    plain = case_figure(image, spacing=SPACING, slices=[8])
    full = case_figure(image, spacing=SPACING, slices=[8], brain=brain, truth=lesion, mask=lesion)
    for colour in (plots.BRAIN_COLOUR, plots.TRUTH_COLOUR):
        assert coloured(full, colour)[2] > 20
        with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning):
            assert coloured(plain, colour)[2] == 0
    assert pixels(full).shape[1] > 2 * pixels(plain).shape[1]


def test_grey_scale_is_the_given_one():
    image, _, _ = head()
    levels = [
        np.median(
            pixels(case_figure(image, spacing=SPACING, vmax_image=vmax, slices=[6])).max(axis=-1)
        )
        for vmax in (1.0, 2.0)
    ]
    assert levels == pytest.approx([0.5, 0.25], abs=0.01)


def test_slices_are_where_the_truth_is():
    image, brain, lesion = head()
    key = int(lesion.sum(axis=(0, 1)).argmax())
    chosen = plots._chosen_slices(None, SHAPE[2], slice(0, 12), [None, lesion, brain])
    assert key in chosen and len(chosen) == 3 and chosen == sorted(chosen, reverse=True)
    assert plots._chosen_slices(None, 12, slice(0, 12), [np.zeros(SHAPE), None]) == [8, 6, 3]
    assert plots._chosen_slices(None, 1, slice(0, 1), [None]) == [0]
    with pytest.raises(ValueError, match=r"0\.\.11"):
        case_figure(image, spacing=SPACING, slices=[12])


def test_case_figure_on_awkward_input():
    image, _, lesion = head()
    nothing = np.zeros(SHAPE)
    empty = {"anomaly_map": nothing, "map_max": 0.5, "mask": nothing, "title": "$a_b$ 5%"}
    assert case_figure(nothing, spacing=SPACING, **empty).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="map_max"):
        case_figure(image, spacing=SPACING, anomaly_map=image)
    with pytest.raises(ValueError, match="image and truth"):
        case_figure(image, spacing=SPACING, truth=lesion.T)
    with pytest.raises(ValueError, match="image and reconstruction"):
        case_figure(image, spacing=SPACING, reconstruction=image[:-1])


def test_outline_figure():
    image, brain, _ = head()
    assert coloured(outline_figure(image, brain, spacing=SPACING), plots.BRAIN_COLOUR)[2] > 100
    ct = np.where(brain, 30.0, -1024.0)
    assert outline_figure(ct, np.zeros(SHAPE), spacing=SPACING, window=(0, 80)).startswith(
        b"\x89PNG"
    )
    with pytest.raises(ValueError, match="one shape"):
        outline_figure(image, brain.T, spacing=SPACING)


def test_histogram_figure():
    assert histogram_figure(np.array([0.1, 0.1]), np.array([]), "constant").startswith(b"\x89PNG")
    for bad in ([], [np.nan]):
        with pytest.raises(ValueError, match="at least one score"):
            histogram_figure(np.array(bad), np.array([]))


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (0.87654, "0.877"),
        (np.float32(0.5), "0.500"),
        (99.96, "100"),
        (12.345, "12.3"),
        (1234.5, "1234"),
        (0.0, "0.00"),
        (-0.25, "\u22120.250"),
        (1.5e-5, "1.50e-05"),
        (float("inf"), "\u221e"),
        (7, "7"),
        (np.int64(12345), "12345"),
        (True, "True"),
        ("a<b", "a<b"),
        (None, "\u2013"),
        (np.nan, "\u2013"),
        (np.float32("nan"), "\u2013"),
    ],
)
def test_cells(cell, text):
    html = page("t", [Section("s", table=(["column"], [[cell]]))])
    assert Reader(html).cells == ["column", text]
    assert ('title="not defined"' in html) == (text == "\u2013")


def test_page_is_self_contained_and_escaped():
    png = histogram_figure(np.array([0.1, 0.2]), np.array([0.3]))
    sections = [
        Section("<script>alert(1)</script>", "one & two\n\nthree", images=[('a "caption"', png)]),
        Section("rows", table=(["model", "dice"], [["vae", 0.5], {"dice": 0.25}])),
    ]
    html = page("Title <b>", sections)
    reader = Reader(html)
    names = [name for name, _ in reader.tags]
    assert "script" not in names and "b" not in names and "link" not in names
    assert names.count("p") == 2 and names.count("section") == 2
    (image,) = [attributes for name, attributes in reader.tags if name == "img"]
    assert image["src"].startswith("data:image/png;base64,") and image["alt"] == 'a "caption"'
    assert "http" not in html and "url(" not in html
    assert reader.cells == ["model", "dice", "vae", "0.500", "\u2013", "0.250"]
    assert DISCLAIMER in html and "not a medical device" in DISCLAIMER and "diagnosis" in DISCLAIMER


def test_page_refuses_what_does_not_fit():
    for row in ([1], [1, 2, 3], {"c": 1}):
        with pytest.raises(ValueError, match="table 'rows'"):
            page("t", [Section("rows", table=(["a", "b"], [row]))])
    with pytest.raises(ValueError, match="PNG"):
        page("t", [Section("s", images=[("jpeg", b"\xff\xd8")])])
