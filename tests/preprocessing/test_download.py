"""Downloads that break, begin anew, or bring wrong bytes, from a server on this machine."""

import hashlib

import numpy as np
import pytest

from preprocessing.download import TRIES, download
from preprocessing.scans import InputError
from tests.server import Served, serving

CONTENT = np.random.default_rng(0).bytes(700_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def fetched(served, path, digest=DIGEST):
    with serving(served):
        download(served.address, digest, path, pause=0)
    return served


def left(path):
    return [other for other in path.parent.iterdir() if other != path]


def test_a_broken_line_goes_on_where_it_broke(tmp_path):
    path = tmp_path / "sub" / "file"
    served = fetched(Served(CONTENT, drop=[300_000, 0, 100_000]), path)
    assert path.read_bytes() == CONTENT and left(path) == []
    assert served.asked == [0, 300_000, 300_000, 400_000]


def test_a_second_call_goes_on_and_a_third_asks_nothing(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(InputError, match=f"{TRIES} times in a row; 300000 bytes came and are kept"):
        fetched(Served(CONTENT, drop=[300_000] + [0] * TRIES), path)
    assert not path.exists()
    assert fetched(Served(CONTENT), path).asked == [300_000]
    assert path.read_bytes() == CONTENT
    assert fetched(Served(CONTENT), path).asked == []


def test_a_server_without_ranges_begins_anew(tmp_path):
    path = tmp_path / "file"
    served = fetched(Served(CONTENT, drop=[300_000], ranges=False), path)
    assert path.read_bytes() == CONTENT and served.asked == [0, 300_000]


def test_a_server_that_sends_another_part_is_asked_from_the_start(tmp_path):
    path = tmp_path / "file"
    served = fetched(Served(CONTENT, drop=[300_000], shift=-7), path)
    assert path.read_bytes() == CONTENT and served.asked == [0, 300_000, 0]


@pytest.mark.parametrize("drop", [[], [300_000]])
def test_wrong_bytes_are_refused_and_removed(tmp_path, drop):
    path = tmp_path / "file"
    wrong = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    with pytest.raises(InputError, match=f"expected {DIGEST}. It was removed"):
        fetched(Served(wrong, drop=drop), path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_is_whole_already_is_not_sent_again(tmp_path):
    path = tmp_path / "file"
    path.with_name(f"file.{DIGEST[:8]}.part").write_bytes(CONTENT)
    assert fetched(Served(CONTENT), path).asked == [len(CONTENT)]
    assert path.read_bytes() == CONTENT and left(path) == []


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(tmp_path):
    path = tmp_path / "file"
    assert fetched(Served(CONTENT, codes=[503, 429]), path).asked == [0, 0, 0]
    served = Served(CONTENT, codes=[404])
    with pytest.raises(InputError, match=r"the server answered 404 \(Not Found\)"):
        fetched(served, tmp_path / "other")
    assert served.asked == [0]


def test_what_is_no_address_or_digest_or_server_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="expected an address that begins with https"):
        download("file:///etc/passwd", DIGEST, tmp_path / "file")
    with pytest.raises(InputError, match="expected a SHA-256, 64 digits"):
        download("https://127.0.0.1/run.zip", "abc", tmp_path / "file")
    with serving(Served(CONTENT)) as served:
        address = served.address
    with pytest.raises(InputError, match=r"it cannot be reached .* 0 bytes came"):
        download(address, DIGEST, tmp_path / "file", pause=0)


def test_an_md5_checks_as_a_sha256_does(tmp_path):
    path = tmp_path / "file"
    digest = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
    assert fetched(Served(CONTENT, drop=[300_000]), path, digest).asked == [0, 300_000]
    assert fetched(Served(CONTENT), path, digest).asked == []
    with pytest.raises(InputError, match=f"its md5 is {digest[4:]}, expected {'0' * 32}"):
        fetched(Served(CONTENT), tmp_path / "other", f"md5:{'0' * 32}")
    assert left(path) == []
    for wrong in ("md5:abc", "crc:1234", f"md5:{DIGEST}", DIGEST.upper()):
        with pytest.raises(InputError, match="expected a SHA-256, 64 digits"):
            download("https://127.0.0.1/run.zip", wrong, path)


def broken_unchecked(path, etag):
    """A download without digest that broke after 300,000 bytes."""
    with pytest.raises(InputError, match="are kept"):
        fetched(Served(CONTENT, drop=[300_000] + [0] * 2 * TRIES, etag=etag), path, "")


def test_without_a_digest_only_the_same_file_is_gone_on_with(tmp_path):
    path = tmp_path / "file"
    broken_unchecked(path, '"v1"')
    assert fetched(Served(CONTENT, etag='"v1"'), path, "").asked == [300_000]
    assert path.read_bytes() == CONTENT and left(path) == []

    other = tmp_path / "other"
    broken_unchecked(other, '"v1"')
    changed = CONTENT[::-1]
    assert fetched(Served(changed, etag='"v2"'), other, "").asked == [300_000]
    assert other.read_bytes() == changed and left(other) == [path]


def test_without_a_digest_and_a_name_of_the_bytes_a_download_begins_anew(tmp_path):
    path = tmp_path / "file"
    served = fetched(Served(CONTENT, drop=[300_000], etag='W/"v1"'), path, "")
    assert served.asked == [0, 0]
    assert path.read_bytes() == CONTENT and left(path) == []
