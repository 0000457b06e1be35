"""The nouns. Frozen, valid once constructed, units in the names, no I/O, no patient names.

Names, patient IDs and birth dates never enter a noun: the document writers read them from the
source headers at the moment of writing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np


class Modality(StrEnum):
    """Imaging modalities that mla_med reads (DICOM PS3.3 C.7.3.1.1.1, the two of them we take)."""

    CT = "CT"
    MR = "MR"


class Presence(StrEnum):
    PRESENT = "present"
    ABSENT = "absent"
    CANNOT_SAY = "cannot say"


class Side(StrEnum):
    RIGHT = "right"
    LEFT = "left"
    BILATERAL = "bilateral"


class Change(StrEnum):
    """Against the prior examination; stated only where there is one."""

    NEW = "new"
    STABLE = "stable"
    INCREASED = "increased"
    DECREASED = "decreased"
    RESOLVED = "resolved"


class Sex(StrEnum):
    FEMALE = "F"
    MALE = "M"
    OTHER = "O"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why not: a code for machines, words for people."""

    code: str
    words: str


_WITHOUT_FRAMES = ("", "1.2.840.10008.5.1.4.1.1.4")
"""No DICOM, and MR Image Storage."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One stored object, or one slice of it. `frame` counts from 0, None in an object of one slice."""

    sop_instance_uid: str
    sop_class_uid: str
    path: Path
    frame: int | None = None

    @property
    def frame_number(self) -> int | None:
        """Referenced Frame Number (0008,1160), from 1; None where a reference has none: the tiles of a mosaic
        are no frames, and a slice of a NIfTI file has a UID of its own (PS3.3 10.3)."""
        has_frames = self.frame is not None and self.sop_class_uid not in _WITHOUT_FRAMES
        return 1 + (self.frame or 0) if has_frames else None


@dataclass(frozen=True, slots=True)
class Series:
    """The instances of one series that share a geometry and an acquisition, in stored order."""

    series_uid: str
    modality: str
    description: str
    body_part: str
    image_type: tuple[str, ...]
    instances: tuple[Instance, ...]
    part: str = ""
    """What tells it from the other volumes under its SeriesInstanceUID, in words; empty if it is alone."""


@dataclass(frozen=True, slots=True)
class ClinicalContext:
    """What the request said. Never a name, an ID or a birth date."""

    age_years: float | None = None
    sex: Sex | None = None
    indication: str = ""
    protocol: str = ""
    """What was ordered and how it was examined."""
    prior: str = ""
    """The report of the newest earlier examination that came with the study."""


@dataclass(frozen=True, slots=True)
class Study:
    study_uid: str
    study_date: str
    description: str
    context: ClinicalContext
    series: tuple[Series, ...]
    problems: tuple[Reason, ...] = ()
    """Files under the folder that are not part of any series, each with its reason."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was measured on a series before it was trusted."""

    shape: tuple[int, int, int]
    """Columns I, rows J, slices K."""
    spacing_mm: tuple[float, float, float]
    affine: tuple[tuple[float, float, float, float], ...]
    """4 x 4, voxel index (I, J, K) -> patient RAS in mm."""
    orientation: str
    """axial, coronal, sagittal or oblique."""
    tilt_deg: float
    """Gantry tilt: angle between the slice normal and the line through the slice positions."""
    largest_spacing_error: float
    """Largest deviation of a slice step from the median step, as a fraction of the median."""
    duplicates_dropped: int
    rescale: str
    """How stored values became HU or MR units, in words."""
    transfer_syntax_uid: str
    lossy: bool
    air_hu: float | None = None
    """CT, once pixels were read: median HU of the darkest 1 % of voxels; air is near -1000."""
    body_part_header: str = ""
    """head, neck, chest, abdomen, pelvis, spine or limb, as the header's words mean it; empty: not stated."""
    body_part_pixels: str = ""
    """head, chest or abdomen, as the voxels show it; empty: they do not tell, or were not read."""
    contrast_header: bool | None = None
    """Intravenous contrast medium, as the header states it; None: not stated."""
    contrast_pixels: bool | None = None
    """CT: whether vessels are brighter than blood can be; None: the voxels do not tell."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SeriesVerdict:
    """What became of one series: accepted with a certificate, or refused with a reason;
    chosen or not, with a reason too."""

    series: Series
    certificate: Certificate | None
    reason: Reason | None
    """Why it was refused, or, when accepted and not chosen, why not chosen."""
    chosen: bool = False
    role: str = ""
    """What it was chosen as where an examination wants several: T1, T2, FLAIR, DWI."""
    why: str = ""
    """In words, why it was chosen; empty where it was not."""

    @property
    def accepted(self) -> bool:
        return self.certificate is not None


@dataclass(frozen=True, slots=True)
class Volume:
    """Voxels float32 (I, J, K), read-only, HU for CT; affine (4, 4) voxel index -> patient RAS mm."""

    voxels: np.ndarray
    affine: np.ndarray
    series: Series
    """Instances in slice order: instance k is slice k."""
    certificate: Certificate

    def __post_init__(self):
        assert self.voxels.ndim == 3
        assert self.voxels.dtype == np.float32
        assert self.affine.shape == (4, 4)
        self.voxels.setflags(write=False)
        self.affine.setflags(write=False)


Box = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One cell of a heat map."""

    box_mm: Box
    weight: float
    """Of the finding's attention; 1 in the strongest cell."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where in the images a finding was seen."""

    sop_instance_uids: tuple[str, ...]
    """The cited slices, the most important first."""
    box_mm: Box
    """Lower and upper corner in patient RAS mm."""
    faithfulness: float | None = None
    """Fall of the finding's logit when the box is masked, None where it was not measured."""
    faithfulness_rank: float | None = None
    """Share of random regions of equal size, elsewhere in the body, whose masking lowers the logit less:
    1 is the best, 0.5 is chance. None where it was not measured."""
    heat: tuple[HeatCell, ...] = ()
    """The cells that carry the finding, the strongest first."""
    frames: tuple[tuple[int, ...], ...] = ()
    """Of each cited instance its cited frames, from 1, the most important first, and () of one without; empty
    where none has frames."""

    @property
    def cited(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The instances and their frames."""
        frames = self.frames or ((),) * len(self.sop_instance_uids)
        return tuple(zip(self.sop_instance_uids, frames, strict=True))

    def is_first(self, instance: Instance) -> bool:
        """Is it the slice that is cited first? An older draft does not say which frame: then any of them."""
        for uid, frames in self.cited[:1]:
            return instance.sop_instance_uid == uid and (not frames or instance.frame_number == frames[0])
        return False


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement about one finding code. Compares without confidence and evidence, so that a
    parsed report equals the findings it was rendered from."""

    code: str
    """A key of the examination's schema (report.schema.SCHEMAS)."""
    presence: Presence = Presence.PRESENT
    site: str | None = None
    side: Side | None = None
    size_mm: float | None = None
    count: int | None = None
    """How many there are, where more than one is stated; the size is then that of the largest."""
    change: Change | None = None
    confidence: float | None = field(default=None, compare=False)
    """Calibrated probability that the statement is right; where nothing can be said, of the likelier one."""
    evidence: Evidence | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Sentence:
    text: str
    codes: tuple[str, ...] = ()
    """The finding codes that this sentence states."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a radiologist wrote, or what the model drafted."""

    findings: tuple[Finding, ...]
    sentences: tuple[Sentence, ...]
    """The findings section, in order."""
    impression: tuple[Sentence, ...]
    technique: str
    language: str = "en"
    examination: str = "chest_ct"
    """A key of report.schema.SCHEMAS."""
    interpretations: tuple[str, ...] = ()
    """What the findings mean in the light of the request: keys of report/interpretations.toml."""


@dataclass(frozen=True, slots=True)
class Gate:
    """May this model draft this study? Refused with reasons, or accepted; the scores either way."""

    accepted: bool
    reasons: tuple[Reason, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Provenance:
    model_name: str
    model_version: str
    weights_sha256: str
    study_uid: str
    series_uids: tuple[str, ...]
    created_utc: str
    """ISO 8601 with seconds."""
    study_date: str = ""
    """As the header states it (YYYYMMDD); empty where it does not."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing that a check found wrong with a report."""

    rule: str
    words: str
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was measured of one finding in two examinations, and what follows from it."""

    code: str
    change: Change | None
    """None: no change can be told."""
    words: str
    side: Side | None = None
    site: str | None = None
    """As the next, of the finding that it is of: of several of one code each is compared by itself."""
    size_mm: float | None = None

    def is_of(self, finding: Finding) -> bool:
        told = (self.side, self.site, self.size_mm)
        stated = (finding.side, finding.site, finding.size_mm)
        # older drafts do not tell
        return self.code == finding.code and (told == stated or not any(told))


@dataclass(frozen=True, slots=True)
class Prior:
    """The earlier examination that a draft was compared with, by measurement."""

    study_uid: str
    study_date: str
    """YYYYMMDD; empty where it is not known."""
    series: tuple[Series, ...]
    """What was measured of it."""
    comparisons: tuple[Comparison, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """What the model did with one study. A draft is never final; no writer can make it so."""

    report: Report | None
    """None when the gate refused."""
    gate: Gate
    verdicts: tuple[SeriesVerdict, ...]
    modal_weights: Mapping[str, float]
    provenance: Provenance
    complaints: tuple[Complaint, ...] = ()
    prior: Prior | None = None
    """None: nothing was compared, and no finding states a change."""
    region_mm: Box | None = None
    """The box around the lungs in patient RAS mm, which places in two examinations are compared by."""

    def __post_init__(self):
        assert (self.report is not None) == self.gate.accepted
        findings = self.report.findings if self.report else ()
        assert self.prior is not None or all(f.change is None for f in findings)
