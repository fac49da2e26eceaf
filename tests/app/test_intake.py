"""What comes in: no name of a person is kept, no bomb is unpacked, no name becomes a path."""

import gzip
import io
import stat
import zipfile
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from app import archives
from app.archives import NotAnArchive, unzip
from app.headers import guess, pseudonym
from app.inbox import Inbox
from tests.app.conftest import AFFINE, SECRET, SHAPE, Site, scan_bytes, upload
from tests.preprocessing.made_dicom import SECRETS, axial, file_of, steps, voxels, write_series


def stored_bytes(folder):
    """All bytes below a folder, those of gzip files unpacked too."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        yield path, content
        if content.startswith(b"\x1f\x8b"):
            yield path, gzip.decompress(content)


def assert_nowhere(folder, *secrets):
    for path, content in stored_bytes(folder):
        for secret in secrets:
            assert secret.encode() not in content, f"{secret} stands in {path}"
            assert secret not in path.name


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_no_text_of_a_nifti_header_is_kept(solo, kind):
    content = scan_bytes(secret=True, kind=kind)
    assert content.count(SECRET.encode()) >= 3  # or this test would test nothing
    client = solo.client()
    answer = upload(client, gzip.compress(content), name=f"{SECRET}_T1w.nii.gz")
    study = answer.json()[0]["study"]
    assert (study["state"], study["guess"]) == ("received", "t1")
    assert_nowhere(solo.settings.data, SECRET)
    scan = nib.load(solo.settings.data / "scans" / f"{study['id']}.nii.gz")
    before = kind.from_bytes(content)
    assert type(scan) is kind
    assert np.array_equal(np.asarray(scan.dataobj), np.asarray(before.dataobj))
    assert np.array_equal(scan.affine, before.affine)


def zipped(files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def dicom_zip(folder, seed=0):
    """A zip file of a CT series whose patient is a secret in every field."""
    write_series(folder, axial(*steps(12)), voxels(12, seed))
    files = {f"{SECRET}/{p.name}": p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return zipped(files)


def test_no_field_of_a_dicom_file_is_kept(solo, tmp_path):
    content = dicom_zip(tmp_path / "series")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        raw = b"".join(archive.read(name) for name in archive.namelist())
    for secret in SECRETS:
        assert secret.encode() in raw
    client = solo.client()
    answer = upload(client, content, name=f"{SECRET}.zip")
    assert answer.status_code == 201, answer.text
    study = answer.json()[0]["study"]
    assert (study["guess"], study["source"], study["state"]) == ("ct", "dicom", "received")
    assert study["subject"] == pseudonym("ID-4711", solo.app.state.secret)
    assert_nowhere(solo.settings.data, SECRET, *SECRETS)

    assert client.post(f"/api/studies/{study['id']}/start", json={}).json()["run"] == "ct"
    other = upload(client, dicom_zip(tmp_path / "other", seed=1)).json()[0]["study"]
    assert other["id"] != study["id"]
    assert other["subject"] == study["subject"]  # the same patient, whoever that is


def test_one_content_is_one_study(solo):
    """By voxels and geometry: not by packing, text of the header or order of bytes."""
    client = solo.client()
    first = upload(client, scan_bytes(), run="t1")
    assert first.status_code == 201
    image = nib.Nifti1Image.from_bytes(scan_bytes())
    swapped = nib.Nifti1Image(image.dataobj, image.affine, image.header.as_byteswapped(">"))
    for content in (gzip.compress(scan_bytes()), scan_bytes(secret=True), swapped.to_bytes()):
        again = upload(client, content, name="other.nii")
        assert (again.status_code, again.json()[0]["status"]) == (200, "known")
    assert client.get("/api/studies").json()["total"] == 1
    assert upload(client, scan_bytes(1)).json()[0]["status"] == "received"
    assert list((solo.settings.data / "incoming").iterdir()) == []


def header_of(shape, dtype=np.int16):
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_sform(AFFINE, 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return header.binaryblock + bytes(4)


BAD = {
    "text": (b"not a scan at all", "send .nii or .nii.gz, or a whole DICOM series in a zip file."),
    "empty": (b"", "truncated or damaged"),
    "cut": (scan_bytes()[:3000], "truncated or damaged"),
    "cut gzip": (gzip.compress(scan_bytes())[:3000], "truncated or damaged"),
    "huge claim": (
        header_of((2000, 2000, 2000)),
        "expected less than 1 GB (--max-gb of the server)",
    ),
    "claims more than there is": (gzip.compress(header_of((300, 300, 300))), "header claims"),
    "inflates to more": (
        gzip.compress(header_of(SHAPE) + bytes(4 * 2**20)),
        "inflates to more than",
    ),
    "4-D": (header_of((20, 20, 20, 5)), "expected a 3-D scan"),
    "one DICOM file": (bytes(128) + b"DICM" + bytes(64), "whole series"),
    "zip without DICOM": (zipped({"a.txt": b"hello"}), "a NIfTI file comes as it is."),
    "damaged zip": (zipped({"a": b"x" * 99})[:-30], "damaged zip"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_file_is_a_sentence(solo, name):
    content, said = BAD[name]
    client = solo.client()
    answer = upload(client, content, name="mine.nii")
    assert answer.status_code == 422
    (one,) = answer.json()
    assert one["status"] == "refused"
    assert said in one["reason"]
    assert one["reason"].startswith("mine.nii: ")
    assert str(solo.settings.data) not in one["reason"]
    assert list((solo.settings.data / "incoming").iterdir()) == []


def test_a_good_file_beside_a_wrong_one_is_taken(solo):
    files = [("file", ("a.nii", scan_bytes(0))), ("file", ("b.nii", b"no"))]
    files += [("file", ("c.nii", scan_bytes(1)))]
    answer = solo.client().post("/api/studies", files=files, data={"modality": "t1"})
    assert answer.status_code == 201
    assert [one["status"] for one in answer.json()] == ["queued", "refused", "queued"]


def test_a_quarter_gigabyte_of_zeros_is_not_inflated_beyond_its_headers_claim(solo):
    """256 MiB of zeros gzip to 261 kB; behind the header of a small scan they are refused early."""
    part = gzip.compress(bytes(16 * 2**20))
    bomb = gzip.compress(header_of(SHAPE)) + 16 * part
    assert len(bomb) < 270_000
    (one,) = upload(solo.client(), bomb).json()
    assert "inflates to more than" in one["reason"]


def test_an_upload_ends_at_its_limit(tmp_path):
    site = Site(tmp_path, solo=True, max_upload=10_000)
    answer = upload(site.client(), scan_bytes())
    assert answer.status_code == 413
    assert "0 MB" in answer.json()["detail"]
    assert list((tmp_path / "incoming").iterdir()) == []


def linked():
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped({"../../out": b"x"}), "leads out"),
        (zipped({"a/../../out": b"x"}), "leads out"),
        (zipped({"..\\out": b"x"}), "leads out"),
        (zipped({"/etc/x": b"x"}), "leads out"),
        (zipped({"C:\\x": b"x"}), "leads out"),
        (linked(), "link"),
        (zipped({"bomb": bytes(9 * 2**20)}), "unpacks to 9 MB"),
    ],
)
def test_a_zip_file_is_judged_before_it_is_unpacked(tmp_path, content, said):
    (tmp_path / "a.zip").write_bytes(content)
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(NotAnArchive, match=said):
        unzip(tmp_path / "a.zip", target, 8 * 2**20)
    assert list(target.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "target"]


def test_a_zip_file_of_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_FILES", 3)
    (tmp_path / "a.zip").write_bytes(zipped({str(i): b"" for i in range(4)}))
    with pytest.raises(NotAnArchive, match="4 files or more, expected at most 3"):
        unzip(tmp_path / "a.zip", tmp_path, 100)


def test_a_file_that_lies_about_its_size_is_not_unpacked_beyond_it(tmp_path):
    """The list says 10 bytes, the stream holds a megabyte."""
    content = bytearray(zipped({"a": bytes(2**20)}))
    size = (2**20).to_bytes(4, "little")
    while size in content:
        place = content.index(size)
        content[place : place + 4] = (10).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(content)
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(NotAnArchive, match="damaged"):
        unzip(tmp_path / "a.zip", target, 100)
    assert sum(p.stat().st_size for p in target.iterdir()) <= 10


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"Modality": "CT"}, "ct"),
        ({"Modality": "CT", "BodyPartExamined": "HEAD", "SeriesDescription": "thorax"}, "ct"),
        ({"Modality": "CT", "BodyPartExamined": "CHEST"}, "chest_ct"),
        ({"Modality": "CT", "SeriesDescription": "Thorax 1.0 Br64"}, "chest_ct"),
        ({"Modality": "CT", "BodyPartExamined": "ABDOMEN"}, ""),
        ({"Modality": "MR", "BodyPartExamined": "KNEE", "SeriesDescription": "t1 sag"}, ""),
        ({"Modality": "MR", "SeriesDescription": "Sag 3D T2 FLAIR"}, "flair"),
        ({"Modality": "MR", "ProtocolName": "t1_mprage_sag"}, "t1"),
        ({"Modality": "MR", "SeriesDescription": "ax t2 tse"}, "t2"),
        ({"Modality": "MR", "EchoTime": 2.9, "RepetitionTime": 1900, "InversionTime": 900}, "t1"),
        ({"Modality": "MR", "EchoTime": 96, "RepetitionTime": 6000}, "t2"),
        (
            {"Modality": "MR", "EchoTime": 120, "RepetitionTime": 9000, "InversionTime": 2500},
            "flair",
        ),
        ({"Modality": "MR"}, ""),
        ({"Modality": "US", "SeriesDescription": "t1"}, ""),
    ],
)
def test_the_header_of_a_series_says_what_it_may_be(fields, expected):
    data = file_of("1.2.840.10008.5.1.4.1.1.4", "MR")
    del data.SeriesDescription
    del data.ProtocolName
    for name, value in fields.items():
        setattr(data, name, value)
    assert guess(data) == expected


def test_a_pseudonym_tells_patients_apart_and_needs_the_secret():
    one = pseudonym("4711", b"a" * 32)
    assert one == pseudonym(" 4711 ", b"a" * 32)
    assert len({one, pseudonym("4712", b"a" * 32), pseudonym("4711", b"b" * 32)}) == 3
    assert pseudonym("", b"a" * 32) == ""


def test_the_inbox_takes_what_stands_still_once(solo, tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    write_series(folder / SECRET, axial(*steps(12)), voxels(12))
    (folder / f"{SECRET}.nii").write_bytes(scan_bytes(secret=True))
    (folder / "bad.nii").write_bytes(b"nothing")
    inbox = Inbox(replace(solo.settings, inbox=folder), solo.engine, solo.app.state.secret)
    assert inbox.look() == 0  # it may still be copied
    (folder / "late.nii").write_bytes(scan_bytes(5))
    assert inbox.look() == 3
    assert inbox.look() == 1
    assert inbox.look() == 0
    assert solo.client().get("/api/studies").json()["total"] == 3
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [SECRET, f"{SECRET}.nii", "bad.nii", "late.nii"]
    )
    assert_nowhere(solo.settings.data, SECRET, *SECRETS)
