"""Study -> Draft: the whole house in one function. Refuses before it reads what it cannot draft."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mla_med.comparison import check_prior, compare_drafts, lung_region, why_not
from mla_med.dicom.select import choose_series
from mla_med.dicom.source import DAMAGE
from mla_med.dicom.study import check_whole, only_study, read_study
from mla_med.dicom.volume import describe, read_volume
from mla_med.documents.write import write_draft
from mla_med.errors import CheckpointError, SeriesError, StudyError
from mla_med.imaging.nifti import read_nifti
from mla_med.imaging.transforms import Preprocessing, hu_of, inside_body, to_tensor
from mla_med.model.calibrate import Calibration, histogram_of
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.model.evidence import evidence_box, heat_map, measure_faithfulness, slices_in_box
from mla_med.model.findings import FindingOutputs
from mla_med.model.fusion import Fused
from mla_med.model.gate import content_reasons, header_reasons, lung_share, pixel_reasons
from mla_med.model.generate import report_slots, write_text
from mla_med.model.mla import MLAModel
from mla_med.report.check import check_report
from mla_med.report.context import context_text
from mla_med.report.parse import parse_report
from mla_med.report.render import complete_findings, impression_choices
from mla_med.report.schema import CHEST_CT
from mla_med.report.style import load_style
from mla_med.types import (
    Box,
    Certificate,
    ClinicalContext,
    Complaint,
    Draft,
    Evidence,
    Finding,
    Gate,
    Presence,
    Prior,
    Provenance,
    Reason,
    Report,
    Series,
    SeriesVerdict,
    Side,
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


@dataclass(frozen=True, slots=True)
class Seen:
    """What the encoder saw of one patient."""

    fused: Fused
    outputs: FindingOutputs
    image_CIJK: Tensor
    affine: Tensor
    context: str


def draft_folder(
    folder: Path, out: Path, checkpoint: Path | None = None, progress: Progress = lambda step: None
) -> tuple[Draft, list[Path]]:
    """A study on disk -> its draft or refusal, and the files written: draft.json, .txt, .html, .dcm."""
    progress("reading the headers")
    study = read_study(folder)
    progress("loading the model")
    return _draft_into(out, study, load_checkpoint(checkpoint), progress, directly)


def draft_one(
    studies: Sequence[Study],
    out: Path,
    checkpoint: Checkpoint,
    progress: Progress = lambda step: None,
    call: Call = directly,
    options: Options | None = None,
) -> tuple[Draft, list[Path]]:
    """The only study of a folder; what belongs to no study there is then taken to belong to it."""
    return _draft_into(out, only_study(studies), checkpoint, progress, call, options)


def draft_studies(
    studies: Sequence[Study],
    out: Path,
    checkpoint: Checkpoint,
    progress: Progress = lambda step: None,
    call: Call = directly,
    options: Options | None = None,
) -> Iterator[Outcome]:
    """Each study into a folder of its own; one that fails never stops the others.

    The folder is named by a hash of the study UID, so that a second run finds the same."""
    for study in studies:
        if not study.study_uid:
            yield Outcome("", None, _not_owned(study))
            continue
        folder = out / hashlib.sha256(study.study_uid.encode()).hexdigest()[:16]
        try:
            draft, files = _draft_into(folder, study, checkpoint, progress, call, options)
        except (SeriesError, StudyError) as error:
            yield Outcome(study.study_uid, None, Reason(error.code, str(error)))
        else:
            yield Outcome(study.study_uid, draft, None, tuple(files))


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
    volume = call(read_nifti, path, checkpoint.scope.modality)
    study = Study(volume.series.series_uid, "", "", context, (volume.series,))
    verdict = SeriesVerdict(volume.series, volume.certificate, None, chosen=True)
    draft = _draft_volume(study, checkpoint, (verdict,), volume, progress, options or Options())
    progress("writing the documents")
    return draft, write_draft(draft, volume, out)


def _draft_into(
    out: Path,
    study: Study,
    checkpoint: Checkpoint,
    progress: Progress,
    call: Call,
    options: Options | None = None,
) -> tuple[Draft, list[Path]]:
    options = options or Options()
    draft, volume = draft_study(study, checkpoint, progress, call, options.prior, options.faithfulness)
    progress("writing the documents")
    return draft, write_draft(draft, volume, out)


def draft_study(
    study: Study,
    checkpoint: Checkpoint,
    progress: Progress = lambda step: None,
    call: Call = directly,
    prior: Study | Draft | None = None,
    faithfulness: bool = False,
) -> tuple[Draft, Volume | None]:
    """-> the draft or the refusal, and the volume it was drafted from (None where none was read).

    A refusal is for a sound study that this model must not draft. A damaged one raises StudyError or
    SeriesError: half a study would give a confident report of half a patient. `prior`, `faithfulness`:
    see Options."""
    check_whole(study)
    progress("choosing the series")
    verdicts = call(choose_series, study, checkpoint.scope.examination)
    chosen = next((v for v in verdicts if v.chosen), None)
    _check_undamaged(verdicts, checkpoint.scope.modality)
    if chosen is None or chosen.certificate is None:
        return _refuse(study, checkpoint, verdicts, _no_series(verdicts)), None
    reasons = _header_reasons(checkpoint, study, chosen.series, chosen.certificate)
    if reasons:
        return _refuse(study, checkpoint, verdicts, reasons), None
    earlier = _draft_of_prior(study, prior, checkpoint, progress, call)
    progress("reading the volume")
    volume = call(read_volume, chosen.series)
    options = Options(faithfulness, earlier)
    return _draft_volume(study, checkpoint, verdicts, volume, progress, options), volume


def _draft_of_prior(
    study: Study, prior: Study | Draft | None, checkpoint: Checkpoint, progress: Progress, call: Call
) -> Draft | None:
    """The same model looks at the earlier images first: two measurements that can be compared."""
    if not isinstance(prior, Study):
        return prior
    image = next((i.path for s in prior.series for i in s.instances), None)
    check_prior(study, prior.study_uid, prior.study_date, image)
    # what the request says now was not known then, but without any of it nothing is drafted
    prior = with_context(prior, study.context)
    return draft_study(prior, checkpoint, lambda step: progress(f"prior: {step}"), call)[0]


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


def _draft_volume(
    study: Study,
    checkpoint: Checkpoint,
    verdicts: tuple[SeriesVerdict, ...],
    volume: Volume,
    progress: Progress,
    options: Options,
) -> Draft:
    certificate = describe(volume).certificate
    verdicts = tuple(
        replace(v, series=volume.series, certificate=certificate) if v.chosen else v for v in verdicts
    )
    if reasons := _header_reasons(checkpoint, study, volume.series, volume.certificate):
        return _refuse(study, checkpoint, verdicts, reasons)
    if not context_text(study.context):
        return _refuse(study, checkpoint, verdicts, (NO_CONTEXT,))
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    image, affine = to_tensor(volume, settings)
    hu = hu_of(image, settings)
    share, histogram = lung_share(hu), checkpoint.calibration.histogram_distance(histogram_of(hu))
    scores = {"lung_share": round(share, 4), "histogram_distance": round(histogram, 4)}
    reasons = (
        *content_reasons(
            checkpoint.scope,
            certificate.body_part_pixels,
            certificate.contrast_header,
            certificate.contrast_pixels,
        ),
        *pixel_reasons(checkpoint.calibration, share, None, histogram),
    )
    if reasons:
        return _refuse(study, checkpoint, verdicts, reasons, scores)
    progress("looking at the images")
    seen = see(image, affine, context_text(study.context), checkpoint.model)
    distance = checkpoint.calibration.feature_distance(image_feature(checkpoint.model, seen))
    scores["feature_distance"] = round(distance, 3)
    if reasons := pixel_reasons(checkpoint.calibration, share, distance, histogram):
        return _refuse(study, checkpoint, verdicts, reasons, scores)
    findings = find(seen, checkpoint.model, checkpoint.calibration, volume)
    if options.faithfulness:
        progress("masking what is cited")
        findings = with_faithfulness(findings, seen, checkpoint.model, inside_body(hu))
    region = lung_region(hu, affine.numpy())
    findings, prior, complaints = _compared(findings, region, options.prior, checkpoint)
    progress("writing the report")
    technique = _technique(volume, checkpoint.model.config.finding_keys, prior)
    report = write(findings, seen, checkpoint.model, technique)
    midline = float((volume.affine @ [*(np.array(volume.voxels.shape) / 2), 1])[0])
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
                codes=checkpoint.model.config.finding_keys,
            ),
        ),
        prior=prior,
        region_mm=region,
    )


@torch.no_grad()
def see(image_CIJK: Tensor, affine: Tensor, context: str, model: MLAModel) -> Seen:
    """Image and context through the encoder and the finding queries."""
    fused = model.encode(image_CIJK[None], [context], affine_B44=affine[None])
    return Seen(fused, model.find(fused), image_CIJK, affine, context)


def find(
    seen: Seen, model: MLAModel, calibration: Calibration, volume: Volume | None = None
) -> tuple[Finding, ...]:
    """One finding for each code of the schema: present, absent, or that it cannot be said; evidence for
    those that are present or may be."""
    probability = seen.outputs.presence_logits_BF[0].sigmoid().tolist()
    if not np.isfinite(probability).all():
        # a comparison with NaN is false: every finding would be stated as absent
        raise CheckpointError(
            "The model gives no numbers; its weights are damaged.", code="CHECKPOINT_DAMAGED"
        )
    findings = []
    for f, code in enumerate(model.config.finding_keys):
        presence, confidence = calibration.answer(code, probability[f])
        present = presence is Presence.PRESENT
        finding = _describe(code, f, seen, model) if present else Finding(code, presence)
        cited = volume is not None and presence is not Presence.ABSENT
        evidence = _evidence(f, seen, volume, finding.size_mm) if cited and volume is not None else None
        findings.append(replace(finding, confidence=round(confidence, 4), evidence=evidence))
    return complete_findings(findings, codes=model.config.finding_keys)


def with_faithfulness(
    findings: tuple[Finding, ...], seen: Seen, model: MLAModel, body_IJK: np.ndarray
) -> tuple[Finding, ...]:
    """The findings, evidence of those that are present with how much their logit depends on it."""
    codes, logits = model.config.finding_keys, seen.outputs.presence_logits_BF[0].tolist()

    def measured(finding: Finding) -> Finding:
        if finding.evidence is None or finding.presence is not Presence.PRESENT:
            return finding
        f, box = codes.index(finding.code), finding.evidence.box_mm
        found = measure_faithfulness(
            model, seen.image_CIJK, seen.affine, seen.context, f, box, body_IJK, logits[f]
        )
        rank = None if found.rank is None else round(found.rank, 4)
        evidence = replace(finding.evidence, faithfulness=round(found.fall, 4), faithfulness_rank=rank)
        return replace(finding, evidence=evidence)

    return tuple(measured(finding) for finding in findings)


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


def write(findings: tuple[Finding, ...], seen: Seen, model: MLAModel, technique: str) -> Report:
    """The decoder's choice among the sentences that the findings allow, parsed back."""
    prior = any(finding.change for finding in findings)
    slots = report_slots(findings, codes=[finding.code for finding in findings], prior=prior)
    text = write_text(model, seen.fused, seen.outputs, slots)
    parsed = parse_report(text)
    wordings = {s.text: s for slot in impression_choices(findings, load_style()) for s in slot}
    return Report(
        findings=findings,
        sentences=parsed.sentences,
        impression=tuple(wordings.get(s.text, s) for s in parsed.impression),
        technique=technique,
    )


def image_feature(model: MLAModel, seen: Seen) -> np.ndarray:
    """The pooled image embedding (D,), which tells how familiar an image is."""
    return model.image_embedding_BD(seen.fused)[0].detach().double().cpu().numpy()


def _describe(code: str, f: int, seen: Seen, model: MLAModel) -> Finding:
    """Side, site and size of a present finding: the likeliest legal ones."""
    kind, outputs = CHEST_CT[code], seen.outputs
    sides = outputs.side_logits_BF3[0, f].log_softmax(-1).tolist()
    sites = outputs.site_logits_BFT[0, f].log_softmax(-1).tolist()
    legal = [
        (
            (sides[list(Side).index(side)] if side else 0.0)
            + (sites[model.config.sites.index(site)] if site else 0.0),
            side,
            site,
        )
        for side, site in kind.places
    ]
    _, side, site = max(legal, key=lambda row: row[0])
    size = float(round(outputs.size_mm_BF[0, f].item())) if kind.has_size else None
    return Finding(code, Presence.PRESENT, site, side, size)


def _evidence(f: int, seen: Seen, volume: Volume, size_mm: float | None) -> Evidence | None:
    box = evidence_box(seen.fused, seen.outputs, f, size_mm=size_mm)
    if box is None:
        return None
    columns, rows, slices = volume.voxels.shape
    cited = slices_in_box(box, volume.affine, slices, ((columns - 1) / 2, (rows - 1) / 2))
    instances = volume.series.instances
    uids = tuple(dict.fromkeys(instances[k].sop_instance_uid for k in cited))
    return Evidence(uids, box, heat=heat_map(seen.fused, seen.outputs, f))


def _modal_weights(fused: Fused) -> dict[str, float]:
    names = ("image", "clinical context")
    return {n: round(w, 4) for n, w in zip(names, fused.modal_weights_BM[0].tolist(), strict=True)}


def _technique(volume: Volume, codes: Sequence[str], prior: Prior | None) -> str:
    """How it was examined, with what it was compared, and what this model does not look for: its silence
    is no statement."""
    spacing = volume.certificate.spacing_mm
    unseen = [kind.term for code, kind in CHEST_CT.items() if kind.required and code not in codes]
    examined = f"CT of the chest, {volume.certificate.shape[2]} slices {spacing[2]:.1f} mm apart."
    if prior is not None:
        day = prior.study_date
        date = f"{day[:4]}-{day[4:6]}-{day[6:]}" if len(day) == 8 else "unknown date"
        examined += f" Compared by measurement with the examination of {date}."
    return f"{examined} Not assessed: {', '.join(unseen)}." if unseen else examined


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
