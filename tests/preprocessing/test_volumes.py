"""What volume files are read, and why others are refused before they cost memory."""

import gzip
import struct
import subprocess
import sys
import zlib

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import cifti2_axes

from pipelines.config import load_recipe
from preprocessing import prepare, quality, volumes
from preprocessing.images import load_array, read_image
from preprocessing.recipe import Limits
from preprocessing.scans import Scan, ScanError

AFFINE = np.array([[-2.0, 0, 0, 9], [0, 2.4, -0.5, -7], [0, 0.4, 3.0, 3], [0, 0, 0, 1]])


def packed_nifti(shape=(19, 20, 21), seed=0):
    """The bytes of an int16 NIfTI, and its voxels."""
    data = np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)
    return nib.Nifti1Image(data, AFFINE).to_bytes(), data


def header_alone(shape, kind=np.int16, zoom=2.0):
    """The first 352 bytes of a NIfTI of any claimed shape."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(kind)
    header.set_zooms((zoom,) * 3)
    header.set_sform(np.diag([zoom, zoom, zoom, 1]), 1)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return header.binaryblock + bytes(4)


@pytest.mark.parametrize("kind", ["u1", "<i2", ">i2", "u2", "i4", "f4", "f8", "i8"])
@pytest.mark.parametrize("slope", [None, (0.37, -1024.0), (4.0, 0.0)])
def test_voxels_are_those_of_nibabel_to_the_bit(tmp_path, kind, slope):
    rng = np.random.default_rng(3)
    data = (rng.random((9, 10, 11)) * 120).astype(kind)
    data[0, 0, 0] = 2**24 + 1 if data.dtype.itemsize > 3 else 7
    image = nib.Nifti1Image(data, AFFINE, dtype=data.dtype)
    raw = bytearray(image.to_bytes())
    if slope:
        struct.pack_into("<ff", raw, 112, *slope)
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(raw))
    expected = np.asarray(nib.load(tmp_path / "x.nii.gz").dataobj, dtype=np.float32)
    found = read_image(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
    assert found.dataobj.flags.f_contiguous and found.header.get_sform(coded=True)[1] == 2


@pytest.mark.parametrize("where", [-8, -5, -4, -1])
def test_a_wrong_checksum_or_length_is_refused(tmp_path, where):
    raw, _ = packed_nifti()
    damaged = bytearray(gzip.compress(raw))
    damaged[where] ^= 0x10
    (tmp_path / "x.nii.gz").write_bytes(damaged)
    with pytest.raises(
        ScanError, match=r"x\.nii\.gz: truncated or damaged \(the checksum .* is wrong\); copy or"
    ):
        read_image(tmp_path / "x.nii.gz")
    with pytest.raises(ScanError, match=r"x\.nii\.gz: truncated or damaged .*make preprocess"):
        load_array(tmp_path / "x.nii.gz")


def test_a_byte_changed_anywhere_in_the_stream_is_refused(tmp_path):
    raw, _ = packed_nifti()
    good = gzip.compress(raw, compresslevel=0)
    for place in np.random.default_rng(1).integers(400, len(good) - 8, 20):
        damaged = bytearray(good)
        damaged[place] ^= 0x01
        (tmp_path / "x.nii.gz").write_bytes(damaged)
        with pytest.raises(ScanError, match="truncated or damaged"):
            read_image(tmp_path / "x.nii.gz")


def test_joined_gzip_streams_and_zeros_behind_them_are_read(tmp_path):
    raw, data = packed_nifti()
    joined = gzip.compress(raw[:100]) + gzip.compress(raw[100:9000]) + gzip.compress(raw[9000:])
    for name, tail in (("joined", b""), ("padded", bytes(700))):
        (tmp_path / f"{name}.nii.gz").write_bytes(joined + tail)
        assert np.array_equal(read_image(tmp_path / f"{name}.nii.gz").dataobj, data)
    (tmp_path / "more.nii.gz").write_bytes(joined + b"more")
    (tmp_path / "less.nii.gz").write_bytes(gzip.compress(raw[:100]) + gzip.compress(raw[100:9000]))
    for name in ("more", "less"):
        with pytest.raises(ScanError, match="truncated or damaged"):
            read_image(tmp_path / f"{name}.nii.gz")


@pytest.mark.parametrize("name", ["plain.nii.gz", "packed.nii", "LOUD.NII.GZ"])
def test_the_bytes_say_what_is_compressed_and_not_the_name(tmp_path, name):
    raw, data = packed_nifti()
    path = tmp_path / name
    path.write_bytes(raw if name.startswith("plain") else gzip.compress(raw))
    assert np.array_equal(read_image(path).dataobj, data)


@pytest.mark.parametrize("first", ["x.img", "x.hdr"])
def test_both_files_of_a_pair_name_the_scan(tmp_path, first):
    _, data = packed_nifti()
    nib.save(nib.Nifti1Pair(data, AFFINE), tmp_path / "x.img")
    found = read_image(tmp_path / first)
    np.testing.assert_array_equal(np.asarray(found.dataobj), data)
    np.testing.assert_allclose(found.affine, AFFINE)
    (tmp_path / ("x.hdr" if first == "x.img" else "x.img")).unlink()
    with pytest.raises(ScanError, match=r"x\.(hdr|img): no such file"):
        read_image(tmp_path / first)


@pytest.mark.parametrize("name", ["x.mgz", "x.mgh"])
def test_freesurfer_volumes_are_read(tmp_path, name):
    _, data = packed_nifti()
    nib.save(nib.MGHImage(data.astype(np.float32), AFFINE), tmp_path / name)
    found = read_image(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(found.dataobj), data)
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "zoom", "message"),
    [
        ((1400, 1400, 1400), 0.07, r"1400 x 1400 x 1400 voxels take 11\.0 GB as float32"),
        ((1000, 1000, 1000), 0.2, r"4\.0 GB as float32, expected less than 4 GB"),
        ((32767, 32767, 32767), 0.01, "GB as float32"),
        ((200, 200, 100), 8.0, r"field of view is 1600 x 1600 x 800 mm; expected at most 1000 mm"),
        ((200, 200, 100), 1.0, r"truncated or damaged \(\d+ bytes, the header claims 8000352\)"),
    ],
)
def test_a_claim_is_refused_before_voxels_are_read(tmp_path, shape, zoom, message):
    block = header_alone(shape, zoom=zoom) + bytes(1000)
    for name, raw in (("x.nii", block), ("x.nii.gz", gzip.compress(block))):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ScanError, match=message):
            read_image(tmp_path / name)


def test_a_small_file_never_takes_much_memory(tmp_path):
    """Of 250 MB of zeros after the voxels hardly one is inflated; measured in its own process."""
    packer = zlib.compressobj(1, wbits=31)
    block = bytes(2**24)
    parts = [packer.compress(header_alone((30, 30, 30), zoom=5.0))]
    parts += [packer.compress(block) for _ in range(15)]
    bomb = b"".join([*parts, packer.flush()])
    assert len(bomb) < 1.5e6
    (tmp_path / "beyond.nii.gz").write_bytes(bomb)
    claim = gzip.compress(header_alone((900, 900, 900), zoom=0.2) + bytes(10**6))
    (tmp_path / "claim.nii.gz").write_bytes(claim)
    code = """
import resource, sys
from pathlib import Path
from preprocessing.images import read_image
from preprocessing.recipe import Limits
from preprocessing.scans import Scan, ScanError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        read_image(Path(name))
        print("read")
    except ScanError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    files = [str(tmp_path / name) for name in ("beyond.nii.gz", "claim.nii.gz")]
    done = subprocess.run(
        [sys.executable, "-c", code, *files], capture_output=True, text=True, check=True
    )
    beyond, claim, megabytes = done.stdout.splitlines()
    assert "inflates to more than the 54352 bytes that the header claims" in beyond
    assert "truncated or damaged" in claim
    assert int(megabytes) < 50


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
            "a Git LFS pointer, not the scan itself; run 'git lfs pull'",
        ),
        (
            "/annex/objects/SHA256E-s9--ab.nii.gz\n",
            "a git-annex pointer, not the scan itself; run 'datalad get' or 'git annex get'",
        ),
        ("", r"truncated or damaged \(the file is empty\)"),
        ("once upon a time", "not a readable NIfTI file"),
    ],
)
@pytest.mark.parametrize("name", ["x.nii.gz", "x.nii", "x.mgz", "x.img"])
def test_what_stands_in_place_of_a_scan_is_named(tmp_path, text, message, name):
    (tmp_path / name).write_text(text)
    (tmp_path / "x.hdr").write_text(text)
    with pytest.raises(ScanError, match=message + "|header expected"):
        read_image(tmp_path / name)


def test_a_link_whose_data_are_elsewhere_is_named(tmp_path):
    (tmp_path / "x.nii.gz").symlink_to("../.git/annex/objects/a/b/c.nii.gz")
    with pytest.raises(ScanError, match=r"a git-annex link whose data are not here; run 'datalad"):
        read_image(tmp_path / "x.nii.gz")
    (tmp_path / "y.nii.gz").symlink_to("gone.nii.gz")
    with pytest.raises(ScanError, match=r"y\.nii\.gz: a link to gone\.nii\.gz, which is not there"):
        read_image(tmp_path / "y.nii.gz")


def test_cifti_and_axes_too_long_are_refused_by_cause(tmp_path):
    models = cifti2_axes.BrainModelAxis.from_mask(
        np.ones((3, 3, 3), bool), name="thalamus_left", affine=np.diag([4.0, 4, 4, 1])
    )
    parcels = [(f"p{i}", models[i : i + 2]) for i in range(0, 27, 3)]
    parcels = cifti2_axes.ParcelsAxis.from_brain_models(parcels)
    scalars = cifti2_axes.ScalarAxis(list("abcdefghi"))
    header = nib.Cifti2Header.from_axes((scalars, parcels, parcels))
    nib.save(nib.Cifti2Image(np.ones((9, 9, 9), "f4"), header), tmp_path / "a.pconn.nii")
    with pytest.raises(ScanError, match=r"a\.pconn\.nii: a CIFTI file \(grayordinates or parcels"):
        read_image(tmp_path / "a.pconn.nii")

    long = nib.Nifti2Image(np.zeros((40000, 8, 8), np.int16), np.diag([0.01, 10, 10, 1]))
    nib.save(long, tmp_path / "long.nii.gz")
    with pytest.raises(ScanError, match=r"40000 x 8 x 8 voxels; expected at most 32767 along"):
        read_image(tmp_path / "long.nii.gz")


@pytest.mark.parametrize("offset", [0.0, 100.0, 351.0, float("nan"), float("inf")])
def test_voxels_that_would_begin_in_the_header_are_refused(tmp_path, offset):
    raw, _ = packed_nifti()
    raw = bytearray(raw)
    struct.pack_into("<f", raw, 108, offset)
    (tmp_path / "x.nii").write_bytes(raw)
    with pytest.raises(ScanError, match=r"x\.nii: vox_offset is \S+, so that the header would"):
        read_image(tmp_path / "x.nii")


def test_limits_are_those_of_the_docs():
    assert (volumes.MAX_GB, volumes.FAR, volumes.SMALLEST) == (4, 1000, 8)
    assert Limits().max_gb == volumes.MAX_GB


def test_the_limit_of_memory_is_a_setting_that_its_sentence_names(tmp_path):
    raw, _ = packed_nifti()
    (tmp_path / "x.nii").write_bytes(raw)
    voxels = int(np.prod(read_image(tmp_path / "x.nii").shape))
    gigabytes = 4 * voxels / 1e9
    scan = Scan("x", tmp_path / "x.nii", "x")
    recipe = load_recipe("t1", [f"limits.max_gb={gigabytes}"])
    told = rf"x\.nii: .* GB as float32, expected less than {gigabytes:g} GB \(limits\.max_gb of"
    with pytest.raises(ScanError, match=told):
        prepare.prepare(scan, recipe)
    assert read_image(scan.image, max_gb=gigabytes * 1.001).shape
    mask = Scan("y", tmp_path / "x.nii", "y", brain_mask=tmp_path / "x.nii")
    with pytest.raises(ScanError, match=r"limits\.max_gb"):
        prepare.find_brain(mask, read_image(scan.image), read_image(scan.image), recipe)


def test_a_header_without_orientation_is_refused_and_two_that_differ_are_flagged(tmp_path):
    data = np.random.default_rng(0).random((70, 80, 60)).astype(np.float32)
    affine = np.diag([2.0, 2, 2, 1])
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    turned = affine.copy()
    turned[:2, :2] = 2 * np.array([[np.cos(0.03), -np.sin(0.03)], [np.sin(0.03), np.cos(0.03)]])
    moved = affine.copy()
    moved[2, 3] = 1.4
    forms = {"same": affine, "turned": turned, "moved": moved, "mirrored": affine * [-1, 1, 1, 1]}
    flags = {}
    for name, qform in forms.items():
        image.set_qform(qform, 1)
        nib.save(image, tmp_path / f"{name}.nii")
        _, checks = prepare.read_volume(tmp_path / f"{name}.nii", "t1")
        flags[name] = " ".join(quality.flags(checks))
    assert flags["same"] == ""
    assert "distance of qform and sform is 1.4 mm" in flags["moved"]
    assert "angle" not in flags["moved"] and "angle" in flags["turned"]
    assert "sform" in flags["mirrored"]

    raw = bytearray((tmp_path / "same.nii").read_bytes())
    struct.pack_into("<hh", raw, 252, 0, 0)
    (tmp_path / "none.nii").write_bytes(raw)
    scan = Scan("none", tmp_path / "none.nii", "none")
    with pytest.raises(ScanError, match=r"none\.nii: the header does not say how the scan lies"):
        prepare.prepare(scan, load_recipe("t1"))


@pytest.mark.parametrize(
    ("name", "partner"),
    [("x.img", "x.hdr"), ("x.hdr", "x.img"), ("X.IMG.gz", "X.HDR.gz"), ("x.nii", None)],
)
def test_both_files_of_a_pair_are_inputs(tmp_path, name, partner):
    expected = partner and tmp_path / partner
    assert volumes.partner_of(tmp_path / name) == expected


def test_analyze_pairs_say_no_orientation_and_are_refused(tmp_path):
    data = np.random.default_rng(0).integers(0, 99, (70, 80, 60)).astype(np.int16)
    nib.save(nib.AnalyzeImage(data, np.diag([-2.0, 2, 2, 1])), tmp_path / "x.img")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "x.img").dataobj), data)
    with pytest.raises(ScanError, match=r"x\.img: the header does not say how the scan lies"):
        prepare.read_volume(tmp_path / "x.img", "t1")
