"""One volume file read with care: NIfTI, .hdr/.img pairs, .mgz.

The header is judged before a voxel is read, so that no small file takes much memory.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.volumeutils import apply_read_scaling

from preprocessing.scans import ScanError

SMALLEST = 8  # voxels or pixels along each axis
MAX_GB = 4.0  # of a scan as float32, by default: a head at 0.2 mm
FAR = 1000  # mm: a field of view that no head scanner has
LONGEST_AXIS = 32767  # voxels, the most that NIfTI-1 holds, in which results are written
SLACK = 2**20  # bytes that may follow the voxels, as the footer of .mgz does
CHUNK = 2**20  # bytes that are inflated at a time
RATIO = 1032  # deflate makes nothing smaller than by this factor
COMPRESSED = b"\x1f\x8b"
GET = "run 'datalad get' or 'git annex get'"
HEAD = 540  # bytes of a NIfTI-2 header, the longest one

# What nibabel raises for a header that it cannot use.
BAD_HEADER = (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError)


@dataclass(frozen=True)
class Volume:
    """A volume as its header has it; no voxel has been read.

    data: the file of the voxels, which begin at byte `offset`.
    affine: 4x4, from voxels to mm, RAS+; a guess where not `oriented`.
    """

    path: Path
    data: Path
    header: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    affine: np.ndarray
    oriented: bool

    def stored(self) -> np.ndarray:
        """The voxels as the file has them, without slope; ScanError where some are missing."""
        count = int(np.prod(self.shape, dtype=object))
        size = count * self.dtype.itemsize
        raw = _stored_bytes(self.data, self.offset, size)
        return np.frombuffer(raw, self.dtype, count).reshape(self.shape, order="F")

    def voxels(self, shape: tuple[int, ...]) -> np.ndarray:
        """The voxels as float32 in a shape of as many, slope and intercept applied.

        Plane by plane, which saves memory: scaling works in float64.
        """
        slope, intercept = self.header.get_slope_inter()
        slope = np.float64(1 if slope is None else slope)
        intercept = np.float64(0 if intercept is None else intercept)
        stored = self.stored().reshape(shape, order="F")
        result = np.empty(shape, np.float32, order="F")
        for plane in range(shape[-1]):
            scaled = apply_read_scaling(stored[..., plane], slope, intercept)
            # by way of float64 where whole numbers are too large for float32, as nibabel does
            result[..., plane] = scaled.astype(np.promote_types(scaled.dtype, np.float32))
        return result

    def image(self, shape: tuple[int, ...]) -> nib.Nifti1Image:
        """The volume as float32 in a shape of as many voxels, with its header."""
        header = self.header if isinstance(self.header, nib.Nifti1Header) else None
        image = nib.Nifti1Image(self.voxels(shape), self.affine, header)
        if not self.oriented:
            image.header["qform_code"] = 0
            image.header["sform_code"] = 0
        return image


def absent(path: Path) -> str:
    """Why there is no such file, as a sentence."""
    if path.is_symlink():
        target = os.readlink(path)
        if ".git/annex" in target.replace("\\", "/"):
            return f"{path}: a git-annex link whose data are not here; {GET}."
        return f"{path}: a link to {target}, which is not there; mend the link."
    return f"{path}: no such file."


def open_volume(path: Path) -> Volume:
    """The header of a volume, judged. Raises ScanError for a file that cannot be one."""
    head, data = _parts(path)
    for file in (head, data):
        if not file.is_file():
            raise ScanError(absent(file))
    try:
        block = _first_bytes(head)
        refuse_pointer(block, path)
        header = _header_of(block, head, path)
        return _volume(path, data, header)
    except ScanError:
        raise
    except BAD_HEADER as error:
        raise ScanError(f"{path}: not a readable NIfTI file ({first_line(error)}).") from None
    except OSError as error:
        raise ScanError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except (EOFError, ValueError, TypeError, KeyError, OverflowError, zlib.error) as error:
        raise ScanError(damaged(path, first_line(error))) from None


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind; SimpleITK's source line does not count."""
    text = str(error)
    lines = (text.partition("sitk::ERROR: ")[2] or text).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def damaged(path: Path, why: str) -> str:
    """The sentence for a file that lost bytes or holds wrong ones."""
    if "incorrect data check" in why or "incorrect length check" in why:
        why = "the checksum of its gzip stream is wrong"
    return f"{path}: truncated or damaged ({why}); copy or export it again."


def volume_shape(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """The shape without trailing axes of length 1; ScanError where it is not a volume's."""
    if len(shape) > 3 and set(shape[3:]) == {1}:
        shape = shape[:3]
    numbers = tuple(map(int, shape))
    if len(numbers) != 3:
        raise ScanError(
            f"{path}: expected a 3-D scan, got {len(numbers)}-D of shape {numbers}; "
            "give one volume per file."
        )
    if min(numbers) < SMALLEST:
        raise ScanError(
            f"{path}: expected at least {SMALLEST} voxels along each axis, got shape {numbers}."
        )
    return numbers


def too_large(shape: Sequence[int], max_gb: float) -> str:
    """What is wrong with an array of this shape; empty where it takes less than `max_gb`."""
    claimed = 4 * int(np.prod(shape, dtype=object)) / 1e9
    if claimed < max_gb:
        return ""
    return (
        f"take {claimed:.1f} GB as float32, expected less than {max_gb:g} GB "
        "(limits.max_gb of the recipe)"
    )


def has_orientation(image: nib.Nifti1Image) -> bool:
    """Whether a header says which way its volume lies: one of the codes is above 0."""
    return bool(image.header["qform_code"] > 0 or image.header["sform_code"] > 0)


def demand_orientation(image: nib.Nifti1Image, path: Path) -> None:
    """Refuse a volume whose header does not say which way it lies."""
    if not has_orientation(image):
        raise ScanError(
            f"{path}: the header does not say how the scan lies (qform_code and sform_code are 0), "
            "expected one above 0; convert it again, set the sform once you know the axes, or "
            "preprocess with orientation=guess."
        )


def forms_apart(image: nib.Nifti1Image) -> tuple[float, float]:
    """How far qform and sform of a header lie apart: mm at the farthest corner, and degrees.

    Both are 0 where not both are set, and infinite where the qform is no rotation.
    """
    header = image.header
    if header["qform_code"] <= 0 or header["sform_code"] <= 0:
        return 0.0, 0.0
    try:
        qform = header.get_qform()
    except (ValueError, *BAD_HEADER):
        return np.inf, np.inf
    sform = header.get_sform()
    corners = np.array([(*c, 1) for c in np.ndindex(2, 2, 2)]) * (*np.subtract(image.shape, 1), 1)
    apart = np.linalg.norm(corners @ (qform - sform).T, axis=1).max()
    turn = _rotation(qform).T @ _rotation(sform)
    cosine = np.clip((np.trace(turn) - 1) / 2, -1, 1)
    return float(apart), float(np.degrees(np.arccos(cosine)))


def _rotation(affine: np.ndarray) -> np.ndarray:
    """The orthogonal matrix (3x3) nearest to an affine."""
    u, _, vt = np.linalg.svd(affine[:3, :3])
    return u @ vt


def partner_of(path: Path) -> Path | None:
    """The other file of a pair .hdr and .img; None for a scan in one file."""
    head, data = _parts(path)
    if head == data:
        return None
    return data if head == path else head


def _parts(path: Path) -> tuple[Path, Path]:
    """The files of header and voxels: two of a pair .hdr and .img, else one twice."""
    lower = path.name.lower()
    packed = path.name[-3:] if lower.endswith(".gz") else ""
    base = path.name[: len(path.name) - len(packed)]
    if not base.lower().endswith((".hdr", ".img")):
        return path, path
    other = {"h": "img", "i": "hdr"}[base[-3].lower()]
    other = other.upper() if base[-3:].isupper() else other
    names = [base[:-3] + other + packed, base[:-3] + other, base[:-3] + other + ".gz"]
    found = [path.with_name(name) for name in names]
    partner = next((file for file in found if file.is_file()), found[0])
    return (path, partner) if base[-3].lower() == "h" else (partner, path)


def _first_bytes(path: Path) -> bytes:
    """The first bytes of a file, inflated where it is compressed, whatever its name says."""
    with path.open("rb") as file:
        block = file.read(HEAD)
    if not block.startswith(COMPRESSED):
        return block
    found = b""
    for inflated in _inflate(path):
        found += inflated
        if len(found) >= HEAD:
            break
    return found[:HEAD]


def refuse_pointer(block: bytes, path: Path) -> None:
    """Refuse a note that stands where git left the data out."""
    if block.startswith(b"version https://git-lfs"):
        raise ScanError(f"{path}: a Git LFS pointer, not the scan itself; run 'git lfs pull'.")
    if block.lstrip(b"./").startswith((b"annex/objects/", b"git/annex/objects/")):
        raise ScanError(f"{path}: a git-annex pointer, not the scan itself; {GET}.")


def _header_of(block: bytes, file: Path, path: Path) -> Any:
    """The header in the first bytes of a file, as nibabel has it."""
    if not block:
        raise EOFError("the file is empty")
    if block[344:347] in (b"n+1", b"ni1"):
        return _nifti_header(block, nib.Nifti1Header, path)
    if block[4:7] in (b"n+2", b"ni2"):
        return _nifti_header(block, nib.Nifti2Header, path)
    if path.name.lower().endswith((".mgz", ".mgh")):
        return _mgh_header(block)
    size = nib.AnalyzeHeader.sizeof_hdr
    named = file.name.lower().endswith((".hdr", ".hdr.gz"))
    begins = (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big"))
    if named and size in begins and len(block) >= size:
        return nib.AnalyzeHeader(block[:size])
    raise ScanError(
        f"{path}: not a readable NIfTI file (it does not begin as one); "
        "give .nii, .nii.gz, a pair .hdr and .img, or .mgz."
    )


def _nifti_header(block: bytes, kind: Any, path: Path) -> Any:
    """A NIfTI header that can be used; nibabel would mend some of what is refused here."""
    if len(block) < kind.sizeof_hdr:
        raise EOFError(f"{len(block)} bytes, {kind.sizeof_hdr} of header expected")
    raw = kind(block[: kind.sizeof_hdr], check=False)
    pixdim = np.array(raw["pixdim"][1:4], dtype=float)
    if raw["dim"][0] >= 3 and not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise ScanError(
            f"{path}: voxel size {pixdim.tolist()} mm in the header; "
            "expected three positive numbers."
        )
    offset = float(raw["vox_offset"])
    least = kind.single_vox_offset if raw["magic"].item()[:2] == b"n+" else 0
    if not (np.isfinite(offset) and offset >= least):
        raise ScanError(
            f"{path}: vox_offset is {offset:g}, so that the header would be read as voxels; "
            f"expected {least} or more; set it."
        )
    if kind is nib.Nifti2Header and 3000 <= int(raw["intent_code"]) < 3100:
        raise ScanError(
            f"{path}: a CIFTI file (grayordinates or parcels, intent code "
            f"{int(raw['intent_code'])}), not a volume; give the NIfTI scan."
        )
    return kind(block[: kind.sizeof_hdr])


def _mgh_header(block: bytes) -> Any:
    """The header of a .mgz file; its footer is left out."""
    size = MGHHeader._hdrdtype.itemsize
    if len(block) < size:
        raise EOFError(f"{len(block)} bytes, {size} of header expected")
    return MGHHeader(block[:size] + bytes(MGHHeader._ftrdtype.itemsize))


def _volume(path: Path, data: Path, header: Any) -> Volume:
    """A volume from its header; ScanError where it claims what cannot be."""
    shape = tuple(int(n) for n in header.get_data_shape())
    dtype = header.get_data_dtype()
    oriented = True
    if isinstance(header, nib.Nifti1Header):
        oriented = bool(header["qform_code"] > 0 or header["sform_code"] > 0)
    elif isinstance(header, MGHHeader):
        oriented = bool(header["goodRASFlag"] == 1)
        shape = shape[:3] if shape[3:] == (1,) else shape
    else:
        oriented = False  # Analyze 7.5 has no place for it
    affine = np.array(header.get_best_affine(), dtype=float)
    return Volume(path, data, header, shape, dtype, int(header.get_data_offset()), affine, oriented)


def check_volume(volume: Volume, max_gb: float = MAX_GB) -> tuple[int, ...]:
    """The shape of a scan, 3-D; ScanError where it is none, or too large to be a head's.

    As float32 it takes less than `max_gb`.
    """
    path = volume.path
    shape = volume_shape(volume.shape, path)
    if volume.dtype.kind not in "biuf":
        raise ScanError(
            f"{path}: expected one number per voxel, got data of type {volume.dtype} "
            "(colour or complex)."
        )
    sides = " x ".join(map(str, shape))
    if max(shape) > LONGEST_AXIS:
        raise ScanError(
            f"{path}: {sides} voxels; expected at most {LONGEST_AXIS} along each axis, "
            "which is what NIfTI-1 holds; crop or resample it."
        )
    large = too_large(shape, max_gb)
    if large:
        raise ScanError(f"{path}: {sides} voxels {large}; crop or resample it.")
    _check_affine(volume.affine, path)
    extent = np.linalg.norm(volume.affine[:3, :3], axis=0) * shape
    if extent.max() > FAR:
        text = " x ".join(f"{side:.0f}" for side in extent)
        raise ScanError(
            f"{path}: the field of view is {text} mm; expected at most {FAR} mm; "
            "repair the voxel size in the header."
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


def _stored_bytes(path: Path, offset: int, size: int) -> bytearray:
    """`size` bytes of a file from `offset` on, inflated where it is compressed.

    A compressed file is inflated to its end, so that its checksum is seen.
    """
    there = path.stat().st_size
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == COMPRESSED
            if not compressed and there >= offset + size:
                raw = bytearray(size)
                file.seek(offset)
                file.readinto(raw)
                return raw
        if not compressed or there * RATIO < offset + size:
            raise EOFError(f"{there} bytes, the header claims {offset + size}")
        return _inflated_part(path, offset, size)
    except (EOFError, OSError, zlib.error) as error:
        raise ScanError(damaged(path, first_line(error))) from None


def _inflated_part(path: Path, offset: int, size: int) -> bytearray:
    """`size` bytes from `offset` on of what a gzip file inflates to."""
    end = offset + size
    kept = bytearray()
    position = 0
    for block in _inflate(path):
        kept += block[max(offset - position, 0) : max(end - position, 0)]
        position += len(block)
        if position > end + SLACK:
            raise EOFError(f"it inflates to more than the {end} bytes that the header claims")
    if len(kept) < size:
        raise EOFError(f"it inflates to {position} bytes, the header claims {end}")
    return kept


def _inflate(path: Path) -> Iterator[bytes]:
    """A gzip file inflated in blocks, all of its members; zlib checks length and CRC of each."""
    member = zlib.decompressobj(wbits=31)
    with path.open("rb") as file:
        while packed := file.read(CHUNK):
            while packed:
                if member.eof:
                    packed = packed.lstrip(b"\0")  # tapes are filled up with zeros
                    if not packed:
                        break
                    member = zlib.decompressobj(wbits=31)
                yield member.decompress(packed, CHUNK)
                packed = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise EOFError("it ends before its gzip stream does")
