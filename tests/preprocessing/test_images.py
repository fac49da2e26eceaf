"""Grids, and what read_image makes of a file."""

import errno
import struct
import zlib
from pathlib import Path

import imageio.v3 as iio
import nibabel as nib
import numpy as np
import pytest

from preprocessing.images import HALF, Grid, read_image, save_nifti
from preprocessing.scans import ScanError


def test_a_grid_says_where_voxels_lie():
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 4, 7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.zeros((9, 10, 11, 2), np.float32), affine)
    grid = Grid.of(image)
    assert grid.shape == (9, 10, 11) and grid.spacing == (1.5, 2, 4)
    np.testing.assert_array_equal(grid.affine, affine)


def test_every_second_voxel_of_a_grid_is_that_of_the_array():
    shape = (9, 10, 11)
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 4, 7], [0, 0, 0, 1]])
    coarse = Grid(shape, affine).every(2)
    assert coarse.shape == np.zeros(shape)[HALF].shape == (5, 5, 6)
    np.testing.assert_allclose(coarse.affine @ [4, 3, 5, 1], affine @ [8, 6, 10, 1])


def test_a_failed_image_write_leaves_the_old_image_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x_mask.nii.gz"
    save_nifti(nib.Nifti1Image(np.full((8, 9, 10), 5, np.uint8), np.eye(4)), path)

    def full(self, name):
        Path(name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", full)
    with pytest.raises(OSError, match="No space left"):
        save_nifti(nib.Nifti1Image(np.zeros((8, 9, 10), np.uint8), np.eye(4)), path)
    monkeypatch.undo()
    assert (np.asarray(nib.load(path).dataobj) == 5).all()
    assert [p.name for p in tmp_path.iterdir()] == ["x_mask.nii.gz"]


def patched(path, *fields):
    """Rewrite (offset, struct format, values) in the first bytes of an uncompressed NIfTI."""
    raw = bytearray(path.read_bytes())
    for offset, kind, *values in fields:
        struct.pack_into(kind, raw, offset, *values)
    path.write_bytes(raw)
    return path


@pytest.fixture
def stored(tmp_path):
    """An int16 NIfTI of 9 x 10 x 11 voxels that count up, and its affine.

    The affine is oblique, flipped and anisotropic.
    """
    affine = np.array(
        [[-2.0, 0, 0, 5], [0, -2.475671, -0.417519, -7], [0, -0.347933, 2.970805, 3], [0, 0, 0, 1]]
    )
    image = nib.Nifti1Image(np.arange(990, dtype=np.int16).reshape(9, 10, 11), affine)
    image.set_qform(affine, 1)
    path = tmp_path / "x.nii"
    nib.save(image, path)
    return path, affine


def test_slope_and_intercept_of_the_file_are_applied(stored):
    path, affine = stored
    image = read_image(patched(path, (112, "<ff", 0.5, -1024.0)))
    data = np.asarray(image.dataobj)
    assert data.dtype == np.float32 and data.shape == (9, 10, 11)
    assert (data[0, 0, 0], data[0, 0, 1], data[8, 9, 10]) == (-1024.0, -1023.5, 0.5 * 989 - 1024)
    assert np.allclose(image.affine, affine, atol=1e-5)


def test_a_trailing_axis_of_one_is_dropped_and_a_longer_one_refused(tmp_path):
    data = np.arange(9 * 10 * 11, dtype=np.float32).reshape(9, 10, 11, 1, 1)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "one.nii.gz")
    image = read_image(tmp_path / "one.nii.gz")
    assert image.shape == (9, 10, 11) and np.array_equal(image.dataobj, data[..., 0, 0])
    nib.save(nib.Nifti1Image(np.zeros((9, 10, 11, 2)), np.eye(4)), tmp_path / "two.nii.gz")
    with pytest.raises(
        ScanError,
        match=r"two\.nii\.gz: expected a 3-D scan, got 4-D of shape \(9, 10, 11, 2\); "
        "give one volume per file",
    ):
        read_image(tmp_path / "two.nii.gz")


def test_without_qform_and_sform_the_voxel_size_places_the_image(stored):
    """NIfTI method 1, spacing alone: x runs from right to left, the origin is in the middle."""
    path, _ = stored
    image = read_image(patched(path, (252, "<hh", 0, 0), (80, "<fff", 2.0, 2.5, 3.0)))
    assert image.affine.tolist() == [
        [-2, 0, 0, 8],
        [0, 2.5, 0, -11.25],
        [0, 0, 3, -15],
        [0, 0, 0, 1],
    ]
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (0, 0)


def test_nifti_2_is_read(tmp_path):
    data = np.arange(990, dtype=np.int16).reshape(9, 10, 11)
    nib.save(nib.Nifti2Image(data, np.diag([2, 2.5, 3, 1])), tmp_path / "x.nii.gz")
    image = read_image(tmp_path / "x.nii.gz")
    assert (
        np.array_equal(image.dataobj, data)
        and image.affine.tolist() == np.diag([2, 2.5, 3, 1]).tolist()
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            [(84, "<f", 0.0)],
            r"voxel size \[2\.0, 0\.0, 3\.0\] mm in the header; expected three positive numbers",
        ),
        (
            [(88, "<f", -3.0)],
            r"voxel size \[2\.0, 2\.5, -3\.0\] mm in the header; expected three positive numbers",
        ),
        (
            [(80, "<f", float("nan"))],
            r"voxel size \[nan, 2\.5, 3\.0\] mm in the header; expected three positive numbers",
        ),
        ([(254, "<h", 1), (280, "<ffff", 0, 0, 0, 0)], "the affine is singular or not finite"),
        (
            [(254, "<h", 1), (280, "<ffff", 0, -2.475671, -0.417519, 0)],
            "the affine is singular or not finite",
        ),
        (
            [(254, "<h", 1), (280, "<ffff", float("inf"), 0, 0, 0)],
            "the affine is singular or not finite",
        ),
        ([(0, "<i", 7), (84, "<f", 0.0)], r"voxel size \[2\.0, 0\.0, 3\.0\]"),
        ([(344, "4s", b"abc")], "not a readable NIfTI file"),
        ([(70, "<h", 999)], "not a readable NIfTI file"),
    ],
)
def test_damaged_headers_are_refused_by_file(stored, fields, message):
    path, _ = stored
    patched(path, (80, "<fff", 2.0, 2.5, 3.0))
    with pytest.raises(ScanError, match=message) as refused:
        read_image(patched(path, *fields))
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)


def test_big_endian_headers_are_checked_too(stored, tmp_path):
    _, affine = stored
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(np.ones((9, 10, 11), ">i2"), affine, header), tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    assert np.allclose(read_image(tmp_path / "big.nii").affine, affine, atol=1e-5)
    with pytest.raises(ScanError, match=r"voxel size \[0\.0, "):
        read_image(patched(tmp_path / "big.nii", (80, ">f", 0.0)))


@pytest.mark.parametrize("kind", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_colour_and_complex_images_are_refused(tmp_path, kind):
    nib.save(nib.Nifti1Image(np.ones((9, 10, 11), kind), np.eye(4)), tmp_path / "x.nii.gz")
    with pytest.raises(
        ScanError,
        match=r"x\.nii\.gz: expected one number per voxel, got data of type .* "
        r"\(colour or complex\)",
    ):
        read_image(tmp_path / "x.nii.gz")


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_truncated_files_are_refused(tmp_path, name, keep):
    data = np.random.default_rng(0).normal(size=(19, 20, 21)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(
        ScanError, match=r"x\.nii(\.gz)?: (truncated or damaged|not a readable NIfTI file) \(.+\)"
    ):
        read_image(tmp_path / name)


def test_absent_flat_and_tiny_images_are_refused(tmp_path):
    with pytest.raises(ScanError, match=r"absent\.nii: no such file"):
        read_image(tmp_path / "absent.nii")
    nib.save(nib.Nifti1Image(np.zeros((30, 40)), np.eye(4)), tmp_path / "flat.nii")
    with pytest.raises(
        ScanError, match=r"flat\.nii: expected a 3-D scan, got 2-D of shape \(30, 40\)"
    ):
        read_image(tmp_path / "flat.nii")
    nib.save(nib.Nifti1Image(np.zeros((30, 40, 7)), np.eye(4)), tmp_path / "thin.nii")
    with pytest.raises(
        ScanError,
        match=r"thin\.nii: expected at least 8 voxels along each axis, got shape \(30, 40, 7\)",
    ):
        read_image(tmp_path / "thin.nii")


def bmp_header(width, height):
    """The first bytes of an 8-bit BMP that claims any size."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024, 0, 0, 54 + 1024) + info + bytes(1024)


def png_header(width, height):
    """The beginning of a grey PNG that claims any size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    pixels = zlib.compress(bytes(1000))
    data = b"IDAT" + pixels
    end = struct.pack(">I", len(pixels)) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + chunk + end


@pytest.mark.parametrize("side", [8200, 12000, 20000, 60000])
@pytest.mark.parametrize("name", ["x.png", "x.bmp"])
def test_a_picture_too_large_is_refused_before_its_pixels(tmp_path, name, side, recwarn):
    header = png_header if name == "x.png" else bmp_header
    (tmp_path / name).write_bytes(header(side, side))
    with pytest.raises(
        ScanError, match=rf"{name}: .* pixels.*; expected at most 67 million pixels"
    ):
        read_image(tmp_path / name)
    assert not [w for w in recwarn if "Bomb" in w.category.__name__]


def test_the_limit_of_memory_holds_for_pictures_by_their_header(tmp_path):
    (tmp_path / "x.png").write_bytes(png_header(500, 250))
    with pytest.raises(ScanError, match=r"x\.png: .*take .* less than 0\.0004 GB \(limits\.max_gb"):
        read_image(tmp_path / "x.png", max_gb=0.0004)
    with pytest.raises(ScanError, match="not a readable picture"):  # of 0.0005 GB, and cut
        read_image(tmp_path / "x.png", max_gb=0.00051)


def one_bit_tiff(pixels):
    """A TIFF of one bit per colour, from bool (rows, columns, 3)."""
    rows, columns, _ = pixels.shape
    data = np.packbits(pixels.reshape(rows, -1), axis=1).tobytes()
    start = 8 + len(data)
    tags = [
        (256, 4, 1, columns),
        (257, 4, 1, rows),
        (258, 3, 3, start + 2 + 12 * 9 + 4),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, 3),
        (278, 4, 1, rows),
        (279, 4, 1, len(data)),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    folder = struct.pack("<H", len(tags)) + entries + bytes(4) + struct.pack("<HHH", 1, 1, 1)
    return b"II*\0" + struct.pack("<I", start) + data + folder


def test_a_tiff_of_one_bit_colour_is_read(tmp_path):
    pixels = np.zeros((40, 48, 3), bool)
    pixels[5:30, 7:40] = True
    pixels[10:20, 10:20, 1:] = False
    (tmp_path / "x.tif").write_bytes(one_bit_tiff(pixels))
    shown = np.asarray(read_image(tmp_path / "x.tif").dataobj)[::-1, ::-1, 0].T
    assert shown[0, 0] == 0 and shown[6, 8] == pytest.approx(1)
    assert shown[12, 12] == pytest.approx(0.2125)  # luminance of red


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (-3, np.int16, r"pixels of type int16 from -3 to 0, expected 0 or more"),
        (400, np.float32, r"pixels of type float32 from 0 to 400, expected 0 to 1"),
        (1j, np.complex64, r"pixels of type complex64, expected whole numbers"),
    ],
)
def test_pixels_that_have_no_share_of_a_range_are_refused(tmp_path, value, kind, message):
    pixels = np.zeros((40, 48), kind)
    pixels[3, 4] = value
    iio.imwrite(tmp_path / "x.tif", pixels)
    with pytest.raises(ScanError, match=rf"x\.tif: {message}; save it as 8 or 16 bit"):
        read_image(tmp_path / "x.tif")


def test_a_text_called_a_picture_is_refused_without_a_decoder_s_source_lines(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ScanError, match="not a readable picture") as caught:
        read_image(tmp_path / "text.png")
    assert ".cxx" not in str(caught.value) and "Exception thrown" not in str(caught.value)
