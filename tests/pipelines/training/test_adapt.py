"""Children of a run for another scanner: what changes, what does not, and what they promise."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.parts.pairs import confusion_loss, critic_loss, pair_features, pair_groups
from pipelines.cohort.cases import load, read_cases
from pipelines.config import read_config, write_yaml
from pipelines.detect.batch import result_digest
from pipelines.detect.config import Harmonise, RunConfig, load_run_config
from pipelines.detect.identity import map_digest, settings
from pipelines.detect.inputs import harmonised
from pipelines.detect.ready import ready_names, ready_run
from pipelines.detect.run import load_run
from pipelines.detect.typical import BINS
from pipelines.training import fada as fada_file
from pipelines.training.adapt import adapt, landmarks, pieces_between, shared_out
from pipelines.training.fada import Pairs, coder_update, endless, learned_cases
from pipelines.training.fit import check_options
from pipelines.training.folds import train_run
from pipelines.training.relearn import SHARE, slices_of
from preprocessing.files import write_table
from preprocessing.scans import InputError
from tests.pipelines.test_pictures import data, folder  # noqa: F401  the same prepared pictures
from tests.pipelines.test_pipeline import run as command

TINY = [
    "image_size=[32,32]",
    "loop.loader_workers=0",
    "loop.batch_size=4",
    "postprocess.rim_mm=0",
]
CAE = ["model.channels=[4,6,8]", "model.latent=6", "stages.train.max_epochs=2"]


@pytest.fixture(scope="module")
def healthy(data):
    return [case for case in read_cases(data) if case.label == "healthy"]


@pytest.fixture(scope="module")
def runs(data, healthy, tmp_path_factory):
    """A small autoencoder, and an atlas, which has no network: trained on five pictures."""
    folder = tmp_path_factory.mktemp("parents")
    splits_of = ["train"] * 5 + ["val"] * 3
    rows = [{"id": c.id, "split": s} for c, s in zip(healthy[:8], splits_of, strict=True)]
    write_table(folder / "splits.tsv", rows)
    found = {}
    for name, more in (("cae", CAE), ("atlas", [])):
        config = load_run_config(name, [*TINY, *more])
        train_run(config, data, folder / name, folder / "splits.tsv")
        found[name] = load_run(folder / name, "cpu")
    return found


def changed(child, parent):
    """The names of the weights and buffers that differ."""
    pairs = zip(child.model.state_dict().items(), parent.model.state_dict().values(), strict=True)
    return [name for (name, a), b in pairs if not torch.equal(a, b)]


def images(run, cases):
    """All slices of cases as the network sees them, and their brains."""
    dataset = slices_of(run, cases)
    batch = dataset.batch([(i, 0) for i in range(len(dataset))])
    return batch["image"], batch["mask"]


def test_landmarks_are_percentiles_and_bring_one_scanner_to_the_other():
    rng = np.random.default_rng(0)
    ours = rng.beta(3, 3, 200_000)
    theirs = 0.9 * rng.beta(3, 3, 200_000) ** 1.7
    shapes = [np.histogram(values, BINS)[0] / values.size for values in (theirs, ours)]
    found = [landmarks(shape) for shape in shapes]
    wanted = np.percentile(ours, (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99))
    assert np.allclose(found[1], wanted, atol=0.5 * BINS[1])

    pieces = pieces_between(*found)
    moved = harmonised(theirs, pieces)
    percents = (10, 30, 50, 70, 90)
    apart = np.percentile(moved, percents) - np.percentile(ours, percents)
    before = np.percentile(theirs, percents) - np.percentile(ours, percents)
    assert np.abs(apart).max() < 0.01 < 0.1 < np.abs(before).max()
    assert (np.diff(moved[np.argsort(theirs)]) >= 0).all()  # no two grey values change places
    assert harmonised(np.array([0.0, 1.0]), pieces).tolist() == [0, 1]

    same = pieces_between(found[1], found[1])
    assert same.given == same.wanted
    flat = pieces_between(np.full(11, 0.5), found[1])  # landmarks that coincide count once
    assert len(flat.given) == 3


def test_a_harmonised_child_scores_the_moved_image_and_keeps_the_network(runs, healthy, tmp_path):
    parent = runs["cae"]
    child = adapt(parent, healthy[8:10], tmp_path / "child", "harmonise")
    pieces = child.config.harmonise
    assert child.weights_digest == parent.weights_digest
    prepared = load(healthy[12])
    by_hand = np.interp(prepared.image, pieces.given, pieces.wanted).astype(np.float32)
    moved = replace(prepared, image=by_hand)
    assert np.abs(by_hand - prepared.image).max() > 0.01
    assert (child.detector.map(prepared).map == parent.detector.map(moved).map).all()
    assert (child.detector.map(prepared).map != parent.detector.map(prepared).map).any()
    assert map_digest("w", child.config, "s") != map_digest("w", parent.config, "s")
    assert settings(child.config, "training")["harmonise"] == {}  # the weights know nothing of it
    with pytest.raises(Exception, match="write it with 'make adapt HOW=harmonise'"):
        check_options(child.config)


def test_two_scans_adapt_and_promise_nothing(runs, healthy, tmp_path):
    parent = runs["cae"]
    files = {path.name: path.read_bytes() for path in parent.folder.iterdir() if path.is_file()}
    child = adapt(parent, healthy[8:10], tmp_path / "child", "adabn")
    assert (child.point().voxel, child.point().scan) == (parent.point().voxel, parent.point().scan)
    assert "Nothing is promised: 2 healthy scans adapted the run" in child.points["finding"].promise
    assert child.typical == parent.typical
    history = child.history
    assert history["parent"] == {"run": "cae", "weights": parent.weights_digest}
    assert history["adapted"]["how"] == "adabn" and history["calibrated_on"] == []
    assert history["adapted"]["scans"] == [case.id for case in healthy[8:10]]
    assert {case.digest for case in healthy[8:10]} <= set(history["digests"])
    for name, content in files.items():  # the parent is left alone
        assert (parent.folder / name).read_bytes() == content


def test_adabn_gives_the_new_scans_statistics_and_no_weight_changes(runs, healthy, tmp_path):
    parent = runs["cae"]
    cases = healthy[8:13]
    child = adapt(parent, cases, tmp_path / "child", "adabn")
    names = changed(child, parent)
    assert len(names) == 2 * child.history["adapted"]["batch_norms"] == 2 * 5
    assert all(name.endswith(("running_mean", "running_var")) for name in names)

    values, _ = images(parent, cases)
    for block in (*child.model.encoder, *child.model.decoder[:-1]):
        if block is child.model.decoder[0]:
            values = child.model.code(values)
        convolution, norm, *rest = block
        with torch.no_grad():
            reached = convolution(values)
            by_channel = reached.transpose(0, 1).flatten(1).double().numpy()
            assert np.allclose(norm.running_mean, by_channel.mean(1), atol=1e-5)
            assert np.allclose(norm.running_var, by_channel.var(1, ddof=1), rtol=1e-4, atol=1e-7)
            values = torch.nn.Sequential(norm, *rest)(reached)

    prepared = load(healthy[13])
    apart = child.detector.map(prepared).map - parent.detector.map(prepared).map
    assert np.abs(apart).max() > 0
    child.model.load_state_dict(parent.model.state_dict())  # swapped back
    assert (child.detector.map(prepared).map == parent.detector.map(prepared).map).all()
    # five scans calibrate, and the promise says that they adapted too
    assert child.history["calibrated_on"] == [case.id for case in cases]
    assert "These scans also adapted the run" in child.points["finding"].promise
    assert load_run(parent.folder, "cpu").points == parent.points


def test_finetune_moves_the_last_layers_alone_and_lowers_the_loss(runs, healthy, tmp_path):
    parent = runs["cae"]
    cases = healthy[8:11]
    child = adapt(parent, cases, tmp_path / "child", "finetune")
    layers = child.history["adapted"]["layers"]
    assert layers[0] == "decoder.2"  # the last one comes first
    moved = changed(child, parent)
    assert moved and {name.rpartition(".")[0] for name in moved} <= set(layers)
    assert not any("running" in name for name in moved)
    weights = sum(p.numel() for p in parent.model.parameters())
    last = dict(parent.model.named_modules())
    kept = torch.nn.ModuleList([last[name] for name in layers])
    assert sum(p.numel() for p in kept.parameters()) < SHARE * weights

    image, _ = images(parent, cases)
    with torch.no_grad():
        losses = [float(run.model.loss({"image": image})["loss"]) for run in (parent, child)]
    assert losses[1] < losses[0]


def test_pairs_are_of_the_group_that_they_are_called():
    """Features name their slice: scanner, class, number."""
    numbers = torch.arange(3.0)[:, None]
    source = [torch.cat([torch.tensor([[0.0, kind]] * 3), numbers], 1) for kind in (0, 1)]
    target = [values + torch.tensor([1.0, 0, 10]) for values in source]
    pairs, groups = pair_groups(source, target)
    assert len(pairs) == 24 and torch.bincount(groups).tolist() == [6, 6, 6, 6]
    for pair, group in zip(pairs.tolist(), groups.tolist(), strict=True):
        first = pair[:3]
        second = pair[3:]
        assert first[0] == 0
        assert group % 2 == second[0]  # 1 and 3: with the target
        assert group // 2 == (first[1] != second[1])  # 2 and 3: of the other class
        assert first[2] != second[2] % 10  # no slice meets itself
    with pytest.raises(ValueError, match="two slices or more"):
        pair_groups([v[:1] for v in source], [v[:1] for v in target])


def test_the_critic_lowers_the_right_groups_and_the_network_the_confused_ones():
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).double()
    groups = torch.arange(8) % 4
    shares = torch.log_softmax(logits, 1)
    right = -sum(shares[i, i % 4] for i in range(8)) / 8
    confused = -sum(shares[i, i % 4 - 1] for i in (1, 3, 5, 7)) / 4
    assert torch.allclose(critic_loss(torch.nn.Identity(), logits, groups), right)
    assert torch.allclose(confusion_loss(torch.nn.Identity(), logits, groups), confused)


def test_each_step_of_fada_freezes_the_other_network(runs, data, healthy):
    run = runs["cae"]
    part = run.detector.model
    theirs = learned_cases(run, data)
    assert [case.id for case in theirs] == run.history["train_scans"]
    old, new = (next(endless(run, slices_of(run, c))) for c in (theirs, healthy[8:12]))
    pairs = Pairs(part, coder_update(run, part), run, old)
    states = [copy.deepcopy(network.state_dict()) for network in (part, pairs.critic)]

    def same(number):
        network = (part, pairs.critic)[number]
        return all(torch.equal(v, states[number][k]) for k, v in network.state_dict().items())

    pairs.critic_step(old, new)
    assert same(0) and not same(1)
    states[1] = copy.deepcopy(pairs.critic.state_dict())
    pairs.network_step(old, new)
    assert same(1) and not same(0)
    assert all(p.grad is None or not p.requires_grad for p in pairs.critic.parameters())
    one = {key: values[:1] for key, values in new.items()}
    pairs.critic_step(old, one)  # one new slice stands in every pair
    with pytest.raises(InputError, match="one slice or volume at a time"):
        Pairs(part, coder_update(run, part), run, one)
    part.load_state_dict(states[0])  # the fixture's network as it was
    features = pair_features(part.encoder, old["image"])
    assert torch.allclose(features, part.encoder(old["image"]).mean((2, 3)))


def test_fada_end_to_end(runs, data, healthy, tmp_path, monkeypatch):
    monkeypatch.setattr(fada_file, "STEPS", 3)
    parent = runs["cae"]
    child = adapt(parent, healthy[8:10], tmp_path / "child", "fada", data)
    names = changed(child, parent)
    assert any(name.startswith("encoder") for name in names)
    assert not any("running" in name for name in names)
    assert child.history["adapted"]["source_scans"] == 5
    again = adapt(parent, healthy[8:10], tmp_path / "child", "fada", data)
    assert not changed(again, child)


def test_no_scan_adapts_and_calibrates_where_there_are_ten(healthy):
    adapting, calibrating = shared_out(healthy[:11])
    assert (len(adapting), len(calibrating)) == (6, 5)
    assert not {case.id for case in adapting} & {case.id for case in calibrating}
    assert shared_out(healthy[:9]) == (healthy[:9], healthy[:9])
    assert shared_out(healthy[:4]) == (healthy[:4], [])


def test_what_cannot_be_adapted_is_refused(runs, data, healthy, tmp_path):
    cases = healthy[8:10]
    for name, how, source, sentence in (
        ("atlas", "adabn", None, "'atlas' has no batch norm that was trained"),
        ("atlas", "finetune", None, "not one network that learns from healthy scans by gradient"),
        ("atlas", "fada", data, "not one network that learns"),
        ("cae", "fada", None, "HOW=fada needs SOURCE="),
        ("cae", "adabn", data, "HOW=fada needs SOURCE="),
        ("cae", "calibration", None, "calibration needs at least 5"),
    ):
        with pytest.raises(InputError, match=sentence):
            adapt(runs[name], cases, tmp_path / "child", how, source)
    assert not (tmp_path / "child").exists()
    with pytest.raises(InputError, match=r"is an image that .* has learned from"):
        adapt(runs["cae"], healthy[7:9], tmp_path / "child", "adabn")
    unknown = replace(runs["cae"], typical=None)
    with pytest.raises(InputError, match="no intensity histogram"):
        adapt(unknown, cases, tmp_path / "child", "harmonise")

    child = adapt(runs["cae"], cases, tmp_path / "child", "adabn")
    with pytest.raises(InputError, match="is itself a child of 'cae'; adapt that one"):
        adapt(child, healthy[10:12], tmp_path / "other", "harmonise")
    with pytest.raises(InputError, match="holds another run"):
        adapt(runs["cae"], cases, tmp_path / "child", "harmonise")
    calibrated = adapt(child, healthy[10:15], tmp_path / "calibrated", "calibration")
    assert not changed(calibrated, child)
    assert calibrated.history["adapted"]["how"] == "adabn"


def test_on_the_command_line(runs, healthy, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for case in healthy[8:10]:
        shutil.copyfile(case.image, tmp_path / "in" / case.image.name)
    told = ["--run", runs["cae"].folder, "--input", tmp_path / "in", "--out", tmp_path / "child"]
    assert command("adapt", *told, "--how", "harmonise") == 0
    said = capsys.readouterr().out
    assert "adapted by harmonise on 2 healthy scans, not calibrated, 0 left out. Nothing is" in said
    assert load_run(tmp_path / "child", "cpu").config.harmonise


@pytest.mark.parametrize("name", ready_names())
def test_a_run_that_uses_none_of_this_stays_byte_for_byte_as_it_was(name):
    folder = ready_run(name)
    config = read_config(RunConfig, folder / "config.yaml")
    assert write_yaml(config) == (folder / "config.yaml").read_text()
    assert not {"wrm", "harmonise"} & set(settings(config, "figures"))
    run = load_run(folder, "cpu")
    pieces = Harmonise(given=(0, 0.5, 1), wanted=(0, 0.4, 1))
    moved = run.config.model_copy(update={"harmonise": pieces})
    other = replace(run, detector=replace(run.detector, config=moved))
    assert result_digest(run, run.point()) != result_digest(other, run.point())
