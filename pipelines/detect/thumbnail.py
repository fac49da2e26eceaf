"""A small picture of a scored scan: its most anomalous axial slice, and what is marked on it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from evaluation.checks import bounding_box
from evaluation.figures.views import MARKED_COLOUR
from pipelines.detect.report import Detection
from preprocessing.prepare import Prepared
from preprocessing.register import carry_mask

SIDE = 120  # pixels of the longer side
OPACITY = 0.6


def thumbnail(prepared: Prepared, detection: Detection) -> bytes:
    """PNG of the axial slice in atlas space where the map is highest, in radiological display."""
    index = slice_of_maximum(prepared, detection)
    marked = np.asarray(detection.mask.dataobj) > 0
    if marked.any():
        marked = carry_mask(marked, prepared.home, prepared.grid, prepared.scan_from_atlas)
        marked = marked[:, :, index]
    else:
        marked = np.zeros(prepared.brain.shape[:2], bool)
    grey = prepared.channels[0][:, :, index].clip(0, 1)[..., None].repeat(3, -1)
    colour = np.array([int(MARKED_COLOUR[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    grey[marked] = (1 - OPACITY) * grey[marked] + OPACITY * colour

    box = bounding_box(np.asarray(prepared.brain.any(2)), margin=4)
    if box:
        grey = grey[box]
    picture = (grey.transpose(1, 0, 2)[::-1, ::-1] * 255).round().astype(np.uint8)
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def slice_of_maximum(prepared: Prepared, detection: Detection) -> int:
    """Index of the atlas slice that the highest map value lies in."""
    assert detection.report.maximum
    place = [*detection.report.maximum.atlas_mm, 1]
    index = round(float((np.linalg.inv(prepared.grid.affine) @ place)[2]))
    return int(np.clip(index, 0, prepared.brain.shape[2] - 1))
