"""Coronal and sagittal slices: the same voxels, cut another way.

In the store, in maps and in an ensemble of planes.
"""

import os

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.base import AnomalyModel
from models.ensemble import Ensemble, improbability
from pipelines.config import ConfigError
from pipelines.detect import build
from pipelines.detect.config import load_run_config
from pipelines.detect.detector import Detector
from pipelines.detect.inputs import with_neighbours
from pipelines.detect.run import load_run
from preprocessing.files import read_table
from preprocessing.slices import PLANES, SliceStore, in_plane, turned, write_arrays, write_index
from tests.shared import GRID, run

pytestmark = pytest.mark.usefixtures("no_figures")

UNFILTERED = ["postprocess.median=0"]  # the median of a map takes half the time of a scan
SMALL = ["image_size=[48,48]", "loop.loader_workers=0"]


@pytest.mark.parametrize(("plane", "axis"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_a_turned_volume_has_the_plane_s_slices_last(plane, axis):
    volume = np.random.default_rng(0).random((4, 5, 6, 2))
    for v in (volume, volume[..., 0]):
        assert all(
            np.array_equal(turned(v, plane)[:, :, i], np.take(v, i, axis))
            for i in range(v.shape[axis])
        )
        back = np.zeros_like(v)
        turned(back, plane)[:] = turned(v, plane)
        assert np.array_equal(back, v)


@pytest.mark.parametrize(("plane", "axis"), [("coronal", 1), ("sagittal", 0)])
def test_a_store_in_another_plane_holds_the_same_voxels(tmp_path, plane, axis):
    rng = np.random.default_rng(0)
    shape = (7, 9, 6)
    rows = []
    kept = {}
    for scan in ("b", "a"):
        brain = np.zeros(shape, bool)
        brain[1:6, 2:8, 1:5] = rng.random((5, 6, 4)) < 0.8
        image = rng.integers(0, 17, (*shape, 2)) / 16 * brain[..., None]
        z = np.arange(1, 5)
        write_arrays(tmp_path, scan, image, brain, z)
        rows += [
            {
                "scan": scan,
                "subject": "s" + scan,
                "label": "healthy",
                "split": "train",
                "row": i,
                "z": v,
            }
            for i, v in enumerate(z)
        ]
        kept[scan] = image, brain
    write_index(tmp_path, rows)
    assert in_plane(tmp_path, "axial", 6, 3) == tmp_path
    store = SliceStore(in_plane(tmp_path, plane, 6, 3))
    index = read_table(tmp_path / plane / "index.tsv")
    wanted = set()
    for scan, (_, brain) in kept.items():
        for i in range(shape[axis]):
            if np.take(brain, i, axis).sum() >= 3:
                wanted.add((scan, i))
    assert (
        len(store) == len(index) == len(wanted)
        and {(r["scan"], int(r["z"])) for r in index} == wanted
    )
    assert {(r["scan"], r["subject"], r["label"], r["split"]) for r in index} == {
        (s, "s" + s, "healthy", "train") for s in "ab"
    }
    for i, row in enumerate(index):
        image, brain = kept[row["scan"]]
        found = store[i]
        assert np.array_equal(
            found["image"], np.moveaxis(np.take(image, found["z"], axis), -1, 0)
        ) and found["z"] == int(row["z"])
        assert (
            np.array_equal(found["mask"][0], np.take(brain, found["z"], axis))
            and int(row["brain_px"]) == found["mask"].sum()
        )


def test_a_store_in_another_plane_is_made_anew_when_the_axial_one_is(tmp_path):
    brain = np.ones((3, 4, 5), bool)
    write_arrays(tmp_path, "a", brain * 0.5, brain, np.arange(5))
    write_index(tmp_path, [{"scan": "a", "row": i, "z": i} for i in range(5)])
    own = in_plane(tmp_path, "coronal", 5, 1)
    write_arrays(tmp_path, "a", brain * 0.25, brain, np.arange(5))
    assert (
        SliceStore(in_plane(tmp_path, "coronal", 5, 1))[0]["image"].max() == 0.5
    )  # the index is the word that all is there
    later = (own / "index.tsv").stat().st_mtime + 5
    os.utime(tmp_path / "index.tsv", (later, later))
    assert SliceStore(in_plane(tmp_path, "coronal", 5, 1))[0]["image"].max() == 0.25


class Placed(AnomalyModel):
    """The image, times one more than the slice's index."""

    stages = ()

    def anomaly_map(self, x, mask, z=None):
        return x[:, :1] * mask * (1 + z.view(-1, 1, 1, 1))


def test_an_ensemble_of_volumes_shows_each_member_its_own_plane():
    torch.manual_seed(0)
    x = torch.rand(2, 1, 6, 7, 8)
    mask = torch.ones(2, 1, 6, 7, 8)
    mask[:, :, :, :, 3] = 0
    sizes = [(6, 7), (6, 8), (7, 8)]
    planes = [PLANES[p] for p in ("axial", "coronal", "sagittal")]
    model = Ensemble([Placed(), Placed(), Placed()], sizes, planes)
    model.fit_reference([{"image": x, "mask": mask, "z": torch.zeros(2, dtype=torch.long)}])
    at = torch.stack(torch.meshgrid(*(torch.arange(n) + 1 for n in (6, 7, 8)), indexing="ij"))
    maps = [x * mask * at[axis] for axis in (2, 1, 0)]
    expected = sum(improbability(m, k) for m, k in zip(maps, model.knots, strict=True)) / 3 * mask
    torch.testing.assert_close(model.anomaly_map(x, mask), expected)
    assert (model.knots[:, -1] >= torch.stack([m.max() for m in maps])).all()


class Beside(AnomalyModel):
    """The second of the further channels."""

    stages = ()

    def anomaly_map(self, x, mask, z=None):
        assert x.shape[1] == 3
        return x[:, 2:] * mask


def test_an_ensemble_of_volumes_shows_a_member_the_slices_that_it_knows():
    """Against the slices that a run of its own gets; beyond the volume there is nothing."""
    torch.manual_seed(1)
    x = torch.rand(1, 1, 6, 7, 8)
    mask = (torch.rand(1, 1, 6, 7, 8) > 0.2).float()
    x = x * mask
    planes = [PLANES[p] for p in ("axial", "coronal")]
    around = [(-1, 2), (3, -2)]
    model = Ensemble([Beside(), Beside()], [(6, 7), (6, 8)], planes, around)
    volume = x[0, 0].numpy()
    brain = mask[0, 0].numpy()
    expected = []
    for plane, offsets in zip(("axial", "coronal"), around, strict=True):
        cut = turned(volume, plane)
        shown = np.zeros_like(volume)
        seen = with_neighbours(cut, np.arange(cut.shape[2]), offsets)
        turned(shown, plane)[:] = seen[..., 2] * turned(brain, plane)
        expected.append(shown)
    found = model._maps(x, mask, None)
    for mapped, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mapped[0, 0].numpy(), wanted)
    model.fit_reference([{"image": x, "mask": mask, "z": torch.zeros(1, dtype=torch.long)}])
    other = model.with_knots(model.knots)
    torch.testing.assert_close(other.anomaly_map(x, mask), model.anomaly_map(x, mask))


def test_an_ensemble_of_slices_has_no_neighbours_to_show():
    member = load_run_config("vae", ["around=[-4,4]"])
    flat, whole = (load_run_config("ensemble", [f"image_size={s}"]) for s in ("[9,9]", "[9,9,9]"))
    with pytest.raises(ConfigError, match="member 'vae' sees the slices around each; give three"):
        build._check_members(flat, ["vae"], [member])
    build._check_members(whole, ["vae"], [member])


def test_a_run_on_another_plane_and_an_ensemble_of_planes(chain, tmp_path, capsys):
    """`intensity` sees one pixel at a time, so its map hardly depends on the plane.

    The map of the ensemble is the mean of its members' tails.
    """
    data = chain / "data"
    plain = ["model.mode=value", "model.tail=bright", "model.smooth=0", *SMALL, *UNFILTERED]
    for plane in ("axial", "sagittal"):
        assert (
            run(
                "train",
                "--model",
                "intensity",
                "--data",
                data,
                "--out",
                tmp_path / plane,
                *plain,
                f"plane={plane}",
            )
            == 0
        )
    assert len(SliceStore(data / "slices" / "sagittal")) > 300
    members = ["model.members=[axial,sagittal]", "loop.loader_workers=0", *UNFILTERED]
    given = ("train", "--model", "ensemble", "--data", data, "--out", tmp_path / "both", *members)
    assert (
        run(*given, "image_size=[48,48]") == 2
        and "member 'sagittal' sees sagittal slices; give three numbers" in capsys.readouterr().err
    )
    for setting, sentence in (
        ("reference.kind=z", "they do not go with three numbers in image_size"),
        ("plane=coronal", "plane=coronal is for slices"),
    ):
        assert (
            run(*given, f"image_size={list(GRID)}", setting) == 2
            and sentence in capsys.readouterr().err
        )
    assert (
        run(*given, "image_size=[48,48]", "plane=coronal") == 2
        and "leave out around and plane" in capsys.readouterr().err
    )
    assert (
        run(*given, "image_size=[48,48,48]") == 2
        and f"give image_size={list(GRID)}" in capsys.readouterr().err
    )
    assert run(*given, f"image_size={list(GRID)}") == 0
    row = next(r for r in read_table(data / "scans.tsv") if r["split"] == "test")
    image, brain = (np.asarray(nib.load(data / row[k]).dataobj) for k in ("preproc", "brain"))
    maps = []
    for name in ("axial", "sagittal", "both"):
        run_of_plane = load_run(tmp_path / name, "cpu")
        maps.append(run_of_plane.detector.atlas_map(image.astype(np.float32), brain > 0))
    axial, sagittal, both = maps
    inside = brain > 0
    assert (
        np.corrcoef(axial[inside], sagittal[inside])[0, 1] > 0.7
        and np.abs(axial - sagittal).max() > 0.01
    )  # other pixels were joined
    high = both > np.quantile(both[inside], 0.99)
    assert (
        axial[high].mean() > 2 * axial[inside].mean()
        and sagittal[high].mean() > 2 * sagittal[inside].mean()
    )


def test_planes_are_for_slices_of_volumes(chain, tmp_path, capsys):
    given = (
        "train",
        "--model",
        "vae",
        "--data",
        chain / "data",
        "--out",
        tmp_path / "run",
        "plane=coronal",
    )
    assert run(*given, "image_size=[32,32,32]", "model.spatial_dims=3") == 2
    assert "plane=coronal is for slices" in capsys.readouterr().err
    assert run(*given[:-1], "plane=frontal") == 2 and "plane" in capsys.readouterr().err


def test_slices_of_a_plane_are_mapped_as_the_network_sees_them(chain):
    """Inference by hand in the coronal plane: resized, mapped, resized back."""

    row = read_table(chain / "data" / "scans.tsv")[0]
    image, brain = (
        np.asarray(nib.load(chain / "data" / row[k]).dataobj) for k in ("preproc", "brain")
    )
    image = image.astype(np.float32)
    brain = brain > 0
    config = load_run_config(
        "zero",
        ["plane=coronal", "image_size=[168,180]", "postprocess.median=0", "postprocess.rim_mm=0"],
    )
    found = Detector(Placed(), config, torch.device("cpu")).atlas_map(image, brain)
    np.testing.assert_allclose(
        found, image * brain * (1 + np.arange(208))[None, :, None], rtol=1e-5
    )
    config = load_run_config(
        "zero",
        ["plane=coronal", "image_size=[84,90]", "postprocess.median=0", "postprocess.rim_mm=0"],
    )
    found = Detector(Placed(), config, torch.device("cpu")).atlas_map(image, brain)
    y = 110
    x, mask = (
        torch.from_numpy(np.ascontiguousarray(v[:, y])).float()[None, None] for v in (image, brain)
    )
    mask_small = F.interpolate(mask, (84, 90), mode="nearest-exact")
    small = F.interpolate(x, (84, 90), mode="area") * mask_small * (1 + y)
    want = (
        F.interpolate(small, (168, 180), mode="bilinear", align_corners=False)[0, 0].numpy()
        * brain[:, y]
    )
    np.testing.assert_allclose(found[:, y], want, atol=1e-3)
