"""The numbers as DICOM SR: TID 1500 Measurement Report (PS3.16), Comprehensive 3D SR, on the segments of seg.dcm."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import highdicom.sr as sr
import pydicom
from highdicom.sr.coding import CodedConcept
from pydicom.dataset import Dataset
from pydicom.uid import UID

from ctnode import __version__
from ctnode.ct.dataset import text
from ctnode.ct.grid import Volume
from ctnode.ct.measure import LungNumbers, Measurements
from ctnode.ops.durable import write_durable
from ctnode.results.objects import Origin, derived_uid, describe, file_meta, patient_and_study, referenced
from ctnode.results.seg import BINARY_STORAGE, LABELMAP_STORAGE
from ctnode.words import LungStatus
from ctnode.words.origin import CODING_SCHEME

COMPREHENSIVE_3D: Final = "1.2.840.10008.5.1.4.1.1.88.34"
SERIES_NUMBER: Final = 903
# Numbers without a code of their own in the standard.
OWN_SCHEME: Final = CODING_SCHEME

_ATTENUATION: Final = CodedConcept("112031", "DCM", "Attenuation Coefficient")
_HU: Final = CodedConcept("[hnsf'U]", "UCUM", "Hounsfield unit")
_PERCENT: Final = CodedConcept("%", "UCUM", "percent")
_ROWS: Final = (
    ("volume_ml", CodedConcept("118565006", "SCT", "Volume"), CodedConcept("mL", "UCUM", "milliliter"), None),
    ("mean_hu", _ATTENUATION, _HU, CodedConcept("373098007", "SCT", "Mean")),
    ("median_hu", _ATTENUATION, _HU, CodedConcept("373099004", "SCT", "Median")),
    ("sd_hu", _ATTENUATION, _HU, CodedConcept("386136009", "SCT", "Standard Deviation")),
    ("perc15_hu", CodedConcept("PERC15", OWN_SCHEME, "15th percentile of lung density"), _HU, None),
    ("laa950_pct", CodedConcept("LAA950", OWN_SCHEME, "Share of voxels at or below -950 HU"), _PERCENT, None),
    ("haa_pct", CodedConcept("HAA", OWN_SCHEME, "Share of voxels from -600 to -250 HU"), _PERCENT, None),
    ("mass_g", CodedConcept("118538004", "SCT", "Mass"), CodedConcept("g", "UCUM", "gram"), None),
)
_REASON: Final = CodedConcept("REASON", OWN_SCHEME, "Reason for the quality of the lung mask")
_WARNING: Final = CodedConcept("WARNING", OWN_SCHEME, "What the numbers depend on")
_SIDES: Final = (("right", 1, "3341006", "Right lung"), ("left", 2, "44029006", "Left lung"))


def write_sr(path: Path, volume: Volume, measurements: Measurements, origin: Origin, *, labelmap: bool = False) -> None:
    """Write the numbers to ``path``, fsynced; ``labelmap`` says which kind seg.dcm is.

    The UIDs of seg.dcm are derived, so it need not be there yet.
    """
    identity = origin.identity(volume)
    segmentation = Dataset()
    segmentation.SOPClassUID = LABELMAP_STORAGE if labelmap else BINARY_STORAGE
    segmentation.SOPInstanceUID = derived_uid("seg", "instance", identity)
    segmentation.SeriesInstanceUID = derived_uid("seg", "series", identity)
    dataset = patient_and_study(volume.header, origin.study)
    describe(dataset, origin, volume, "sr", COMPREHENSIVE_3D, "SR")
    dataset.SeriesNumber = SERIES_NUMBER
    dataset.SeriesDescription = "ctnode lung measurements"
    dataset.ReferencedPerformedProcedureStepSequence = []
    dataset.PerformedProcedureCodeSequence = []
    dataset.CompletionFlag = "COMPLETE"
    dataset.VerificationFlag = "UNVERIFIED"
    series = Dataset()
    series.ReferencedSOPSequence = [referenced(segmentation.SOPClassUID, segmentation.SOPInstanceUID)]
    series.SeriesInstanceUID = segmentation.SeriesInstanceUID
    evidence = Dataset()
    evidence.StudyInstanceUID = dataset.StudyInstanceUID
    evidence.ReferencedSeriesSequence = [series]
    dataset.CurrentRequestedProcedureEvidenceSequence = [evidence]
    for element in _report(volume, measurements, origin, segmentation)[0]:
        dataset.add(element)
    dataset.file_meta = file_meta(dataset)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    write_durable(path, buffer.getvalue(), mode=0o644)


def _report(volume: Volume, measurements: Measurements, origin: Origin, segmentation: Dataset) -> sr.MeasurementReport:
    identity = origin.identity(volume)
    found = text(volume.header, "SeriesInstanceUID")
    source = sr.SourceSeriesForSegmentation(found if UID(found).is_valid else derived_uid("source", identity))
    groups: list[sr.VolumetricROIMeasurementsAndQualitativeEvaluations | sr.MeasurementsAndQualitativeEvaluations] = []
    for name, segment, value, meaning in _SIDES:
        numbers: LungNumbers | None = getattr(measurements, name)
        if numbers is None:
            continue
        groups.append(
            sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(derived_uid("tracking", name, identity), meaning),
                referenced_segment=sr.ReferencedSegment(
                    segmentation.SOPClassUID, segmentation.SOPInstanceUID, segment, source_series=source
                ),
                finding_type=CodedConcept(value, "SCT", meaning),
                measurements=_numbers(numbers),
                qualitative_evaluations=[_status(numbers.status)],
            )
        )
    if measurements.both is not None:
        groups.append(
            sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(derived_uid("tracking", "both", identity), "Both lungs"),
                finding_type=CodedConcept("74101002", "SCT", "Both lungs"),
                measurements=_numbers(measurements.both),
                qualitative_evaluations=[_status(measurements.status)],
            )
        )
        # A code's meaning has room for 64 characters; templates are extensible, and text says all.
        for concept, texts in ((_REASON, measurements.reasons), (_WARNING, measurements.warnings)):
            for said in texts:
                readable_text = said.encode("ascii", "replace").decode("ascii")
                groups[-1][0].ContentSequence.append(
                    sr.TextContentItem(concept, readable_text, sr.RelationshipTypeValues.CONTAINS)
                )
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", __version__), name="ctnode", manufacturer_name="ctnode", model_name="ctnode"
    )
    observer = sr.ObserverContext(CodedConcept("121007", "DCM", "Device"), device)
    return sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=CodedConcept("77477000", "SCT", "Computed tomography"),
        imaging_measurements=groups,
    )


def _numbers(numbers: LungNumbers) -> list[sr.Measurement]:
    return [
        sr.Measurement(name=name, value=float(getattr(numbers, field)), unit=unit, derivation=derivation)
        for field, name, unit, derivation in _ROWS
    ]


def _status(status: LungStatus) -> sr.QualitativeEvaluation:
    words = str(status).replace("_", " ").lower()
    return sr.QualitativeEvaluation(
        CodedConcept("STATUS", OWN_SCHEME, "Quality of the lung mask"),
        CodedConcept(str(status), OWN_SCHEME, f"Mask {words}"),
    )
