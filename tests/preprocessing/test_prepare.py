"""Preparation in parts: each can be called alone, and they carry a scan there and back."""

import re

import imageio.v3 as iio
import nibabel as nib
import numpy as np
import pytest

from preprocessing import orientation, prepare, quality, register
from preprocessing.images import Grid, read_image
from preprocessing.quality import dice
from preprocessing.recipe import Intensity, Limits, Recipe, Series
from preprocessing.resample import carry_mask, resample
from preprocessing.scans import Scan, ScanError
from tests.preprocessing.spaces import (
    apply,
    atlas_centre,
    moved_grid,
    moved_head,
    rigid_motion,
    voxel_points,
)

pytestmark = pytest.mark.slow

RECIPE = Recipe(
    modality="t1",
    intensity=Intensity(kind="percentiles", low=1, high=95, top=0.75),
    registration_spacing=6.0,
)
COARSE = RECIPE.model_copy(update={"grid": (176, 216, 176), "spacing": 2.0})
# a tight grid; what fails as it is is not stripped and tried again
QUICK = COARSE.model_copy(update={"grid": (160, 200, 160), "brain": "none"})


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A stripped head on an oblique grid, and a second sequence on the same grid."""
    folder = tmp_path_factory.mktemp("scan")
    atlas = register.load_atlas()
    motion = rigid_motion([6, -4, 5], np.array([4.0, -6, 3]), atlas_centre(atlas))
    grid = moved_grid(atlas, motion, (1.9, 2.1, 2.3), (-1, 1, 1), (100, 110, 90))
    brain = carry_mask(atlas.brain, atlas.grid, grid, np.linalg.inv(motion))
    data = 1000 * moved_head(atlas, motion, grid) * brain
    nib.save(nib.Nifti1Image(data, grid.affine), folder / "s_T1w.nii")
    nib.save(nib.Nifti1Image(np.sqrt(data), grid.affine), folder / "s_FLAIR.nii")
    return Scan("s", folder / "s_T1w.nii", "s", sequences={"flair": folder / "s_FLAIR.nii"})


@pytest.fixture(scope="module")
def first(scan):
    return prepare.strip(scan, RECIPE)


@pytest.fixture(scope="module")
def prepared(first):
    return prepare.lay_on_atlas(first, RECIPE)


def test_stripping_keeps_the_scan_and_finds_its_brain(scan, first):
    native = read_image(scan.image)
    assert first.source is first.native and first.native.shape == native.shape
    assert first.method == "none"
    np.testing.assert_allclose(Grid.of(first.work).spacing, 1, atol=1e-4)
    there = carry_mask(first.brain, Grid.of(first.work), Grid.of(native))
    # linear interpolation widens the brain by a part of a voxel
    assert dice(there, np.asarray(native.dataobj) > 0) > 0.95


def test_the_brain_on_the_atlas_comes_back_to_the_scan(scan, prepared):
    native = read_image(scan.image)
    assert prepared.home.shape == native.shape and prepared.space == "MNI152NLin2009aSym"
    np.testing.assert_array_equal(prepared.home.affine, native.affine)
    assert prepared.header["pixdim"][1] == pytest.approx(1.9)
    assert prepared.image.shape == prepared.brain.shape == prepared.grid.shape == (240, 240, 189)
    assert not prepared.image[~prepared.brain].any() and prepared.image.max() <= 1
    assert dice(prepared.brain, prepared.outline) > 0.95

    atlas_from_scan = np.linalg.inv(prepared.scan_from_atlas)
    back = carry_mask(prepared.brain, prepared.grid, prepared.home, atlas_from_scan)
    assert dice(back, np.asarray(native.dataobj) > 0) > 0.95


def test_a_sequence_on_the_same_grid_follows_as_a_channel(scan, first, prepared):
    intensity = Intensity(kind="percentiles", low=1, high=95)
    recipe = RECIPE.model_copy(
        update={"sequences": (Series(modality="flair", intensity=intensity),)}
    )
    series = recipe.sequences[0]
    both = prepare.add_sequence(prepared, first, series, scan.sequences["flair"], recipe)
    assert both.image.shape == (240, 240, 189, 2) and len(both.channels) == 2
    np.testing.assert_array_equal(both.channels[0], prepared.image)
    np.testing.assert_array_equal(both.further_from_atlas[0], prepared.scan_from_atlas)
    names = [c.name for c in both.checks]
    assert names[: len(prepared.checks)] == [c.name for c in prepared.checks]
    assert all(name.startswith("flair: ") for name in names[len(prepared.checks) :])

    whole = prepare.prepare(scan, recipe)
    np.testing.assert_array_equal(whole.image, both.image)
    assert whole.checks == both.checks


def test_a_refused_scan_carries_its_checks_and_a_picture(scan):
    small = QUICK.model_copy(update={"limits": Limits(brain_ml=(10, 20))})
    with pytest.raises(prepare.RefusedScan, match=r"s_T1w\.nii: brain volume is") as refused:
        prepare.prepare(scan, small)
    assert not all(c.passed for c in refused.value.checks)
    image, brain = refused.value.picture
    assert image.shape == brain.shape


def test_a_missing_sequence_is_named(scan, tmp_path):
    intensity = Intensity(kind="percentiles", low=1, high=95)
    recipe = RECIPE.model_copy(update={"sequences": (Series(modality="t2", intensity=intensity),)})
    with pytest.raises(ScanError, match=r"s_T1w\.nii: no t2 sequence of this scan"):
        prepare.channel_files(scan, recipe)
    gone = Scan("s", scan.image, "s", sequences={"t2": tmp_path / "gone.nii"})
    with pytest.raises(ScanError, match=r"gone\.nii: no such file"):
        prepare.channel_files(gone, recipe)


def test_an_affine_alignment_takes_the_size_of_the_atlas_and_comes_back(tmp_path):
    """A head 8 % longer, 6 % narrower and sheared; the true map is known."""
    atlas = register.load_atlas(shape=COARSE.grid)
    middle = atlas_centre(atlas)
    motion = rigid_motion([4, -3, 5], np.array([3.0, -4, 2]), middle)
    deform = np.eye(4)
    deform[:3, :3] = [[0.94, 0.03, 0], [0, 1.08, 0.04], [0, 0, 1.05]]
    deform[:3, 3] = middle - deform[:3, :3] @ middle
    true = motion @ deform  # scan_from_atlas
    grid = moved_grid(atlas, motion, (1.9, 2.1, 2.3), (-1, 1, 1), (100, 110, 90))
    brain = carry_mask(atlas.brain, atlas.grid, grid, np.linalg.inv(true))
    data = 1000 * moved_head(atlas, true, grid) * brain
    nib.save(nib.Nifti1Image(data, grid.affine), tmp_path / "a.nii")
    first = prepare.strip(Scan("a", tmp_path / "a.nii", "a"), COARSE)
    rigid = prepare.lay_on_atlas(first, COARSE)
    affine = prepare.lay_on_atlas(first, COARSE.model_copy(update={"align": "affine"}))

    assert np.linalg.det(rigid.scan_from_atlas) == pytest.approx(1, abs=1e-6)
    share = np.linalg.det(true)  # of a volume in the scan to one in the atlas
    assert np.linalg.det(affine.scan_from_atlas) == pytest.approx(share, rel=0.03)
    points = apply(atlas.affine, np.argwhere(atlas.brain)[::997])
    away = [
        np.linalg.norm(apply(p.scan_from_atlas, points) - apply(true, points), axis=1).mean()
        for p in (rigid, affine)
    ]
    assert away[1] < 1 < 2.5 < away[0]
    # linear interpolation widens either brain by a part of a voxel
    assert dice(affine.brain, atlas.brain) > max(0.94, dice(rigid.brain, atlas.brain) + 0.01)
    # the checks are of the scan, not of how it is aligned
    assert affine.checks == rigid.checks

    # what is found in the atlas comes home: its place within a voxel, its volume as in the scan
    spot = apply(np.linalg.inv(true), apply(grid.affine, np.array([[60.0, 40, 50]])))[0]
    away_mm = np.linalg.norm(voxel_points(affine.grid) - spot, axis=-1)
    in_atlas = np.exp(-((away_mm / 8) ** 2) / 2).astype(np.float32)
    atlas_from_scan = np.linalg.inv(affine.scan_from_atlas)
    home = resample(in_atlas, affine.grid, affine.home, atlas_from_scan)
    assert np.abs(np.argwhere(home == home.max())[0] - (60, 40, 50)).max() <= 1
    at_home = (home > 0.5).sum() * np.prod(affine.home.spacing)
    assert at_home == pytest.approx(share * (in_atlas > 0.5).sum(), rel=0.05)


def test_a_picture_cannot_be_aligned():
    window = Intensity(kind="window", low=0, high=1)
    with pytest.raises(ValueError, match="a picture has no atlas"):
        Recipe(modality="picture", intensity=window, align="affine")


def test_a_picture_lies_in_the_middle_of_its_frame(tmp_path):
    picture = np.zeros((60, 80), np.uint8)
    picture[10:50, 20:70] = 200
    iio.imwrite(tmp_path / "p.png", picture)
    window = Intensity(kind="window", low=0, high=1)
    recipe = Recipe(modality="picture", intensity=window, grid=(100, 90, 1))
    found = prepare.prepare(Scan("p", tmp_path / "p.png", "p"), recipe)
    assert found.image.shape == found.brain.shape == found.grid.shape == (100, 90, 1)
    assert found.home.shape == (80, 60, 1) and found.space == "picture" and found.outline is None
    assert found.brain.sum() == 40 * 50 and found.brain_method == "foreground"
    # whole pixels: (100 - 80) / 2 and (90 - 60) / 2 to each side
    np.testing.assert_array_equal(found.scan_from_atlas[:2, 3], (-10, -15))


@pytest.mark.parametrize(("slope", "intercept"), [(1 / 300, -1.7), (1, -1024.3), (1, None)])
def test_a_linear_change_of_grey_leaves_brain_and_image(
    scan, first, prepared, tmp_path, monkeypatch, slope, intercept
):
    """Z-scored, a negative background, or one of NaN: the brain is the same to the voxel."""
    native = nib.load(scan.image)
    data = np.asarray(native.dataobj, np.float32)
    changed = np.where(data == 0, np.nan, data)
    if intercept is not None:
        changed = data * np.float32(slope) + np.float32(intercept)
    path = tmp_path / "changed.nii"
    nib.save(nib.Nifti1Image(changed.astype(np.float32), native.affine), path)
    other = prepare.strip(Scan("s", path, "s"), RECIPE)
    assert other.method == "none"
    np.testing.assert_array_equal(other.brain, first.brain)
    assert bool(quality.flags(other.checks)) == (intercept is None)

    # the fit itself is steady to a few tenths of a mm, not to the bit: the same pose for both
    pose = prepared.scan_from_atlas
    monkeypatch.setattr(register, "fit", lambda *_, **__: (pose, pose))
    recipe = RECIPE.model_copy(update={"limits": Limits(min_overlap=0.5, min_information=0)})
    if intercept is not None:
        laid = prepare.lay_on_atlas(other, recipe)
        np.testing.assert_array_equal(laid.brain, prepared.brain)
        np.testing.assert_allclose(laid.image, prepared.image, atol=1e-3)


def unoriented(image, order, signs, path):
    """Write an image with its axes in another order, and a header that does not say which.

    Gives how its axes truly lie, as "RAS".
    """
    turned = nib.as_closest_canonical(image).as_reoriented(np.stack([order, signs], 1))
    bare = nib.Nifti1Image(np.asarray(turned.dataobj, np.float32), None)
    bare.header.set_zooms(turned.header.get_zooms()[:3])
    bare.header["qform_code"] = 0
    bare.header["sform_code"] = 0
    nib.save(bare, path)
    return "".join(nib.aff2axcodes(turned.affine))


def left_right_swapped(axes):
    return axes.translate(str.maketrans("LR", "RL"))


GUESSED = re.compile(
    "the header has no orientation; guessed as ([A-Z]{3}) by registration; "
    "left and right cannot be told apart this way"
)


def test_the_orientation_of_a_scan_that_has_none_is_guessed(scan, tmp_path):
    """The truth is known, but for left and right."""
    order = (2, 0, 1)
    signs = (1, -1, -1)
    path = tmp_path / "x.nii"
    true = unoriented(nib.load(scan.image), order, signs, path)
    with pytest.raises(ScanError, match=r"does not say how the scan lies.*orientation=guess"):
        prepare.prepare(Scan("x", path, "x"), RECIPE)
    recipe = QUICK.model_copy(update={"orientation": "guess"})
    found = prepare.prepare(Scan("x", path, "x"), recipe)
    (flag,) = [text for text in found.flags if "orientation" in text]
    guess = GUESSED.fullmatch(flag).group(1)
    assert guess in (true, left_right_swapped(true))

    # on the array as it came in, with a header that says as little as before
    own = nib.load(path)
    assert found.home.shape == own.shape
    np.testing.assert_array_equal(found.home.affine, own.affine)
    assert (found.header["qform_code"], found.header["sform_code"]) == (0, 0)
    back = np.linalg.inv(found.scan_from_atlas)
    assert np.linalg.det(back[:3, :3]) == pytest.approx(1)
    there = carry_mask(found.brain, found.grid, found.home, back)
    assert dice(there, np.asarray(own.dataobj) > 0) > 0.93


def test_mask_and_sequence_without_orientation_go_voxel_by_voxel(scan, tmp_path, monkeypatch):
    """They lie on the scan's own array; one of another shape is refused."""
    order = (2, 0, 1)
    signs = (1, -1, -1)
    for name, image in (("x", scan.image), ("y", scan.sequences["flair"])):
        unoriented(nib.load(image), order, signs, tmp_path / f"{name}.nii")
    own = nib.load(tmp_path / "x.nii")
    data = np.asarray(own.dataobj)
    brain = nib.Nifti1Image((data > 0).astype(np.uint8), None)
    brain.header["sform_code"] = 0
    brain.header["qform_code"] = 0
    nib.save(brain, tmp_path / "brain.nii")

    def turns(*_):
        return [t for t in orientation.quarter_turns() if as_atlas(t @ own.affine)][:1]

    def as_atlas(affine):
        axes = "".join(nib.aff2axcodes(affine))
        return axes in (true, left_right_swapped(true))

    true = "".join(
        nib.aff2axcodes(
            nib.as_closest_canonical(nib.load(scan.image))
            .as_reoriented(np.stack([order, signs], 1))
            .affine
        )
    )
    monkeypatch.setattr(orientation, "likely_turns", turns)
    intensity = Intensity(kind="percentiles", low=1, high=95)
    series = Series(modality="flair", intensity=intensity)
    recipe = QUICK.model_copy(update={"orientation": "guess", "sequences": (series,)})
    given = Scan(
        "x",
        tmp_path / "x.nii",
        "x",
        brain_mask=tmp_path / "brain.nii",
        sequences={"flair": tmp_path / "y.nii"},
    )
    found = prepare.prepare(given, recipe)
    assert found.brain_method == "given"
    (between,) = found.further_from_atlas
    np.testing.assert_allclose(between, found.scan_from_atlas, atol=1e-9)
    one, two = found.channels
    assert np.corrcoef(one[found.brain], two[found.brain])[0, 1] > 0.9

    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.uint8), np.eye(4)), tmp_path / "brain.nii")
    with pytest.raises(ScanError, match=r"brain\.nii: shape \(9, 9, 9\).*no orientation"):
        prepare.prepare(given, recipe)


def test_there_are_24_quarter_turns_and_none_mirrors():
    turns = orientation.quarter_turns()
    assert len({turn.tobytes() for turn in turns}) == 24
    for turn in turns:
        np.testing.assert_array_equal(turn @ turn.T, np.eye(4))
        assert np.linalg.det(turn) == pytest.approx(1)


WRONG = {
    "back to front": np.diag([1.0, -1, 1, 1]),
    "upside down": np.diag([1.0, 1, -1, 1]),
    "back to front and upside down": np.diag([1.0, -1, -1, 1]),
    "axes permuted": np.eye(4)[[1, 2, 0, 3]],
}
POSE = "likeness as the scan lies, over that in another pose"


@pytest.fixture(scope="module")
def right(brain_t1):
    return prepare.prepare(Scan("a", brain_t1, "a"), QUICK)


@pytest.mark.parametrize("name", WRONG)
def test_a_header_that_says_wrongly_how_the_head_lies_is_refused(brain_t1, right, tmp_path, name):
    """In another pose it would be more like the atlas, and as it came it is less."""
    image = nib.load(brain_t1)
    path = tmp_path / "wrong_T1w.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), WRONG[name] @ image.affine), path)
    # what else is off in such a pose is of no concern here
    limits = Limits(min_overlap=0, min_information=0)
    with pytest.raises(prepare.RefusedScan) as refused:
        prepare.prepare(Scan("b", path, "b"), QUICK.model_copy(update={"limits": limits}))
    found = {c.name: c.value for c in refused.value.checks}
    assert found[POSE] < 0.9
    assert {c.name: c.value for c in right.checks}[POSE] > 1.5
    message = str(refused.value)
    assert message.startswith(f"{path}: {POSE} is") and "expected at least 1.3" in message
    assert "wrongly how the head lies" in message and "orientation=guess" in message


def test_where_a_head_lies_is_compared_on_any_grid():
    """The atlas against itself in a known pose, turned, and where the brains never meet."""
    atlas = register.load_atlas()
    motion = rigid_motion([6, -4, 5], np.array([4.0, -6, 3]), atlas_centre(atlas))
    grid = moved_grid(atlas, motion, (1.9, 2.1, 2.3), (-1, 1, 1), (100, 110, 90))
    image = moved_head(atlas, motion, grid)
    head = orientation.Coarse.of(image, image > 0, grid)
    known = head, orientation.coarse_atlas(atlas)
    rivals = orientation.rival_poses(*known)
    assert orientation.over_other_poses(*known, motion, rivals) > 2
    middle = atlas_centre(atlas)
    for rotation in ([0, 0, 180], [90, 0, 0]):
        turn = rigid_motion(rotation, np.zeros(3), middle)
        assert orientation.over_other_poses(*known, motion @ turn, rivals) < 1 / 2
    away = motion.copy()
    away[:3, 3] += 1000
    assert orientation.over_other_poses(*known, away, rivals) == 0


def test_means_of_blocks_lie_where_their_voxels_do():
    affine = np.diag([2.0, -1.0, 5.0, 1.0])
    affine[:3, 3] = [5, 6, 7]
    ramp = np.fromfunction(lambda i, j, k: 2 * i - 3 * j + 7 * k, (9, 13, 6)).astype(np.float32)
    means, grid = orientation.block_means(ramp, Grid(ramp.shape, affine))
    assert means.shape == grid.shape == (4, 3, 6)  # 2, 4 and 1 voxels to a block
    voxel = np.array([[3.0, 2, 5]])
    i, j, k = apply(np.linalg.inv(affine), apply(grid.affine, voxel))[0]
    assert means[3, 2, 5] == pytest.approx(2 * i - 3 * j + 7 * k)
    mask, _ = orientation.block_means(np.ones((3, 2, 1), bool), Grid((3, 2, 1), np.eye(4)))
    np.testing.assert_array_equal(mask, np.ones((1, 1, 1)))


@pytest.mark.parametrize(("slope", "intercept"), [(1 / 300, -1.7), (1, -1024.3)])
def test_a_linear_change_of_whole_numbers_leaves_all_to_the_bit(
    brain_t1, right, tmp_path, slope, intercept
):
    """Pose, brain and image, and with them all that is marked."""
    native = nib.load(brain_t1)
    changed = np.asarray(native.dataobj, np.float32) * np.float32(slope) + np.float32(intercept)
    path = tmp_path / "changed_T1w.nii.gz"
    nib.save(nib.Nifti1Image(changed, native.affine), path)
    other = prepare.prepare(Scan("b", path, "b"), QUICK)
    np.testing.assert_array_equal(other.scan_from_atlas, right.scan_from_atlas)
    np.testing.assert_array_equal(other.brain, right.brain)
    np.testing.assert_array_equal(other.image, right.image)


def test_a_linear_change_of_continuous_values_leaves_what_registration_sees(scan):
    """To the bit in nearly all voxels; the levels are fewer than a rounding can tell apart."""
    data = nib.load(scan.image).get_fdata(dtype=np.float32)
    brain = data > 0
    seen = prepare.registration_view(data, brain, RECIPE.intensity)
    assert len(np.unique(seen)) == prepare.VIEW_LEVELS
    assert np.abs(seen - np.clip(seen, 0, 1)).max() == 0 and not seen[~brain].any()
    changed = data * np.float32(1 / 300) + np.float32(-1.7)
    other = prepare.registration_view(changed, brain, RECIPE.intensity)
    assert (other != seen).sum() <= 1e-5 * brain.sum()
    # a reversed scan is another scan
    reversed_view = prepare.registration_view(-data, brain, RECIPE.intensity)
    assert (reversed_view != seen)[brain].mean() > 0.5
