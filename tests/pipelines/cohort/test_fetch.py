"""Public data sets brought from a server on this machine that fails as servers do."""

import hashlib
import io
import json
import tarfile
import zipfile

import pytest

from pipelines import fetch as door
from pipelines.cohort import public
from pipelines.cohort.fetch import RECORD, fetch_dataset
from pipelines.cohort.public import Remote, known_dataset
from pipelines.config import CONFIGS, ConfigError
from preprocessing.download import TRIES
from preprocessing.scans import InputError
from tests.server import Served, serving

SCAN = b"scan " * 1000


def zipped(names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, SCAN)
    return buffer.getvalue()


def tarred(names, link=""):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(SCAN)
            file.addfile(member, io.BytesIO(SCAN))
        if link:
            member = tarfile.TarInfo("link")
            member.type = tarfile.SYMTYPE
            member.linkname = link
            file.addfile(member)
    return buffer.getvalue()


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A function that writes the config of a set named tiny, whose files lie on a server."""
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.setattr(public, "FOLDER", folder)

    def write(served, files):
        root = served.address.removesuffix("/run.zip")
        lines = [
            "title: Tiny",
            "address: https://example.org",
            "licence: CC0-1.0",
            "people: nobody",
            "scanners: none",
            "citation: none",
            "files:",
        ]
        for file in files:
            named = [f"{key}: {value}" for key, value in file.items()]
            lines.append(f"  - {named[0].replace('ROOT', root)}")
            lines += [f"    {line}" for line in named[1:]]
        (folder / "tiny.yaml").write_text("\n".join(lines) + "\n")
        return known_dataset("tiny")

    return write


def fetched(served, configs, files, out):
    with serving(served):
        return fetch_dataset("tiny", configs(served, files), out, accepted=True, pause=0)


def record_of(out):
    return json.loads((out / RECORD).read_text())


def test_nothing_is_asked_of_a_server_before_the_licence_is_accepted(configs, tmp_path, capsys):
    served = Served(files={"/a.nii": SCAN})
    out = tmp_path / "out"
    with serving(served):
        configs(served, [{"address": "ROOT/a.nii"}])
        arguments = door.build_parser().parse_args(["--dataset", "tiny", "--out", str(out)])
        with pytest.raises(InputError, match=r"nothing was downloaded.*ARGS=--accept-licence"):
            door.main(arguments)
        assert served.asked == [] and not out.exists()
        said = capsys.readouterr().out
        assert "CC0-1.0" in said and "bytes cannot be checked" in said

        arguments.accept_licence = True
        assert door.main(arguments) == 0
    assert (out / "a.nii").read_bytes() == SCAN
    assert "1 files of tiny, 0 could not be fetched" in capsys.readouterr().out


def test_a_set_behind_a_login_says_where_to_ask(tmp_path):
    known = known_dataset("mood")
    with pytest.raises(InputError, match=r"ask for it at https://www.synapse.org/mood"):
        fetch_dataset("mood", known, tmp_path, accepted=True)
    with pytest.raises(ConfigError, match="did you mean 'ixi'"):
        known_dataset("ixii")


def test_files_are_named_by_numbers_and_stand_the_second_time(configs, tmp_path):
    files = [{"address": "ROOT/sub-{}.nii", "name": "sub-{}/anat/sub-{}_T1w.nii", "each": "08-10"}]
    served = Served(files={f"/sub-{n}.nii": SCAN for n in ("08", "09", "10")})
    assert fetched(served, configs, files, tmp_path) == (3, {})
    assert served.paths == ["/sub-08.nii", "/sub-09.nii", "/sub-10.nii"]
    assert (tmp_path / "sub-10" / "anat" / "sub-10_T1w.nii").read_bytes() == SCAN
    entry = record_of(tmp_path)["sub-09/anat/sub-09_T1w.nii"]
    assert entry["sha256"] == hashlib.sha256(SCAN).hexdigest()
    assert (entry["bytes"], entry["checked"]) == (5000, False)

    again = Served(files=served.files)
    assert fetched(again, configs, files, tmp_path) == (3, {})
    assert again.asked == []


def test_one_missing_file_costs_itself_alone(configs, tmp_path):
    files = [{"address": "ROOT/{}.nii", "each": "1-3"}]
    here, failed = fetched(Served(files={"/1.nii": SCAN, "/3.nii": SCAN}), configs, files, tmp_path)
    assert here == 2 and list(failed) == ["2.nii"]
    assert "the server answered 404" in failed["2.nii"]


def test_a_set_that_is_gone_is_given_up(configs, tmp_path):
    files = [{"address": "ROOT/{}.nii", "each": "1-9"}]
    served = Served(files={"/1.nii": SCAN, "/9.nii": SCAN})
    here, failed = fetched(served, configs, files, tmp_path)
    assert here == 1 and len(failed) == 8
    assert served.paths == ["/1.nii", "/2.nii", "/3.nii", "/4.nii"]
    assert failed["9.nii"] == "not tried"


def test_wrong_bytes_are_refused_and_a_changed_set_is_told(configs, tmp_path):
    digest = f"md5:{hashlib.md5(SCAN).hexdigest()}"
    files = [{"address": "ROOT/a.nii", "digest": digest}]
    here, failed = fetched(Served(files={"/a.nii": SCAN[1:]}), configs, files, tmp_path)
    assert here == 0 and f"expected {digest[4:]}. It was removed" in failed["a.nii"]
    assert fetched(Served(files={"/a.nii": SCAN}), configs, files, tmp_path) == (1, {})
    assert record_of(tmp_path)["a.nii"]["checked"] is True

    unchecked = [{"address": "ROOT/a.nii"}]
    (tmp_path / "a.nii").write_bytes(b"edited")
    _, failed = fetched(Served(files={"/a.nii": SCAN}), configs, unchecked, tmp_path)
    assert "is not as it came on" in failed["a.nii"]
    assert (tmp_path / "a.nii").read_bytes() == b"edited"

    (tmp_path / "a.nii").unlink()
    _, failed = fetched(Served(files={"/a.nii": SCAN + b"2"}), configs, unchecked, tmp_path)
    assert "other bytes than came on" in failed["a.nii"] and not (tmp_path / "a.nii").exists()
    assert fetched(Served(files={"/a.nii": SCAN}), configs, unchecked, tmp_path) == (1, {})


def test_a_broken_download_goes_on(configs, tmp_path):
    files = [{"address": "ROOT/a.nii"}]
    served = Served(files={"/a.nii": SCAN}, drop=[3000] + [0] * 2 * TRIES, etag='"1"')
    _, failed = fetched(served, configs, files, tmp_path)
    assert "3000 bytes came and are kept" in failed["a.nii"]
    served = Served(files={"/a.nii": SCAN}, etag='"1"')
    assert fetched(served, configs, files, tmp_path) == (1, {})
    assert served.asked == [3000] and (tmp_path / "a.nii").read_bytes() == SCAN


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.zip", zipped(["a/1.nii", "2.nii"])),
        ("set.tar.gz", tarred(["a/1.nii", "2.nii"])),
    ],
)
def test_archives_are_unpacked_once(configs, tmp_path, name, content):
    files = [{"address": f"ROOT/{name}"}]
    served = Served(files={f"/{name}": content})
    assert fetched(served, configs, files, tmp_path) == (1, {})
    assert (tmp_path / "set" / "a" / "1.nii").read_bytes() == SCAN
    assert not (tmp_path / name).exists()
    assert record_of(tmp_path)[name]["unpacked"] == {"2.nii": 5000, "a/1.nii": 5000}

    again = Served(files=served.files)
    assert fetched(again, configs, files, tmp_path) == (1, {}) and again.asked == []
    (tmp_path / "set" / "2.nii").unlink()
    (tmp_path / "set" / "my_notes.txt").write_text("mine")
    assert fetched(again, configs, files, tmp_path) == (1, {}) and again.asked == [0]
    assert (tmp_path / "set" / "2.nii").read_bytes() == SCAN
    assert (tmp_path / "set" / "my_notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.zip", b"no archive"),
        ("set.tar", b"no archive"),
        ("set.tar.gz", tarred(["../../stolen.nii"])),
        ("set.tar.gz", tarred(["a.nii"], link="/etc/passwd")),
    ],
)
def test_an_archive_that_is_none_or_writes_elsewhere_is_refused(configs, tmp_path, name, content):
    out = tmp_path / "deep" / "out"
    served = Served(files={f"/{name}": content})
    _, failed = fetched(served, configs, [{"address": f"ROOT/{name}"}], out)
    assert "no archive that can be unpacked" in failed[name]
    assert list(tmp_path.rglob("stolen.nii")) == [] and list(out.iterdir()) == []


def test_every_set_says_what_a_user_must_know():
    for path in (CONFIGS / "dataset").glob("*.yaml"):
        known = known_dataset(path.stem)
        assert known.holds and known.size and known.licence and known.citation
        assert bool(known.files) != bool(known.ask), path.stem
        names: list[str] = []
        for remote in known.files:
            names += [name for _, name in remote.files()]
        assert len(set(names)) == len(names) and not any(n.startswith("/") for n in names)


def test_a_digest_that_is_none_is_refused():
    with pytest.raises(ValueError, match="expected a SHA-256"):
        Remote(address="https://example.org/a", digest="md5:12")
