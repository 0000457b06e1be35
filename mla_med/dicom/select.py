"""Study -> a verdict on every series: refused, accepted, or accepted and chosen, each with a reason.

What an examination wants is one row of EXAMINATIONS; how candidates are compared is CRITERIA, the
weightiest first. Knows headers and certificates; decodes no pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mla_med.dicom.certificate import REFORMAT_WORDS, certify
from mla_med.dicom.header import read_headers
from mla_med.errors import ConfigError, SeriesError
from mla_med.types import Certificate, Reason, Series, SeriesVerdict, Study


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an examination is read from."""

    modality: str
    orientations: tuple[str, ...]
    body_words: tuple[str, ...]
    """Any of them in the body part or the series description agrees."""
    thickness_mm: tuple[float, float] = (0.5, 5.0)


EXAMINATIONS: dict[str, Wanted] = {
    "chest_ct": Wanted("CT", ("axial",), ("CHEST", "THORAX", "LUNG", "PULMO", "TORSO", "TAP", "胸", "肺")),
    "abdomen_ct": Wanted("CT", ("axial",), ("ABD", "LIVER", "PELVIS", "KIDNEY", "TORSO", "TAP", "腹")),
    "brain_mr": Wanted(
        "MR", ("axial", "coronal", "sagittal"), ("BRAIN", "HEAD", "SKULL", "NEURO", "头", "颅"), (0.5, 8.0)
    ),
}

SOFT, UNKNOWN_KERNEL, SHARP = range(3)
# Siemens B31f, Br40, I30f; GE STANDARD; Philips A-C, UB; Canon FC08.
SOFT_KERNEL = re.compile(r"SOFT|STAND|STND|STD|^[BHUDTIQ][A-Z]?[1-4]\d|^FC[01]\d|^(A|B|C|UA|UB|YA|YB)$")
# Siemens B60f, Bl57; GE LUNG, BONEPLUS; Philips D, L, YC; Canon FC30, FC51, FC85.
SHARP_KERNEL = re.compile(r"LUNG|BONE|EDGE|SHARP|ULTRA|^[BHUDTIQ][A-Z]?[5-9]\d|^FC[3-8]\d|^(D|E|L|YC|YD|YE)$")
SHORT = 0.5
"""A series covers too little if it is shorter than this share of the longest candidate."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An accepted series with what the comparison looks at."""

    series: Series
    certificate: Certificate
    wanted: Wanted
    kernel: str
    thickness_mm: float
    coverage_mm: float
    longest_mm: float

    @property
    def body(self) -> int:
        """0 agrees, 1 does not say, 2 contradicts."""
        words = f"{self.series.body_part} {self.series.description}".upper()
        if any(re.search(rf"(?<![A-Z]){word}", words) for word in self.wanted.body_words):
            return 0
        return 2 if self.series.body_part else 1

    @property
    def sharpness(self) -> int:
        kernel = self.kernel.upper()
        if SHARP_KERNEL.search(kernel):
            return SHARP
        return SOFT if SOFT_KERNEL.search(kernel) else UNKNOWN_KERNEL

    @property
    def derived(self) -> bool:
        words = {word.upper() for word in self.series.image_type}
        return not words.isdisjoint({"DERIVED", *REFORMAT_WORDS})

    @property
    def thickness_unusual(self) -> bool:
        low, high = self.wanted.thickness_mm
        return not low - 0.01 <= self.thickness_mm <= high + 0.01


# (code, rank: the lowest wins, words for the one that loses by it)
CRITERIA: tuple[tuple[str, Callable[[Candidate], object], Callable[[Candidate], str]], ...] = (
    (
        "WRONG_BODY_PART",
        lambda c: c.body,
        lambda c: f"Its body part is {c.series.body_part or 'not stated'}; the chosen one agrees better.",
    ),
    (
        "SHORT_COVERAGE",
        lambda c: c.coverage_mm < SHORT * c.longest_mm,
        lambda c: f"It covers {c.coverage_mm:.0f} mm of {c.longest_mm:.0f} mm.",
    ),
    ("DERIVED", lambda c: c.derived, lambda c: "It was derived from other images."),
    (
        "UNUSUAL_THICKNESS",
        lambda c: c.thickness_unusual,
        lambda c: f"Its slices of {c.thickness_mm:g} mm are outside the range that is read.",
    ),
    (
        "SHARPER_KERNEL",
        lambda c: c.sharpness,
        lambda c: f"Its kernel {c.kernel or '(not stated)'} is sharper than the chosen one.",
    ),
    (
        "THICKER_THAN_CHOSEN",
        lambda c: round(c.thickness_mm, 2),
        lambda c: f"Its slices of {c.thickness_mm:g} mm are thicker than those of the chosen one.",
    ),
    (
        "FEWER_SLICES",
        lambda c: -c.certificate.shape[2],
        lambda c: f"It has {c.certificate.shape[2]} slices, fewer than the chosen one.",
    ),
    (
        "EQUAL_TO_CHOSEN",
        lambda c: 0,
        lambda c: "It is as good as the chosen one, which comes first.",
    ),
)


def choose_series(study: Study, examination: str = "chest_ct") -> tuple[SeriesVerdict, ...]:
    """One verdict for each series, in the order of the study; one is chosen if any is suitable."""
    wanted = _wanted(examination)
    verdicts = [_judge(series, wanted) for series in study.series]
    candidates = _candidates(verdicts, wanted)
    if not candidates:
        return tuple(verdicts)
    chosen = min(candidates, key=lambda number: _ranks(candidates[number]))
    for number, candidate in candidates.items():
        reason = None if number == chosen else _why_not(candidate, candidates[chosen])
        verdicts[number] = SeriesVerdict(
            candidate.series, candidate.certificate, reason, chosen=number == chosen
        )
    return tuple(verdicts)


def _wanted(examination: str) -> Wanted:
    if examination not in EXAMINATIONS:
        raise ConfigError(
            f"No examination {examination!r}. Known are {', '.join(EXAMINATIONS)}.",
            code="UNKNOWN_EXAMINATION",
        )
    return EXAMINATIONS[examination]


def _judge(series: Series, wanted: Wanted) -> SeriesVerdict:
    """Refused, accepted but of no use here (with a reason), or a candidate (without)."""
    try:
        certificate = certify(series)
    except SeriesError as error:
        return SeriesVerdict(series, None, Reason(error.code, str(error)))
    return SeriesVerdict(series, certificate, _unsuitable(series, certificate, wanted))


def _unsuitable(series: Series, certificate: Certificate, wanted: Wanted) -> Reason | None:
    if series.modality != wanted.modality:
        return Reason("WRONG_MODALITY", f"It is {series.modality}; {wanted.modality} is wanted.")
    if certificate.orientation not in wanted.orientations:
        code = "NOT_AXIAL" if wanted.orientations == ("axial",) else "WRONG_ORIENTATION"
        return Reason(code, f"It is {certificate.orientation}; wanted: {', '.join(wanted.orientations)}.")
    return None


def _candidates(verdicts: list[SeriesVerdict], wanted: Wanted) -> dict[int, Candidate]:
    suitable = {
        number: (verdict.series, verdict.certificate)
        for number, verdict in enumerate(verdicts)
        if verdict.certificate is not None and verdict.reason is None
    }
    coverages_mm = {n: c.shape[2] * c.spacing_mm[2] for n, (_, c) in suitable.items()}
    candidates = {}
    for number, (series, certificate) in suitable.items():
        header = read_headers(series.instances[0].path)[series.instances[0].frame or 0]
        candidates[number] = Candidate(
            series=series,
            certificate=certificate,
            wanted=wanted,
            kernel=header.kernel,
            thickness_mm=header.thickness_mm or certificate.spacing_mm[2],
            coverage_mm=coverages_mm[number],
            longest_mm=max(coverages_mm.values()),
        )
    return candidates


def _ranks(candidate: Candidate) -> tuple:
    return tuple(rank(candidate) for _, rank, _ in CRITERIA)


def _why_not(loser: Candidate, chosen: Candidate) -> Reason:
    """The first criterion by which the two differ; the last one holds when none does."""
    for code, rank, words in CRITERIA[:-1]:
        if rank(loser) != rank(chosen):
            return Reason(code, words(loser))
    code, _, words = CRITERIA[-1]
    return Reason(code, words(loser))
