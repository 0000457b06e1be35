"""The finding schema of each examination: what can be said, where, on which side, with which code.

A code stands here only if pydicom's offline dictionaries hold it, or two independent public sources
agree on it, and if the dictionaries give it no other meaning; `tests/test_schema.py` checks this.
Everything else is None: a wrong code is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mla_med.errors import ReportError
from mla_med.types import Side


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept (DICOM PS3.3 section 8): value, coding scheme designator, meaning."""

    value: str
    scheme: str
    meaning: str


Place = tuple[Side | None, str | None]
"""Side and site (a key of SITES) of a finding; None where there is none to state."""


@dataclass(frozen=True, slots=True)
class FindingType:
    """One row of a schema."""

    key: str
    term: str
    """The words a radiologist uses, lower case."""
    code: Code | None
    places: tuple[Place, ...] = ((None, None),)
    """Every legal side and site of a present finding."""
    has_size: bool = False
    """Whether a present finding states a size (largest diameter, or shift) in mm."""
    countable: bool = False
    """Whether it may state how many there are; the size is then that of the largest."""
    critical: bool = False
    """Whether somebody has to be told today: it leads the impression."""
    label: str = ""
    """Its column in CT-RATE (Hamamci et al., 2024), empty where that has none."""
    required: bool = True
    """Whether a complete report has to speak of it, present or not."""
    seen_on: tuple[str, ...] = ()
    """What shows it, the best first: sequences of an MR, or CONTRAST. Where none of these was taken nobody
    can say; empty: any image of the examination shows it."""

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that can be stated, in the order of `Side`."""
        stated = {side for side, _ in self.places}
        return tuple(side for side in Side if side in stated)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site for _, site in self.places if site))

    @property
    def repeats(self) -> bool:
        """Whether a report may state several of it, each with its place."""
        return len(self.places) > 1


CONTRAST = "contrast medium"

Schema = Mapping[str, FindingType]

SITES: dict[str, Code | None] = {
    "upper_lobe": Code("45653009", "SCT", "Upper lobe of lung"),
    "middle_lobe": Code("72481006", "SCT", "Middle lobe of right lung"),
    "lower_lobe": Code("90572001", "SCT", "Lower lobe of lung"),
    "mediastinum": Code("72410000", "SCT", "Mediastinum"),
    "hilum": Code("46750007", "SCT", "Hilum of lung"),
    "axilla": Code("91470000", "SCT", "Axilla"),
    "central": None,
    "segmental": None,
    "rib": Code("113197003", "SCT", "Rib"),
    "vertebra": Code("122495006", "SCT", "Thoracic spine"),
    "sternum": Code("56873002", "SCT", "Sternum"),
    "frontal_lobe": Code("83251001", "SCT", "Frontal lobe"),
    "parietal_lobe": Code("16630005", "SCT", "Parietal lobe"),
    "temporal_lobe": Code("78277001", "SCT", "Temporal lobe"),
    "occipital_lobe": Code("31065004", "SCT", "Occipital lobe"),
    "basal_ganglia": None,
    "thalamus": Code("42695009", "SCT", "Thalamus"),
    "cerebellum": Code("113305005", "SCT", "Cerebellum"),
    "brainstem": Code("119238007", "SCT", "Brain stem"),
    "middle_cerebral_artery": Code("17232002", "SCT", "Middle Cerebral Artery"),
    "internal_carotid_artery": Code("86117002", "SCT", "Internal carotid artery"),
    "convexity": None,
    "maxillary_sinus": Code("15924003", "SCT", "Maxillary sinus"),
    "frontal_sinus": Code("55060009", "SCT", "Frontal sinus"),
    "head_of_pancreas": None,
    "body_of_pancreas": None,
    "tail_of_pancreas": None,
    "retroperitoneum": Code("82849001", "SCT", "Retroperitoneum"),
    "mesentery": None,
    "inguinal": Code("26893007", "SCT", "Inguinal region"),
    "umbilical": Code("90290004", "SCT", "Umbilical region"),
}
"""Sites that a finding can have, each with its code."""

_RIGHT, _LEFT, _BOTH = Side.RIGHT, Side.LEFT, Side.BILATERAL
_ONE_SIDE: tuple[Place, ...] = ((_RIGHT, None), (_LEFT, None))
_ANY_SIDE: tuple[Place, ...] = (*_ONE_SIDE, (_BOTH, None))


def _sct(value: str, meaning: str) -> Code:
    return Code(value, "SCT", meaning)


def _paired(*sites: str) -> tuple[Place, ...]:
    """Each site on the right or on the left."""
    return tuple((side, site) for site in sites for side in (_RIGHT, _LEFT))


def _single(*sites: str) -> tuple[Place, ...]:
    """Sites without a side."""
    return tuple((None, site) for site in sites)


_LOBES: tuple[Place, ...] = (
    (_RIGHT, "upper_lobe"),
    (_RIGHT, "middle_lobe"),
    (_RIGHT, "lower_lobe"),
    (_LEFT, "upper_lobe"),
    (_LEFT, "lower_lobe"),
)
_CEREBRUM = ("frontal_lobe", "parietal_lobe", "temporal_lobe", "occipital_lobe")
_BRAIN = (*_paired(*_CEREBRUM, "basal_ganglia", "thalamus", "cerebellum"), *_single("brainstem"))


def _schema(*types: FindingType) -> Schema:
    assert len({t.key for t in types}) == len(types)
    assert all(site in SITES for t in types for site in t.sites)
    return MappingProxyType({t.key: t for t in types})


# The first twelve are what the packaged checkpoint answers.
CHEST_CT: Schema = _schema(
    FindingType(
        "lung_nodule",
        "nodule",
        _sct("27925004", "Nodule"),
        _LOBES,
        has_size=True,
        countable=True,
        label="Lung nodule",
    ),
    FindingType("lung_mass", "mass", _sct("4147007", "Mass"), _LOBES, has_size=True, critical=True),
    FindingType(
        "consolidation",
        "consolidation",
        None,
        _LOBES,
        label="Consolidation",
    ),
    FindingType(
        "ground_glass_opacity",
        "ground-glass opacity",
        Code("112120", "DCM", "Ground glass opacity"),
        _LOBES,
        label="Lung opacity",
    ),
    FindingType("emphysema", "emphysema", _sct("87433001", "Pulmonary emphysema"), label="Emphysema"),
    FindingType(
        "pleural_effusion",
        "pleural effusion",
        _sct("60046008", "Pleural effusion"),
        _ANY_SIDE,
        label="Pleural effusion",
    ),
    FindingType("pneumothorax", "pneumothorax", _sct("36118008", "Pneumothorax"), _ONE_SIDE, critical=True),
    # 287272002, which DICOM gives for it, is an enlarged septal foramen in the same dictionary
    FindingType("cardiomegaly", "cardiomegaly", _sct("8186001", "Cardiomegaly"), label="Cardiomegaly"),
    FindingType(
        "pericardial_effusion",
        "pericardial effusion",
        _sct("373945007", "Pericardial effusion"),
        label="Pericardial effusion",
    ),
    FindingType(
        "coronary_calcification",
        "coronary artery calcification",
        None,
        label="Coronary artery wall calcification",
    ),
    FindingType(
        "aortic_aneurysm",
        "aneurysm of the ascending aorta",
        _sct("67362008", "Aortic aneurysm"),
        has_size=True,
        critical=True,
    ),
    FindingType("hiatal_hernia", "hiatal hernia", _sct("84089009", "Hiatal hernia"), label="Hiatal hernia"),
    FindingType("medical_material", "medical material", None, label="Medical material"),
    FindingType(
        "arterial_wall_calcification",
        "calcification of the aortic wall",
        _sct("129759000", "Vascular calcification"),
        label="Arterial wall calcification",
    ),
    FindingType(
        "lymphadenopathy",
        "lymphadenopathy",
        _sct("30746006", "Lymphadenopathy"),
        (*_single("mediastinum"), *_paired("hilum", "axilla")),
        has_size=True,
        countable=True,
        label="Lymphadenopathy",
    ),
    FindingType("atelectasis", "atelectasis", _sct("46621007", "Atelectasis"), _LOBES, label="Atelectasis"),
    FindingType(
        "fibrotic_sequela",
        "fibrotic sequela",
        _sct("112674009", "Fibrosis"),
        _LOBES,
        label="Pulmonary fibrotic sequela",
    ),
    FindingType(
        "mosaic_attenuation",
        "mosaic attenuation",
        Code("112130", "DCM", "Mosaic pattern"),
        label="Mosaic attenuation pattern",
    ),
    FindingType(
        "peribronchial_thickening",
        "peribronchial thickening",
        None,
        _ANY_SIDE,
        label="Peribronchial thickening",
    ),
    FindingType(
        "bronchiectasis",
        "bronchiectasis",
        _sct("12295008", "Bronchiectasis"),
        _LOBES,
        label="Bronchiectasis",
    ),
    FindingType(
        "septal_thickening",
        "interlobular septal thickening",
        None,
        _ANY_SIDE,
        label="Interlobular septal thickening",
    ),
    FindingType(
        "pulmonary_embolism",
        "pulmonary embolism",
        _sct("59282003", "Pulmonary embolism"),
        _paired("central", "segmental"),
        critical=True,
        required=False,
        seen_on=(CONTRAST,),
    ),
    FindingType(
        "fracture",
        "fracture",
        None,
        (*_paired("rib"), *_single("vertebra", "sternum")),
    ),
    FindingType(
        "thyroid_nodule",
        "thyroid nodule",
        _sct("237495005", "Thyroid nodule"),
        _ONE_SIDE,
        has_size=True,
        required=False,
    ),
    FindingType("adrenal_lesion", "adrenal lesion", None, _ONE_SIDE, has_size=True, required=False),
    FindingType("liver_lesion", "liver lesion", None, has_size=True, countable=True, required=False),
)

BRAIN_MR: Schema = _schema(
    FindingType(
        "acute_infarct",
        "acute infarct",
        None,
        _BRAIN,
        has_size=True,
        critical=True,
        seen_on=("DWI",),
    ),
    FindingType(
        "chronic_infarct",
        "chronic infarct",
        None,
        _BRAIN,
        has_size=True,
        seen_on=("FLAIR", "T2"),
    ),
    FindingType(
        "haemorrhage",
        "intracranial haemorrhage",
        _sct("50960005", "Hemorrhage"),  # 1386000 is also an occlusion of an artery in pydicom's
        _BRAIN,
        has_size=True,
        critical=True,
        seen_on=("SWI", "T1", "T2"),
    ),
    FindingType(
        "microbleeds",
        "microbleeds",
        None,
        countable=True,
        seen_on=("SWI",),
    ),
    FindingType(
        "brain_mass",
        "mass",
        _sct("4147007", "Mass"),
        _BRAIN,
        has_size=True,
        critical=True,
        seen_on=("T1 contrast", "FLAIR", "T2"),
    ),
    FindingType(
        "mass_effect",
        "mass effect",
        None,
        seen_on=("FLAIR", "T2", "T1"),
    ),
    FindingType(
        "midline_shift",
        "midline shift",
        None,
        _ONE_SIDE,
        has_size=True,
        critical=True,
        seen_on=("T2", "FLAIR", "T1"),
    ),
    FindingType(
        "hydrocephalus",
        "hydrocephalus",
        _sct("230745008", "Hydrocephalus"),
        critical=True,
        seen_on=("T2", "FLAIR", "T1"),
    ),
    FindingType(
        "white_matter_hyperintensity",
        "white matter hyperintensities",
        Code("110702", "DCM", "White Matter T2 Hyperintensity"),
        seen_on=("FLAIR", "T2"),
    ),
    FindingType(
        "atrophy",
        "cerebral atrophy",
        _sct("13331008", "Atrophy"),
        seen_on=("T1", "T2", "FLAIR"),
    ),
    FindingType(
        "oedema",
        "vasogenic oedema",
        _sct("79654002", "Edema"),
        _paired(*_CEREBRUM, "cerebellum"),
        seen_on=("FLAIR", "T2"),
    ),
    FindingType(
        "abnormal_enhancement",
        "abnormal enhancement",
        None,
        _BRAIN,
        required=False,
        seen_on=("T1 contrast",),
    ),
    FindingType(
        "extra_axial_collection",
        "extra-axial collection",
        None,
        _paired("convexity"),
        has_size=True,
        critical=True,
        seen_on=("FLAIR", "T2", "T1"),
    ),
    FindingType(
        "aneurysm",
        "intracranial aneurysm",
        _sct("85659009", "Aneurysm"),
        _paired("middle_cerebral_artery", "internal_carotid_artery"),
        has_size=True,
        critical=True,
        required=False,
        seen_on=("T2",),
    ),
    FindingType(
        "sinus_disease",
        "paranasal sinus disease",
        None,
        _paired("maxillary_sinus", "frontal_sinus"),
        required=False,
        seen_on=("T2", "FLAIR"),
    ),
)

ABDOMEN_CT: Schema = _schema(
    FindingType("hepatic_steatosis", "hepatic steatosis", None),
    FindingType("cirrhosis", "cirrhosis of the liver", _sct("19943007", "Cirrhosis of liver")),
    FindingType("liver_lesion", "focal liver lesion", None, has_size=True, countable=True),
    FindingType("gallstones", "gallstones", None, countable=True),
    FindingType("biliary_dilatation", "biliary dilatation", None, has_size=True),
    FindingType("pancreatitis", "pancreatitis", None, critical=True),
    FindingType(
        "pancreatic_mass",
        "pancreatic mass",
        _sct("4147007", "Mass"),
        _single("head_of_pancreas", "body_of_pancreas", "tail_of_pancreas"),
        has_size=True,
        critical=True,
    ),
    FindingType("splenomegaly", "splenomegaly", None, has_size=True),
    FindingType(
        "renal_cyst", "renal cyst", _sct("367643001", "Cyst"), _ONE_SIDE, has_size=True, countable=True
    ),
    FindingType(
        "renal_stone",
        "renal stone",
        _sct("386103008", "Renal stone"),
        _ONE_SIDE,
        has_size=True,
        countable=True,
    ),
    FindingType("hydronephrosis", "hydronephrosis", None, _ANY_SIDE),
    FindingType("renal_mass", "renal mass", _sct("4147007", "Mass"), _ONE_SIDE, has_size=True, critical=True),
    FindingType("adrenal_nodule", "adrenal nodule", _sct("27925004", "Nodule"), _ONE_SIDE, has_size=True),
    FindingType("appendicitis", "appendicitis", None, critical=True),
    FindingType("diverticulitis", "diverticulitis", None, critical=True),
    FindingType("bowel_obstruction", "bowel obstruction", None, critical=True),
    FindingType("free_air", "free intraperitoneal air", None, critical=True),
    FindingType("ascites", "ascites", None),
    FindingType(
        "abdominal_aortic_aneurysm",
        "aneurysm of the abdominal aorta",
        _sct("67362008", "Aortic aneurysm"),
        has_size=True,
        critical=True,
    ),
    FindingType(
        "abdominal_lymphadenopathy",
        "lymphadenopathy",
        _sct("30746006", "Lymphadenopathy"),
        _single("retroperitoneum", "mesentery"),
        has_size=True,
        countable=True,
    ),
    FindingType(
        "abdominal_wall_hernia",
        "abdominal wall hernia",
        None,
        (*_paired("inguinal"), *_single("umbilical")),
    ),
)

SCHEMAS: dict[str, Schema] = {"chest_ct": CHEST_CT, "brain_mr": BRAIN_MR, "abdomen_ct": ABDOMEN_CT}


def schema_of(examination: str) -> Schema:
    """The schema by its name; ReportError names those that exist."""
    if examination not in SCHEMAS:
        raise ReportError(
            f"No finding schema for '{examination}'; there are: {', '.join(SCHEMAS)}.",
            code="EXAMINATION_UNKNOWN",
        )
    return SCHEMAS[examination]
