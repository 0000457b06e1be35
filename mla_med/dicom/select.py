"""Study -> a verdict on every series: refused, accepted, or accepted and chosen, each with a reason.

What an examination wants is data, `examinations.toml` or a site's own file; how candidates compare is
CRITERIA, named there in order. Knows headers and certificates; decodes no pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mla_med.dicom.certificate import REFORMAT_WORDS, certify
from mla_med.dicom.examinations import Examination, Wanted, read_examinations
from mla_med.dicom.header import Header, read_headers
from mla_med.dicom.sequence import WEIGHTED_B, MrSequence, contrast_stated, sequence_of
from mla_med.errors import ConfigError, SeriesError
from mla_med.types import Certificate, Reason, Series, SeriesVerdict, Study

SOFT, UNKNOWN_KERNEL, SHARP = range(3)
KERNEL_WORDS = ("soft", "unknown sharpness", "sharp")
THREE_DIMENSIONAL_MM = 1.5
"""Thinner slices of MR are 3-D: in 2-D they would be noise. Headers of enhanced objects hardly say."""
MANY_TIME_POINTS = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """An accepted series with what the comparison looks at."""

    series: Series
    certificate: Certificate
    header: Header
    examination: Examination
    wanted: Wanted
    sequence: MrSequence
    time_points: int = 1
    """Volumes of this sequence under its SeriesInstanceUID, one after the other in time."""
    longest_mm: float = 0.0

    @property
    def words(self) -> str:
        return f"{self.series.body_part} {self.series.description}".upper()

    @property
    def body(self) -> int:
        """0 agrees, 1 does not say, 2 contradicts."""
        if _has_word(self.words, self.examination.body_words):
            return 0
        return 2 if self.series.body_part else 1

    @property
    def coverage_mm(self) -> float:
        return self.certificate.shape[2] * self.certificate.spacing_mm[2]

    @property
    def thickness_mm(self) -> float:
        return self.header.thickness_mm or self.certificate.spacing_mm[2]

    @property
    def sharpness(self) -> int:
        kernel, maker = self.header.kernel.upper(), self.header.manufacturer.upper()
        own = [k for k in self.examination.kernels if k.manufacturer and maker.startswith(k.manufacturer)]
        general = [k for k in self.examination.kernels if not k.manufacturer]
        tables = own + general if own else self.examination.kernels
        if any(re.search(pattern, kernel) for table in tables for pattern in table.sharp):
            return SHARP
        soft = any(re.search(pattern, kernel) for table in tables for pattern in table.soft)
        return SOFT if soft else UNKNOWN_KERNEL

    @property
    def derived(self) -> bool:
        words = {word.upper() for word in self.series.image_type}
        return not words.isdisjoint({"DERIVED", *REFORMAT_WORDS})

    @property
    def thickness_unusual(self) -> bool:
        low, high = self.wanted.thickness_mm
        return not low - 0.01 <= self.thickness_mm <= high + 0.01

    @property
    def three_dimensional(self) -> bool:
        if self.header.acquisition_type in ("2D", "3D"):
            return self.header.acquisition_type == "3D"
        named = re.search(r"3D", f"{self.header.sequence_name} {self.series.description}", re.IGNORECASE)
        return bool(named) or self.thickness_mm <= THREE_DIMENSIONAL_MM

    @property
    def one_direction(self) -> bool:
        """Diffusion along one gradient, not the trace of several."""
        types = {word.upper() for word in self.series.image_type}
        return any(self.header.gradient or ()) and types.isdisjoint({"TRACEW", "TRACE"})

    @property
    def phase(self) -> int:
        """The place of its contrast phase among the wanted ones; behind the last if none is named."""
        phases = self.examination.phases
        named = (
            n for n, (_, patterns) in enumerate(phases) if any(re.search(p, self.words) for p in patterns)
        )
        return next(named, len(phases))


@dataclass(frozen=True, slots=True)
class Criterion:
    """One question by which candidates are compared."""

    code: str
    """The reason code of the one that loses by it."""
    rank: Callable[[Candidate], Any]
    """The lowest wins."""
    loses: Callable[[Candidate], str]
    wins: str
    """What the winner is, before "of 3 series"."""
    trait: Callable[[Candidate], str] = lambda c: ""
    """A word for those that tie in it, as in "3 soft series"."""


CRITERIA: dict[str, Criterion] = {
    "right_body_part": Criterion(
        "WRONG_BODY_PART",
        lambda c: c.body,
        lambda c: f"Its body part is {c.series.body_part or 'not stated'}; the chosen one agrees better.",
        "the best match of body part",
    ),
    "one_time_point": Criterion(
        "DYNAMIC",
        lambda c: c.time_points >= MANY_TIME_POINTS,
        lambda c: f"It is one of {c.time_points} volumes that follow each other in time.",
        "the only one that is not part of a dynamic series",
    ),
    "enough_coverage": Criterion(
        "SHORT_COVERAGE",
        lambda c: c.coverage_mm < c.examination.min_coverage_share * c.longest_mm,
        lambda c: f"It covers {c.coverage_mm:.0f} mm of {c.longest_mm:.0f} mm.",
        "the only one that covers enough",
    ),
    "original": Criterion(
        "DERIVED",
        lambda c: c.derived,
        lambda c: "It was derived from other images.",
        "the only original",
    ),
    "usual_thickness": Criterion(
        "UNUSUAL_THICKNESS",
        lambda c: c.thickness_unusual,
        lambda c: f"Its slices of {c.thickness_mm:g} mm are outside the range that is read.",
        "the only one of usual slice thickness",
    ),
    "softest_kernel": Criterion(
        "SHARPER_KERNEL",
        lambda c: c.sharpness,
        lambda c: f"Its kernel {c.header.kernel or '(not stated)'} is sharper than the chosen one.",
        "the softest kernel",
        lambda c: KERNEL_WORDS[c.sharpness] if c.sharpness != UNKNOWN_KERNEL else "",
    ),
    "sharpest_kernel": Criterion(
        "SOFTER_KERNEL",
        lambda c: -c.sharpness,
        lambda c: f"Its kernel {c.header.kernel or '(not stated)'} is softer than the chosen one.",
        "the sharpest kernel",
        lambda c: KERNEL_WORDS[c.sharpness] if c.sharpness != UNKNOWN_KERNEL else "",
    ),
    "preferred_orientation": Criterion(
        "OTHER_ORIENTATION",
        lambda c: c.wanted.orientations.index(c.certificate.orientation),
        lambda c: (
            f"It is {c.certificate.orientation}; the order of preference is "
            f"{', '.join(c.wanted.orientations)}."
        ),
        "the preferred orientation",
        lambda c: c.certificate.orientation,
    ),
    "three_dimensional": Criterion(
        "TWO_DIMENSIONAL",
        lambda c: not c.three_dimensional,
        lambda c: f"It is 2-D, with slices of {c.thickness_mm:g} mm; 3-D is preferred.",
        "the only 3-D one",
    ),
    "two_dimensional": Criterion(
        "THREE_DIMENSIONAL",
        lambda c: c.three_dimensional,
        lambda c: "It is 3-D; 2-D is preferred.",
        "the only 2-D one",
    ),
    "before_contrast": Criterion(
        "AFTER_CONTRAST",
        lambda c: contrast_stated(c.header, c.series.description) is True,
        lambda c: "It was made after a contrast agent.",
        "the only one before a contrast agent",
    ),
    "wanted_b_value": Criterion(
        "OTHER_B_VALUE",
        lambda c: _distance_of_b(c),
        lambda c: (
            f"Its b-value is {c.sequence.b_value or 0:g}; the highest from {c.wanted.b_value[0]:g} to "
            f"{c.wanted.b_value[1]:g} is preferred."
        ),
        "the preferred b-value",
    ),
    "trace": Criterion(
        "ONE_DIRECTION",
        lambda c: c.one_direction,
        lambda c: "It is weighted along one direction; the trace of several is preferred.",
        "the only trace",
    ),
    "susceptibility_weighted": Criterion(
        "PLAIN_GRADIENT_ECHO",
        lambda c: (
            not re.search(r"SWI|SWAN|FSBB|VEN.?BOLD", f"{c.words} {' '.join(c.series.image_type).upper()}")
        ),
        lambda c: "It is a T2* gradient echo; SWI is preferred.",
        "the only SWI",
    ),
    "preferred_phase": Criterion(
        "OTHER_PHASE",
        lambda c: c.phase,
        lambda c: (
            f"Its contrast phase is {_phase_name(c)}; the order of preference is "
            f"{', '.join(name for name, _ in c.examination.phases)}."
        ),
        "the preferred contrast phase",
    ),
    "thinnest": Criterion(
        "THICKER_THAN_CHOSEN",
        lambda c: round(c.thickness_mm, 2),
        lambda c: f"Its slices of {c.thickness_mm:g} mm are thicker than those of the chosen one.",
        "the thinnest",
    ),
    "most_slices": Criterion(
        "FEWER_SLICES",
        lambda c: -c.certificate.shape[2],
        lambda c: f"It has {c.certificate.shape[2]} slices, fewer than the chosen one.",
        "the most slices",
    ),
}
EQUAL = Criterion(
    "EQUAL_TO_CHOSEN",
    lambda c: 0,
    lambda c: "It is as good as the chosen one, which comes first.",
    "the first",
)


def _distance_of_b(candidate: Candidate) -> tuple[float, float]:
    """Within the range the highest is best, outside it the nearest."""
    low, high = candidate.wanted.b_value
    b_value = candidate.sequence.b_value or 0.0
    return max(low - b_value, b_value - high, 0.0), -b_value


def _phase_name(candidate: Candidate) -> str:
    phases = candidate.examination.phases
    return phases[candidate.phase][0] if candidate.phase < len(phases) else "not named"


def load_examinations(path: Path | None = None) -> dict[str, Examination]:
    """What each examination is read from, by name: as packaged, then as a site's own file changes it.

    Raises ConfigError, which names the key and the nearest known word.
    """
    return read_examinations(path, CRITERIA)


EXAMINATIONS = load_examinations()
"""As packaged."""


def choose_series(
    study: Study,
    examination: str = "chest_ct",
    rules: Mapping[str, Examination] | None = None,
    resample: bool = False,
) -> tuple[SeriesVerdict, ...]:
    """One verdict for each series, in the order of the study; `rules` as `load_examinations` gives them.

    At most one series is chosen, or one for each role of an examination that wants several. `resample`:
    uneven slices are no reason to refuse (see `read_volume`). ConfigError for an unknown examination.
    """
    wanted = _known(examination, EXAMINATIONS if rules is None else rules)
    verdicts = [_judge(series, wanted, resample) for series in study.series]
    candidates = _candidates(verdicts, wanted)
    if not wanted.sequences:
        _choose(candidates, verdicts, wanted.wanted)
        return tuple(verdicts)
    beside = _in_one_frame(candidates, wanted)
    for role in wanted.sequences:
        _choose({n: c for n, c in beside.items() if c.sequence.kind == role.sequence}, verdicts, role)
    _settle_others(candidates, beside, verdicts, wanted)
    return tuple(verdicts)


def _known(examination: str, rules: Mapping[str, Examination]) -> Examination:
    if examination not in rules:
        raise ConfigError(
            f"No examination {examination!r}. Known are {', '.join(rules)}.", code="UNKNOWN_EXAMINATION"
        )
    return rules[examination]


def _judge(series: Series, examination: Examination, resample: bool) -> SeriesVerdict:
    """Refused, accepted but of no use here (with a reason), or a candidate (without)."""
    try:
        certificate = certify(series, resample)
    except SeriesError as error:
        return SeriesVerdict(series, None, Reason(error.code, str(error)))
    return SeriesVerdict(series, certificate, _unsuitable(series, certificate, examination))


def _unsuitable(series: Series, certificate: Certificate, examination: Examination) -> Reason | None:
    orientations = _all_orientations(examination)
    coverage_mm = certificate.shape[2] * certificate.spacing_mm[2]
    if series.modality != examination.modality:
        return Reason("WRONG_MODALITY", f"It is {series.modality}; {examination.modality} is wanted.")
    if certificate.orientation not in orientations:
        code = "NOT_AXIAL" if orientations == ("axial",) else "WRONG_ORIENTATION"
        return Reason(code, f"It is {certificate.orientation}; wanted: {', '.join(orientations)}.")
    if _is_elsewhere(series, examination):
        return Reason("WRONG_BODY_PART", "Its body part or description names another part of the body.")
    if coverage_mm < examination.min_coverage_mm:
        words = f"It covers {coverage_mm:.0f} mm; at least {examination.min_coverage_mm:g} mm are wanted."
        return Reason("SHORT_COVERAGE", words)
    return None


def _all_orientations(examination: Examination) -> tuple[str, ...]:
    wanted = examination.sequences or (examination.wanted,)
    return tuple(dict.fromkeys(name for one in wanted for name in one.orientations))


def _is_elsewhere(series: Series, examination: Examination) -> bool:
    """The description counts before the body part, which is often left at what was examined last."""
    for text in (series.description.upper(), series.body_part.upper()):
        if _has_word(text, examination.body_words):
            return False
        if _has_word(text, examination.other_body_words):
            return True
    return False


def _has_word(text: str, words: Iterable[str]) -> bool:
    return any(re.search(rf"(?<![A-Z]){re.escape(word)}", text) for word in words)


def _candidates(verdicts: list[SeriesVerdict], examination: Examination) -> dict[int, Candidate]:
    """By the number of the series. Where the examination wants sequences, each is told first."""
    suitable = {
        number: (verdict.series, verdict.certificate, _header(verdict.series))
        for number, verdict in enumerate(verdicts)
        if verdict.certificate is not None and verdict.reason is None
    }
    diffusion = {h.series_uid for _, _, h in suitable.values() if (h.b_value or 0) > WEIGHTED_B}
    found = {}
    for number, (series, certificate, header) in suitable.items():
        sequence = MrSequence("", "")
        if examination.sequences:
            sequence = sequence_of(
                header, series.description, in_diffusion_series=series.series_uid in diffusion
            )
        found[number] = Candidate(series, certificate, header, examination, examination.wanted, sequence)
    times: dict[tuple[str, str], set[int | None]] = {}
    for c in found.values():
        times.setdefault(_volume_of(c), set()).add(c.header.temporal_position)
    return {number: replace(c, time_points=len(times[_volume_of(c)])) for number, c in found.items()}


def _volume_of(candidate: Candidate) -> tuple[str, str]:
    return candidate.series.series_uid, candidate.sequence.kind


def _header(series: Series) -> Header:
    first = series.instances[0]
    return read_headers(first.path)[first.frame or 0]


def _choose(candidates: Mapping[int, Candidate], verdicts: list[SeriesVerdict], wanted: Wanted) -> None:
    """Write the verdicts of these candidates: one is chosen, the others lost by some criterion."""
    usable = {n: c for n, c in candidates.items() if c.certificate.orientation in wanted.orientations}
    longest_mm = max((c.coverage_mm for c in usable.values()), default=0.0)
    compared = {n: replace(c, wanted=wanted, longest_mm=longest_mm) for n, c in usable.items()}
    criteria = [CRITERIA[name] for name in wanted.criteria]
    order = sorted(compared, key=lambda n: tuple(criterion.rank(compared[n]) for criterion in criteria))
    for number, candidate in candidates.items():
        verdict = SeriesVerdict(candidate.series, candidate.certificate, None)
        if number not in compared:
            words = f"It is {candidate.certificate.orientation}; wanted: {', '.join(wanted.orientations)}."
            verdict = replace(verdict, reason=Reason("WRONG_ORIENTATION", _as(wanted, words)))
        elif number == order[0]:
            why = _why(compared[number], [compared[n] for n in order], criteria)
            verdict = replace(verdict, chosen=True, role=wanted.role, why=why)
        else:
            lost_by, _ = _difference(compared[number], compared[order[0]], criteria)
            words = _as(wanted, lost_by.loses(compared[number]))
            verdict = replace(verdict, reason=Reason(lost_by.code, words))
        verdicts[number] = verdict


def _as(wanted: Wanted, words: str) -> str:
    return f"{wanted.role} as well, but {words[0].lower()}{words[1:]}" if wanted.role else words


def _difference(
    candidate: Candidate, chosen: Candidate, criteria: list[Criterion]
) -> tuple[Criterion, list[Criterion]]:
    """The first criterion by which the two differ, EQUAL if none does; and those in which they tie."""
    for number, criterion in enumerate(criteria):
        if criterion.rank(candidate) != criterion.rank(chosen):
            return criterion, criteria[:number]
    return EQUAL, criteria


def _why(chosen: Candidate, ordered: list[Candidate], criteria: list[Criterion]) -> str:
    """What the chosen series is, and what it had before the next best."""
    facts = _facts(chosen)
    if len(ordered) == 1:
        return f"{facts}: the only {_noun(chosen, [])}."
    decided, tied = _difference(ordered[1], chosen, criteria)
    rivals = [c for c in ordered if all(one.rank(c) == one.rank(chosen) for one in tied)]
    if decided is EQUAL:
        return f"{facts}: the first of {len(rivals)} equal {_noun(chosen, [])}."
    return f"{facts}: {decided.wins} of {len(rivals)} {_noun(chosen, tied)}."


def _facts(candidate: Candidate) -> str:
    kernel = candidate.header.kernel
    facts = [
        candidate.certificate.orientation,
        f"kernel {kernel} ({KERNEL_WORDS[candidate.sharpness]})" if kernel else "",
        f"{candidate.thickness_mm:g} mm",
        f"{candidate.certificate.shape[2]} slices",
    ]
    return _told(candidate.sequence) + ", ".join(fact for fact in facts if fact)


def _told(sequence: MrSequence) -> str:
    if sequence.kind:
        return f"{sequence.kind} by {sequence.words}; "
    return ""  # no sequence was asked for


def _noun(candidate: Candidate, tied: list[Criterion]) -> str:
    """ "soft axial CT series": what the compared ones have in common."""
    traits = [criterion.trait(candidate) for criterion in reversed(tied)]
    orientations = candidate.wanted.orientations
    if len(orientations) == 1:
        traits.append(orientations[0])
    kind = candidate.sequence.kind or candidate.series.modality
    return " ".join([*(trait for trait in traits if trait), kind, "series"])


def _in_one_frame(candidates: Mapping[int, Candidate], examination: Examination) -> dict[int, Candidate]:
    """Those in the frame of reference that has the most roles, the weightiest first among equals. Places in
    two frames have nothing to do with each other (PS3.3 C.7.4.1.1.1): one patient lay down twice."""
    wanted = [role.sequence for role in examination.sequences]

    def roles_of(frame: str) -> list[int]:
        kinds = {c.sequence.kind for c in candidates.values() if c.header.frame_of_reference_uid == frame}
        return [n for n, kind in enumerate(wanted) if kind in kinds]

    frames = dict.fromkeys(c.header.frame_of_reference_uid for c in candidates.values())
    best = min(frames, key=lambda frame: (-len(roles_of(frame)), roles_of(frame)), default="")
    return {n: c for n, c in candidates.items() if c.header.frame_of_reference_uid == best}


def _settle_others(
    candidates: Mapping[int, Candidate],
    beside: Mapping[int, Candidate],
    verdicts: list[SeriesVerdict],
    examination: Examination,
) -> None:
    """A reason for each candidate of no role, and for those in another frame of reference than what lies
    `beside` each other: an unknown sequence is never guessed to be a wanted one."""
    roles = {role.sequence for role in examination.sequences}
    for number, candidate in candidates.items():
        if candidate.sequence.kind not in roles:
            verdicts[number] = replace(verdicts[number], reason=_of_no_role(candidate.sequence))
        elif number not in beside:
            kind = candidate.sequence.kind
            words = f"{kind}, but in another frame of reference than most: its places are not comparable."
            verdicts[number] = replace(verdicts[number], reason=Reason("OTHER_FRAME", words))


def _of_no_role(sequence: MrSequence) -> Reason:
    if not sequence.kind:
        return Reason("UNKNOWN_SEQUENCE", f"Its sequence cannot be told: {sequence.words}.")
    words = (
        f"{sequence.kind[0].upper()}{sequence.kind[1:]} by {sequence.words}; not read for this examination."
    )
    return Reason("OTHER_SEQUENCE", words)
