"""zero, intensity, pca and atlas against scipy, scikit-learn and numbers counted by hand."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from sklearn.decomposition import PCA

from models import create_model
from models.parts.filters import blur_inside, gaussian_blur


def slices(n=40, side=(20, 24), seed=0):
    torch.manual_seed(seed)
    mask = torch.zeros(n, 1, *side)
    mask[:, :, 3:17, 4:21] = 1
    basis = torch.rand(3, 1, *side)
    image = (torch.rand(n, 3) @ basis.flatten(1)).view(n, 1, *side) / 3 * mask
    return image, mask


def batches(image, mask, z=None, size=16):
    z = torch.zeros(len(image), dtype=torch.long) if z is None else z
    return [
        {"image": image[i : i + size], "mask": mask[i : i + size], "z": z[i : i + size]}
        for i in range(0, len(image), size)
    ]


def test_gaussian_blur_is_scipy_s():
    x = torch.rand(2, 1, 20, 24)
    for sigma in (0.7, 1.5, 3):
        want = [
            ndimage.gaussian_filter(v[0].numpy(), sigma, mode="nearest", radius=round(3 * sigma))
            for v in x
        ]
        np.testing.assert_allclose(gaussian_blur(x, sigma)[:, 0].numpy(), want, atol=1e-6)
    assert gaussian_blur(x, 0) is x


def test_a_blur_inside_the_brain_takes_nothing_from_outside():
    image, mask = slices(2)
    flat = torch.full_like(image, 0.4) + 100 * (1 - mask)
    torch.testing.assert_close(blur_inside(flat, mask, 2.0), 0.4 * mask)


def test_zero_marks_nothing():
    image, mask = slices(2)
    assert not create_model("zero").anomaly_map(image, mask).any()


@pytest.mark.parametrize("tail", ["bright", "dark", "both"])
def test_robust_z_is_scipy_s_median_absolute_deviation(tail):
    image, mask = slices(3)
    got = create_model("intensity", mode="z", tail=tail).anomaly_map(image, mask)
    for i in range(3):
        values = image[i][mask[i] > 0].numpy()
        middle = np.sort(values)[(values.size - 1) // 2]  # torch's median is the lower middle
        apart = values - middle
        z = apart / np.median(np.abs(apart)) / 1.4826
        want = {"bright": np.maximum(z, 0), "dark": np.maximum(-z, 0), "both": np.abs(z)}[tail]
        np.testing.assert_allclose(got[i][mask[i] > 0].numpy(), want, rtol=2e-2, atol=1e-4)
    assert not got[mask == 0].any()


def test_equalised_intensity_is_the_rank_in_the_brain():
    image, mask = slices(2)
    image = (image * 12).round() / 12 * mask  # ties
    got = create_model("intensity", mode="equalised", tail="bright").anomaly_map(image, mask)
    values = image[0][mask[0] > 0].numpy()
    ranks = (stats.rankdata(values) - 0.5) / values.size - 0.5
    np.testing.assert_allclose(got[0][mask[0] > 0].numpy(), np.maximum(ranks, 0), atol=1e-6)


def test_equalised_intensity_does_not_see_a_change_of_scale():
    image, mask = slices(2)
    model = create_model("intensity", mode="equalised", tail="both", smooth=0)
    torch.testing.assert_close(
        model.anomaly_map(image, mask),
        model.anomaly_map(0.3 * image + 0.1 * mask, mask),
        atol=5e-3,
        rtol=0,
    )


@pytest.mark.parametrize("mirror", [False, True])
def test_pca_is_scikit_learn_s(mirror):
    image, mask = slices(40)
    image = image + 0.05 * torch.rand_like(image) * mask
    model = create_model("pca", n_components=5, mirror=mirror)
    model.fit_reference(batches(image, mask))
    slices_ = image.flatten(1).numpy()
    if mirror:
        slices_ = np.concatenate([slices_, image.flip(2).flatten(1).numpy()])
    want = PCA(5, svd_solver="full").fit(slices_)
    back = want.inverse_transform(want.transform(image.flatten(1).numpy())).reshape(image.shape)
    np.testing.assert_allclose(model.reconstruct(image).numpy(), back, atol=1e-4)


def test_pca_rebuilds_what_lies_in_its_span_and_in_bounded_memory(monkeypatch):
    monkeypatch.setattr("models.pca.STEP", 8)
    image, mask = slices(40)
    model = create_model("pca", n_components=3, mirror=False)
    model.fit_reference(batches(image, mask, size=5))
    torch.testing.assert_close(model.reconstruct(image), image, atol=1e-4, rtol=0)
    new = image[:1].clone()
    new[0, 0, 8:11, 10:13] += 0.5
    assert model.anomaly_map(new, mask[:1])[0, 0, 8:11, 10:13].mean() > 0.3


def test_pca_says_when_there_are_too_few_slices():
    image, mask = slices(4)
    with pytest.raises(ValueError, match="4 healthy slices cannot give n_components=10; lower"):
        create_model("pca", n_components=10, mirror=False).fit_reference(batches(image, mask))
    with pytest.raises(ValueError, match="expected 1 to 512"):
        create_model("pca", n_components=0)


def test_the_atlas_keeps_mean_and_spread_of_each_place():
    """Without smoothing and prior: numpy's mean and standard deviation over the scans.

    Slice index by slice index.
    """
    rng = np.random.default_rng(0)
    scans = rng.random((9, 2, 12, 10)).astype(np.float32)
    mask = np.ones((9, 2, 12, 10), np.float32)
    image, inside = (torch.tensor(v).flatten(0, 1)[:, None] for v in (scans, mask))
    z = torch.arange(2).repeat(9)
    order = torch.randperm(18)
    model = create_model("atlas", tail="both", smooth=0, prior=0, mirror=False)
    model.fit_reference(batches(image[order], inside[order], z[order], size=5))
    np.testing.assert_allclose(model.mean.numpy(), scans.mean(0), atol=1e-5)
    np.testing.assert_allclose(model.deviation.numpy(), scans.std(0), rtol=1e-3)
    got = model.anomaly_map(image[:2], inside[:2], z[:2])[:, 0].numpy()
    np.testing.assert_allclose(
        got, np.abs(scans[0] - scans.mean(0)) / scans.std(0), rtol=2e-3, atol=1e-4
    )


def test_the_atlas_looks_at_the_slice_s_own_place():
    image = torch.zeros(20, 1, 8, 8)
    mask = torch.ones(20, 1, 8, 8)
    z = torch.arange(20) % 2
    image[z == 1] = 0.8
    image += 0.01 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    model = create_model("atlas", smooth=0, prior=0.1, mirror=False)
    model.fit_reference(batches(image, mask, z))
    right, wrong = (
        model.anomaly_map(image[:2], mask[:2], place).mean() for place in (z[:2], 1 - z[:2])
    )
    assert wrong > 10 * right
    # A slice that no healthy scan had: the last known one.
    beyond = model.anomaly_map(image[1:2], mask[1:2], torch.tensor([7]))
    torch.testing.assert_close(beyond, model.anomaly_map(image[1:2], mask[1:2], torch.tensor([1])))


def test_the_mirror_image_teaches_the_other_side():
    image, mask = slices(20)
    left = image.clone()
    left[:, :, 10:] = 0.3 * mask[:, :, 10:]
    model = create_model("atlas", smooth=0, prior=1)
    model.fit_reference(batches(left, mask))
    torch.testing.assert_close(model.mean, model.mean.flip(1))


def test_a_standardised_atlas_does_not_see_a_change_of_scale():
    image, mask = slices(20)
    model = create_model("atlas", smooth=1, prior=1, standardise="robust")
    model.fit_reference(batches(image, mask))
    one = model.anomaly_map(image, mask)
    two = model.anomaly_map(0.5 * image + 0.2 * mask, mask)
    torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)
    plain = create_model("atlas", smooth=1, prior=1)
    plain.fit_reference(batches(image, mask))
    scaled = plain.anomaly_map(0.5 * image + 0.2 * mask, mask)
    assert (plain.anomaly_map(image, mask) - scaled).abs().max() > 0.1
