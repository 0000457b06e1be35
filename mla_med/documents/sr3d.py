"""Draft -> DICOM Comprehensive 3D SR (TID 1500): each finding coded, with its box, size and certainty.

For machines, beside the words of the Basic Text SR. A finding is a measurement group (TID 1411 with the
box as a volume surface where it was seen somewhere, TID 1501 where not); the algorithm that found it is
named in each (TID 4019). Knows the content; what stands around it is the envelope's.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    FindingSite,
    GraphicTypeValues3D,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumeSurface,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage

from mla_med.archive import is_file
from mla_med.documents import codes
from mla_med.documents.envelope import (
    MANUFACTURER,
    Kind,
    Revision,
    cited,
    class_of,
    codes_in,
    derived_uid,
    envelope,
    finish,
    observers,
    read_image,
    report_attributes,
)
from mla_med.documents.sr import PROCEDURE_REPORTED
from mla_med.documents.text import NOTICE
from mla_med.report.schema import Code
from mla_med.types import Box, Draft, Finding, Provenance

COMPREHENSIVE_3D_SR = Kind("sr3d", Comprehensive3DSRStorage, "SR", 9001, "findings and measurements")

QUALITATIVE_EVALUATIONS = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
IMAGING_MEASUREMENT_REPORT = CodedConcept("126000", "DCM", "Imaging Measurement Report")
ENGLISH = CodedConcept("en", "RFC5646", "English")
"""What is written here are meanings of codes, in English whatever the language of the draft."""

CONTAINS = RelationshipTypeValues.CONTAINS


def measurement_sr(draft: Draft, header: Dataset, revision: Revision | None) -> Dataset:
    """`header`: envelope.read_header."""
    sr = envelope(draft, header, COMPREHENSIVE_3D_SR, revision)
    sr.update(report_attributes(draft, header, COMPREHENSIVE_3D_SR, revision))
    sr.CodingSchemeIdentificationSequence = [private_scheme()]
    sr.update(_content(draft, header, revision))
    return finish(sr, draft.provenance)


def private_scheme() -> Dataset:
    scheme = Dataset()
    scheme.CodingSchemeDesignator = codes.PRIVATE_SCHEME
    scheme.CodingSchemeUID = codes.PRIVATE_SCHEME_UID
    scheme.CodingSchemeName = codes.PRIVATE_SCHEME_NAME
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    return scheme


def concept(code: Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, code.meaning)


def _content(draft: Draft, header: Dataset, revision: Revision | None) -> Dataset:
    groups = _groups(draft, header)
    if not groups:
        return _without_groups(draft, header, revision)
    report = MeasurementReport(
        observation_context=observers(draft.provenance, revision),
        procedure_reported=_procedures(header),
        imaging_measurements=groups,
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(ENGLISH),
    )
    return report[0]


def _procedures(header: Dataset) -> list[CodedConcept]:
    stated = [CodedConcept(*code) for code in codes_in(header.get("ProcedureCodeSequence"))[:1]]
    return stated or [concept(codes.PROCEDURE)]


def _without_groups(draft: Draft, header: Dataset, revision: Revision | None) -> Dataset:
    """A refusal: the reasons stand where a report has what it judged without measuring. (The library makes
    no report without a measurement.)"""
    said = [f"{NOTICE}. No draft.", *(f"{r.code}: {r.words}" for r in draft.gate.reasons)]
    if draft.report is not None:
        said = ["No finding was looked for."]
    evaluations = ContainerContentItem(
        QUALITATIVE_EVALUATIONS, is_content_continuous=False, relationship_type=CONTAINS
    )
    evaluations.ContentSequence = [
        TextContentItem(concept(codes.REFUSAL), words.rstrip(), CONTAINS) for words in said
    ]
    root = ContainerContentItem(IMAGING_MEASUREMENT_REPORT, is_content_continuous=False, template_id="1500")
    root.ContentSequence = [
        *LanguageOfContentItemAndDescendants(ENGLISH),
        *observers(draft.provenance, revision),
        *(
            CodeContentItem(PROCEDURE_REPORTED, code, RelationshipTypeValues.HAS_CONCEPT_MOD)
            for code in _procedures(header)
        ),
        evaluations,
    ]
    return root


Group: TypeAlias = VolumetricROIMeasurementsAndQualitativeEvaluations | MeasurementsAndQualitativeEvaluations


def _groups(draft: Draft, header: Dataset) -> list[Group]:
    if draft.report is None:
        return []
    return [_group(f, n, draft, header) for n, f in enumerate(draft.report.findings, start=1)]


def _group(finding: Finding, n: int, draft: Draft, header: Dataset) -> Group:
    assert draft.report is not None
    examination = draft.report.examination
    common = {
        "tracking_identifier": tracking(finding, n, draft.provenance),
        "finding_type": concept(codes.finding_code(finding, examination)),
        "algorithm_id": _algorithm(draft.provenance),
        "finding_sites": _sites(finding, examination),
        "measurements": _measurements(finding) or None,
        "qualitative_evaluations": _evaluations(finding),
    }
    classes = class_of(draft)
    seen_on = [(classes[uid], uid, frames) for uid, frames in cited([finding]).items()]
    frame = _frame_of_reference(seen_on[0][1], draft, header) if seen_on else None
    if finding.evidence is None or frame is None:
        images = [SourceImageForMeasurementGroup(*image) for image in seen_on]
        return MeasurementsAndQualitativeEvaluations(**common, source_images=images or None)
    surface = VolumeSurface(
        GraphicTypeValues3D.POLYGON,
        box_outlines(finding.evidence.box_mm),
        frame_of_reference_uid=frame,
        source_images=[SourceImageForSegmentation(*image) for image in seen_on],
    )
    return VolumetricROIMeasurementsAndQualitativeEvaluations(**common, referenced_volume_surface=surface)


def tracking(finding: Finding, n: int, provenance: Provenance) -> TrackingIdentifier:
    return TrackingIdentifier(uid=tracking_uid(finding, n, provenance), identifier=f"{n} {finding.code}")


def tracking_uid(finding: Finding, n: int, provenance: Provenance) -> str:
    """The same in every revision of a draft: what a finding was seen at tells it from others of its kind,
    however many of them are left. Without evidence, its place in the draft does."""
    seen_at = n if finding.evidence is None else finding.evidence.box_mm
    return derived_uid(provenance, f"finding {seen_at} {finding.code}".encode())


def _algorithm(provenance: Provenance) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=provenance.model_name,
        version=provenance.model_version,
        parameters=[f"weights sha256 {provenance.weights_sha256}"],
    )


def _sites(finding: Finding, examination: str) -> list[FindingSite] | None:
    site = codes.site_code(finding, examination)
    if site is None:
        return None
    side = concept(codes.SIDES[finding.side]) if finding.side else None
    return [FindingSite(concept(site), laterality=side)]


def _measurements(finding: Finding) -> list[Measurement]:
    stated = (
        (codes.size_code(finding), finding.size_mm, codes.MM),
        (codes.NUMBER_OF_LESIONS, finding.count, codes.ONE),
        (codes.CERTAINTY, certainty_percent(finding), codes.PERCENT),
    )
    return [
        Measurement(concept(name), float(value), concept(unit))
        for name, value, unit in stated
        if value is not None
    ]


def certainty_percent(finding: Finding) -> float | None:
    return None if finding.confidence is None else round(100 * finding.confidence, 2)


def _evaluations(finding: Finding) -> list[QualitativeEvaluation]:
    presence = QualitativeEvaluation(concept(codes.PRESENCE), concept(codes.PRESENCES[finding.presence]))
    if finding.change is None:
        return [presence]
    return [presence, QualitativeEvaluation(concept(codes.CHANGE), concept(codes.CHANGES[finding.change]))]


def box_outlines(box_mm: Box) -> list[np.ndarray]:
    """The lower and the upper face of a box in patient RAS mm, as closed polygons in DICOM's LPS mm."""
    (x0, y0, z0), (x1, y1, z1) = box_mm
    corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0))
    return [np.array([(-x, -y, z) for x, y in corners]) for z in (z0, z1)]


def _frame_of_reference(uid: str, draft: Draft, header: Dataset) -> str | None:
    """That of the image itself where it can be asked: some anonymisers give each image its own."""
    series, instance = next(
        (v.series, i) for v in draft.verdicts for i in v.series.instances if i.sop_instance_uid == uid
    )
    image = header
    if is_file(instance.path):
        image = read_image(instance.path, ["SeriesInstanceUID", "FrameOfReferenceUID"])
    if image.get("SeriesInstanceUID") != series.series_uid:
        return None
    return image.get("FrameOfReferenceUID")
