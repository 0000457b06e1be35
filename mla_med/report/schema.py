"""The finding schema of each examination: what can be said, where, on which side, with which code.

A code stands here only if it is in pydicom's offline dictionaries or two independent public
sources agree on it; `tests/test_report.py` checks the former. Everything else is None.
"""

from __future__ import annotations

from dataclasses import dataclass

from mla_med.types import Side


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept (DICOM PS3.3 section 8): value, coding scheme designator, meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True)
class FindingType:
    """One row of a schema."""

    key: str
    term: str
    """The words a radiologist uses, lower case."""
    code: Code | None
    sides: tuple[Side, ...] = ()
    """Sides that may be stated; empty: the finding has no side."""
    sites: tuple[str, ...] = ()
    """Keys of SITES that may be stated; empty: the finding has no site."""
    has_size: bool = False
    critical: bool = False


SITES: dict[str, Code] = {
    "upper_lobe": Code("45653009", "SCT", "Structure of upper lobe of lung (body structure)"),
    "middle_lobe": Code("72481006", "SCT", "Middle lobe of right lung"),
    "lower_lobe": Code("90572001", "SCT", "Lower lobe of lung"),
}

_ONE_SIDE = (Side.RIGHT, Side.LEFT)
_ANY_SIDE = (Side.RIGHT, Side.LEFT, Side.BILATERAL)
_LOBES = ("upper_lobe", "middle_lobe", "lower_lobe")

CHEST_CT: dict[str, FindingType] = {
    f.key: f
    for f in (
        FindingType(
            "lung_nodule",
            "nodule",
            Code("27925004", "SCT", "Nodule"),
            _ONE_SIDE,
            _LOBES,
            has_size=True,
        ),
        FindingType(
            "lung_mass",
            "mass",
            Code("4147007", "SCT", "Mass"),
            _ONE_SIDE,
            _LOBES,
            has_size=True,
            critical=True,
        ),
        FindingType(
            "consolidation",
            "consolidation",
            None,
            _ONE_SIDE,
            _LOBES,
        ),
        FindingType(
            "ground_glass_opacity",
            "ground-glass opacity",
            Code("112120", "DCM", "Ground glass opacity"),
            _ONE_SIDE,
            _LOBES,
        ),
        FindingType("emphysema", "emphysema", Code("87433001", "SCT", "Pulmonary emphysema")),
        FindingType(
            "pleural_effusion", "pleural effusion", Code("60046008", "SCT", "Pleural effusion"), _ANY_SIDE
        ),
        FindingType(
            "pneumothorax",
            "pneumothorax",
            Code("36118008", "SCT", "Pneumothorax"),
            _ONE_SIDE,
            critical=True,
        ),
        FindingType("cardiomegaly", "cardiomegaly", Code("287272002", "SCT", "Cardiomegaly")),
        FindingType(
            "pericardial_effusion",
            "pericardial effusion",
            Code("373945007", "SCT", "Pericardial effusion"),
        ),
        FindingType("coronary_calcification", "coronary artery calcification", None),
        FindingType(
            "aortic_aneurysm",
            "aneurysm of the ascending aorta",
            Code("67362008", "SCT", "Aortic aneurysm"),
            has_size=True,
            critical=True,
        ),
        FindingType("hiatal_hernia", "hiatal hernia", Code("84089009", "SCT", "Hiatal hernia")),
    )
}
