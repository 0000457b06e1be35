"""Study -> Draft: the whole house in one function. Refuses before it reads what it cannot draft.

In three steps, each of which may wait for its turn: `place_study` reads one study, `draft_together` looks at
one or several with the model and words them, `write_placed` writes the documents of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

import numpy as np

from mla_med.comparison import check_prior, compare_drafts, head_region, lung_region, thinned, why_not
from mla_med.dicom.ahead import Ahead
from mla_med.dicom.select import choose_series
from mla_med.dicom.source import DAMAGE
from mla_med.dicom.study import check_whole, only_study, read_study
from mla_med.dicom.volume import describe, read_volume
from mla_med.documents.envelope import Revision
from mla_med.documents.write import DEFAULT_FORMATS, write_draft
from mla_med.errors import MlaMedError, SeriesError
from mla_med.imaging import lungs
from mla_med.imaging.grid import Preprocessing, hu_of, inside_body
from mla_med.imaging.head import inside_head
from mla_med.imaging.nifti import read_nifti
from mla_med.imaging.values import values_of
from mla_med.looking import (
    Prepared,
    Seen,
    SeenTogether,
    find,
    image_feature,
    prepare,
    see_together,
    with_faithfulness,
)
from mla_med.model import CHECKPOINTS
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.model.gate import (
    content_reasons,
    cut_off_reasons,
    feature_reasons,
    header_reasons,
    missing_reasons,
    value_reasons,
)
from mla_med.model.network import Network
from mla_med.model.seen import Fused, of_patients
from mla_med.model.slots import Slots, report_slots
from mla_med.report.check import check_report
from mla_med.report.context import context_text
from mla_med.report.interpret import interpret
from mla_med.report.parse import parse_report
from mla_med.report.render import impression_choices, interpretation_choices
from mla_med.report.schema import CONTRAST
from mla_med.report.style import Style, load_style
from mla_med.report.technique import technique_words
from mla_med.types import (
    Box,
    Certificate,
    ClinicalContext,
    Complaint,
    Draft,
    Finding,
    Gate,
    Modality,
    Presence,
    Prior,
    Provenance,
    Reason,
    Report,
    Series,
    SeriesVerdict,
    Study,
    Volume,
)

Progress = Callable[[str], None]
Call = Callable[..., Any]
"""Calls a reader: here (`directly`), or in a child process (mla_med.dicom.apart)."""
NO_CONTEXT = Reason(
    "NO_CONTEXT",
    "Neither age nor sex nor indication is stated, and this model was trained with them. "
    "Give what is known: --age, --sex, --indication.",
)
DAMAGED_SERIES = ("TRUNCATED_PIXELS", "UNREADABLE_PIXELS", "MALFORMED", "FILE_CHANGED")
"""Reasons of a series that sending it again may cure."""


def directly(read: Callable[..., Any], *args: Any) -> Any:
    return read(*args)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one study of many."""

    study_uid: str
    """Empty for files that belong to no study."""
    draft: Draft | None
    reason: Reason | None
    """Why there is no draft: an error, not a refusal."""
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """What a draft may have on top, at a price."""

    faithfulness: bool = False
    """Ask the network again with each cited region masked: about two seconds a finding."""
    prior: Study | Draft | None = None
    """An earlier examination of the same patient, or its draft by the same model: changes are measured
    and stated. Whoever gives a Draft vouches for the patient; `comparison.read_prior` checks it."""
    style: Style | None = None
    """How the report is worded, and in which language; None: English prose."""
    formats: tuple[str, ...] = DEFAULT_FORMATS
    """Keys of documents.write.FORMATS: what is written."""
    revision: Revision | None = None
    """Which documents of an earlier draft of this study this one takes the place of."""

    @property
    def language(self) -> str:
        """Of the report, and of the pages of a refusal."""
        return self.style.language if self.style else "en"


@dataclass(frozen=True, slots=True)
class Placed:
    """A study that was read and lies on the model's grid, or is refused already: it can wait for others, to
    be looked at with them."""

    study: Study
    checkpoint: Checkpoint
    options: Options
    """Its prior is a Draft by now, or None."""
    progress: Progress
    verdicts: tuple[SeriesVerdict, ...]
    volumes: dict[str, Volume] = field(default_factory=dict)
    """By role; empty where none was read."""
    prepared: Prepared | None = None
    taken: frozenset[str] = frozenset()
    scores: dict[str, float] = field(default_factory=dict)
    """What the gate has measured so far."""
    refused: Draft | None = None

    @property
    def examination(self) -> str:
        return self.checkpoint.scope.examination

    @property
    def chosen(self) -> dict[str, Volume]:
        """Of the volumes those that the draft is made from."""
        roles = {verdict.role for verdict in self.verdicts if verdict.chosen}
        return {role: volume for role, volume in self.volumes.items() if role in roles}

    @property
    def in_order(self) -> tuple[Volume, ...]:
        """The first wanted one first."""
        wanted = self.checkpoint.scope.sequences[:1]
        # sorted is stable: False comes before True
        return tuple(self.volumes[role] for role in sorted(self.volumes, key=lambda role: role not in wanted))

    def refuse(self, reasons: tuple[Reason, ...]) -> Placed:
        return replace(self, refused=_refuse(self, reasons))


def draft_folder(
    folder: Path, out: Path, checkpoint: Path | None = None, progress: Progress = lambda step: None
) -> tuple[Draft, list[Path]]:
    """A study on disk -> its draft or refusal, and the files written: draft.json, .txt, .html, .dcm."""
    progress("reading the headers")
    study = read_study(folder)
    progress("loading the model")
    model = load_checkpoint(checkpoint) if checkpoint else packaged_for(study)
    return _draft_into(out, study, model, progress, directly)


Model = Checkpoint | Callable[[Study], Checkpoint]
"""One for all studies, or what chooses one for each."""


def packaged_for(study: Study) -> Checkpoint:
    """The packaged model for a study, by its modality: whether it is the right one is for the gate to say."""
    modalities = {series.modality for series in study.series}
    return packaged("brain_mr" if Modality.MR in modalities - {Modality.CT} else "chest_ct")


@cache
def packaged(examination: str) -> Checkpoint:
    return load_checkpoint(CHECKPOINTS[examination])


def draft_one(
    studies: Sequence[Study],
    out: Path,
    checkpoint: Model,
    progress: Progress = lambda step: None,
    call: Call = directly,
    options: Options | None = None,
) -> tuple[Draft, list[Path]]:
    """The only study of a folder; what belongs to no study there is then taken to belong to it."""
    return _draft_into(out, only_study(studies), checkpoint, progress, call, options)


def draft_studies(
    studies: Sequence[Study],
    out: Path,
    checkpoint: Model,
    progress: Progress = lambda step: None,
    call: Call = directly,
    options: Options | None = None,
) -> Iterator[Outcome]:
    """Each study into a folder of its own; one that fails never stops the others. Where another process
    reads (`call`), it reads the next study while the model works.

    The folder is named by a hash of the study UID, so that a second run finds the same."""
    with _reading_ahead(studies, checkpoint, call) as read_of:
        for study in studies:
            if not study.study_uid:
                yield Outcome("", None, _not_owned(study))
                continue
            folder = out / hashlib.sha256(study.study_uid.encode()).hexdigest()[:16]
            try:
                draft, files = _draft_into(folder, study, checkpoint, progress, read_of(study), options)
            except MlaMedError as error:
                yield Outcome(study.study_uid, None, Reason(error.code, str(error)))
            else:
                yield Outcome(study.study_uid, draft, None, tuple(files))


@contextmanager
def _reading_ahead(
    studies: Sequence[Study], checkpoint: Model, call: Call
) -> Iterator[Callable[[Study], Call]]:
    """-> the reader of each study, in their order, which has read it by the time that it is asked for."""
    if call is directly:
        yield lambda study: directly
        return

    def begin(study: Study) -> Future[Ahead]:
        return thread.submit(_read_ahead, study, checkpoint, call)

    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        wanted = [study for study in studies if study.study_uid]
        pending = begin(wanted[0]) if wanted else None

        def read_of(study: Study) -> Call:
            nonlocal pending
            assert pending is not None
            ready = pending.result()
            number = wanted.index(study) + 1
            pending = begin(wanted[number]) if number < len(wanted) else None
            return ready

        yield read_of


def _read_ahead(study: Study, checkpoint: Model, call: Call) -> Ahead:
    ahead = Ahead(call)
    model = checkpoint if isinstance(checkpoint, Checkpoint) else checkpoint(study)
    ahead.read((study,), model.scope.examination)
    return ahead


def with_context(study: Study, known: ClinicalContext) -> Study:
    """The study with what its own header leaves open of age, sex and indication."""
    own = study.context
    context = replace(
        own,
        age_years=known.age_years if own.age_years is None else own.age_years,
        sex=own.sex or known.sex,
        indication=own.indication or known.indication,
    )
    return replace(study, context=context)


def draft_nifti(
    path: Path,
    context: ClinicalContext,
    out: Path,
    checkpoint: Checkpoint,
    progress: Progress = lambda step: None,
    call: Call = directly,
    options: Options | None = None,
) -> tuple[Draft, list[Path]]:
    """A NIfTI file, for research: no SR and no prior, as nothing in it says whose images they are."""
    assert options is None or options.prior is None
    progress("reading the volume")
    if checkpoint.scope.sequences:
        raise SeriesError(
            f"A {checkpoint.scope.examination} has several sequences, and a NIfTI file is one that does not "
            "say which. Give the study as DICOM.",
            code="NO_SEQUENCE",
        )
    volume = call(read_nifti, path, checkpoint.scope.modality)
    study = Study(volume.series.series_uid, "", "", context, (volume.series,))
    verdict = SeriesVerdict(volume.series, volume.certificate, None, chosen=True)
    placed = _place(Placed(study, checkpoint, options or Options(), progress, (verdict,), {"": volume}))
    draft = _draft_alone(placed)
    return draft, write_placed(placed, draft, out)


def _draft_into(
    out: Path,
    study: Study,
    checkpoint: Model,
    progress: Progress,
    call: Call,
    options: Options | None = None,
) -> tuple[Draft, list[Path]]:
    model = checkpoint if isinstance(checkpoint, Checkpoint) else checkpoint(study)
    placed = place_study(study, model, progress, call, options)
    draft = _draft_alone(placed)
    return draft, write_placed(placed, draft, out)


def draft_study(
    study: Study,
    checkpoint: Checkpoint,
    progress: Progress = lambda step: None,
    call: Call = directly,
    options: Options | None = None,
) -> tuple[Draft, Volume | None]:
    """-> the draft or the refusal, and the volume it was drafted from (of several sequences the first that
    is wanted; None where none was read).

    A refusal is for a sound study that this model must not draft. A damaged one raises StudyError or
    SeriesError: half a study would give a confident report of half a patient."""
    placed = place_study(study, checkpoint, progress, call, options)
    return _draft_alone(placed), next(iter(placed.in_order), None)


def write_placed(placed: Placed, draft: Draft, out: Path) -> list[Path]:
    """The documents of a study that was drafted or refused."""
    placed.progress("writing the documents")
    options = placed.options
    return write_draft(draft, placed.in_order, out, options.formats, options.revision, options.language)


# A study, read


def place_study(
    study: Study,
    checkpoint: Checkpoint,
    progress: Progress = lambda step: None,
    call: Call = directly,
    options: Options | None = None,
    spill: Path | None = None,
) -> Placed:
    """What of it needs no network, unless there is a prior to look at first. `spill`: a folder on whose disk
    the voxels wait for the pictures of the documents, instead of in memory."""
    options = options or Options()
    check_whole(study)
    progress("choosing the series")
    verdicts = call(choose_series, study, checkpoint.scope.examination)
    _check_undamaged(verdicts, checkpoint.scope.modality)
    verdicts, reasons = _within_scope(study, checkpoint, verdicts)
    if reasons:
        return Placed(study, checkpoint, options, progress, verdicts).refuse(reasons)
    options = replace(options, prior=_draft_of_prior(study, checkpoint, progress, call, options))
    progress("reading the volume")
    volumes = {v.role: call(read_volume, v.series) for v in verdicts if v.chosen}
    placed = _place(Placed(study, checkpoint, options, progress, verdicts, volumes))
    if spill is None:
        return placed
    return replace(placed, volumes={role: _spilled(v, spill) for role, v in placed.volumes.items()})


def _spilled(volume: Volume, folder: Path) -> Volume:
    """The same with its voxels in a file without a name, which is gone with this process at the latest."""
    stored = volume.voxels.T if volume.voxels.flags.f_contiguous else np.ascontiguousarray(volume.voxels.T)
    with TemporaryFile(dir=folder) as file:
        stored.tofile(file)
        file.flush()
        return replace(volume, voxels=np.memmap(file, stored.dtype, "r", shape=stored.shape).T)


def _within_scope(
    study: Study, checkpoint: Checkpoint, verdicts: tuple[SeriesVerdict, ...]
) -> tuple[tuple[SeriesVerdict, ...], tuple[Reason, ...]]:
    """The verdicts, chosen only what the model was trained for; and why nothing can be drafted from what is
    left."""
    judged: list[SeriesVerdict] = []
    outside: list[Reason] = []
    channels = checkpoint.model.config.preprocessing.get("sequences", ())
    for verdict in verdicts:
        reasons: tuple[Reason, ...] = ()
        if verdict.chosen and channels and verdict.role not in channels:
            reason = Reason("NOT_READ", f"This model has no channel for {verdict.role}.")
            verdict = replace(verdict, chosen=False, why="", reason=reason)
        if verdict.chosen and verdict.certificate is not None:
            reasons = _header_reasons(checkpoint, study, verdict.series, verdict.certificate)
        if reasons:
            outside += reasons
            verdict = replace(verdict, chosen=False, why="", reason=reasons[0])
        judged.append(verdict)
    roles = {v.role for v in judged if v.chosen}
    missing = missing_reasons(checkpoint.scope, roles) if roles else _no_series(verdicts)
    if missing:
        # said once each, however many series say so
        return verdicts, tuple(dict.fromkeys(outside)) or missing
    return tuple(judged), ()


def _draft_of_prior(
    study: Study, checkpoint: Checkpoint, progress: Progress, call: Call, options: Options
) -> Draft | None:
    """The same model looks at the earlier images first: two measurements that can be compared."""
    prior = options.prior
    if not isinstance(prior, Study):
        return prior
    image = next((i.path for s in prior.series for i in s.instances), None)
    check_prior(study, prior.study_uid, prior.study_date, image)
    # what the request says now was not known then, but without any of it nothing is drafted
    prior = with_context(prior, study.context)
    without = replace(options, prior=None, faithfulness=False)
    return draft_study(prior, checkpoint, lambda step: progress(f"prior: {step}"), call, without)[0]


def _header_reasons(
    checkpoint: Checkpoint, study: Study, series: Series, certificate: Certificate
) -> tuple[Reason, ...]:
    return header_reasons(
        checkpoint.scope,
        series.modality,
        series.body_part,
        certificate.orientation,
        certificate.tilt_deg,
        certificate.shape,
        certificate.spacing_mm,
        series.image_type,
        study.context.age_years,
    )


def _place(read: Placed) -> Placed:
    """The volumes on the model's grid, and what the gate says before the network runs."""
    study, checkpoint = read.study, read.checkpoint
    certificates = {v.series.series_uid: describe(v).certificate for v in read.volumes.values()}
    verdicts = tuple(
        _as_read(verdict, read.volumes.get(verdict.role), certificates) for verdict in read.verdicts
    )
    verdicts, reasons = _within_scope(study, checkpoint, verdicts)
    placed = replace(read, verdicts=verdicts)
    if reasons:
        return placed.refuse(reasons)
    if not context_text(study.context):
        return placed.refuse((NO_CONTEXT,))
    read.progress("placing the images")
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    try:
        prepared = prepare(placed.chosen, settings)
    except SeriesError as error:
        if error.code != "LUNGS_OUTSIDE":
            raise
        return placed.refuse((Reason(error.code, str(error)),))
    verdicts, reasons = _within_scope(study, checkpoint, _as_shown(verdicts, prepared, settings))
    placed = replace(placed, verdicts=verdicts)
    if reasons:
        return placed.refuse(reasons)
    scores, reasons = _look_first(checkpoint, prepared, settings, list(certificates.values()))
    placed = replace(
        placed, prepared=prepared, taken=_taken(placed.chosen, certificates.values()), scores=scores
    )
    return placed.refuse(reasons) if reasons else placed


def _as_read(
    verdict: SeriesVerdict, volume: Volume | None, certificates: dict[str, Certificate]
) -> SeriesVerdict:
    """A chosen series with what its voxels showed."""
    if not verdict.chosen or volume is None:
        return verdict
    return replace(verdict, series=volume.series, certificate=certificates[volume.series.series_uid])


def _as_shown(
    verdicts: tuple[SeriesVerdict, ...], prepared: Prepared, settings: Preprocessing
) -> tuple[SeriesVerdict, ...]:
    """Of an MR, chosen only what shows something on the grid: what is blank rules out nothing."""
    there = zip(settings.sequences, prepared.present_C, strict=False)
    blank = {name for name, is_there in there if not is_there}
    reason = Reason("NOTHING_SHOWN", "Where the head lies, it has one value everywhere.")
    return tuple(
        replace(v, chosen=False, why="", reason=reason) if v.chosen and v.role in blank else v
        for v in verdicts
    )


def _look_first(
    checkpoint: Checkpoint, prepared: Prepared, settings: Preprocessing, certificates: list[Certificate]
) -> tuple[dict[str, float], tuple[Reason, ...]]:
    """What the gate measures before the network runs, and why it refuses."""
    ct, usual = settings.modality == Modality.CT, checkpoint.calibration.usual
    image = hu_of(prepared.image_CIJK, settings) if ct else prepared.image_CIJK
    values = values_of(image, np.asarray(prepared.present_C).tolist(), settings)
    scores = {"lung_share" if ct else "head_share": round(values.share, 4)}
    for channel, distance in usual.distances(values.histograms).items():
        scores["histogram_distance" if ct else f"brightness_distance {channel}"] = round(distance, 4)
    reasons = value_reasons(usual, values.share, values.histograms)
    if not ct:
        return scores, reasons
    (certificate,) = certificates
    cut_off_cm2 = lungs.cut_off_cm2(image, settings.spacing_mm)
    shown, header, pixels = (
        certificate.body_part_pixels,
        certificate.contrast_header,
        certificate.contrast_pixels,
    )
    return scores | {"lung_cut_off_cm2": round(cut_off_cm2, 1)}, (
        *content_reasons(checkpoint.scope, shown, header, pixels),
        *reasons,
        *cut_off_reasons(cut_off_cm2),
    )


def _taken(volumes: dict[str, Volume], certificates: Iterable[Certificate]) -> frozenset[str]:
    """What there is of what findings are seen on."""
    enhanced = any(
        c.contrast_header if c.contrast_pixels is None else c.contrast_pixels for c in certificates
    )
    return frozenset(volumes) | ({CONTRAST} if enhanced else frozenset())


# Studies together, through the model


def draft_together(placed: Sequence[Placed]) -> list[Draft | MlaMedError]:
    """Studies of one checkpoint, looked at and worded in one call each of its model. Each is told that it
    goes on (`progress`), and is refused or fails alone: what it failed of stands in its place."""
    try:
        steps: list[Any] = [one.refused or _tried(_begun, one) for one in placed]
        return _among(Found, _among(Placed, steps, _look), _word)
    except (RuntimeError, MemoryError):
        # most likely no memory for all of them at once: one by one, then
        if len(placed) == 1:
            raise
    return [answer for one in placed for answer in draft_together([one])]


def _draft_alone(placed: Placed) -> Draft:
    (answer,) = draft_together([placed])
    if isinstance(answer, MlaMedError):
        raise answer
    return answer


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be said of a study, before it is worded."""

    placed: Placed
    batch: SeenTogether
    row: int
    """Of this study in the batch."""
    wording: Wording
    scores: dict[str, float]
    complaints: tuple[Complaint, ...]
    prior: Prior | None
    region_mm: Box


T = TypeVar("T")


def _among(kind: type[T], steps: Sequence[Any], work: Callable[[list[T]], Sequence[Any]]) -> list[Any]:
    """The next step of those that have come so far; the others are over."""
    some = [step for step in steps if isinstance(step, kind)]
    answers = iter(work(some) if some else ())
    return [next(answers) if isinstance(step, kind) else step for step in steps]


def _tried(step: Callable[..., T], *args: Any) -> T | MlaMedError:
    try:
        return step(*args)
    except MlaMedError as error:
        return error


def _begun(placed: Placed) -> Placed:
    placed.progress("looking at the images")
    return placed


def _look(placed: list[Placed]) -> list[Found | Draft | MlaMedError]:
    prepared = [one.prepared for one in placed if one.prepared is not None]
    contexts = [context_text(one.study.context) for one in placed]
    batch = see_together(prepared, contexts, placed[0].checkpoint.model, placed[0].examination)
    return [_tried(_find, one, batch, row) for row, one in enumerate(placed)]


def _word(found: list[Found]) -> list[Draft | MlaMedError]:
    batch, rows, model = found[0].batch, [one.row for one in found], found[0].placed.checkpoint.model
    slots = [one.wording.slots for one in found]
    written = _tried(model.write, of_patients(batch.fused, rows), of_patients(batch.outputs, rows), slots)
    if isinstance(written, MlaMedError):
        # of one of them, which would stop the others
        return [written] if len(found) == 1 else [draft for one in found for draft in _word([one])]
    return [_tried(_to_draft, one, text.text) for one, text in zip(found, written, strict=True)]


def _find(placed: Placed, batch: SeenTogether, row: int) -> Found | Draft:
    checkpoint, options, seen = placed.checkpoint, placed.options, batch.patients[row]
    distance = checkpoint.calibration.feature_distance(image_feature(checkpoint.model, seen))
    scores = placed.scores | {"feature_distance": round(distance, 3)}
    if reasons := feature_reasons(checkpoint.calibration, distance):
        return _refuse(placed, reasons, scores)
    asked = _present_then(options.prior)
    findings = find(seen, checkpoint.model, checkpoint.calibration, placed.chosen, placed.taken, asked)
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    ct, image_CIJK, affine = settings.modality == Modality.CT, seen.image_CIJK, np.asarray(seen.affine)
    if options.faithfulness:
        placed.progress("masking what is cited")
        inside = inside_body(hu_of(image_CIJK, settings)) if ct else inside_head(image_CIJK)
        findings = with_faithfulness(findings, seen, checkpoint.model, inside)
    image_CIJK, affine = thinned(image_CIJK, affine)
    region = (
        lung_region(hu_of(image_CIJK, settings), affine)
        if ct
        else head_region(inside_head(image_CIJK), affine)
    )
    findings, prior, complaints = _compared(findings, region, options.prior, checkpoint)
    placed.progress("writing the report")
    style = options.style or load_style()
    keys = checkpoint.model.config.finding_keys
    technique = technique_words(placed.examination, placed.verdicts, style, keys, prior)
    wording = Wording.of(findings, placed.examination, technique, style, placed.study.context)
    return Found(placed, batch, row, wording, scores, complaints, prior, region)


def _to_draft(found: Found, text: str) -> Draft:
    placed, report = found.placed, found.wording.report(text)
    first = next(iter(placed.chosen.values()))
    midline = float((first.affine @ [*(np.array(first.voxels.shape) / 2), 1])[0])
    return Draft(
        report=report,
        gate=Gate(True, (), found.scores),
        verdicts=placed.verdicts,
        modal_weights=_modal_weights(found.batch.patients[found.row].fused),
        provenance=_provenance(placed),
        complaints=(
            *found.complaints,
            *check_report(
                report,
                _known_prior(placed.study.context, found.prior),
                midline_mm=midline,
                style=found.wording.style,
                codes=[finding.code for finding in report.findings],
            ),
        ),
        prior=found.prior,
        region_mm=found.region_mm,
    )


def _compared(
    findings: tuple[Finding, ...], region_mm: Box, prior: Study | Draft | None, checkpoint: Checkpoint
) -> tuple[tuple[Finding, ...], Prior | None, tuple[Complaint, ...]]:
    """The findings with their changes, what they were compared with, and why not. Without a prior no
    finding has a change; `Draft` asserts it."""
    if not isinstance(prior, Draft):
        return findings, None, ()
    if words := why_not(prior, checkpoint.weights_sha256):
        return findings, None, (Complaint("PRIOR_NOT_COMPARED", words),)
    changed, compared = compare_drafts(findings, region_mm, prior, checkpoint.calibration.size_repeat_mm)
    return changed, compared, ()


def _present_then(prior: Study | Draft | None) -> frozenset[str]:
    """What was there then is spoken of, whatever has become of it."""
    if not isinstance(prior, Draft) or prior.report is None:
        return frozenset()
    return frozenset(f.code for f in prior.report.findings if f.presence is Presence.PRESENT)


def _known_prior(context: ClinicalContext, prior: Prior | None) -> ClinicalContext:
    """For the linter: with a measured prior, words of comparison have something to compare with."""
    if prior is None or context.prior:
        return context
    return replace(context, prior=f"Examination of {prior.study_date or 'unknown date'}, measured.")


@dataclass(frozen=True, slots=True)
class Wording:
    """Findings, and what a report of them may say."""

    findings: tuple[Finding, ...]
    examination: str
    technique: str
    style: Style
    interpretations: tuple[str, ...]
    slots: Slots

    @classmethod
    def of(
        cls,
        findings: tuple[Finding, ...],
        examination: str,
        technique: str,
        style: Style,
        context: ClinicalContext,
    ) -> Wording:
        prior = any(finding.change for finding in findings)
        interpretations = interpret(findings, context, examination)
        codes = list(dict.fromkeys(finding.code for finding in findings))
        slots = report_slots(findings, style, examination, codes, interpretations, prior)
        return cls(findings, examination, technique, style, interpretations, slots)

    def report(self, text: str) -> Report:
        """Of the sentences that were chosen."""
        parsed = parse_report(text, self.style, self.examination)
        choices = (
            *impression_choices(self.findings, self.style, self.examination),
            *interpretation_choices(self.interpretations, self.style, self.examination),
        )
        wordings = {s.text: s for slot in choices for s in slot}
        return Report(
            findings=self.findings,
            sentences=parsed.sentences,
            impression=tuple(wordings.get(s.text, s) for s in parsed.impression),
            technique=self.technique,
            language=self.style.language,
            examination=self.examination,
            interpretations=self.interpretations,
        )


def write(
    findings: tuple[Finding, ...],
    seen: Seen,
    model: Network,
    technique: str,
    style: Style | None = None,
    context: ClinicalContext | None = None,
) -> Report:
    """The decoder's choice among the sentences that the findings allow, parsed back."""
    style, context = style or load_style(), context or ClinicalContext()
    wording = Wording.of(findings, seen.examination, technique, style, context)
    return wording.report(model.write(seen.fused, seen.outputs, [wording.slots])[0].text)


def _modal_weights(fused: Fused) -> dict[str, float]:
    names = ("image", "clinical context")
    return {n: round(w, 4) for n, w in zip(names, fused.modal_weights_BM[0].tolist(), strict=True)}


def _refuse(placed: Placed, reasons: tuple[Reason, ...], scores: dict[str, float] | None = None) -> Draft:
    gate = Gate(False, reasons, placed.scores if scores is None else scores)
    return Draft(None, gate, placed.verdicts, {}, _provenance(placed))


def _not_owned(study: Study) -> Reason:
    """Files without a study: damage is an error, anything else is only said."""
    damaged = [problem for problem in study.problems if problem.code in DAMAGE]
    if not damaged:
        return Reason("IGNORED", f"{len(study.problems)} files are no DICOM images.")
    return Reason("DAMAGED_FILE", f"{damaged[0].words} It belongs to no study that can be told.")


def _no_series(verdicts: tuple[SeriesVerdict, ...]) -> tuple[Reason, ...]:
    """That there is none to read, then why not, once for each code."""
    why = {v.reason.code: v.reason for v in verdicts if v.reason is not None}
    return (Reason("NO_SERIES", "No series of this study can be read as a volume."), *why.values())


def _check_undamaged(verdicts: tuple[SeriesVerdict, ...], modality: str) -> None:
    """Damage is an error, not a refusal: sent again, the same study may well be drafted. Nor is another
    series taken in place of a damaged one without a word."""
    for verdict in verdicts:
        damaged = verdict.reason is not None and verdict.reason.code in DAMAGED_SERIES
        if damaged and verdict.reason is not None and verdict.series.modality == modality:
            raise SeriesError(verdict.reason.words, code=verdict.reason.code)


def _provenance(placed: Placed) -> Provenance:
    study, checkpoint = placed.study, placed.checkpoint
    return Provenance(
        model_name=checkpoint.name,
        model_version=checkpoint.version,
        weights_sha256=checkpoint.weights_sha256,
        study_uid=study.study_uid,
        series_uids=tuple(v.series.series_uid for v in placed.verdicts if v.chosen),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        study_date=study.study_date,
    )
