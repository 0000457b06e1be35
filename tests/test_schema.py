"""What can be said in each examination, and under which codes."""

from __future__ import annotations

import re

import pytest
from pydicom.sr._concepts_dict import concepts

from mla_med.errors import ReportError
from mla_med.report.schema import (
    ABDOMEN_CT,
    BRAIN_MR,
    CHEST_CT,
    SCHEMAS,
    SITES,
    Code,
    schema_of,
)
from mla_med.types import Side

TWO_SOURCES = {
    "87433001": "Pulmonary emphysema",
    "84089009": "Hiatal hernia",
    "46621007": "Atelectasis",
    "12295008": "Bronchiectasis",
    "230745008": "Hydrocephalus",
    "8186001": "Cardiomegaly",
}
"""SNOMED CT codes that pydicom's dictionary lacks, on whose meaning two public sources agree."""
CODED = {
    f"{examination} {kind.key}": kind.code
    for examination, schema in SCHEMAS.items()
    for kind in schema.values()
    if kind.code
} | {f"site {site}": code for site, code in SITES.items() if code}
SYNONYMS = {"Bleeding": "Hemorrhage"}
_FILLING = {"struc", "of", "body", "disor", "bone", "the", "and"}


@pytest.mark.parametrize("name", CODED)
def test_a_code_means_in_every_dictionary_what_it_means_here(name):
    code = CODED[name]
    if code.value in TWO_SOURCES:
        assert meanings(code) == []
        assert code.scheme == "SCT"
        assert code.meaning == TWO_SOURCES[code.value]
        return
    assert meanings(code)
    for meaning in meanings(code):
        said = SYNONYMS.get(meaning, meaning)
        assert stems(said) & stems(code.meaning), f"{code} is also '{meaning}'"


def test_a_code_with_two_meanings_is_caught():
    """pydicom gives 287272002 for an enlarged heart and for an enlarged septal foramen."""
    said = meanings(Code("287272002", "SCT", "Cardiomegaly"))
    assert sorted(said) == ["Cardiomegaly", "Enlarged septal foramen of heart (disorder)"]
    assert not stems(said[0]) & stems(said[1])


def test_two_findings_of_an_examination_share_a_code_only_where_the_place_tells_them_apart():
    for schema in SCHEMAS.values():
        coded = [kind.code.meaning for kind in schema.values() if kind.code]
        assert {m for m in coded if coded.count(m) > 1} <= {"Mass", "Nodule"}


def test_the_chest_has_the_eighteen_labels_of_ct_rate_once_and_what_they_leave_out():
    labels = [kind.label for kind in CHEST_CT.values() if kind.label]
    assert len(labels) == len(set(labels)) == 18
    assert [code for code, kind in CHEST_CT.items() if not kind.label] == [
        "lung_mass",
        "pneumothorax",
        "aortic_aneurysm",
        "pulmonary_embolism",
        "fracture",
        "thyroid_nodule",
        "adrenal_lesion",
        "liver_lesion",
    ]


def test_the_brain_has_its_findings():
    assert list(BRAIN_MR) == [
        "acute_infarct",
        "chronic_infarct",
        "haemorrhage",
        "microbleeds",
        "brain_mass",
        "mass_effect",
        "midline_shift",
        "hydrocephalus",
        "white_matter_hyperintensity",
        "atrophy",
        "oedema",
        "abnormal_enhancement",
        "extra_axial_collection",
        "aneurysm",
        "sinus_disease",
    ]


def test_the_abdomen_has_its_findings():
    assert list(ABDOMEN_CT) == [
        "hepatic_steatosis",
        "cirrhosis",
        "liver_lesion",
        "gallstones",
        "biliary_dilatation",
        "pancreatitis",
        "pancreatic_mass",
        "splenomegaly",
        "renal_cyst",
        "renal_stone",
        "hydronephrosis",
        "renal_mass",
        "adrenal_nodule",
        "appendicitis",
        "diverticulitis",
        "bowel_obstruction",
        "free_air",
        "ascites",
        "abdominal_aortic_aneurysm",
        "abdominal_lymphadenopathy",
        "abdominal_wall_hernia",
    ]


def test_no_organ_lies_on_a_side_that_it_does_not_have():
    lobes = {place for kind in CHEST_CT.values() for place in kind.places if place[1] == "middle_lobe"}
    assert lobes == {(Side.RIGHT, "middle_lobe")}
    middle = {"mediastinum", "vertebra", "sternum", "brainstem", "retroperitoneum", "umbilical"}
    sided = {s for schema in SCHEMAS.values() for k in schema.values() for side, s in k.places if side}
    assert not sided & middle


def test_what_somebody_has_to_be_told_today_is_marked():
    told = {code for schema in SCHEMAS.values() for code, kind in schema.items() if kind.critical}
    assert told >= {"pneumothorax", "pulmonary_embolism", "acute_infarct", "haemorrhage", "free_air"}
    assert not told & {"emphysema", "atrophy", "renal_cyst", "sinus_disease"}


def test_an_unknown_examination_names_those_that_exist():
    with pytest.raises(ReportError, match="there are: chest_ct, brain_mr, abdomen_ct"):
        schema_of("knee_mr")


def meanings(code: Code) -> list[str]:
    """All that pydicom's dictionary of the scheme says of a value."""
    return [values[code.value][0] for values in concepts[code.scheme].values() if code.value in values]


def stems(meaning: str) -> set[str]:
    return {word[:5] for word in re.findall(r"[a-z]+", meaning.lower())} - _FILLING
