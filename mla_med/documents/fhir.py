"""Draft -> FHIR R4 transaction bundle: DiagnosticReport, ImagingStudy, an Observation for each finding.

Every status is preliminary. The library checks the shape of resources; what it lets pass (a status that is
none, a reference to nothing, a code that does not exist) `problems_in` checks. Ids follow from the content,
so that a bundle sent twice changes nothing. The patient is referred to by the ID of the images and not
created. R4 4.0.1 at https://hl7.org/fhir/R4; knows nothing of servers.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydicom.dataset import Dataset

from mla_med.documents import codes
from mla_med.documents.envelope import (
    MANUFACTURER,
    Revision,
    device_uid,
    made_at,
    patient_id,
    source_zone,
    utf8,
)
from mla_med.documents.sr import BASIC_TEXT_SR
from mla_med.documents.sr3d import certainty_percent, tracking_uid
from mla_med.documents.text import NOTICE, comparison_lines, draft_to_text
from mla_med.errors import OutputError
from mla_med.report.schema import SCHEMAS, SITES, Code
from mla_med.types import Draft, Finding, Series

REPORT = Code("18748-4", "LN", "Diagnostic imaging study")
EVIDENCE = Code("evidence", codes.PRIVATE_SCHEME, "Where it was seen")
RADIOLOGY = {
    "system": "http://terminology.hl7.org/CodeSystem/v2-0074",
    "code": "RAD",
    "display": "Radiology",
}
IMAGING = {
    "system": "http://terminology.hl7.org/CodeSystem/observation-category",
    "code": "imaging",
    "display": "Imaging",
}
MEDICAL_RECORD = {
    "system": "http://terminology.hl7.org/CodeSystem/v2-0203",
    "code": "MR",
    "display": "Medical record number",
}
ACCESSION = {
    "system": "http://terminology.hl7.org/CodeSystem/v2-0203",
    "code": "ACSN",
    "display": "Accession ID",
}
AGENT_ROLES = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
REPLACES = "http://hl7.org/fhir/StructureDefinition/diagnosticReport-replaces"

STATUS = {"DiagnosticReport": "preliminary", "Observation": "preliminary", "ImagingStudy": "available"}
"""The only one that each resource can have here."""
TARGETS = {
    ("DiagnosticReport", "imagingStudy"): {"ImagingStudy"},
    ("DiagnosticReport", "result"): {"Observation"},
    ("DiagnosticReport", "performer"): {"Practitioner"},
    ("Observation", "device"): {"Device"},
    ("Observation", "derivedFrom"): {"ImagingStudy"},
    ("Observation", "performer"): {"Practitioner"},
    ("Provenance", "target"): {"DiagnosticReport"},
    ("Provenance", "who"): {"Device", "Practitioner"},
    ("Provenance", "what"): {"ImagingStudy"},
}
"""What may be referred to from where, of what R4 allows (a Device performs no report in R4)."""


def draft_to_fhir(
    draft: Draft,
    header: Dataset,
    sr_uid: str,
    revision: Revision | None = None,
    pdf: bytes | None = None,
) -> dict[str, Any]:
    """`header`: of an image of the study (envelope.read_header). `sr_uid`: the Basic Text SR of this very
    draft, which the report is another form of. `pdf`: its pages, to stand in the report."""
    bundle = _Bundle(draft, header, sr_uid, revision)
    bundle.add("Device", _device(draft))
    bundle.add("ImagingStudy", bundle.study())
    if revision is not None and revision.reviewer is not None:
        bundle.add("Practitioner", {"name": [_human_name(revision.reviewer)]})
    findings = draft.report.findings if draft.report else ()
    for n, finding in enumerate(findings, start=1):
        bundle.add("Observation", bundle.observation(finding, n), str(n))
    bundle.add("DiagnosticReport", bundle.report(pdf))
    bundle.add("Provenance", bundle.provenance())
    built = {"resourceType": "Bundle", "type": "transaction", "entry": bundle.entries}
    _check_shape(built)
    if problems := problems_in(built):
        raise OutputError(f"This FHIR bundle must not leave: {problems[0]}", code="FHIR_INVALID")
    return built


def fhir_bytes(bundle: dict[str, Any]) -> bytes:
    return utf8(json.dumps(bundle, ensure_ascii=False, indent=1, allow_nan=False), "the FHIR bundle")


class _Bundle:
    """What the resources of one bundle have in common."""

    def __init__(self, draft: Draft, header: Dataset, sr_uid: str, revision: Revision | None):
        self.draft, self.header, self.sr_uid, self.revision = draft, header, sr_uid, revision
        self.entries: list[dict[str, Any]] = []
        self.reviewer = revision.reviewer if revision else None
        self.issued = made_at(draft, header, revision).isoformat(timespec="seconds")
        self.subject = {
            "type": "Patient",
            "identifier": {
                "type": {"coding": [MEDICAL_RECORD]},
                "value": patient_id(header, "a FHIR bundle"),
                **_assigner(header),
            },
        }

    def add(self, kind: str, resource: dict[str, Any], which: str = "") -> None:
        name = self._id(kind, which)
        self.entries.append(
            {
                "fullUrl": f"urn:uuid:{name}",
                "resource": {"resourceType": kind, "id": name, **_without_empty(resource)},
                "request": {"method": "PUT", "url": f"{kind}/{name}"},
            }
        )

    def to(self, kind: str, which: str = "") -> dict[str, str]:
        return {"reference": f"urn:uuid:{self._id(kind, which)}"}

    def _id(self, kind: str, which: str) -> str:
        # a device is one whatever it reads, an imaging study whatever is said of it
        about = {
            "Device": device_uid(self.draft.provenance),
            "ImagingStudy": self.draft.provenance.study_uid,
        }.get(kind, self.sr_uid)
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{about} {kind} {which}"))

    def study(self) -> dict[str, Any]:
        series = [v.series for v in self.draft.verdicts if v.chosen or self.draft.report is None]
        accession = str(self.header.get("AccessionNumber") or "")
        return {
            "identifier": [
                {"system": "urn:dicom:uid", "value": f"urn:oid:{self.draft.provenance.study_uid}"},
                *([{"type": {"coding": [ACCESSION]}, "value": accession}] if accession else []),
            ],
            "status": STATUS["ImagingStudy"],
            "subject": self.subject,
            "started": _moment(self.header),
            "description": str(self.header.get("StudyDescription") or ""),
            "series": [_series(one) for one in series],
        }

    def observation(self, finding: Finding, n: int) -> dict[str, Any]:
        assert self.draft.report is not None
        examination = self.draft.report.examination
        site = codes.site_code(finding, examination)
        return {
            "identifier": [
                {
                    "system": "urn:dicom:uid",
                    "value": f"urn:oid:{tracking_uid(finding, n, self.draft.provenance)}",
                }
            ],
            "status": STATUS["Observation"],
            "category": [{"coding": [IMAGING]}],
            "code": _concept(codes.finding_code(finding, examination)),
            "subject": self.subject,
            "effectiveDateTime": _moment(self.header),
            "issued": self.issued,
            "valueCodeableConcept": _concept(codes.PRESENCES[finding.presence]),
            "bodySite": _concept(site) if site else None,
            "device": self.to("Device"),
            "derivedFrom": [self.to("ImagingStudy")],
            "performer": self._performer(),
            "component": _components(finding),
        }

    def report(self, pdf: bytes | None) -> dict[str, Any]:
        report = self.draft.report
        findings = report.findings if report else ()
        text = draft_to_text(self.draft, self.reviewer or "")
        forms = [("text/plain; charset=utf-8", utf8(text, "the FHIR report"))]
        if pdf is not None:
            forms.append(("application/pdf", pdf))
        return {
            "extension": self._replaced(),
            "language": report.language if report else "en",
            "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{self.sr_uid}"}],
            "status": STATUS["DiagnosticReport"],
            "category": [{"coding": [RADIOLOGY]}],
            "code": _concept(REPORT),
            "subject": self.subject,
            "effectiveDateTime": _moment(self.header),
            "issued": self.issued,
            "performer": self._performer(),
            "imagingStudy": [self.to("ImagingStudy")],
            "result": [self.to("Observation", str(n)) for n in range(1, len(findings) + 1)],
            "conclusion": _conclusion(self.draft),
            "presentedForm": [
                {"contentType": kind, "data": base64.b64encode(data).decode(), "title": NOTICE}
                for kind, data in forms
            ],
        }

    def _performer(self) -> list[dict[str, str]]:
        return [self.to("Practitioner")] if self.reviewer else []

    def _replaced(self) -> list[dict[str, Any]]:
        return [
            {
                "url": REPLACES,
                "valueReference": {
                    "type": "DiagnosticReport",
                    "identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{one.sop_instance_uid}"},
                },
            }
            for one in (self.revision.of_class(BASIC_TEXT_SR.sop_class_uid) if self.revision else ())
        ]

    def provenance(self) -> dict[str, Any]:
        agents = [_agent("assembler", "Assembler", self.to("Device"))]
        if self.reviewer:
            agents.append(_agent("author", "Author", self.to("Practitioner")))
        return {
            "target": [self.to("DiagnosticReport")],
            "recorded": self.issued,
            "agent": agents,
            "entity": [
                {"role": "source", "what": self.to("ImagingStudy")},
                *({"role": "revision", "what": r["valueReference"]} for r in self._replaced()),
            ],
        }


def _device(draft: Draft) -> dict[str, Any]:
    provenance = draft.provenance
    return {
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{device_uid(provenance)}"}],
        "manufacturer": MANUFACTURER,
        "serialNumber": provenance.weights_sha256,
        "deviceName": [{"name": provenance.model_name, "type": "model-name"}],
        "version": [{"value": provenance.model_version}],
    }


def _series(series: Series) -> dict[str, Any]:
    unique = {i.sop_instance_uid: i.sop_class_uid for i in series.instances}
    return _without_empty(
        {
            "uid": series.series_uid,
            "modality": {"system": codes.SYSTEMS["DCM"], "code": series.modality},
            "description": series.description,
            "instance": [
                {"uid": uid, "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{kind}"}}
                for uid, kind in unique.items()
            ],
        }
    )


def _components(finding: Finding) -> list[dict[str, Any]]:
    certainty = certainty_percent(finding)
    quantities = (
        (codes.size_code(finding), finding.size_mm, codes.MM),
        (codes.NUMBER_OF_LESIONS, finding.count, codes.ONE),
        (codes.CERTAINTY, certainty, codes.PERCENT),
    )
    parts: list[dict[str, Any]] = []
    if finding.side is not None:
        side = _concept(codes.SIDES[finding.side])
        parts.append({"code": _concept(codes.LATERALITY), "valueCodeableConcept": side})
    parts += [
        {"code": _concept(name), "valueQuantity": _quantity(value, unit)}
        for name, value, unit in quantities
        if value is not None
    ]
    if finding.change is not None:
        change = _concept(codes.CHANGES[finding.change])
        parts.append({"code": _concept(codes.CHANGE), "valueCodeableConcept": change})
    if finding.evidence is not None:
        parts.append({"code": _concept(EVIDENCE), "valueString": evidence_words(finding)})
    return parts


def evidence_words(finding: Finding) -> str:
    """The box in DICOM's patient coordinates (left, posterior, superior), and the images."""
    assert finding.evidence is not None
    (x0, y0, z0), (x1, y1, z1) = finding.evidence.box_mm
    low, high = (min(-x0, -x1), min(-y0, -y1), z0), (max(-x0, -x1), max(-y0, -y1), z1)
    corners = " to ".join("(" + ", ".join(f"{v:.1f}" for v in corner) + ")" for corner in (low, high))
    images = " ".join(
        f"urn:oid:{uid}" + (f" (frames {', '.join(map(str, frames))})" if frames else "")
        for uid, frames in finding.evidence.cited
    )
    return f"Box {corners} mm LPS; images {images}"


def _quantity(value: float, unit: Code) -> dict[str, Any]:
    return {"value": value, "unit": unit.value, "system": codes.SYSTEMS[unit.scheme], "code": unit.value}


def _concept(code: Code) -> dict[str, Any]:
    return {"coding": [{"system": codes.SYSTEMS[code.scheme], "code": code.value, "display": code.meaning}]}


def _agent(role: str, display: str, who: dict[str, str]) -> dict[str, Any]:
    return {
        "type": {"coding": [{"system": AGENT_ROLES, "code": role, "display": display}]},
        "who": who,
    }


def _human_name(name: str) -> dict[str, Any]:
    family, *given = [part.strip() for part in name.split("=")[0].split("^")]
    return _without_empty({"family": family, "given": [g for g in given[:2] if g]})


def _assigner(header: Dataset) -> dict[str, Any]:
    issuer = str(header.get("IssuerOfPatientID") or "")
    return {"assigner": {"display": issuer}} if issuer else {}


def _conclusion(draft: Draft) -> str:
    if draft.report is None:
        return "\n".join((f"{NOTICE}. No draft.", *(f"{r.code}: {r.words}" for r in draft.gate.reasons)))
    return "\n".join((f"{NOTICE}.", *(s.text for s in draft.report.impression), *comparison_lines(draft)))


def _moment(header: Dataset) -> str | None:
    """Of the study; with a time only where the images say in which zone."""
    day, time = str(header.get("StudyDate") or ""), str(header.get("StudyTime") or "")
    if len(day) != 8 or not day.isdecimal():
        return None
    date, zone = f"{day[:4]}-{day[4:6]}-{day[6:]}", source_zone(header)
    if zone is None or len(time) < 6 or not time[:6].isdecimal():
        return date
    offset = str(header.get("TimezoneOffsetFromUTC"))
    return f"{date}T{time[:2]}:{time[2:4]}:{time[4:6]}{offset[:3]}:{offset[3:]}"


def _without_empty(resource: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in resource.items() if value not in (None, "", [], {})}


def _check_shape(bundle: dict[str, Any]) -> None:
    from fhir.resources.R4B.bundle import Bundle
    from pydantic import ValidationError

    try:
        Bundle.model_validate(bundle)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise OutputError(
            f"This FHIR bundle has the wrong shape at {place}: {first['type']}.", code="FHIR_INVALID"
        ) from None  # pydantic shows the values, the patient's among them


def problems_in(bundle: dict[str, Any]) -> list[str]:
    """What no library checks: statuses, targets of references, and that every code is one we know."""
    resources = {e["fullUrl"]: e["resource"] for e in bundle["entry"]}
    problems = []
    for resource in resources.values():
        kind, wanted = resource["resourceType"], STATUS.get(resource["resourceType"])
        if resource.get("status") != wanted:
            problems.append(f"{kind} has the status {resource.get('status')!r}, which has to be {wanted!r}.")
        for where, node in _nodes(resource):
            problems += _node_problems(kind, where, node, resources)
    return problems


def _nodes(node: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object in a resource, with the key it stands under."""
    if isinstance(node, dict):
        yield where, node
        for key, value in node.items():
            yield from _nodes(value, key)
    if isinstance(node, list):
        for item in node:
            yield from _nodes(item, where)


def _node_problems(
    kind: str, where: str, node: dict[str, Any], resources: dict[str, dict[str, Any]]
) -> list[str]:
    problems = []
    if "reference" in node:
        target = resources.get(node["reference"])
        if target is None:
            problems.append(f"{kind}.{where} refers to {node['reference']}, which is not in the bundle.")
        elif target["resourceType"] not in TARGETS.get((kind, where), set()):
            problems.append(f"{kind}.{where} refers to a {target['resourceType']}.")
    if where == "subject" and not node.get("identifier", {}).get("value"):
        problems.append(f"{kind} is of no patient.")
    if where == "coding" and (node.get("system"), node.get("code"), node.get("display")) not in known_codes():
        problems.append(
            f"{kind} has the code {node.get('code')!r} of {node.get('system')}, which is not known."
        )
    if where == "valueQuantity" and node.get("code") not in ("mm", "%", "1"):
        problems.append(f"{kind} has the unit {node.get('code')!r}.")
    return problems


@cache
def known_codes() -> frozenset[tuple[str, str, str]]:
    """System, code and display of everything that can stand in a bundle."""
    own = [
        *(REPORT, EVIDENCE, codes.LATERALITY, codes.NUMBER_OF_LESIONS, codes.CERTAINTY, codes.CHANGE),
        *(codes.LENGTH, codes.LONG_AXIS, *codes.REGIONS.values()),
        *(*codes.PRESENCES.values(), *codes.SIDES.values(), *codes.CHANGES.values()),
        *(codes.finding_code(Finding(key), name) for name, schema in SCHEMAS.items() for key in schema),
        *(codes.site_code(Finding("", site=site), "") for site in SITES),
    ]
    roles = [
        {"system": AGENT_ROLES, "code": "assembler", "display": "Assembler"},
        {"system": AGENT_ROLES, "code": "author", "display": "Author"},
    ]
    hl7 = (RADIOLOGY, IMAGING, MEDICAL_RECORD, ACCESSION, *roles)
    return frozenset(
        {(codes.SYSTEMS[c.scheme], c.value, c.meaning) for c in own if c is not None}
        | {(c["system"], c["code"], c["display"]) for c in hl7}
    )
