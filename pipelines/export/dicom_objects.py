"""The three DICOM instances of a result: Segmentation, Parametric Map and Comprehensive SR."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import highdicom as hd
import numpy as np
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pipelines.detect.report import Report
from pipelines.export.dicom_planes import Source
from pipelines.versions import __version__
from preprocessing.scans import NOTICE

# A clinician reads these in the list of series and beside the picture.
SHORT_NOTICE = "research, not for diagnosis"
LABEL = "RESEARCH_ANOMALY"  # content label: at most 16 characters
SERIES_NUMBERS = {"mask": 9001, "map": 9002, "report": 9003}

# "Lesion" is the widest word for a finding that the segmentation types know.
CATEGORY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LESION = Code("52988006", "SCT", "Lesion")
BRAIN = Code("12738006", "SCT", "Brain")
LUNG = Code("39607008", "SCT", "Lung")
PROCEDURES = {
    "CT": Code("77477000", "SCT", "Computed Tomography"),
    "MR": Code("113091000", "SCT", "Magnetic Resonance Imaging"),
}


Group = (
    sr.MeasurementsAndQualitativeEvaluations | sr.VolumetricROIMeasurementsAndQualitativeEvaluations
)


@dataclass(frozen=True)
class Result:
    """A scored scan on the planes of its series, (planes, rows, columns).

    segments: 0 elsewhere, i in component i of the report, one more in all other components.
    weights: digest of the run's weights. content: digest of all that shapes the three files.
    """

    source: Source
    report: Report
    segments: np.ndarray
    map: np.ndarray
    weights: str
    content: str

    def uid(self, what: str) -> str:
        """A UID of this result: the same result has the same, so that no archive holds it twice."""
        return f"2.25.{uuid5(NAMESPACE_OID, f'norma {self.content} {what}').int}"

    def filed(self, kind: str) -> dict[str, Any]:
        """What every instance says of itself and of its maker."""
        return {
            "series_instance_uid": self.uid(f"{kind} series"),
            "series_number": SERIES_NUMBERS[kind],
            "series_description": f"Norma {kind} ({SHORT_NOTICE})",
            "sop_instance_uid": self.uid(kind),
            "instance_number": 1,
            "manufacturer": "Norma",
            "manufacturer_model_name": f"{self.report.model}",
            "software_versions": __version__,
            "device_serial_number": self.weights[:64],
            "specific_character_set": "ISO_IR 192",
        }

    @property
    def organ(self) -> Code:
        """What was looked at: the lungs of a chest CT, else the brain."""
        return LUNG if self.report.of_lungs else BRAIN

    @property
    def parameters(self) -> dict[str, str]:
        """What the algorithm was invoked with."""
        report = self.report
        return {"run": f"{report.run}", "sha256": self.weights, "threshold": f"{report.threshold}"}


def segmentation(result: Result) -> Dataset:
    """The mask: a binary segment for each component that the report lists, and one for the rest."""
    there = [int(number) for number in np.unique(result.segments) if number]
    found = hd.AlgorithmIdentificationSequence(
        name=f"Norma {result.report.model}",
        family=codes.cid7162.ArtificialIntelligence,
        version=__version__,
        source="Norma",
        parameters=result.parameters,
    )
    descriptions = []
    for number, old in enumerate(there, start=1):
        segment = hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=_name(old, result.report),
            segmented_property_category=CATEGORY,
            segmented_property_type=LESION,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=found,
            tracking_uid=result.uid(f"tracking {old}"),
            tracking_id=_name(old, result.report),
            anatomic_regions=[result.organ],
        )
        segment.SegmentDescription = f"{_summary(old, result.report)}. {NOTICE}"
        descriptions.append(segment)
    numbers = np.searchsorted(there, result.segments) + 1
    return hd.seg.Segmentation(
        source_images=result.source.instances,
        pixel_array=np.where(result.segments > 0, numbers, 0).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        content_label=LABEL,
        content_description=f"Norma anomaly mask ({SHORT_NOTICE})",
        **result.filed("mask"),
    )


def parametric_map(result: Result) -> Dataset:
    """The anomaly map as float32, shown from 0 to twice the threshold."""
    top = float(result.map.max())
    meaning = hd.pm.RealWorldValueMapping(
        lut_label="ANOMALY",
        lut_explanation="Norma anomaly map: larger departs more from healthy scans",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, max(top, 1e-6)),
        slope=1.0,
        intercept=0.0,
    )
    middle = float(result.report.threshold or top / 2)
    window = hd.VOILUTTransformation(
        window_center=float(f"{middle:.6g}"),
        window_width=float(f"{max(2 * middle, 1e-6):.6g}"),
        voi_lut_function=hd.VOILUTFunctionValues.LINEAR_EXACT,  # the others ask for a width of 1
    )
    made = hd.pm.ParametricMap(
        source_images=result.source.instances,
        pixel_array=result.map.astype(np.float32),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[meaning],
        voi_lut_transformations=[window],
        content_label=LABEL,
        content_description=f"Norma anomaly map ({SHORT_NOTICE})",
        **result.filed("map"),
    )
    # unpaired, so that no laterality is asked for
    made.BodyPartExamined = "CHEST" if result.report.of_lungs else "BRAIN"
    return made


def structured_report(result: Result, mask: Dataset | None) -> Dataset:
    """The report: volumes of the components, which refer to their segments, and sentences."""
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=result.uid("device"),
        name=f"Norma ({SHORT_NOTICE})",
        manufacturer_name="Norma",
        model_name=f"{result.report.model} {__version__}",
        serial_number=result.weights[:64],
    )
    observer = sr.ObserverContext(codes.DCM.Device, device)
    first = result.source.instances[0]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=PROCEDURES.get(str(first.get("Modality")), PROCEDURES["MR"]),
        imaging_measurements=list(_groups(result, mask)),
        title=codes.DCM.ImagingMeasurementReport,
    )
    for sentence in sentences(result):
        content[0].ContentSequence.append(
            sr.TextContentItem(
                name=codes.DCM.Comment,
                value=sentence,
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
        )
    return sr.ComprehensiveSR(
        evidence=[*result.source.instances, *([mask] if mask else [])],
        content=content[0],
        is_complete=True,
        is_verified=False,
        **result.filed("report"),
    )


def _groups(result: Result, mask: Dataset | None) -> Iterator[Group]:
    """Groups of measurements: one of all that is marked, one for each segment of a component."""
    report = result.report
    shared: dict[str, Any] = {
        "finding_type": LESION,
        "finding_category": CATEGORY,
        "finding_sites": [sr.FindingSite(result.organ)],
        "algorithm_id": sr.AlgorithmIdentification(
            name=f"Norma {report.model}",
            version=__version__,
            parameters=[f"{name}={value}" for name, value in result.parameters.items()],
        ),
    }
    yield sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(result.uid("tracking all"), "All findings"),
        measurements=[_volume(report.anomalous_mm3 or 0.0)],
        **shared,
    )
    there = [int(number) for number in np.unique(result.segments) if number]
    for number, old in enumerate(there, start=1):
        if mask is None or old > len(report.components):
            continue
        name = _name(old, report)
        yield sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(result.uid(f"tracking {old}"), name),
            referenced_segment=sr.ReferencedSegment(
                mask.SOPClassUID,
                mask.SOPInstanceUID,
                number,
                source_series=sr.SourceSeriesForSegmentation(result.source.series),
            ),
            measurements=[_volume(report.components[old - 1].volume_mm3)],
            **shared,
        )


def _volume(cubic_mm: float) -> sr.Measurement:
    return sr.Measurement(codes.SCT.Volume, round(cubic_mm, 1), codes.UCUM.CubicMillimeter)


def sentences(result: Result) -> list[str]:
    """What the report says in words, the most important first; no name of anybody."""
    report = result.report
    score = f"Anomaly score {report.score:.4g}"
    if report.percentile is not None:
        score += f", percentile {report.percentile:.0f} of {report.percentile_of}"
    lines = [NOTICE, *(f"Flag: {flag}" for flag in report.flags), score]
    if report.promise:
        lines.append(report.promise)
    lines.append(
        f"Marked: {(report.anomalous_mm3 or 0) / 1000:.1f} ml in {report.n_components} components. "
        "An empty mask proves nothing."
    )
    for number, component in enumerate(report.components, start=1):
        likely = "" if component.p_value is None else f", p {component.p_value:.2g}"
        lines.append(f"{_name(number, report)}: {component.summary}{likely}")
    lines.append(", ".join(f"{name} {value}" for name, value in result.parameters.items()))
    return lines


def _name(number: int, report: Report) -> str:
    return f"Finding {number}" if number <= len(report.components) else "Further findings"


def _summary(number: int, report: Report) -> str:
    if number <= len(report.components):
        return report.components[number - 1].summary
    return "Components that the report does not list"
