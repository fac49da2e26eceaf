"""Figures by their pixels."""

import io

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from evaluation.figures import views
from evaluation.figures.plots import (
    Layers,
    case_figure,
    curves_figure,
    histogram_figure,
    outline_figure,
)
from evaluation.figures.views import View, chosen_slices

SHAPE = (40, 32, 12)
SPACING = (1.0, 1.5, 4.0)
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
    _, across, up = views.PLANES[plane]
    assert view.size == (SHAPE[across] * SPACING[across], SHAPE[up] * SPACING[up])


def test_case_figure_shows_the_right_sided_lesion_on_the_viewers_left():
    image, _, lesion = head()
    png = case_figure(image, Layers(lesions=lesion), spacing=SPACING, slices=[8])
    picture = pixels(png)
    column, row, count = coloured(png, views.TRUTH_COLOUR)
    # the second panel: from the lesion's column to its ends
    dark = np.argwhere(picture.max(axis=-1) < 0.02)
    right_half = dark[dark[:, 1] > picture.shape[1] / 2]
    middle = (right_half[:, 1].min() + right_half[:, 1].max()) / 2
    assert count > 20 and column < middle and row < picture.shape[0] / 2


def test_overlays_are_drawn_only_when_given():
    image, brain, lesion = head()
    plain = case_figure(image, spacing=SPACING, slices=[8])
    layers = Layers(brain=brain, lesions=lesion, marked=lesion)
    full = case_figure(image, layers, spacing=SPACING, slices=[8])
    for colour in (views.BRAIN_COLOUR, views.TRUTH_COLOUR):
        assert coloured(full, colour)[2] > 20
        with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning):
            assert coloured(plain, colour)[2] == 0
    assert pixels(full).shape[1] > 2 * pixels(plain).shape[1]


def test_grey_scale_is_the_given_one():
    image, _, _ = head()
    levels = []
    for vmax in (1.0, 2.0):
        png = case_figure(image, spacing=SPACING, vmax_image=vmax, slices=[6])
        levels.append(np.median(pixels(png).max(axis=-1)))
    assert levels == pytest.approx([0.5, 0.25], abs=0.01)


def test_slices_are_where_the_lesions_are():
    image, brain, lesion = head()
    key = int(lesion.sum(axis=(0, 1)).argmax())
    chosen = chosen_slices(None, SHAPE[2], slice(0, 12), [None, lesion, brain])
    assert key in chosen and len(chosen) == 3 and chosen == sorted(chosen, reverse=True)
    assert chosen_slices(None, 12, slice(0, 12), [np.zeros(SHAPE), None]) == [8, 6, 3]
    assert chosen_slices(None, 1, slice(0, 1), [None]) == [0]
    with pytest.raises(ValueError, match=r"0\.\.11"):
        case_figure(image, spacing=SPACING, slices=[12])


def test_case_figure_on_awkward_input():
    image, _, lesion = head()
    nothing = np.zeros(SHAPE)
    empty = Layers(anomaly_map=nothing, map_max=0.5, marked=nothing)
    png = case_figure(nothing, empty, spacing=SPACING, title="$a_b$ 5%")
    assert png.startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="map_max"):
        case_figure(image, Layers(anomaly_map=image), spacing=SPACING)
    with pytest.raises(ValueError, match="image and truth"):
        case_figure(image, Layers(lesions=lesion.T), spacing=SPACING)
    with pytest.raises(ValueError, match="image and reconstruction"):
        case_figure(image, Layers(reconstruction=image[:-1]), spacing=SPACING)


def test_outline_figure():
    image, brain, _ = head()
    assert coloured(outline_figure(image, brain, spacing=SPACING), views.BRAIN_COLOUR)[2] > 100
    ct = np.where(brain, 30.0, -1024.0)
    png = outline_figure(ct, np.zeros(SHAPE), spacing=SPACING, window=(0, 80))
    assert png.startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="one shape"):
        outline_figure(image, brain.T, spacing=SPACING)


def test_a_curve_below_zero_is_drawn():
    """A loss may be negative: as many pixels have its colour as in the same curve above zero."""
    drawn = []
    for sign in (1, -1):
        curve = [(x, sign * (1 + x / 10)) for x in range(30)]
        png = curves_figure([("loss", "epoch", "loss", {"training": curve}, False)])
        drawn.append(coloured(png, "#1f77b4")[2])
    assert drawn[1] > 0.9 * drawn[0] > 200


def test_curves_are_four_in_a_row():
    panel = ("loss", "epoch", "loss", {"training": [(1.0, 2.0), (2.0, 1.0)]}, False)
    sizes = {}
    for count in (1, 4, 5):
        with Image.open(io.BytesIO(curves_figure([panel] * count))) as picture:
            sizes[count] = picture.size
    (one, height), (four, as_high), (as_wide, two) = (sizes[count] for count in (1, 4, 5))
    assert four == as_wide > 3 * one  # a margin is cut off
    assert height == as_high and two == pytest.approx(2 * height, abs=20)


def test_histogram_figure():
    assert histogram_figure(np.array([0.1, 0.1]), np.array([]), "constant").startswith(b"\x89PNG")
    for bad in ([], [np.nan]):
        with pytest.raises(ValueError, match="at least one score"):
            histogram_figure(np.array(bad), np.array([]))
