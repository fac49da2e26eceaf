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


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: their number along each axis, and the affine (4x4) from indices to mm, RAS+."""

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
        return voxel_sizes(self.affine)

    def every(self, step: int) -> Grid:
        """The grid of every `step`-th voxel along each axis, the first one included."""
        x, y, z = (-(-n // step) for n in self.shape)
        return Grid((x, y, z), self.affine @ np.diag([step, step, step, 1]))


def is_nifti(path: Path) -> bool:
    """Whether the file name ends in .nii or .nii.gz."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def is_picture(path: Path) -> bool:
    """Whether the file name ends as a picture's does: `PICTURES`."""
    return path.suffix.lower() in PICTURES


def has_nifti(folder: Path) -> bool:
    """Whether a folder holds a NIfTI file at any depth."""
    return any(is_nifti(p) for p in folder.rglob("*.nii*"))


def save_nifti(image: nib.Nifti1Image, path: Path) -> None:
    """Write a NIfTI under a temporary name in the same folder, then rename it."""
    with atomic(path) as temporary:
        image.to_filename(temporary)


def read_image(path: Path) -> nib.Nifti1Image:
    """Read a NIfTI as float32 (X, Y, Z), scl_slope applied, header kept; a picture as `read_picture` does.

    A trailing axis of length 1 is dropped. Raises ScanError for a file that is missing, truncated, no NIfTI, in colour or
    complex, not 3-D, smaller than 8 voxels along an axis, or without a usable voxel size or affine.
    """
    if not path.is_file():
        raise ScanError(f"{path}: no such file.")
    if is_picture(path):
        return read_picture(path)
    try:
        pixdim = _stored_pixdim(path)
        if pixdim is not None and not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
            raise ScanError(
                f"{path}: voxel size {pixdim.tolist()} mm in the header; expected three positive numbers."
            )
        image: Any = nib.load(path)
        shape = image.shape
        if len(shape) > 3 and set(shape[3:]) == {1}:
            shape = shape[:3]
        if len(shape) != 3:
            raise ScanError(
                f"{path}: expected a 3-D scan, got {len(shape)}-D of shape {tuple(map(int, shape))}; give one volume per file."
            )
        if min(shape) < 8:
            raise ScanError(
                f"{path}: expected at least 8 voxels along each axis, got shape {tuple(map(int, shape))}."
            )
        if image.get_data_dtype().kind not in "biuf":
            raise ScanError(
                f"{path}: expected one number per voxel, got data of type {image.get_data_dtype()} (colour or complex)."
            )
        affine = np.array(image.affine, dtype=float)
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        if (
            not np.isfinite(affine).all()
            or (sizes == 0).any()
            or abs(np.linalg.det(affine[:3, :3] / np.where(sizes, sizes, 1))) < 1e-3
        ):
            raise ScanError(
                f"{path}: the affine is singular or not finite, so voxels have no place in space; repair the header."
            )
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    except ScanError:
        raise
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError) as error:
        raise ScanError(f"{path}: not a readable NIfTI file ({_first_line(error)}).") from None
    except (EOFError, OSError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ScanError(
            f"{path}: truncated or damaged ({_first_line(error)}); copy or export it again."
        ) from None
    header = image.header if isinstance(image, nib.Nifti1Image) else None
    return nib.Nifti1Image(data, image.affine, header)


def read_picture(path: Path, channels: int = 1) -> nib.Nifti1Image:
    """Read a picture as a scan of one slice, float32 (X, Y, 1) in [0, 1] by its data type, pixels of 1 mm, grey.

    A picture is taken as a radiological display: its left is the patient's right, its top the front, so the array is
    RAS+ and shows the same way up in every figure. Colour becomes luminance; with `channels` above 1 the first so many planes
    (red, green, blue; of a TIFF whatever it holds) are kept, (X, Y, 1, channels). Raises ScanError for what is no picture.
    """
    try:
        data = iio.imread(path)
    except (OSError, ValueError, SyntaxError, IndexError, RuntimeError) as error:
        raise ScanError(f"{path}: not a readable picture ({_first_line(error)}).") from None
    if channels > 1:
        return nib.Nifti1Image(
            np.ascontiguousarray(_planes(data, path, channels)[::-1, ::-1, None]), np.eye(4)
        )
    if data.ndim == 3 and data.shape[2] in (3, 4):
        data = (
            color.rgb2gray(data[:, :, :3])
            if np.ptp(data[:, :, :3], axis=2).any()
            else data[:, :, 0]
        )
    if data.ndim != 2 or min(data.shape) < 8:
        raise ScanError(
            f"{path}: expected one grey or colour picture of at least 8 x 8 pixels, got shape {data.shape}."
        )
    grey = util.img_as_float32(data)
    return nib.Nifti1Image(np.ascontiguousarray(grey.T[::-1, ::-1, None]), np.eye(4))


def _planes(data: np.ndarray, path: Path, channels: int) -> np.ndarray:
    """The first planes of a picture (rows, columns, planes) as float32 (X, Y, channels); pages of a TIFF are planes, alpha is none."""
    if (
        path.suffix.lower() in (".tif", ".tiff")
        and data.ndim == 3
        and data.shape[0] < min(8, data.shape[2])
    ):
        data = np.moveaxis(data, 0, -1)
    elif (
        data.ndim == 3 and data.shape[2] in (2, 4) and path.suffix.lower() not in (".tif", ".tiff")
    ):
        data = data[:, :, :-1]
    count = data.shape[2] if data.ndim == 3 else 1
    if data.ndim not in (2, 3) or min(data.shape[:2]) < 8 or count < channels:
        raise ScanError(
            f"{path}: expected a picture of at least 8 x 8 pixels with {channels} colour planes, got {count} (shape {data.shape})."
        )
    return util.img_as_float32(data[:, :, :channels]).transpose(1, 0, 2)


def _stored_pixdim(path: Path) -> np.ndarray | None:
    """Voxel size of a 3-D NIfTI as it stands in the file, (3,): nibabel mends zeros and signs on loading. None for no NIfTI."""
    with nib.openers.ImageOpener(str(path)) as handle:
        block = handle.read(540)
    kind = (
        nib.Nifti1Header
        if block[344:347] in (b"n+1", b"ni1")
        else nib.Nifti2Header
        if block[4:7] in (b"n+2", b"ni2")
        else None
    )
    if kind is None or len(block) < kind.sizeof_hdr:
        return None
    header = kind(block[: kind.sizeof_hdr], check=False)
    return np.array(header["pixdim"][1:4], dtype=float) if header["dim"][0] >= 3 else None


def array_axis(affine: np.ndarray, world: int) -> int:
    """The array axis that runs closest to a world axis: 0 left-right, 1 back-front, 2 foot-head."""
    return int(np.flatnonzero(nib.io_orientation(affine)[:, 0] == world)[0])


def voxel_sizes(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel size in mm along each array axis."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def load_array(path: Path) -> np.ndarray:
    """Voxels (X, Y, Z) of a NIfTI that Norma wrote; ScanError where it is damaged or holds something else."""
    again = "delete it and run 'make preprocess' again"
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
        raise ScanError(
            f"{path}: truncated or damaged ({' '.join(str(error).split())}); {again}."
        ) from None
    if data.ndim != 3:
        raise ScanError(
            f"{path}: expected a 3-D scan, got {data.ndim}-D of shape {data.shape}; {again}."
        )
    return data
