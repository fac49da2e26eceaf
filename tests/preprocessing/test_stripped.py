"""Whether a scan is stripped: heads and brains of hand-made anatomy, with what lies beside them."""

import nibabel as nib
import numpy as np
import pytest

from preprocessing import prepare, stripped
from preprocessing.recipe import Intensity, Recipe
from preprocessing.scans import Scan
from preprocessing.stripped import is_stripped

pytestmark = pytest.mark.slow

SHAPE = (66, 80, 60)
MM = 3.5
CENTRE = (33, 41, 30)
TISSUE = {  # air, scalp, skull, fluid, brain, and what is bright beside a head
    "ct": (-1024, 60, 900, 8, 35, 1500),
    "t1": (0, 900, 60, 150, 600, 1500),
    "t2": (0, 500, 40, 1000, 450, 1500),
    "flair": (0, 450, 40, 90, 500, 1500),
}


def ellipsoid(radii, centre=CENTRE):
    """Where an ellipsoid lies, bool; radii in mm, centre in voxels."""
    grid = np.indices(SHAPE).astype(float)
    return sum(((g - c) * MM / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1


def head(modality, size=1.0):
    """A head of 3.1 litres at size 1: brain, fluid, skull, scalp; and a neck down to the border."""
    air, scalp, skull, fluid, tissue, _ = TISSUE[modality]
    data = np.full(SHAPE, air, np.float32)
    neck = np.zeros(SHAPE, bool)
    neck[21:45, 29:52, :30] = True
    data[ellipsoid(np.array([86, 104, 84]) * size) | neck] = scalp
    data[ellipsoid(np.array([79, 97, 77]) * size)] = skull
    data[ellipsoid(np.array([71, 89, 69]) * size)] = fluid
    data[ellipsoid(np.array([68, 86, 66]) * size)] = tissue
    noise = np.random.default_rng(0).normal(0, 0.02 * tissue, SHAPE)
    return np.where(data == air, air, data + noise).astype(np.float32)


def brain(modality):
    """The same head, stripped: 1.8 litres of brain and fluid."""
    inside = ellipsoid((71, 89, 69))
    return np.where(inside, head(modality), TISSUE[modality][0]).astype(np.float32)


def lines(data, bright):
    """Of a head holder, in every slice."""
    data[3, 8:, :] = bright
    data[-4] = bright


def bed(data, bright):
    data[:, 2:4, :] = bright


def cushion(data, bright):
    data[14:50, 4:9, :] = 0.3 * bright


def tubes(data, bright):
    x, y = np.indices(SHAPE[:2])
    data[np.hypot(x - 7, y - 72) < 2] = bright


def ear_pieces(data, bright):
    for x in (slice(3, 8), slice(-8, -3)):
        data[x, 36:48, 24:35] = np.maximum(data[x, 36:48, 24:35], 0.3 * bright)


def text(data, bright):
    letters = np.kron(np.random.default_rng(1).random((9, 2)) < 0.5, np.ones((2, 2))) > 0
    data[3:21, -7:-3][letters] = bright


def frame(data, bright):
    for edge in (slice(2), slice(-2, None)):
        data[edge] = bright
        data[:, edge] = bright


def blank_slice(data, bright):
    data[..., -1] = 0.1 * bright


BESIDE = (lines, bed, cushion, tubes, ear_pieces, text, frame, blank_slice)


def scan(data, voxel=(MM, MM, MM)):
    return nib.Nifti1Image(data.astype(np.float32), np.diag([*voxel, 1]))


@pytest.mark.parametrize("modality", TISSUE)
def test_a_brain_is_stripped_and_a_head_is_not_whatever_its_size(modality):
    """The small head has the volume of a brain; scalp and skull alone tell it from one."""
    assert is_stripped(scan(brain(modality)), modality)
    for size in (1.0, 0.8):
        data = head(modality, size)
        data[..., :7] = TISSUE[modality][0]  # the neck ends: no help from the border
        volume = (data != TISSUE[modality][0]).sum() * MM**3 / 1000
        assert size == 1.0 or 1000 < volume < 2300
        assert not is_stripped(scan(data), modality)


@pytest.mark.parametrize("modality", ["ct", "flair"])
@pytest.mark.parametrize("beside", BESIDE, ids=lambda f: f.__name__)
def test_things_beside_a_head_do_not_make_it_stripped(modality, beside):
    data = head(modality, 0.8)
    beside(data, TISSUE[modality][-1])
    assert not is_stripped(scan(data), modality)


@pytest.mark.parametrize("modality", ["ct", "t2"])
@pytest.mark.parametrize("beside", [lines, text, frame, blank_slice], ids=lambda f: f.__name__)
def test_what_is_burnt_into_a_stripped_scan_leaves_it_stripped(modality, beside):
    data = brain(modality)
    beside(data, TISSUE[modality][-1])
    assert is_stripped(scan(data), modality)


@pytest.mark.parametrize("modality", TISSUE)
def test_a_stump_of_the_neck_leaves_a_brain_stripped(modality):
    data = brain(modality)
    data[30:36, 34:40, :14] = TISSUE[modality][4]  # 2 cm thick, down to the border
    assert is_stripped(scan(data), modality)


@pytest.mark.parametrize("modality", ["t1", "t2", "flair"])
@pytest.mark.parametrize("size", [1.0, 0.8])
def test_a_head_without_its_face_is_no_stripped_brain(modality, size):
    data = head(modality, size)
    y, z = np.indices(SHAPE[1:])
    data[:, y - 0.8 * z > 44] = 0  # the front below the forehead
    assert not is_stripped(scan(data), modality)


def test_thick_slices_and_a_slab_of_noise_are_told_as_well():
    thin = head("flair", 0.8)
    assert not is_stripped(scan(thin[..., ::2], (MM, MM, 2 * MM)), "flair")
    assert is_stripped(scan(brain("flair")[..., ::2], (MM, MM, 2 * MM)), "flair")
    noise = np.random.default_rng(0).gamma(2, 5, (60, 60, 13)).astype(np.float32)
    assert not is_stripped(scan(noise), "flair")  # 2 litres, but a box


def test_fluid_of_the_background_s_own_value_leaves_a_brain_stripped():
    data = brain("flair")
    x = np.indices(SHAPE)[0]
    data[x % 5 == 0] = 0
    assert is_stripped(scan(data, (2.5, 2.5, 2.5)), "flair")


@pytest.mark.parametrize("made", [head, brain])
@pytest.mark.parametrize(("slope", "intercept"), [(1 / 200, -2.5), (3, 1000), (1e-4, 0)])
def test_a_linear_change_of_grey_leaves_the_decision(made, slope, intercept):
    for modality in ("t1", "flair"):
        data = made(modality) if made is brain else made(modality, 0.8)
        changed = data * np.float32(slope) + np.float32(intercept)
        assert is_stripped(scan(changed), modality) == (made is brain)


def test_the_thick_piece_loses_what_is_thin_and_rays_see_shells_at_their_depth():
    data = head("ct")
    lines(data, 1500)
    mm = np.full(3, MM)
    piece = stripped.thick_piece(data != -1024, mm)
    whole = head("ct") != -1024
    assert 2 * (piece & whole).sum() / (piece.sum() + whole.sum()) > 0.97
    assert not piece[3].any() and not piece[-4].any()

    ball = ellipsoid((86, 104, 84))
    profiles, sectors = stripped.surface_profiles(head("ct"), mm, ball, mm)
    upper = np.median(profiles, 0)  # scalp of 7 mm, skull of 8, 3 of fluid, then brain
    assert upper[3] < 100 and upper[11] > 800 and abs(upper[26] - 35) < 5
    assert len(np.unique(sectors)) >= 36 and stripped.bone_share(profiles) > 0.9


def test_where_stripped_was_taken_and_a_check_fails_deepbet_has_its_turn(tmp_path, monkeypatch):
    """The scan reads as stripped, but its foreground touches a whole face of the array."""
    data = brain("t1")
    data[..., :21] = 300
    nib.save(scan(data), tmp_path / "a.nii")
    asked = []

    def made(work, modality, method, front=None):
        asked.append(method)
        found = front if method == "none" else np.zeros(work.shape, bool)
        if method == "deepbet":
            middle = np.array(work.shape) // 2
            grid = np.indices(work.shape)
            away = sum(
                ((g - m) / r) ** 2 for g, m, r in zip(grid, middle, (65, 80, 60), strict=True)
            )
            found = away <= 1
        return found, method

    monkeypatch.setattr(prepare, "is_stripped", lambda *_: True)
    monkeypatch.setattr(prepare, "brain_mask", made)
    monkeypatch.setattr(prepare, "lay_on_atlas", lambda first, recipe: first)
    kind = Intensity(kind="percentiles", low=1, high=95, top=0.75)
    recipe = Recipe(modality="t1", intensity=kind)
    found = prepare.prepare(Scan("a", tmp_path / "a.nii", "a"), recipe)
    assert asked == ["none", "deepbet"] and found.method == "deepbet"

    asked.clear()
    limits = recipe.limits.model_copy(update={"brain_ml": (2200.0, 2300.0)})
    small = recipe.model_copy(update={"limits": limits})
    with pytest.raises(prepare.RefusedScan, match="brain cut by the border") as refused:
        prepare.prepare(Scan("a", tmp_path / "a.nii", "a"), small)
    assert asked == ["none", "deepbet"] and refused.value.brain_method == "none"

    asked.clear()
    told = recipe.model_copy(update={"brain": "none"})
    with pytest.raises(prepare.RefusedScan):
        prepare.prepare(Scan("a", tmp_path / "a.nii", "a"), told)
    assert asked == ["none"]
