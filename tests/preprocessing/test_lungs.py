"""Chest CT: lungs against a phantom whose lungs are known, the frame, the way home, refusals."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from pipelines.config import ConfigError, load_recipe
from preprocessing import lungs, quality
from preprocessing.datasets import virtual_chest
from preprocessing.images import Grid
from preprocessing.prepare import prepare, read_volume
from preprocessing.resample import carry_mask, resample
from preprocessing.scans import Scan, ScanError

COARSE = ["spacing=5", "grid=[72,72,68]"]


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    """A virtual chest with three nodules, at voxels of 4 x 4 x 5 mm: drawn, HU, lesions, file."""
    drawn = virtual_chest.draw(0, 5, "test", "healthy")
    drawn.voxel_mm = [4.0, 4.0, 5.0]
    drawn.marks = [virtual_chest.Mark("nodule", ml) for ml in (3.0, 8.0, 14.0)]
    folder = tmp_path_factory.mktemp("chest")
    row = virtual_chest._write(drawn, 0, folder)
    return folder / row["image"], folder / row["mask"]


@pytest.fixture(scope="module")
def prepared(chest):
    return prepare(Scan("sub-005", chest[0], "sub-005"), load_recipe("chest_ct", COARSE))


def test_lungs_are_found_without_heart_liver_and_windpipe(chest, prepared):
    image = nib.as_closest_canonical(nib.load(chest[0]))
    home = Grid.of(image)
    found = carry_mask(prepared.brain, prepared.grid, home, np.linalg.inv(prepared.scan_from_atlas))
    hu = np.asarray(image.dataobj)
    # air in the middle 40 mm of the chest is windpipe and bronchi; anywhere else it is lung
    x = home.affine[0, 0] * np.arange(hu.shape[0]) + home.affine[0, 3]
    beside = np.abs(x - x.mean()) > 30
    aerated = (hu > -940) & (hu < -780) & beside[:, None, None]
    aerated = ndimage.binary_opening(aerated)  # without the skin, whose voxels share air
    assert (found & aerated).sum() > 0.93 * aerated.sum()
    assert (hu[found] > -200).mean() < 0.08  # vessels, nodules and edges
    windpipe = (hu < -970) & ~beside[:, None, None]
    top = windpipe.copy()
    top[:, :, : int(0.75 * hu.shape[2])] = False
    inner = np.zeros_like(top)
    inner[:, 20:-20] = top[:, 20:-20]
    assert inner.any() and not (found & inner).any()


def test_nodules_lie_in_the_lungs_and_on_the_scans_own_grid(chest, prepared):
    truth = nib.load(chest[1])
    lesions = carry_mask(
        np.asarray(truth.dataobj) > 0, Grid.of(truth), prepared.grid, prepared.scan_from_atlas
    )
    assert (lesions & prepared.brain).sum() > 0.95 * lesions.sum()
    assert prepared.image[lesions].mean() > 2 * prepared.image[prepared.brain].mean()
    back = resample(
        prepared.image, prepared.grid, Grid.of(truth), np.linalg.inv(prepared.scan_from_atlas)
    )
    hu = np.asarray(nib.load(chest[0]).dataobj)
    inside = np.asarray(truth.dataobj) > 0
    # the window -1000 to 400 HU, read backwards
    assert back[inside].mean() * 1400 - 1000 == pytest.approx(hu[inside].mean(), abs=150)


def test_the_frame_is_centred_on_the_lungs_and_moves_nothing_else():
    lung = np.zeros((30, 20, 24), bool)
    lung[4:10, 5:9, 2:22] = True
    data = np.arange(lung.size, dtype=np.float32).reshape(lung.shape)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = [-7, 11, 3]
    image, framed, grid, scan_from_frame = lungs.into_frame(
        data, lung, Grid(lung.shape, affine), (12, 12, 40), -1024
    )
    assert image.shape == framed.shape == grid.shape == (12, 12, 40)
    assert framed.sum() == lung.sum()
    np.testing.assert_allclose(scan_from_frame[:3, :3], np.eye(3))
    voxel = np.array([6, 6, 20, 1])
    mm = scan_from_frame @ grid.affine @ voxel
    there = np.rint(np.linalg.inv(affine) @ mm).astype(int)[:3]
    assert image[tuple(voxel[:3])] == data[tuple(there)]
    middle = np.argwhere(framed).mean(0)
    np.testing.assert_allclose(grid.affine[:3, :3] @ middle + grid.affine[:3, 3], 0, atol=2)
    assert image[0, 0, 0] == -1024  # the scan ends before the frame does


def test_a_large_part_outside_the_frame_is_refused(chest):
    small = load_recipe("chest_ct", ["spacing=5", "grid=[40,72,68]"])
    with pytest.raises(ScanError, match=r"lung outside the frame \(share\) is .* a larger grid"):
        prepare(Scan("sub-005", chest[0], "sub-005"), small)


def head(path):
    """A round head in HU: skull, brain, two air-filled sinuses."""
    at = np.indices((48, 48, 48)) * 4.0 - 94
    radius = np.sqrt((at**2).sum(0))
    hu = np.full(radius.shape, -1000, np.int16)
    hu[radius < 88] = 30
    hu[(radius > 72) & (radius < 80)] = 900
    for side in (-16, 16):
        hu[np.sqrt((at[0] - side) ** 2 + (at[1] - 55) ** 2 + (at[2] + 40) ** 2) < 12] = -1000
    affine = np.diag([4.0, 4, 4, 1])
    nib.save(virtual_chest.as_nifti(hu, affine), path)
    return path


def test_a_head_as_chest_and_a_chest_as_head_are_refused_in_a_sentence(chest, tmp_path):
    path = head(tmp_path / "head_ct.nii.gz")
    with pytest.raises(ScanError) as error:
        prepare(Scan("head", path, "head"), load_recipe("chest_ct", COARSE))
    assert "lung volume is" in str(error.value) and "a head is MODALITY=ct" in str(error.value)
    with pytest.raises(ScanError) as error:
        prepare(Scan("sub-005", chest[0], "sub-005"), load_recipe("ct"))
    assert str(error.value).startswith(f"{chest[0]}: volume at -850 to -500 HU is")
    assert "give MODALITY=chest_ct" in str(error.value)
    _, checks = read_volume(path, "ct")
    assert all(check.passed for check in checks)  # a head stays a head, and no check was added
    assert "volume at -850 to -500 HU" not in [check.name for check in checks]


def test_free_air_is_no_lung():
    hu = np.full((10, 10, 10), -1000.0)
    checks = quality.lung_checks(hu, np.ones(hu.shape, bool), 10.0, 0.0)
    assert [c.name for c in checks if not c.passed] == ["median of the lungs"]


@pytest.mark.parametrize("setting", ["brain=bet", "align=affine", "orientation=guess", "n4=true"])
def test_settings_of_brains_are_refused(setting):
    name = setting.split("=")[0]
    with pytest.raises(ConfigError, match=f"{name}: of brains alone"):
        load_recipe("chest_ct", [setting])
