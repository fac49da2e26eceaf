"""Images in and out: NIfTI, pictures, and where their voxels lie."""

from __future__ import annotations

import errno
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import nibabel as nib
import numpy as np
from PIL import Image
from skimage import color, util

from preprocessing.files import atomic
from preprocessing.scans import ScanError
from preprocessing.volumes import (
    MAX_GB,
    SMALLEST,
    absent,
    check_volume,
    first_line,
    open_volume,
    refuse_pointer,
    too_large,
)

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
PIXELS = 2**26  # of a picture, 8192 x 8192; larger ones are refused before they are read
SHRINK = f"expected at most {PIXELS / 1e6:.0f} million pixels: shrink the picture"
AGAIN = "delete it and run 'make preprocess' again"

HALF = (slice(None, None, 2),) * 3  # every second voxel of an array, as `Grid.every(2)`


def box_around(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """The smallest box around a mask, which must not be empty, and `margin` voxels about it."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(mask.any(others))
        box.append(slice(max(int(found[0]) - margin, 0), int(found[-1]) + 1 + margin))
    return tuple(box)


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: their number along each axis, and the affine from indices to mm.

    The affine is 4x4; its space is RAS+: the patient's right, the front, up.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def of(cls, image: nib.Nifti1Image) -> Grid:
        """The grid of an image; channels beyond the third axis do not count."""
        x, y, z = (int(n) for n in image.shape[:3])
        return cls((x, y, z), image.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def every(self, step: int) -> Grid:
        """The grid of every `step`-th voxel along each axis, the first one included."""
        x, y, z = (-(-n // step) for n in self.shape)
        return Grid((x, y, z), self.affine @ np.diag([step, step, step, 1]))


def array_axis(affine: np.ndarray, world_axis: int) -> int:
    """The array axis closest to an axis of space: 0 left-right, 1 back-front, 2 foot-head."""
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == world_axis)[0])


def outer_planes(volume: np.ndarray) -> list[np.ndarray]:
    """The first and the last plane of a volume (X, Y, Z) along each axis."""
    return [volume[0], volume[-1], volume[:, 0], volume[:, -1], volume[..., 0], volume[..., -1]]


def is_nifti(path: Path) -> bool:
    """Whether the file name ends in .nii or .nii.gz."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def is_picture(path: Path) -> bool:
    """Whether the file name ends as a picture's does: `PICTURES`."""
    return path.suffix.lower() in PICTURES


def save_nifti(image: nib.Nifti1Image, path: Path) -> None:
    """Write a NIfTI under a temporary name in the same folder, then rename it."""
    with atomic(path) as temporary:
        image.to_filename(temporary)


def load_array(path: Path) -> np.ndarray:
    """Voxels (X, Y, Z) of a NIfTI that Norma wrote.

    Raises ScanError where it is damaged or holds something else, and FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        volume = open_volume(path)
        data = volume.stored()
    except ScanError as error:
        text = str(error).removesuffix(".").removesuffix("; copy or export it again")
        raise ScanError(f"{text}; {AGAIN}.") from None
    if data.ndim != 3:
        raise ScanError(
            f"{path}: expected a 3-D scan, got {data.ndim}-D of shape {data.shape}; {AGAIN}."
        )
    return data


def read_image(path: Path, max_gb: float = MAX_GB) -> nib.Nifti1Image:
    """Read a volume as float32 (X, Y, Z), with its header; a picture by `read_picture`.

    NIfTI, pairs of .hdr and .img, and .mgz are read, compressed or not, whatever their name says.
    scl_slope is applied, a trailing axis of length 1 dropped. Raises ScanError for a file that is
    missing, truncated or damaged, in colour or complex, not 3-D, smaller than 8 voxels along an
    axis, of `max_gb` as float32 or more, or without a usable voxel size or affine.
    """
    if is_picture(path):
        return read_picture(path, max_gb=max_gb)
    volume = open_volume(path)
    return volume.image(check_volume(volume, max_gb))


def read_picture(path: Path, channels: int = 1, max_gb: float = MAX_GB) -> nib.Nifti1Image:
    """Read a picture as a scan of one slice, float32 (X, Y, 1) in [0, 1], with pixels of 1 mm.

    Values are shares of the data type's range. A picture is taken as a radiological display: its
    left is the patient's right, its top the front. So the array is RAS+.

    Colour becomes luminance. With `channels` above 1 the first so many planes stay, as
    (X, Y, 1, channels): red, green, blue, or whatever a TIFF holds. Raises ScanError for what is
    no picture.
    """
    data = _decoded(path, max_gb)
    shown = _grey(data, path) if channels == 1 else _planes(data, path, channels)
    # rows run from the front to the back, columns from the patient's right to the left
    turned = np.ascontiguousarray(shown.swapaxes(0, 1)[::-1, ::-1, None])
    return nib.Nifti1Image(turned, np.eye(4))


def write_picture(data: np.ndarray, path: Path) -> None:
    """Write shares of the range (X, Y, 1), RAS+, as a grey PNG of 16 bit: `read_picture` undone."""
    shown = data[::-1, ::-1, 0].swapaxes(0, 1).clip(0, 1)
    Image.fromarray((shown * 65535).round().astype(np.uint16)).save(path, format="png")


def _decoded(path: Path, max_gb: float) -> np.ndarray:
    """The pixels of a picture as its file has them; ScanError where they cannot be had."""
    if not path.is_file():
        raise ScanError(absent(path))
    with path.open("rb") as file:
        refuse_pointer(file.read(64), path)
    try:
        with warnings.catch_warnings():
            # Pillow's own, much larger limit on pixels
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            _refuse_large(iio.improps(path).shape, path, max_gb)
            data = iio.imread(path)
    except ScanError:
        raise
    except Image.DecompressionBombError as error:
        raise ScanError(f"{path}: {first_line(error).split(',')[0]}; {SHRINK}.") from None
    except Exception as error:  # each decoder has errors of its own
        raise ScanError(f"{path}: not a readable picture ({first_line(error)}).") from None
    if data.dtype == bool:
        return data.astype(np.uint8) * 255
    if data.dtype.kind not in "uif":
        raise ScanError(
            f"{path}: pixels of type {data.dtype}, expected whole numbers; save it as 8 or 16 bit."
        )
    high = 1.0 if data.dtype.kind == "f" else np.inf
    if data.size and (np.nanmin(data) < 0 or np.nanmax(data) > high):
        raise ScanError(
            f"{path}: pixels of type {data.dtype} from {np.nanmin(data):g} to "
            f"{np.nanmax(data):g}, expected {'0 to 1' if high == 1 else '0 or more'}; "
            "save it as 8 or 16 bit."
        )
    return data


def _refuse_large(shape: tuple[int, ...], path: Path, max_gb: float) -> None:
    """Refuse a picture by the size that its header claims, before its pixels are read."""
    rows_columns = sorted(shape)[-2:]
    sides = " x ".join(map(str, shape))
    if int(np.prod(rows_columns, dtype=object)) > PIXELS:
        raise ScanError(f"{path}: {sides} pixels; {SHRINK}.")
    large = too_large(shape, max_gb)
    if large:
        raise ScanError(f"{path}: {sides} pixels {large}; shrink the picture.")


def _grey(data: np.ndarray, path: Path) -> np.ndarray:
    """A picture (rows, columns[, colours]) as float32 (rows, columns), colour as luminance."""
    if data.ndim == 3 and data.shape[2] in (3, 4):
        colours = data[:, :, :3]
        # a grey picture that is stored as colour keeps its values
        data = color.rgb2gray(colours) if np.ptp(colours, axis=2).any() else data[:, :, 0]
    if data.ndim != 2 or min(data.shape) < SMALLEST:
        raise ScanError(
            f"{path}: expected one grey or colour picture of at least {SMALLEST} x {SMALLEST} "
            f"pixels, got shape {data.shape}."
        )
    return util.img_as_float32(data)


def _planes(data: np.ndarray, path: Path, channels: int) -> np.ndarray:
    """The first planes of a picture as float32 (rows, columns, channels).

    The pages of a TIFF are planes; in any other picture a second or fourth plane is alpha, not one.
    """
    tiff = path.suffix.lower() in (".tif", ".tiff")
    if tiff and data.ndim == 3 and data.shape[0] < min(8, data.shape[2]):
        data = np.moveaxis(data, 0, -1)  # pages come first
    elif not tiff and data.ndim == 3 and data.shape[2] in (2, 4):
        data = data[:, :, :-1]

    count = data.shape[2] if data.ndim == 3 else 1
    if data.ndim not in (2, 3) or min(data.shape[:2]) < SMALLEST or count < channels:
        raise ScanError(
            f"{path}: expected a picture of at least {SMALLEST} x {SMALLEST} pixels "
            f"with {channels} colour planes, got {count} (shape {data.shape})."
        )
    return util.img_as_float32(data[:, :, :channels])
