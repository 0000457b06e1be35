"""The name of a kind of source -> who reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dapt.importers.ct_rate import read_ct_rate
from dapt.importers.dicom import read_dicom_hl7, read_dicom_sr
from dapt.importers.pair import Hide, Imported
from dapt.importers.public import read_iu_xray, read_medpix, read_roco
from dapt.importers.tables import read_table


@dataclass(frozen=True, slots=True)
class Choices:
    """What only some kinds ask for."""

    examination: str = ""
    reports: Path | None = None
    """The folder of HL7 messages."""
    values: str = "detect"
    """Of CT-RATE: whether the files hold hu or stored values."""
    text: str = "caption"
    """Of MedPix: what the report of a picture is, one of MEDPIX_TEXTS."""
    allow_preliminary: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    words: str
    examination: str
    """Unless another is asked for; empty: pictures or texts of any."""
    read: Callable[[Path, Hide, Choices], Imported]


KINDS = {
    "csv": Kind(
        "a CSV or JSON lines file with path, context and report",
        "chest_ct",
        lambda source, hide, c: read_table(source, c.examination, hide),
    ),
    "ct-rate": Kind(
        "CT-RATE, version 1 or 2, or its reports alone",
        "chest_ct",
        lambda source, hide, c: read_ct_rate(source, hide, c.values),
    ),
    "medpix": Kind("MedPix 2.0", "", lambda source, hide, c: read_medpix(source, hide, c.text)),
    "iu-xray": Kind("the texts of IU X-Ray", "", lambda source, hide, c: read_iu_xray(source, hide)),
    "roco": Kind("the captions of ROCO", "", lambda source, hide, c: read_roco(source, hide)),
    "dicom+sr": Kind(
        "folders of DICOM studies with their reports as SR",
        "chest_ct",
        lambda source, hide, c: read_dicom_sr(source, hide, c.allow_preliminary),
    ),
    "dicom+hl7": Kind(
        "folders of DICOM studies, and HL7 v2 messages",
        "chest_ct",
        lambda source, hide, c: read_dicom_hl7(source, hide, c.reports, c.allow_preliminary),
    ),
}
