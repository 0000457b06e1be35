"""Draft -> DICOM Key Object Selection (TID 2010): the images that the draft cites, flagged for a viewer.

Of a refusal the middle image of each series that was looked at, with the reasons as its description.
Where nothing is cited there is no document. Titled "Of Interest" always: the titles that reject images
make archives hide them (IHE IOCM). Knows the content; what stands around it is the envelope's.
"""

from __future__ import annotations

from highdicom.sr import (
    CodedConcept,
    ContainerContentItem,
    ImageContentItem,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage

from mla_med.documents.envelope import (
    DRAFTED_ANEW,
    Kind,
    Revision,
    cited,
    class_of,
    envelope,
    evidence,
    finish,
    observers,
)
from mla_med.documents.text import NOTICE
from mla_med.types import Draft

KEY_OBJECTS = Kind("kos", KeyObjectSelectionDocumentStorage, "KO", 9003, "cited images")

OF_INTEREST = CodedConcept("113000", "DCM", "Of Interest")
KEY_OBJECT_DESCRIPTION = CodedConcept("113012", "DCM", "Key Object Description")
SOURCE = CodedConcept("260753009", "SCT", "Source")
"""A name that the library asks of images and TID 2010 does not give them; it is taken away again."""
CONTAINS = RelationshipTypeValues.CONTAINS


def key_objects(draft: Draft, header: Dataset, revision: Revision | None) -> Dataset | None:
    """None where nothing is cited. `header`: envelope.read_header."""
    images = _chosen_images(draft)
    if not images:
        return None
    document = envelope(draft, header, KEY_OBJECTS, revision)
    document.ReferencedPerformedProcedureStepSequence = []
    # the module has no predecessor (PS3.3 C.17.6.2); the description says whose revision it is
    document.update(evidence(draft, header))
    document.update(_content(draft, images, revision))
    return finish(document, draft.provenance)


def _chosen_images(draft: Draft) -> dict[str, list[int] | None]:
    if draft.report is not None:
        return cited(draft.report.findings)
    seen = [v.series.instances for v in draft.verdicts if v.series.instances]
    found: dict[str, list[int] | None] = {}
    for middle in (instances[len(instances) // 2] for instances in seen):
        # time points of one object are series of their own
        known, number = found.get(middle.sop_instance_uid) or [], middle.frame_number
        found[middle.sop_instance_uid] = None if number is None else [*known, number]
    return found


def _content(draft: Draft, images: dict[str, list[int] | None], revision: Revision | None) -> Dataset:
    classes = class_of(draft)
    root = ContainerContentItem(OF_INTEREST, is_content_continuous=False, template_id="2010")
    root.ContentSequence = [
        *observers(draft.provenance, revision),
        TextContentItem(KEY_OBJECT_DESCRIPTION, _description(draft, revision), CONTAINS),
        *(
            ImageContentItem(SOURCE, classes[uid], uid, frames, relationship_type=CONTAINS)
            for uid, frames in images.items()
        ),
    ]
    for item in root.ContentSequence:
        if item.ValueType == "IMAGE":
            del item.ConceptNameCodeSequence
    return root


def _description(draft: Draft, revision: Revision | None) -> str:
    lines = [NOTICE + "."]
    if revision is not None:
        by = revision.reviewer
        lines.append(f"{DRAFTED_ANEW}." if by is None else f"Revised by {by.replace('^', ' ')}.")
    if draft.report is None:
        lines += ["No draft.", *(f"{r.code}: {r.words}" for r in draft.gate.reasons)]
    else:
        lines.append("Images that the draft cites.")
    return " ".join(lines)
