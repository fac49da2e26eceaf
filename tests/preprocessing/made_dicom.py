"""DICOM files made for tests: every value and every place is chosen here, and known afterwards."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

ROWS = 40
COLUMNS = 48
SPACING = (1.5, 2.0)  # mm between rows, and between columns
STEP = 5.0  # mm between slices
AXIAL = (1, 0, 0, 0, 1, 0)
CORONAL = (1, 0, 0, 0, 0, -1)
POSES = {  # direction of a row and of a column, LPS
    "axial": AXIAL,
    "prone": (-1, 0, 0, 0, -1, 0),
    "feet first": (-1, 0, 0, 0, 1, 0),
    "coronal": CORONAL,
    "oblique": (0.96, 0.28, 0, -0.224, 0.768, 0.6),
}
CORNER = (-30.0, -40.0)  # LPS mm of the first pixel of axial slices
SECRETS = ("SECRET", "ID-4711", "19700101", "Elsewhere")


def voxels(slices, seed=0):
    """Random values (slices, ROWS, COLUMNS), no two slices alike."""
    return np.random.default_rng(seed).integers(-900, 1500, (slices, ROWS, COLUMNS))


def axial(*z):
    """Positions of axial slices at heights z."""
    return [(*CORNER, float(height)) for height in z]


def steps(count, start=10.0):
    return [start + STEP * k for k in range(count)]


def affine_by_hand(first_z=10.0, step=STEP):
    """RAS+ affine of an axial volume whose array is (column, row from the back, slice)."""
    x = -CORNER[0]
    y = -(CORNER[1] + SPACING[0] * (ROWS - 1))
    return np.array(
        [[-SPACING[1], 0, 0, x], [0, SPACING[0], 0, y], [0, 0, step, first_z], [0, 0, 0, 1.0]]
    )


def in_array_order(data):
    """Slices (N, rows, columns) from low to high as dcm2niix stores them: rows run to the front."""
    return np.asarray(data).transpose(2, 1, 0)[:, ::-1]


def file_of(storage, modality, syntax=ExplicitVRLittleEndian):
    """A file without place or pixels; everything that belongs to the patient is a secret."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    d = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    d.SOPClassUID = storage
    d.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    d.Modality = modality
    d.Manufacturer = "SIEMENS"
    d.StudyDate = "20200101"
    d.StudyTime = "101010"
    d.PatientName = "SECRET^NAME"
    d.PatientID = "ID-4711"
    d.PatientBirthDate = "19700101"
    d.InstitutionName = "St. Elsewhere"
    d.SeriesDescription = "SECRET head"
    d.ProtocolName = "SECRET protocol"
    d.ImageComments = "SECRET comment"
    d.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    d.SeriesNumber = 2
    d.PatientPosition = "HFS"
    d.Rows = ROWS
    d.Columns = COLUMNS
    d.SamplesPerPixel = 1
    d.PhotometricInterpretation = "MONOCHROME2"
    d.BitsAllocated = 16
    d.BitsStored = 16
    d.HighBit = 15
    d.PixelRepresentation = 1
    return d


def write_series(folder, positions, data=None, change=None, name="I", **common):
    """A series of one file per slice; `common` sets elements of all files, `change(d, k)` of one.

    Gives the values. `modality` and `orientation` may stand in `common`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = voxels(len(positions)) if data is None else data
    modality = common.pop("modality", "CT")
    orientation = common.pop("orientation", AXIAL)
    shared = {part: generate_uid() for part in ("StudyInstanceUID", "SeriesInstanceUID")}
    shared["FrameOfReferenceUID"] = generate_uid()
    for k, position in enumerate(positions):
        d = file_of(CTImageStorage if modality == "CT" else MRImageStorage, modality)
        d.InstanceNumber = k + 1
        d.ImageOrientationPatient = list(orientation)
        d.ImagePositionPatient = [float(v) for v in position]
        d.PixelSpacing = list(SPACING)
        d.SliceThickness = STEP
        d.RescaleIntercept = 0
        d.RescaleSlope = 1
        d.PixelData = np.asarray(data[k]).astype("<i2").tobytes()
        for element, value in (shared | common).items():
            setattr(d, element, value)
        if change:
            change(d, k)
        d.save_as(folder / f"{name}{k:03d}", enforce_file_format=True)
    return data


def write_enhanced(folder, positions, modality="CT", data=None, change=None, name="E001"):
    """A multi-frame file (enhanced CT or MR), a frame per slice, values in steps of 2 from -24.

    Gives the values.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = voxels(len(positions)) if data is None else data
    d = file_of(EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage, modality)
    d.StudyInstanceUID = generate_uid()
    d.SeriesInstanceUID = generate_uid()
    d.FrameOfReferenceUID = generate_uid()
    d.InstanceNumber = 1
    d.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    d.NumberOfFrames = len(positions)
    shared = Dataset()
    shared.PlaneOrientationSequence = _sequence(ImageOrientationPatient=list(AXIAL))
    shared.PixelMeasuresSequence = _sequence(PixelSpacing=list(SPACING), SliceThickness=STEP)
    shared.PixelValueTransformationSequence = _sequence(
        RescaleIntercept=-24, RescaleSlope=2, RescaleType="HU"
    )
    d.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k, position in enumerate(positions):
        frame = Dataset()
        frame.FrameContentSequence = _sequence(StackID="1", InStackPositionNumber=k + 1)
        frame.PlanePositionSequence = _sequence(ImagePositionPatient=[float(v) for v in position])
        frames.append(frame)
    d.PerFrameFunctionalGroupsSequence = Sequence(frames)
    d.PixelData = np.asarray(data).astype("<i2").tobytes()
    if change:
        change(d)
    d.save_as(folder / name, enforce_file_format=True)
    return np.asarray(data) * 2 - 24


def write_marked(folder, pose, tilt=0.0, backwards=False, modality="CT", along=1):
    """A series with a bright square of 3 x 3 pixels in each slice; gives their places, LPS mm.

    `tilt` in degrees slides slices along columns, or along rows (`along` 0). `backwards`: files run
    against the normal. A pose that is feet first says so in PatientPosition.
    """
    row = np.array(POSES[pose][:3], float)
    column = np.array(POSES[pose][3:], float)
    count = 12
    step = STEP * (np.cross(row, column) + (row, column)[along] * np.tan(np.deg2rad(tilt)))
    positions = [np.array((*CORNER, 10.0)) + k * step for k in range(count)]
    data = np.full((count, ROWS, COLUMNS), -900)
    marks = []
    for k, place in enumerate(positions):
        i = 10 + (7 * k) % (ROWS - 20)
        j = 10 + (11 * k) % (COLUMNS - 20)
        data[k, i - 1 : i + 2, j - 1 : j + 2] = 1000
        marks.append(place + j * SPACING[1] * row + i * SPACING[0] * column)
    order = range(count)[:: -1 if backwards else 1]
    common = {"PatientPosition": "FFS" if pose == "feet first" else "HFS"}
    if tilt:
        common["GantryDetectorTilt"] = tilt
    common |= {"orientation": POSES[pose], "modality": modality}
    write_series(folder, [positions[k] for k in order], data[order], **common)
    return marks


def in_order(marks):
    """Places (N, 3) sorted, to be compared with others."""
    marks = np.asarray(marks)
    return marks[np.lexsort(marks.round(1).T)]


def found_marks(image):
    """Centres (N, 3), LPS mm, of what is bright in each slice of a NIfTI, sorted."""
    above = np.asarray(image.dataobj, float) - np.min(image.dataobj)
    found = []
    for k in range(above.shape[2]):
        x, y = np.indices(above.shape[:2])
        weight = above[:, :, k] / above[:, :, k].sum()
        ras = image.affine @ [(weight * x).sum(), (weight * y).sum(), k, 1]
        found.append(ras[:3] * (-1, -1, 1))
    return in_order(found)


def _sequence(**elements):
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return Sequence([item])


def strip_preamble(path, implicit=True):
    """Write a file again as old scanners do, without preamble and file meta information."""
    import pydicom

    d = pydicom.dcmread(path)
    d.preamble = None
    d.file_meta = FileMetaDataset()
    d.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
