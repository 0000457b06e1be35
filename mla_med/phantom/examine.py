"""Seed + site -> Examined: a patient with anatomy, lesions, decoys, a request, and perhaps an earlier study.

What is true of the patient stands here, before anything is drawn: what is planted is what a report has to
state. Knows no pixels, no DICOM and no cohort.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from mla_med.errors import ConfigError
from mla_med.phantom.lesion import Decoy, Lesion
from mla_med.phantom.patient import PREVALENCE, Patient, choose_codes, context_of, make_patient
from mla_med.phantom.sites import Site
from mla_med.report.render import render_report, report_text
from mla_med.report.schema import Schema, schema_of
from mla_med.report.style import load_style
from mla_med.types import Change, ClinicalContext, Finding, Presence, Side

STEADY = frozenset(
    (
        *("medical_material", "cardiomegaly", "arterial_wall_calcification", "coronary_calcification"),
        *("emphysema", "fibrotic_sequela", "bronchiectasis", "hiatal_hernia", "mosaic_attenuation"),
        *("white_matter_hyperintensity", "atrophy", "chronic_infarct", "microbleeds"),
    )
)
"""What does not change within months: stable, where there is an earlier study."""
SUDDEN = frozenset(
    ("acute_infarct", "haemorrhage", "pulmonary_embolism", "pneumothorax", "fracture", "hydrocephalus")
)
"""What months ago cannot have been the same: new."""
DILATES = frozenset(("aortic_aneurysm", "aneurysm"))
"""What neither comes nor shrinks within months, and grows by some mm a year."""
FOLLOWS = frozenset(("mass_effect", "midline_shift", "oedema", "abnormal_enhancement"))
"""What is there because something else is, and comes and stays with it."""
CAUSES = frozenset(("brain_mass", "haemorrhage", "acute_infarct", "extra_axial_collection"))
"""What FOLLOWS can follow from."""
CLEARS = {
    "chest_ct": (
        *("consolidation", "ground_glass_opacity", "pleural_effusion", "atelectasis", "pneumothorax"),
        *("septal_thickening", "pericardial_effusion", "pulmonary_embolism"),
    ),
    "brain_mr": ("sinus_disease", "extra_axial_collection"),
}
"""What an earlier study can have shown that is gone."""
UNSEEN_PLAIN = frozenset(("pulmonary_embolism",))
"""Of what can only be seen with contrast medium nobody can say without it that it has gone."""
RESOLVED_SHARE = 0.4
"""Of the patients with an earlier study, in how many something has gone since."""
SIZES_MM = {
    **{"lung_nodule": (3.0, 30.0), "lung_mass": (31.0, 90.0), "lymphadenopathy": (10.0, 45.0)},
    **{"aortic_aneurysm": (45.0, 80.0), "thyroid_nodule": (5.0, 50.0), "adrenal_lesion": (8.0, 70.0)},
    **{"liver_lesion": (5.0, 80.0), "brain_mass": (8.0, 80.0), "aneurysm": (3.0, 25.0)},
}
"""How small and how large a lesion can have been under its name; others have no limits."""
TECHNIQUES = {
    ("chest_ct", "en"): "CT of the chest with intravenous contrast medium.",
    ("chest_ct", "zh"): "胸部CT增强扫描。",
    ("brain_mr", "en"): "MR of the brain with T1-weighted, T2-weighted, FLAIR and diffusion-weighted "
    "sequences, before and after intravenous contrast medium.",
    ("brain_mr", "zh"): "颅脑MR平扫及增强，序列包括T1WI、T2WI、FLAIR及DWI。",
}
"""What a report says of an examination with contrast medium; without it, what the style says."""
CONTRAST_SHARE = {False: 0.35, True: 0.75}
"""Of the heads without and with known cancer, how many are given contrast medium."""
ENHANCEMENT = "abnormal_enhancement"
FIRST_DAY = datetime(2026, 1, 2, 7, 30)
NOTABLE_GROWTH = 0.15
"""Sizes that differ by less are stated as stable."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """The study before this one: the same body and decoys, other lesions."""

    lesions: tuple[Lesion, ...]
    findings: tuple[Finding, ...]
    """What its report states as present."""
    report: str
    """The text of that report."""
    months: int
    """Before this study."""


@dataclass(frozen=True, slots=True)
class Examined:
    """Everything that is true of one examination."""

    patient: Patient
    examination: str
    site: Site
    anatomy: Any
    """chest.Chest or head.Head, without lesions."""
    lesions: tuple[Lesion, ...]
    decoys: tuple[Decoy, ...]
    findings: tuple[Finding, ...]
    """What a report has to state: as present, or as resolved since the earlier study."""
    context: ClinicalContext
    taken: datetime
    earlier: Earlier | None = None

    @property
    def id(self) -> str:
        return f"phantom-{self.patient.seed:010d}"

    @property
    def contrast(self) -> bool:
        """Whether contrast medium is given: to a chest by habit or for what is only seen with it; to a head
        by chance, more often where cancer is known, and never because of what will be found."""
        codes = {lesion.finding.code for lesion in self.lesions}
        if self.examination == "brain_mr":
            chance = np.random.default_rng([self.patient.seed, 105]).random()
            share = CONTRAST_SHARE["cancer" in self.patient.history]
            return chance < share or ENHANCEMENT in codes
        anatomy = self.anatomy
        for lesion in self.lesions:
            anatomy = lesion.change(anatomy)
        return bool(anatomy.enhanced)

    @property
    def technique(self) -> str | None:
        """For the report; None: what its style says."""
        return TECHNIQUES[self.examination, self.site.language] if self.contrast else None


class Room(NamedTuple):
    """What an examination is made by."""

    make: Callable[[Patient], Any]
    plant: Callable[[Any, Sequence[str], np.random.Generator], tuple[Lesion, ...]]
    choose_decoys: Callable[[Any, np.random.Generator], tuple[Decoy, ...]]


def room_of(examination: str) -> Room:
    # a chest needs nothing of the head, and the other way round
    if examination == "chest_ct":
        from mla_med.phantom.chest import anatomy as chest
        from mla_med.phantom.chest import decoys as chest_decoys
        from mla_med.phantom.chest import lesions as chest_lesions

        return Room(chest.make_chest, chest_lesions.plant, chest_decoys.choose_decoys)
    from mla_med.phantom.head import anatomy as head
    from mla_med.phantom.head import lesions as head_lesions

    return Room(head.make_head, head_lesions.plant, head_lesions.choose_decoys)


def examine(
    seed: int,
    examination: str,
    site: Site,
    prior_share: float = 0.0,
    codes: Sequence[str] | None = None,
    room: Room | None = None,
) -> Examined:
    """`prior_share`: how likely there is an earlier study. `codes`: what to plant; None lets the patient's
    history choose. The same arguments give the same patient, to the byte."""
    room = room or room_of(examination)
    patient = make_patient(seed)
    rng = np.random.default_rng([seed, 102])
    wanted = choose_codes(patient, examination, rng, site.odds) if codes is None else tuple(codes)
    anatomy = room.make(patient)
    lesions = room.plant(anatomy, wanted, rng)
    examined = Examined(
        patient=patient,
        examination=examination,
        site=site,
        anatomy=anatomy,
        lesions=lesions,
        decoys=room.choose_decoys(anatomy, rng),
        findings=stated(lesions, examination),
        context=context_of(patient, examination, site.language),
        taken=FIRST_DAY + timedelta(days=int(rng.integers(360)), minutes=int(rng.integers(600))),
    )
    if codes is None or ENHANCEMENT not in codes:
        examined = _without_enhancement(examined)
    return _with_earlier(examined, room, rng) if rng.random() < prior_share else examined


def _without_enhancement(examined: Examined) -> Examined:
    """Where no contrast medium is given nothing is seen to take it up."""
    lesions = tuple(lesion for lesion in examined.lesions if lesion.finding.code != ENHANCEMENT)
    plain = replace(examined, lesions=lesions, findings=stated(lesions, examined.examination))
    return examined if plain.contrast else plain


def check_codes(codes: Sequence[str] | None, examination: str) -> tuple[str, ...] | None:
    """What somebody asks to plant; ConfigError where it is no finding of the examination."""
    if examination not in PREVALENCE:
        raise ConfigError(f"No phantom of '{examination}'; there are: {', '.join(PREVALENCE)}.")
    known = schema_of(examination)
    for code in codes or ():
        if code not in known:
            raise ConfigError(f"No finding '{code}' can be planted; there are: {', '.join(known)}.")
    return tuple(codes) if codes else None


def stated(lesions: Sequence[Lesion], examination: str) -> tuple[Finding, ...]:
    """What a report says of these lesions: those of one code at one place in one sentence, with their
    number where that can be stated and the size of the largest."""
    schema = schema_of(examination)
    return tuple(_together(group, schema) for group in _grouped(lesions, schema))


def _grouped(lesions: Sequence[Lesion], schema: Schema) -> list[list[Lesion]]:
    """By code and place; right and left are one place where "bilateral" can be said."""
    groups: dict[tuple, list[Lesion]] = {}
    for lesion in lesions:
        finding = lesion.finding
        joined = Side.BILATERAL in schema[finding.code].sides
        groups.setdefault((finding.code, None if joined else finding.side, finding.site), []).append(lesion)
    return list(groups.values())


def _together(group: Sequence[Lesion], schema: Schema) -> Finding:
    same = [lesion.finding for lesion in group]
    largest = max(same, key=lambda f: f.size_mm or 0.0)
    number = sum(f.count or 1 for f in same)
    counted = schema[largest.code].countable and number > 1
    sides = {f.side for f in same}
    return replace(
        largest,
        count=number if counted else None,
        side=largest.side if len(sides) == 1 else Side.BILATERAL,
    )


def _with_earlier(examined: Examined, room: Room, rng: np.random.Generator) -> Examined:
    """An earlier study of the same patient: lesions were smaller, larger, not there, or have gone since."""
    schema = schema_of(examined.examination)
    before: list[Lesion] = []
    findings: list[Finding] = []
    causes = [lesion for lesion in examined.lesions if lesion.finding.code not in FOLLOWS]
    # what follows from a lesion can have been there before only if some lesion was
    bound = len(causes) < len(examined.lesions)
    followed = Change.NEW
    groups = _grouped(causes, schema)
    lone = sum(group[0].finding.code in CAUSES for group in groups) == 1
    for group in groups:
        change, earlier = _earlier_of(group, bound, lone, rng)
        before += earlier
        findings.append(replace(_together(group, schema), change=change))
        # what follows from one that has grown has come since
        if change is Change.STABLE and group[0].finding.code in CAUSES:
            followed = Change.STABLE
    following = [lesion for lesion in examined.lesions if lesion.finding.code in FOLLOWS]
    findings += [replace(_together(g, schema), change=followed) for g in _grouped(following, schema)]
    before += following if followed is Change.STABLE else []
    gone = _gone(examined, room, before, rng)
    codes = {lesion.finding.code for lesion in gone}
    resolved = [Finding(code, Presence.ABSENT, change=Change.RESOLVED) for code in sorted(codes)]
    lesions = (*before, *gone)
    reported = stated(lesions, examined.examination)
    style = load_style(examined.site.style, examined.site.language)
    technique = replace(examined, lesions=lesions).technique
    text = report_text(render_report(reported, style, examined.examination, technique), style)
    return replace(
        examined,
        findings=(*findings, *resolved),
        context=replace(examined.context, prior=text),
        earlier=Earlier(lesions, reported, text, int(rng.integers(2, 25))),
    )


def _earlier_of(
    group: Sequence[Lesion], bound: bool, lone: bool, rng: np.random.Generator
) -> tuple[Change, list[Lesion]]:
    """How the lesions of one sentence have changed, and what they were. `bound`: something follows from
    them, or from others, that has no size of its own to grow with; `lone`: from them alone."""
    largest = max(group, key=lambda lesion: lesion.finding.size_mm or 0.0)
    code, size = largest.finding.code, largest.finding.size_mm
    if code in STEADY:
        return Change.STABLE, list(group)
    if code in SUDDEN:
        return Change.NEW, []
    choices = (Change.STABLE, Change.NEW, Change.INCREASED, Change.DECREASED)
    open_to = 2 if size is None else 4
    if bound and code in CAUSES:
        open_to = 3 if lone and size is not None else 2
    change = choices[int(rng.integers(open_to))]
    factor = {Change.INCREASED: rng.uniform(0.5, 0.75), Change.DECREASED: rng.uniform(1.3, 1.6)}.get(change)
    if code in DILATES:
        if change is not Change.INCREASED or factor is None:
            return Change.STABLE, list(group)
        factor = 0.76 + 0.28 * (factor - 0.5)  # up to 0.83: an aorta of 60 mm had 46 to 50
    if factor is None or size is None:
        return change, [] if change is Change.NEW else list(group)
    low, high = SIZES_MM.get(code, (1.0, 200.0))
    factor = float(np.clip(factor * size, low, high)) / size
    if abs(factor - 1) < NOTABLE_GROWTH or any(lesion.regrown is None for lesion in group):
        return Change.STABLE, list(group)
    return change, [lesion.regrown(factor) for lesion in group if lesion.regrown is not None]


def _gone(
    examined: Examined, room: Room, before: Sequence[Lesion], rng: np.random.Generator
) -> tuple[Lesion, ...]:
    """Lesions of one code that is not there any more; of what lies on another lesion, none."""
    if rng.random() >= RESOLVED_SHARE:
        return ()
    taken = {lesion.finding.code for lesion in (*examined.lesions, *before)}
    free = [code for code in CLEARS[examined.examination] if code not in taken]
    if not free:
        return ()
    chosen = free[int(rng.integers(len(free)))]
    if chosen in UNSEEN_PLAIN and not examined.contrast:
        return ()
    planted = room.plant(examined.anatomy, (chosen,), rng)
    return tuple(
        lesion
        for lesion in planted
        if lesion.finding.code == chosen and not any(_touch(lesion, other) for other in before)
    )


def _touch(a: Lesion, b: Lesion) -> bool:
    (low_a, high_a), (low_b, high_b) = a.box_mm, b.box_mm
    return all(low_a[n] < high_b[n] and low_b[n] < high_a[n] for n in range(3))


def before(examined: Examined) -> Examined:
    """The earlier study, as an examination of its own."""
    earlier = examined.earlier
    assert earlier is not None
    patient = examined.patient
    younger = replace(patient, age_years=max(18, patient.age_years - earlier.months // 12))
    return replace(
        examined,
        patient=younger,
        lesions=earlier.lesions,
        findings=earlier.findings,
        context=replace(examined.context, prior="", age_years=float(younger.age_years)),
        taken=examined.taken - timedelta(days=round(30.4 * earlier.months)),
        earlier=None,
    )
