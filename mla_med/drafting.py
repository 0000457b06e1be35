"""Study -> Draft: the whole house in one function. Refuses before it reads what it cannot draft."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mla_med.comparison import check_prior, compare_drafts, head_region, lung_region, why_not
from mla_med.dicom.ahead import Ahead
from mla_med.dicom.select import choose_series
from mla_med.dicom.source import DAMAGE
from mla_med.dicom.study import check_whole, only_study, read_study
from mla_med.dicom.volume import describe, read_volume
from mla_med.documents.envelope import Revision
from mla_med.documents.write import DEFAULT_FORMATS, write_draft
from mla_med.errors import SeriesError, StudyError
from mla_med.imaging.grid import Preprocessing, hu_of, inside_body
from mla_med.imaging.head import inside_head
from mla_med.imaging.nifti import read_nifti
from mla_med.looking import Prepared, Seen, find, image_feature, prepare, see, with_faithfulness
from mla_med.model import CHECKPOINTS
from mla_med.model.calibrate import histogram_of
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.model.gate import (
    content_reasons,
    header_reasons,
    lung_share,
    missing_reasons,
    pixel_reasons,
)
from mla_med.model.network import Network
from mla_med.model.seen import Fused
from mla_med.model.slots import report_slots
from mla_med.report.check import check_report
from mla_med.report.context import context_text
from mla_med.report.interpret import interpret
from mla_med.report.parse import parse_report
from mla_med.report.render import impression_choices, interpretation_choices
from mla_med.report.schema import CONTRAST, schema_of
from mla_med.report.style import Style, load_style
from mla_med.types import (
    Box,
    Certificate,
    ClinicalContext,
    Complaint,
    Draft,
    Finding,
    Gate,
    Modality,
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
            except (SeriesError, StudyError) as error:
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
    draft = _draft_volumes(study, checkpoint, (verdict,), {"": volume}, progress, options or Options())
    progress("writing the documents")
    return draft, write_draft(draft, volume, out, (options or Options()).formats)


def _draft_into(
    out: Path,
    study: Study,
    checkpoint: Model,
    progress: Progress,
    call: Call,
    options: Options | None = None,
) -> tuple[Draft, list[Path]]:
    model = checkpoint if isinstance(checkpoint, Checkpoint) else checkpoint(study)
    options = options or Options()
    draft, volumes = _draft_whole(study, model, progress, call, options)
    progress("writing the documents")
    return draft, write_draft(draft, volumes, out, options.formats, options.revision)


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
    draft, volumes = _draft_whole(study, checkpoint, progress, call, options or Options())
    return draft, volumes[0] if volumes else None


def _draft_whole(
    study: Study, checkpoint: Checkpoint, progress: Progress, call: Call, options: Options
) -> tuple[Draft, tuple[Volume, ...]]:
    """The same with every volume, the first wanted one first."""
    check_whole(study)
    progress("choosing the series")
    verdicts = call(choose_series, study, checkpoint.scope.examination)
    _check_undamaged(verdicts, checkpoint.scope.modality)
    verdicts, reasons = _within_scope(study, checkpoint, verdicts)
    if reasons:
        return _refuse(study, checkpoint, verdicts, reasons), ()
    earlier = _draft_of_prior(study, checkpoint, progress, call, options)
    progress("reading the volume")
    volumes = {v.role: call(read_volume, v.series) for v in verdicts if v.chosen}
    draft = _draft_volumes(study, checkpoint, verdicts, volumes, progress, replace(options, prior=earlier))
    # sorted is stable: False comes before True
    return draft, tuple(
        volumes[role] for role in sorted(volumes, key=lambda role: role not in checkpoint.scope.sequences[:1])
    )


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


def _draft_volumes(
    study: Study,
    checkpoint: Checkpoint,
    verdicts: tuple[SeriesVerdict, ...],
    volumes: dict[str, Volume],
    progress: Progress,
    options: Options,
) -> Draft:
    certificates = {v.series.series_uid: describe(v).certificate for v in volumes.values()}
    verdicts = tuple(_as_read(verdict, volumes.get(verdict.role), certificates) for verdict in verdicts)
    verdicts, reasons = _within_scope(study, checkpoint, verdicts)
    if reasons:
        return _refuse(study, checkpoint, verdicts, reasons)
    if not context_text(study.context):
        return _refuse(study, checkpoint, verdicts, (NO_CONTEXT,))
    volumes = {
        role: volume for role, volume in volumes.items() if role in {v.role for v in verdicts if v.chosen}
    }
    progress("placing the images")
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    prepared = prepare(volumes, settings)
    scores, reasons = _look_first(checkpoint, prepared, settings, list(certificates.values()))
    if reasons:
        return _refuse(study, checkpoint, verdicts, reasons, scores)
    progress("looking at the images")
    seen = see(prepared, context_text(study.context), checkpoint.model, checkpoint.scope.examination)
    distance = checkpoint.calibration.feature_distance(image_feature(checkpoint.model, seen))
    scores["feature_distance"] = round(distance, 3)
    if reasons := pixel_reasons(checkpoint.calibration, None, distance):
        return _refuse(study, checkpoint, verdicts, reasons, scores)
    findings = find(
        seen, checkpoint.model, checkpoint.calibration, volumes, _taken(volumes, certificates.values())
    )
    ct = settings.modality == Modality.CT
    hu = hu_of(prepared.image_CIJK, settings) if ct else None
    if options.faithfulness:
        progress("masking what is cited")
        inside = inside_head(prepared.image_CIJK) if hu is None else inside_body(hu)
        findings = with_faithfulness(findings, seen, checkpoint.model, inside)
    affine = np.asarray(prepared.affine)
    region = head_region(inside_head(prepared.image_CIJK), affine) if hu is None else lung_region(hu, affine)
    findings, prior, complaints = _compared(findings, region, options.prior, checkpoint)
    progress("writing the report")
    style = options.style or load_style()
    technique = _technique(seen, volumes, style, checkpoint.model.config.finding_keys, prior)
    report = write(findings, seen, checkpoint.model, technique, style, study.context)
    first = next(iter(volumes.values()))
    midline = float((first.affine @ [*(np.array(first.voxels.shape) / 2), 1])[0])
    return Draft(
        report=report,
        gate=Gate(True, (), scores),
        verdicts=verdicts,
        modal_weights=_modal_weights(seen.fused),
        provenance=_provenance(study, checkpoint, verdicts),
        complaints=(
            *complaints,
            *check_report(
                report,
                _known_prior(study.context, prior),
                midline_mm=midline,
                codes=[finding.code for finding in findings],
            ),
        ),
        prior=prior,
        region_mm=region,
    )


def _as_read(
    verdict: SeriesVerdict, volume: Volume | None, certificates: dict[str, Certificate]
) -> SeriesVerdict:
    """A chosen series with what its voxels showed."""
    if not verdict.chosen or volume is None:
        return verdict
    return replace(verdict, series=volume.series, certificate=certificates[volume.series.series_uid])


def _look_first(
    checkpoint: Checkpoint, prepared: Prepared, settings: Preprocessing, certificates: list[Certificate]
) -> tuple[dict[str, float], tuple[Reason, ...]]:
    """What the gate measures before the network runs, and why it refuses."""
    if settings.modality != Modality.CT:
        return {}, ()
    (certificate,) = certificates
    hu = hu_of(prepared.image_CIJK, settings)
    share, histogram = lung_share(hu), checkpoint.calibration.histogram_distance(histogram_of(hu))
    scores = {"lung_share": round(share, 4), "histogram_distance": round(histogram, 4)}
    shown, header, pixels = (
        certificate.body_part_pixels,
        certificate.contrast_header,
        certificate.contrast_pixels,
    )
    reasons = (
        *content_reasons(checkpoint.scope, shown, header, pixels),
        *pixel_reasons(checkpoint.calibration, share, None, histogram),
    )
    return scores, reasons


def _taken(volumes: dict[str, Volume], certificates: Iterable[Certificate]) -> frozenset[str]:
    """What there is of what findings are seen on."""
    enhanced = any(
        c.contrast_header if c.contrast_pixels is None else c.contrast_pixels for c in certificates
    )
    return frozenset(volumes) | ({CONTRAST} if enhanced else frozenset())


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


def _known_prior(context: ClinicalContext, prior: Prior | None) -> ClinicalContext:
    """For the linter: with a measured prior, words of comparison have something to compare with."""
    if prior is None or context.prior:
        return context
    return replace(context, prior=f"Examination of {prior.study_date or 'unknown date'}, measured.")


def write(
    findings: tuple[Finding, ...],
    seen: Seen,
    model: Network,
    technique: str,
    style: Style | None = None,
    context: ClinicalContext | None = None,
) -> Report:
    """The decoder's choice among the sentences that the findings allow, parsed back."""
    style, examination = style or load_style(), seen.examination
    prior = any(finding.change for finding in findings)
    interpretations = interpret(findings, context or ClinicalContext(), examination)
    codes = list(dict.fromkeys(finding.code for finding in findings))
    slots = report_slots(findings, style, examination, codes, interpretations, prior)
    text = model.write(seen.fused, seen.outputs, [slots])[0].text
    parsed = parse_report(text, style, examination)
    choices = (
        *impression_choices(findings, style, examination),
        *interpretation_choices(interpretations, style, examination),
    )
    wordings = {s.text: s for slot in choices for s in slot}
    return Report(
        findings=findings,
        sentences=parsed.sentences,
        impression=tuple(wordings.get(s.text, s) for s in parsed.impression),
        technique=technique,
        language=style.language,
        examination=examination,
        interpretations=interpretations,
    )


def _modal_weights(fused: Fused) -> dict[str, float]:
    names = ("image", "clinical context")
    return {n: round(w, 4) for n, w in zip(names, fused.modal_weights_BM[0].tolist(), strict=True)}


_TECHNIQUE = {
    ("chest_ct", "en"): "CT of the chest, {slices} slices {spacing:.1f} mm apart.",
    ("chest_ct", "zh"): "胸部CT扫描，共{slices}层，层间距{spacing:.1f} mm。",
    ("brain_mr", "en"): "MR of the brain: {sequences}.",
    ("brain_mr", "zh"): "颅脑MR检查，序列：{sequences}。",
}
_COMPARED = {
    "en": " Compared by measurement with the examination of {date}.",
    "zh": "与{date}检查的测量结果比较。",
}
_UNSEEN = {"en": " Not assessed: {terms}.", "zh": "未评估：{terms}。"}
_UNKNOWN_DATE = {"en": "unknown date", "zh": "日期不明"}


def _technique(
    seen: Seen, volumes: dict[str, Volume], style: Style, codes: Sequence[str], prior: Prior | None
) -> str:
    """How it was examined, with what it was compared, and what this model does not look for: its silence
    is no statement."""
    language, examination = style.language, seen.examination
    certificate = next(iter(volumes.values())).certificate
    text = _TECHNIQUE[examination, language].format(
        slices=certificate.shape[2],
        spacing=certificate.spacing_mm[2],
        sequences="、".join(volumes) if language == "zh" else ", ".join(volumes),
    )
    if prior is not None:
        day = prior.study_date
        date = f"{day[:4]}-{day[4:6]}-{day[6:]}" if len(day) == 8 else _UNKNOWN_DATE[language]
        text += _COMPARED[language].format(date=date)
    schema = schema_of(examination)
    unseen = [kind.term for code, kind in schema.items() if kind.required and code not in codes]
    return text + (_UNSEEN[language].format(terms=", ".join(unseen)) if unseen else "")


def _refuse(study, checkpoint, verdicts, reasons: tuple[Reason, ...], scores=None) -> Draft:
    return Draft(
        None, Gate(False, reasons, scores or {}), verdicts, {}, _provenance(study, checkpoint, verdicts)
    )


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


def _provenance(study: Study, checkpoint: Checkpoint, verdicts) -> Provenance:
    return Provenance(
        model_name=checkpoint.name,
        model_version=checkpoint.version,
        weights_sha256=checkpoint.weights_sha256,
        study_uid=study.study_uid,
        series_uids=tuple(v.series.series_uid for v in verdicts if v.chosen),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        study_date=study.study_date,
    )
