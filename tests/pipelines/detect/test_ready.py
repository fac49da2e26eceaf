"""Small copies of runs, and ready-made runs that are known by name and digest."""

import gzip
import hashlib
import io
import shutil
import zipfile

import numpy as np
import pytest
import torch

from pipelines import infer
from pipelines.detect import pack as small
from pipelines.detect import ready
from pipelines.detect.folder import read_history, write_history
from pipelines.detect.pack import pack
from pipelines.detect.run import load_run, read_weights
from preprocessing import register
from preprocessing.files import file_digest
from preprocessing.scans import InputError
from tests.conftest import case_of
from tests.server import Served, serving


@pytest.fixture
def packed(tiny_run, tmp_path):
    pack(tiny_run, tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def shipped(packed, monkeypatch):
    """A ready-made run named t1, in a place of its own."""
    configs = packed.parent / "configs"
    configs.mkdir()
    (configs / "t1.yaml").write_text(
        f"folder: {packed.name}\ndigest: {file_digest(packed / 'run.json')}\n"
        "licence: CC0-1.0\ntrained_on: a set\ncard: small/README.md\n"
    )
    monkeypatch.setattr(ready, "FOLDER", configs)
    monkeypatch.setattr(ready, "ROOT", packed.parent)
    monkeypatch.setattr(ready, "READY", packed.parent / "ready")
    return packed


def zipped(folder, into=None, more=()):
    """A run folder as a zip archive, and its digest; `into`: the folder that it lies in there."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in sorted(folder.iterdir()):
            if path.name != ".norma.lock":
                file.write(path, f"{into}/{path.name}" if into else path.name)
        for name in more:
            file.writestr(name, "x")
    content = buffer.getvalue()
    return content, hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("into", [None, "large"])
def test_a_run_is_brought_from_an_address_and_remembered(shipped, command, into):
    content, digest = zipped(shipped, into)
    with serving(Served(content, drop=[1000])) as served:
        asked = ("fetch", "--ready", "large")
        told = command(*asked, "--address", served.address, "--digest", digest)
        assert told.code == 0 and "make infer RUN=large" in told.out
        folder = shipped.parent / "ready" / "large"
        assert load_run(ready.run_folder("large"), "cpu").points == load_run(shipped, "cpu").points
        known = ready.ready("large")
        assert (known.address, known.archive) == (served.address, digest)
        assert [path.name for path in folder.parent.iterdir()] == ["large"]

        assert command(*asked).code == 0 and served.asked == [0, 1000]  # it is here
        told = command(*asked, "--digest", "0" * 64)
        assert told.code == 2 and "names another archive as 'large'" in told.error
        shutil.rmtree(folder)
        with pytest.raises(InputError, match="bring it with 'make fetch READY=large'"):
            ready.run_folder("large")
        assert command(*asked).code == 0 and len(served.asked) == 3
        assert ready.run_folder("large") == folder


def test_an_archive_that_is_no_run_leaves_nothing_behind(shipped, command):
    """Files of no run, ways out of the folder, damage inside, and no archive at all."""
    damaged = shipped.parent / "damaged"
    shutil.copytree(shipped, damaged)
    (damaged / "threshold.json").write_text("{}")
    wrong = {
        "which is no part of a run": zipped(shipped, more=["start.sh"]),
        "holds '../../run.json'": zipped(shipped, more=["../../run.json"]),
        "not the file that this run was finished with": zipped(damaged),
        "no zip archive of a run": (b"text", hashlib.sha256(b"text").hexdigest()),
    }
    for message, (content, digest) in wrong.items():
        with serving(Served(content)) as served:
            given = ("--ready", "large", "--address", served.address, "--digest", digest)
            told = command("fetch", *given)
        assert told.code == 2 and message in told.err
        assert list((shipped.parent / "ready").iterdir()) == []
        assert ready.ready_names() == ["t1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--ready", "t1"], "is shipped with Norma; there is nothing to fetch"),
        (["--ready", "large"], "no address is known for 'large'; give ADDRESS= and DIGEST="),
        (["--ready", "../x"], "expected lower-case letters"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(shipped, command, given, message):
    told = command("fetch", *given)
    assert told.code == 2 and message in told.error


def test_a_packed_run_is_half_as_large_and_gives_the_same_map(tiny_run, packed):
    assert (packed / "weights.pt").read_bytes()[:2] == b"\x1f\x8b"
    with gzip.open(packed / "weights.pt") as file:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    for values in stored.values():
        if values.is_floating_point():
            large = values.numel() > small.SMALL
            assert values.dtype == (torch.float16 if large else torch.float32)
    size = (packed / "weights.pt").stat().st_size
    assert size < 0.6 * (tiny_run / "weights.pt").stat().st_size

    rng = np.random.default_rng(0)
    image = rng.random((40, 44, 6)).astype(np.float32)
    brain = np.zeros(image.shape, bool)
    brain[4:-4, 4:-4] = True
    maps = [load_run(r, "cpu").detector.atlas_map(image, brain) for r in (tiny_run, packed)]
    assert maps[0].max() > 0
    np.testing.assert_allclose(maps[1], maps[0], atol=0.01 * maps[0].max())
    assert load_run(packed, "cpu").points == load_run(tiny_run, "cpu").points


def test_packing_takes_no_other_run_s_place(tiny_run, packed, tmp_path):
    pack(tiny_run, packed)  # the same again
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    write_history(other, read_history(other) | {"data": "of others"})
    before = (other / "weights.pt").read_bytes()
    for out in (other, tiny_run):
        with pytest.raises(InputError, match="holds another run, which would be lost"):
            pack(tiny_run, out)
    assert (other / "weights.pt").read_bytes() == before


def test_what_half_precision_changes_is_noted_and_too_much_is_refused(
    tiny_run, packed, monkeypatch
):
    cases = [case_of("a", packed), case_of("b", packed)]
    monkeypatch.setattr(small, "largest_change", lambda *_: 0.0041234)
    assert small.check_packed(tiny_run, packed, cases) == 0.0041234
    noted = read_history(packed)["packed"]
    assert noted == {"largest_change": 0.004123, "scans": ["a", "b"]}
    pack(tiny_run, packed)  # the note makes it no other run
    assert "packed" not in read_history(packed)
    monkeypatch.setattr(small, "largest_change", lambda *_: 0.04)
    with pytest.raises(InputError, match=r"by 4.0%, more than 1%"):
        small.check_packed(tiny_run, packed, cases)


def test_a_change_is_a_share_of_the_map_and_below_the_threshold_of_that():
    values = np.array([0.0, 0.5, 2.0, 10.0])
    packed = values + np.array([0.01, 0.0, -0.01, 0.2])
    assert small.change_of(values, packed, 1.0) == pytest.approx(0.02)  # 0.2 of 10
    assert small.change_of(values[:3], packed[:3], 1.0) == pytest.approx(0.01)  # 0.01 of 1
    assert small.change_of(values[2:3], packed[2:3], 1.0) == pytest.approx(0.005)


def test_a_ready_made_run_is_made_again_in_its_own_place_alone(tiny_run, shipped):
    """`make reproduce ONLY=ready` in a fresh clone finds a run there, of other versions."""
    history = read_history(shipped)
    write_history(shipped, history | {"versions": {"torch": "another"}})
    with pytest.raises(InputError, match="holds another run, which would be lost"):
        pack(tiny_run, shipped)
    assert ready.is_place_of("t1", shipped)
    assert not ready.is_place_of("t1", tiny_run) and not ready.is_place_of("other", shipped)
    pack(tiny_run, shipped, again=True)
    assert read_history(shipped) == history
    with pytest.raises(InputError, match="holds another run"):
        pack(tiny_run, tiny_run, again=True)


def test_weights_are_read_as_float32_compressed_or_not(tmp_path):
    state = {"a": torch.tensor([1.5, -2.0], dtype=torch.float16), "n": torch.tensor(3)}
    torch.save(state, tmp_path / "plain.pt")
    (tmp_path / "small.pt").write_bytes(gzip.compress((tmp_path / "plain.pt").read_bytes()))
    for name in ("plain.pt", "small.pt"):
        read = read_weights(tmp_path / name)
        assert read["a"].dtype == torch.float32 and read["a"].tolist() == [1.5, -2.0]
        assert read["n"].dtype == torch.int64 and int(read["n"]) == 3


def test_a_ready_made_run_is_found_by_its_name_and_a_folder_of_that_name_goes_first(
    shipped, tmp_path, monkeypatch
):
    assert ready.run_folder("t1") == shipped == ready.ready_run("t1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t1").mkdir()
    assert ready.run_folder("t1").name == "t1"


def test_a_changed_or_unknown_ready_made_run_is_refused(shipped):
    with pytest.raises(InputError, match="no ready-made run for 'flair'; there is one for t1"):
        ready.ready_run("flair")
    weights = shipped / "weights.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(InputError, match="not the file that this run was finished with"):
        load_run(ready.ready_run("t1"), "cpu")
    (shipped / "run.json").write_text("{}")
    with pytest.raises(InputError, match="not the ready-made run"):
        ready.ready_run("t1")


def test_infer_without_run_or_modality_says_what_to_give(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"x")
    told = ["--input", str(tmp_path / "a.nii"), "--output", str(tmp_path / "o")]
    arguments = infer.build_parser().parse_args([*told, "--device", "cpu"])
    assert arguments.out == told[3] and arguments.accelerator == "cpu"
    with pytest.raises(InputError, match="give RUN=<run folder>, or MODALITY="):
        infer.main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ready.ready_names() if not ready.ready(n).address])
def test_a_shipped_run_is_whole_small_described_and_finds_a_spot(name):
    """A bright spot in the atlas brain stands out in the map of every run that Norma ships."""
    known = ready.ready(name)
    folder = ready.ready_run(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
    card = (ready.ROOT / known.card).read_text()
    assert "not a medical device" in card.lower() and f"license: {known.licence.lower()}" in card

    run = load_run(folder, "cpu")
    assert run.recipe.name == name.partition("_")[0]
    assert run.typical and len(run.reference.scans) >= 9
    assert "at most one in 10 shows any finding" in run.point().promise
    atlas = register.load_atlas(run.recipe.template, run.recipe.grid)
    grey = atlas.image / np.percentile(atlas.image[atlas.brain], 95) * 0.75
    if run.recipe.name == "ct":
        grey = 0.4 + 0.02 * np.random.default_rng(0).normal(size=atlas.brain.shape)
    image = (np.clip(grey, 0, 1) * atlas.brain).astype(np.float32)
    middle = np.argwhere(atlas.brain).mean(0).round().astype(int)
    x, y, z = middle + np.array([30, 20, 20])
    spot = np.zeros_like(atlas.brain)
    spot[x - 5 : x + 5, y - 5 : y + 5, z - 4 : z + 4] = True
    assert atlas.brain[spot].all()
    image[spot] = 1.0
    found = run.detector.atlas_map(image, atlas.brain)
    assert found[spot].mean() > np.quantile(found[atlas.brain & ~spot], 0.99)
