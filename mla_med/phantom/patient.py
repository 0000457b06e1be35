"""Seed -> Patient: who is examined, why, and what they have. Knows no shapes and no images.

Findings are drawn together, as in life: smoking brings emphysema, nodules and masses, heart failure
brings effusions and a large heart, age brings calcium, atrophy and white matter disease. Six of ten
requests say what is known of the patient, the others only why they came.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mla_med.types import ClinicalContext, Sex

HISTORIES: dict[str, float] = {
    "smoker": 0.30,
    "heart_failure": 0.12,
    "hypertension": 0.30,
    "cancer": 0.14,
    "infection": 0.18,
    "trauma": 0.10,
    "copd": 0.08,
    "reflux": 0.08,
    "stroke": 0.12,
    "dementia": 0.06,
    "demyelination": 0.04,
}
"""What can be known of a patient, and of how many it is, before age changes that."""

_AGE_ODDS = {
    **{"heart_failure": 1.06, "hypertension": 1.04, "cancer": 1.03, "stroke": 1.05, "dementia": 1.09},
    **{"copd": 1.03, "demyelination": 0.93, "trauma": 0.99},
}
"""Odds ratio per year, from 55 years on (and back)."""

PREVALENCE: dict[str, dict[str, float]] = {
    "chest_ct": {
        **{"lung_nodule": 0.28, "lung_mass": 0.10, "consolidation": 0.16, "ground_glass_opacity": 0.18},
        **{"emphysema": 0.14, "pleural_effusion": 0.18, "pneumothorax": 0.08, "cardiomegaly": 0.14},
        **{"pericardial_effusion": 0.10, "coronary_calcification": 0.20, "aortic_aneurysm": 0.08},
        **{"hiatal_hernia": 0.12, "medical_material": 0.12, "arterial_wall_calcification": 0.22},
        **{"lymphadenopathy": 0.14, "atelectasis": 0.16, "fibrotic_sequela": 0.18},
        **{"mosaic_attenuation": 0.08, "peribronchial_thickening": 0.10, "bronchiectasis": 0.10},
        **{"septal_thickening": 0.09, "pulmonary_embolism": 0.07, "fracture": 0.09},
        **{"thyroid_nodule": 0.08, "adrenal_lesion": 0.06, "liver_lesion": 0.10},
    },
    "brain_mr": {
        **{"acute_infarct": 0.16, "chronic_infarct": 0.14, "haemorrhage": 0.10, "microbleeds": 0.12},
        **{"brain_mass": 0.14, "hydrocephalus": 0.08, "white_matter_hyperintensity": 0.26},
        **{"atrophy": 0.18, "extra_axial_collection": 0.08, "aneurysm": 0.06, "sinus_disease": 0.16},
    },
}
"""How often each finding is planted. Far above a screening population: the bench needs cases. What
follows from another finding (mass effect, shift, oedema, enhancement) is not drawn by itself."""

RAISES: dict[str, dict[str, float]] = {
    "smoker": {"emphysema": 4, "lung_mass": 3, "lung_nodule": 1.8, "coronary_calcification": 1.8},
    "copd": {"emphysema": 8, "peribronchial_thickening": 4, "bronchiectasis": 2.5, "mosaic_attenuation": 3},
    "heart_failure": {
        **{"cardiomegaly": 12, "pleural_effusion": 8, "septal_thickening": 8, "pericardial_effusion": 2},
        **{"medical_material": 4, "ground_glass_opacity": 2},
    },
    "hypertension": {
        **{"aortic_aneurysm": 2, "arterial_wall_calcification": 1.6, "haemorrhage": 2.5},
        **{"microbleeds": 3, "white_matter_hyperintensity": 2, "cardiomegaly": 1.5},
    },
    "cancer": {
        **{"lung_nodule": 3, "lung_mass": 3, "lymphadenopathy": 5, "pleural_effusion": 2},
        **{"liver_lesion": 4, "adrenal_lesion": 3, "brain_mass": 6, "pulmonary_embolism": 2},
        **{"medical_material": 2},
    },
    "infection": {"consolidation": 8, "ground_glass_opacity": 4, "pleural_effusion": 2, "lymphadenopathy": 2},
    "trauma": {"fracture": 15, "pneumothorax": 8, "pleural_effusion": 2, "extra_axial_collection": 6},
    "reflux": {"hiatal_hernia": 8},
    "stroke": {"acute_infarct": 12, "chronic_infarct": 3, "haemorrhage": 3},
    "dementia": {"atrophy": 10, "white_matter_hyperintensity": 2, "microbleeds": 2},
    "demyelination": {"white_matter_hyperintensity": 25},
}
"""Odds ratios of a finding, by what is known of the patient."""

_WITH_AGE = {
    **{"coronary_calcification": 1.06, "arterial_wall_calcification": 1.07, "aortic_aneurysm": 1.03},
    **{"emphysema": 1.02, "hiatal_hernia": 1.03, "atrophy": 1.07, "white_matter_hyperintensity": 1.05},
    **{"fracture": 1.02, "fibrotic_sequela": 1.02, "microbleeds": 1.04, "chronic_infarct": 1.04},
    **{"thyroid_nodule": 1.02, "lung_mass": 1.02, "cardiomegaly": 1.02},
}
"""Odds ratio per year from 60 on (and back)."""

NORMAL_SHARE = 0.10
"""Share of patients with no finding at all, whatever their age."""

_SAID: dict[str, tuple[str, ...]] = {
    "smoker": ("smoker, {n} pack-years", "heavy smoker"),
    "heart_failure": ("known heart failure", "heart failure, leg oedema"),
    "hypertension": ("arterial hypertension",),
    "cancer": ("staging of known cancer", "known colorectal carcinoma", "history of breast cancer"),
    "infection": ("fever and productive cough", "suspected pneumonia", "fever, raised C-reactive protein"),
    "trauma": ("fall from a ladder", "traffic accident"),
    "copd": ("chronic obstructive pulmonary disease",),
    "reflux": ("reflux disease",),
    "stroke": ("acute hemiparesis, suspected stroke", "sudden aphasia"),
    "dementia": ("memory complaints, suspected dementia",),
    "demyelination": ("optic neuritis", "relapsing neurological deficits"),
}
_SAID_ZH: dict[str, tuple[str, ...]] = {
    "smoker": ("吸烟{n}包年", "长期吸烟"),
    "heart_failure": ("心力衰竭", "心衰，下肢水肿"),
    "hypertension": ("高血压",),
    "cancer": ("恶性肿瘤分期", "结肠癌术后", "乳腺癌病史"),
    "infection": ("发热、咳痰", "可疑肺炎", "发热，C反应蛋白升高"),
    "trauma": ("高处摔伤", "车祸外伤"),
    "copd": ("慢性阻塞性肺疾病",),
    "reflux": ("反流性食管炎",),
    "stroke": ("急性偏瘫，疑似卒中", "突发失语"),
    "dementia": ("记忆力下降，疑似痴呆",),
    "demyelination": ("视神经炎", "反复神经功能缺损，疑似多发性硬化"),
}
_GENERAL = {
    ("chest_ct", "en"): ("routine check", "cough", "chest pain", "preoperative assessment", "dyspnoea"),
    ("brain_mr", "en"): ("headache", "dizziness", "routine check", "seizure"),
    ("chest_ct", "zh"): ("体检", "咳嗽", "胸痛", "术前检查", "气促"),
    ("brain_mr", "zh"): ("头痛", "头晕", "体检", "癫痫发作"),
}
_RELEVANT = {
    "chest_ct": frozenset(
        ("smoker", "heart_failure", "hypertension", "cancer", "infection", "trauma", "copd", "reflux")
    ),
    "brain_mr": frozenset(
        ("hypertension", "cancer", "infection", "trauma", "stroke", "dementia", "demyelination")
    ),
}
"""What a request for this examination would mention."""


@dataclass(frozen=True, slots=True)
class Patient:
    """An adult who does not exist."""

    seed: int
    sex: Sex
    age_years: int
    height_cm: float
    bmi: float
    """Body mass index, kg per square metre."""
    history: frozenset[str] = frozenset()
    """Keys of HISTORIES: what is true of them, said in the request or not."""


def make_patient(seed: int) -> Patient:
    """A random adult of 18 to 95 years: sex and age first, then a body and a history that fit."""
    rng = np.random.default_rng([seed, 101])
    sex = Sex.MALE if rng.random() < 0.52 else Sex.FEMALE
    age = int(np.clip(rng.normal(60, 16), 18, 95))
    # NCD-RisC 2016: adult heights of about 171 and 159 cm, spread 7 and 6.5
    height = rng.normal(176, 7) if sex is Sex.MALE else rng.normal(164, 6.5)
    bmi = float(np.clip(rng.lognormal(math.log(26), 0.17), 16.5, 45))
    history = frozenset(
        key
        for key, share in HISTORIES.items()
        if rng.random() < _shifted(share, _AGE_ODDS.get(key, 1.0) ** (age - 55))
    )
    return Patient(seed, sex, age, round(float(np.clip(height, 145, 205)), 1), round(bmi, 1), history)


def choose_codes(
    patient: Patient,
    examination: str,
    rng: np.random.Generator,
    odds: Mapping[str, float] | None = None,
) -> tuple[str, ...]:
    """A random set of finding codes of this patient; a code may come up to three times where its schema
    allows several. `odds`: what a site sees more or less of, as odds ratios by code."""
    if rng.random() < NORMAL_SHARE:
        return ()
    chosen: list[str] = []
    for code, share in PREVALENCE[examination].items():
        ratio = (odds or {}).get(code, 1.0) * _WITH_AGE.get(code, 1.0) ** (patient.age_years - 60)
        for known in patient.history:
            ratio *= RAISES.get(known, {}).get(code, 1.0)
        if rng.random() < _shifted(share, ratio):
            chosen += [code] * (1 + int(rng.random() < _AGAIN.get(code, 0)) * int(rng.integers(1, 3)))
    return tuple(chosen)


def context_of(patient: Patient, examination: str, language: str = "en") -> ClinicalContext:
    """The request: in six of ten cases with what is known, otherwise only a complaint."""
    words = random.Random(f"request-{examination}-{patient.seed}")
    said = _SAID if language == "en" else _SAID_ZH
    known = sorted(patient.history & _RELEVANT[examination])
    if known and words.random() < 0.6:
        parts = [words.choice(said[key]).format(n=5 * words.randint(2, 12)) for key in known[:3]]
    else:
        parts = [words.choice(_GENERAL[examination, language])]
    joined = ("; " if language == "en" else "；").join(parts)
    return ClinicalContext(float(patient.age_years), patient.sex, joined)


_AGAIN = {"lung_nodule": 0.35, "consolidation": 0.25, "ground_glass_opacity": 0.3, "atelectasis": 0.2}
"""How often a finding comes more than once."""


def _shifted(share: float, odds_ratio: float) -> float:
    odds = share / (1 - share) * odds_ratio
    return odds / (1 + odds)
