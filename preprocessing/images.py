"""Images in and out: NIfTI, pictures, and where their voxels lie."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import nibabel as nib
import numpy as np
from skimage import color, util

from preprocessing.files import atomic
from preprocessing.scans import ScanError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SMALLEST = 8  # voxels or pixels along each axis
AGAIN = "delete it and run 'make preprocess' again"

HALF = (slice(None, None, 2),) * 3  # every second voxel of an array, as `Grid.every(2)`


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
    try:
        data = np.asarray(nib.Nifti1Image.from_filename(path).dataobj)
    except FileNotFoundError:
        raise
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        EOFError,
        OSError,
        ValueError,
        zlib.error,
    ) as error:
        text = " ".join(str(error).split())
        raise ScanError(f"{path}: truncated or damaged ({text}); {AGAIN}.") from None
    if data.ndim != 3:
        raise ScanError(
            f"{path}: expected a 3-D scan, got {data.ndim}-D of shape {data.shape}; {AGAIN}."
        )
    return data


def read_image(path: Path) -> nib.Nifti1Image:
    """Read a NIfTI as float32 (X, Y, Z), with its header; a picture by `read_picture`.

    scl_slope is applied, a trailing axis of length 1 dropped. Raises ScanError for a file that is
    missing, truncated, no NIfTI, in colour or complex, not 3-D, smaller than 8 voxels along an
    axis, or without a usable voxel size or affine.
    """
    if not path.is_file():
        raise ScanError(f"{path}: no such file.")
    if is_picture(path):
        return read_picture(path)

    try:
        return _read_nifti(path)
    except ScanError:
        raise
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
        raise ScanError(f"{path}: not a readable NIfTI file ({_first_line(error)}).") from None
    except (EOFError, OSError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ScanError(
            f"{path}: truncated or damaged ({_first_line(error)}); copy or export it again."
        ) from None


def _read_nifti(path: Path) -> nib.Nifti1Image:
    """`read_image` of a NIfTI; what nibabel raises for a damaged file comes through."""
    _check_stored_size(path)
    image: Any = nib.load(path)
    shape = _shape_of_volume(image.shape, path)
    kind = image.get_data_dtype()
    if kind.kind not in "biuf":
        raise ScanError(
            f"{path}: expected one number per voxel, got data of type {kind} (colour or complex)."
        )
    _check_affine(np.array(image.affine, dtype=float), path)

    data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    header = image.header if isinstance(image, nib.Nifti1Image) else None
    return nib.Nifti1Image(data, image.affine, header)


def _check_stored_size(path: Path) -> None:
    """Refuse a voxel size in the file that is no positive number; nibabel would mend it."""
    pixdim = _stored_pixdim(path)
    if pixdim is not None and not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise ScanError(
            f"{path}: voxel size {pixdim.tolist()} mm in the header; "
            "expected three positive numbers."
        )


def _stored_pixdim(path: Path) -> np.ndarray | None:
    """Voxel size of a 3-D NIfTI as it stands in the file, (3,); None where it is no NIfTI."""
    with nib.openers.ImageOpener(str(path)) as handle:
        block = handle.read(540)  # bytes of a NIfTI-2 header, the longer one
    if block[344:347] in (b"n+1", b"ni1"):
        kind = nib.Nifti1Header
    elif block[4:7] in (b"n+2", b"ni2"):
        kind = nib.Nifti2Header
    else:
        return None
    if len(block) < kind.sizeof_hdr:
        return None
    header = kind(block[: kind.sizeof_hdr], check=False)
    return np.array(header["pixdim"][1:4], dtype=float) if header["dim"][0] >= 3 else None


def _shape_of_volume(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """The shape without trailing axes of length 1; ScanError where it is not a volume's."""
    if len(shape) > 3 and set(shape[3:]) == {1}:
        shape = shape[:3]
    numbers = tuple(map(int, shape))
    if len(shape) != 3:
        raise ScanError(
            f"{path}: expected a 3-D scan, got {len(shape)}-D of shape {numbers}; "
            "give one volume per file."
        )
    if min(shape) < SMALLEST:
        raise ScanError(
            f"{path}: expected at least {SMALLEST} voxels along each axis, got shape {numbers}."
        )
    return shape


def _check_affine(affine: np.ndarray, path: Path) -> None:
    """Refuse an affine that is not finite, or whose axes do not span space."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    usable = bool(np.isfinite(affine).all() and (sizes > 0).all())
    # the determinant of unit axes is 1 where they are at right angles, 0 in one plane
    if not usable or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-3:
        raise ScanError(
            f"{path}: the affine is singular or not finite, so voxels have no place in space; "
            "repair the header."
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def read_picture(path: Path, channels: int = 1) -> nib.Nifti1Image:
    """Read a picture as a scan of one slice, float32 (X, Y, 1) in [0, 1], with pixels of 1 mm.

    Values are shares of the data type's range. A picture is taken as a radiological display: its
    left is the patient's right, its top the front. So the array is RAS+.

    Colour becomes luminance. With `channels` above 1 the first so many planes stay, as
    (X, Y, 1, channels): red, green, blue, or whatever a TIFF holds. Raises ScanError for what is
    no picture.
    """
    try:
        data = iio.imread(path)
    except (OSError, ValueError, SyntaxError, IndexError, RuntimeError) as error:
        raise ScanError(f"{path}: not a readable picture ({_first_line(error)}).") from None
    shown = _grey(data, path) if channels == 1 else _planes(data, path, channels)
    # rows run from the front to the back, columns from the patient's right to the left
    turned = np.ascontiguousarray(shown.swapaxes(0, 1)[::-1, ::-1, None])
    return nib.Nifti1Image(turned, np.eye(4))


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
