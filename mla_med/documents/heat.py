"""Draft -> its heat maps on the grid of the images: DICOM Segmentation, or Parametric Map.

The segmentation holds, for each present finding, the cells that carry at least half of what the strongest
carries; the map holds the weights themselves, as saliency (PS3.16 CID 7469). Cells are drawn as the boxes
they are: nothing finer is known. Where no finding has a heat map there is no document. Knows the chosen
series by its certificate; knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import highdicom
import numpy as np
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as Coded
from pydicom.uid import ParametricMapStorage, RLELossless, SegmentationStorage

from mla_med.documents import codes
from mla_med.documents.envelope import (
    MANUFACTURER,
    Kind,
    Revision,
    derived_uid,
    device_uid,
    envelope,
    finish,
    read_image,
    series_uid,
)
from mla_med.documents.sr3d import concept, private_scheme, tracking_uid
from mla_med.documents.text import HASH_DIGITS, NOTICE
from mla_med.errors import OutputError
from mla_med.report.schema import schema_of
from mla_med.types import Box, Draft, Finding, Presence, Series, SeriesVerdict

SEGMENTATION = Kind("seg", SegmentationStorage, "SEG", 9004, "where findings were seen")
PARAMETRIC_MAP = Kind("pm", ParametricMapStorage, "OT", 9005, "heat maps")

HALF = 0.5
"""Of the weight of the strongest cell."""
STEPS = 65535
"""Of a weight, in the map."""
LARGEST_BYTES = 2**30
"""Of voxels of all findings together; more is no heat map of a lesion."""

SPATIAL = Coded("309825002", "SCT", "Spatial and Relational Concept")
SALIENCY = Coded("130404", "DCM", "Saliency")
NO_UNITS = Coded("1", "UCUM", "no units")
ARTIFICIAL_INTELLIGENCE = Coded("123110", "DCM", "Artificial Intelligence")


@dataclass(frozen=True, slots=True)
class Heat:
    """What both documents are made of: weights (K, J, I, F) of those slices that a cell crosses."""

    findings: tuple[tuple[int, Finding], ...]
    """Each with its number in the report, from 1."""
    weights: np.ndarray
    first: int
    """The slice of the series that is slice 0 here."""
    verdict: SeriesVerdict


def segmentation(draft: Draft, header: Dataset, revision: Revision | None) -> Dataset | None:
    heat = _heat(draft, HALF)
    if heat is None:
        return None
    images = _images(heat)
    document = _made(
        highdicom.seg.Segmentation,
        source_images=images,
        pixel_array=_on_grid(heat, (heat.weights >= HALF).astype(np.uint8), images, "SegmentNumber"),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _segment(k, n, finding, draft) for k, (n, finding) in enumerate(heat.findings, start=1)
        ],
        content_label="AI_DRAFT",
        content_description=NOTICE,
        **_identity(draft, SEGMENTATION, revision),
    )
    return _finished(document, draft, header, SEGMENTATION, revision)


def parametric_map(draft: Draft, header: Dataset, revision: Revision | None) -> Dataset | None:
    heat = _heat(draft, 0.0)
    if heat is None:
        return None
    images = _images(heat)
    steps = np.rint(heat.weights * STEPS).astype(np.uint16)
    document = _made(
        ParametricMap,
        source_images=images,
        pixel_array=_on_grid(heat, steps, images, "LUTLabel"),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[[_mapping(n, finding, draft)] for n, finding in heat.findings],
        window_center=STEPS / 2,
        window_width=STEPS,
        transfer_syntax_uid=RLELossless,
        content_label="AI_DRAFT",
        content_description=NOTICE,
        **_identity(draft, PARAMETRIC_MAP, revision),
    )
    return _finished(document, draft, header, PARAMETRIC_MAP, revision)


def _made(kind: Callable[..., Dataset], **arguments: Any) -> Dataset:
    try:
        return kind(**arguments)
    except (ValueError, AttributeError, TypeError) as error:
        # what the images lack or state wrongly; the words of the library may hold a value of theirs
        raise OutputError(
            f"The headers of the images carry no heat map ({type(error).__name__} in highdicom); "
            "leave out this format.",
            code="HEAT_MAP_NOT_MADE",
        ) from None


def _identity(draft: Draft, kind: Kind, revision: Revision | None) -> dict:
    provenance = draft.provenance
    return {
        "series_instance_uid": series_uid(draft, kind),
        "series_number": kind.series_number,
        "sop_instance_uid": device_uid(provenance),  # for the time being: its content names it
        "instance_number": revision.number if revision else 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": provenance.model_name,
        "software_versions": provenance.model_version,
        "device_serial_number": provenance.weights_sha256[:HASH_DIGITS],
    }


def _finished(
    document: Dataset, draft: Draft, header: Dataset, kind: Kind, revision: Revision | None
) -> Dataset:
    """Patient, moment and names as in every document of ours, not as the library takes them from images."""
    document.update(envelope(draft, header, kind, revision))
    if kind is PARAMETRIC_MAP:
        document.Modality = header.get("Modality")  # of what it was derived from
        document.Laterality = ""  # type 2C of such a series, and no region of ours is one of a pair
    document.CodingSchemeIdentificationSequence = [private_scheme()]
    if revision is not None and revision.reviewer is not None:
        document.ContentCreatorName = revision.reviewer
    # the clock of this machine, or chance, would make two files of one draft
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in document:
            delattr(document, keyword)
    organization = derived_uid(draft.provenance, f"dimensions {kind.name}".encode())
    for item in (*document.DimensionOrganizationSequence, *document.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    return finish(document, draft.provenance)


def _heat(draft: Draft, at_least: float) -> Heat | None:
    """None where there is nothing to draw."""
    report = draft.report
    found = tuple(
        (n, f)
        for n, f in enumerate(report.findings if report else (), start=1)
        if f.presence is Presence.PRESENT and f.evidence is not None and f.evidence.heat
    )
    verdict = _drawn_on(draft, found)
    if not found or verdict is None or verdict.certificate is None:
        return None
    columns, rows, slices = verdict.certificate.shape
    affine = np.array(verdict.certificate.affine)
    cells = [
        (k, _voxels(cell.box_mm, affine, (columns, rows, slices)), cell.weight)
        for k, (_, f) in enumerate(found)
        for cell in f.evidence.heat  # type: ignore[union-attr]
        if cell.weight >= at_least
    ]
    cells = [(k, box, w) for k, box, w in cells if all(b > a for a, b in box)]
    if not cells:
        return None
    first, last = min(box[2][0] for _, box, _ in cells), max(box[2][1] for _, box, _ in cells)
    if (last - first) * rows * columns * len(found) * 4 > LARGEST_BYTES:
        raise OutputError(
            f"The heat maps of {len(found)} findings over {last - first} slices of {columns} x {rows} are "
            "too large for one document; leave out this format. The page and the JSON have them.",
            code="HEAT_MAP_TOO_LARGE",
        )
    weights = np.zeros((last - first, rows, columns, len(found)), np.float32)
    for k, ((i0, i1), (j0, j1), (k0, k1)), weight in cells:
        part = weights[k0 - first : k1 - first, j0:j1, i0:i1, k]
        np.maximum(part, weight, out=part)
    seen = [k for k in range(len(found)) if weights[..., k].any()]
    return Heat(tuple(found[k] for k in seen), weights[..., seen], first, verdict)


def _drawn_on(draft: Draft, found: Sequence[tuple[int, Finding]]) -> SeriesVerdict | None:
    """The chosen series that is cited first."""
    chosen = [v for v in draft.verdicts if v.chosen and v.certificate is not None]
    named = {uid for _, f in found if f.evidence for uid in f.evidence.sop_instance_uids}
    citing = [v for v in chosen if any(i.sop_instance_uid in named for i in v.series.instances)]
    return next(iter([*citing, *chosen]), None)


def _voxels(box_mm: Box, affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[tuple[int, int], ...]:
    """For each axis the first voxel whose centre is in the box, and the one after the last. In a volume that
    lies oblique, of the smallest box of voxels around it."""
    corners = np.array(
        [[box_mm[a][0], box_mm[b][1], box_mm[c][2]] for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    )
    inverse = np.linalg.inv(affine)
    at = corners @ inverse[:3, :3].T + inverse[:3, 3]
    low = np.clip(np.ceil(at.min(axis=0) - 1e-6), 0, shape).astype(int)
    high = np.clip(np.floor(at.max(axis=0) + 1e-6) + 1, 0, shape).astype(int)
    return tuple((int(a), int(b)) for a, b in zip(low, high, strict=True))


def _images(heat: Heat) -> list[Dataset]:
    """The headers of the slices that are drawn on (of an enhanced image, of the one object)."""
    series: Series = heat.verdict.series
    used = series.instances[heat.first : heat.first + len(heat.weights)]
    paths = list(dict.fromkeys(instance.path for instance in used))
    images = [read_image(path) for path in paths]
    named = {instance.sop_instance_uid for instance in used}
    if any(image.get("SOPInstanceUID") not in named for image in images):
        raise OutputError(
            f"The images of series {series.series_uid} are not where they were read from; "
            "put them back, or leave out the heat maps.",
            code="SOURCE_CHANGED",
        )
    if len({image.get("FrameOfReferenceUID") for image in images}) > 1:
        raise OutputError(
            f"The images of series {series.series_uid} state several frames of reference (some anonymisers "
            "do that), so that no heat map can say where it lies; leave out the heat maps.",
            code="FRAMES_OF_REFERENCE",
        )
    return images


def _on_grid(heat: Heat, array: np.ndarray, images: Sequence[Dataset], channel: str) -> highdicom.Volume:
    """Voxel index (I, J, K) -> RAS becomes (K, J, I) -> LPS, which the library counts in."""
    affine = np.array(heat.verdict.certificate.affine)  # type: ignore[union-attr]
    affine[:3, 3] += affine[:3, 2] * heat.first
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    axes = to_lps[:3, :3] / np.linalg.norm(to_lps[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        raise OutputError(
            f"Series {heat.verdict.series.series_uid} was taken with a tilted gantry, which these documents "
            "cannot say; leave out the heat maps.",
            code="HEAT_MAP_TILTED",
        )
    channels: dict[str, list]
    if channel == "SegmentNumber":
        channels = {"SegmentNumber": list(range(1, array.shape[3] + 1))}
    else:
        channels = {"LUTLabel": [_label(n, f) for n, f in heat.findings]}
    return highdicom.Volume(
        array,
        to_lps,
        coordinate_system="PATIENT",
        frame_of_reference_uid=images[0].get("FrameOfReferenceUID"),
        channels=channels,
    )


def _label(n: int, finding: Finding) -> str:
    return f"{n} {finding.code}"[:16]


def _segment(number: int, n: int, finding: Finding, draft: Draft) -> SegmentDescription:
    assert draft.report is not None
    examination = draft.report.examination
    site = codes.site_code(finding, examination) or codes.REGIONS[examination]
    return SegmentDescription(
        segment_number=number,
        segment_label=schema_of(examination)[finding.code].term[:64],
        segmented_property_category=SPATIAL,
        segmented_property_type=concept(codes.finding_code(finding, examination)),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=_algorithm(draft),
        tracking_uid=tracking_uid(finding, n, draft.provenance),
        tracking_id=f"{n} {finding.code}",
        anatomic_regions=[concept(site)],
    )


def _algorithm(draft: Draft) -> highdicom.AlgorithmIdentificationSequence:
    return highdicom.AlgorithmIdentificationSequence(
        name=draft.provenance.model_name,
        family=ARTIFICIAL_INTELLIGENCE,
        version=draft.provenance.model_version,
        parameters={"weights sha256": draft.provenance.weights_sha256},
    )


def _mapping(n: int, finding: Finding, draft: Draft) -> RealWorldValueMapping:
    assert draft.report is not None
    term = schema_of(draft.report.examination)[finding.code].term
    return RealWorldValueMapping(
        lut_label=_label(n, finding),
        lut_explanation=f"{term}: weight of the cell, 1 in the strongest"[:64],
        unit=NO_UNITS,
        value_range=(0, STEPS),
        slope=1 / STEPS,
        intercept=0,
        quantity_definition=SALIENCY,
    )
