"""A small head with two lesions, and a detector that knows where they are."""

import io
import json

import nibabel as nib
import numpy as np

from app.detect import save, write
from app.jobs import Scored
from app.pictures import Layers, as_png, three_planes
from evaluation.postprocess import components, location_of_maximum

SHAPE = (60, 66, 52)  # three lengths: equal ones hide a turned axis
# the first axis runs to the left, and the head is a little tilted
AFFINE = np.array(
    [[-2.9, 0, 0, 86], [0, 2.98, -0.31, -89], [0, 0.31, 2.98, -88], [0, 0, 0, 1]], float
)
THRESHOLD = 2.0
STRONG = 4.0
LESIONS = (((20, 33, 30), 4.2, 9.0), ((41, 22, 26), 3.2, 6.0), ((32, 48, 20), 2.4, 3.0))


def distance(centre):
    """From a voxel, in voxels, over the array."""
    grid = np.stack(np.indices(SHAPE), axis=-1)
    return np.linalg.norm(grid - centre, axis=-1)


def head():
    """A CT of a head in HU: skull 900, brain 35 with a grain, lesions 70, air -1000."""
    inside = distance(np.array(SHAPE) / 2)
    grain = np.random.default_rng(0).normal(0, 3, SHAPE)
    voxels = np.where(inside < 23, 35 + grain, -1000.0)
    voxels[(inside >= 23) & (inside < 25)] = 900
    for centre, radius, _ in LESIONS:
        voxels[distance(centre) < radius] = 70
    return voxels.round().astype(np.int16)


def head_file():
    """The head as the bytes of a NIfTI file."""
    image = nib.Nifti1Image(head(), AFFINE)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 1)
    stream = io.BytesIO()
    image.file_map["image"].fileobj = stream
    image.to_file_map(image.file_map)
    return stream.getvalue()


def head_map():
    """The map: each lesion falls off from its peak; the third one is weak. 0 outside the brain."""
    levels = np.full(SHAPE, 0.5, np.float32)
    for centre, radius, peak in LESIONS:
        levels = np.maximum(levels, peak - (peak - THRESHOLD) * distance(centre) / radius)
    levels[distance(np.array(SHAPE) / 2) >= 23] = 0
    return levels.astype(np.float32)


def head_mask():
    """What exceeds the threshold in pieces with a strong peak."""
    levels = head_map()
    marked = levels > THRESHOLD
    marked &= distance(LESIONS[2][0]) > LESIONS[2][1] + 1
    return marked


def detect_head(scan, job, folder, say, settings=None):
    """Stands in for norma: the files and the report of a real result, in milliseconds."""
    image = nib.Nifti1Image.from_filename(scan)
    levels = head_map()
    marked = head_mask()
    say("scoring", 0.5)
    for name, values in (("map", levels), ("mask", marked.astype(np.uint8))):
        save(nib.Nifti1Image(values, image.affine), folder / f"{name}.nii.gz")
    healthy = np.clip(head() / 80, 0, 1).astype(np.float32)
    save(nib.Nifti1Image(healthy, image.affine), folder / "reconstruction.nii.gz")
    scores = {"scores": [1.1, 1.4, 1.6, 2.0, 2.2], "of": "5 healthy scans"}
    write(folder / "reference.json", json.dumps(scores).encode())
    found = components(marked, levels, image.affine)
    for component, place in zip(
        found, ("left frontal lobe, 12 mm deep", "right cerebellum, 3 mm deep"), strict=True
    ):
        component["place"] = place
    report = {
        "id": job.study_id,
        "status": "scored",
        "norma": "0.1.0",
        "score": 9.0,
        "percentile": 100.0,
        "percentile_of": "5 healthy scans",
        "promise": "At most one in 10 healthy scans shows any finding.",
        "threshold": THRESHOLD,
        "component_threshold": STRONG,
        "anomalous_mm3": float(marked.sum() * abs(np.linalg.det(AFFINE))),
        "n_components": len(found),
        "components": found,
        "maximum": location_of_maximum(levels, image.affine),
        "flags": ["noise 0.02 is unlike the training scans"],
    }
    report = json.loads(json.dumps(report, default=np.ndarray.tolist))
    write(folder / "report.json", json.dumps(report).encode())
    mask = nib.Nifti1Image(marked.astype(np.uint8), image.affine)
    layers = Layers(image, nib.Nifti1Image(levels, image.affine), mask, "ct", THRESHOLD)
    write(folder / "first.png", as_png(three_planes(layers, report)))
    return Scored(report, "d" * 64, 0.01)
