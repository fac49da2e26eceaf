"""A memory of rejected findings: its formula by hand, and what it takes from a map."""

import json

import numpy as np
import pytest

from pipelines.detect.batch import result_digest
from pipelines.detect.config import Postprocess
from pipelines.detect.detector import NativeMap, cut
from pipelines.detect.folder import seal
from pipelines.detect.memory import (
    Entry,
    Memory,
    damping,
    likeness,
    read_memory,
    recall,
    shape_of,
    write_memory,
)
from pipelines.detect.points import Point
from pipelines.detect.run import load_run
from preprocessing.files import file_digest
from preprocessing.images import Grid
from preprocessing.scans import InputError
from tests.conftest import oblique_affine

PLAIN = Postprocess(median=0, rim_mm=0, closing_mm=0, min_volume_mm3=0)
AT = Point(point="finding", voxel=1.0, component=2.0)


def entry(number=1, **changes):
    values = {"place_mm": [10, -20, 30], "volume_mm3": 500, "peak": 3.0, "mean": 2.0}
    values |= {"elongation": 0.5, "compactness": 0.8, "study": f"study-{number}", "reader": "ann"}
    return Entry(**(values | {"number": number, "date": "2026-11-26"} | changes))


def alike(one, *others):
    return likeness(one.vector, np.array([other.vector for other in others]))


def test_likeness_is_that_of_the_formula():
    one = entry()
    moved = entry(place_mm=[10, -26, 38])  # 6 and 8 mm: one unit of 10 mm
    doubled = entry(volume_mm3=1000)
    brighter = entry(peak=4.5, mean=3.0)  # a factor of 1.5 each
    longer = entry(elongation=0.75)
    all_at_once = entry(place_mm=[10, -26, 38], volume_mm3=250, compactness=0.55)
    found = alike(one, one, moved, doubled, brighter, longer, all_at_once)
    expected = np.exp(-0.5 * np.array([0, 1, 1, 2, 1, 3]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    unknown = entry(elongation=None, compactness=None)
    assert alike(longer, unknown)[0] == 1  # a shape that is not known is not held against it


def test_one_entry_halves_and_more_than_three_do_no_more():
    assert damping(np.array([])) == 1
    assert damping(np.array([1.0])) == 0.5
    assert damping(np.array([0.4, 1.0])) == pytest.approx(0.5 * 0.8)
    assert damping(np.ones(3)) == damping(np.ones(50)) == 0.125
    rng = np.random.default_rng(0)
    for _ in range(100):  # undo of any entry never damps more
        known = rng.random(rng.integers(1, 8))
        fewer = np.delete(known, rng.integers(known.size))
        assert damping(known) <= damping(fewer)


def test_the_shape_of_a_box_and_of_a_ball():
    affine = oblique_affine((30, 40, 50), (2.0, 1.0, 0.5), np.zeros(3), degrees=25)
    box = np.argwhere(np.ones((10, 12, 16), bool))  # 20 x 12 x 8 mm
    elongation, compactness = shape_of(box, affine)
    assert elongation == pytest.approx(1 - 8 / 20)
    # a box has the variance side²/12 along each axis, an ellipsoid axis²/5
    assert compactness == pytest.approx(12**1.5 / (4 / 3 * np.pi * 5**1.5))
    index = np.indices((41, 41, 41)) - 20
    ball = np.argwhere((index**2).sum(0) <= 18**2)
    assert shape_of(ball, np.eye(4)) == pytest.approx((0, 1), abs=0.01)
    assert shape_of(box[:1], np.eye(4))[0] == 0  # one voxel is a cube


@pytest.fixture
def scan():
    """Three cubes of 4 x 4 x 4 voxels with peaks 3, 3 and 17, in an oblique scan off the atlas."""
    shape = (40, 36, 30)
    affine = oblique_affine(shape, (1.0, 1.5, 2.0), np.array([5.0, -10, 20]))
    values = np.zeros(shape, np.float32)
    corners = {"near": (5, 5, 5), "far": (25, 20, 18), "strong": (5, 25, 18)}
    peaks = {"near": 3.0, "far": 3.0, "strong": 17.0}
    for name, (x, y, z) in corners.items():
        values[x : x + 4, y : y + 4, z : z + 4] = 1.5
        values[x + 1, y + 1, z + 1] = peaks[name]
    scan_from_atlas = oblique_affine((1, 1, 1), (-1, -1, 1), np.array([3.0, 4, 5]), degrees=12)
    native = NativeMap(values, np.ones(shape, bool), Grid(shape, affine))
    return native, scan_from_atlas, corners


def remembered(scan, name, number=1):
    """An entry with the features of a cube, worked out by hand."""
    native, scan_from_atlas, corners = scan
    peak = np.array([*(np.array(corners[name]) + 1), 1.0])
    place = np.linalg.solve(scan_from_atlas, native.grid.affine @ peak)[:3]
    top = 17.0 if name == "strong" else 3.0
    features = {"place_mm": place.tolist(), "volume_mm3": 64 * 3.0, "peak": top}
    features |= {"mean": (63 * 1.5 + top) / 64, "elongation": 0.5, "compactness": None}
    return entry(number, **features)


def marks(scan, marked):
    _, _, corners = scan
    return {name for name, corner in corners.items() if marked[tuple(np.array(corner) + 1)]}


def test_a_finding_like_a_rejected_one_is_not_marked_and_its_report_says_whose_word_that_was(scan):
    native, scan_from_atlas, _ = scan
    assert marks(scan, cut(native, AT, PLAIN)) == {"near", "far", "strong"}
    memory = Memory(entries=[remembered(scan, "near", 7), entry(9)])
    marked, recalled = recall(memory, native, AT, PLAIN, scan_from_atlas)
    assert marks(scan, marked) == {"far", "strong"} and marked.sum() == 128
    (taken,) = recalled.taken
    assert taken.strength == 3 and taken.damped == pytest.approx(1.5, rel=1e-4)
    assert taken.volume_mm3 == pytest.approx(192) and taken.peak_voxel == [6, 6, 6]
    (because,) = taken.because
    assert (because.entry, because.study, because.reader) == (7, "study-7", "ann")
    assert because.likeness == pytest.approx(1, abs=1e-4)
    assert recalled.flags == [
        "findings not marked, as they are like what readers have rejected: 1 "
        "(by the run's memory, entries 7)"
    ]


def test_what_is_stronger_than_eight_levels_stays_whatever_is_remembered(scan):
    native, scan_from_atlas, _ = scan
    memory = Memory(entries=[remembered(scan, "strong", number) for number in range(1, 40)])
    marked, recalled = recall(memory, native, AT, PLAIN, scan_from_atlas)
    assert marks(scan, marked) == {"near", "far", "strong"} and not recalled.taken
    assert recalled.flags == []


def test_a_point_without_a_level_of_components_damps_towards_its_threshold(scan):
    native, scan_from_atlas, _ = scan
    memory = Memory(entries=[remembered(scan, "near", 1), remembered(scan, "near", 2)])
    fixed = Point(point="fixed", voxel=1.0)
    marked, _ = recall(memory, native, fixed, PLAIN, scan_from_atlas)
    assert marks(scan, marked) == {"far", "strong"}  # 3 x 0.25 is below 1
    one = Memory(entries=memory.entries[:1])
    assert not recall(one, native, fixed, PLAIN, scan_from_atlas)[1].taken  # 3 x 0.5 is above


def test_a_memory_is_part_of_the_digest_and_of_the_seal(tiny_run, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    plain = load_run(folder, "cpu")
    digest = result_digest(plain, plain.point())
    assert plain.memory is None
    write_memory(Memory(entries=[entry()], next=2), folder)
    seal(folder)
    run = load_run(folder, "cpu")
    assert run.memory == Memory(entries=[entry()], next=2)
    assert result_digest(run, run.point()) != digest
    sealed = json.loads((folder / "run.json").read_text())["files"]
    assert sealed["memory.json"] == file_digest(folder / "memory.json")

    (folder / "memory.json").write_text('{"entries": [{}]}')
    with pytest.raises(InputError, match=r"memory\.json: not the file that this run was finished"):
        load_run(folder, "cpu")
    with pytest.raises(InputError, match=r"memory\.json: damaged; make the run again"):
        read_memory(folder)
