"""Volumes of one examination -> what the network saw, and findings with their evidence.

Several lesions of one code: the network is asked about the whole image first, and then again about the
neighbourhood of each further place that its map of the finding names. Knows no DICOM headers and no words.
"""

# B batch, C channels, I J K voxel axes, F findings, S fused tokens, N cells of the stride-4 grid

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mla_med.errors import CheckpointError
from mla_med.imaging.fused import to_array
from mla_med.imaging.grid import Preprocessing
from mla_med.imaging.head import channels_of_volumes
from mla_med.model.calibrate import Calibration
from mla_med.model.evidence import (
    cited_voxels,
    evidence_box,
    heat_map,
    masked,
    measure_faithfulness,
    slices_in_box,
)
from mla_med.model.network import Network
from mla_med.model.seen import (
    FindingOutputs,
    Fused,
    like,
    log_softmax,
    map_logits_N,
    of_patients,
    to_numpy,
)
from mla_med.report.render import complete_findings
from mla_med.report.schema import CONTRAST, FindingType, schema_of
from mla_med.types import Box, Evidence, Finding, Modality, Presence, Side, Volume

MOST_LESIONS = 4
"""Of one code in one report."""
NEAR_CELLS = 2.5
"""Two places of a map that are nearer than so many cells are one lesion."""
CANDIDATES = 256
"""So many of the strongest cells of a map are looked through for further lesions."""
AGAIN_CELLS = 1.5
"""So far around a further place the network looks again."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The images of one examination on the model's grid."""

    image_CIJK: Any
    """An array or a tensor, as the next two."""
    present_C: Any
    affine: Any
    """(4, 4), voxel index -> patient RAS mm."""

    @classmethod
    def whole(cls, image_CIJK: Any, affine: Any) -> Prepared:
        """Every channel was taken."""
        return cls(image_CIJK, np.ones(len(image_CIJK), bool), affine)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the encoder saw of one patient."""

    fused: Fused
    outputs: FindingOutputs
    prepared: Prepared
    context: str
    examination: str = "chest_ct"

    @property
    def image_CIJK(self) -> Any:
        return self.prepared.image_CIJK

    @property
    def affine(self) -> Any:
        return self.prepared.affine


def prepare(volumes: Mapping[str, Volume], settings: Preprocessing) -> Prepared:
    """The one volume of a CT, or the sequences of an MR by role. SeriesError where there is no head."""
    if settings.modality == Modality.MR and settings.sequences:
        return Prepared(*channels_of_volumes(volumes, settings))
    (volume,) = volumes.values()
    return Prepared.whole(*to_array(volume, settings))


def see(prepared: Prepared, context: str, model: Network, examination: str = "chest_ct") -> Seen:
    """Image and context through the encoder and the finding queries."""
    return see_together([prepared], [context], model, examination).patients[0]


@dataclass(frozen=True, slots=True)
class SeenTogether:
    """What the encoder saw of several patients in one call."""

    fused: Fused
    outputs: FindingOutputs
    patients: tuple[Seen, ...]


def see_together(
    prepared: Sequence[Prepared], contexts: Sequence[str], model: Network, examination: str = "chest_ct"
) -> SeenTogether:
    """The same of a batch on one grid: each patient's numbers to 1e-4, whoever is beside them."""
    with model.looking():
        fused = model.encode(
            _stacked([one.image_CIJK for one in prepared]),
            list(contexts),
            _stacked([one.present_C for one in prepared]),
            _stacked([one.affine for one in prepared]),
        )
        outputs = model.find(fused)
    patients = tuple(
        Seen(of_patients(fused, [b]), of_patients(outputs, [b]), one, context, examination)
        for b, (one, context) in enumerate(zip(prepared, contexts, strict=True))
    )
    return SeenTogether(fused, outputs, patients)


def _stacked(parts: Sequence[Any]) -> Any:
    """With one part it is not copied."""
    return parts[0][None] if len(parts) == 1 else np.stack([to_numpy(part) for part in parts])


def find(
    seen: Seen,
    model: Network,
    calibration: Calibration,
    volumes: Mapping[str, Volume] | None = None,
    taken: Collection[str] | None = None,
    asked: Collection[str] = (),
) -> tuple[Finding, ...]:
    """Findings of each code of the model: present (once for each place), absent, or that it cannot be said;
    evidence for those that are present or may be. `taken`: what was taken of what FindingType.seen_on names;
    None: everything. A code that no report has to speak of is left out where it is not present, but for a
    critical one of which nothing can be said, and for those that are `asked` for."""
    probability = seen.outputs.probability_BF()[0].tolist()
    if not np.isfinite(probability).all():
        # a comparison with NaN is false: every finding would be stated as absent
        raise CheckpointError(
            "The model gives no numbers; its weights are damaged.", code="CHECKPOINT_DAMAGED"
        )
    schema, findings = schema_of(seen.examination), []
    spoken = []
    for f, code in enumerate(model.config.finding_keys):
        kind = schema[code]
        unseen = is_unseen(kind, taken)
        presence, confidence = calibration.answer(code, probability[f])
        # of what no report has to speak of, silence is no statement; what is critical is not passed over
        silent = presence is Presence.ABSENT or (presence is Presence.CANNOT_SAY and not kind.critical)
        if not kind.required and code not in asked and (unseen or silent):
            continue
        spoken.append(code)
        if unseen:
            findings.append(Finding(code, Presence.CANNOT_SAY))
            continue
        volume = None if volumes is None else volume_of(kind, volumes)
        if presence is Presence.PRESENT:
            lesions = lesions_of(f, kind, seen, model, calibration, volume)
        else:
            # what is absent has no evidence, what cannot be said has where it may be
            cited = volume if presence is Presence.CANNOT_SAY else None
            lesions = [Finding(code, presence, evidence=_evidence(f, seen.fused, seen.outputs, cited, None))]
        # calibrated is that the finding is there, not that it is at a further place too
        findings += [replace(lesions[0], confidence=round(confidence, 4)), *lesions[1:]]
    return complete_findings(findings, seen.examination, codes=spoken)


def is_unseen(kind: FindingType, taken: Collection[str] | None) -> bool:
    """Nothing that was taken can show it; `taken` as `find` has it."""
    return taken is not None and bool(kind.seen_on) and not set(kind.seen_on) & set(taken)


def lesions_of(
    f: int,
    kind: FindingType,
    seen: Seen,
    model: Network,
    calibration: Calibration,
    volume: Volume | None,
) -> list[Finding]:
    """What is present of one code: the foremost lesion, then those at other places that the map of this
    finding names strongly enough (Calibration.further_from)."""
    foremost = _describe(kind, f, seen.outputs, model)
    evidence = _evidence(f, seen.fused, seen.outputs, volume, foremost.size_mm)
    lesions = [replace(foremost, evidence=evidence)]
    limit = calibration.further_from.get(kind.key)
    if limit is None or not kind.repeats:
        return lesions
    said = {(foremost.side, foremost.site)}
    for place in further_places(f, seen.fused, limit):
        fused = around(seen.fused, place)
        with model.looking():
            outputs = model.find(fused)
        lesion = _describe(kind, f, outputs, model)
        if (lesion.side, lesion.site) in said or len(lesions) == MOST_LESIONS:
            continue
        said.add((lesion.side, lesion.site))
        evidence = _evidence(f, fused, outputs, volume, lesion.size_mm)
        lesions.append(replace(lesion, evidence=evidence))
    return lesions


def further_places(f: int, fused: Fused, limit: float) -> list[np.ndarray]:
    """Middles (3,) in patient mm of the peaks after the first whose logit is `limit` or more."""
    return [place for place, logit in peaks(f, fused)[1:] if logit >= limit]


def peaks(f: int, fused: Fused, patient: int = 0) -> list[tuple[np.ndarray, float]]:
    """Places (3,) in patient mm and logits of the cells of the finding's map that are the strongest near
    them; the strongest of all first. Nothing where the fusion has no map."""
    if fused.lesions is None:
        return []
    logit_N = map_logits_N(fused.lesions, f, patient)
    place_N3 = to_numpy(fused.lesions.positions_BN3[patient]).astype(np.float64)
    near_mm = NEAR_CELLS * 2 * float(fused.lesions.half_cells_BN3[patient].max())
    first, *others = np.argsort(-logit_N, kind="stable")[:CANDIDATES]
    taken, found = [place_N3[first]], [(place_N3[first], float(logit_N[first]))]
    # what is near to something taken is taken too: so a large lesion is one
    for n in others:
        if np.linalg.norm(place_N3[n] - np.array(taken), axis=1).min() > near_mm:
            found.append((place_N3[n], float(logit_N[n])))
        taken.append(place_N3[n])
    return found


def around(fused: Fused, place: np.ndarray) -> Fused:
    """The same with the located tokens and the cells of the map further from a place (3,) in mm left out:
    what the findings are then of lies there."""
    place_3 = place.astype(np.float32)

    def near(positions_BS3: np.ndarray, half_BS3: np.ndarray) -> np.ndarray:
        reach_mm = AGAIN_CELLS * 2 * half_BS3.max(-1, keepdims=True)
        return (np.abs(positions_BS3 - place_3) <= reach_mm).all(-1)

    near_BS = near(to_numpy(fused.positions_BS3), to_numpy(fused.half_cells_BS3))
    lesions = fused.lesions
    if lesions is not None:
        near_BN = near(to_numpy(lesions.positions_BN3), to_numpy(lesions.half_cells_BN3))
        lesions = replace(lesions, mask_BN=lesions.mask_BN & like(near_BN, lesions.mask_BN))
    weights_BS = fused.weights_BS * like(near_BS | ~to_numpy(fused.located_BS), fused.weights_BS)
    return replace(fused, weights_BS=weights_BS, lesions=lesions)


def with_faithfulness(
    findings: tuple[Finding, ...], seen: Seen, model: Network, body_IJK: np.ndarray
) -> tuple[Finding, ...]:
    """The findings, evidence of those that are present with how much their logit depends on it. Of several
    lesions of one code each is measured with the others masked, which would hold the logit up."""
    codes, logits = model.config.finding_keys, seen.outputs.presence_logits_BF[0].tolist()
    cited = [(finding.code, _cited_box(finding)) for finding in findings]

    def measured(number: int, finding: Finding) -> Finding:
        box = _cited_box(finding)
        if box is None or finding.evidence is None:
            return finding
        f = codes.index(finding.code)
        beside = [b for n, (code, b) in enumerate(cited) if b and n != number and code == finding.code]
        image_CIJK, logit = seen.image_CIJK, logits[f]
        if beside:
            for other in beside:
                image_CIJK = masked(image_CIJK, cited_voxels(other, seen.affine, image_CIJK.shape[1:]))
            alone = see(replace(seen.prepared, image_CIJK=image_CIJK), seen.context, model, seen.examination)
            logit = float(alone.outputs.presence_logits_BF[0, f])
        found = measure_faithfulness(
            model,
            image_CIJK,
            seen.affine,
            seen.context,
            f,
            box,
            body_IJK,
            logit,
            present_C=seen.prepared.present_C,
        )
        rank = None if found.rank is None else round(found.rank, 4)
        evidence = replace(finding.evidence, faithfulness=round(found.fall, 4), faithfulness_rank=rank)
        return replace(finding, evidence=evidence)

    return tuple(measured(number, finding) for number, finding in enumerate(findings))


def _cited_box(finding: Finding) -> Box | None:
    """Of what is present."""
    if finding.presence is not Presence.PRESENT or finding.evidence is None:
        return None
    return finding.evidence.box_mm


def image_feature(model: Network, seen: Seen) -> np.ndarray:
    """The pooled image embedding (D,), which tells how familiar an image is."""
    return to_numpy(model.image_embedding_BD(seen.fused)[0]).astype(np.float64)


def volume_of(kind: FindingType, volumes: Mapping[str, Volume]) -> Volume:
    """What shows a finding best of what was taken."""
    best = (volumes[name] for name in kind.seen_on if name != CONTRAST and name in volumes)
    return next(best, next(iter(volumes.values())))


def _describe(kind: FindingType, f: int, outputs: FindingOutputs, model: Network) -> Finding:
    """Side, site and size of a present finding: the likeliest legal ones."""
    sides = log_softmax(to_numpy(outputs.side_logits_BF3[0, f])).tolist()
    sites = log_softmax(to_numpy(outputs.site_logits_BFT[0, f])).tolist()
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
    size = float(max(1, round(outputs.size_mm_BF[0, f].item()))) if kind.has_size else None
    return Finding(kind.key, Presence.PRESENT, site, side, size)


def _evidence(
    f: int, fused: Fused, outputs: FindingOutputs, volume: Volume | None, size_mm: float | None
) -> Evidence | None:
    if volume is None:
        return None
    box = evidence_box(fused, outputs, f, size_mm=size_mm)
    if box is None:
        return None
    columns, rows, slices = volume.voxels.shape
    cited = slices_in_box(box, volume.affine, slices, ((columns - 1) / 2, (rows - 1) / 2))
    instances = volume.series.instances
    found: dict[str, tuple[int, ...]] = {}
    for one in (instances[k] for k in cited):
        number = one.frame_number
        known = found.get(one.sop_instance_uid, ())
        found[one.sop_instance_uid] = known if number is None else (*known, number)
    frames = tuple(found.values()) if any(found.values()) else ()
    return Evidence(tuple(found), box, heat=heat_map(fused, outputs, f), frames=frames)
