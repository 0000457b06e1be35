"""Study -> Draft: the whole house in one function. Refuses before it reads what it cannot draft."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mla_med.dicom.select import choose_series
from mla_med.dicom.source import DAMAGE
from mla_med.dicom.study import read_study
from mla_med.dicom.volume import read_volume
from mla_med.documents.write import write_draft
from mla_med.errors import CheckpointError, SeriesError, StudyError
from mla_med.imaging.transforms import Preprocessing, to_tensor
from mla_med.model.calibrate import Calibration
from mla_med.model.checkpoint import Checkpoint, load_checkpoint
from mla_med.model.evidence import evidence_box, slices_in_box
from mla_med.model.findings import FindingOutputs
from mla_med.model.fusion import Fused
from mla_med.model.gate import header_reasons, lung_share, pixel_reasons
from mla_med.model.generate import write_text
from mla_med.model.mla import MLAModel
from mla_med.report.check import check_report
from mla_med.report.context import context_text
from mla_med.report.parse import parse_report
from mla_med.report.render import complete_findings, impression_choices, sentence_choices
from mla_med.report.schema import CHEST_CT
from mla_med.report.styles import load_style
from mla_med.types import (
    Draft,
    Evidence,
    Finding,
    Gate,
    Presence,
    Provenance,
    Reason,
    Report,
    SeriesVerdict,
    Side,
    Study,
    Volume,
)

Progress = Callable[[str], None]
DAMAGED_SERIES = ("TRUNCATED_PIXELS", "UNREADABLE_PIXELS", "MALFORMED", "FILE_CHANGED")
"""Reasons of a series that sending it again may cure."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the encoder saw of one patient."""

    fused: Fused
    outputs: FindingOutputs


def draft_folder(
    folder: Path, out: Path, checkpoint: Path | None = None, progress: Progress = lambda step: None
) -> tuple[Draft, list[Path]]:
    """A study on disk -> its draft or refusal, and the files written: draft.json, .txt, .html, .dcm."""
    progress("reading the headers")
    study = read_study(folder)
    progress("loading the model")
    draft, volume = draft_study(study, load_checkpoint(checkpoint), progress)
    progress("writing the documents")
    return draft, write_draft(draft, volume, out)


def draft_study(
    study: Study, checkpoint: Checkpoint, progress: Progress = lambda step: None
) -> tuple[Draft, Volume | None]:
    """-> the draft or the refusal, and the volume it was drafted from (None where none was read).

    A refusal is for a sound study that this model must not draft. A damaged one raises StudyError or
    SeriesError: half a study would give a confident report of half a patient."""
    _check_whole(study)
    progress("choosing the series")
    verdicts = choose_series(study, checkpoint.scope.examination)
    chosen = next((v for v in verdicts if v.chosen), None)
    _check_undamaged(verdicts, checkpoint.scope.modality)
    if chosen is None or chosen.certificate is None:
        return _refuse(study, checkpoint, verdicts, _no_series(verdicts)), None
    c = chosen.certificate
    reasons = header_reasons(
        checkpoint.scope,
        chosen.series.modality,
        chosen.series.body_part,
        c.orientation,
        c.tilt_deg,
        c.shape,
        c.spacing_mm,
    )
    if reasons:
        return _refuse(study, checkpoint, verdicts, reasons), None
    progress("reading the volume")
    volume = read_volume(chosen.series)
    verdicts = tuple(
        replace(v, series=volume.series, certificate=volume.certificate) if v.chosen else v for v in verdicts
    )
    return _draft_volume(study, checkpoint, verdicts, volume, progress), volume


def _draft_volume(study, checkpoint: Checkpoint, verdicts, volume: Volume, progress: Progress) -> Draft:
    settings = Preprocessing.from_dict(checkpoint.model.config.preprocessing)
    image, affine = to_tensor(volume, settings)
    low, high = settings.windows_hu[0]
    share = lung_share(image[0].numpy() * (high - low) + low)
    if reasons := pixel_reasons(checkpoint.calibration, share, None):
        return _refuse(study, checkpoint, verdicts, reasons, {"lung_share": share})
    progress("looking at the images")
    seen = see(image, affine, context_text(study.context), checkpoint.model)
    distance = checkpoint.calibration.feature_distance(image_feature(checkpoint.model, seen))
    scores = {"lung_share": round(share, 4), "feature_distance": round(distance, 3)}
    if reasons := pixel_reasons(checkpoint.calibration, share, distance):
        return _refuse(study, checkpoint, verdicts, reasons, scores)
    findings = find(seen, checkpoint.model, checkpoint.calibration, volume)
    progress("writing the report")
    report = write(findings, seen, checkpoint.model, _technique(volume))
    midline = float((volume.affine @ [*(np.array(volume.voxels.shape) / 2), 1])[0])
    return Draft(
        report=report,
        gate=Gate(True, (), scores),
        verdicts=verdicts,
        modal_weights=_modal_weights(seen.fused),
        provenance=_provenance(study, checkpoint, verdicts),
        complaints=check_report(report, study.context, midline_mm=midline),
    )


@torch.no_grad()
def see(image_CIJK: Tensor, affine: Tensor, context: str, model: MLAModel) -> Seen:
    """Image and context through the encoder and the finding queries."""
    fused = model.encode(image_CIJK[None], [context], affine_B44=affine[None])
    return Seen(fused, model.find(fused))


def find(
    seen: Seen, model: MLAModel, calibration: Calibration, volume: Volume | None = None
) -> tuple[Finding, ...]:
    """One finding for each code of the schema; evidence for those that are present."""
    probability = seen.outputs.presence_logits_BF[0].sigmoid().tolist()
    if not np.isfinite(probability).all():
        # a comparison with NaN is false: every finding would be stated as absent
        raise CheckpointError(
            "The model gives no numbers; its weights are damaged.", code="CHECKPOINT_DAMAGED"
        )
    findings = []
    for f, code in enumerate(model.config.finding_keys):
        present = probability[f] >= calibration.thresholds[code]
        finding = _describe(code, f, seen, model) if present else Finding(code, Presence.ABSENT)
        evidence = _evidence(f, seen, volume) if present and volume is not None else None
        confidence = probability[f] if present else 1 - probability[f]
        findings.append(replace(finding, confidence=round(confidence, 4), evidence=evidence))
    return complete_findings(findings)


def write(findings: tuple[Finding, ...], seen: Seen, model: MLAModel, technique: str) -> Report:
    """The decoder's choice among the sentences that the findings allow, parsed back."""
    style = load_style()
    heads = style["headings"]
    impression = impression_choices(findings, style)
    slots = [
        [heads["findings"]],
        *([" " + text for text in sentence_choices(f, style)] for f in findings),
        ["\n" + heads["impression"]],
        *([" " + s.text for s in slot] for slot in impression),
    ]
    text = write_text(model, seen.fused, seen.outputs, slots)
    parsed = parse_report(text)
    wordings = {s.text: s for slot in impression for s in slot}
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
        (sides[list(Side).index(side)] + (sites[model.config.sites.index(site)] if site else 0.0), side, site)
        for side in kind.sides
        for site in kind.sites or (None,)
        if not (site == "middle_lobe" and side is not Side.RIGHT)
    ]
    _, side, site = max(legal, key=lambda row: row[0]) if legal else (0.0, None, None)
    size = float(round(outputs.size_mm_BF[0, f].item())) if kind.has_size else None
    return Finding(code, Presence.PRESENT, site, side, size)


def _evidence(f: int, seen: Seen, volume: Volume) -> Evidence | None:
    box = evidence_box(seen.fused, seen.outputs, f)
    if box is None:
        return None
    columns, rows, slices = volume.voxels.shape
    cited = slices_in_box(box, volume.affine, slices, ((columns - 1) / 2, (rows - 1) / 2))
    instances = volume.series.instances
    return Evidence(tuple(instances[k].sop_instance_uid for k in cited), box)


def _modal_weights(fused: Fused) -> dict[str, float]:
    names = ("image", "clinical context")
    return {n: round(w, 4) for n, w in zip(names, fused.modal_weights_BM[0].tolist(), strict=True)}


def _technique(volume: Volume) -> str:
    spacing = volume.certificate.spacing_mm
    return f"CT of the chest, {volume.certificate.shape[2]} slices {spacing[2]:.1f} mm apart."


def _refuse(study, checkpoint, verdicts, reasons: tuple[Reason, ...], scores=None) -> Draft:
    return Draft(
        None, Gate(False, reasons, scores or {}), verdicts, {}, _provenance(study, checkpoint, verdicts)
    )


def _check_whole(study: Study) -> None:
    damaged = [p for p in study.problems if p.code in DAMAGE]
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise StudyError(
            f"A file of this study is damaged{more}: {damaged[0].words} Send or copy the study again.",
            code="DAMAGED_FILE",
        )


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
    )
