"""The detector of planted lesions: shapes, looks, and what it finds after training."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, label
from sklearn.metrics import average_precision_score

from models import create_model
from models.parts.lesion_shapes import Room, draw_shape
from models.parts.planting import LOOKS, canvas_of, change_contrast, plant, plant_batch
from pipelines.config import load_recipe
from pipelines.detect.build import build_model
from pipelines.detect.config import load_run_config

pytestmark = pytest.mark.slow

SIDES = (48, 40)


def disc(sides=SIDES, share=0.9):
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in sides), indexing="ij")
    return rows**2 + columns**2 < share**2


def head(rng, noise=0.02, sides=SIDES, inner=0.4):
    """A brain of two tissues, (1, 1, H, W)."""
    brain = disc(sides)
    image = np.where(disc(sides, 0.45), inner, 0.6) + noise * rng.normal(size=sides)
    return (image * brain).clip(0, 1).astype(np.float32)[None, None], brain


def batch_of(count=16, noise=0.0, sides=SIDES, inner=0.4):
    rng = np.random.default_rng(5)
    images = np.concatenate([head(rng, noise, sides, inner)[0] for _ in range(count)])
    mask = torch.from_numpy(disc(sides)).float().expand(count, 1, *sides).contiguous()
    seed = torch.arange(count) + 100
    return {
        "image": torch.from_numpy(images),
        "mask": mask,
        "z": torch.zeros(count).long(),
        "seed": seed,
    }


@pytest.mark.parametrize("name", ["blob", "shell", "tube", "many"])
@pytest.mark.parametrize("volume", [2.0, 10.0])
def test_a_shape_has_its_volume(name, volume):
    """Counted in voxels of 1.5 mm, of an endless brain."""
    mm = 1.5
    offsets = mm * np.arange(-45, 46)
    got = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        brain = np.zeros((91, 91), bool)
        brain[45, 45] = True  # the only place for a centre
        depth = draw_shape(rng, name, volume, Room(brain, mm, offsets))
        got.append((depth > 0).sum() * mm**3 / 1000)
    assert np.mean(got) == pytest.approx(volume, rel=0.15)
    assert np.all(np.abs(np.array(got) / volume - 1) < 0.35)


def test_shapes_look_as_they_are_called():
    mm = 1.0
    brain = np.zeros((81, 81), bool)
    brain[40, 40] = True
    room = Room(brain, mm, mm * np.arange(-40, 41))
    rng = np.random.default_rng(3)
    found = {
        name: draw_shape(rng, name, 4.0, room) > 0 for name in ("blob", "shell", "tube", "many")
    }
    # a ball of 4 ml has a radius of 9.8 mm: a tube is longer, a shell is hollow, many are apart
    spread = {name: np.linalg.norm(np.ptp(np.argwhere(v), axis=0)) for name, v in found.items()}
    assert spread["tube"] > 1.3 * spread["blob"]
    middle = np.argwhere(found["shell"]).mean(0).round().astype(int)
    assert not found["shell"][tuple(middle)] and label(found["shell"])[1] == 1
    assert label(found["many"])[1] >= 2 and label(found["blob"])[1] == 1


@pytest.mark.parametrize("name", ["rim", "crescent"])
def test_layers_lie_at_the_surface(name):
    brain = disc((96, 96))
    under = distance_transform_edt(brain) * 2.0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        inside = (draw_shape(rng, name, 5.0, Room(brain, 2.0, np.zeros(1)))[0] > 0) & brain
        assert inside.any() and under[inside].min() <= 2.0
        # 8 mm is the thickest rim; a crescent of 5 ml has share * (2 * 5000 / pi / share) ** (1/3)
        assert under[inside].max() <= (8.0 if name == "rim" else 8.1)


def test_every_place_of_the_brain_is_planted_in():
    brain = disc()
    hit = np.zeros(SIDES)
    for seed in range(500):
        rng = np.random.default_rng(seed)
        hit += draw_shape(rng, "blob", 10.0, Room(brain, 5.0, np.zeros(1)))[0] > 0
    assert (hit[brain] > 0).mean() > 0.95
    rim = brain & (distance_transform_edt(brain) <= 1)
    assert hit[rim].mean() > 0.3 * hit[brain].mean()


def drawn(look, seed, noise=0.03, inner=0.4):
    rng = np.random.default_rng(seed)
    image, brain = head(rng, noise, SIDES, inner)
    other = head(rng, noise)[0][:, :, ::-1].copy()
    depth = draw_shape(rng, "blob", 20.0, Room(brain, 4.0, np.zeros(1)))
    canvas = canvas_of(image, brain, depth, other, 4.0)
    new, lesion = plant(rng, look, canvas)
    return image[0, 0], new[0, 0], lesion > 0, depth[0], brain


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_changes_its_lesion_alone(look):
    seen = 0
    for seed in range(12):
        image, new, lesion, depth, brain = drawn(look, seed)
        assert new.min() >= 0 and new.max() <= 1 and not lesion[~brain].any()
        if not lesion.any():
            assert np.array_equal(image, new)
            continue
        seen += 1
        assert np.abs(new - image)[lesion].mean() >= 0.02
        # mass and oedema reach farther; without them nothing does
        wide = look in ("mass", "shift", "bright", "fill", "halo")
        far = brain & (depth < -40 if wide else ~lesion)
        assert np.allclose(new[far], image[far], atol=5e-3 if wide else 1e-6)
    assert seen >= 4


def test_a_shift_moves_the_mean_and_keeps_the_texture():
    for seed in range(40):
        image, new, lesion, depth, brain = drawn("shift", seed)
        core = lesion & (depth > 4)  # edges fade over 4 mm at most
        if core.sum() < 20 or ((new[core] <= 0) | (new[core] >= 1)).any():
            continue
        low, high = np.percentile(image[brain], (5, 95))
        change = (new - image)[core]
        assert 0.099 * (high - low) <= abs(change.mean()) <= 0.701 * (high - low)
        assert change.std() < 1e-6  # every pixel moves alike


def test_a_bright_lesion_rises_and_keeps_any_share_of_the_texture():
    kept = []
    for seed in range(60):
        image, new, lesion, depth, brain = drawn("bright", seed, inner=0.3)
        core = lesion & (depth > 4)
        if core.sum() < 20 or ((new[core] <= 0) | (new[core] >= 1)).any():
            continue
        low, high = np.percentile(image[brain], (5, 95))
        rise = (np.median(new[core]) - np.median(image[core])) / (high - low)
        assert 0.05 < rise < 1.2
        kept.append(new[core].std() / image[core].std())
        # the tissue's own values on a straight line; its middle rises by 0.1 to 0.9 of the span
        line = np.polyfit(image[core], new[core], 1)
        assert np.allclose(np.polyval(line, image[core]), new[core], atol=1e-4)
        middle = np.median(image[lesion])
        assert 0.099 <= (np.polyval(line, middle) - middle) / (high - low) <= 0.901
    assert len(kept) > 5 and min(kept) < 0.3 and max(kept) > 0.7 and max(kept) < 1.001


def test_a_fill_has_one_value_and_the_grain_of_the_image():
    ratios = []
    for seed in range(40):
        _, new, lesion, depth, _ = drawn("fill", seed, inner=0.6)
        core = lesion & (depth > 4)
        if core.sum() > 15 and not ((new[core] <= 0) | (new[core] >= 1)).any():
            ratios.append(new[core].std() / 0.03)
    assert len(ratios) > 3 and 0.3 < np.median(ratios) < 1.6


def test_a_blur_and_a_foreign_patch_against_their_definitions():
    smoother = [drawn("texture", seed, noise=0.06) for seed in range(20)]
    ratios = [
        n[m & (d > 4)].std() / i[m & (d > 4)].std()
        for i, n, m, d, _ in smoother
        if (m & (d > 4)).sum() > 20
    ]
    assert min(ratios) < 0.8 and max(ratios) > 1.2  # blurred and sharpened ones
    rng = np.random.default_rng(0)
    image, brain = head(rng, 0)
    other = np.where(brain, 0.9, 0).astype(np.float32)[None, None]
    depth = draw_shape(rng, "blob", 20.0, Room(brain, 4.0, np.zeros(1)))
    canvas = canvas_of(image, brain, depth, other, 4.0)
    new, lesion = plant(np.random.default_rng(1), "foreign", canvas)
    alpha = np.random.default_rng(1).uniform(0.3, 1)
    at = lesion > 0
    mixed = (1 - alpha) * image[0, 0] + alpha * canvas.donor[0, 0]
    assert np.allclose(new[0, 0][at], mixed[at].clip(0, 1), atol=1e-6)


def test_half_of_the_samples_stay_healthy_and_each_follows_its_own_seed():
    batch = batch_of(200, 0.02)
    image = batch["image"]
    mask = batch["mask"]
    seeds = batch["seed"]
    looks = list(LOOKS)
    new, lesions = plant_batch(image, mask, seeds, looks, 0.5, 5.0)
    ill = lesions.flatten(1).any(1)
    assert 0.4 < ill.float().mean() < 0.6
    assert torch.equal(new[~ill], image[~ill]) and lesions[mask == 0].sum() == 0
    # a sample's lesion depends on its seed, and on no other sample but the donor of a patch
    alone, found = plant_batch(image[5:9], mask[5:9], seeds[5:9], ["shift"], 1.0, 5.0)
    again, others = plant_batch(image, mask, seeds, ["shift"], 1.0, 5.0)
    assert torch.equal(alone, again[5:9]) and torch.equal(found, others[5:9])
    shown = change_contrast(image, mask, seeds, 1.0)
    assert torch.equal(shown[5:9], change_contrast(image[5:9], mask[5:9], seeds[5:9], 1.0))
    assert (shown - image).abs().mean() > 0.01 and torch.equal(
        change_contrast(image, mask, seeds, 0), image
    )


def test_no_randomness_passes_between_training_and_validation():
    """Validation plants what its own seeds say, of the held-out looks, whatever was trained on."""
    torch.manual_seed(0)
    model = create_model("planted", image_size=SIDES, width=8)
    batch = batch_of(8, 0.02)
    model.prepare([batch])
    model.eval()
    first = model.loss(batch)["loss"]
    model.train()
    np.random.seed(1)
    torch.manual_seed(1)
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())
    model.loss(batch | {"seed": batch["seed"] + 5})
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    model.eval()
    assert torch.equal(model.loss(batch)["loss"], first)
    # the same seeds in training plant other lesions: another look
    made = [
        plant_batch(batch["image"], batch["mask"], batch["seed"], looks, 1.0, 5.0)[0]
        for looks in (model.looks, model.held_out)
    ]
    assert not torch.equal(*made)


def test_a_lesion_of_known_shape_in_flat_tissue_is_found_after_a_tiny_training():
    torch.manual_seed(0)
    sides = (32, 32)
    given = {"image_size": sides, "width": 8, "contrast": 0.0, "field_mm": 80.0}
    model = create_model("planted", **given, looks=("shift", "fill"))
    batch = batch_of(16, 0.0, sides, inner=0.6)
    model.prepare([batch])
    for steps, rate in ((100, 1e-2), (40, 1e-3)):
        optimizer = torch.optim.Adam(model.parameters(), rate)
        for step in range(steps):
            seed = batch["seed"] + 1000 * step + round(1e5 * rate)
            loss = model.loss(batch | {"seed": seed})["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    square = (rows >= 10) & (rows < 15) & (columns >= 17) & (columns < 23)
    image = batch["image"][:2].clone()
    image[0, 0][square] += 0.35
    image[1, 0][square] -= 0.35
    with torch.no_grad():
        found = model.anomaly_map(image, batch["mask"][:2], batch["z"][:2])
    inside = batch["mask"][0, 0] > 0
    for one in found:
        assert average_precision_score(square[inside], one[0][inside]) > 0.99


def test_neighbours_show_the_same_lesion_where_it_reaches_them():
    """Three slices 4 mm apart, of two channels: a blob of 30 ml is about 39 mm thick."""
    rng = np.random.default_rng(0)
    image, brain = head(rng, 0)
    stack = torch.from_numpy(np.repeat(image, 6, 1))
    mask = torch.from_numpy(brain).float()[None, None]
    offsets = (0.0, -4.0, 4.0)
    reached = 0
    for seed in range(30):
        seeds = torch.tensor([seed])
        new, lesion = plant_batch(stack, mask, seeds, ["shift", "fill"], 1.0, 5.0, offsets)
        assert new.shape == stack.shape and lesion.shape == mask.shape
        changed = (new != stack).flatten(2).any(2)[0].view(3, 2)
        assert not changed[1:].any() or changed[0].any() or not lesion.any()
        reached += int(lesion.any() and changed.all())
    assert reached >= 5


def test_the_config_says_which_neighbours_there_are():
    config = load_run_config("planted", ["around=[-4,4]", "image_size=[32,32]", "model.width=8"])
    model = build_model(config, load_recipe("t1+flair"))
    assert model.channels == 2 and model.offsets == (0.0, -4.0, 4.0)
    batch = batch_of(2, 0.02, (32, 32))
    batch |= {"image": batch["image"].repeat(1, 6, 1, 1)}
    model.prepare([batch])
    assert torch.isfinite(model.loss(batch)["loss"])
    seen = model.seen(batch["image"], batch["mask"], batch["z"])
    # six channels of the scan, the healthy mean of two, and their distance from it
    assert (
        seen.shape[1] == 10
        and seen.abs().max() <= 1
        and seen[batch["mask"].expand_as(seen) == 0].abs().max() == 0
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"looks": ("glow",)}, "looks"), ({"share": 1.5}, "share"), ({"held_out": ()}, "held_out")],
)
def test_arguments_that_make_no_sense_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        create_model("planted", **arguments)


def test_the_loss_is_dice_and_ten_times_the_focal_loss():
    """Both by hand, from the planted slices of the same seeds."""
    torch.manual_seed(0)
    model = create_model("planted", image_size=SIDES, atlas=False)
    model.eval()
    batch = batch_of(noise=0.02)
    x, lesions = plant_batch(
        batch["image"], batch["mask"], batch["seed"], model.held_out, 0.5, model.pixel_mm
    )
    with torch.no_grad():
        found = model.anomaly_map(x, batch["mask"]).double()
        got = model.loss(batch)["loss"].item()
    dice = 1 - 2 * (found * lesions).sum() / (found.sum() + lesions.sum())
    right = torch.where(lesions > 0, found, 1 - found)
    focal = -((1 - right) ** 2 * right.log()).mean()
    assert lesions.sum() > 50
    assert got == pytest.approx((dice + 10 * focal).item(), rel=1e-4)
