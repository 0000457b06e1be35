"""Finding -> coded concepts: what it is, where, on which side, whether it is there, and how it has changed.

Public codes where the schema has them. What has none gets one of a private scheme that is named in the
document (PS3.3 C.12-1 Coding Scheme Identification): a wrong public code is worse than a private one.
Knows nothing of DICOM files, FHIR or HL7, which all write the same codes.
"""

from __future__ import annotations

from mla_med.report.schema import SITES, Code, schema_of
from mla_med.types import Change, Finding, Presence, Side

PRIVATE_SCHEME = "99MLAMED"
PRIVATE_SCHEME_UID = "2.25.160193746839104938217659402331857160423"
PRIVATE_SCHEME_NAME = "mla_med finding schema"

SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "LN": "http://loinc.org",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "UCUM": "http://unitsofmeasure.org",
    PRIVATE_SCHEME: f"urn:oid:{PRIVATE_SCHEME_UID}",
}
"""Coding scheme designator -> the URI that FHIR R4 knows the scheme by."""

PRESENCE = Code("121052", "DCM", "Presence of property")
PRESENCES = {
    Presence.PRESENT: Code("52101004", "SCT", "Present"),
    Presence.ABSENT: Code("272519000", "SCT", "Absent"),
    Presence.CANNOT_SAY: Code("373068000", "SCT", "Undetermined"),
}
"""PS3.16 CID 240 Present-Absent-Undetermined."""

SIDES = {
    Side.RIGHT: Code("24028007", "SCT", "Right"),
    Side.LEFT: Code("7771000", "SCT", "Left"),
    Side.BILATERAL: Code("51440002", "SCT", "Bilateral"),
}
"""PS3.16 CID 244 Laterality."""
LATERALITY = Code("272741003", "SCT", "Laterality")

CHANGE = Code("change", PRIVATE_SCHEME, "Change since the prior examination")
CHANGES = {
    Change.NEW: Code("new", PRIVATE_SCHEME, "New"),  # 129721008 speaks of mammograms
    Change.STABLE: Code("stable", PRIVATE_SCHEME, "Stable"),
    Change.INCREASED: Code("15454001", "SCT", "Increase in size"),
    Change.DECREASED: Code("19776001", "SCT", "Decrease in size"),
    Change.RESOLVED: Code("resolved", PRIVATE_SCHEME, "Resolved"),
}

LONG_AXIS = Code("103339001", "SCT", "Long axis")
LENGTH = Code("410668003", "SCT", "Length")
NUMBER_OF_LESIONS = Code("246206008", "SCT", "Number of lesions")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
"""In per cent (PS3.16 TID 4003): the calibrated probability that the statement is right."""
REFUSAL = Code("refusal", PRIVATE_SCHEME, "Reason for no draft")

MM = Code("mm", "UCUM", "millimeter")
PERCENT = Code("%", "UCUM", "percent")
ONE = Code("1", "UCUM", "no units")

_LENGTHS = frozenset(("midline_shift", "biliary_dilatation"))
"""Whose size is no diameter of a lesion."""


def finding_code(finding: Finding, examination: str) -> Code:
    kind = schema_of(examination)[finding.code]
    return kind.code or Code(finding.code, PRIVATE_SCHEME, kind.term[:64])


def site_code(finding: Finding, examination: str) -> Code | None:
    """Where it is; where the schema names no site but a side, the region of the examination."""
    if finding.site is None:
        return None if finding.side is None else REGIONS[examination]
    return SITES[finding.site] or Code(finding.site, PRIVATE_SCHEME, finding.site.replace("_", " "))


REGIONS = {
    "chest_ct": Code("51185008", "SCT", "Chest"),
    "brain_mr": Code("12738006", "SCT", "Brain"),
    "abdomen_ct": Code("113345001", "SCT", "Abdomen"),
}
"""PS3.16 CID 4031 Common Anatomic Region; what an examination looks at."""


def size_code(finding: Finding) -> Code:
    return LENGTH if finding.code in _LENGTHS else LONG_AXIS


PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
"""Where the images do not say which procedure they are of."""
